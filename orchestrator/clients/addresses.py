"""Where an object lies: URIs and paths read into one checked form.

Paths to styles and signatures are written by whoever can publish a message, so this module is a security boundary: what
it returns contains no ``..``, no backslash, no control character, no user name, port or foreign host, and
:meth:`AllowedPrefixes.admit` lets through only what lies under a prefix the operator listed.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote, unquote

from orchestrator.errors import InvalidInput

Scheme = Literal["gs", "s3", "file"]

GOOGLE_HOST = "storage.googleapis.com"
MAX_KEY_BYTES = 1024  # the limit of both Google Cloud Storage and S3
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\\]")
_PATH_SAFE = "/!$&'()*+,;=:@~"


@dataclass(frozen=True, slots=True)
class Address:
    """One object, or the prefix that ``key`` names: ``key`` is the plain name, not percent-encoded, without a slash at
    either end, and empty for a whole bucket. ``bucket`` is empty for files.
    """

    scheme: Scheme
    bucket: str
    key: str

    def uri(self) -> str:
        """The address as it is written outside, percent-encoded; :func:`parse_address` reads it back unchanged."""
        return f"{self.scheme}://{self.bucket}/{quote(self.key, safe=_PATH_SAFE)}"

    def path(self) -> str:
        """The absolute path of a ``file`` address."""
        return f"/{self.key}"

    def child(self, name: str) -> "Address":
        """The object ``name`` (plain, slashes allowed) below this prefix."""
        key = f"{self.key}/{name}" if self.key else name
        _check_key(key, name)
        return Address(self.scheme, self.bucket, key)

    def within(self, prefix: "Address") -> bool:
        """Whether the address is ``prefix`` or lies below it; ``gs://b/mod`` does not hold ``gs://b/models/x``."""
        same = (self.scheme, self.bucket) == (prefix.scheme, prefix.bucket)
        return same and (not prefix.key or self.key == prefix.key or self.key.startswith(f"{prefix.key}/"))

    def resolved(self) -> "Address":
        """The address with symbolic links followed, for files; every other address is returned as it is."""
        if self.scheme != "file":
            return self
        return Address("file", "", os.path.realpath(self.path()).strip("/"))


@dataclass(frozen=True, slots=True)
class AllowedPrefixes:
    """The buckets and folders that may be read; an empty list admits nothing."""

    prefixes: tuple[Address, ...]

    @classmethod
    def parse(cls, uris: Iterable[str]) -> "AllowedPrefixes":
        """Prefixes from URIs or paths; each ends at a segment, ``file:///`` admits every file."""
        return cls(tuple(parse_address(uri) for uri in uris))

    def holds(self, address: Address) -> bool:
        """Whether the address, as it stands, lies below one of the prefixes."""
        return any(address.within(prefix.resolved()) for prefix in self.prefixes)

    def admit(self, address: Address) -> Address:
        """The address to open, links followed; raises :class:`InvalidInput` where no prefix holds it."""
        found = address.resolved()
        if self.holds(found):
            return found
        served = ", ".join(prefix.uri() for prefix in self.prefixes) or "nothing"
        raise InvalidInput(f"{address.uri()[:200]} may not be read; allowed are {served} (ALLOWED_INPUT_PREFIXES)")


def parse_address(uri: str, *, decode: bool = True) -> Address:
    """The address that ``uri`` means: ``gs://``, ``s3://``, ``file://``, a plain path, or a Google storage URL.

    URIs are percent-decoded exactly once, plain paths never; ``+`` is a plus. ``decode=False`` takes a bucket's key as
    it is written, for objects whose very names hold ``%20``. A slash at the end is dropped. Relative paths start at
    the working directory. Raises :class:`InvalidInput`.
    """
    if not uri or _CONTROL.search(uri):
        raise InvalidInput(f"{_shown(uri)} is not an address; it is empty or holds a control character or a backslash")
    match = _SCHEME.fullmatch(uri)
    if match is None:
        return _file_address(uri if uri.startswith("/") else f"{Path.cwd()}/{uri}", uri)
    scheme, rest = match[1].lower(), match[2]
    if scheme == "gs":
        return _bucket_address("gs", rest, uri, decode)
    if scheme == "s3":
        return _bucket_address("s3", rest, uri, decode)
    if scheme == "https":
        return _google_url(rest, uri, decode)
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host.lower() not in ("", "localhost") or not slash:
            raise InvalidInput(f"{_shown(uri)} names another machine; file addresses are written file:///folder/name")
        return _file_address("/" + _decoded(path, uri), uri)
    raise InvalidInput(f"{_shown(uri)} has a scheme that is not read; gs, s3, file and https://{GOOGLE_HOST}/ are")


def join(uri: str, name: str) -> str:
    """The URI of the object ``name`` (plain, not percent-encoded) in the folder ``uri``."""
    return parse_address(uri).child(name).uri()


def _bucket_address(scheme: Literal["gs", "s3"], rest: str, uri: str, decode: bool) -> Address:
    bucket, _, key = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise InvalidInput(f"{_shown(uri)} does not name a bucket; addresses are written {scheme}://bucket/name")
    name = (_decoded(key, uri) if decode else key).rstrip("/")
    if name:
        _check_key(name, uri)
    return Address(scheme, bucket, name)


def _google_url(rest: str, uri: str, decode: bool) -> Address:
    host, _, path = rest.partition("/")
    if host.lower() != GOOGLE_HOST:
        raise InvalidInput(f"{_shown(uri)} is on a host that is not read; https://{GOOGLE_HOST}/BUCKET/KEY is")
    if "?" in path or "#" in path:
        raise InvalidInput(f"{_shown(uri)} has a query or a fragment; plain https://{GOOGLE_HOST}/BUCKET/KEY is read")
    return _bucket_address("gs", path, uri, decode)


def _file_address(path: str, uri: str) -> Address:
    key = "/".join(segment for segment in path.split("/") if segment not in ("", "."))
    if key:
        _check_key(key, uri)
    return Address("file", "", key)


def _decoded(text: str, uri: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise InvalidInput(f"{_shown(uri)} is percent-encoded, but not from UTF-8") from None


def _check_key(key: str, uri: str) -> None:
    """Refuses names that could mean another place, now or after some server decodes them once more."""
    for form in (key, unquote(key), unquote(unquote(key))):
        if _CONTROL.search(form) or any(segment in ("", ".", "..") for segment in form.split("/")):
            raise InvalidInput(f"{_shown(uri)} is not a plain name; it has an empty part, '..' or a control character")
    try:
        size_bytes = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"{_shown(uri)} is not text that UTF-8 can write") from None
    if size_bytes > MAX_KEY_BYTES:
        raise InvalidInput(f"{_shown(uri)} is {size_bytes} bytes long; names up to {MAX_KEY_BYTES} bytes are read")


def _shown(uri: str) -> str:
    return repr(uri[:200])
