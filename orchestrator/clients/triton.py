"""The networks as Triton serves them: arrays in, arrays out, float32 whatever the engines compute in."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from orchestrator.clients.kserve import Array, InferenceServer, Refusal, Signature
from orchestrator.errors import (
    DeadlineExceeded,
    GenerationFailed,
    ModelUnavailable,
    OutOfMemory,
    RemarqueError,
)

MODELS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
READY_WITHIN_S = 2.0
UNLOADED_WITHIN_S = 60.0
DEAD_UNLOADS_WITHIN_S = 1.0

Network = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]

_OUT_OF_MEMORY = ("out of memory", "bad_alloc", "failed to allocate")
_DEAD_STUB = ("stub process", "not healthy")
_UNAVAILABLE = (
    "unknown model",
    "not ready",
    "not found",
    "no available versions",
    "nan or infinity",
    "unavailable",
    "server exiting",
)


class TritonModels:
    """Fits the pipeline's ``Models``; any number of threads may call one instance.

    Every failure is one of :class:`ModelUnavailable`, :class:`DeadlineExceeded`, :class:`OutOfMemory` and
    :class:`GenerationFailed`. A model whose process died (Triton's python backend never restarts one) is unloaded and
    loaded again, once however many threads meet it, and the call is repeated once.
    """

    def __init__(
        self,
        url: str,
        *,
        models: Sequence[str] = MODELS,
        deadline_s: float = 300.0,
        load_within_s: float = 300.0,
        connect_timeout_s: float = 2.0,
    ) -> None:
        self._server = InferenceServer(url, deadline_s=deadline_s, connect_timeout_s=connect_timeout_s)
        self._models = tuple(models)
        self._load_within_s = load_within_s
        self._signatures: dict[str, Signature] = {}
        self._lock = threading.Lock()
        self._loads: dict[str, _Loads] = {}

    def encode_text(
        self, input_ids: NDArray[np.int64], model: str = "text_encoder"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Token ids [n,77] to embeddings [n,77,width] and the pooled output [n,width]."""
        outputs = self.run(model, {"input_ids": input_ids}, ("last_hidden_state", "pooler_output"))
        return _finite(model, outputs["last_hidden_state"]), _finite(model, outputs["pooler_output"])

    @contextmanager
    def conditioned(self, model: str, inputs: Mapping[str, Array]) -> Iterator[Network]:
        """``model`` on latents [n,4,h,w] and timesteps [n,1]; its other inputs stay ``inputs`` while this lasts."""

        def network(sample: NDArray[np.float32], timestep: NDArray[np.float32]) -> NDArray[np.float32]:
            outputs = self.run(model, {"sample": sample, "timestep": timestep, **inputs}, ("out_sample",))
            return _finite(model, outputs["out_sample"])

        yield network

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Latents [n,4,h,w] to pictures [n,8h,8w,3]. NaN never becomes a picture: uint8 could not show it."""
        finite = _finite("the latents before vae_decoder", latents)
        # "mean" is what the picture's values were on average before they became uint8: NaN if any of them was.
        outputs = self.run("vae_decoder", {"latent_sample": finite}, ("sample", "mean"))
        _finite("vae_decoder", outputs["mean"])
        return outputs["sample"].astype(np.uint8, copy=False)

    def encode(self, picture: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Pictures [n,8h,8w,3] to mean and standard deviation of their latents, [n,4,h,w] each."""
        outputs = self.run("vae_encoder", {"sample": picture}, ("latent_mean", "latent_std"))
        return _finite("vae_encoder", outputs["latent_mean"]), _finite("vae_encoder", outputs["latent_std"])

    def run(self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        """One execution of any model; inputs are cast to what it declares."""
        loads = self._loads_of(model)
        seen = loads.count
        try:
            return self._infer(model, inputs, outputs)
        except Refusal as refusal:
            if not _is_dead_stub(refusal):
                raise _translated(model, refusal) from refusal
        with loads.lock:
            if loads.count == seen:  # nobody revived it while this thread waited
                self._revive(model)
        try:
            return self._infer(model, inputs, outputs)
        except Refusal as refusal:
            raise _translated(model, refusal) from refusal

    def ready(self) -> tuple[str, ...]:
        """What does not answer yet: empty when every model does, ``("triton",)`` when the server does not."""
        try:
            return tuple(name for name in self._models if not self.is_ready(name))
        except (ModelUnavailable, DeadlineExceeded):
            return ("triton",)

    def load(self, model: str) -> None:
        """Load a model that lies in the server's repository; returns when it can be called."""
        self._control(model, "load")
        with self._lock:
            self._signatures.pop(model, None)
        self._loads_of(model).count += 1

    def unload(self, model: str) -> None:
        """Unload a model; returns when its memory is free."""
        self._control(model, "unload")
        if not self._gone(model, UNLOADED_WITHIN_S):
            raise ModelUnavailable(f"{model} was still unloading after {UNLOADED_WITHIN_S:g} s")

    def is_ready(self, model: str) -> bool:
        """Whether ``model`` can be called now."""
        try:
            self._server.ask("GET", f"/v2/models/{quote(model)}/ready", deadline_s=READY_WITHIN_S)
        except Refusal:
            return False
        return True

    def loaded(self) -> tuple[str, ...]:
        """The names of all models that the server holds."""
        entries: Any = self._server.ask("POST", "/v2/repository/index", {})
        return tuple(entry["name"] for entry in entries if entry.get("state") == "READY")

    def close(self) -> None:
        """Close the connections; no call may follow."""
        self._server.close()

    def _infer(self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        declared = self._signature(model).inputs
        missing = declared.keys() - inputs.keys()
        if missing or inputs.keys() - declared.keys():
            raise ModelUnavailable(
                f"{model} takes {', '.join(sorted(declared))} and this version sends {', '.join(sorted(inputs))}; "
                "build the model repository again"
            )
        cast = {name: array.astype(declared[name], copy=False) for name, array in inputs.items()}
        return self._server.infer(model, cast, outputs)

    def _signature(self, model: str) -> Signature:
        with self._lock:
            known = self._signatures.get(model)
        if known is None:
            known = self._server.signature(model)
            with self._lock:
                self._signatures[model] = known
        return known

    def _loads_of(self, model: str) -> "_Loads":
        with self._lock:
            return self._loads.setdefault(model, _Loads())

    def _control(self, model: str, action: str) -> None:
        path = f"/v2/repository/models/{quote(model)}/{action}"
        try:
            self._server.ask("POST", path, {}, deadline_s=self._load_within_s)
        except Refusal as refusal:
            raise ModelUnavailable(f"Triton did not {action} {model}: {refusal}") from refusal

    def _revive(self, model: str) -> None:
        """Load a model whose process died. Triton says for ever that it unloads, yet loads a new one beside it."""
        self._control(model, "unload")
        self._gone(model, DEAD_UNLOADS_WITHIN_S)
        self.load(model)

    def _gone(self, model: str, within_s: float) -> bool:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            entries: Any = self._server.ask("POST", "/v2/repository/index", {})
            if not any(entry["name"] == model and entry.get("state") == "UNLOADING" for entry in entries):
                return True
            time.sleep(0.02)
        return False


class _Loads:
    """How often one model was loaded by this client, and who is loading it now."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0


def _is_dead_stub(refusal: Refusal) -> bool:
    said = str(refusal).lower()
    return all(sign in said for sign in _DEAD_STUB)


def _translated(model: str, refusal: Refusal) -> RemarqueError:
    said = str(refusal).lower()
    if any(sign in said for sign in _OUT_OF_MEMORY):
        return OutOfMemory(f"{model} does not fit into the server's memory: {refusal}")
    if refusal.status in (404, 503) or any(sign in said for sign in _UNAVAILABLE) or _is_dead_stub(refusal):
        return ModelUnavailable(f"{model} is not served: {refusal}")
    return GenerationFailed(f"{model} failed: {refusal}")


def _finite(what: str, array: Array) -> NDArray[np.float32]:
    if not np.isfinite(array).all():
        raise ModelUnavailable(f"{what} held NaN or infinity")
    return array.astype(np.float32, copy=False)
