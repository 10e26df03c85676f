"""Says before Triton starts whether the engines of a model repository fit this machine.

    python3 check_engines.py [REPOSITORY]

An engine belongs to the TensorRT version and the kind of GPU that it was built with; Triton would refuse another with
its loader's own words, model after model. This file needs Python alone and is copied into every repository of engines,
so that a server's start can be ``python3 /models/check_engines.py && exec tritonserver ...``.
Exit codes: 0 every engine fits; 2 one does not, or this machine's TensorRT or GPU cannot be asked, said in a sentence.
"""

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

_MAJOR, _MINOR = 75, 76
"""CUDA's numbers for the two parts of a compute capability, among a device's attributes."""


def problems(repository: Path, version: str, capability: str) -> Iterator[str]:
    """A sentence for every engine that this TensorRT or this GPU cannot run."""
    for path in sorted(repository.glob("*/1/*.plan.json")):
        record = json.loads(path.read_text("utf-8"))
        model, remedy = path.parents[1].name, "build it again on this machine with export/build_engines.py"
        if record["library"] != "tensorrt":
            yield f"{model} was built by {record['library']}, which Triton has no backend for; {remedy}"
        elif not _agree(record["version"], version):
            yield f"{model} was built by TensorRT {record['version']}; {version} is here: {remedy}"
        elif capability not in record["compute_capabilities"]:
            built_for = " and ".join(record["compute_capabilities"])
            yield f"{model} was built for compute capability {built_for}; this GPU has {capability}: {remedy}"
        elif not path.with_suffix("").is_file():
            yield f"{model} lacks {path.with_suffix('').name}; {remedy}"


def tensorrt_version() -> str:
    """Of the library that Triton's backend will load: NVIDIA's images say it, an installed package knows it."""
    said = os.environ.get("TRT_VERSION", "").partition("+")[0]
    if said:
        return said
    try:
        import tensorrt
    except ImportError:
        raise LookupError(
            "which TensorRT is here cannot be told: TRT_VERSION is unset, tensorrt not installed"
        ) from None
    return str(tensorrt.__version__)


def compute_capability(device: int = 0) -> str:
    """Of a GPU, for example ``8.9``, as its driver says it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise LookupError("there is no NVIDIA driver (libcuda.so.1) on this machine") from None
    handle, parts = ctypes.c_int(), []
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(handle), device):
        raise LookupError(f"there is no GPU {device} on this machine")
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle):
            raise LookupError(f"GPU {device} does not say its compute capability")
        parts.append(str(value.value))
    return ".".join(parts)


def _agree(built: str, here: str) -> bool:
    """Whether two versions are one, as far as both are said: images say four numbers, packages sometimes three."""
    return all(one == other for one, other in zip(built.split("."), here.split("."), strict=False))


def main() -> int:
    """Command line; returns the exit code."""
    repository = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    try:
        found = list(problems(repository, tensorrt_version(), compute_capability()))
    except LookupError as error:
        found = [str(error)]
    for sentence in found:
        sys.stderr.write(f"check_engines: {sentence}\n")
    return 2 if found else 0


if __name__ == "__main__":
    sys.exit(main())
