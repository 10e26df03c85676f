"""Merged models on disk: folders of the model repository beside their base model, all but the changed weights shared.

Processes may share a repository. A folder appears whole or not at all, and whoever uses its model holds a lock on its
``config.pbtxt``: only what nobody holds is unloaded or deleted. That file's access time is when it was used last.
"""

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

from orchestrator.diffusion.deltas import Array
from orchestrator.diffusion.stored_weights import StoredWeight, stored_weight
from orchestrator.errors import LoraIncompatible, ModelUnavailable

WEIGHTS_FILE: Final = "weights.json"
MARK_FILE: Final = "merged.json"
CONFIG_FILE: Final = "config.pbtxt"
# Triton takes no folder inside a model for a model, which one beside it would be.
_DRAFTS: Final = ".merging"
_DRAFT_OLD_AFTER_S: Final = 3600.0
_FORMAT: Final = 1
# Of Triton's version folders a repository built here has one.
_VERSION: Final = "1"
LOG = logging.getLogger(__name__)

Change = Callable[[str, Array], Array]
"""A layer's name and its weight to the weight under the styles."""


class MergedFolders:
    """The merged models of one model repository; those written here may take ``limit_bytes`` of disk."""

    def __init__(self, repository: Path, limit_bytes: int) -> None:
        self.repository = repository
        self._limit_bytes = limit_bytes

    def exists(self, name: str) -> bool:
        return (self.repository / name / CONFIG_FILE).is_file() and not self._is_stale(name)

    def size_bytes(self, name: str) -> int:
        """What the model's files hold, shared or not: about what a server needs to keep it loaded."""
        return sum(stat.st_size for stat in _files(self.repository / name))

    def write(self, base: str, name: str, layers: tuple[str, ...], change: Change) -> None:
        """``name`` as ``base`` with ``layers`` changed.

        Raises:
            LoraIncompatible: this repository takes no merged models; the sentence says why.
            ModelUnavailable: the disk failed or is full.
        """
        folder = self.repository / base
        stored = self._stored(folder, layers)
        draft = folder / _DRAFTS / f"{name}.{uuid4().hex}"
        try:
            draft.mkdir(parents=True)
            _link(folder, draft, {f"{_VERSION}/{entry.file}" for entries in stored.values() for entry in entries})
            for layer, entries in stored.items():
                for entry in entries:
                    changed = change(layer, entry.tensor((folder / _VERSION / entry.file).read_bytes()))
                    target = draft / _VERSION / entry.file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(entry.data(changed))
            (draft / CONFIG_FILE).write_text(_renamed((folder / CONFIG_FILE).read_text("utf-8"), base, name), "utf-8")
            (draft / MARK_FILE).write_text(json.dumps({"format": _FORMAT, "base": self._built(base)}), "utf-8")
            self._place(draft, name)
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise self._unwritable(error) from error
            raise ModelUnavailable(f"{name} could not be written to {self.repository}: {error.strerror}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    @contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """While this lasts nobody unloads or deletes ``name``; False where it is not there (any more), or stale."""
        file = self.repository / name / CONFIG_FILE
        try:
            handle = os.open(file, os.O_RDONLY)
        except FileNotFoundError:
            yield False
            return
        try:
            _lock(handle, fcntl.LOCK_SH)
            here = _is_same(handle, file) and not self._is_stale(name)
            if here:
                _used_now(file)
            yield here
        finally:
            os.close(handle)

    @contextmanager
    def taken(self, name: str) -> Iterator[bool]:
        """Whether nobody holds ``name``; while this lasts nobody can."""
        try:
            handle = os.open(self.repository / name / CONFIG_FILE, os.O_RDONLY)
        except FileNotFoundError:
            yield True
            return
        free = True
        try:
            try:
                _lock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                free = False
            yield free
        finally:
            os.close(handle)

    def last_used_s(self, name: str) -> float:
        """When ``name`` was held last, in seconds since 1970; 0 where it is not there."""
        try:
            return (self.repository / name / CONFIG_FILE).stat().st_atime
        except FileNotFoundError:
            return 0.0

    def shrink(self, loaded: frozenset[str]) -> None:
        """Delete what was not used for longest until the rest keeps within the disk allowed; what is loaded stays."""
        self._drop_old_drafts()
        ours = sorted((mark.parent.name for mark in self.repository.glob(f"*--*/{MARK_FILE}")), key=self.last_used_s)
        sizes = {name: self._own_bytes(name) for name in ours}
        for name in ours:
            if sum(sizes.values()) <= self._limit_bytes:
                return
            with self.taken(name) as free:
                if free and name not in loaded and self._delete(name):
                    del sizes[name]

    def _built(self, base: str) -> str:
        """Another text whenever the base model was built in another way: precision, inputs, how weights lie."""
        files = (self.repository / base / file for file in (CONFIG_FILE, WEIGHTS_FILE))
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()

    def _is_stale(self, name: str) -> bool:
        """Whether it was merged here, into a base model that has been built anew since."""
        try:
            mark = json.loads((self.repository / name / MARK_FILE).read_text("utf-8"))
            return bool(mark["base"] != self._built(name.partition("--")[0]))
        except FileNotFoundError:
            return False

    def _delete(self, name: str) -> bool:
        grave = self.repository / name.partition("--")[0] / _DRAFTS / uuid4().hex
        try:
            grave.parent.mkdir(exist_ok=True)
            # Renamed first, so that no server meets half of it.
            (self.repository / name).rename(grave)
        except OSError as error:
            LOG.warning("merged model %s could not be deleted: %s", name, error.strerror)
            return False
        shutil.rmtree(grave, ignore_errors=True)
        LOG.info("merged model %s was deleted", name)
        return True

    def _place(self, draft: Path, name: str) -> None:
        """The finished folder to its place, unless another process was faster with the same."""
        target = self.repository / name
        if self._is_stale(name):
            self._delete(name)
        try:
            draft.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            if not self.exists(name):
                raise ModelUnavailable(f"{target} lies there without {CONFIG_FILE}; delete it") from error

    def _own_bytes(self, name: str) -> int:
        return sum(stat.st_size for stat in _files(self.repository / name) if stat.st_nlink == 1)

    def _drop_old_drafts(self) -> None:
        for draft in self.repository.glob(f"*/{_DRAFTS}/*"):
            with suppress(OSError):
                if time.time() - draft.stat().st_mtime > _DRAFT_OLD_AFTER_S:
                    shutil.rmtree(draft, ignore_errors=True)

    def _stored(self, folder: Path, layers: tuple[str, ...]) -> Mapping[str, list[StoredWeight]]:
        path = folder / WEIGHTS_FILE
        try:
            known = json.loads(path.read_text("utf-8"))["layers"]
            return {layer: [stored_weight(entry) for entry in known[layer]] for layer in layers}
        except FileNotFoundError:
            raise LoraIncompatible(
                f"{folder.name} merges no style: {path} does not exist; an onnx repository of this version has it, "
                "an engine takes a style when it is built (build_engines --style)"
            ) from None
        except (KeyError, TypeError, ValueError) as error:
            raise ModelUnavailable(f"{path} lacks or misstates {error}; build the repository again") from error

    def _unwritable(self, error: OSError) -> LoraIncompatible:
        return LoraIncompatible(
            f"it cannot be merged: MODEL_REPOSITORY is {self.repository}, which cannot be written "
            f"({error.strerror}); styles that mix need no writing"
        )


def _link(base: Path, draft: Path, changed: set[str]) -> None:
    """Everything of ``base`` into ``draft`` without a copy, but what changes."""
    for path in sorted(base.rglob("*")):
        within = path.relative_to(base)
        if within.parts[0] in (_DRAFTS, CONFIG_FILE, WEIGHTS_FILE, MARK_FILE) or str(within) in changed:
            continue
        if path.is_dir():
            (draft / within).mkdir(parents=True, exist_ok=True)
            continue
        (draft / within).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(path, draft / within)
        except OSError:  # some file systems have no hard links
            shutil.copy2(path, draft / within)


def _renamed(config: str, base: str, name: str) -> str:
    """The configuration of ``base`` for ``name``; a revision of its own, or Triton might take it for the one it has.

    It gets no graphs of one shape each: their memory is not in what a merged style is counted as.
    """
    renamed, count = re.subn(rf'^name: "{re.escape(base)}"$', f'name: "{name}"', config, count=1, flags=re.MULTILINE)
    if count != 1:
        raise ModelUnavailable(f"{CONFIG_FILE} of {base} does not say its name; build the repository again")
    renamed = re.sub(r'^parameters \{ key: "own_shapes" .*\n', "", renamed, flags=re.MULTILINE)
    return f'{renamed}parameters {{ key: "revision" value {{ string_value: "{name}" }} }}\n'


def _files(folder: Path) -> Iterator[os.stat_result]:
    """Of every file in the folder, which another process may be deleting."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            if path.is_file():
                yield path.stat()


def _lock(handle: int, how: int) -> None:
    try:
        fcntl.flock(handle, how)
    except BlockingIOError:
        raise
    except OSError as error:
        raise ModelUnavailable(f"MODEL_REPOSITORY lies where files cannot be locked: {error.strerror}") from error


def _is_same(handle: int, file: Path) -> bool:
    """Whether the file is still there and not another by now."""
    try:
        return os.fstat(handle).st_ino == file.stat().st_ino
    except FileNotFoundError:
        return False


def _used_now(file: Path) -> None:
    """Only the access time: a changed file would make Triton load its model again."""
    with suppress(OSError):
        os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))
