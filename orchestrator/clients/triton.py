"""The networks as Triton serves them: arrays in, arrays out, float32 whatever the engines compute in."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from orchestrator.clients.gate import Batch, Gate
from orchestrator.clients.kserve import Array, InferenceServer, Refusal, Signature, Turn
from orchestrator.clients.placed import OUTPUT, Floats, Placed, Places, require_inputs
from orchestrator.clients.refusals import NOT_FINITE, is_dead_stub, is_not_finite, translated
from orchestrator.clients.rows import Outputs, RowLimits, area_of, in_parts
from orchestrator.clients.shared_memory import SHARED
from orchestrator.errors import DeadlineExceeded, ModelUnavailable

MODELS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
READY_WITHIN_S = 2.0
UNLOADED_WITHIN_S = 60.0
DEAD_UNLOADS_WITHIN_S = 1.0
LOG = logging.getLogger(__name__)

Network = Callable[[Floats, Floats], Floats]


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
        ca_file: Path | None = None,
        shared_memory: Path = SHARED,
        on_batch: Callable[[Batch], None] = lambda batch: None,
    ) -> None:
        self._server = InferenceServer(url, deadline_s=deadline_s, connect_timeout_s=connect_timeout_s, ca_file=ca_file)
        self._models = tuple(models)
        self._load_within_s = load_within_s
        self._places = Places(self._server, shared_memory)
        self._on_batch = on_batch
        self._lock = threading.Lock()
        self._known: dict[str, _Served] = {}
        self._gates: dict[tuple[object, ...], Gate] = {}

    def encode_text(
        self, input_ids: NDArray[np.int64], model: str = "text_encoder"
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Token ids [n,77] to embeddings [n,77,width] and the pooled output [n,width]."""
        outputs = self.run(model, {"input_ids": input_ids}, ("last_hidden_state", "pooler_output"))
        return _finite(model, outputs["last_hidden_state"]), _finite(model, outputs["pooler_output"])

    @contextmanager
    def conditioned(self, model: str, inputs: Mapping[str, Array]) -> Iterator[Network]:
        """``model`` on latents [n,4,h,w] and timesteps [n,1]; its other inputs stay ``inputs`` while this lasts.

        The network survives a reload of the model and a restart of the server.
        """
        placed = Placed(self._server, self._places, model, inputs)
        entered: set[Gate] = set()

        def network(sample: Floats, timestep: Floats) -> Floats:
            served = self._served(model)
            gate = self._gate(served, sample, inputs.values())
            entered.add(gate)

            def part(rows: slice, alone: bool) -> Outputs:
                turn = partial(gate.turn, placed, len(sample[rows]), alone)
                return self._answered(model, lambda now: placed.call(now.signature, sample, timestep, rows, turn))

            return _finite(model, in_parts(sample, served.rows, part)[OUTPUT])

        try:
            yield network
        finally:
            for gate in entered:
                gate.leave(placed)
            placed.forget()

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Latents [n,4,h,w] to pictures [n,8h,8w,3]. NaN never becomes a picture: uint8 could not show it.

        Where the decoder answers NaN it is asked once more: what a neighbour or a glitch did to it does not repeat.
        """
        finite = _finite("the latents before vae_decoder", latents)
        try:
            return self._decoded(finite)
        except ModelUnavailable as error:
            if not is_not_finite(error):
                raise
            LOG.warning("%s; it is asked once more", error)
        return self._decoded(finite)

    def encode(self, picture: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Pictures [n,8h,8w,3] to mean and standard deviation of their latents, [n,4,h,w] each."""
        outputs = self.run("vae_encoder", {"sample": picture}, ("latent_mean", "latent_std"))
        return _finite("vae_encoder", outputs["latent_mean"]), _finite("vae_encoder", outputs["latent_std"])

    def depth(self, picture: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pictures [n,s,s,3] of the edge that the model was built for to inverse depth [n,s,s], larger is nearer."""
        return _finite("depth", self.run("depth", {"sample": picture}, ("inverse_depth",))["inverse_depth"])

    def upscale(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Pictures [n,h,w,3] to larger ones [n,kh,kw,3]."""
        return self.run("upscaler", {"sample": picture}, ("upscaled",))["upscaled"].astype(np.uint8, copy=False)

    def run(self, model: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Outputs:
        """One execution of any model, more where its rows are too many; inputs are cast to what it declares.

        Calls of equal shapes that come while one runs go together when it ends.
        """
        served, member = self._served(model), object()
        require_inputs(model, served.signature, inputs)
        first, *others = inputs.values()
        gate = self._gate(served, first, others)

        def part(rows: slice, alone: bool) -> Outputs:
            turn = partial(gate.turn, member, len(first[rows]), alone)
            return self._answered(model, lambda now: self._infer(now, inputs, rows, outputs, turn))

        try:
            return in_parts(first, served.rows, part)
        finally:
            gate.leave(member)

    def ready(self) -> tuple[str, ...]:
        """What does not answer yet: empty when every model does, ``("triton",)`` when the server does not."""
        try:
            return tuple(name for name in self._models if not self.is_ready(name))
        except (ModelUnavailable, DeadlineExceeded):
            return ("triton",)

    def is_ready(self, model: str) -> bool:
        """Whether ``model`` can be called; raises where the server does not answer."""
        try:
            self._server.ask("GET", f"/v2/models/{quote(model)}/ready", deadline_s=READY_WITHIN_S)
        except Refusal:
            return False
        return True

    def loaded(self) -> tuple[str, ...]:
        """Names of the models that the server holds."""
        return tuple(entry["name"] for entry in self._index() if entry.get("state") == "READY")

    def load(self, model: str) -> None:
        """Load a model that lies in the server's repository; returns when it can be called."""
        self._control(model, "load")
        with self._lock:
            self._known.pop(model, None)

    def unload(self, model: str) -> None:
        """Unload a model; returns when its memory is free."""
        self._control(model, "unload")
        with self._lock:  # or hundreds of merged styles a day would be known for ever
            self._known.pop(model, None)
        if not self._gone(model, UNLOADED_WITHIN_S):
            raise ModelUnavailable(f"{model} was still unloading after {UNLOADED_WITHIN_S:g} s")

    def close(self) -> None:
        """Close the connections; no call may follow."""
        self._server.close()

    def _answered(self, model: str, call: "Callable[[_Served], Outputs]") -> Outputs:
        """What ``call`` answers; where the model's process had died, it is loaded again and called once more."""
        served = self._served(model)
        try:
            return call(served)
        except Refusal as refusal:
            refused = refusal
        # While another thread loads the model anew, a call finds no version of it.
        with served.loading:
            if self._served(model) is served:
                if not is_dead_stub(refused):
                    raise translated(model, refused) from refused
                self._revive(model)
        try:
            return call(self._served(model))
        except Refusal as refusal:
            raise translated(model, refusal) from refusal

    def _decoded(self, latents: NDArray[np.float32]) -> NDArray[np.uint8]:
        # "mean" is what the picture's values were on average before they became uint8: NaN if any of them was.
        outputs = self.run("vae_decoder", {"latent_sample": latents}, ("sample", "mean"))
        _finite("vae_decoder", outputs["mean"])
        return outputs["sample"].astype(np.uint8, copy=False)

    def _infer(
        self, served: "_Served", inputs: Mapping[str, Array], rows: slice, outputs: Sequence[str], turn: Turn
    ) -> Outputs:
        declared = served.signature.inputs
        cast = {name: array[rows].astype(declared[name], copy=False) for name, array in inputs.items()}
        return self._server.infer(served.model, cast, outputs, turn)

    def _served(self, model: str) -> "_Served":
        """What is known of ``model`` since it was last loaded."""
        with self._lock:
            known = self._known.get(model)
        if known is not None:
            return known
        try:
            told = _Served(model, self._server.signature(model))
        except Refusal as refusal:
            raise translated(model, refusal) from refusal
        with self._lock:
            return self._known.setdefault(model, told)

    def _gate(self, served: "_Served", sample: Array, others: Iterable[Array]) -> Gate:
        """The gate of the calls that Triton can join with this one: of the same model and shapes."""
        key = (served, sample.shape[1:], *(array.shape[1:] for array in others))
        area = area_of(sample)
        with self._lock:
            if key not in self._gates:
                # Those of a model that was loaded anew since are of no use.
                self._gates = {old: gate for old, gate in self._gates.items() if old[0] in self._known.values()}
                self._gates[key] = Gate(served.model, partial(served.rows.at, area), self._on_batch)
            return self._gates[key]

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

    def _index(self) -> list[dict[str, str]]:
        try:
            entries: list[dict[str, str]] = self._server.ask("POST", "/v2/repository/index", {})
        except Refusal as refusal:  # a server that is about to exit lists nothing
            raise ModelUnavailable(f"Triton did not list its models: {refusal}") from refusal
        return entries

    def _gone(self, model: str, within_s: float) -> bool:
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            if not any(entry["name"] == model and entry.get("state") == "UNLOADING" for entry in self._index()):
                return True
            time.sleep(0.02)
        return False


class _Served:
    """One model since it was last loaded."""

    def __init__(self, model: str, signature: Signature) -> None:
        self.model = model
        self.signature = signature
        self.rows = RowLimits(signature.max_rows, signature.parameters)
        self.loading = threading.Lock()


def _finite(what: str, array: Array) -> NDArray[np.float32]:
    if not np.isfinite(array).all():
        raise ModelUnavailable(f"{what} held {NOT_FINITE}")
    return array.astype(np.float32, copy=False)
