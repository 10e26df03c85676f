"""Safetensors files from strangers: what is read, and the sentence that every other file gets."""

import io
import json
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save
from small_styles import kohya_style, numbers

from orchestrator.clients.weights import MAX_HEADER_BYTES, read_weights
from orchestrator.errors import LoraIncompatible


def file_of(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: object = (2, 2), dtype: object = "F32", begin: object = 0, end: object = 16) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps({"a": 1}))
    return buffer.getvalue()


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("the pickle was opened",)


def test_tensors_keep_their_precision_and_give_their_numbers_in_float32() -> None:
    half = numbers(3, 2).astype(np.float16)
    found = read_weights(save({"a": half, "b": numbers(4)}, {"ss_tag": "ink"}))
    assert found.tensors["a"].stored.dtype == np.float16
    assert np.array_equal(found.tensors["a"].values(), half.astype(np.float32))
    assert (found.dtypes, found.metadata) == (("F16", "F32"), {"ss_tag": "ink"})


def test_bfloat16_is_read_without_a_library_that_knows_it() -> None:
    numbers_ = np.array([[1.0, -2.5], [3.0e38, 1.0e-40]], np.float32)
    bits = (numbers_.view(np.uint32) >> 16).astype("<u2")
    found = read_weights(file_of({"a": entry(dtype="BF16", end=8)}, bits.tobytes()))
    assert np.array_equal(found.tensors["a"].values(), (bits.astype(np.uint32) << 16).view(np.float32))


def test_an_alpha_may_be_a_whole_number() -> None:
    assert read_weights(save({"a": np.array(32, np.int64)})).tensors["a"].values() == 32.0


def test_the_files_hash_names_it() -> None:
    assert read_weights(kohya_style()).sha256 != read_weights(kohya_style(rank=3)).sha256


TWICE = (
    b'{"a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}, "a": {"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
)
REFUSED = {
    "an empty file": (b"", "the file is empty"),
    "a torch pickle": (zipped(), "a zip archive, as torch.save writes its pickles"),
    "a bare pickle": (pickle.dumps(Bomb(), protocol=4), "a Python pickle, which is never opened"),
    "a web page": (b"<html><body>404</body></html>", "a web page"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "noise": (bytes(range(64)), "no safetensors file"),
    "a header of 100 MB": (file_of({}, length=100_000_000), f"the header is 100000000 bytes; up to {MAX_HEADER_BYTES}"),
    "a header beyond the file": (file_of({}, length=5_000), "its header is 5000 bytes, the whole file 10"),
    "broken JSON": (file_of(b"{'a': 1}"), "the header is not JSON"),
    "deep JSON": (file_of(b'{"a":' + b"[" * 100_000), "the header is not JSON"),
    "an endless number": (file_of(b'{"a":' + b"9" * 5_000 + b"}"), "the header is not JSON"),
    "one name twice": (file_of(TWICE, bytes(4)), "the header names a twice"),
    "no entry": (file_of({"a": 1}), "a is no entry of dtype, shape and data_offsets"),
    "remarks of numbers": (file_of({"__metadata__": {"a": 1}}), "no object of texts"),
    "a truncated file": (kohya_style()[:-1], "the file is cut short"),
    "a longer file": (kohya_style() + b"x", "the file is too long"),
    "eight-bit weights": (file_of({"a": entry(dtype="F8_E4M3", end=4)}, bytes(4)), "a is stored as F8_E4M3; F16, BF16"),
    "double precision": (file_of({"a": entry(dtype="F64", end=32)}, bytes(32)), "a is stored as F64"),
    "a list for a type": (file_of({"a": entry(dtype=["F32"])}, bytes(16)), "is stored as"),
    "an absurd shape": (file_of({"a": entry(shape=[1 << 47, 1 << 47])}, bytes(16)), "in 16 bytes"),
    "a negative side": (file_of({"a": entry(shape=[-2, -2])}, bytes(16)), "has the shape [-2, -2]"),
    "a side that is no number": (file_of({"a": entry(shape=[True, 4])}, bytes(16)), "has the shape [True, 4]"),
    "nothing in it": (file_of({"a": entry(shape=[0, 4], end=0)}), "tensors without numbers"),
    "too many sides": (file_of({"a": entry(shape=[1] * 9, end=4)}, bytes(4)), "the file is broken"),
    "a shape that lies": (file_of({"a": entry(shape=[2, 3])}, bytes(16)), "24 are expected"),
    "a gap": (file_of({"a": entry(begin=4, end=20)}, bytes(20)), "begins at byte 4 of the data; 0 is expected"),
    "an overlap": (file_of({"a": entry(), "b": entry(begin=8, end=24)}, bytes(24)), "b begins at byte 8"),
}


@pytest.mark.parametrize(("data", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_no_sound_file_is_refused_with_the_reason(
    data: bytes, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(LoraIncompatible) as refusal:
        read_weights(data)
    assert told in str(refusal.value)
    assert len(str(refusal.value)) < 400
    assert "opened" not in capsys.readouterr().out


def test_a_header_that_promises_much_costs_no_memory() -> None:
    tracemalloc.start()
    with pytest.raises(LoraIncompatible):
        read_weights(file_of({"a": entry(shape=[1 << 40], dtype="F16", end=1 << 41)}))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


SOUND = kohya_style()


@given(st.integers(0, len(SOUND) - 1), st.binary(max_size=6))
@example(0, b"\xff" * 8)
def test_any_damage_is_refused_or_leaves_a_sound_file(place: int, bytes_: bytes) -> None:
    damaged = SOUND[:place] + bytes_ + SOUND[place + len(bytes_) :]
    try:
        found = read_weights(damaged)
    except LoraIncompatible:
        return
    assert sum(tensor.stored.nbytes for tensor in found.tensors.values()) < len(damaged)


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "", None]),
                "shape": st.lists(st.integers(-1, 4) | st.floats() | st.none(), max_size=3),
                "data_offsets": st.lists(st.integers(-1, 64), max_size=3),
            }
        )
        | st.none(),
        max_size=4,
    ),
    st.binary(max_size=64),
)
def test_any_header_is_refused_or_means_what_it_says(header: dict[str, object], data: bytes) -> None:
    try:
        found = read_weights(file_of(header, data))
    except LoraIncompatible:
        return
    assert found.tensors.keys() == header.keys() - {"__metadata__"}
    assert all(list(tensor.shape) == header[name]["shape"] for name, tensor in found.tensors.items())  # type: ignore[index]
