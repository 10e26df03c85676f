"""What the local Triton needs, fetched once into the state folder of this checkout.

``python -m local.environment`` prepares two folders and costs nothing the second time:

- ``triton/``: ``tritonserver`` and its python backend, unpacked from the ``nvidia-pytriton`` wheel in the wheel's own
  layout (the binaries find their libraries relative to themselves). The wheel's Python package is left out.
- ``stub/``: a virtual environment for the processes in which the python backend runs graphs. It holds numpy 1.26,
  because numpy 2 inside this backend reads inputs with stride 0 and answers 0 bytes without an error.

Only the standard library is used, so a bare Python with pip can run it.
"""

import fcntl
import hashlib
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from local.debian import unpack
from orchestrator.errors import ServiceError

TRITON_WHEEL = "nvidia-pytriton==0.7.0"
STUB_REQUIREMENTS = ("numpy==1.26.4", "openvino>=2026.4,<2027", "onnxruntime>=1.31,<2")
STUB_VERSIONS = ("3.11", "3.12")
"""Python versions for which the wheel has a stub and the requirements have wheels."""
MIN_GLIBC = (2, 35)
LAYOUT = "1"
"""Raised when what is written to disk changes, so that older folders are built again."""

_SERVER = "pytriton/tritonserver"
_KEPT = ("nvidia_pytriton.libs/", f"{_SERVER}/bin/", f"{_SERVER}/backends/python/")
_PROBE = """
import json, sys, sysconfig
say = sysconfig.get_config_var
prefix, multiarch = sys.base_prefix, say("MULTIARCH") or ""
folders = [say("LIBDIR"), prefix + "/lib", prefix + "/lib64", prefix + "/lib/" + multiarch]
print(json.dumps({"version": "%d.%d" % sys.version_info[:2], "folders": [f for f in folders if f]}))
"""
_SYSTEM_FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/local/lib")


@dataclass(frozen=True, slots=True)
class StubPython:
    """The interpreter that the python backend embeds, and the shared library it is embedded from."""

    executable: str
    version: str
    libpython: str


@dataclass(frozen=True, slots=True)
class Environment:
    """Where the prepared parts lie."""

    state: Path

    @property
    def server(self) -> Path:
        return self.state / "triton" / _SERVER / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        return self.state / "triton" / _SERVER / "backends"

    @property
    def libraries(self) -> Path:
        """A folder with nothing but a link to libpython, so that no other library is shadowed by it."""
        return self.state / "triton" / "libpython"

    @property
    def stub(self) -> Path:
        """``REMARQUE_STUB``, an environment that was brought along (a GPU's, with torch in it), or our own."""
        return Path(os.environ.get("REMARQUE_STUB") or self.state / "stub")


def state_folder() -> Path:
    """``REMARQUE_STATE``, or ``.remarque`` in the checkout."""
    return Path(os.environ.get("REMARQUE_STATE") or Path(__file__).resolve().parent.parent / ".remarque").absolute()


def prepare(state: Path | None = None) -> Environment:
    """Make both folders what this version needs; a folder that already is takes no time."""
    environment = Environment(state or state_folder())
    _refuse_wrong_libc()
    try:
        environment.state.mkdir(parents=True, exist_ok=True)
        with _locked(environment.state / "environment.lock"):
            python = _python(environment.state)
            if not os.environ.get("REMARQUE_STUB"):
                _ensure(environment.stub, (*STUB_REQUIREMENTS, repr(python)), lambda: _build_stub(environment, python))
            wanted = (TRITON_WHEEL, python.version, python.libpython)
            _ensure(environment.state / "triton", wanted, lambda: _build_server(environment, python))
    except OSError as error:
        raise ServiceError(
            f"{environment.state} cannot be prepared: {error}; free about 1 GB there or point REMARQUE_STATE elsewhere"
        ) from error
    return environment


def _refuse_wrong_libc() -> None:
    if sys.platform != "linux":
        raise ServiceError(
            f"tritonserver exists for Linux and this is {sys.platform}; use a Linux machine, VM or WSL 2"
        )
    name, version = platform.libc_ver()
    parts = tuple(int(part) for part in version.split(".")[:2]) if version else ()
    if name != "glibc" or parts < MIN_GLIBC:
        found = f"{name or 'a libc that is not glibc'} {version}".strip()
        raise ServiceError(
            f"tritonserver needs glibc 2.35 or newer and this machine has {found}; "
            "use Debian 12, Ubuntu 22.04, Fedora 36, RHEL 10 or newer"
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One set-up at a time; the lock goes away with its process."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _ensure(folder: Path, wanted: Sequence[str], build: Callable[[], None]) -> None:
    """Build ``folder`` anew unless its stamp says that exactly ``wanted`` was built; the stamp is written last."""
    digest = hashlib.sha256("\n".join((LAYOUT, *wanted)).encode()).hexdigest()
    stamp = folder / "stamp"
    if stamp.exists() and stamp.read_text() == digest:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    build()
    stamp.write_text(digest)


def _python(state: Path) -> StubPython:
    """The recorded interpreter while it is still there, else the best one of this machine."""
    record = state / "stub-python.json"
    with suppress(OSError, ValueError, TypeError):  # none yet, or half written by a process that was killed
        python = StubPython(**json.loads(record.read_text()))
        if Path(python.executable).exists() and Path(python.libpython).exists():
            return python
    python = _choose_python(state)
    record.write_text(json.dumps(asdict(python)))
    return python


def _choose_python(state: Path) -> StubPython:
    """The running interpreter if it can be embedded, else another of this machine, else one completed from Debian."""
    running = getattr(sys, "_base_executable", None) or sys.executable
    candidates = [running, *(path for version in STUB_VERSIONS if (path := shutil.which(f"python{version}")))]
    suitable: list[tuple[str, str]] = []
    for executable in candidates:
        version, folders = _describe(executable)
        if version not in STUB_VERSIONS:
            continue
        suitable.append((executable, version))
        for folder in (*folders, *_SYSTEM_FOLDERS):
            library = Path(folder, f"libpython{version}.so.1.0")
            if library.exists():
                return StubPython(executable, version, str(library))
    executable, version = suitable[0] if suitable else (candidates[0], STUB_VERSIONS[0])
    remedy = (
        f"install it (Debian, Ubuntu: apt install libpython{version}; Fedora: dnf install python{version}-libs) or use "
        "a Python that brings it (uv python install, or pyenv with PYTHON_CONFIGURE_OPTS=--enable-shared)"
    )
    if not suitable:
        raise ServiceError(
            f"Triton's python backend needs Python {' or '.join(STUB_VERSIONS)} and {executable} is another; {remedy}"
        )
    with _reported(f"libpython{version} for {executable}, from Debian's packages") as sizes:
        unpack([f"libpython{version}"], state / "libpython", instead=remedy)
        library = next((state / "libpython").rglob(f"libpython{version}.so.1.0"))
        sizes.append(library.stat().st_size)
    return StubPython(executable, version, str(library))


def _describe(executable: str) -> tuple[str, list[str]]:
    """Version and library folders of an interpreter; an empty version for one that does not run."""
    answer = subprocess.run([executable, "-I", "-c", _PROBE], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        return "", []
    told = json.loads(answer.stdout)
    return told["version"], told["folders"]


def _build_stub(environment: Environment, python: StubPython) -> None:
    with _reported("stub environment: " + ", ".join(STUB_REQUIREMENTS)) as sizes:
        # Without pip: Debian's python lacks ensurepip, and the running pip can install into another environment.
        _run([python.executable, "-m", "venv", "--without-pip", str(environment.stub)])
        _pip("--python", str(environment.stub / "bin" / "python3"), "install", *STUB_REQUIREMENTS)
        sizes.append(_size_of(environment.stub))


def _build_server(environment: Environment, python: StubPython) -> None:
    folder = environment.state / "triton"
    with _reported(f"tritonserver: {TRITON_WHEEL}") as sizes:
        _pip("download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), TRITON_WHEEL)
        wheel = next(folder.glob("*.whl"))
        sizes.append(wheel.stat().st_size)
        stub = f"{_SERVER}/python_backend_stubs/{python.version}/triton_python_backend_stub"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(_KEPT)])
            # Both folders lie equally deep, so the stub still finds the wheel's libraries beside it.
            placed = environment.backends / "python" / "triton_python_backend_stub"
            placed.write_bytes(archive.read(stub))
        wheel.unlink()
    for program in (environment.server, placed):
        program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    environment.libraries.mkdir()
    (environment.libraries / f"libpython{python.version}.so.1.0").symlink_to(python.libpython)


@contextmanager
def _reported(what: str) -> Iterator[list[int]]:
    """One line per download: what, bytes, seconds. The body appends sizes."""
    print(f"{what} ... ", end="", flush=True)
    started = time.monotonic()
    sizes: list[int] = []
    done = "failed"
    try:
        yield sizes
        done = f"{sum(sizes) / 1e6:.1f} MB"
    finally:
        print(f"{done}, {time.monotonic() - started:.1f} s", flush=True)


def _size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def _pip(*arguments: str) -> None:
    _run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments])


def _run(command: Sequence[str]) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode == 0:
        return
    said = "; ".join((answer.stderr or answer.stdout).strip().splitlines()[-3:])
    remedy = "check the network, the disk and pip's index, then run python -m local.environment again"
    if "No module named pip" in said:
        remedy = f"install pip first ({sys.executable} -m ensurepip, or apt install python3-pip)"
    elif "No module named venv" in said:
        remedy = "install Python's venv module first (apt install python3-venv)"
    elif "No matching distribution" in said:
        remedy = f"the package index has no wheel for {platform.machine()} and this Python; use x86_64 and Python 3.11"
    raise ServiceError(f"{' '.join(command[1:5])} failed ({said}); {remedy}")


def main() -> int:
    """Prepare everything and say where it lies; 1 and one sentence where that cannot be done."""
    try:
        environment = prepare()
    except ServiceError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"local Triton is ready in {environment.state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
