"""Pictures in a style, mixed and merged, against diffusers' and peft's own loading of the same files, in fp32.

The files are written by the trainers' own code where it can be had (peft's ``save_pretrained``, diffusers'
``save_lora_weights``) and by hand in the names of sd-scripts' ``networks/lora.py``. The networks are the demo's.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.session import Session
from orchestrator.checkpoint import CheckpointInfo, read_checkpoint
from orchestrator.clients.storage import Storage
from orchestrator.diffusion.lora_names import spellings
from orchestrator.job import Job, StyleRef
from orchestrator.merged_folders import MergedFolders
from orchestrator.merged_models import MergedModels
from orchestrator.pipeline import Finished, Pipeline
from orchestrator.plan import make_plan
from orchestrator.style_ways import AppliedStyle, StyleMode
from orchestrator.styles import StyleShelf

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
safetensors_torch = pytest.importorskip("safetensors.torch")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Already found a .peft_config. attribute:UserWarning"),
]
CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
EVERYTHING = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "conv1", "conv_shortcut", "time_emb_proj"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
PROMPT, SEED, STEPS, EDGE_PX = "a red boat at dusk", 7, 6, 256


class Sessions:
    """The networks of a repository in this process, each loaded when it is first called."""

    def __init__(self, repository: Path) -> None:
        self._repository = repository
        self._sessions: dict[str, Session] = {}
        self.called: list[str] = []

    def _run(self, model: str, **inputs: Any) -> dict[str, np.ndarray]:
        self.load(model)
        self.called.append(model)
        return self._sessions[model].run(inputs)

    def encode_text(self, input_ids: np.ndarray, /, model: str = "text_encoder") -> tuple[np.ndarray, np.ndarray]:
        outputs = self._run(model, input_ids=input_ids)
        return outputs["last_hidden_state"], outputs["pooler_output"]

    @contextmanager
    def conditioned(self, model: str, inputs: dict[str, np.ndarray]) -> Iterator[Callable[..., np.ndarray]]:
        yield lambda sample, timestep: self._run(model, sample=sample, timestep=timestep, **inputs)["out_sample"]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        return self._run("vae_decoder", latent_sample=latents)["sample"]

    def encode(self, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        raise NotImplementedError

    def load(self, model: str) -> None:
        if model not in self._sessions:
            self._sessions[model] = Session(self._repository / model / "1" / "model.onnx")

    def unload(self, model: str) -> None:
        del self._sessions[model]

    def is_ready(self, model: str) -> bool:
        return model in self._sessions

    def loaded(self) -> list[str]:
        return list(self._sessions)


@pytest.fixture(scope="module")
def checkpoint(own_repository: Path) -> CheckpointInfo:
    return read_checkpoint(own_repository)


@pytest.fixture(scope="module")
def sessions(own_repository: Path) -> Sessions:
    return Sessions(own_repository)


@pytest.fixture(scope="module")
def base():
    """Diffusers' pipeline of the demo; every test takes a copy."""
    made = diffusers.StableDiffusionPipeline.from_pretrained(
        CHECKPOINT, safety_checker=None, requires_safety_checker=False
    )
    made = made.to(torch.float32)
    made.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(made.scheduler.config)
    return made


@pytest.fixture
def pipe(base):
    copied = copy.deepcopy(base)
    copied.set_progress_bar_config(disable=True)
    return copied


def theirs(pipe) -> np.ndarray:
    made = pipe(
        PROMPT,
        width=EDGE_PX,
        height=EDGE_PX,
        num_inference_steps=STEPS,
        guidance_scale=7.5,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
    )
    return (made.images[0] * 255).round().astype(np.uint8)


def admitted(checkpoint: CheckpointInfo, *styles: tuple[Path, float]) -> tuple[AppliedStyle, ...]:
    folder = styles[0][0].parent if styles else CHECKPOINT
    inputs = Storage(folder.as_uri(), allowed_input_prefixes=[folder.as_uri()]).inputs
    return StyleShelf(inputs, checkpoint).admit([StyleRef(path=str(path), weight=weight) for path, weight in styles])


def ours(
    sessions: Sessions, own_repository: Path, mode: StyleMode, *styles: tuple[Path, float]
) -> tuple[np.ndarray, tuple[str, str]]:
    """The picture and the ways that the UNet and the text encoder got the styles."""
    checkpoint = read_checkpoint(own_repository)
    applied = admitted(checkpoint, *styles)
    job = Job(
        generation_id=1,
        task_id="t",
        prompt=PROMPT,
        width_px=EDGE_PX,
        height_px=EDGE_PX,
        num_inference_steps=STEPS,
        seed=SEED,
        styles=tuple(StyleRef(path=one.path, weight=one.weight) for one in applied),
    )
    plan = make_plan(job, checkpoint, lambda: 0, styles=applied, style_mode=mode)
    merged = MergedModels(sessions, MergedFolders(own_repository, 1 << 30), checkpoint)
    *_, last = Pipeline(sessions, checkpoint, merged).run(plan)
    assert isinstance(last, Finished)
    return last.picture, (plan.ways.unet, plan.ways.text_encoder)


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    error = float(np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def randomised(model, seed: int = 7):
    """Factors drawn anew, of a strength that shows: an untrained adapter does nothing."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data = parameter.data * (1 + 0.1 * torch.randn(parameter.shape))
        elif "lora_" in name:
            parameter.data = torch.randn(parameter.shape) / (8 if "lora_A" in name else 30)
    return model


def config(**changes: Any):
    return peft.LoraConfig(**{"r": 8, "lora_alpha": 32, "target_modules": ATTENTION} | changes)


def peft_folder(pipe, folder: Path, **changes: Any) -> Path:
    """As artists' trainers leave it; the pipeline gets the UNet as peft itself merges it."""
    model = randomised(peft.get_peft_model(pipe.unet, config(**changes)))
    model.save_pretrained(folder)
    clean = diffusers.UNet2DConditionModel.from_pretrained(CHECKPOINT, subfolder="unet", torch_dtype=torch.float32)
    pipe.unet = peft.PeftModel.from_pretrained(clean, folder).merge_and_unload()
    return folder


def diffusers_file(pipe, folder: Path, *, text: bool) -> Path:
    states = {}
    for network, targets in (("unet", ATTENTION), ("text_encoder", TEXT[:4])):
        carrier = copy.deepcopy(getattr(pipe, network))
        carrier.add_adapter(config(target_modules=targets, lora_alpha=8))
        states[network] = peft.get_peft_model_state_dict(randomised(carrier))
    layers = {"unet_lora_layers": states["unet"]} | (
        {"text_encoder_lora_layers": states["text_encoder"]} if text else {}
    )
    pipe.save_lora_weights(folder, **layers)
    pipe.load_lora_weights(str(folder))
    return folder / "pytorch_lora_weights.safetensors"


def kohya_file(path: Path, checkpoint: CheckpointInfo, unet: list[str], text: list[str], **how: Any) -> Path:
    """As ``networks/lora.py`` writes it: one alpha, factors of linear and convolutional layers, half precision."""
    torch.manual_seed(how.get("seed", 3))
    names = {layer.name: written for written, layer in spellings(checkpoint.layers).items() if "lora_unet_input" in written or "lora_unet_output" in written or "lora_unet_middle" in written} if how.get("stability") else {}  # fmt: skip
    tensors = {}
    for network, ends in (("unet", unet), ("text_encoder", text)):
        for name, (out, into, *kernel) in checkpoint.layers[network].items():
            if any(name.endswith(end) for end in ends):
                prefix = "lora_unet_" if network == "unet" else "lora_te_text_model_"
                written = names.get(name, prefix + name.replace(".", "_"))
                rank = how.get("rank", 8)
                tensors[f"{written}.lora_down.weight"] = (torch.randn(rank, into, *kernel) / 12).half()
                tensors[f"{written}.lora_up.weight"] = (torch.randn(out, rank, *[1] * len(kernel)) / 25).half()
                tensors[f"{written}.alpha"] = torch.tensor(float(how.get("alpha", 8)))
    safetensors_torch.save_file(tensors, path, metadata={"ss_network_module": "networks.lora"})
    return path


Make = Callable[[Any, Path, CheckpointInfo], Path]


def loaded(write: Callable[[Path, CheckpointInfo], Path]) -> Make:
    """A file that diffusers loads itself."""

    def make(pipe, folder: Path, checkpoint: CheckpointInfo) -> Path:
        path = write(folder, checkpoint)
        # For names after Stability's blocks it must know the UNet, of which its SD 1.x pipeline does not tell it.
        state, alphas = pipe.lora_state_dict(str(path), unet_config=pipe.unet.config)
        pipe.load_lora_into_unet(state, alphas, pipe.unet)
        pipe.load_lora_into_text_encoder(state, alphas, pipe.text_encoder)
        return path

    return make


CASES: dict[str, tuple[Make, tuple[str, str]]] = {
    "peft's folder": (lambda pipe, folder, _: peft_folder(pipe, folder / "style"), ("mixed", "none")),
    "peft's folder, rsLoRA": (
        lambda pipe, folder, _: peft_folder(pipe, folder / "style", use_rslora=True, lora_alpha=8),
        ("mixed", "none"),
    ),
    "peft's folder, DoRA": (
        lambda pipe, folder, _: peft_folder(pipe, folder / "style", use_dora=True, lora_alpha=8),
        ("merged", "none"),
    ),
    "diffusers' file": (lambda pipe, folder, _: diffusers_file(pipe, folder, text=False), ("mixed", "none")),
    "diffusers' file with a text encoder": (
        lambda pipe, folder, _: diffusers_file(pipe, folder, text=True),
        ("mixed", "merged"),
    ),
    "kohya's file": (
        loaded(lambda folder, served: kohya_file(folder / "k.safetensors", served, ATTENTION, [])),
        ("mixed", "none"),
    ),
    "kohya's file after Stability's blocks": (
        loaded(lambda folder, served: kohya_file(folder / "k.safetensors", served, ATTENTION, [], stability=True)),
        ("mixed", "none"),
    ),
    "kohya's file with text encoder, feed-forward and convolutions": (
        loaded(lambda folder, served: kohya_file(folder / "k.safetensors", served, EVERYTHING, TEXT, rank=4, alpha=2)),
        ("merged", "merged"),
    ),
    "kohya's file of rank 16": (
        loaded(lambda folder, served: kohya_file(folder / "k.safetensors", served, ATTENTION, [], rank=16)),
        ("merged", "none"),
    ),
}


@pytest.mark.parametrize(("make", "ways"), CASES.values(), ids=CASES.keys())
def test_a_picture_in_a_style_equals_diffusers_own_either_way(
    make: Make,
    ways: tuple[str, str],
    pipe,
    sessions: Sessions,
    own_repository: Path,
    tmp_path: Path,
    figures: dict[str, float],
    request: pytest.FixtureRequest,
) -> None:
    path = make(pipe, tmp_path, read_checkpoint(own_repository))
    expected = theirs(pipe)
    found, taken = ours(sessions, own_repository, "auto", (path, 1.0))
    assert taken == ways
    merged, _ = ours(sessions, own_repository, "merged", (path, 1.0))
    name = request.node.callspec.id
    figures[f"{name}, {ways[0]}"], figures[f"{name}, merged"] = psnr_db(found, expected), psnr_db(merged, expected)
    assert psnr_db(found, expected) >= 45
    assert psnr_db(merged, expected) >= 45
    assert psnr_db(merged, found) >= 45
    plain, _ = ours(sessions, own_repository, "auto")
    assert psnr_db(found, plain) < 35, "the style must show"


@pytest.mark.parametrize("rank", [4, 8])
def test_two_styles_with_weights_equal_diffusers_set_adapters(
    rank: int, pipe, sessions: Sessions, own_repository: Path, tmp_path: Path
) -> None:
    """Of rank 4 they fit one row together, of rank 8 they are merged."""
    served = read_checkpoint(own_repository)
    paths = [
        kohya_file(tmp_path / f"{i}.safetensors", served, ATTENTION[: 2 + i], [], rank=rank, alpha=rank, seed=i)
        for i in (1, 2)
    ]
    for i, path in enumerate(paths):
        pipe.load_lora_weights(str(path), adapter_name=f"style{i}")
    pipe.set_adapters(["style0", "style1"], [0.9, -0.5])
    found, (unet, _) = ours(sessions, own_repository, "auto", (paths[0], 0.9), (paths[1], -0.5))
    assert unet == {4: "mixed", 8: "merged"}[rank]
    assert psnr_db(found, theirs(pipe)) >= 45


def test_rows_of_four_styles_and_none_in_one_execution_are_each_the_row_alone(
    sessions: Sessions, own_repository: Path, checkpoint: CheckpointInfo, tmp_path: Path
) -> None:
    paths = [
        kohya_file(tmp_path / f"{i}.safetensors", checkpoint, ATTENTION, [], rank=2 * i, seed=i) for i in (1, 2, 3, 4)
    ]
    styles = [admitted(checkpoint, (path, 1.0)) for path in paths]
    layout = checkpoint.style_layout
    rows = np.stack([layout.row([(one.style.deltas("unet"), one.weight) for one in each]) for each in [*styles, ()]])
    draw = np.random.default_rng(0)
    sample = np.repeat(draw.standard_normal((1, 4, 32, 32)).astype(np.float32), 5, 0)
    hidden = np.repeat(draw.standard_normal((1, 77, checkpoint.cross_attention_dim)).astype(np.float32), 5, 0)
    timestep = np.array([[999.0], [700.0], [400.0], [100.0], [1.0]], np.float32)

    def answer(model: str, which: slice, style: np.ndarray) -> np.ndarray:
        with sessions.conditioned(model, {"encoder_hidden_states": hidden[which], "style": style}) as network:
            return network(sample[which], timestep[which])

    together = answer("unet", slice(None), rows)
    shelf = MergedModels(sessions, MergedFolders(own_repository, 1 << 30), checkpoint)
    for i, style in enumerate([*styles, ()]):
        one = slice(i, i + 1)
        assert np.array_equal(together[one], answer("unet", one, rows[one]))
        if style:
            with shelf.serving("unet", style) as name:
                np.testing.assert_allclose(together[one], answer(name, one, np.zeros_like(rows[one])), atol=2e-5)
    assert np.array_equal(together[4:], answer("unet", slice(4, 5), np.zeros_like(rows[:1])))
