"""Memory that this process and an inference server on the same machine both see: files in ``/dev/shm``.

Plain files, because Python's own shared memory brings a tracking process. A file is locked while its owner lives, so
what dead processes left behind can be told from what others use, also across containers that share the folder and not
the process ids.
"""

import fcntl
import mmap
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARED = Path("/dev/shm")
PREFIX = "remarque-step-"
_ALIGNED_BYTES = 64


class Region:
    """Arrays side by side in one file that is gone with :meth:`close` at the latest, whatever happens to the process.

    ``sizes`` are shapes and element types by name. OSError where the folder is missing or full; memory is reserved
    here, since writing to a full one later would kill the process (SIGBUS).
    """

    def __init__(self, sizes: Mapping[str, tuple[tuple[int, ...], "np.dtype[Any]"]], folder: Path = SHARED) -> None:
        self.offsets: dict[str, int] = {}
        end = 0
        for name, (shape, dtype) in sizes.items():
            self.offsets[name] = end
            length = int(np.prod(shape)) * dtype.itemsize
            end += -(-length // _ALIGNED_BYTES) * _ALIGNED_BYTES
        self.size_bytes = end
        self.name, self._memory = _locked_file(folder, end)
        self._path = folder / self.name
        self.arrays: dict[str, NDArray[Any]] = {
            name: np.frombuffer(self._memory, dtype, int(np.prod(shape)), self.offsets[name]).reshape(shape)
            for name, (shape, dtype) in sizes.items()
        }

    def close(self) -> None:
        """Remove the file; its memory is free when the last array and the server let go of it."""
        self._path.unlink(missing_ok=True)


def left_behind(folder: Path = SHARED) -> Iterator[str]:
    """Names of regions whose processes are dead; their files are removed."""
    for path in sorted(folder.glob(f"{PREFIX}*")):
        with suppress(OSError):  # another process sweeps too
            descriptor = os.open(path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                yield path.name
            finally:
                os.close(descriptor)


def _locked_file(folder: Path, size_bytes: int) -> tuple[str, mmap.mmap]:
    """A new file of that size, mapped. The lock lasts as long as the mapping."""
    while True:
        name = f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        path = folder / name
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.fchmod(descriptor, 0o660)  # a server of the same group may run under another user, whatever the umask
            with suppress(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(descriptor).st_nlink:  # else somebody swept it before it was locked
                    os.posix_fallocate(descriptor, 0, size_bytes)
                    return name, mmap.mmap(descriptor, size_bytes)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
