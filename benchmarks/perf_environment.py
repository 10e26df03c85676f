"""Fetches NVIDIA's perf_analyzer once into the state folder and says where it lies.

PyPI's own ``perf-analyzer`` is an empty placeholder; ``tritonclient`` 2.51's Linux wheel still carries the program. Two
libraries that it needs lie in the Triton that :mod:`local.environment` fetched, under names with a hash in them.

    python -m benchmarks.perf_environment        # prints the program's path
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from local.environment import prepare
from orchestrator.errors import ServiceError

WHEEL = "tritonclient==2.51.0"
PLATFORM = "manylinux1_x86_64"
MEMBER = "bin/perf_analyzer"
LIBRARIES = {"libb64.so.0d": "libb64-*.so*", "libcudart.so.12": "libcudart-*.so*"}


def perf_analyzer() -> Path:
    """The program, wrapped so that it finds its libraries."""
    environment = prepare()
    folder = environment.state / "perf_analyzer"
    wrapper = folder / "perf_analyzer"
    if wrapper.exists():
        return wrapper
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "lib").mkdir(parents=True)
    _unpack(folder)
    bundled = environment.state / "triton" / "nvidia_pytriton.libs"
    for name, pattern in LIBRARIES.items():
        found = next(iter(sorted(bundled.glob(pattern))), None)
        if found is None:
            raise ServiceError(
                f"{bundled} holds no {pattern}; delete {environment.state / 'triton'} and run make triton"
            )
        (folder / "lib" / name).symlink_to(found)
    paths = f"{folder / 'lib'}:{bundled}"
    wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{paths}" exec "{folder / "binary"}" "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def _unpack(folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]
    command += ["--only-binary", ":all:", "--platform", PLATFORM, "--dest", str(folder), WHEEL]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise ServiceError(f"{WHEEL} cannot be downloaded: {answer.stderr.strip().splitlines()[-1]}")
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(MEMBER))
        (folder / "binary").write_bytes(archive.read(member))
    wheel.unlink()
    (folder / "binary").chmod(0o755)


if __name__ == "__main__":
    try:
        print(perf_analyzer())
    except ServiceError as error:
        raise SystemExit(str(error)) from error
