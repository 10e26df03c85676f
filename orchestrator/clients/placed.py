"""One job's rows of one model: what stays the same between its steps is placed once, what changes is written over.

Where the server sees this process's shared memory, a step is a few hundred bytes of text; elsewhere everything travels
with every step.
"""

import logging
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from orchestrator.clients.kserve import (
    Array,
    InferenceServer,
    Message,
    Refusal,
    Signature,
    Turn,
    bytes_of,
    described_by_place,
    described_by_value,
)
from orchestrator.clients.refusals import is_unknown_region
from orchestrator.clients.shared_memory import PREFIX, SHARED, Region, left_behind
from orchestrator.errors import ModelUnavailable, RemarqueError

OUTPUT = "out_sample"
REFUSED_FOR_S = 300.0
"""How long a server that refused shared memory is not asked for it again."""
BUSY_FOR_S = 600.0
"""How long memory is left to a server that never answered: it may still be writing there."""
_REGIONS = "/v2/systemsharedmemory"
LOG = logging.getLogger(__name__)

Floats = NDArray[np.float32]


class Places:
    """Shared memory of one server, as long as it allows any."""

    def __init__(self, server: InferenceServer, folder: Path = SHARED) -> None:
        self._server = server
        self._folder = folder
        self._lock = threading.Lock()
        self._swept = False
        self._said = False
        self._refused_until_s = 0.0
        self._busy: list[tuple[float, Region]] = []

    def take(self, sizes: Mapping[str, tuple[tuple[int, ...], "np.dtype[Any]"]]) -> Region | None:
        """A region that the server has registered; None where that cannot be, which is said once."""
        with self._lock:
            if time.monotonic() < self._refused_until_s:
                return None
        region = None
        try:
            region = Region(sizes, self._folder)
            document = {"key": f"/{region.name}", "offset": 0, "byte_size": region.size_bytes}
            self._server.ask("POST", f"{_REGIONS}/region/{quote(region.name)}/register", document)
        except (OSError, Refusal) as error:
            if region is not None:
                region.close()
            self._refused(error)
            return None
        except RemarqueError:
            if region is not None:
                region.close()
            raise
        self._sweep()
        return region

    def give_back(self, region: Region, *, busy: bool) -> None:
        """The server lets go of ``region``; later, where it may still be at work on it."""
        now_s = time.monotonic()
        with self._lock:
            self._busy.append((now_s + BUSY_FOR_S if busy else now_s, region))
            due = [entry for entry in self._busy if entry[0] <= now_s]
            self._busy = [entry for entry in self._busy if entry[0] > now_s]
        region.close()
        for _, each in due:
            self._unregister(each.name)

    def _unregister(self, name: str) -> None:
        with suppress(RemarqueError, Refusal):  # a server that is gone keeps nothing
            self._server.ask("POST", f"{_REGIONS}/region/{quote(name)}/unregister", {})

    def _refused(self, error: Exception) -> None:
        with self._lock:
            self._refused_until_s = time.monotonic() + REFUSED_FOR_S
            first, self._said = not self._said, True
        if first:
            LOG.info(
                "%s shares no memory with this process (%s); tensors travel with every step", self._server.url, error
            )

    def _sweep(self) -> None:
        """Once: what dead processes left in the folder and, now that it is known to be the same, in the server."""
        with self._lock:
            if self._swept:
                return
            self._swept = True
        for name in left_behind(self._folder):
            LOG.info("%s was left behind by a process that died; it is removed", name)
        with suppress(RemarqueError, Refusal):
            entries = self._server.ask("GET", f"{_REGIONS}/status")
            for entry in entries if isinstance(entries, list) else ():
                name = str(entry["name"])
                if name.startswith(PREFIX) and not (self._folder / name).exists():
                    self._unregister(name)


@dataclass(slots=True)
class _Tensors:
    """Arrays as the server wants them, in shared memory or in our own, and the messages that name them."""

    signature: Signature
    arrays: Mapping[str, Array]
    region: Region | None
    messages: dict[tuple[int, int], Message] = field(default_factory=dict)


class Placed:
    """The tensors of one job, as many calls as it makes; one thread at a time."""

    def __init__(self, server: InferenceServer, places: Places, model: str, inputs: Mapping[str, Array]) -> None:
        self._server = server
        self._places = places
        self._model = model
        self._inputs = inputs
        self._tensors: _Tensors | None = None
        self._busy = False

    def call(self, signature: Signature, sample: Floats, timestep: Floats, rows: slice, turn: Turn) -> dict[str, Array]:
        """The output of some rows, float32; sample [n,c,h,w] and timestep [n,1] hold all of the job's.

        A server that was started anew since the last step does not know the shared memory; it is given another, once.
        """
        try:
            return self._called(signature, sample, timestep, rows, turn)
        except Refusal as refusal:
            if not is_unknown_region(refusal):
                raise
            self.forget()
        return self._called(signature, sample, timestep, rows, turn)

    def _called(
        self, signature: Signature, sample: Floats, timestep: Floats, rows: slice, turn: Turn
    ) -> dict[str, Array]:
        tensors = self._filled(signature, sample, timestep, rows)
        key = rows.start, rows.stop
        if key not in tensors.messages:
            tensors.messages[key] = self._message(tensors, rows)
        self._busy = True
        try:
            answer = self._server.send(tensors.messages[key], turn)
        except Refusal:
            self._busy = False
            raise
        self._busy = False
        if tensors.region is None:
            outputs = self._server.outputs_of(tensors.messages[key], answer, (OUTPUT,), len(sample[rows]))
            return {OUTPUT: outputs[OUTPUT].astype(np.float32, copy=False)}
        return {OUTPUT: tensors.arrays[OUTPUT][rows].astype(np.float32)}

    def forget(self) -> None:
        """Give the shared memory back; the next call takes another."""
        tensors, self._tensors = self._tensors, None
        if tensors is not None and tensors.region is not None:
            self._places.give_back(tensors.region, busy=self._busy)

    def _filled(self, signature: Signature, sample: Floats, timestep: Floats, rows: slice) -> _Tensors:
        tensors = self._tensors
        if tensors is None or tensors.signature is not signature or tensors.arrays["sample"].shape != sample.shape:
            self.forget()
            tensors = self._tensors = self._placed(signature, sample, timestep)
        tensors.arrays["sample"][rows] = sample[rows]
        tensors.arrays["timestep"][rows] = timestep[rows]
        return tensors

    def _placed(self, signature: Signature, sample: Floats, timestep: Floats) -> _Tensors:
        given = {"sample": sample, "timestep": timestep, **self._inputs}
        require_inputs(self._model, signature, given)
        sizes = {name: (array.shape, signature.inputs[name]) for name, array in given.items()}
        region = self._places.take(sizes | {OUTPUT: (sample.shape, signature.outputs[OUTPUT])})
        if region is None:
            arrays: Mapping[str, Array] = {name: np.empty(*size) for name, size in sizes.items()}
        else:
            arrays = region.arrays
        for name, array in self._inputs.items():
            arrays[name][...] = array
        return _Tensors(signature, arrays, region)

    def _message(self, tensors: _Tensors, rows: slice) -> Message:
        parts = {name: array[rows] for name, array in tensors.arrays.items()}
        region = tensors.region
        if region is None:
            described = [described_by_value(name, array) for name, array in parts.items()]
            by_value = {"name": OUTPUT, "parameters": {"binary_data": True}}
            return self._server.message(
                self._model, described, [by_value], [bytes_of(array) for array in parts.values()]
            )
        places = {
            name: described_by_place(name, array, region.name, region.offsets[name] + rows.start * array[0].nbytes)
            for name, array in parts.items()
        }
        wanted = places.pop(OUTPUT)
        return self._server.message(
            self._model, list(places.values()), [{k: wanted[k] for k in ("name", "parameters")}], []
        )


def require_inputs(model: str, signature: Signature, inputs: Mapping[str, Array]) -> None:
    """Refuses what another version of the repository would be sent."""
    if signature.inputs.keys() != inputs.keys():
        raise ModelUnavailable(
            f"{model} takes {', '.join(sorted(signature.inputs))} and this version sends {', '.join(sorted(inputs))}; "
            "build the model repository again"
        )
