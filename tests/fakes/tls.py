"""TLS in front of a server that speaks none, with a certificate of its own authority."""

import datetime
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LINKS = 32
PATIENCE_S = 10.0


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _certificate(
    subject: str, issuer: str, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    now, authority = datetime.datetime.now(datetime.UTC), subject == issuer
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if not authority:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
    return builder.sign(signer, hashes.SHA256())


def private_authority(folder: Path) -> tuple[Path, Path]:
    """``ca.pem``, and ``localhost.pem`` with the key and certificate that it signed for ``localhost``."""
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = _certificate("Remarque test authority", "Remarque test authority", ca_key, ca_key)
    server = _certificate("localhost", "Remarque test authority", key, ca_key)
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    (folder / "ca.pem").write_bytes(ca.public_bytes(encoding))
    (folder / "localhost.pem").write_bytes(private + server.public_bytes(encoding))
    return folder / "ca.pem", folder / "localhost.pem"


@contextmanager
def tls_in_front_of(host: str, port: int, certificate: Path) -> Iterator[int]:
    """A port on 127.0.0.1 that speaks TLS for ``host:port`` while this lasts; no thread or socket of it lasts longer."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    def link(client: socket.socket) -> None:
        # A client that does not trust the certificate ends the handshake, which is what a test may want.
        with client, suppress(OSError), socket.create_connection((host, port)) as server:
            client.settimeout(PATIENCE_S)
            if client in _readable(client, ended):
                with context.wrap_socket(client, server_side=True) as outside:
                    _pass_on(outside, server, ended)

    def accept() -> None:
        with ThreadPoolExecutor(LINKS) as links:
            while ended not in _readable(listener, ended):
                links.submit(link, listener.accept()[0])

    ended, ending = socket.socketpair()
    with ended, ending, socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, name="tls")
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ending.shutdown(socket.SHUT_RDWR)
            thread.join()


def _readable(*sockets: socket.socket) -> list[socket.socket]:
    return select.select(sockets, [], [])[0]


def _pass_on(outside: ssl.SSLSocket, server: socket.socket, ended: socket.socket) -> None:
    """Bytes in both directions until one side closes or ``ended`` does."""
    while True:
        # What was decrypted already is no longer in the socket for select to see.
        ready = [outside] if outside.pending() else _readable(outside, server, ended)
        for source, sink in ((outside, server), (server, outside)):
            if ended in ready:
                return
            if source in ready:
                data = source.recv(65536)
                if not data:
                    return
                sink.sendall(data)
