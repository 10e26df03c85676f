"""Manifests of other people, and certificates as authorities issue them."""

import io

import numpy as np
import pytest
from fakes.authority import CLAIM_SIGNING, DOCUMENT_SIGNING, EMAIL_PROTECTION, SERVER_AUTH, issued
from fakes.made import MADE, NOW
from PIL import Image

from orchestrator.errors import ConfigError
from orchestrator.imaging import credentials
from orchestrator.imaging.credentials import verify
from orchestrator.imaging.inspection import describe, read
from orchestrator.imaging.picture import encode, prove

PIXELS = np.zeros((64, 96, 3), np.uint8)


@pytest.mark.parametrize("purpose", [EMAIL_PROTECTION, CLAIM_SIGNING, DOCUMENT_SIGNING])
def test_certificates_for_each_purpose_that_c2pa_names_sign_and_are_trusted_by_their_root(purpose: str) -> None:
    key, root = issued(purpose)
    prove(key, NOW)
    data = encode(PIXELS, MADE, "png", key)
    assert verify(data, "image/png", root).state == "trusted"
    assert verify(data, "image/png").state == "untrusted"


def test_certificate_of_a_web_server_stops_the_start() -> None:
    key, _ = issued(SERVER_AUTH)
    with pytest.raises(ConfigError, match="signing key cannot sign"):
        prove(key, NOW)


def signed_by_a_stranger(record: object) -> bytes:
    """A picture with a valid manifest, whose record under our label is whatever its signer wrote."""
    import c2pa

    plain, signed = io.BytesIO(), io.BytesIO()
    Image.fromarray(PIXELS).save(plain, "PNG")
    manifest = credentials._manifest(MADE, "image/png")
    actions, *_ = manifest["assertions"]  # type: ignore[misc]
    written = {"label": credentials.RECORD_LABEL, "kind": "Json", "data": record}
    key, _ = issued()
    info = c2pa.C2paSignerInfo(key.algorithm, key.certificates, key.private_key, None)
    with c2pa.Signer.from_info(info) as signer, c2pa.Builder({**manifest, "assertions": [actions, written]}) as builder:
        builder.sign(signer, "image/png", plain, signed)
    return signed.getvalue()


@pytest.mark.parametrize("record", [["a"], "text", 5, None, True])
def test_record_of_a_stranger_that_is_no_object_counts_as_none(record: object) -> None:
    found = read(signed_by_a_stranger(record))
    assert found.credentials.record == {}
    assert "Credentials  valid, but" in describe(found)


VERDICT = "Credentials valid, and the signer is trusted"


def test_names_of_a_strangers_fields_begin_no_line_of_their_own() -> None:
    exif = Image.Exif()
    exif[0x9213] = f'{{"a\\n{VERDICT}": 1}}'
    plain = io.BytesIO()
    Image.fromarray(PIXELS).save(plain, "JPEG", exif=exif)
    for data in (plain.getvalue(), signed_by_a_stranger({f"a\n{VERDICT}": 1})):
        page = describe(read(data))
        assert f"  a {VERDICT}  1\n" in page
        assert not any(line.startswith(VERDICT) for line in page.splitlines())
