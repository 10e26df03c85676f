"""SDXL, pictures to start from, inpainting and ControlNets, against diffusers' own pipelines.

Both sides run the same tiny random networks in torch, fp32, on one CPU; the reference is made here and never stored.
Every draw of noise must come in diffusers' order, or an ancestral sampler's picture is another one.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from fakes.published import SCHEDULERS
from PIL import Image

from export.random_checkpoint import write
from orchestrator.job import Job
from orchestrator.pictures import ControlPicture, Pictures, SourcePicture
from orchestrator.pipeline import Finished, Pipeline, step_from_bytes, step_to_bytes
from orchestrator.plan import make_plan

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
networks = pytest.importorskip("parity.torch_networks")

# Diffusers gives torch tensors to numpy in the way that numpy 2 warns of, and warns of its own options' future.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CONTROLS = ("depth", "canny")
WIDTH, HEIGHT = 128, 192
PIPELINES = {
    ("sd1", "", ""): "StableDiffusionPipeline",
    ("sd1", "", "control"): "StableDiffusionControlNetPipeline",
    ("sd1", "img2img", ""): "StableDiffusionImg2ImgPipeline",
    ("sd1", "inpaint", ""): "StableDiffusionInpaintPipeline",
    ("sd1", "inpaint", "control"): "StableDiffusionControlNetInpaintPipeline",
    ("sdxl", "", ""): "StableDiffusionXLPipeline",
    ("sdxl", "", "control"): "StableDiffusionXLControlNetPipeline",
    ("sdxl", "img2img", ""): "StableDiffusionXLImg2ImgPipeline",
    ("sdxl", "img2img", "control"): "StableDiffusionXLControlNetImg2ImgPipeline",
    ("sdxl", "inpaint", ""): "StableDiffusionXLInpaintPipeline",
    ("sdxl", "inpaint", "control"): "StableDiffusionXLControlNetInpaintPipeline",
}


@dataclass(frozen=True)
class Case:
    """One picture to be made both ways; ``start`` is "", "img2img" or "inpaint"."""

    family: str
    sampler: str
    start: str = ""
    strength: float = 1.0
    controls: tuple[ControlPicture, ...] = ()
    negative: str = "blurry, two suns"
    guidance: float = 6.0
    steps: int = 7
    seed: int = 42
    options: dict[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        controls = "+".join(control.name for control in self.controls)
        return "-".join(filter(None, (self.family, self.start, controls, self.sampler, f"{self.strength:g}")))

    @property
    def pictures(self) -> Pictures:
        source = None
        if self.start:
            hole = networks.mask(WIDTH, HEIGHT) if self.start == "inpaint" else None
            source = SourcePicture(picture=networks.picture(1, WIDTH, HEIGHT), strength=self.strength, mask=hole)
        return Pictures(source=source, controls=self.controls)


def control(name: str, **options: float) -> ControlPicture:
    return ControlPicture(name=name, picture=networks.picture(CONTROLS.index(name) + 2, WIDTH, HEIGHT), **options)


ONE, BOTH = (control("depth"),), (control("depth", scale=0.8), control("canny", scale=1.3, end=0.6))
CASES = [
    Case("sdxl", "dpmpp_2m"),
    Case("sdxl", "euler_a", negative=""),
    Case("sdxl", "euler", guidance=1.0, options={"timestep_spacing": "trailing"}),
    Case("sdxl", "euler_a", "img2img", 0.6),
    Case("sdxl", "dpmpp_2m", "img2img", 1.0),
    Case("sdxl", "euler_a", "inpaint", 1.0),
    Case("sdxl", "euler_a", "inpaint", 0.75),
    Case("sdxl", "dpmpp_2m", "inpaint", 0.5, guidance=1.0),
    Case("sdxl", "dpmpp_2m_sde", "inpaint", 0.9),
    Case("sdxl", "unipc", "inpaint", 1.0),
    Case("sdxl", "ddim", "inpaint", 0.8),
    Case("sdxl", "pndm", "inpaint", 1.0),
    Case("sdxl", "dpmpp_2m", controls=ONE),
    Case("sdxl", "euler_a", controls=BOTH),
    Case("sdxl", "euler", "img2img", 0.7, (control("depth", start=0.3),)),
    Case("sdxl", "euler_a", "inpaint", 0.8, BOTH),
    Case("sd1", "euler_a", "img2img", 0.6),
    Case("sd1", "euler_a", "inpaint", 0.7),
    Case("sd1", "dpmpp_2m", controls=(control("depth", scale=1.5, start=0.2, end=0.9),)),
    Case("sd1", "lms", "inpaint", 1.0, ONE),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The networks are too small to share: with a thread per core the cores would mostly wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {"sd1": tmp_path_factory.mktemp("sd1"), "sdxl": tmp_path_factory.mktemp("sdxl")}
    write(folders["sd1"], "tiny", 3, CONTROLS)
    write(folders["sdxl"], "tiny-sdxl", 4, CONTROLS)
    return folders


@pytest.fixture(scope="module")
def models(folders):
    return {family: networks.TorchNetworks(folder, CONTROLS) for family, folder in folders.items()}


def theirs(case: Case, folder: Path, shared: dict[str, object]) -> np.ndarray:
    """The picture, by diffusers."""
    name, options = SCHEDULERS[case.sampler]
    components = {each: shared[each] for each in ("text_encoder", "text_encoder_2", "unet", "vae") if each in shared}
    for each in ("tokenizer", "tokenizer_2"):
        if (folder / each).is_dir():
            components[each] = transformers.CLIPTokenizer.from_pretrained(folder / each)
    config = diffusers.EulerDiscreteScheduler.load_config(folder / "scheduler")
    components["scheduler"] = getattr(diffusers, name).from_config(config, **{**options, **case.options})
    if case.controls:
        each = [shared[f"controlnet_{control.name}"] for control in case.controls]
        components["controlnet"] = each if len(each) > 1 else each[0]
    if case.family == "sd1":
        components |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    kind = getattr(diffusers, PIPELINES[case.family, case.start, "control" if case.controls else ""])
    pipe = kind(**components)
    pipe.set_progress_bar_config(disable=True)
    result = pipe(
        "a red boat at dusk, 초상화",
        negative_prompt=case.negative or None,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        generator=torch.Generator().manual_seed(case.seed),
        output_type="np",
        **given(case),
    )
    return (result.images[0] * 255).round().astype(np.uint8)


def given(case: Case) -> dict[str, object]:
    """Pictures under the names that each of diffusers' pipelines has for them."""
    said: dict[str, object] = {}
    source = case.pictures.source
    if source is None or case.start == "inpaint":
        said |= {"width": WIDTH, "height": HEIGHT}
    if source is not None:
        said |= {"image": Image.fromarray(source.picture), "strength": source.strength}
        if source.mask is not None:
            said["mask_image"] = Image.fromarray(source.mask)
    if case.controls:
        seen = [Image.fromarray(control.picture) for control in case.controls]
        several = len(seen) > 1
        said["image" if source is None else "control_image"] = seen if several else seen[0]
        for key, values in (
            ("controlnet_conditioning_scale", [control.scale for control in case.controls]),
            ("control_guidance_start", [control.start for control in case.controls]),
            ("control_guidance_end", [control.end for control in case.controls]),
        ):
            said[key] = values if several else values[0]
    return said


def job_of(case: Case) -> Job:
    return Job(
        generation_id=1,
        task_id="t",
        prompt="a red boat at dusk, 초상화",
        negative_prompt=case.negative,
        width_px=WIDTH,
        height_px=HEIGHT,
        seed=case.seed,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        sampler=case.sampler,
        spacing=case.options.get("timestep_spacing"),
    )


def plan_of(case: Case, folder: Path):
    served = networks.describe(folder, case.family, CONTROLS)
    return make_plan(job_of(case), served, lambda: 1, pictures=case.pictures)


def ours(case: Case, folder: Path, models) -> np.ndarray:
    *_, last = Pipeline(models, networks.describe(folder, case.family, CONTROLS)).run(plan_of(case, folder))
    assert isinstance(last, Finished)
    return last.picture


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_picture_equals_that_of_diffusers(case: Case, folders, models):
    expected = theirs(case, folders[case.family], models[case.family].networks)

    made = ours(case, folders[case.family], models[case.family])

    assert expected.std() > 1
    assert psnr_db(made, expected) >= 45


def test_without_a_negative_prompt_sdxl_sees_zeros_and_not_an_empty_text(folders, models):
    case = Case("sdxl", "euler", negative="")
    spoken = replace(networks.describe(folders["sdxl"], "sdxl", CONTROLS), zeros_for_no_negative=False)

    *_, other = Pipeline(models["sdxl"], spoken).run(plan_of(case, folders["sdxl"]))

    assert psnr_db(other.picture, ours(case, folders["sdxl"], models["sdxl"])) < 45


def test_a_controlnet_changes_the_picture_and_costs_nothing_outside_its_window(folders, models):
    case = Case("sdxl", "euler", controls=(control("canny", end=0.5),), steps=6)
    models["sdxl"].asked.clear()

    made = ours(case, folders["sdxl"], models["sdxl"])

    assert models["sdxl"].asked == ["unet_controlnet"] * 3 + ["unet"] * 3
    assert psnr_db(made, ours(replace(case, controls=()), folders["sdxl"], models["sdxl"])) < 40


@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_2m", "pndm"])
def test_inpainting_with_controls_resumes_to_the_identical_picture(sampler: str, folders, models):
    case = Case("sdxl", sampler, "inpaint", 0.8, BOTH, steps=6)
    plan = plan_of(case, folders["sdxl"])
    pipeline = Pipeline(models["sdxl"], networks.describe(folders["sdxl"], "sdxl", CONTROLS))
    *steps, whole = pipeline.run(plan)

    for step in steps:
        *_, resumed = pipeline.run(plan, step_from_bytes(step_to_bytes(step, plan), plan))
        np.testing.assert_array_equal(resumed.picture, whole.picture)
