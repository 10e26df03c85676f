"""Content Credentials (C2PA): a signed manifest inside the picture, and the verdict on one that was found there.

The only module that imports ``c2pa``, and only when it is needed: its library takes 0.3 s to load from a cold disk.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from orchestrator.errors import GenerationFailed
from orchestrator.imaging.provenance import Provenance, clean, record

RECORD_LABEL: Final = "remarque.generation"
State = Literal["trusted", "untrusted", "expired", "tampered", "absent"]

# Nothing is fetched: a manifest may name any address of our network as its home.
_OFFLINE: Final[Mapping[str, object]] = {"remote_manifest_fetch": False, "ocsp_fetch": False}
# Purposes of certificates beside emailProtection, the only one that the library takes when it is told of none: C2PA's
# own claim signing, which the authorities of its trust list issue for, document signing and Microsoft's.
_PURPOSES: Final = "1.3.6.1.4.1.62558.2.1\n1.3.6.1.5.5.7.3.36\n1.3.6.1.4.1.311.76.59.1.9\n"
_UNTRUSTED: Final = "signingCredential.untrusted"
_EXPIRED: Final = "signingCredential.expired"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """What pictures are signed with: a PEM chain, signer first, and the signer's private key in PEM (PKCS 8)."""

    certificates: bytes
    private_key: bytes = field(repr=False)
    algorithm: str = "es256"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a manifest says and whether to believe it.

    ``trusted`` validates and its signer descends from a trust anchor; ``untrusted`` validates but anybody may have
    signed; ``expired`` is unchanged too, but its certificate ran out since, or before; ``tampered`` is broken: the
    picture or the manifest changed after the signing; ``absent`` is no manifest.
    """

    state: State
    signer: str = ""
    issuer: str = ""
    algorithm: str = ""
    problems: tuple[str, ...] = ()
    record: Mapping[str, object] = field(default_factory=dict)
    actions: tuple[str, ...] = ()
    digital_source_type: str = ""


def sign(data: bytes, mime_type: str, provenance: Provenance, key: SigningKey) -> bytes:
    """Gives the file with its manifest embedded and validated; to be called last, any later edit breaks it."""
    import c2pa

    settings = {
        "builder": {"thumbnail": {"enabled": False}},
        "verify": {**_OFFLINE, "verify_after_sign": True},
        "trust": {"trust_config": _PURPOSES},
    }
    signed = io.BytesIO()
    try:
        info = c2pa.C2paSignerInfo(key.algorithm, key.certificates, key.private_key, None)
        with (
            c2pa.Context.from_dict(settings) as context,
            c2pa.Signer.from_info(info) as signer,
            c2pa.Builder(_manifest(provenance, mime_type), context=context) as builder,
        ):
            builder.sign(signer, mime_type, io.BytesIO(data), signed)
    except c2pa.C2paError as error:
        raise GenerationFailed(f"picture cannot be signed with Content Credentials: {error}") from error
    return signed.getvalue()


def verify(data: bytes, mime_type: str, trust_anchors: bytes | None = None) -> Credentials:
    """Judges the manifest in a file; ``trust_anchors`` are root certificates in PEM, without them nobody is trusted."""
    if b"c2pa" not in data:
        return Credentials(state="absent")
    import c2pa

    trust = {"trust_config": _PURPOSES}
    if trust_anchors is not None:
        trust["trust_anchors"] = trust_anchors.decode("ascii", "replace")
    settings = {"verify": {**_OFFLINE, "verify_trust": True}, "trust": trust}
    try:
        with (
            c2pa.Context.from_dict(settings) as context,
            c2pa.Reader(mime_type, io.BytesIO(data), context=context) as reader,
        ):
            return _verdict(json.loads(reader.json()))
    except c2pa.C2paError.ManifestNotFound:
        return Credentials(state="absent")
    except c2pa.C2paError as error:
        is_elsewhere = str(error).startswith("Remote")
        return Credentials(state="absent" if is_elsewhere else "tampered", problems=(clean(str(error)),))


def _manifest(provenance: Provenance, mime_type: str) -> dict[str, object]:
    agent = {"name": "Remarque", "version": clean(provenance.software_version)}
    created = {
        "action": "c2pa.created",
        "when": provenance.created.isoformat(),
        "softwareAgent": agent,
        "digitalSourceType": provenance.digital_source_type,
    }
    assertions: list[dict[str, object]] = [
        {"label": "c2pa.actions.v2", "created": True, "data": {"actions": [created]}},
        {"label": RECORD_LABEL, "kind": "Json", "created": True, "data": record(provenance)},
    ]
    if provenance.artist_name:
        dublin_core = {"dc": "http://purl.org/dc/elements/1.1/"}
        metadata = {"@context": dublin_core, "dc:creator": [clean(provenance.artist_name)]}
        assertions.append({"label": "cawg.metadata", "kind": "Json", "created": True, "data": metadata})
    title = f"gen-{provenance.generation_id}"
    return {"claim_generator_info": [agent], "title": title, "format": mime_type, "assertions": assertions}


def _verdict(store: Mapping[str, Any]) -> Credentials:
    """Gives the verdict of the library's report; a state it has no name for counts as tampered."""
    states: Mapping[str, State] = {"Trusted": "trusted", "Valid": "untrusted"}
    manifest = store.get("manifests", {}).get(store.get("active_manifest"), {})
    assertions = {part.get("label"): part.get("data") for part in manifest.get("assertions", [])}
    actions = (assertions.get("c2pa.actions.v2") or {}).get("actions", [])
    signature = manifest.get("signature_info", {})
    problems = [part for part in store.get("validation_status") or [] if part.get("code") != _UNTRUSTED]
    ran_out = {part.get("code") for part in problems} == {_EXPIRED}
    found = assertions.get(RECORD_LABEL)
    return Credentials(
        state="expired" if ran_out else states.get(store.get("validation_state", ""), "tampered"),
        signer=signature.get("common_name") or "",
        issuer=signature.get("issuer") or "",
        algorithm=signature.get("alg") or "",
        problems=tuple(f"{part.get('code')}: {part.get('explanation', '')}" for part in problems),
        record=found if isinstance(found, dict) else {},
        actions=tuple(part.get("action", "") for part in actions),
        digital_source_type=next((part["digitalSourceType"] for part in actions if "digitalSourceType" in part), ""),
    )
