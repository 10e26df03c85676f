"""``s3://`` against moto's server, over real HTTP and signatures."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from uuid import uuid4

import boto3
import pytest
from moto.server import ThreadedMotoServer

from orchestrator.clients.buckets import BucketSettings
from orchestrator.clients.storage import Storage
from orchestrator.errors import InvalidInput, ObjectExists, ObjectNotFound, StorageError

REGION = "us-east-1"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    name = f"results-{uuid4().hex}"
    boto3.client("s3", endpoint_url=endpoint, region_name=REGION).create_bucket(Bucket=name)
    return name


@pytest.fixture
def storage(endpoint: str, bucket: str) -> Storage:
    buckets = BucketSettings(s3_endpoint_url=endpoint, s3_region=REGION, max_retries=1)
    return Storage(f"s3://{bucket}/out", allowed_input_prefixes=[f"s3://{bucket}/models"], buckets=buckets)


def test_a_picture_keeps_its_bytes_and_headers(storage: Storage, endpoint: str, bucket: str) -> None:
    uri = storage.result_uri("generations/gen-1.png")
    data = bytes(range(256)) * 20_000
    assert storage.write(uri, data, content_type="image/png", cache_control=Storage.IMMUTABLE)
    assert storage.read(uri, limit_bytes=len(data)) == data
    client = boto3.client("s3", endpoint_url=endpoint, region_name=REGION)
    found = client.head_object(Bucket=bucket, Key="out/generations/gen-1.png")
    assert found["ContentType"] == "image/png"
    assert found["CacheControl"] == Storage.IMMUTABLE
    assert found["Metadata"]["remarque-sha256"] == sha256(data).hexdigest()


@pytest.mark.parametrize("key", ["한글 그림.png", "a+b", "a%2Fb", "a%20b", "100%"])
def test_every_name_lies_in_the_bucket_as_it_was_meant(storage: Storage, endpoint: str, bucket: str, key: str) -> None:
    uri = storage.result_uri(key)
    storage.write(uri, b"x", content_type="text/plain")
    client = boto3.client("s3", endpoint_url=endpoint, region_name=REGION)
    assert [found["Key"] for found in client.list_objects_v2(Bucket=bucket)["Contents"]] == [f"out/{key}"]
    assert storage.read(uri, limit_bytes=1) == b"x"
    assert storage.list(f"s3://{bucket}/out") == (uri,)


def test_of_eight_create_only_writers_one_wins(storage: Storage) -> None:
    uri = storage.result_uri("m.json")

    def attempt(number: int) -> bool:
        try:
            storage.write(uri, b"%d" % number, content_type="application/json", create_only=True)
        except ObjectExists:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(attempt, range(8)))
    assert won.count(True) == 1
    assert storage.read(uri, limit_bytes=1) == b"%d" % won.index(True)


def test_absent_objects_are_not_found_and_deleting_them_is_no_error(storage: Storage) -> None:
    uri = storage.result_uri("a")
    assert not storage.exists(uri)
    with pytest.raises(ObjectNotFound):
        storage.read(uri, limit_bytes=1)
    storage.delete(uri)


def test_a_deleted_object_is_gone(storage: Storage) -> None:
    uri = storage.result_uri("a b")
    storage.write(uri, b"x", content_type="text/plain")
    storage.delete(uri)
    assert not storage.exists(uri)


def test_lists_go_on_beyond_one_page_and_stop_at_the_limit(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "5")
    uris = [storage.result_uri(f"l/{number:04}") for number in range(12)]
    for uri in uris:
        storage.write(uri, b"", content_type="text/plain")
    assert storage.list(storage.result_uri("l")) == tuple(uris)
    assert storage.list(storage.result_uri("l"), limit=7) == tuple(uris[:7])


def test_an_object_over_the_limit_is_refused(storage: Storage, endpoint: str, bucket: str) -> None:
    boto3.client("s3", endpoint_url=endpoint, region_name=REGION).put_object(
        Bucket=bucket, Key="models/a", Body=b"12345"
    )
    with pytest.raises(InvalidInput, match="larger than 4 bytes"):
        storage.inputs.read(f"s3://{bucket}/models/a", limit_bytes=4)


def test_the_probe_passes_and_leaves_nothing(storage: Storage, bucket: str) -> None:
    storage.probe()
    assert storage.list(f"s3://{bucket}/out") == ()


def test_region_and_endpoint_may_come_from_the_environment(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:9"):
        Storage(f"s3://{bucket}", buckets=BucketSettings(max_retries=0)).probe()


def test_a_store_that_is_down_is_a_retryable_error() -> None:
    buckets = BucketSettings(s3_endpoint_url="http://127.0.0.1:9", s3_region=REGION, max_retries=0)
    with pytest.raises(StorageError) as caught:
        Storage("s3://results", buckets=buckets).probe()
    assert caught.value.retryable
