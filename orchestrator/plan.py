"""A job resolved into a plan in which nothing is missing; what can be refused is refused here, before a model runs."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.diffusion.levels import Levels
from orchestrator.diffusion.prompt import Chunk, chunk_prompt, pad_to
from orchestrator.diffusion.sampling import DEFAULT_SAMPLER, SAMPLERS
from orchestrator.diffusion.spacing import RESPACINGS, SPACINGS
from orchestrator.errors import InvalidInput, UnsupportedAspectRatio
from orchestrator.job import Job
from orchestrator.pictures import NO_PICTURES, ControlPicture, Pictures, SourcePicture
from orchestrator.style_ways import AppliedStyle, StyleMode, Ways, ways_of

ASPECT_RATIOS_PX = {"1:1": (512, 512), "2:2": (1024, 1024), "1:2": (512, 1024), "2:1": (1024, 512)}
DEFAULT_ASPECT_RATIO = "1:1"
DEFAULT_STEPS = 50
DEFAULT_GUIDANCE_SCALE = 7.5
SCHEDULE_DEFAULT = "default"
MAX_STEPS = 150
MAX_GUIDANCE_SCALE = 30.0
MAX_SEED = 2**63 - 1
MAX_PROMPT_CHARS = 20_000
MAX_TOKEN_WEIGHT = 10.0
MAX_STYLE_WEIGHT = 2.0
# Over twice the area a checkpoint was trained at, it repeats its subject: such pictures are made in two passes.
DIRECT_AREA = 2
# By eye on the demo's boats: at 0.55 an enlarged sail is replaced by two of the size the UNet was trained on, at 0.3 it
# stays and its edges are redrawn.
SECOND_PASS_STRENGTH = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One run of the denoise loop; ``strength`` 1.0 starts from noise, less from the pass before, enlarged."""

    width_px: int
    height_px: int
    strength: float
    levels: Levels


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a picture depends on: the same plan gives the same picture.

    ``negative_chunks`` is as long as ``prompt_chunks``, or empty where ``guidance_scale`` is at most 1 and the UNet is
    asked for one row only. ``spacing`` and ``sigmas`` are "default" where the checkpoint and the sampler decide.
    """

    prompt: str
    negative_prompt: str
    prompt_chunks: tuple[Chunk, ...]
    negative_chunks: tuple[Chunk, ...]
    passes: tuple[Pass, ...]
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    spacing: str
    sigmas: str
    seed: int
    styles: tuple[AppliedStyle, ...]
    ways: Ways
    weights_sha256: str
    source: SourcePicture | None = None
    controls: tuple[ControlPicture, ...] = ()

    @property
    def width_px(self) -> int:
        return self.passes[-1].width_px

    @property
    def height_px(self) -> int:
        return self.passes[-1].height_px

    @property
    def total_steps(self) -> int:
        """Steps of all passes together."""
        return sum(one.levels.turns for one in self.passes)

    @property
    def digest(self) -> str:
        """SHA-256 of everything above; a checkpoint of a half-made picture belongs to one digest."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


def make_plan(
    job: Job,
    checkpoint: CheckpointInfo,
    draw_seed: Callable[[], int],
    pictures: Pictures = NO_PICTURES,
    *,
    styles: Sequence[AppliedStyle] = (),
    style_mode: StyleMode = "auto",
) -> Plan:
    """The plan for ``job`` on ``checkpoint``; ``draw_seed`` is called only where the job brings no seed.

    ``styles`` are the job's own, fetched and checked.

    With a picture of its own, to start from or to be guided by, the job's size is that picture's.

    Raises:
        InvalidInput, UnsupportedAspectRatio, LoraIncompatible: the job cannot be served; the sentence says what can.
    """
    pictures.check(checkpoint)
    if checkpoint.is_inpainting and (pictures.source is None or pictures.source.mask is None):
        raise InvalidInput(f"{checkpoint.name} was trained to inpaint; jobs with a picture and a mask are served")
    size = _size(job, checkpoint, pictures)
    guidance_scale = _number("guidance_scale", job.guidance_scale, DEFAULT_GUIDANCE_SCALE, 0.0, MAX_GUIDANCE_SCALE)
    prompt = _chunks("prompt", job.prompt, checkpoint)
    # The negative prompt is checked even where guidance gives it no say: a job is not valid by accident.
    negative = _chunks("negative_prompt", job.negative_prompt, checkpoint)
    blank = chunk_prompt("", checkpoint.tokenizer, checkpoint.max_tokens)[0]
    count = max(len(prompt), len(negative) if guidance_scale > 1.0 else 1)
    sampler, spacing, sigmas = _schedule(job)
    steps = int(_number("num_inference_steps", job.num_inference_steps, DEFAULT_STEPS, 1, MAX_STEPS))
    return Plan(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        prompt_chunks=pad_to(prompt, count, blank),
        negative_chunks=pad_to(negative, count, blank) if guidance_scale > 1.0 else (),
        passes=_passes(job, size, steps, checkpoint, pictures),
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        sampler=sampler,
        spacing=spacing,
        sigmas=sigmas,
        seed=int(_number("seed", draw_seed() if job.seed is None else job.seed, 0, 0, MAX_SEED)),
        styles=_styles(job, styles),
        ways=ways_of(styles, checkpoint, style_mode),
        weights_sha256=checkpoint.weights_sha256,
        source=pictures.source,
        controls=pictures.controls,
    )


def _size(job: Job, checkpoint: CheckpointInfo, pictures: Pictures) -> tuple[int, int]:
    """Width and height in pixels, from the aspect ratio, given outright, or those of the job's own pictures."""
    outright = (job.width_px, job.height_px)
    if job.aspect_ratio is not None and job.aspect_ratio not in ASPECT_RATIOS_PX:
        served = ", ".join(f"{name} ({w}x{h})" for name, (w, h) in ASPECT_RATIOS_PX.items())
        raise UnsupportedAspectRatio(f"aspect_ratio is {job.aspect_ratio!r}; {served} are served")
    if outright == (None, None) and job.aspect_ratio is None and pictures.size_px is not None:
        size = pictures.size_px
    elif outright == (None, None):
        size = ASPECT_RATIOS_PX[DEFAULT_ASPECT_RATIO if job.aspect_ratio is None else job.aspect_ratio]
    elif job.width_px is None or job.height_px is None:
        raise InvalidInput("width and height come together; one of them is missing")
    else:
        size = (job.width_px, job.height_px)
        if job.aspect_ratio is not None and size != ASPECT_RATIOS_PX[job.aspect_ratio]:
            named = "x".join(map(str, ASPECT_RATIOS_PX[job.aspect_ratio]))
            raise InvalidInput(
                f"aspect_ratio {job.aspect_ratio} is {named} px, but the size given is {size[0]}x{size[1]} px"
            )
    least, most, step = checkpoint.min_size_px, checkpoint.max_size_px, checkpoint.size_step_px
    for name, edge_px in zip(("width", "height"), size, strict=True):
        if not least <= edge_px <= most or edge_px % step:
            raise InvalidInput(f"{name} is {edge_px} px; these engines serve {least} to {most} px in steps of {step}")
    if pictures.size_px is not None and pictures.size_px != size:
        given = "x".join(map(str, pictures.size_px))
        raise InvalidInput(f"the job's pictures are {given} px, but the size given is {size[0]}x{size[1]} px")
    return size


def _passes(
    job: Job, size: tuple[int, int], steps: int, checkpoint: CheckpointInfo, pictures: Pictures
) -> tuple[Pass, ...]:
    """One pass, or a base at the checkpoint's own area followed by one at the full size."""

    def one(width_px: int, height_px: int, strength: float) -> Pass:
        sampler, *named = _schedule(job)
        spacing, sigmas = (None if name == SCHEDULE_DEFAULT else name for name in named)
        levels = checkpoint.schedule.levels(sampler, steps, spacing, sigmas, strength=strength)
        return Pass(width_px=width_px, height_px=height_px, strength=strength, levels=levels)

    # A picture that is there already says what is where: nothing repeats, however large.
    if pictures.size_px is not None and job.two_pass:
        raise InvalidInput("two_pass is asked for with a picture to start from or to be guided by; one pass is served")
    is_direct = job.two_pass is None and (pictures.size_px is not None or not repeats(size, checkpoint))
    if job.two_pass is False or is_direct:
        return (one(*size, pictures.strength),)
    edge_px = checkpoint.native_size_px
    if math.prod(size) <= edge_px**2:
        raise InvalidInput(
            f"two_pass is asked for at {size[0]}x{size[1]} px; it is served above {edge_px}x{edge_px} px"
        )
    return one(*base_size(size, checkpoint), 1.0), one(*size, second_strength(steps))


def repeats(size: tuple[int, int], checkpoint: CheckpointInfo) -> bool:
    """Whether the checkpoint would repeat its subject in a picture of this width and height, made in one pass."""
    return math.prod(size) > DIRECT_AREA * checkpoint.native_size_px**2


def base_size(size: tuple[int, int], checkpoint: CheckpointInfo) -> tuple[int, int]:
    """Width and height at the checkpoint's own area, of nearly the same aspect."""
    scale, step_px = checkpoint.native_size_px / math.sqrt(math.prod(size)), checkpoint.size_step_px
    width_px, height_px = (max(checkpoint.min_size_px, round(edge_px * scale / step_px) * step_px) for edge_px in size)
    return width_px, height_px


def second_strength(steps: int) -> float:
    """Strength of a second pass; of very few steps it takes one at least."""
    return max(SECOND_PASS_STRENGTH, 1 / steps)


def _schedule(job: Job) -> tuple[str, str, str]:
    """Names of sampler, spacing and sigmas; which of them go together the schedule itself knows."""
    return (
        _choice("sampler", job.sampler, DEFAULT_SAMPLER, tuple(SAMPLERS)),
        _choice("spacing", job.spacing, SCHEDULE_DEFAULT, (*SPACINGS, SCHEDULE_DEFAULT)),
        _choice("sigmas", job.sigmas, SCHEDULE_DEFAULT, (*RESPACINGS, SCHEDULE_DEFAULT)),
    )


def _chunks(name: str, text: str, checkpoint: CheckpointInfo) -> tuple[Chunk, ...]:
    """The text encoder's contexts for ``text``."""
    if len(text) > MAX_PROMPT_CHARS:
        raise InvalidInput(f"{name} is {len(text)} characters; up to {MAX_PROMPT_CHARS} are served")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InvalidInput(f"{name} holds half of a surrogate pair; whole Unicode characters are served")
    chunks = chunk_prompt(text, checkpoint.tokenizer, checkpoint.max_tokens)
    if len(chunks) > checkpoint.max_chunks:
        size = checkpoint.max_tokens - 2
        raise InvalidInput(
            f"{name} fills {len(chunks)} chunks of {size} tokens; up to {checkpoint.max_chunks} are served"
        )
    for weight in (weight for chunk in chunks for weight in chunk.weights):
        # Written so that NaN, infinitely many times nothing, is refused too.
        if not abs(weight) <= MAX_TOKEN_WEIGHT:
            raise InvalidInput(f"{name} weighs a word by {weight:.4g}; weights up to {MAX_TOKEN_WEIGHT:g} are served")
    return chunks


def _styles(job: Job, styles: Sequence[AppliedStyle]) -> tuple[AppliedStyle, ...]:
    for style in job.styles:
        _number(f"weight of style {style.path}", style.weight, 1.0, -MAX_STYLE_WEIGHT, MAX_STYLE_WEIGHT)
    if [one.path for one in styles] != [ref.path for ref in job.styles]:
        raise ValueError("a job is planned with all of its styles or not at all")
    return tuple(styles)


def _number(name: str, value: float | None, default: float, least: float, most: float) -> float:
    number = default if value is None else value
    # Written so that NaN, which compares false with everything, is refused too.
    if not least <= number <= most:
        raise InvalidInput(f"{name} is {number}; {least} to {most} is served")
    return number


def _choice(name: str, value: str | None, default: str, served: Sequence[str]) -> str:
    choice = default if value is None else value
    if choice not in served:
        raise InvalidInput(f"{name} is {choice!r}; {', '.join(served)} are served")
    return choice
