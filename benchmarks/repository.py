"""What a built model repository says of its models."""

import re
from pathlib import Path


def base_models(repository: Path) -> list[str]:
    """Its models without the merged ones, which are loaded when a job asks."""
    found = sorted(path.parent.name for path in repository.glob("*/config.pbtxt"))
    return [name for name in found if "--" not in name]


def row_limit(repository: Path, model: str) -> int:
    """How many rows one execution may hold."""
    said = re.search(r"max_batch_size:\s*(\d+)", _config(repository, model))
    return int(said.group(1)) if said else 1


def parameter(repository: Path, model: str, key: str, default: str = "") -> str:
    """A parameter of the python backend's shared model."""
    said = re.search(rf'key: "{key}"\s+value {{ string_value: "([^"]*)" }}', _config(repository, model))
    return said.group(1) if said else default


def has_own_shapes(repository: Path) -> bool:
    """Whether the UNet may get graphs of one shape each where this machine computes in float32."""
    runtime = parameter(repository, "unet", "runtime")
    return parameter(repository, "unet", "own_shapes", "0") != "0" and runtime in ("auto", "openvino-f32")


def _config(repository: Path, model: str) -> str:
    return (repository / model / "config.pbtxt").read_text("utf-8")
