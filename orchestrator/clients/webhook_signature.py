"""Signs webhooks as https://www.standardwebhooks.com describes, so that a receiver can tell ours from forged ones."""

import binascii
import hmac
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from hashlib import sha256

from orchestrator.errors import ConfigError

_PREFIX = "whsec_"
_MIN_SECRET_BYTES = 16


@dataclass(frozen=True, slots=True)
class Signer:
    """Signs with every secret it holds: the new one and, while receivers change over, the old one."""

    secrets: tuple[bytes, ...] = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> "Signer":
        """From one secret, or several with spaces between: ``whsec_`` and base64, as the standard writes them."""
        return cls(tuple(_secret(part) for part in text.split()))

    def headers(self, webhook_id: str, body: bytes, *, now_s: float) -> dict[str, str]:
        """The three headers of one try; only the timestamp, and with it the signature, differs between tries."""
        timestamp = str(int(now_s))
        content = f"{webhook_id}.{timestamp}.".encode() + body
        signatures = (b64encode(hmac.digest(secret, content, sha256)).decode() for secret in self.secrets)
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": timestamp,
            "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
        }


def _secret(text: str) -> bytes:
    try:
        secret = b64decode(text.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if len(secret) < _MIN_SECRET_BYTES:
        raise ConfigError(
            "WEBHOOK_SIGNING_SECRET (its value is not shown) is wrong; expected is whsec_ and the base64 of"
            f" {_MIN_SECRET_BYTES} or more random bytes"
        )
    return secret
