"""An authority that issues certificates to sign pictures with, for whatever purpose and however short a time."""

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fakes.made import NOW
from orchestrator.imaging.credentials import SigningKey
from orchestrator.imaging.signing_key import load_key

EMAIL_PROTECTION, SERVER_AUTH = "1.3.6.1.5.5.7.3.4", "1.3.6.1.5.5.7.3.1"
CLAIM_SIGNING, DOCUMENT_SIGNING = "1.3.6.1.4.1.62558.2.1", "1.3.6.1.5.5.7.3.36"


def issued(purpose: str = EMAIL_PROTECTION, until: datetime = NOW + timedelta(days=1)) -> tuple[SigningKey, bytes]:
    """A signer's key with its certificate for ``purpose``, and the PEM of the root that issued it."""
    root, signer = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    names = [x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, name)]) for name in ("root", "signer")]

    def certificate(subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType) -> bytes:
        builder = x509.CertificateBuilder(names[0], subject, key.public_key(), 7, NOW - timedelta(hours=1), until)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=not isinstance(extension, x509.ExtendedKeyUsage))
        return builder.sign(root, hashes.SHA256()).public_bytes(Encoding.PEM)

    def usage(*, signs_certificates: bool) -> x509.KeyUsage:
        no = [False] * 4
        return x509.KeyUsage(not signs_certificates, *no, signs_certificates, signs_certificates, *no[:2])

    purposes = x509.ExtendedKeyUsage([x509.ObjectIdentifier(purpose)])
    is_ca, is_not = (x509.BasicConstraints(ca=ca, path_length=None) for ca in (True, False))
    chain = certificate(names[1], signer, is_not, usage(signs_certificates=False), purposes)
    private = signer.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return load_key(chain, private, NOW), certificate(names[0], root, is_ca, usage(signs_certificates=True))
