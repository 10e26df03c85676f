"""A layer's weight as a graph keeps it: read, changed and written back without any other change."""

import numpy as np
import pytest
from small_styles import numbers

from orchestrator.diffusion.stored_weights import StoredWeight, stored_weight
from orchestrator.errors import LoraIncompatible


def entry(**changes: object) -> StoredWeight:
    fields = {"file": "weights/a.weight", "dtype": "float32", "axes": "1,0", "dims": [3, 4]}
    return stored_weight(fields | changes)


@pytest.mark.parametrize(
    ("shape", "axes"), [((4, 3), "1,0"), ((4, 3), "0,1"), ((4, 3), "1,0,n"), ((4, 3), "n,0,1"), ((2, 3, 1, 5), "3,1,0,n,2")]
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_written_unchanged_has_the_bytes_that_were_read(shape, axes, dtype) -> None:
    tensor = numbers(*shape)
    dims = [1 if axis == "n" else shape[int(axis)] for axis in axes.split(",")]
    weight = entry(dtype=dtype, axes=axes, dims=dims)
    data = weight.data(tensor)
    assert len(data) == weight.size_bytes
    assert weight.tensor(data).shape == shape
    assert weight.data(weight.tensor(data)) == data


def test_axes_lead_back_to_the_checkpoints_tensor() -> None:
    tensor = numbers(4, 3)
    stored = np.frombuffer(entry().data(tensor), np.float32).reshape(3, 4)
    assert np.array_equal(stored, tensor.T)
    assert np.array_equal(entry().tensor(stored.tobytes()), tensor)


def test_bfloat16_is_rounded_to_the_nearest_and_ties_to_even() -> None:
    values = np.array([[1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-7, -(1 + 2**-9 + 2**-20), 3.0e38]], np.float32)
    weight = entry(dtype="bfloat16", axes="0,1", dims=[1, 6])
    told = weight.tensor(weight.data(values))[0]
    assert told[:5].tolist() == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -1.0]
    assert told[5] == pytest.approx(3.0e38, rel=2**-8)


@pytest.mark.parametrize(("dtype", "value"), [("float16", 70_000.0), ("bfloat16", 3.4e38)])
def test_a_weight_that_outgrows_its_precision_is_refused(dtype: str, value: float) -> None:
    with pytest.raises(LoraIncompatible, match=f"does not fit {dtype}"):
        entry(dtype=dtype, axes="0,1", dims=[1, 1]).data(np.array([[value]], np.float32))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dtype": "int8"}, "dtype int8"),
        ({"axes": "0,0"}, "axes 0,0"),
        ({"axes": "1,0,n", "dims": [3, 4, 2]}, "axes 1,0,n for the dimensions"),
        ({"axes": "0"}, "zip"),
    ],
)
def test_an_entry_that_makes_no_sense_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        entry(**changes)
