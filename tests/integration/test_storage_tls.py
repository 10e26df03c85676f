"""``https://`` stores: a private authority is trusted where ``STORE_CA_FILE`` names it, and nowhere else."""

import gc
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from fakes.tls import private_authority, tls_in_front_of
from moto.server import ThreadedMotoServer

from orchestrator.app import build_buckets
from orchestrator.clients.storage import Storage
from orchestrator.config import from_environ
from orchestrator.errors import StorageError

REGION = "us-east-1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return private_authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def endpoint(authority: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 with the bucket ``results`` behind TLS."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name=REGION).create_bucket(Bucket="results")
    with tls_in_front_of(host, port, authority[1]) as tls_port:
        yield f"https://localhost:{tls_port}"
    server.stop()
    gc.collect()  # what was left open is reported here, not in whichever test the collector happens to run


def storage(endpoint: str, **more: str) -> Storage:
    settings = from_environ({"S3_ENDPOINT_URL": endpoint, "S3_REGION": REGION, **more})
    return Storage("s3://results/out", buckets=build_buckets(settings))


def test_store_behind_an_authority_of_ones_own_is_trusted_by_its_file(
    endpoint: str, authority: tuple[Path, Path]
) -> None:
    trusting = storage(endpoint, STORE_CA_FILE=str(authority[0]))
    uri = trusting.result_uri("generations/gen-1.png")
    trusting.write(uri, b"picture", content_type="image/png", create_only=True)
    assert trusting.read(uri, limit_bytes=100) == b"picture"


def test_store_of_an_unknown_authority_is_refused(endpoint: str) -> None:
    with pytest.raises(StorageError):
        storage(endpoint).probe()
