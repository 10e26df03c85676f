"""``file://`` and plain paths: whole files or none, and nothing outside the allowed folders."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from orchestrator.clients.addresses import Address
from orchestrator.clients.objects import collected
from orchestrator.clients.storage import Storage
from orchestrator.errors import ConfigError, InvalidInput, ObjectExists, ObjectNotFound, StorageError


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results 그림"


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir()
    return folder


@pytest.fixture
def storage(results: Path, inputs: Path) -> Storage:
    return Storage(str(results), allowed_input_prefixes=[str(inputs)])


def write(storage: Storage, key: str, data: bytes, *, create_only: bool = False) -> str:
    uri = storage.result_uri(key)
    storage.write(uri, data, content_type="image/png", create_only=create_only)
    return uri


@pytest.mark.parametrize("key", ["generations/gen-1.png", "한글 그림.png", "a+b", "a%2Fb", "a%20b", "100%"])
def test_what_was_written_is_read_back(storage: Storage, results: Path, key: str) -> None:
    uri = write(storage, key, b"picture")
    assert storage.exists(uri)
    assert storage.read(uri, limit_bytes=7) == b"picture"
    assert (results / key).read_bytes() == b"picture"


def test_a_result_store_may_be_written_as_a_file_uri(tmp_path: Path) -> None:
    storage = Storage(f"file://{tmp_path}/a%20b")
    write(storage, "c", b"")
    assert (tmp_path / "a b" / "c").read_bytes() == b""


def test_writing_again_replaces(storage: Storage) -> None:
    write(storage, "a", b"first, longer")
    assert storage.read(write(storage, "a", b"second"), limit_bytes=100) == b"second"


def test_another_content_is_another_version(storage: Storage, inputs: Path) -> None:
    style = inputs / "style.safetensors"
    style.write_bytes(b"first")
    first = storage.inputs.version(str(style))
    assert storage.inputs.version(str(style)) == first
    style.write_bytes(b"again")
    assert storage.inputs.version(str(style)) != first
    for absent in (inputs / "none", inputs):
        with pytest.raises(ObjectNotFound):
            storage.inputs.version(str(absent))


def test_a_create_only_write_leaves_the_first_in_place(storage: Storage) -> None:
    uri = write(storage, "a", b"first", create_only=True)
    with pytest.raises(ObjectExists):
        write(storage, "a", b"second", create_only=True)
    assert storage.read(uri, limit_bytes=100) == b"first"


def test_of_sixteen_create_only_writers_one_wins(storage: Storage, results: Path) -> None:
    def attempt(number: int) -> int | None:
        try:
            write(storage, "manifest.json", str(number).encode(), create_only=True)
        except ObjectExists:
            return None
        return number

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(attempt, range(16)) if number is not None]
    assert [str(number) for number in winners] == [(results / "manifest.json").read_text()]


def test_a_failed_write_leaves_nothing_behind(storage: Storage, results: Path) -> None:
    (results / "a").mkdir(parents=True)
    with pytest.raises(StorageError, match="could not be written"):
        write(storage, "a", b"x")
    assert list(results.rglob("*")) == [results / "a"]


def test_a_write_below_a_file_is_a_storage_error(storage: Storage) -> None:
    write(storage, "a", b"")
    with pytest.raises(StorageError, match="could not be written"):
        write(storage, "a/b", b"")


@pytest.mark.parametrize("key", ["nothing", "folder"])
def test_what_is_no_file_is_not_found(storage: Storage, results: Path, key: str) -> None:
    (results / "folder").mkdir(parents=True)
    with pytest.raises(ObjectNotFound):
        storage.read(storage.result_uri(key), limit_bytes=1)
    assert not storage.exists(storage.result_uri(key))


def test_a_pipe_is_not_found_and_does_not_block(storage: Storage, inputs: Path) -> None:
    os.mkfifo(inputs / "pipe")
    with pytest.raises(ObjectNotFound):
        storage.read(f"{inputs}/pipe", limit_bytes=1)


def test_a_file_that_may_not_be_read_is_a_storage_error(storage: Storage, inputs: Path) -> None:
    (inputs / "loop").symlink_to(inputs / "loop")
    with pytest.raises(StorageError, match="could not be read") as caught:
        storage.read(f"{inputs}/loop", limit_bytes=1)
    assert not isinstance(caught.value, ObjectNotFound)


def test_a_file_over_the_limit_is_refused_with_the_limit(storage: Storage) -> None:
    uri = write(storage, "a", b"12345")
    with pytest.raises(InvalidInput, match="larger than 4 bytes"):
        storage.read(uri, limit_bytes=4)
    assert storage.read(uri, limit_bytes=5) == b"12345"


@pytest.fixture
def endless() -> Iterator[str]:
    yield "/proc/self/maps"  # states a size of 0 and has more


def test_a_file_that_understates_its_size_is_stopped_at_the_limit(endless: str) -> None:
    storage = Storage("/nonexistent", allowed_input_prefixes=["file:///proc"])
    with pytest.raises(InvalidInput, match="larger than 100 bytes"):
        storage.read(endless, limit_bytes=100)


def test_bytes_with_another_checksum_are_refused(storage: Storage) -> None:
    uri = write(storage, "a", b"right")
    assert storage.read(uri, limit_bytes=5, expected_sha256=sha256(b"right").hexdigest().upper()) == b"right"
    with pytest.raises(StorageError, match="has the SHA-256"):
        storage.read(uri, limit_bytes=5, expected_sha256=sha256(b"wrong").hexdigest())


def test_deleting_twice_is_no_error(storage: Storage) -> None:
    uri = write(storage, "a", b"")
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)


def test_list_names_files_below_a_folder_and_no_unfinished_ones(storage: Storage, results: Path) -> None:
    uris = [write(storage, key, b"") for key in ("x/한 글", "x/a", "x/y/b", "xx")]
    (results / "x" / ".remarque-unfinished-1").touch()
    assert storage.list(storage.result_uri("x")) == tuple(sorted(uris[:3]))
    assert storage.list(storage.result_uri("x"), limit=1) == (storage.result_uri("x/a"),)
    assert storage.list(storage.result_uri("nothing")) == ()


def test_inputs_may_be_read_but_not_written(storage: Storage, inputs: Path) -> None:
    (inputs / "style").write_bytes(b"lora")
    uri = f"{inputs}/style"
    assert storage.read(uri, limit_bytes=4) == b"lora"
    with pytest.raises(InvalidInput):
        storage.write(uri, b"", content_type="text/plain")
    with pytest.raises(InvalidInput):
        storage.delete(uri)


def test_what_a_message_names_may_not_be_somebody_elses_result(storage: Storage) -> None:
    uri = write(storage, "generations/gen-1.png", b"theirs")
    with pytest.raises(InvalidInput, match="may not be read"):
        storage.inputs.read(uri, limit_bytes=10)


def test_other_places_are_neither_read_nor_looked_at(storage: Storage) -> None:
    for uri in ("/etc/passwd", "gs://bucket/a"):
        with pytest.raises(InvalidInput):
            storage.read(uri, limit_bytes=1)
        with pytest.raises(InvalidInput):
            storage.exists(uri)
        with pytest.raises(InvalidInput):
            storage.list(uri)


def test_the_probe_leaves_no_file(storage: Storage, results: Path) -> None:
    storage.probe()
    assert [path for path in results.rglob("*") if path.is_file()] == []


def test_the_probe_fails_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        Storage(f"{tmp_path}/file").probe()


@pytest.mark.parametrize(
    ("store", "prefixes", "variable"), [("x://a", [], "RESULT_STORE"), ("/a", ["http://a"], "ALLOWED_INPUT_PREFIXES")]
)
def test_a_wrong_setting_names_its_variable(store: str, prefixes: list[str], variable: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        Storage(store, allowed_input_prefixes=prefixes)


def test_a_whole_bucket_is_no_object() -> None:
    with pytest.raises(InvalidInput, match="whole store"):
        Storage("gs://bucket").read("gs://bucket/", limit_bytes=1)


def test_an_endless_object_is_read_no_further_than_its_limit() -> None:
    chunks = iter([b"1234"] * 3)
    with pytest.raises(InvalidInput, match="larger than 6 bytes"):
        collected(Address("gs", "bucket", "a"), chunks, size_bytes=0, limit_bytes=6)
    assert len(list(chunks)) == 1


def test_a_folder_that_is_named_as_a_file_leaves_no_descriptor_open(storage: Storage, inputs: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        with pytest.raises(ObjectNotFound):
            storage.inputs.read(str(inputs), limit_bytes=10)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
