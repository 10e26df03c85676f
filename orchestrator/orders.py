"""The arguments of ``python -m orchestrator generate``, and the pictures that they order."""

import argparse
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.diffusion.sampling import DEFAULT_SAMPLER, SAMPLERS
from orchestrator.diffusion.spacing import RESPACINGS, SPACINGS
from orchestrator.errors import InvalidInput
from orchestrator.job import Job, PictureFormat, StyleRef
from orchestrator.pictures import NO_PICTURES, Pictures
from orchestrator.plan import ASPECT_RATIOS_PX, Plan, make_plan
from orchestrator.schema import job_from_message, message_from_bytes
from orchestrator.style_ways import AppliedStyle, StyleMode

MAX_COUNT = 100
# torch keeps the low 32 bits of a seed: more would only be longer to write down.
DRAWN_SEED_BITS = 32
FORMATS: Mapping[str, PictureFormat] = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}

DESCRIPTION = """
Makes pictures through Triton and writes them as signed files.

  python -m orchestrator generate "a red boat at dusk" --seed 12 --out boat.png
  python -m orchestrator generate "a house, two trees" --count 4 --aspect 2:1 --preview rough.png
  python -m orchestrator generate --message demo/message.json --out boat.png

A prompt may weigh its words: (boat:1.3) more, (boat) 1.1, [boat] less, \\( is a bracket of the text.
BREAK starts another chunk of 75 tokens; a longer prompt goes on in further chunks by itself.
"""
EPILOGUE = """
Ctrl-C stops within a step and says what was kept. Exit codes: 0 done, 1 failed, 2 the request or a
setting is wrong, 130 stopped. docs/cli.md explains every option, docs/environment.md every setting.
"""


@dataclass(frozen=True, slots=True)
class Order:
    """One picture to make and where its file goes; ``rough`` is where its preview does."""

    job: Job
    plan: Plan
    out: Path
    rough: Path | None


class _Page(argparse.RawDescriptionHelpFormatter):
    """A page of 100 columns with the explanations in one column."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=100)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOGUE
    parser.usage = "python -m orchestrator generate [options] PROMPT"
    parser.formatter_class = _Page
    what = parser.add_argument_group("what")
    what.add_argument("prompt", nargs="?", metavar="PROMPT", help="what the picture shows; may come from FILE instead")
    what.add_argument("--negative", metavar="TEXT", help="what it does not show")
    what.add_argument("--message", "--job", type=Path, metavar="FILE", help="a job as a publisher writes it")
    what.add_argument("--seed", type=int, metavar="N", help="default: drawn at random and printed")
    what.add_argument(
        "--count", type=int, default=1, metavar="N", help="pictures, of seeds SEED, SEED+1 ... (default 1)"
    )
    _add_how(parser.add_argument_group("how"))
    where = parser.add_argument_group("where")
    where.add_argument("--out", type=Path, metavar="FILE", help=".png, .jpg or .webp (default picture-SEED.png)")
    where.add_argument("--preview", type=Path, metavar="FILE", help="a rough picture, written anew every 3 steps")
    where.add_argument("--generation-id", "--generation_id", type=int, metavar="N", help="a number for the metadata")
    where.add_argument("--triton", metavar="URL", help="Triton's address (default: TRITON_URL)")
    where.add_argument("--models", type=Path, metavar="DIR", help="the built models (default: MODEL_REPOSITORY)")


def _add_how(how: "argparse._ArgumentGroup") -> None:
    names = {name: ", ".join(served) for name, served in (("sampler", SAMPLERS), ("aspect", ASPECT_RATIOS_PX))}
    how.add_argument("--size", type=_size, metavar="WxH", help="in pixels, like 512x768")
    how.add_argument("--aspect", choices=ASPECT_RATIOS_PX, metavar="W:H", help=f"instead of a size: {names['aspect']}")
    how.add_argument("--steps", type=int, metavar="N", help="1 to 150 (default 50)")
    how.add_argument(
        "--guidance", type=float, metavar="X", help="0 to 30, how closely the prompt is kept (default 7.5)"
    )
    how.add_argument(
        "--sampler", choices=SAMPLERS, metavar="NAME", help=f"{names['sampler']} (default {DEFAULT_SAMPLER})"
    )
    how.add_argument(
        "--style",
        type=_style,
        action="append",
        metavar="PATH[=X]",
        help="a LoRA file or folder and its weight, -2 to 2",
    )
    how.add_argument("--spacing", choices=SPACINGS, metavar="NAME", help=f"of the timesteps: {', '.join(SPACINGS)}")
    how.add_argument("--sigmas", choices=RESPACINGS, metavar="NAME", help=f"respaced: {', '.join(RESPACINGS)}")
    passes = how.add_mutually_exclusive_group()
    passes.add_argument(
        "--two-pass", dest="two_pass", action="store_true", default=None, help="small first, then large"
    )
    passes.add_argument(
        "--direct", dest="two_pass", action="store_false", help="at once, where two passes are the default"
    )


def job_from(args: argparse.Namespace) -> Job:
    """The message's job or an empty one, under the options that were given."""
    if args.message is not None:
        job = _read_message(args.message)
    elif args.prompt is not None:
        job = Job(generation_id=0, task_id="command line", prompt=args.prompt)
    else:
        raise InvalidInput('nothing says what to make; give a prompt like "a red boat at dusk", or --message FILE')
    given: dict[str, Any] = {
        "generation_id": args.generation_id,
        "prompt": args.prompt,
        "negative_prompt": args.negative,
        "seed": args.seed,
        "num_inference_steps": args.steps,
        "guidance_scale": args.guidance,
        "sampler": args.sampler,
        "spacing": args.spacing,
        "sigmas": args.sigmas,
        "two_pass": args.two_pass,
        "styles": None if args.style is None else tuple(args.style),
    }
    if args.size is not None or args.aspect is not None:
        width_px, height_px = args.size or (None, None)
        job = replace(job, aspect_ratio=args.aspect, width_px=width_px, height_px=height_px)
    if args.out is not None:
        if args.out.suffix.lower() not in FORMATS:
            raise InvalidInput(f"--out is {args.out}; names that end in {', '.join(FORMATS)} are served")
        given["picture_format"] = FORMATS[args.out.suffix.lower()]
    return replace(job, **{name: value for name, value in given.items() if value is not None})


def orders_from(
    args: argparse.Namespace,
    job: Job,
    checkpoint: CheckpointInfo,
    styles: Sequence[AppliedStyle] = (),
    style_mode: StyleMode = "auto",
    *,
    pictures: Pictures = NO_PICTURES,
) -> list[Order]:
    """The pictures that were ordered, every one of them ``job`` under a seed of its own, and planned.

    Raises:
        Refused: one of them cannot be made; the sentence says what is served.
    """
    if not 1 <= args.count <= MAX_COUNT:
        raise InvalidInput(f"--count is {args.count}; 1 to {MAX_COUNT} are served")

    def planned(one: Job) -> Plan:
        drawn = partial(secrets.randbits, DRAWN_SEED_BITS)
        return make_plan(one, checkpoint, drawn, pictures, styles=styles, style_mode=style_mode)

    seed = planned(job).seed
    jobs = [replace(job, seed=seed + index) for index in range(args.count)]
    plans = [planned(one) for one in jobs]
    return [
        Order(one, plan, _numbered(_out(args, one), args, plan.seed), _rough(args, plan.seed))
        for one, plan in zip(jobs, plans, strict=True)
    ]


def _read_message(path: Path) -> Job:
    try:
        return job_from_message(message_from_bytes(path.read_bytes()))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error


def _out(args: argparse.Namespace, job: Job) -> Path:
    if args.out is not None:
        return Path(args.out)
    ending = {"png": "png", "jpeg": "jpg", "webp": "webp"}[job.picture_format]
    if args.generation_id is not None:
        return Path("generations") / f"gen-{job.generation_id}.{ending}"
    return Path(f"picture-{job.seed}.{ending}")


def _rough(args: argparse.Namespace, seed: int) -> Path | None:
    return None if args.preview is None else _numbered(args.preview, args, seed)


def _numbered(path: Path, args: argparse.Namespace, seed: int) -> Path:
    """``boat.png``, or ``boat-7.png`` where one name would have to serve several pictures."""
    if args.count == 1 or path.stem.endswith(f"-{seed}"):
        return path
    return path.with_stem(f"{path.stem}-{seed}")


def _style(text: str) -> StyleRef:
    path, equals, weight = text.rpartition("=")
    try:
        named, strength = (path, float(weight)) if equals else (text, 1.0)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} ends in no weight; write PATH or PATH=0.8") from None
    return StyleRef(path=named if "://" in named else str(Path(named).resolve()), weight=strength)


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", text, re.ASCII)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write width and height in pixels, like 512x768")
    return int(found[1]), int(found[2])
