"""Our pipeline against diffusers' StableDiffusionPipeline on the same tiny random networks, on one CPU in fp32.

The reference is made here, by diffusers itself: nothing is stored, so nothing can go stale.
"""

import json
import math
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from fakes.published import SCHEDULERS

from orchestrator.checkpoint import CheckpointInfo, Preview
from orchestrator.diffusion.schedule import NoiseSchedule
from orchestrator.diffusion.style_vector import NO_LAYOUT
from orchestrator.diffusion.tokenizer import BOS_TOKEN, BYTE_SYMBOLS, EOS_TOKEN, WORD_END, read_tokenizer
from orchestrator.job import Job
from orchestrator.pipeline import Finished, Pipeline, PipelineStep
from orchestrator.plan import make_plan

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

# Diffusers gives torch tensors to numpy in the way that numpy 2 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TRAINED = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "steps_offset": 1,
}
PROMPT, NEGATIVE = "a red boat at dusk, 초상화 🎨", "blurry, two suns"


@dataclass(frozen=True)
class Case:
    sampler: str
    width: int
    height: int
    steps: int
    guidance: float
    seed: int
    options: tuple[tuple[str, object], ...] = ()


CASES = [
    Case("dpmpp_2m", 256, 256, 20, 7.5, 42),
    Case("dpmpp_2m", 320, 256, 9, 1.0, 0, (("use_karras_sigmas", True),)),
    Case("dpmpp_2m_sde", 256, 256, 12, 5.0, 2**63 - 1),
    Case("euler", 256, 320, 15, 7.5, 7, (("timestep_spacing", "trailing"),)),
    Case("euler", 256, 320, 10, 12.0, 8, (("use_exponential_sigmas", True),)),
    Case("euler_a", 320, 256, 14, 4.0, 123456789),
    Case("heun", 256, 256, 8, 3.0, 5),
    Case("ddim", 384, 256, 25, 7.5, 2**32 + 1),
    Case("lms", 256, 384, 11, 6.0, 3),
    Case("pndm", 256, 256, 16, 7.5, 1),
    Case("unipc", 320, 256, 13, 2.0, 99, (("timestep_spacing", "leading"),)),
    Case("lcm", 256, 256, 4, 1.5, 77),
]


class TorchModels:
    """The networks of a diffusers pipeline, called without it."""

    def __init__(self, pipe) -> None:
        self._pipe = pipe

    @torch.no_grad()
    def encode_text(self, input_ids, model="text_encoder"):
        return tuple(output.numpy() for output in self._pipe.text_encoder(torch.from_numpy(input_ids))[:2])

    @contextmanager
    def conditioned(self, model, inputs):
        yield lambda sample, timestep: self.predict(sample, timestep, **inputs)

    @torch.no_grad()
    def predict(self, sample, timestep, encoder_hidden_states):
        inputs = (torch.from_numpy(sample), torch.from_numpy(timestep[:, 0]), torch.from_numpy(encoder_hidden_states))
        return self._pipe.unet(*inputs).sample.numpy()

    @torch.no_grad()
    def decode(self, latents):
        picture = self._pipe.vae.decode(torch.from_numpy(latents) / self._pipe.vae.config.scaling_factor).sample
        return ((picture / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def encode(self, picture):
        raise AssertionError("no plan of these tests starts from a picture")


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    merges = [("r", "e"), ("re", "d</w>"), ("b", "o"), ("a", "t</w>"), ("bo", "at</w>")]
    symbols = [*BYTE_SYMBOLS, *(symbol + WORD_END for symbol in BYTE_SYMBOLS), *map("".join, merges)]
    vocab = {token: i for i, token in enumerate([*symbols, BOS_TOKEN, EOS_TOKEN])}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pipe(tokenizer_folder: Path):
    """A StableDiffusionPipeline of SD 1.x's layout with random weights of one seed."""
    torch.manual_seed(0)
    # The networks are too small to share: with a thread per core the cores would mostly wait for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    vocab = json.loads((tokenizer_folder / "vocab.json").read_text(encoding="utf-8"))
    merges = [tuple(line.split()) for line in (tokenizer_folder / "merges.txt").read_text().splitlines()[1:]]
    text_config = transformers.CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=vocab[BOS_TOKEN],
        eos_token_id=vocab[EOS_TOKEN],
        pad_token_id=vocab[EOS_TOKEN],
    )
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    made = diffusers.StableDiffusionPipeline(
        vae=vae,
        text_encoder=transformers.CLIPTextModel(text_config),
        tokenizer=transformers.CLIPTokenizer(vocab, merges, model_max_length=77),
        unet=unet,
        scheduler=diffusers.DDIMScheduler(**TRAINED, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for network in (made.text_encoder, made.unet, made.vae):
        network.eval()
    made.set_progress_bar_config(disable=True)
    yield made
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def checkpoint(tokenizer_folder: Path) -> CheckpointInfo:
    return CheckpointInfo(
        name="tiny",
        family="sd1",
        weights_sha256="0" * 64,
        models={},
        schedule=NoiseSchedule.from_config(TRAINED),
        latent_channels=4,
        vae_scale_factor=8,
        cross_attention_dim=16,
        max_tokens=77,
        max_chunks=3,
        min_size_px=256,
        max_size_px=1024,
        size_step_px=64,
        native_size_px=512,
        style_layout=NO_LAYOUT,
        layers={},
        preview=Preview(matrix=((0.0,) * 3,) * 4, bias=(0.5,) * 3),
        tokenizer=read_tokenizer(tokenizer_folder),
    )


def theirs(pipe, case: Case, prompt: str = PROMPT) -> tuple[np.ndarray, list[np.ndarray]]:
    """Picture and latents of every step, by diffusers."""
    name, options = SCHEDULERS[case.sampler]
    pipe.scheduler = getattr(diffusers, name)(**{**TRAINED, **options, **dict(case.options)})
    seen: list[np.ndarray] = []

    def keep(pipe, index, timestep, values):
        seen.append(values["latents"].numpy().copy())
        return values

    result = pipe(
        prompt,
        negative_prompt=NEGATIVE,
        width=case.width,
        height=case.height,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        generator=torch.Generator().manual_seed(case.seed),
        callback_on_step_end=keep,
        output_type="np",
    )
    return (result.images[0] * 255).round().astype(np.uint8), seen


def ours(
    pipe, checkpoint: CheckpointInfo, case: Case, prompt: str = PROMPT
) -> tuple[np.ndarray, list[PipelineStep], object]:
    options = dict(case.options)
    respaced = [name for name in ("karras", "exponential") if options.get(f"use_{name}_sigmas")]
    job = Job(
        generation_id=1,
        task_id="t",
        prompt=prompt,
        negative_prompt=NEGATIVE,
        width_px=case.width,
        height_px=case.height,
        seed=case.seed,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        sampler=case.sampler,
        spacing=options.get("timestep_spacing"),
        sigmas=respaced[0] if respaced else None,
    )
    plan = make_plan(job, checkpoint, lambda: 1)
    *steps, last = Pipeline(TorchModels(pipe), checkpoint).run(plan)
    assert isinstance(last, Finished)
    return last.picture, steps, plan


def psnr_db(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


@dataclass(frozen=True)
class Comparison:
    """One case made both ways."""

    picture: np.ndarray
    expected_picture: np.ndarray
    latents: np.ndarray
    expected_latents: np.ndarray


@pytest.fixture(
    scope="module", params=CASES, ids=lambda case: f"{case.sampler}-{case.width}x{case.height}-{case.steps}"
)
def comparison(request: pytest.FixtureRequest, pipe, checkpoint: CheckpointInfo) -> Comparison:
    expected, seen = theirs(pipe, request.param)
    picture, steps, plan = ours(pipe, checkpoint, request.param)
    return Comparison(picture, expected, plan.passes[0].levels.model_latents(steps[-1].step), seen[-1])


def test_picture_equals_that_of_diffusers(comparison: Comparison):
    assert comparison.expected_picture.std() > 1
    assert psnr_db(comparison.picture, comparison.expected_picture) >= 45


def test_latents_equal_those_of_diffusers(comparison: Comparison):
    difference = np.abs(comparison.latents - comparison.expected_latents).max()
    assert difference < 1e-4 * np.abs(comparison.expected_latents).max()


def test_another_seed_is_another_picture_for_both(pipe, checkpoint: CheckpointInfo):
    one, other = Case("euler", 256, 256, 6, 5.0, 1), Case("euler", 256, 256, 6, 5.0, 2)
    assert psnr_db(ours(pipe, checkpoint, one)[0], theirs(pipe, other)[0]) < 30


def test_a_prompt_of_three_chunks_is_encoded_as_its_chunks_side_by_side(pipe, checkpoint: CheckpointInfo):
    case = Case("euler", 256, 256, 6, 5.0, 1)
    prompt = "red " * 75 + "boat " * 75 + "at sea"
    models = TorchModels(pipe)
    texts = ("red " * 75, "boat " * 75, "at sea", NEGATIVE, "", "")
    ids = pipe.tokenizer(list(texts), padding="max_length", max_length=77, return_tensors="np")["input_ids"]
    hidden = torch.from_numpy(models.encode_text(ids.astype(np.int64))[0].reshape(2, 231, 16))
    pipe.scheduler = diffusers.EulerDiscreteScheduler(**TRAINED)
    expected = pipe(
        prompt_embeds=hidden[:1],
        negative_prompt_embeds=hidden[1:],
        width=case.width,
        height=case.height,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance,
        generator=torch.Generator().manual_seed(case.seed),
        output_type="np",
    ).images[0]
    assert psnr_db(ours(pipe, checkpoint, case, prompt)[0], (expected * 255).round().astype(np.uint8)) >= 45
