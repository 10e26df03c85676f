"""Models with styles merged into them: written and loaded on first use, kept while there is room, never pulled away.

What is loaded is asked of the server each time, and what is in use is a lock on disk (:mod:`merged_folders`), so that
a restart of the server and other processes with the same server need no word between them.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from orchestrator.checkpoint import CheckpointInfo
from orchestrator.diffusion.deltas import Array, merged
from orchestrator.errors import DeadlineExceeded, LoraIncompatible, ModelUnavailable
from orchestrator.merged_folders import MergedFolders
from orchestrator.style_ways import AppliedStyle, StyleMode, merged_name, ways_of

LOOKS_EVERY_S = 0.1
LOG = logging.getLogger(__name__)


class ModelControl(Protocol):
    """The server's models by name."""

    def load(self, model: str) -> None: ...

    def unload(self, model: str) -> None:
        """Returns when the memory is free."""
        ...

    def is_ready(self, model: str) -> bool: ...

    def loaded(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedSettings:
    """``memory_bytes`` is for all merged models that the server holds; one alone may be larger.

    A job waits ``wait_s`` for room when all of them are in use; then its attempt ends, and another follows. Once it has
    waited ``fair_after_s``, jobs that come anew wait behind it, or a style in demand would never let go of its room.
    """

    memory_bytes: int = 8 << 30
    wait_s: float = 300.0
    fair_after_s: float = 30.0


Count = Callable[[str, str, float], None]
"""Hears which model was met, what was done (``hit``, ``merge``, ``load``, ``evict``) and the seconds that it took."""


class MergedModels:
    """The shelf of merged models; any number of threads share one."""

    def __init__(
        self,
        control: ModelControl,
        folders: MergedFolders,
        checkpoint: CheckpointInfo,
        settings: MergedSettings | None = None,
        count: Count | None = None,
    ) -> None:
        self._control = control
        self._folders = folders
        self._checkpoint = checkpoint
        self._settings = settings or MergedSettings()
        self._count = count
        # One thread at a time writes, loads or makes room: models that load at once take each other's memory.
        self._changing = threading.Lock()
        self._room_wanted_s: float | None = None

    @contextmanager
    def serving(self, network: str, styles: Sequence[AppliedStyle], unmixed: str | None = None) -> Iterator[str]:
        """The name of a model that is ``network`` under ``styles``; it stays loaded while this lasts.

        ``unmixed`` is why they are merged where they could be mixed, for the sentence of a refusal.

        Raises:
            LoraIncompatible: this repository takes no such style.
            ModelUnavailable: it cannot be loaded, or there was no room for it in time.
        """
        name = merged_name(network, self._checkpoint.models[network], styles)
        while self._is_somebody_starved():
            time.sleep(LOOKS_EVERY_S)
        with ExitStack() as holding:
            while not holding.enter_context(self._folders.held(name)):
                with self._changing:
                    if not self._folders.exists(name):
                        self._write(network, name, styles, unmixed)
            if self._is_ready(name) or not self.load(name):
                self._tell("hit", name, time.monotonic())
            yield name

    def prepare(self, styles: Sequence[AppliedStyle], mode: StyleMode) -> None:
        """Write what a waiting job's styles will be merged into, and load what fits beside all that is loaded.

        Raises:
            LoraIncompatible, ModelUnavailable: the job will hear the same.
        """
        ways = ways_of(styles, self._checkpoint, mode)
        encoders = self._checkpoint.layout.text_encoders if ways.text_encoder == "merged" else ()
        networks = [each for each in encoders if any(one.style.deltas(each) for one in styles)]
        for network in (*networks, *(("unet",) if ways.unet == "merged" else ())):
            name = merged_name(network, self._checkpoint.models[network], styles)
            with self._changing:
                if not self._folders.exists(name):
                    self._write(network, name, styles, ways.unmixed)
                with self._folders.held(name) as here:
                    if here and not self._is_ready(name) and self._has_room(name):
                        self._load(name)

    def load(self, name: str) -> bool:
        """Load a model that is held and was lost, to a restart or to another process; False where it was not lost."""
        # Whoever holds the lock may be waiting for this very model to be let go of.
        while not self._changing.acquire(timeout=LOOKS_EVERY_S):
            if self._is_ready(name):
                return False
        with ExitStack() as changing:
            changing.callback(self._changing.release)
            if self._is_ready(name):
                return False
            self._make_room(name)
            self._load(name)
            return True

    def _load(self, name: str) -> None:
        begun_s = time.monotonic()
        try:
            self._control.load(name)
        except ModelUnavailable as error:
            raise ModelUnavailable(
                f"{error}; merged styles need a Triton with --model-control-mode=explicit that serves "
                f"{self._folders.repository} itself"
            ) from error
        self._tell("load", name, begun_s)
        self._folders.shrink(frozenset(self._control.loaded()))

    def _write(self, network: str, name: str, styles: Sequence[AppliedStyle], unmixed: str | None) -> None:
        begun_s = time.monotonic()
        # A UNet fused with ControlNets is changed as the UNet is.
        deltas = [(one.style.deltas(network.removesuffix("_controlnet")), one) for one in styles]
        layers = tuple(dict.fromkeys(layer for found, _ in deltas for layer in found))

        def change(layer: str, weight: Array) -> Array:
            for found, one in deltas:
                if layer in found:
                    weight = merged(weight, found[layer], one.weight)
            return weight

        try:
            self._folders.write(network, name, layers, change)
        except LoraIncompatible as error:
            paths = " and ".join(one.path for one in styles)
            why = f"{unmixed}, and " if unmixed else ""
            raise LoraIncompatible(f"style {paths} cannot be applied: {why}{error}") from error
        self._tell("merge", name, begun_s)

    def _has_room(self, name: str) -> bool:
        loaded_bytes = sum(self._loaded_sizes().values())
        return loaded_bytes + self._folders.size_bytes(name) <= self._settings.memory_bytes

    def _make_room(self, name: str) -> None:
        """Unload what was not used for longest until ``name`` fits; waits where everything is in use."""
        allowed_bytes = self._settings.memory_bytes - self._folders.size_bytes(name)
        self._room_wanted_s = time.monotonic()
        try:
            while (sizes := self._loaded_sizes()) and sum(sizes.values()) > allowed_bytes:
                if self._evict_one(sizes):
                    continue
                if time.monotonic() - self._room_wanted_s > self._settings.wait_s:
                    raise ModelUnavailable(
                        f"{len(sizes)} merged models are in use and fill STYLE_MERGED_MB; {name} found no room within "
                        f"{self._settings.wait_s:g} s"
                    )
                time.sleep(LOOKS_EVERY_S)
        finally:
            self._room_wanted_s = None

    def _is_ready(self, name: str) -> bool:
        """A server that is loading may be slow to say; to load what it has loaded costs nothing."""
        try:
            return self._control.is_ready(name)
        except DeadlineExceeded:
            return False

    def _is_somebody_starved(self) -> bool:
        wanted_s = self._room_wanted_s
        return wanted_s is not None and time.monotonic() - wanted_s > self._settings.fair_after_s

    def _loaded_sizes(self) -> Mapping[str, int]:
        return {name: self._folders.size_bytes(name) for name in self._control.loaded() if "--" in name}

    def _evict_one(self, names: Mapping[str, int]) -> bool:
        """Unload the one unused for longest; False where all are in use."""
        for name in sorted(names, key=self._folders.last_used_s):
            with self._folders.taken(name) as free:
                if free:
                    begun_s = time.monotonic()
                    self._control.unload(name)
                    self._tell("evict", name, begun_s)
                    LOG.info("merged model %s was unloaded: STYLE_MERGED_MB is reached", name)
                    return True
        return False

    def _tell(self, what: str, name: str, begun_s: float) -> None:
        if self._count is not None:
            self._count(name, what, time.monotonic() - begun_s)
