"""The styles that jobs name: fetched once, checked whole, kept while they are used."""

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.clients.weights import WeightsFile, read_weights
from orchestrator.diffusion.lora import needs_config, read_lora
from orchestrator.diffusion.lora_names import NETWORKS
from orchestrator.diffusion.lora_scales import PeftScaling, config_of, metadata_of
from orchestrator.errors import InvalidInput, LoraIncompatible, LoraNotFound, ObjectNotFound, RemarqueError
from orchestrator.imaging.provenance import StyleRecord
from orchestrator.job import StyleRef
from orchestrator.style_files import StyleFiles
from orchestrator.style_ways import AppliedStyle, Style

LIMIT_BYTES = 512 << 20
CONFIG_LIMIT_BYTES = 1 << 20
CONFIG_NAME = "adapter_config.json"
# What trainers call the file inside the folder they leave.
FILE_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
# And what they called it before; looked for only to say why nothing is read.
PICKLE_NAMES = ("adapter_model.bin", "pytorch_lora_weights.bin")
# A path with one of these endings is a file; any other may be a folder.
FILE_ENDINGS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".zip", ".pkl")
# Jobs whose styles are got ready at once while they wait; beyond it a job does so when its turn comes.
AHEAD = 16
PATHS_PER_STYLE = 10
LOG = logging.getLogger(__name__)


class StyleSource(Protocol):
    """The store as far as styles need it; only allowed prefixes are admitted."""

    def read(self, uri: str, *, limit_bytes: int) -> bytes: ...

    def version(self, uri: str) -> str:
        """Another text whenever the object is another; ObjectNotFound where there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ShelfSettings:
    """How much of the styles is kept, and how long a path is trusted to still lead to the same file."""

    limit_bytes: int = LIMIT_BYTES
    memory_bytes: int = 1 << 30
    disk_bytes: int = 8 << 30
    folder: Path | None = None
    trusted_s: float = 5.0


Count = Callable[[str, str, float], None]
"""Hears the style's SHA-256, where it came from (``memory``, ``disk`` or ``store``) and the seconds that it took."""

Prepare = Callable[[Sequence[AppliedStyle]], None]
"""Told of styles that a waiting job will need and that are here by now."""


@dataclass(slots=True)
class _Known:
    """Where a path led, and when that was last seen to be so."""

    uri: str
    version: str
    key: tuple[str, str]
    seen_s: float


class StyleShelf:
    """Every style this process uses; threads share one, and wait for each other's download instead of repeating it."""

    def __init__(
        self,
        source: StyleSource,
        served: CheckpointInfo | None,
        settings: ShelfSettings | None = None,
        count: Count | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        """``served`` is None where a mock stands in for the networks."""
        self._source = source
        self._served = served
        self._settings = settings or ShelfSettings()
        folder = self._settings.folder
        self._files = None if folder is None else StyleFiles(folder, self._settings.disk_bytes)
        self._count = count
        self._prepare = prepare
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._styles: OrderedDict[tuple[str, str], Style] = OrderedDict()
        self._underway: dict[str, Future[Style]] = {}
        self._ahead = threading.BoundedSemaphore(AHEAD)

    def admit(self, refs: Sequence[StyleRef]) -> tuple[AppliedStyle, ...]:
        """Every style of a job, or a refusal of all.

        Raises:
            LoraNotFound: no file lies where a path leads.
            LoraIncompatible: a file is broken, or made for other networks than those served.
        """
        return tuple(
            AppliedStyle(style=style, weight=ref.weight, path=ref.path, record=_record(ref, style))
            for ref, style in ((ref, self.get(ref.path)) for ref in refs)
        )

    def get(self, path: str) -> Style:
        """The style at ``path``, from memory, disk or the store; raises as :meth:`admit`."""
        with self._lock:
            underway = self._underway.get(path)
            if underway is None:
                ours = self._underway[path] = Future()
        if underway is not None:
            return underway.result()
        try:
            style = self._style(path)
        except BaseException as error:
            ours.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._underway[path]
        ours.set_result(style)
        return style

    def prefetch(self, refs: Sequence[StyleRef]) -> None:
        """Get in the background what a waiting job will need; whatever goes wrong, the job itself will hear."""
        if refs and self._ahead.acquire(blocking=False):
            # A thread of a pool would hold up the end of the process until its download is done.
            threading.Thread(target=self._get_ahead, args=(tuple(refs),), name="style", daemon=True).start()

    def _get_ahead(self, refs: Sequence[StyleRef]) -> None:
        try:
            styles = self.admit(refs)
            if self._prepare is not None:
                self._prepare(styles)
        except RemarqueError as error:
            LOG.info("styles %s could not be made ready ahead: %s", ", ".join(ref.path for ref in refs), error)
        finally:
            self._ahead.release()

    def _style(self, path: str) -> Style:
        begun_s = time.monotonic()
        try:
            style, origin = self._in_memory(path), "memory"
            if style is None:
                style, origin = self._fetched(path)
        except LoraIncompatible as error:
            raise LoraIncompatible(f"style {path} cannot be applied: {error}") from error
        except InvalidInput as error:
            raise LoraIncompatible(str(error)) from error
        if self._count is not None:
            self._count(style.sha256, origin, time.monotonic() - begun_s)
        return style

    def _in_memory(self, path: str) -> Style | None:
        """The style, if it is kept and the store still has the same file under that path."""
        with self._lock:
            known = self._known.get(path)
            style = None if known is None else self._styles.get(known.key)
        if known is None or style is None:
            return None
        if time.monotonic() - known.seen_s > self._settings.trusted_s:
            uri, version = self._locate(path)
            config = self._config(uri) if known.key[1] else None
            if (uri, version, _digest(config)) != (known.uri, known.version, known.key[1]):
                return None
            known.seen_s = time.monotonic()
        with self._lock:
            if known.key in self._styles:
                self._styles.move_to_end(known.key)
        return style

    def _fetched(self, path: str) -> tuple[Style, str]:
        uri, version = self._locate(path)
        data = None if self._files is None else self._files.find(uri, version)
        origin = "store" if data is None else "disk"
        if data is None:
            data = self._source.read(uri, limit_bytes=self._settings.limit_bytes)
        weights = read_weights(data)
        if self._files is not None and origin == "store":
            self._files.keep(uri, version, data)
        config = self._config(uri) if needs_config(weights.tensors) else None
        style = self._read(weights, config)
        known = _Known(uri, version, (weights.sha256, _digest(config)), time.monotonic())
        self._keep(path, known, style)
        return style, origin

    def _locate(self, path: str) -> tuple[str, str]:
        """Which file the path means, and its version."""
        for uri in _files_at(path):
            if (version := self._version(uri)) is not None:
                return uri, version
        for uri in _inside(path, PICKLE_NAMES):
            if self._version(uri) is not None:
                raise LoraIncompatible(f"{uri} is a pickle, which is never opened; save it as safetensors")
        raise LoraNotFound(f"lora_path is {path}; there is no such object")

    def _version(self, uri: str) -> str | None:
        """None where there is no such object."""
        try:
            return self._source.version(uri)
        except ObjectNotFound:
            return None

    def _config(self, uri: str) -> bytes:
        beside = uri[: uri.rfind("/") + 1] + CONFIG_NAME
        try:
            return self._source.read(beside, limit_bytes=CONFIG_LIMIT_BYTES)
        except ObjectNotFound:
            raise LoraIncompatible(
                f"{beside} is missing; it says how strongly weights in the form of peft count"
            ) from None

    def _read(self, weights: WeightsFile, config: bytes | None) -> Style:
        scalings = scalings_of(weights, config)
        lora = None if self._served is None else read_lora(weights.tensors, scalings, self._served)
        return Style(
            sha256=weights.sha256,
            identity=_identity(weights.sha256, config),
            size_bytes=weights.size_bytes,
            dtypes=weights.dtypes,
            lora=lora,
        )

    def _keep(self, path: str, known: _Known, style: Style) -> None:
        """Keep the style as the latest used, and forget the longest unused until everything fits."""
        with self._lock:
            self._known[path] = known
            self._known.move_to_end(path)
            self._styles[known.key] = style
            self._styles.move_to_end(known.key)
            kept_bytes = sum(one.size_bytes for one in self._styles.values())
            while len(self._styles) > 1 and kept_bytes > self._settings.memory_bytes:
                kept_bytes -= self._styles.popitem(last=False)[1].size_bytes
            while len(self._known) > PATHS_PER_STYLE * len(self._styles):
                self._known.popitem(last=False)


def scalings_of(weights: WeightsFile, config: bytes | None) -> dict[str, PeftScaling]:
    """How strongly the file's factors count, by network: after ``adapter_config.json``, or after the metadata that
    newer diffusers write. An empty answer leaves it to the alphas beside the tensors.
    """
    if config is not None:
        return dict.fromkeys(NETWORKS, config_of(config))
    return metadata_of(weights.metadata)


def _files_at(path: str) -> tuple[str, ...]:
    """The files that a path may mean, likeliest first: itself, or what trainers leave in a folder."""
    inside = _inside(path, FILE_NAMES)
    return inside if path.endswith("/") else (*inside, path)


def _inside(path: str, names: Sequence[str]) -> tuple[str, ...]:
    """These names in the folder that the path may be; none where it must be a file."""
    if PurePosixPath(path).suffix.lower() in FILE_ENDINGS and not path.endswith("/"):
        return ()
    return tuple(f"{path.rstrip('/')}/{name}" for name in names)


def _record(ref: StyleRef, style: Style) -> StyleRecord:
    name = PurePosixPath(ref.path).stem if ref.style_id is None else f"style-{ref.style_id}"
    return StyleRecord(name=name, sha256=style.sha256, weight=ref.weight)


def _identity(sha256: str, config: bytes | None) -> str:
    """The same weights under another configuration are another style."""
    return sha256 if config is None else hashlib.sha256(f"{sha256}:{_digest(config)}".encode()).hexdigest()


def _digest(config: bytes | None) -> str:
    return "" if config is None else hashlib.sha256(config).hexdigest()
