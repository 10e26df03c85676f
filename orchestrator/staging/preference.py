"""The ``Prefer`` header (RFC 7240) as far as it is honoured: ``respond-async`` and ``wait``."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preference:
    """``wait_s`` is how long the caller will wait for an answer, None where it does not say."""

    respond_async: bool
    wait_s: float | None

    def applied(self) -> dict[str, str]:
        """The header that says what was honoured."""
        parts = ["respond-async"] if self.respond_async else []
        parts += [] if self.wait_s is None else [f"wait={self.wait_s:g}"]
        return {"Preference-Applied": ", ".join(parts)} if parts else {}


def read_preference(header: str) -> Preference:
    """The preferences in a header; what is malformed or unknown is ignored, as the RFC asks."""
    respond_async, wait_s = False, None
    for part in header.split(","):
        name, _, value = part.partition(";")[0].partition("=")
        name, value = name.strip().lower(), value.strip().strip('"')
        if name == "respond-async":
            respond_async = True
        elif name == "wait" and wait_s is None and value.isascii() and value.isdigit() and 0 < len(value) <= 6:
            wait_s = float(value)
    return Preference(respond_async, wait_s)
