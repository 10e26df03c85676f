"""Which server a URL means: origins in one canonical spelling, so that comparing strings compares servers."""

import re
from ipaddress import AddressValueError, IPv6Address
from urllib.parse import urlsplit

from orchestrator.errors import InvalidInput

_DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_AUTHORITY_END = re.compile(r"[/?#]")
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f\\]")  # urlsplit drops some of these, browsers read others as slashes


def origin_of(url: str) -> str:
    """Scheme, host and port of an http or https URL: lower case, ASCII (IDNA), no default port, no dot at the end.

    Callers connect to what is returned, never to the host as it was spelled, so two ways of reading one spelling cannot
    part the check from the call. Raises :class:`InvalidInput` for user names, other schemes and what is no host.
    """
    if "@" in _AUTHORITY_END.split(url.partition("//")[2])[0]:
        raise InvalidInput("a URL holds a user name or a password; it is written https://host/ without them")
    shown = repr(url[:200])
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise InvalidInput(f"{shown} is not a URL") from None
    if _NOT_IN_URLS.search(url) or parts.scheme not in _DEFAULT_PORTS or "@" in parts.netloc:
        raise InvalidInput(f"{shown} is not an http or https URL")
    if port == 0:
        raise InvalidInput(f"{shown} has port 0; 1 to 65535 are ports")
    name = _ipv6(host, shown) if parts.netloc.startswith("[") else _name(host, shown)
    suffix = "" if port in (None, _DEFAULT_PORTS[parts.scheme]) else f":{port}"
    return f"{parts.scheme}://{name}{suffix}"


def _ipv6(host: str, shown: str) -> str:
    try:
        address = IPv6Address(host)
    except AddressValueError:
        raise InvalidInput(f"{shown} does not name a host") from None
    if address.scope_id is not None:
        raise InvalidInput(f"{shown} names a network interface of this machine; such hosts are not called")
    return f"[{address.compressed}]"


def _name(host: str, shown: str) -> str:
    try:
        name = host.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError:
        raise InvalidInput(f"{shown} does not name a host") from None
    if not _HOST.fullmatch(name):
        raise InvalidInput(f"{shown} does not name a host")
    return name
