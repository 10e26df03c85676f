"""What lies in a network's folder, or is downloaded into one: JSON, and safetensors under today's names."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from export.errors import ExportError
from export.weights import Weights

WEIGHT_FILES: Final = ("diffusion_pytorch_model", "model")
"""How the files are called, without their ending."""
_FP16: Final = ".fp16.safetensors"
_HUB_ID: Final = re.compile(r"(?!.*(?:--|\.\.|\.git$))[A-Za-z0-9](?:[\w.-]*\w)?/[A-Za-z0-9](?:[\w.-]{0,94}\w)?")
_OLD_VAE_NAMES: Final[Mapping[str, str]] = {
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{path} is missing; a complete diffusers checkpoint has it") from None
    except (OSError, ValueError) as error:
        raise ExportError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ExportError(f"{path} does not hold a JSON object")
    return value


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a network."""
    for stem in WEIGHT_FILES:
        for suffix in (".safetensors", _FP16):
            if (folder / f"{stem}{suffix}").is_file():
                return [folder / f"{stem}{suffix}"]
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map")
            if not (isinstance(shards, dict) and shards):
                raise ExportError(f"{index} names no weights (weight_map is {shards})")
            return sorted({folder / shard for shard in shards.values()})
    if any(folder.glob("*.bin")) or any(folder.glob("*.ckpt")):
        raise ExportError(f"{folder} holds pickled weights only; safetensors are read (save_pretrained writes them)")
    raise ExportError(
        f"{folder} holds no weights (expected {' or '.join(f'{stem}.safetensors' for stem in WEIGHT_FILES)})"
    )


def variant_of(folder: Path) -> str | None:
    """What diffusers and transformers must be told to read the same files of a network."""
    return "fp16" if weight_files(folder)[0].name.endswith(_FP16) else None


@cache
def open_weights(folder: Path) -> Weights:
    """A network's tensors under the names that today's libraries give them."""
    return Weights(weight_files(folder), _todays_name)


@cache
def digest_of(folder: Path) -> str:
    """What ``Weights.digest`` says of a network."""
    return open_weights(folder).digest()


def _todays_name(stored: str) -> str | None:
    """SD 1.5 as first published names the VAE's attention and the text encoder's tensors as older libraries did."""
    name = stored.removeprefix("text_model.")
    if name == "embeddings.position_ids":
        return None
    if ".attentions." in name:
        for old, new in _OLD_VAE_NAMES.items():
            name = name.replace(old, new)
    return name


def is_hub_id(said: str) -> bool:
    """Whether it has the form owner/name, as the hub allows it."""
    return _HUB_ID.fullmatch(said) is not None


def download(hub_id: str, patterns: Sequence[str]) -> Path:
    """The folder of a hub id's files of these ``patterns``, downloaded once; half as large ones where no others are."""
    folder = _snapshot(hub_id, patterns, ["*non_ema*", f"*{_FP16}"])
    missing = [pattern for pattern in patterns if ".safetensors" in pattern and _lacks_weights(folder, pattern)]
    return _snapshot(hub_id, missing, ["*non_ema*"]) if missing else folder


def _lacks_weights(folder: Path, pattern: str) -> bool:
    network = (folder / pattern).parent
    return (network / "config.json").is_file() and not any(network.glob("*.safetensors"))


def _snapshot(hub_id: str, patterns: Sequence[str], ignored: Sequence[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise ExportError(
            f"{hub_id} is no folder here, and downloading it needs: pip install huggingface-hub"
        ) from None
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(patterns), ignore_patterns=list(ignored)))
    except LocalEntryNotFoundError:
        raise ExportError(
            f"{hub_id} is no folder here, was not downloaded before, and the hub is out of reach"
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise ExportError(f"{hub_id} cannot be downloaded: {str(error).splitlines()[0]}") from error
