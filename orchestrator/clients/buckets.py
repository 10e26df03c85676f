"""Objects in Google Cloud Storage and S3: the only module that imports obstore.

Credentials are the platform's own (workload identity, instance roles, the variables AWS and Google document), found by
obstore. Requests that may be repeated are retried by it with exponential backoff, a bounded number of times.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Lock
from typing import TYPE_CHECKING
from uuid import uuid4

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import GCSStore, S3Store

from orchestrator.clients.addresses import Address
from orchestrator.clients.objects import CHUNK_BYTES, Incoming, Outgoing, collected
from orchestrator.errors import ObjectExists, ObjectNotFound, StorageError

if TYPE_CHECKING:  # obstore has these only for type checkers
    from obstore.store import ClientConfig, GCSConfig, RetryConfig, S3Config

_WRITER = "remarque-writer"
_SHA256 = "remarque-sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketSettings:
    """How buckets are reached; the endpoints replace the providers' own, for MinIO, moto or a fake."""

    s3_endpoint_url: str | None = None
    s3_region: str | None = None
    gcs_endpoint_url: str | None = None
    gcs_bearer_token: str | None = field(default=None, repr=False)
    ca_certificates: bytes | None = None  # PEM, trusted beside the system's own
    connect_timeout_s: float = 5.0
    stall_timeout_s: float = 15.0  # no byte came for so long; a 200 MB style on a slow link is no stall
    request_timeout_s: float = 300.0
    max_retries: int = 3
    retry_timeout_s: float = 60.0


class Buckets:
    """Every bucket this process uses; one connection pool each, safe to share between threads."""

    def __init__(self, settings: BucketSettings) -> None:
        self._settings = settings
        self._stores: dict[tuple[str, str], S3Store | GCSStore] = {}
        self._lock = Lock()

    def read(self, address: Address, limit_bytes: int) -> Incoming:
        """The object, streamed; raises :class:`ObjectNotFound`, and :class:`InvalidInput` beyond the limit."""
        with _translated(address):
            result = obstore.get(self._store(address), address.key)
            chunks = (bytes(chunk) for chunk in result.stream(min_chunk_size=CHUNK_BYTES))
            data = collected(address, chunks, size_bytes=result.meta["size"], limit_bytes=limit_bytes)
            return Incoming(data, result.attributes.get(_SHA256))

    def size(self, address: Address) -> int:
        """The object's size in bytes; raises :class:`ObjectNotFound`."""
        with _translated(address):
            return int(obstore.head(self._store(address), address.key)["size"])

    def version(self, address: Address) -> str:
        """The object's etag, or when it was written where a store has none; raises :class:`ObjectNotFound`."""
        with _translated(address):
            found = obstore.head(self._store(address), address.key)
        return f"{found['e_tag'] or found['last_modified'].isoformat()}-{found['size']}"

    def write(self, address: Address, outgoing: Outgoing) -> str | None:
        """Writes the object in one request and returns its etag.

        S3 verifies the SHA-256 that goes along. The size is asked for afterwards, so that what is reported as stored
        can be read. Raises :class:`ObjectExists` where a create-only write finds somebody else's object.
        """
        writer = uuid4().hex
        attributes = {"Content-Type": outgoing.content_type, _WRITER: writer, _SHA256: outgoing.sha256}
        if outgoing.cache_control is not None:
            attributes["Cache-Control"] = outgoing.cache_control
        store = self._store(address)
        with _translated(address, writing=True):
            try:
                result = obstore.put(
                    store,
                    address.key,
                    outgoing.data,
                    attributes=attributes,
                    mode="create" if outgoing.create_only else "overwrite",
                    use_multipart=False,
                )
                etag = result["e_tag"]
            except (AlreadyExistsError, PreconditionError):
                # A server that stores and then answers 500 makes obstore's own second try come second to its first.
                etag = self._own_etag(address, writer)
        size_bytes = self.size(address)
        if size_bytes != len(outgoing.data):
            raise StorageError(f"{address.uri()} is {size_bytes} bytes in the store, {len(outgoing.data)} were sent")
        return etag

    def remove(self, address: Address) -> None:
        """Deletes the object; one that is not there is no error."""
        with _translated(address, writing=True):
            try:
                obstore.delete(self._store(address), address.key)
            except FileNotFoundError:
                return

    def names(self, address: Address, limit: int) -> list[Address]:
        """Up to ``limit`` objects below the prefix, in the store's order."""
        found: list[Address] = []
        with _translated(address):
            for page in obstore.list(self._store(address), address.key or None, chunk_size=min(limit, 1000)):
                found += [Address(address.scheme, address.bucket, meta["path"]) for meta in page]
                if len(found) >= limit:
                    break
        return found[:limit]

    def _own_etag(self, address: Address, writer: str) -> str | None:
        result = obstore.get(self._store(address), address.key, options={"head": True})
        if result.attributes.get(_WRITER) != writer:
            raise ObjectExists(f"{address.uri()} exists already")
        return result.meta["e_tag"]

    def _store(self, address: Address) -> S3Store | GCSStore:
        with self._lock:
            place = (address.scheme, address.bucket)
            if place not in self._stores:
                with _translated(address):
                    self._stores[place] = self._connect(address)
            return self._stores[place]

    def _connect(self, address: Address) -> S3Store | GCSStore:
        client, retry = self._client(address), self._retry()
        if address.scheme == "gs":
            google: GCSConfig = {}
            if self._settings.gcs_endpoint_url is not None:
                google["base_url"] = self._settings.gcs_endpoint_url
            if self._settings.gcs_bearer_token is not None:
                google["bearer_token"] = self._settings.gcs_bearer_token
            return GCSStore(address.bucket, config=google, client_options=client, retry_config=retry)
        amazon: S3Config = {"checksum_algorithm": "sha256", "disable_bulk_delete": True}
        if self._settings.s3_endpoint_url is not None:
            amazon["endpoint"] = self._settings.s3_endpoint_url
        if self._settings.s3_region is not None:
            amazon["region"] = self._settings.s3_region
        return S3Store(address.bucket, config=amazon, client_options=client, retry_config=retry)

    def _client(self, address: Address) -> "ClientConfig":
        settings = self._settings
        endpoint = settings.s3_endpoint_url if address.scheme == "s3" else settings.gcs_endpoint_url
        client: ClientConfig = {
            "connect_timeout": timedelta(seconds=settings.connect_timeout_s),
            "read_timeout": timedelta(seconds=settings.stall_timeout_s),
            "timeout": timedelta(seconds=settings.request_timeout_s),
        }
        if endpoint is not None and endpoint.startswith("http://"):
            client["allow_http"] = True
        if settings.ca_certificates is not None:
            client["root_certificate"] = settings.ca_certificates
        return client

    def _retry(self) -> "RetryConfig":
        return {
            "max_retries": self._settings.max_retries,
            "retry_timeout": timedelta(seconds=self._settings.retry_timeout_s),
            "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
        }


@contextmanager
def _translated(address: Address, *, writing: bool = False) -> Iterator[None]:
    """Turns obstore's exceptions, which carry pages of Rust debug text, into ours with its first sentence."""
    try:
        yield
    except FileNotFoundError:
        if writing:
            raise StorageError(f"bucket {address.bucket} does not exist; {address.uri()} was not written") from None
        raise ObjectNotFound(f"{address.uri()} does not exist") from None
    except (BaseError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0][:300]
        raise StorageError(f"{address.uri()} could not be reached: {reason}") from None
