"""How long the networks work for a job, measured around every call of them; a job has a thread of its own.

What is measured is what the caller waits: the time in the network, in the queue before it and on the way there.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.diffusion.denoiser import Network
from orchestrator.diffusion.noise import Latents

Listen = Callable[[str, float], None]
"""Hears the name of a model and the seconds of one call of it, also where it broke."""


@dataclass(slots=True)
class Meter:
    """What this thread's calls took so far."""

    seconds: float = 0.0


_METER: ContextVar[Meter | None] = ContextVar("meter of the networks", default=None)


@contextmanager
def metered() -> Iterator[Meter]:
    """A meter of the calls that this thread makes while this lasts; one around it hears of them too."""
    around, meter = _METER.get(), Meter()
    token = _METER.set(meter)
    try:
        yield meter
    finally:
        _METER.reset(token)
        if around is not None:
            around.seconds += meter.seconds


class Networks(Protocol):
    """What is measured: see the protocols of the pipeline and of its servers."""

    def encode_text(
        self, input_ids: NDArray[np.int64], /, model: str = "text_encoder"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...

    def conditioned(self, model: str, inputs: Mapping[str, NDArray[Any]], /) -> AbstractContextManager[Network]: ...

    def decode(self, latents: Latents, /) -> NDArray[np.uint8]: ...

    def encode(self, picture: NDArray[np.uint8], /) -> tuple[Latents, Latents]: ...

    def depth(self, picture: NDArray[np.uint8], /) -> NDArray[np.float32]: ...

    def upscale(self, picture: NDArray[np.uint8], /) -> NDArray[np.uint8]: ...


class MeteredNetworks:
    """The same networks, measured; fits what they fit."""

    def __init__(self, networks: Networks, listen: Listen) -> None:
        self._networks = networks
        self._listen = listen

    def encode_text(
        self, input_ids: NDArray[np.int64], /, model: str = "text_encoder"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``[n,77] -> [n,77,width], [n,width]``."""
        with self._call(model):
            return self._networks.encode_text(input_ids, model=model)

    @contextmanager
    def conditioned(self, model: str, inputs: Mapping[str, NDArray[Any]], /) -> Iterator[Network]:
        """``model`` as a network whose other inputs stay what they are."""
        with self._networks.conditioned(model, inputs) as network:

            def measured(sample: Latents, timestep: NDArray[np.float32]) -> Latents:
                with self._call(model):
                    return network(sample, timestep)

            yield measured

    def decode(self, latents: Latents, /) -> NDArray[np.uint8]:
        """``[n,4,h,w] -> [n,8h,8w,3]``."""
        with self._call("vae_decoder"):
            return self._networks.decode(latents)

    def encode(self, picture: NDArray[np.uint8], /) -> tuple[Latents, Latents]:
        """``[n,8h,8w,3]`` to mean and standard deviation ``[n,4,h,w]``."""
        with self._call("vae_encoder"):
            return self._networks.encode(picture)

    def depth(self, picture: NDArray[np.uint8], /) -> NDArray[np.float32]:
        """``[n,s,s,3] -> [n,s,s]``."""
        with self._call("depth"):
            return self._networks.depth(picture)

    def upscale(self, picture: NDArray[np.uint8], /) -> NDArray[np.uint8]:
        """``[n,h,w,3] -> [n,kh,kw,3]``."""
        with self._call("upscaler"):
            return self._networks.upscale(picture)

    @contextmanager
    def _call(self, model: str) -> Iterator[None]:
        begun_s = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begun_s
            self._listen(model, seconds)
            if (meter := _METER.get()) is not None:
                meter.seconds += seconds
