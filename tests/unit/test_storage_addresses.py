"""Which addresses mean which object, and which are refused: message senders write them."""

from pathlib import Path
from random import Random
from urllib.parse import unquote

import pytest

from orchestrator.clients.addresses import Address, AllowedPrefixes, join, parse_address
from orchestrator.errors import InvalidInput


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("gs://bucket/models/a.safetensors", Address("gs", "bucket", "models/a.safetensors")),
        ("GS://bucket/a", Address("gs", "bucket", "a")),
        ("s3://my.bucket-1/a/b", Address("s3", "my.bucket-1", "a/b")),
        ("gs://bucket/styles/12/", Address("gs", "bucket", "styles/12")),
        ("gs://bucket/%ED%95%9C%EA%B8%80.png", Address("gs", "bucket", "한글.png")),
        ("gs://bucket/한글 그림.png", Address("gs", "bucket", "한글 그림.png")),
        ("gs://bucket/a%20b+c.png", Address("gs", "bucket", "a b+c.png")),
        ("gs://bucket/a%2Fb", Address("gs", "bucket", "a/b")),
        ("gs://bucket/a%252Fb", Address("gs", "bucket", "a%2Fb")),
        ("gs://bucket/100%.png", Address("gs", "bucket", "100%.png")),
        ("gs://bucket/a?b#c", Address("gs", "bucket", "a?b#c")),
        ("https://storage.googleapis.com/bucket/a%20b.png", Address("gs", "bucket", "a b.png")),
        ("https://Storage.GoogleApis.com/bucket/a", Address("gs", "bucket", "a")),
        ("file:///data/a%20b", Address("file", "", "data/a b")),
        ("file://localhost/data/a", Address("file", "", "data/a")),
        ("/data//./a%20b", Address("file", "", "data/a%20b")),
    ],
)
def test_an_address_is_read_once_into_bucket_and_plain_name(uri: str, address: Address) -> None:
    assert parse_address(uri) == address


def test_a_relative_path_starts_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_address("styles/a").path() == f"{tmp_path}/styles/a"


@pytest.mark.parametrize(
    "key", ["한글 그림.png", "a+b", "a%2Fb", "a%20b", "100%", "a?b#c", "é~'()*", "a&b=c;d,e:f@g$h!"]
)
@pytest.mark.parametrize("scheme", ["gs", "s3", "file"])
def test_every_name_survives_being_written_as_a_uri(scheme: str, key: str) -> None:
    address = Address(scheme, "" if scheme == "file" else "bucket", key)  # type: ignore[arg-type]
    assert parse_address(address.uri()) == address


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "gs://",
        "gs:///a",
        "gs://UPPER/a",
        "gs://b/a",
        "gs://bucket/../other/a",
        "gs://bucket/a/..",
        "gs://bucket/a/./b",
        "gs://bucket/a//b",
        "gs://bucket/%2e%2e/a",
        "gs://bucket/%252e%252e/a",
        "gs://bucket/a%2f..%2fb",
        "gs://bucket/a\\b",
        "gs://bucket/a%5cb",
        "gs://bucket/a%00.png",
        "gs://bucket/a\x00.png",
        "gs://bucket/a\nb",
        "gs://bucket/%FF%FE",
        "gs://bucket/\ud800",
        "gs://user@bucket/a",
        "gs://bucket:80/a",
        "gs://bucket%2Fother/a",
        "gs://bucket/" + "a" * 1025,
        "gs://bucket/" + "한" * 342,
        "https://storage.googleapis.com:443/bucket/a",
        "https://storage.googleapis.com@evil.example/bucket/a",
        "https://user:pw@storage.googleapis.com/bucket/a",
        "https://evil.example/bucket/a",
        "https://bucket.storage.googleapis.com/a",
        "https://storage.googleapis.com.evil.example/bucket/a",
        "https://storage.googleapis.com./bucket/a",
        "https://storage.googleapis.com/bucket/a?X-Goog-Signature=1",
        "https://storage.googleapis.com/bucket/a#b",
        "http://storage.googleapis.com/bucket/a",
        "ftp://host/a",
        "data://text",
        "file://host/etc/passwd",
        "file://etc",
        "file:///data/../etc/passwd",
        "file:///data/%2e%2e/etc/passwd",
        "/data/../etc/passwd",
        "../etc/passwd",
    ],
)
def test_an_address_with_two_meanings_is_refused(uri: str) -> None:
    with pytest.raises(InvalidInput):
        parse_address(uri)


@pytest.mark.parametrize(
    "uri", ["gs://bucket/models/a", "gs://bucket/models", "https://storage.googleapis.com/bucket/models/a"]
)
def test_what_lies_below_an_allowed_prefix_is_admitted(uri: str) -> None:
    assert AllowedPrefixes.parse(["gs://bucket/models/"]).admit(parse_address(uri)) == parse_address(uri)


@pytest.mark.parametrize(
    "uri", ["gs://bucket/modelsx/a", "gs://bucket/a", "gs://bucket2/models/a", "s3://bucket/models/a", "/models/a"]
)
def test_what_lies_elsewhere_is_refused_by_name(uri: str) -> None:
    with pytest.raises(
        InvalidInput, match=r"may not be read; allowed are gs://bucket/models \(ALLOWED_INPUT_PREFIXES\)"
    ):
        AllowedPrefixes.parse(["gs://bucket/models"]).admit(parse_address(uri))


def test_an_empty_list_admits_nothing() -> None:
    with pytest.raises(InvalidInput, match="allowed are nothing"):
        AllowedPrefixes.parse([]).admit(parse_address("gs://bucket/a"))


def test_a_whole_bucket_and_every_file_can_be_allowed() -> None:
    allowed = AllowedPrefixes.parse(["gs://bucket", "file:///"])
    assert allowed.admit(parse_address("gs://bucket/a/b")).key == "a/b"
    assert allowed.admit(parse_address("/a/b")).key == "a/b"


def test_a_link_that_leaves_the_allowed_folder_is_refused(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "link").symlink_to(outside)
    with pytest.raises(InvalidInput):
        AllowedPrefixes.parse([str(inside)]).admit(parse_address(f"{inside}/link/secret"))


def test_an_allowed_folder_that_is_itself_a_link_admits_its_files(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    admitted = AllowedPrefixes.parse([f"{tmp_path}/link"]).admit(parse_address(f"{tmp_path}/link/a"))
    assert admitted.path() == f"{real}/a"


def test_a_link_that_points_at_itself_does_not_hang(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in" / "loop")
    address = AllowedPrefixes.parse([f"{tmp_path}/in"]).admit(parse_address(f"{tmp_path}/in/loop"))
    assert address.key.endswith("in/loop")


PIECES = [
    *(
        "gs://",
        "s3://",
        "file://",
        "https://storage.googleapis.com/",
        "bucket",
        "/",
        "//",
        "..",
        ".",
        "%2e",
        "%2F",
        "%25",
    ),
    *(
        "\\",
        "%5c",
        "\x00",
        "%00",
        "%0a",
        "a",
        "한",
        "%ED%95%9C",
        "%FF",
        "?",
        "#",
        "@",
        ":80",
        "+",
        " ",
        "\ud800",
        "\x85",
    ),
]


def test_whatever_comes_is_refused_or_plain_and_reads_back_the_same() -> None:
    rng = Random(5)
    kept = 0
    for _ in range(1_500):
        text = "".join(rng.choices(PIECES, k=rng.randint(1, 9)))
        try:
            address = parse_address(text, decode=rng.random() < 0.5)
        except InvalidInput:
            continue
        kept += 1
        assert parse_address(address.uri()) == address
        for name in (address.key, unquote(address.key)):
            assert not {"..", "."} & set(name.split("/"))
            assert not {"\\", "\x00", "\n"} & set(name)
    assert kept > 150


def test_join_takes_a_plain_name_below_a_folder() -> None:
    assert join("https://storage.googleapis.com/bucket/styles/12/", "a b.json") == "gs://bucket/styles/12/a%20b.json"


def test_join_refuses_a_name_that_climbs() -> None:
    with pytest.raises(InvalidInput):
        join("gs://bucket/styles/12", "../13/a")
