import argparse
import io
import random
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from fakes import made
from fakes.made import NOW
from PIL import Image

from orchestrator import inspect
from orchestrator.errors import ConfigError, GenerationFailed, InvalidInput
from orchestrator.imaging import signing_key
from orchestrator.imaging.credentials import SigningKey
from orchestrator.imaging.inspection import describe, read
from orchestrator.imaging.picture import encode, prove
from orchestrator.imaging.provenance import ALGORITHMIC_MEDIA, TRAINED_ALGORITHMIC_MEDIA, StyleRecord
from orchestrator.imaging.signing_key import development_key, load_key
from orchestrator.job import PictureFormat

FORMATS: tuple[PictureFormat, ...] = get_args(PictureFormat)
MADE = replace(
    made.MADE,
    prompt="항구, a boat\nat dusk",
    negative_prompt="blurry",
    model_sha256="6ce0161689" + "0" * 54,
    styles=(StyleRecord(name="style-123", sha256="0f1e2d3c4b5a" + "0" * 52, weight=0.8),),
    artist_id=12,
    artist_name="김서연",
)
MODEL_ID = "remarque-demo@6ce0161689+style-123@0f1e2d3c4b"


def pixels(width: int = 96, height: int = 64) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def key_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("state") / "signing"
    development_key(folder, NOW)
    return folder


@pytest.fixture(scope="module")
def key(key_folder: Path) -> SigningKey:
    return development_key(key_folder, NOW)


@pytest.fixture(scope="module")
def signed(key: SigningKey) -> dict[PictureFormat, bytes]:
    return {picture_format: encode(pixels(), MADE, picture_format, key) for picture_format in FORMATS}


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


# -- what is in the file ------------------------------------------------------------------------------------------------


def test_png_keeps_every_pixel(signed: dict[PictureFormat, bytes]) -> None:
    assert (np.asarray(opened(signed["png"])) == pixels()).all()


@pytest.mark.parametrize("picture_format", FORMATS)
def test_file_is_of_the_format_asked_for(picture_format: PictureFormat, signed: dict[PictureFormat, bytes]) -> None:
    image = opened(signed[picture_format])
    assert (image.format, image.size, image.mode) == (picture_format.upper(), (96, 64), "RGB")


@pytest.mark.parametrize("picture_format", FORMATS)
def test_everything_is_read_back(picture_format: PictureFormat, signed: dict[PictureFormat, bytes]) -> None:
    found = read(signed[picture_format])
    assert (found.picture_format, found.width_px, found.height_px) == (picture_format, 96, 64)
    assert found.parameters.startswith("항구, a boat\nat dusk\nNegative prompt: blurry\nSteps: 50, Sampler: DPM++ 2M,")
    assert found.exif["UserComment"] == found.parameters
    assert (found.exif["Artist"], found.exif["Software"]) == ("김서연", "Remarque 0.1.0")
    assert found.exif["ImageDescription"] == "항구, a boat at dusk"
    assert (found.identity["artist_id"], found.identity["model_id"]) == (12, MODEL_ID)
    assert found.xmp["Iptc4xmpExt:DigitalSourceType"] == TRAINED_ALGORITHMIC_MEDIA
    assert found.xmp["dc:creator"] == "김서연"


@pytest.mark.parametrize("picture_format", FORMATS)
def test_manifest_names_artist_style_model_and_seed(
    picture_format: PictureFormat, signed: dict[PictureFormat, bytes]
) -> None:
    credentials = read(signed[picture_format]).credentials
    assert credentials.actions == ("c2pa.created",)
    assert credentials.digital_source_type == TRAINED_ALGORITHMIC_MEDIA
    assert credentials.record["artist_name"] == "김서연"
    assert credentials.record["base_model_sha256"] == MADE.model_sha256
    assert credentials.record["styles"] == [{"name": "style-123", "sha256": MADE.styles[0].sha256, "weight": 0.8}]
    assert (credentials.record["seed"], credentials.record["prompt"]) == (42, MADE.prompt)


def png_chunks(png: bytes) -> dict[bytes, bytes]:
    found, at = {}, 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        body = png[at + 8 : at + 8 + length]
        found[png[at + 4 : at + 8] + b" " + body.partition(b"\0")[0][:20]] = body
        at += 12 + length
    return found


def test_plain_parameters_lie_in_the_text_chunk_that_every_reader_knows(key: SigningKey) -> None:
    plain = png_chunks(encode(pixels(), replace(MADE, prompt="a boat", artist_name="Kim"), "png", key))
    assert plain[b"tEXt parameters"].startswith(b"parameters\0a boat\nNegative prompt: blurry\nSteps: 50")


def test_parameters_beyond_ascii_lie_in_utf_8(signed: dict[PictureFormat, bytes]) -> None:
    assert "항구, a boat".encode() in png_chunks(signed["png"])[b"iTXt parameters"]


@pytest.mark.parametrize("picture_format", FORMATS)
def test_exif_has_the_types_that_the_standard_gives_its_tags(
    picture_format: PictureFormat, signed: dict[PictureFormat, bytes]
) -> None:
    tiff = opened(signed[picture_format]).info["exif"].removeprefix(b"Exif\0\0")
    main = directory(tiff, *struct.unpack_from(">I", tiff, 4))
    details = directory(tiff, main[0x8769][1])
    assert {tag: kind for tag, (kind, _) in main.items()} == {
        0x010E: 2, 0x0131: 2, 0x0132: 2, 0x013B: 2, 0x8769: 4, 0x9213: 2,
    }  # fmt: skip
    assert {tag: kind for tag, (kind, _) in details.items()} == {0x9000: 7, 0x9003: 2, 0x9011: 2, 0x9286: 7, 0xA420: 2}


def directory(tiff: bytes, at: int) -> dict[int, tuple[int, int]]:
    """Tag to type and value (or its offset) of the directory at ``at``, which must be in order of tags."""
    (count,) = struct.unpack_from(">H", tiff, at)
    rows = [struct.unpack_from(">HHII", tiff, at + 2 + 12 * index) for index in range(count)]
    assert rows == sorted(rows)
    return {tag: (kind, value) for tag, kind, _, value in rows}


def test_mock_is_marked_in_every_form(key: SigningKey) -> None:
    found = read(encode(pixels(), replace(MADE, mock=True), "png", key))
    assert "Mock: true" in found.parameters
    assert found.exif["Software"] == "Remarque 0.1.0 (mock, no model ran)"
    assert found.identity["mock"] is True
    assert found.credentials.record["mock"] is True
    assert found.xmp["Iptc4xmpExt:DigitalSourceType"] == ALGORITHMIC_MEDIA
    assert found.credentials.digital_source_type == ALGORITHMIC_MEDIA


def test_picture_without_artist_or_style_is_signed_too(key: SigningKey) -> None:
    found = read(encode(pixels(), replace(MADE, artist_id=None, artist_name=None, styles=()), "png", key))
    assert found.credentials.state == "untrusted"
    assert found.identity["artist_id"] is None
    assert "Artist" not in found.exif


@pytest.mark.parametrize("picture_format", FORMATS)
@pytest.mark.parametrize("how", ["getexif", "info"])
def test_artist_and_model_survive_a_save_by_other_software(
    picture_format: PictureFormat, how: str, signed: dict[PictureFormat, bytes]
) -> None:
    image = opened(signed[picture_format])
    again = io.BytesIO()
    image.save(again, picture_format, exif=image.getexif() if how == "getexif" else image.info["exif"])
    found = read(again.getvalue())
    assert (found.identity["artist_id"], found.identity["artist_name"]) == (12, "김서연")
    assert found.identity["model_id"] == MODEL_ID
    assert "Seed: 42" in found.parameters
    assert found.credentials.state == "absent"


@pytest.mark.parametrize("picture_format", FORMATS)
@pytest.mark.parametrize("prompt", ["line\nbreak", "nul\0 bell\x07 esc\x1b[31m", "lone \ud800 surrogate", "😀", ""])
def test_awkward_prompts_are_signed(picture_format: PictureFormat, prompt: str, key: SigningKey) -> None:
    found = read(encode(pixels(), replace(MADE, prompt=prompt), picture_format, key))
    assert found.credentials.state == "untrusted"
    assert "Seed: 42" in found.parameters


@pytest.mark.parametrize("picture_format", FORMATS)
@pytest.mark.parametrize("prompt", ["가을 바다", "一 pine", "Āmber", "\u3000sea"])
def test_prompt_whose_first_letter_looks_like_the_other_byte_order_is_read_back(
    picture_format: PictureFormat, prompt: str, key: SigningKey
) -> None:
    found = read(encode(pixels(), replace(MADE, prompt=prompt), picture_format, key))
    assert found.parameters == found.exif["UserComment"]
    assert found.parameters.startswith(prompt.strip())


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_comments_of_other_software_are_read_in_either_byte_order(order: str, mark: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + f"{mark}가을 sea\nSteps: 20".encode(order)
    plain = io.BytesIO()
    Image.fromarray(pixels()).save(plain, "JPEG", exif=exif)
    assert read(plain.getvalue()).parameters == "가을 sea\nSteps: 20"


@pytest.mark.parametrize("picture_format", FORMATS)
def test_prompt_of_10_kb_is_kept_whole(picture_format: PictureFormat, key: SigningKey) -> None:
    prompt = "바다 and the sea, " * 500
    found = read(encode(pixels(), replace(MADE, prompt=prompt), picture_format, key))
    assert found.credentials.record["prompt"] == prompt
    assert found.parameters.startswith(prompt.strip())


def test_prompt_that_jpeg_cannot_hold_is_refused_not_cut(key: SigningKey) -> None:
    with pytest.raises(InvalidInput, match=r"metadata with this prompt is \d+ bytes; JPEG holds 65533"):
        encode(pixels(), replace(MADE, prompt="x" * 40_000), "jpeg", key)


def test_size_that_contradicts_the_provenance_is_refused(key: SigningKey) -> None:
    with pytest.raises(InvalidInput, match="picture is 64x64 px; its provenance says 96x64 px"):
        encode(pixels(64, 64), MADE, "png", key)


def test_same_picture_has_the_same_pixels_and_metadata(key: SigningKey, signed: dict[PictureFormat, bytes]) -> None:
    first, second = read(signed["webp"]), read(encode(pixels(), MADE, "webp", key))
    assert (first.exif, first.xmp, first.parameters) == (second.exif, second.xmp, second.parameters)
    assert first.credentials == second.credentials


# -- the verdict --------------------------------------------------------------------------------------------------------


def with_one_pixel_changed(png: bytes) -> bytes:
    """The signed PNG with other pixels under its manifest: what a picture editor that keeps chunks would write."""
    changed = pixels()
    changed[10, 10, 0] ^= 1
    plain = io.BytesIO()
    Image.fromarray(changed).save(plain, "PNG", compress_level=1)
    start, end = png.index(b"IDAT") - 4, png.index(b"IEND") - 4
    other = plain.getvalue()
    return png[:start] + other[other.index(b"IDAT") - 4 : other.index(b"IEND") - 4] + png[end:]


def test_one_changed_pixel_breaks_the_manifest(signed: dict[PictureFormat, bytes]) -> None:
    found = read(with_one_pixel_changed(signed["png"]))
    assert found.credentials.state == "tampered"
    assert found.is_broken
    assert any("assertion.dataHash.mismatch" in problem for problem in found.credentials.problems)


@pytest.mark.parametrize("picture_format", FORMATS)
def test_another_name_in_the_metadata_breaks_the_manifest(
    picture_format: PictureFormat, signed: dict[PictureFormat, bytes]
) -> None:
    # In WebP and JPEG no checksum stands in the way of the forger; in PNG he has to mend the chunk's.
    data = signed[picture_format].replace(b"<xmp:CreatorTool>Remarque", b"<xmp:CreatorTool>Renoir..")
    if picture_format == "png":
        data = with_mended_checksums(data)
    assert read(data).credentials.state == "tampered"


def with_mended_checksums(png: bytes) -> bytes:
    mended, at = bytearray(png[:8]), 8
    while at < len(png):
        (length,) = struct.unpack_from(">I", png, at)
        body = png[at + 4 : at + 8 + length]
        mended += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(mended)


def test_manifest_that_cannot_be_parsed_counts_as_tampered(signed: dict[PictureFormat, bytes]) -> None:
    data = signed["webp"].replace(b"c2pa.assertions", b"c2pa.assertionz")
    assert read(data).credentials.state == "tampered"


def test_manifest_that_lies_elsewhere_is_not_fetched(signed: dict[PictureFormat, bytes]) -> None:
    remote = (
        b'<rdf:Description xmlns:dcterms="http://purl.org/dc/terms/" dcterms:provenance="http://127.0.0.1:9/x.c2pa" '
    )
    packet = opened(signed["webp"]).info["xmp"].replace(b"<rdf:Description ", remote)
    again = io.BytesIO()
    Image.fromarray(pixels()).save(again, "JPEG", xmp=packet)
    credentials = read(again.getvalue()).credentials
    assert credentials.state == "absent"
    assert "must fetch remote manifests from url http://127.0.0.1:9" in credentials.problems[0]


def test_picture_that_only_talks_of_c2pa_has_no_credentials() -> None:
    plain = io.BytesIO()
    Image.fromarray(pixels()).save(plain, "JPEG", comment=b"c2pa")
    assert read(plain.getvalue()).credentials.state == "absent"


def test_signer_below_a_trusted_root_is_trusted(signed: dict[PictureFormat, bytes], key_folder: Path) -> None:
    assert read(signed["png"], (key_folder / "root.pem").read_bytes()).credentials.state == "trusted"


def test_signer_below_another_root_is_valid_but_untrusted(signed: dict[PictureFormat, bytes], tmp_path: Path) -> None:
    development_key(tmp_path / "other", NOW)
    found = read(signed["png"], (tmp_path / "other" / "root.pem").read_bytes())
    assert (found.credentials.state, found.is_broken) == ("untrusted", False)
    assert found.credentials.signer == "Remarque development signer"


def test_tampered_picture_is_not_trusted_even_from_a_trusted_signer(
    signed: dict[PictureFormat, bytes], key_folder: Path
) -> None:
    root = (key_folder / "root.pem").read_bytes()
    assert read(with_one_pixel_changed(signed["png"]), root).credentials.state == "tampered"


def test_picture_of_another_program_has_no_credentials() -> None:
    plain = io.BytesIO()
    Image.fromarray(pixels()).save(plain, "PNG")
    found = read(plain.getvalue())
    assert (found.credentials.state, found.is_broken, found.parameters, found.identity) == ("absent", False, "", {})


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_file_that_is_no_picture_is_invalid_input(data: bytes) -> None:
    with pytest.raises(InvalidInput, match=r"picture of \d+ bytes is not an image; PNG, JPEG or WEBP are read"):
        read(data)


def test_pictures_as_large_as_staged_photographs_are_inspected() -> None:
    large = io.BytesIO()
    Image.new("1", (8000, 6250)).save(large, "PNG")
    assert read(large.getvalue()).width_px == 8000


def test_picture_that_would_fill_the_memory_is_refused_by_its_header() -> None:
    bomb = io.BytesIO()
    Image.new("1", (9000, 9900)).save(bomb, "PNG")
    with pytest.raises(InvalidInput, match="picture is 9000x9900 px; at most 89000000 pixels are decoded"):
        read(bomb.getvalue()[:200])


def test_damaged_files_give_a_verdict_or_invalid_input(signed: dict[PictureFormat, bytes]) -> None:
    chance = random.Random(7)
    for _ in range(80):
        data = bytearray(signed[chance.choice(FORMATS)])
        for _ in range(chance.randint(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        if chance.random() < 0.2:
            del data[chance.randrange(8, len(data)) :]
        try:
            page = describe(read(bytes(data)))
        except InvalidInput:
            continue
        assert page.startswith("Picture ")


# -- keys ---------------------------------------------------------------------------------------------------------------


def test_development_key_is_made_once_and_its_private_half_is_private(key_folder: Path, key: SigningKey) -> None:
    assert development_key(key_folder, NOW + timedelta(days=1)) == key
    assert (key_folder / "private.pem").stat().st_mode & 0o077 == 0
    assert "PRIVATE" not in repr(key)


def test_development_key_that_ran_out_names_the_folder_to_delete(tmp_path: Path) -> None:
    folder = tmp_path / "signing"
    development_key(folder, NOW - timedelta(days=4000))
    with pytest.raises(ConfigError, match=r"signing certificate is valid .*; delete .*signing and a new"):
        development_key(folder, NOW)


def test_development_key_in_a_place_that_cannot_be_written_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="development signing key cannot be written to"):
        development_key(tmp_path / "file" / "signing", NOW)


def private_pem(make: Callable[[], Any]) -> bytes:
    return make().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def test_key_of_somebody_else_is_a_config_error(key: SigningKey) -> None:
    with pytest.raises(ConfigError, match="not that of the first certificate"):
        load_key(key.certificates, private_pem(lambda: ec.generate_private_key(ec.SECP256R1())), NOW)


def test_key_that_is_encrypted_or_garbage_is_a_config_error(key: SigningKey) -> None:
    private = load_pem_private_key(key.private_key, None)
    locked = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    for wrong in (locked, b"garbage"):
        with pytest.raises(ConfigError, match="not a PEM chain with its unencrypted private key"):
            load_key(key.certificates, wrong, NOW)


@pytest.mark.parametrize(
    ("make", "algorithm"),
    [
        (lambda: ec.generate_private_key(ec.SECP384R1()), "es384"),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "es512"),
        (ed25519.Ed25519PrivateKey.generate, "ed25519"),
        (lambda: rsa.generate_private_key(65537, 2048), "ps256"),
    ],
)
def test_keys_of_all_of_c2pas_algorithms_sign(make: Callable[[], Any], algorithm: str, key: SigningKey) -> None:
    private = make()
    issuer = ec.generate_private_key(ec.SECP256R1())
    model = x509.load_pem_x509_certificates(key.certificates)[0]
    builder = x509.CertificateBuilder(
        issuer_name=x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "another root")]),
        subject_name=model.subject,
        public_key=private.public_key(),
        serial_number=7,
        not_valid_before=NOW - timedelta(hours=1),
        not_valid_after=NOW + timedelta(days=1),
        extensions=[part for part in model.extensions if part.oid != x509.OID_SUBJECT_KEY_IDENTIFIER],
    )
    certificate = builder.sign(issuer, hashes.SHA256()).public_bytes(Encoding.PEM)
    loaded = load_key(certificate, private_pem(lambda: private), NOW)
    assert loaded.algorithm == algorithm
    assert read(encode(pixels(), MADE, "png", loaded)).credentials.state == "untrusted"


def test_key_of_a_type_c2pa_does_not_know_is_a_config_error(key: SigningKey) -> None:
    private = ec.generate_private_key(ec.SECP256K1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "coin")])
    builder = x509.CertificateBuilder(name, name, private.public_key(), 7, NOW, NOW + timedelta(days=1))
    certificate = builder.sign(private, hashes.SHA256()).public_bytes(Encoding.PEM)
    with pytest.raises(ConfigError, match=r"of no type that C2PA knows; P-256, P-384, P-521, Ed25519 or RSA-2048"):
        load_key(certificate, private_pem(lambda: private), NOW)


def test_workers_that_start_together_share_one_development_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda _: development_key(tmp_path / "signing", NOW), range(8)))
    assert all(made == keys[0] for made in keys)
    assert [path.name for path in tmp_path.iterdir()] == ["signing"]


def test_key_of_a_worker_that_was_faster_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "signing"
    write_chain = signing_key._write_chain

    def overtaken(draft: Path, now: datetime) -> None:
        write_chain(draft, now)
        folder.mkdir()
        write_chain(folder, now)

    monkeypatch.setattr(signing_key, "_write_chain", overtaken)
    assert development_key(folder, NOW).certificates == (folder / "chain.pem").read_bytes()


def test_certificate_that_ran_out_is_a_config_error(key: SigningKey) -> None:
    with pytest.raises(ConfigError, match=r"signing certificate is valid .* to .*; today is"):
        load_key(key.certificates, key.private_key, NOW + timedelta(days=4000))


def test_key_that_does_not_sign_stops_the_start(key: SigningKey) -> None:
    prove(key, NOW)
    other = private_pem(lambda: ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(ConfigError, match="signing key cannot sign"):
        prove(replace(key, private_key=other), NOW)


def test_picture_that_cannot_be_signed_is_no_picture(key: SigningKey) -> None:
    with pytest.raises(GenerationFailed, match="picture cannot be signed with Content Credentials"):
        encode(pixels(), MADE, "png", replace(key, algorithm="es384"))


# -- the command --------------------------------------------------------------------------------------------------------


def run_inspect(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return inspect.run(parser.parse_args(arguments))


def test_inspect_prints_a_page_and_exits_0(
    signed: dict[PictureFormat, bytes], key_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gen-456.png").write_bytes(signed["png"])
    assert run_inspect(str(tmp_path / "gen-456.png"), "--trust", str(key_folder / "root.pem")) == 0
    page = capsys.readouterr().out
    assert "Credentials  valid, and the signer is trusted" in page
    for fact in ("김서연", MODEL_ID, MADE.styles[0].sha256, "Seed: 42", TRAINED_ALGORITHMIC_MEDIA, "artist_id"):
        assert fact in page


@pytest.mark.parametrize("what", ["DER", "a key", "nothing", "half a certificate"])
def test_roots_that_cannot_be_read_are_refused_and_no_picture_is_called_tampered_for_them(
    signed: dict[PictureFormat, bytes], key_folder: Path, tmp_path: Path, what: str
) -> None:
    pem = (key_folder / "root.pem").read_bytes()
    wrong = {
        "DER": x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER),
        "a key": private_pem(lambda: ec.generate_private_key(ec.SECP256R1())),
        "nothing": b"",
        "half a certificate": pem[: len(pem) // 2],
    }
    (tmp_path / "gen-456.png").write_bytes(signed["png"])
    (tmp_path / "root").write_bytes(wrong[what])
    with pytest.raises(InvalidInput, match="root holds no certificate in PEM"):
        run_inspect(str(tmp_path / "gen-456.png"), "--trust", str(tmp_path / "root"))


def test_roots_with_a_byte_order_mark_or_a_key_beside_them_are_trusted(
    signed: dict[PictureFormat, bytes], key_folder: Path, tmp_path: Path
) -> None:
    key = private_pem(lambda: ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "gen-456.png").write_bytes(signed["png"])
    (tmp_path / "root").write_bytes(b"\xef\xbb\xbf" + (key_folder / "root.pem").read_bytes() + key)
    assert run_inspect(str(tmp_path / "gen-456.png"), "--trust", str(tmp_path / "root")) == 0


def test_inspect_of_a_tampered_picture_exits_1(
    signed: dict[PictureFormat, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "forged.png").write_bytes(with_one_pixel_changed(signed["png"]))
    assert run_inspect(str(tmp_path / "forged.png")) == 1
    assert "BROKEN" in capsys.readouterr().out


def test_inspect_of_a_file_that_is_not_there_is_invalid_input(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"none\.png cannot be read: No such file"):
        run_inspect(str(tmp_path / "none.png"))


def test_page_is_safe_to_print_whatever_the_picture_holds() -> None:
    hostile = io.BytesIO()
    exif = Image.Exif()
    exif[0x013B] = "\x1b[2J\x1b]0;owned\x07"
    Image.fromarray(pixels()).save(hostile, "JPEG", exif=exif)
    page = describe(read(hostile.getvalue()))
    assert "owned" in page
    assert "\x1b" not in page
