"""What a variable of the environment may hold: one small parser per kind, and the reader that names what is wrong."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

from orchestrator.errors import ConfigError

T = TypeVar("T")
LONGEST_S = 1_000_000


class Reader:
    """Reads one variable at a time; ``parse`` raises ValueError with what it expects."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def one(self, name: str, default: str, parse: Callable[[str], T]) -> T:
        value = self._environ.get(name, "").strip() or default
        try:
            return parse(value)
        except ValueError as error:
            raise ConfigError(f"{name} is {value!r}; expected {error}") from None

    def optional(self, name: str, parse: Callable[[str], T]) -> T | None:
        return self.one(name, "", parse) if self._environ.get(name, "").strip() else None

    def several(self, name: str, parse: Callable[[str], T]) -> tuple[T, ...]:
        """Entries between commas."""
        entries = [entry.strip() for entry in self._environ.get(name, "").split(",")]
        found = []
        for entry in filter(None, entries):
            try:
                found.append(parse(entry))
            except ValueError as error:
                raise ConfigError(f"{name} holds {entry!r}; expected {error}") from None
        return tuple(found)

    def secret(self, name: str, parse: Callable[[str], T]) -> T | None:
        """Like ``optional``, but ``NAME_FILE`` may name a file that holds the value, and no message repeats it."""
        value, path = (self._environ.get(one, "").strip() for one in (name, f"{name}_FILE"))
        if value and path:
            raise ConfigError(f"{name} and {name}_FILE are both set; one of them is expected")
        if path:
            value = _held(f"{name}_FILE", Path(path))
        if not value:
            return None
        try:
            return parse(value)
        except ValueError as error:
            raise ConfigError(f"{name} (its value is not shown) is wrong; expected {error}") from None


def _held(name: str, path: Path) -> str:
    """A secret's file without the line break that editors leave at its end; an empty one is a mistake, not a no."""
    try:
        value = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ConfigError(f"{name} is {str(path)!r}, which cannot be read: {reason}") from None
    if not value:
        raise ConfigError(f"{name} is {str(path)!r}, which is empty; expected a file that holds the secret")
    return value


def _expect(what: str) -> NoReturn:
    raise ValueError(what)


def choice(*served: T) -> Callable[[str], T]:
    """One of a few words."""
    names = {str(one): one for one in served}
    return lambda value: names[value] if value in names else _expect(" or ".join(names))


def flag(value: str) -> bool:
    """A switch."""
    words = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
    return words[value.lower()] if value.lower() in words else _expect("true or false")


def count(least: int, most: int) -> Callable[[str], int]:
    """A whole number between two others."""

    def parse(value: str) -> int:
        in_range = value.isascii() and value.isdigit() and len(value) < 10 and least <= int(value) <= most
        return int(value) if in_range else _expect(f"a whole number from {least} to {most}")

    return parse


def seconds(value: str) -> float:
    """A duration; what lasts longer than 24 days no socket can be told to wait for."""
    try:
        found_s = float(value)
    except ValueError:
        found_s = math.nan
    return found_s if 0 <= found_s <= LONGEST_S else _expect(f"seconds, 0 to {LONGEST_S}")


def http_url(value: str) -> str:
    """An address of an HTTP server, without a slash at its end."""
    _, host = _split(value, ("http", "https"))
    return value.rstrip("/") if host else _expect("a URL like http://127.0.0.1:8000")


def http_urls(value: str) -> tuple[str, ...]:
    """Addresses of HTTP servers between commas, one at least."""
    return tuple(dict.fromkeys(http_url(entry.strip()) for entry in value.split(",")))


def amqp_url(value: str) -> str:
    """An address of a broker."""
    _, host = _split(value, ("amqp", "amqps"))
    return value if host else _expect("a URL like amqp://user:password@host:5672/")


def origin(value: str) -> str:
    """Scheme, host and port of a server, nothing behind them."""
    scheme, host = _split(value, ("http", "https"))
    written = f"{scheme}://{host}"
    bare = host and "@" not in host and value.rstrip("/").lower() == written
    return written if bare else _expect("an origin like https://api.example.com")


def store_url(value: str) -> str:
    """Where objects are kept."""
    scheme, host = _split(value, ("gs", "s3", "file"))
    absolute = scheme == "file" and value.startswith("file:///")
    return value.rstrip("/") if absolute or (scheme != "file" and host) else _expect("gs://…, s3://… or file:///…")


def input_prefix(value: str) -> str:
    """A prefix of addresses that may be read."""
    return (
        value if value.startswith(("gs://", "s3://", "file:///", "/")) else _expect("gs://…, s3://…, file:///… or /…")
    )


def _split(value: str, schemes: tuple[str, ...]) -> tuple[str, str]:
    """Scheme and ``host[:port]`` of a URL, both in lower case; ("", "") where it is none of ``schemes``."""
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018  a port out of range is found only when it is asked for
    except ValueError:
        return "", ""
    known = parts.scheme in schemes and not any(letter.isspace() for letter in value)
    return (parts.scheme, parts.netloc.lower()) if known else ("", "")


def token(value: str) -> str:
    """A secret that goes into a header."""
    # A line break in a header would be somebody else's header.
    return value if value.isprintable() and value.isascii() else _expect("printable ASCII")


def file(value: str) -> Path:
    """A file that is there."""
    return Path(value) if Path(value).is_file() else _expect("a file that exists")


def address(value: str) -> tuple[str, int]:
    """A host and a port to listen on."""
    host, _, port = value.rpartition(":")
    in_range = port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535
    return (host.strip("[]"), int(port)) if host and in_range else _expect("host:port, like 127.0.0.1:8080")
