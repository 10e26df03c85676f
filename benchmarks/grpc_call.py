"""The same call by Triton's gRPC client, for the record: ``tritonclient`` is the extra that measuring may have."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KINDS = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "uint8": "UINT8"}


def grpc_caller(address: str, model: str, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object] | None:
    """A call of ``model`` whose tensors all travel; None where tritonclient's gRPC part is not installed."""
    try:
        import tritonclient.grpc as grpc
    except (ImportError, RuntimeError):  # tritonclient without its extra "grpc" says so by a RuntimeError
        return None
    client = grpc.InferenceServerClient(address)

    def call() -> object:
        sent = []
        for name, array in inputs.items():
            tensor = grpc.InferInput(name, array.shape, _KINDS[array.dtype.name])
            tensor.set_data_from_numpy(np.ascontiguousarray(array))
            sent.append(tensor)
        return client.infer(model, sent, outputs=[grpc.InferRequestedOutput("out_sample")]).as_numpy("out_sample")

    return call
