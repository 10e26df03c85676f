"""Real-shaped inputs for perf_analyzer, and the look at the answers that perf_analyzer itself never takes.

    python3 benchmarks/perf_inputs.py --url http://127.0.0.1:8000 --model unet --out DIR

writes ``DIR/unet.json`` (input data) and ``DIR/unet.shapes`` (the flags for open dimensions), then asks the model twice
and ends with 1 where an answer is not finite, has the wrong shape or is the same for different inputs: a python backend
with a wrong numpy answers nothing at full speed. Only the standard library, so that it runs in NVIDIA's SDK container.
"""

import argparse
import json
import math
import random
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENTRIES = 4
TOKENS = 77
TOKEN_IDS = 256
"""Ids below this are in every vocabulary."""


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True)
    parser.add_argument("--size", type=int, default=512, metavar="PX", help="edge of the picture")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    try:
        told = _ask(f"{arguments.url}/v2/models/{arguments.model}")
        entries = [_entry(told["inputs"], arguments.size, seed) for seed in range(ENTRIES)]
        reason = wrong_answer([_infer(arguments.url, told, entry) for entry in entries[:2]])
    except (OSError, urllib.error.URLError) as error:
        reason = f"no answer: {error}"
    if reason:
        print(f"{arguments.model} at {arguments.url}: {reason}", file=sys.stderr)
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{arguments.model}.json").write_text(json.dumps({"data": entries}))
    shapes = [f"--shape={name}:{','.join(map(str, tensor['shape']))}" for name, tensor in entries[0].items()]
    (arguments.out / f"{arguments.model}.shapes").write_text(" ".join(shapes))
    return 0


def wrong_answer(answers: list[dict[str, Any]]) -> str:
    """Why these two answers cannot be right; empty where nothing speaks against them."""
    for tensor in (tensor for answer in answers for tensor in answer["outputs"]):
        values = tensor["data"]
        if len(values) != math.prod(tensor["shape"]) or not values:
            return f"output {tensor['name']} of shape {tensor['shape']} holds {len(values)} values"
        if not all(math.isfinite(value) for value in values):
            return f"output {tensor['name']} holds NaN or infinity"
    first, second = (answer["outputs"][0] for answer in answers)
    if first["data"] == second["data"]:
        return f"output {first['name']} is the same for different inputs"
    return ""


def _entry(inputs: list[dict[str, Any]], size: int, seed: int) -> dict[str, Any]:
    """One row of every input."""
    draw = random.Random(seed)
    made = {}
    for tensor in inputs:
        dims = [TOKENS] if tensor["name"] == "encoder_hidden_states" else [size // 8, size // 8]
        if tensor["datatype"] == "UINT8":
            dims = [size, size]
        shape = [dim if dim > 0 else dims.pop(0) for dim in tensor["shape"][1:]]
        value = _value(tensor["name"], tensor["datatype"], draw)
        made[tensor["name"]] = {"content": [value() for _ in range(math.prod(shape))], "shape": shape}
    return made


def _value(name: str, datatype: str, draw: random.Random) -> Callable[[], float]:
    if name == "timestep":
        return lambda: 500.0
    if name == "style":
        return lambda: 0.0
    if datatype in ("INT64", "UINT8"):
        return lambda: draw.randrange(TOKEN_IDS)
    return lambda: round(draw.gauss(0.0, 1.0), 4)


def _infer(url: str, told: dict[str, Any], entry: dict[str, Any]) -> dict[str, Any]:
    types = {tensor["name"]: tensor["datatype"] for tensor in told["inputs"]}
    inputs = [
        {"name": name, "datatype": types[name], "shape": [1, *tensor["shape"]], "data": tensor["content"]}
        for name, tensor in entry.items()
    ]
    return _ask(f"{url}/v2/models/{told['name']}/infer", {"inputs": inputs})


def _ask(url: str, document: object = None) -> dict[str, Any]:
    body = None if document is None else json.dumps(document).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=300) as answer:
        told: dict[str, Any] = json.load(answer)
        return told


if __name__ == "__main__":
    raise SystemExit(main())
