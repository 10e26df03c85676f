"""``gs://`` over the XML API: preconditions, checksums, and a bucket that refuses, fails and dawdles."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.clients.buckets import BucketSettings
from orchestrator.clients.storage import Storage
from orchestrator.errors import InvalidInput, ObjectExists, ObjectNotFound, StorageError
from tests.fakes.gcs import Fault, GoogleStorage, StoredObject

SIZE_BYTES = 3_000_000


@pytest.fixture
def google() -> Iterator[GoogleStorage]:
    with GoogleStorage("results", "inputs") as google:
        yield google


@pytest.fixture
def storage(google: GoogleStorage) -> Storage:
    buckets = BucketSettings(
        gcs_endpoint_url=google.url, gcs_bearer_token="token", stall_timeout_s=0.5, max_retries=2, retry_timeout_s=5
    )
    return Storage("gs://results/out", allowed_input_prefixes=["gs://inputs/models"], buckets=buckets)


def stored(google: GoogleStorage, key: str) -> StoredObject:
    return google.buckets["results"][f"out/{key}"]


def test_a_picture_keeps_its_bytes_and_headers(storage: Storage, google: GoogleStorage) -> None:
    uri = storage.result_uri("generations/gen-1.png")
    etag = storage.write(uri, b"x" * SIZE_BYTES, content_type="image/png", cache_control=Storage.IMMUTABLE)
    assert uri == "gs://results/out/generations/gen-1.png"
    assert etag
    assert storage.read(uri, limit_bytes=SIZE_BYTES) == b"x" * SIZE_BYTES
    headers = stored(google, "generations/gen-1.png").headers
    assert headers["content-type"] == "image/png"
    assert headers["cache-control"] == "public, max-age=31536000, immutable"


@pytest.mark.parametrize("key", ["한글 그림.png", "a+b", "a%2Fb", "a%20b", "100%", "a?b#c"])
def test_every_name_lies_in_the_bucket_as_it_was_meant(storage: Storage, google: GoogleStorage, key: str) -> None:
    uri = storage.result_uri(key)
    storage.write(uri, b"x", content_type="text/plain")
    assert list(google.buckets["results"]) == [f"out/{key}"]
    assert storage.read(uri, limit_bytes=1) == b"x"
    assert storage.list("gs://results/out") == (uri,)


@pytest.mark.parametrize("key", ["models/a b/한글.png", "models/a%20b/%ED%95%9C%EA%B8%80.png"])
def test_a_percent_encoded_path_finds_the_object_whether_its_name_is_encoded_or_not(
    storage: Storage, google: GoogleStorage, key: str
) -> None:
    google.put("inputs", key, b"style", {})
    uri = "gs://inputs/models/a%20b/%ED%95%9C%EA%B8%80.png"
    assert storage.inputs.exists(uri)
    assert storage.inputs.read(uri, limit_bytes=5) == b"style"
    assert storage.inputs.read(uri.replace("gs://", "https://storage.googleapis.com/"), limit_bytes=5) == b"style"


def test_another_content_is_another_version(storage: Storage, google: GoogleStorage) -> None:
    versions = []
    for content in (b"first", b"again"):
        google.put("inputs", "models/a b", content, {})
        versions.append(storage.inputs.version("gs://inputs/models/a%20b"))
    assert len(set(versions)) == 2
    with pytest.raises(ObjectNotFound):
        storage.inputs.version("gs://inputs/models/none")


def test_prefixes_may_be_percent_encoded_too(google: GoogleStorage) -> None:
    buckets = BucketSettings(gcs_endpoint_url=google.url, gcs_bearer_token="token")
    storage = Storage("gs://results/a%20b", allowed_input_prefixes=["gs://inputs/%ED%95%9C"], buckets=buckets)
    google.put("inputs", "한/style", b"x", {})
    storage.probe()
    for uri in ("gs://inputs/%ED%95%9C/style", "gs://inputs/한/style"):
        assert storage.inputs.read(uri, limit_bytes=1) == b"x"


def test_a_name_is_not_tried_as_written_where_only_the_decoded_one_is_allowed(google: GoogleStorage) -> None:
    buckets = BucketSettings(gcs_endpoint_url=google.url, gcs_bearer_token="token")
    storage = Storage("gs://results", allowed_input_prefixes=["gs://inputs/a b"], buckets=buckets)
    google.put("inputs", "a%20b/secret", b"x", {})
    with pytest.raises(ObjectNotFound):
        storage.inputs.read("gs://inputs/a%20b/secret", limit_bytes=1)


def test_of_eight_create_only_writers_one_wins(storage: Storage, google: GoogleStorage) -> None:
    def attempt(number: int) -> bool:
        try:
            storage.write(storage.result_uri("m.json"), b"%d" % number, content_type="a/b", create_only=True)
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    assert [won.index(True)] == [number for number in range(8) if won[number]]
    assert stored(google, "m.json").data == b"%d" % won.index(True)


def test_a_create_that_was_stored_and_then_answered_500_is_ours(storage: Storage, google: GoogleStorage) -> None:
    google.fail(Fault("PUT", status=500, stores=True))
    assert storage.write(storage.result_uri("m"), b"ours", content_type="a/b", create_only=True)
    assert google.count("PUT") == 2
    assert stored(google, "m").data == b"ours"


def test_a_create_that_was_refused_for_another_writer_stays_refused(storage: Storage, google: GoogleStorage) -> None:
    google.put("results", "out/m", b"same", {})
    google.fail(Fault("PUT", status=500))
    with pytest.raises(ObjectExists, match="gs://results/out/m exists already"):
        storage.write(storage.result_uri("m"), b"same", content_type="a/b", create_only=True)


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD"])
def test_a_500_is_repeated(storage: Storage, google: GoogleStorage, method: str) -> None:
    google.fail(Fault(method), Fault(method, status=503))
    uri = storage.result_uri("a")
    storage.write(uri, b"x", content_type="a/b")
    assert storage.read(uri, limit_bytes=1) == b"x"


def test_a_bucket_that_keeps_failing_is_a_retryable_error_after_three_tries(
    storage: Storage, google: GoogleStorage
) -> None:
    google.fail(*[Fault("GET")] * 9)
    with pytest.raises(StorageError, match="could not be reached") as caught:
        storage.read(storage.result_uri("a"), limit_bytes=1)
    assert caught.value.retryable
    assert google.count("GET") == 3


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_request_is_a_storage_error_without_the_token(
    storage: Storage, google: GoogleStorage, status: int
) -> None:
    google.fail(Fault("GET", status=status))
    with pytest.raises(StorageError, match="could not be reached") as caught:
        storage.read(storage.result_uri("a"), limit_bytes=1)
    assert not isinstance(caught.value, ObjectNotFound)
    assert "token" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bucket_that_hangs_is_given_up_in_seconds(storage: Storage, google: GoogleStorage) -> None:
    google.fail(*[Fault("GET", delay_s=30, status=200)] * 9)
    begun_s = time.monotonic()
    with pytest.raises(StorageError):
        storage.read(storage.result_uri("a"), limit_bytes=1)
    assert time.monotonic() - begun_s < 5


def test_a_bucket_that_is_only_slow_is_waited_for(storage: Storage, google: GoogleStorage) -> None:
    google.put("inputs", "models/a", b"x", {})
    google.fail(Fault("GET", delay_s=0.3, status=200))
    assert storage.inputs.read("gs://inputs/models/a", limit_bytes=1) == b"x"


def test_a_bit_that_flipped_on_the_way_back_is_noticed(storage: Storage, google: GoogleStorage) -> None:
    uri = storage.result_uri("a")
    storage.write(uri, b"picture", content_type="a/b")
    google.fail(Fault("GET", status=200, flips_a_bit=True))
    with pytest.raises(StorageError, match="has the SHA-256"):
        storage.read(uri, limit_bytes=7)


def test_a_store_that_keeps_fewer_bytes_than_were_sent_is_noticed(storage: Storage, google: GoogleStorage) -> None:
    google.fail(Fault("PUT", status=200, loses_a_byte=True))
    with pytest.raises(StorageError, match="is 6 bytes in the store, 7 were sent"):
        storage.write(storage.result_uri("a"), b"picture", content_type="a/b")


def test_an_object_over_the_limit_is_refused(storage: Storage, google: GoogleStorage) -> None:
    google.put("inputs", "models/a", b"x" * SIZE_BYTES, {})
    with pytest.raises(InvalidInput, match="larger than 2999999 bytes"):
        storage.inputs.read("gs://inputs/models/a", limit_bytes=SIZE_BYTES - 1)


def test_absent_objects_are_not_found_and_deleting_them_is_no_error(storage: Storage) -> None:
    uri = storage.result_uri("a")
    assert not storage.exists(uri)
    with pytest.raises(ObjectNotFound):
        storage.read(uri, limit_bytes=1)
    storage.delete(uri)


def test_a_bucket_that_does_not_exist_fails_a_write_retryably(google: GoogleStorage) -> None:
    buckets = BucketSettings(gcs_endpoint_url=google.url, gcs_bearer_token="t", max_retries=0)
    with pytest.raises(StorageError, match="bucket nowhere does not exist") as caught:
        Storage("gs://nowhere", buckets=buckets).probe()
    assert caught.value.retryable


def test_credentials_come_from_the_variables_google_documents(
    google: GoogleStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "token")
    Storage("gs://results", buckets=BucketSettings(gcs_endpoint_url=google.url)).probe()
    assert google.count("PUT") == 1


def test_an_endpoint_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "token")
    monkeypatch.setenv("GOOGLE_BASE_URL", "https://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9/results"):
        Storage("gs://results", buckets=BucketSettings(max_retries=0)).probe()


def test_the_probe_passes_and_leaves_nothing(storage: Storage, google: GoogleStorage) -> None:
    storage.probe()
    assert google.buckets["results"] == {}


@pytest.mark.parametrize("method", ["PUT", "GET"])
def test_the_probe_notices_what_is_forbidden(storage: Storage, google: GoogleStorage, method: str) -> None:
    google.fail(Fault(method, status=403))
    with pytest.raises(StorageError):
        storage.probe()


def test_messages_reach_no_other_bucket_and_not_one_request_is_made(storage: Storage, google: GoogleStorage) -> None:
    for uri in ("gs://results/out/generations/gen-1.png", "gs://inputs/secret", "gs://inputs/models/%2e%2e/secret"):
        with pytest.raises(InvalidInput):
            storage.inputs.read(uri, limit_bytes=1)
    assert google.requests == []
