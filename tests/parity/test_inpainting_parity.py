"""UNets of nine channels, which were trained to inpaint, against diffusers' own pipelines on the same tiny networks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from export.random_checkpoint import write
from orchestrator.pipeline import Finished, Pipeline
from orchestrator.plan import make_plan

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
beside = pytest.importorskip("parity.test_sdxl_parity")
networks = pytest.importorskip("parity.torch_networks")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CASES = [
    beside.Case("sd1", "euler_a", "inpaint", 1.0),
    beside.Case("sd1", "dpmpp_2m", "inpaint", 0.7),
    beside.Case("sd1", "ddim", "inpaint", 1.0, beside.ONE, guidance=1.0),
    beside.Case("sdxl", "dpmpp_2m_sde", "inpaint", 1.0),
    beside.Case("sdxl", "euler_a", "inpaint", 0.75),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {"sd1": tmp_path_factory.mktemp("sd1"), "sdxl": tmp_path_factory.mktemp("sdxl")}
    write(folders["sd1"], "tiny", 5, ("depth",), inpainting=True)
    write(folders["sdxl"], "tiny-sdxl", 6, inpainting=True)
    return folders


@pytest.fixture(scope="module")
def models(folders):
    return {family: networks.TorchNetworks(folder, ("depth",)) for family, folder in folders.items()}


def ours(case, folder: Path, models) -> np.ndarray:
    served = networks.describe(folder, case.family, ("depth",))
    assert served.is_inpainting
    plan = make_plan(beside.job_of(case), served, lambda: 1, pictures=case.pictures)
    *_, last = Pipeline(models, served).run(plan)
    assert isinstance(last, Finished)
    return last.picture


@pytest.mark.parametrize("case", CASES, ids=str)
def test_picture_of_a_nine_channel_unet_equals_that_of_diffusers(case, folders, models):
    expected = beside.theirs(case, folders[case.family], models[case.family].networks)

    made = ours(case, folders[case.family], models[case.family])

    assert expected.std() > 1
    assert beside.psnr_db(made, expected) >= 40


def test_what_lies_under_the_mask_has_no_say_at_full_strength(folders, models):
    case = CASES[0]
    source = case.pictures.source
    hidden = np.where(source.mask[..., None] >= 128, np.uint8(255), source.picture)
    served = networks.describe(folders["sd1"], "sd1", ("depth",))
    other = replace(case.pictures, source=replace(source, picture=hidden))
    plan = make_plan(beside.job_of(case), served, lambda: 1, pictures=other)

    *_, last = Pipeline(models["sd1"], served).run(plan)

    np.testing.assert_array_equal(last.picture, ours(case, folders["sd1"], models["sd1"]))
