"""SDXL from a checkpoint to a picture: built by the command, run by ONNX Runtime, beside diffusers' own pipelines.

The build compares every graph with torch itself. Tracing takes minutes, so graphs are kept where builds keep theirs.
"""

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from export.random_checkpoint import write
from export.session import Session
from orchestrator.checkpoint import read_checkpoint
from orchestrator.pipeline import Pipeline
from orchestrator.plan import make_plan

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
build_engines = pytest.importorskip("export.build_engines")
beside = pytest.importorskip("parity.test_sdxl_parity")
networks = pytest.importorskip("parity.torch_networks")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class OrtModels:
    """Fits the pipeline's ``Models``: the built graphs, each loaded at its first call."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._sessions: dict[str, Session] = {}

    def _run(self, model, inputs):
        if model not in self._sessions:
            self._sessions[model] = Session(self._repository / model / "1" / "model.onnx")
        return self._sessions[model].run(inputs)

    def encode_text(self, input_ids, model="text_encoder"):
        outputs = self._run(model, {"input_ids": input_ids})
        return outputs["last_hidden_state"], outputs["pooler_output"]

    @contextmanager
    def conditioned(self, model, inputs):
        yield lambda sample, timestep: self._run(model, {"sample": sample, "timestep": timestep, **inputs})[
            "out_sample"
        ]

    def decode(self, latents):
        return self._run("vae_decoder", {"latent_sample": latents})["sample"]

    def encode(self, picture):
        outputs = self._run("vae_encoder", {"sample": picture})
        return outputs["latent_mean"], outputs["latent_std"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdxl") / "checkpoint"
    write(folder, "tiny-sdxl", controlnets=beside.CONTROLS)
    return folder


@pytest.fixture(scope="module")
def repository(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "models"
    controls = [f"--controlnet={name}={checkpoint}/controlnet_{name}" for name in beside.CONTROLS]
    options = ["--checkpoint", str(checkpoint), "--runtime", "onnx", "--style-rank", "4", "--out", str(out)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert build_engines.main([*options, *controls]) == 0
    yield out
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "case",
    [
        beside.Case("sdxl", "euler_a", "inpaint", 0.8, beside.BOTH, steps=5),
        beside.Case("sdxl", "dpmpp_2m", negative="", steps=5),
    ],
    ids=str,
)
def test_built_repository_paints_what_diffusers_paints(
    case, checkpoint: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "WIDTH", 256)
    monkeypatch.setattr(beside, "HEIGHT", 320)
    controls = tuple(beside.control(one.name, scale=one.scale, end=one.end) for one in case.controls)
    case = replace(case, controls=controls)
    served = read_checkpoint(repository)
    expected = beside.theirs(case, checkpoint, networks.TorchNetworks(checkpoint, beside.CONTROLS).networks)

    plan = make_plan(beside.job_of(case), served, lambda: 1, pictures=case.pictures)
    *_, last = Pipeline(OrtModels(repository), served).run(plan)

    assert expected.std() > 1
    assert beside.psnr_db(last.picture, expected) >= 45


def test_built_repository_says_what_the_orchestrator_must_know(repository: Path) -> None:
    served = read_checkpoint(repository)

    assert (served.family, served.controls, served.pad_ids) == ("sdxl", ("depth", "canny"), {"text_encoder_2": 0})
    assert served.zeros_for_no_negative
    assert set(served.models) == {path.parent.name for path in repository.glob("*/config.pbtxt")}
    assert sorted(served.layers) == ["text_encoder", "text_encoder_2", "unet"]
