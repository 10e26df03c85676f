"""``python -m orchestrator style inspect PATH``: what a style file is, and whether this server would apply it."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from orchestrator.checkpoint import CheckpointInfo, read_checkpoint
from orchestrator.clients.weights import WeightsFile, read_weights
from orchestrator.config import Settings
from orchestrator.diffusion.lora import BASE_MODELS, Lora, Matching, match, needs_config, read_lora
from orchestrator.diffusion.lora_names import family, shown
from orchestrator.diffusion.lora_strength import BlockStrength, strengths
from orchestrator.errors import ConfigError, InvalidInput, LoraIncompatible, LoraNotFound
from orchestrator.style_plot import draw_strengths
from orchestrator.styles import CONFIG_NAME, FILE_NAMES, LIMIT_BYTES, scalings_of

DESCRIPTION = """
Reads a style (LoRA, LoHa, LoKr or DoRA) as every job's check does, and prints what it is: whose names
it uses, its base model, layers, ranks, size, hash and how much it changes each block.

PATH is a safetensors file, or a folder as peft or diffusers leave it. The style is matched to the
checkpoint in MODEL_REPOSITORY. Exit codes: 0 it fits, 2 it does not, and the last line says why.
"""
SHOWN_UNMATCHED = 5
BAR_CHARS = 40
NETWORKS = {"unet": "UNet", "text_encoder": "text encoder", "text_encoder_2": "second text encoder"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.description = DESCRIPTION
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", choices=["inspect"], help="the only one so far")
    parser.add_argument("path", type=Path, metavar="PATH", help="a file or a folder")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the strength of each block into a PNG")
    parser.add_argument("--models", type=Path, metavar="DIR", help="the built models (default: MODEL_REPOSITORY)")


def run(args: argparse.Namespace, settings: Settings) -> int:
    """Prints the page; what does not fit is raised as :class:`LoraIncompatible` after what could be said."""
    path = _file(args.path)
    weights = read_weights(_bytes_of(path))
    _say(str(path), _facts(weights))
    served = _served(settings.models.repository if args.models is None else args.models)
    matching = match(weights.tensors, served)
    _say("", _fit(matching, served))
    config = path.with_name(CONFIG_NAME)
    text = _bytes_of(config) if needs_config(weights.tensors) else None
    lora = read_lora(weights.tensors, scalings_of(weights, text), served)
    blocks = strengths(lora)
    _say("", _lora_facts(lora, served))
    _say("strength of each block (Frobenius norm of what is added)", _bars(blocks))
    if args.plot is not None:
        _plot(args.plot, blocks, path, lora, weights)
    return 0


def _file(path: Path) -> Path:
    """The weights file that is meant."""
    if not path.is_dir():
        return path
    found = next((path / name for name in FILE_NAMES if (path / name).is_file()), None)
    if found is None:
        raise LoraNotFound(f"{path} holds no {' and no '.join(FILE_NAMES)}")
    return found


def _bytes_of(path: Path) -> bytes:
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise LoraIncompatible(f"{path} is {path.stat().st_size} bytes; up to {LIMIT_BYTES} are read")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise LoraNotFound(f"{path} does not exist") from error
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from error


def _served(repository: Path) -> CheckpointInfo:
    try:
        return read_checkpoint(repository)
    except ConfigError as error:
        raise ConfigError(f"the file is sound; whether it fits cannot be said: {error}") from error


def _facts(weights: WeightsFile) -> Mapping[str, str]:
    return {
        "names of": family(weights.tensors),
        "tensors": f"{len(weights.tensors)}, in {' and '.join(weights.dtypes)}",
        "size": f"{weights.size_bytes / 1e6:.2f} MB",
        "sha256": weights.sha256,
    }


def _fit(matching: Matching, served: CheckpointInfo) -> Mapping[str, str]:
    widths = " and ".join(f"{width} ({BASE_MODELS.get(width, 'no known base')})" for width in matching.text_widths)
    facts = {
        "base model": f"reads text of width {widths or 'unknown'}; {served.name} has {served.cross_attention_dim}",
        "layers": ", ".join(
            f"{count} of {len(served.layers[network])} in the {NETWORKS[network]}"
            for network, count in matching.matched.items()
        ),
        "unmatched": "none",
    }
    if matching.unmatched:
        first = ", ".join(map(shown, matching.unmatched[:SHOWN_UNMATCHED]))
        more = len(matching.unmatched) - SHOWN_UNMATCHED
        facts["unmatched"] = f"{len(matching.unmatched)}: {first}" + (f" and {more} more" if more > 0 else "")
    return facts


def _lora_facts(lora: Lora, served: CheckpointInfo) -> Mapping[str, str]:
    ranks = ", ".join(map(str, lora.ranks))
    misfit = served.style_layout.misfit([lora.unet]) if lora.unet else None
    ways = [f"merged, since {misfit}" if misfit else "mixed"] if lora.unet else []
    ways += [f"the {NETWORKS[n]}'s part merged" for n in ("text_encoder", "text_encoder_2") if lora.of(n)]
    return {
        "method": " and ".join(lora.methods),
        "ranks": ranks or "none: no layer is plain low rank",
        "applied": "; ".join(ways),
    }


def _bars(blocks: tuple[BlockStrength, ...]) -> Mapping[str, str]:
    largest = max((block.norm for block in blocks), default=0.0) or 1.0
    return {block.name: f"{block.norm:9.4g} {'█' * round(BAR_CHARS * block.norm / largest)}" for block in blocks}


def _say(title: str, facts: Mapping[str, str]) -> None:
    lines = [title] if title else []
    lines += [f"  {name:<13} {fact}" for name, fact in facts.items()]
    sys.stdout.write("".join(f"{line}\n" for line in lines))


def _plot(out: Path, blocks: tuple[BlockStrength, ...], path: Path, lora: Lora, weights: WeightsFile) -> None:
    ranks = f", rank {', '.join(map(str, lora.ranks))}" if lora.ranks else ""
    subtitle = f"{' and '.join(lora.methods)}{ranks}, {weights.size_bytes / 1e6:.2f} MB, {weights.sha256[:10]}"
    name = path.parent.name if path.name in FILE_NAMES else path.stem
    image = draw_strengths(blocks, f"What {name} changes, by block", f"{subtitle}; Frobenius norm of what is added")
    try:
        image.save(out, format="PNG")
    except OSError as error:
        raise InvalidInput(f"--plot is {out}, which cannot be written: {error.strerror or error}") from error
    sys.stdout.write(f"{out}\n")
