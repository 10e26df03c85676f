"""TLS in front of a server that speaks none, with a certificate of its own authority."""

import asyncio
import datetime
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


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
    """A port on 127.0.0.1 that speaks TLS for ``host:port`` while this lasts."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    ports: SimpleQueue[int] = SimpleQueue()
    ending = asyncio.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to, back = await asyncio.open_connection(host, port)
        pumps = [asyncio.ensure_future(pump(*ends)) for ends in ((reader, back), (to, writer))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in pumps:
                task.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (back, writer):
                end.transport.abort()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        loops.append(asyncio.get_running_loop())
        ports.put(server.sockets[0].getsockname()[1])
        await ending.wait()
        server.close()

    loops: list[asyncio.AbstractEventLoop] = []
    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    try:
        yield ports.get(timeout=10)
    finally:
        loops[0].call_soon_threadsafe(ending.set)
        thread.join()
