"""A model repository as export/ leaves it for merging, with weights of the small UNet and text encoder in it."""

import json
from pathlib import Path

import numpy as np
from small_styles import LAYERS, numbers

from orchestrator.diffusion.stored_weights import stored_weight

# How a layer may lie on disk: linear ones transposed, of one layer a second copy, convolutions as they are.
LINEAR_AXES = "1,0"


def base_weight(network: str, layer: str) -> np.ndarray:
    return numbers(*LAYERS[network][layer], seed=len(layer))


def write_models(repository: Path, dtype: str = "float32") -> Path:
    """``unet`` and ``text_encoder`` with graphs that are texts and weights that are numbers."""
    for network, layers in LAYERS.items():
        folder = repository / network
        (folder / "1" / "weights").mkdir(parents=True)
        (folder / "1" / "model.onnx").write_text("a graph")
        (folder / "1" / "model.onnx.data").write_bytes(bytes(1000))
        (folder / "config.pbtxt").write_text(f'name: "{network}"\nbackend: "python"\n')
        table = {}
        for layer in layers:
            entries = [_entry(f"weights/{layer}.weight", dtype, layers[layer])]
            if layer.endswith("fc1"):
                entries.append(_entry(f"weights/{layer}.second.weight", dtype, layers[layer], "0,n,1"))
            for entry in entries:
                (folder / "1" / str(entry["file"])).write_bytes(stored_weight(entry).data(base_weight(network, layer)))
            table[layer] = entries
        (folder / "weights.json").write_text(json.dumps({"format": 1, "layers": table}))
    return repository


def read_weight(folder: Path, base: Path, layer: str, which: int = 0) -> np.ndarray:
    """The layer's weight in the merged model ``folder``, where the model ``base`` says that it lies."""
    entry = stored_weight(json.loads((base / "weights.json").read_text())["layers"][layer][which])
    return entry.tensor((folder / "1" / entry.file).read_bytes())


def _entry(file: str, dtype: str, shape: tuple[int, ...], axes: str | None = None) -> dict[str, object]:
    axes = axes or (LINEAR_AXES if len(shape) == 2 else "0,1,2,3")
    dims = [1 if axis == "n" else shape[int(axis)] for axis in axes.split(",")]
    return {"file": file, "dtype": dtype, "axes": axes, "dims": dims}
