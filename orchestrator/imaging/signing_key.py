"""Keys for Content Credentials: the one that settings name, and a self-made chain for development.

The only module that imports ``cryptography``.
"""

import os
import tempfile
from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from orchestrator.errors import ConfigError, InvalidInput
from orchestrator.imaging.credentials import SigningKey

_VALID_DAYS: Final = 3650
_RSA_BITS: Final = 2048
_CURVES: Final = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


def load_key(certificates: bytes, private_key: bytes, now: datetime) -> SigningKey:
    """Gives the key in two PEM files, its algorithm found from its type; a pair that cannot sign is a ConfigError.

    ``certificates`` begins with the signer's own; the root may be left out.
    """
    try:
        chain = x509.load_pem_x509_certificates(certificates)
        private = load_pem_private_key(private_key, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"signing key is not a PEM chain with its unencrypted private key: {error}") from error
    signer = chain[0]
    if _public_bytes(signer.public_key()) != _public_bytes(private.public_key()):
        raise ConfigError("signing key is not that of the first certificate; the chain begins with the signer's own")
    if not signer.not_valid_before_utc <= now <= signer.not_valid_after_utc:
        valid = f"{signer.not_valid_before_utc:%Y-%m-%d} to {signer.not_valid_after_utc:%Y-%m-%d}"
        raise ConfigError(f"signing certificate is valid {valid}; today is {now:%Y-%m-%d}")
    pkcs8 = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return SigningKey(certificates, pkcs8, _algorithm(private))


def roots_in(pem: bytes, name: str) -> bytes:
    """Gives the certificates in a PEM file as PEM, without whatever else it holds; none at all is refused."""
    try:
        roots = x509.load_pem_x509_certificates(pem.removeprefix(BOM_UTF8))
    except ValueError as error:
        raise InvalidInput(f"{name} holds no certificate in PEM, or a broken one: {error}") from error
    return b"".join(root.public_bytes(Encoding.PEM) for root in roots)


def development_key(folder: Path, now: datetime) -> SigningKey:
    """Gives the self-made ES256 chain kept in ``folder``, made on first use; anybody can make one like it.

    ``root.pem`` in that folder is what ``inspect --trust`` takes. Two processes that start together get the same key:
    the folder appears by one rename, whole or not at all.
    """
    if not folder.exists():
        try:
            _make(folder, now)
        except OSError as error:
            raise ConfigError(f"development signing key cannot be written to {folder}: {error}") from error
    try:
        return load_key((folder / "chain.pem").read_bytes(), (folder / "private.pem").read_bytes(), now)
    except (OSError, ConfigError) as error:
        raise ConfigError(f"{error}; delete {folder} and a new development key is made") from error


def _make(folder: Path, now: datetime) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as workshop:
        draft = Path(workshop) / "key"
        draft.mkdir(mode=0o700)
        _write_chain(draft, now)
        try:
            draft.rename(folder)
        except OSError:
            # Another process was faster, and its key is as good.
            if not folder.exists():
                raise


def _write_chain(folder: Path, now: datetime) -> None:
    root = _Party("Remarque development root", ec.generate_private_key(ec.SECP256R1()))
    signer = _Party("Remarque development signer", ec.generate_private_key(ec.SECP256R1()))
    authority = [(x509.BasicConstraints(ca=True, path_length=None), True), (_usage(signs_certificates=True), True)]
    purposes = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION])
    ordinary = [(x509.BasicConstraints(ca=False, path_length=None), True), (_usage(), True), (purposes, False)]
    root_pem = _certificate(root, root, now, authority)
    (folder / "root.pem").write_bytes(root_pem)
    (folder / "chain.pem").write_bytes(_certificate(signer, root, now, ordinary) + root_pem)
    with os.fdopen(os.open(folder / "private.pem", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(signer.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@dataclass(frozen=True, slots=True)
class _Party:
    common_name: str
    key: ec.EllipticCurvePrivateKey

    @property
    def name(self) -> x509.Name:
        organization = x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Remarque development, not for production")
        return x509.Name([organization, x509.NameAttribute(NameOID.COMMON_NAME, self.common_name)])


def _certificate(
    holder: _Party, issuer: _Party, now: datetime, extensions: Sequence[tuple[x509.ExtensionType, bool]]
) -> bytes:
    """Gives ``holder``'s certificate in PEM, signed by ``issuer``; each extension with whether it is critical."""
    public = holder.key.public_key()
    builder = (
        x509.CertificateBuilder(issuer.name, holder.name, public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=_VALID_DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _usage(*, signs_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _public_bytes(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _algorithm(key: PrivateKeyTypes) -> str:
    """Gives C2PA's name of the algorithm that belongs to the key's type."""
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _RSA_BITS:
        return "ps256"
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in _CURVES:
        return _CURVES[key.curve.name]
    raise ConfigError("signing key is of no type that C2PA knows; P-256, P-384, P-521, Ed25519 or RSA-2048 up are")
