"""Several Tritons as one: a job goes to the one with the fewest rows under way, and to another if that one dies."""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from orchestrator.diffusion.denoiser import Network
from orchestrator.diffusion.noise import Latents
from orchestrator.errors import DeadlineExceeded, ModelUnavailable, RemarqueError
from orchestrator.pipeline import Models

LOOKS_EVERY_S = 2.0
LOG = logging.getLogger(__name__)
Answer = TypeVar("Answer")


class Server(Models, Protocol):
    """One Triton: its networks, and the control of what it has loaded."""

    def depth(self, picture: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """``[n,s,s,3]`` to inverse depth ``[n,s,s]``, larger is nearer, in no unit."""
        ...

    def upscale(self, picture: NDArray[np.uint8], /) -> NDArray[np.uint8]:
        """``[n,h,w,3]`` to ``[n,kh,kw,3]``, ``k`` the checkpoint's ``upscale_factor``."""
        ...

    def ready(self) -> tuple[str, ...]:
        """What does not answer yet; empty when every model does."""
        ...

    def load(self, model: str) -> None: ...

    def unload(self, model: str) -> None: ...

    def is_ready(self, model: str) -> bool: ...

    def loaded(self) -> Sequence[str]: ...

    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Member:
    url: str
    server: Server
    rows: int = 0
    up: bool = True


class Endpoints:
    """Fits the pipeline's ``Models`` and the control of merged styles; any number of threads may call one instance.

    A job stays with the server it began on, where what it placed lies. A server counts as down from a call that failed
    while it was not ready until it is ready again, which is looked at every two seconds; a model's own failure is the
    job's. A merged style is loaded on one server, and its jobs go there.
    """

    def __init__(self, servers: Mapping[str, Server], *, looks_every_s: float = LOOKS_EVERY_S) -> None:
        """``servers`` by address, one at least."""
        self._members = [_Member(url, server) for url, server in servers.items()]
        self._looks_every_s = looks_every_s
        self._lock = threading.Lock()
        self._closed = threading.Event()

    def encode_text(
        self, input_ids: NDArray[np.int64], /, model: str = "text_encoder"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``[n,77] -> [n,77,width], [n,width]``."""
        return self._anywhere(model, len(input_ids), lambda server: server.encode_text(input_ids, model=model))

    @contextmanager
    def conditioned(self, model: str, inputs: Mapping[str, NDArray[Any]], /) -> Iterator[Network]:
        """``model`` as a network whose other inputs stay; it moves to another server when its own is lost."""
        placement = _Placement(self, model, inputs)
        try:
            yield placement
        finally:
            placement.leave()

    def decode(self, latents: Latents, /) -> NDArray[np.uint8]:
        """``[n,4,h,w] -> [n,8h,8w,3]``."""
        return self._anywhere("vae_decoder", len(latents), lambda server: server.decode(latents))

    def encode(self, picture: NDArray[np.uint8], /) -> tuple[Latents, Latents]:
        """``[n,8h,8w,3]`` to mean and standard deviation ``[n,4,h,w]``."""
        return self._anywhere("vae_encoder", len(picture), lambda server: server.encode(picture))

    def depth(self, picture: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """``[n,s,s,3] -> [n,s,s]``."""
        return self._anywhere("depth", len(picture), lambda server: server.depth(picture))

    def upscale(self, picture: NDArray[np.uint8], /) -> NDArray[np.uint8]:
        """``[n,h,w,3] -> [n,kh,kw,3]``."""
        return self._anywhere("upscaler", len(picture), lambda server: server.upscale(picture))

    def ready(self) -> tuple[str, ...]:
        """Empty when one server serves everything; else what the best of them lacks."""
        return min((member.server.ready() for member in self._members), key=len)

    def load(self, model: str) -> None:
        """Load ``model`` on the server with the fewest rows under way."""
        self._anywhere("", 0, lambda server: server.load(model))

    def unload(self, model: str) -> None:
        """Unload ``model`` wherever it is; a server that is down has lost it anyway."""
        for member in self._up():
            if self._serves(member, model):
                member.server.unload(model)

    def is_ready(self, model: str) -> bool:
        """Whether some server serves ``model`` now."""
        return any(self._serves(member, model) for member in self._up())

    def loaded(self) -> tuple[str, ...]:
        """Names of the models that any server holds."""
        none: Sequence[str] = ()
        held = [self._asked(member, lambda server: server.loaded(), none) for member in self._up()]
        return tuple(dict.fromkeys(name for names in held for name in names))

    def close(self) -> None:
        """Close the connections; no call may follow."""
        self._closed.set()
        for member in self._members:
            member.server.close()

    def choose(self, model: str, tried: frozenset[str]) -> _Member:
        """The untried server with the fewest rows among those that serve ``model``, which may be any for a base model.

        Raises:
            ModelUnavailable: none is left.
        """
        with self._lock:
            untried = [member for member in self._members if member.url not in tried]
            # When all are down, one of them may be back before anybody looked.
            members = [member for member in untried if member.up] or untried
            members.sort(key=lambda member: member.rows)
        for member in members:
            if "--" not in model or self._serves(member, model):
                return member
        raise ModelUnavailable(f"none of {len(self._members)} Tritons serves {model or 'another model'} now")

    def lost(self, member: _Member, error: RemarqueError) -> bool:
        """Whether ``error`` came of the server being gone; it is then left alone until it is ready again."""
        if not member.server.ready():
            return False
        with self._lock:
            watched, member.up = not member.up, False
        if not watched:
            LOG.warning("Triton at %s is down: %s", member.url, error)
            threading.Thread(target=self._watch, args=(member,), name="triton-watch", daemon=True).start()
        return True

    @contextmanager
    def counted(self, member: _Member, rows: int) -> Iterator[Server]:
        """``rows`` are under way on the server while this lasts."""
        with self._lock:
            member.rows += rows
        try:
            yield member.server
        finally:
            with self._lock:
                member.rows -= rows

    def _anywhere(self, model: str, rows: int, call: Callable[[Server], Answer]) -> Answer:
        tried: frozenset[str] = frozenset()
        while True:
            member = self.choose(model, tried)
            try:
                with self.counted(member, rows) as server:
                    return call(server)
            except (ModelUnavailable, DeadlineExceeded) as error:
                tried |= {member.url}
                if not self.lost(member, error) or len(tried) == len(self._members):
                    raise

    def _serves(self, member: _Member, model: str) -> bool:
        return self._asked(member, lambda server: server.is_ready(model), False)

    def _asked(self, member: _Member, ask: Callable[[Server], Answer], otherwise: Answer) -> Answer:
        """What the server says; ``otherwise`` where it turns out to be gone, which nobody may have met before."""
        try:
            return ask(member.server)
        except (ModelUnavailable, DeadlineExceeded) as error:
            if not self.lost(member, error):
                raise
            return otherwise

    def _up(self) -> list[_Member]:
        with self._lock:
            return [member for member in self._members if member.up]

    def _watch(self, member: _Member) -> None:
        while not self._closed.wait(self._looks_every_s):
            if not member.server.ready():
                with self._lock:
                    member.up = True
                LOG.info("Triton at %s is ready again", member.url)
                return


class _Placement:
    """One job's network on whichever server holds its inputs now; called by one thread at a time."""

    def __init__(self, endpoints: Endpoints, model: str, inputs: Mapping[str, NDArray[Any]]) -> None:
        self._endpoints = endpoints
        self._model = model
        self._inputs = inputs
        self._stack = ExitStack()
        self._placed: tuple[_Member, Network] | None = None

    def __call__(self, sample: Latents, timestep: NDArray[np.float32], /) -> Latents:
        """``[n,4,h,w], [n,1] -> [n,4,h,w]``."""
        tried: frozenset[str] = frozenset()
        while True:
            member, network = self._placed or self._place(tried)
            try:
                return network(sample, timestep)
            except (ModelUnavailable, DeadlineExceeded) as error:
                tried |= {member.url}
                self.leave()
                if not self._endpoints.lost(member, error):
                    raise

    def leave(self) -> None:
        """Take back what was placed."""
        self._placed = None
        self._stack.close()

    def _place(self, tried: frozenset[str]) -> tuple[_Member, Network]:
        member = self._endpoints.choose(self._model, tried)
        rows = max((len(array) for array in self._inputs.values()), default=1)
        server = self._stack.enter_context(self._endpoints.counted(member, rows))
        context: AbstractContextManager[Network] = server.conditioned(self._model, self._inputs)
        self._placed = member, self._stack.enter_context(context)
        return self._placed
