"""Runs an ONNX graph on this machine's CPU. The only module of export that imports ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as raised

from export.errors import ExportError

# They share no base class of their own.
_LOAD_ERRORS = (
    raised.Fail,
    raised.InvalidArgument,
    raised.InvalidGraph,
    raised.InvalidProtobuf,
    raised.NoSuchFile,
    raised.NotImplemented,
    raised.RuntimeException,
)


class Session:
    """One loaded graph."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # A waiting pool that spins takes the cores from whatever else this machine does meanwhile.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # It would fuse fp8 into its operators for int8, which then refuse it.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except _LOAD_ERRORS as error:
            raise ExportError(f"ONNX Runtime cannot load {path.parent.name}/{path.name}: {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Every output by its name."""
        return dict(zip(self._outputs, self._session.run(None, dict(inputs)), strict=True))
