"""Strangers' photographs: upright, sRGB, without metadata, at the working size; masks; who may name which key."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from fakes.staging import encoded
from PIL import Image, ImageCms

from orchestrator.errors import ConfigError, InvalidInput, Unauthorized
from orchestrator.staging.accounts import load_accounts, same_token
from orchestrator.staging.masks import composite, floor_mask
from orchestrator.staging.original import PhotoLimits, read_mask, read_photo
from orchestrator.staging.request import read_request
from orchestrator.staging.sizes import Size

LIMITS = PhotoLimits(longest_px=768, step_px=64)


def halves(width_px: int = 768, height_px: int = 512) -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (width_px, height_px), (200, 20, 20))
    picture.paste((20, 20, 200), (width_px // 2, 0, width_px, height_px))
    return picture


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied(orientation: int):
    turns = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # Image.Transpose that undoes each
    upright = halves()
    stored = upright if turns[orientation] is None else upright.transpose(inverse(turns[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    working = read_photo(encoded(stored, quality=95, exif=exif), LIMITS)
    assert working.pixels.shape == (512, 768, 3)
    assert working.original == Size(768, 512)
    assert working.pixels[256, 100, 0] > 150 > working.pixels[256, 100, 2]


def inverse(turn: int | None) -> Image.Transpose:
    back = {2: 4, 4: 2}
    assert turn is not None
    return Image.Transpose(back.get(turn, turn))


def test_an_icc_profile_of_another_space_is_converted_to_srgb():
    """A profile that swaps nothing but says "colours are brighter" must change the pixels: gamma 1.0 instead of 2.2."""
    linear = linear_profile()
    plain, tagged = (read_photo(encoded(halves(), "PNG", **extra), LIMITS) for extra in ({}, {"icc_profile": linear}))
    assert tagged.pixels[256, 100, 1] > plain.pixels[256, 100, 1] + 30
    assert tagged.warnings == ()


def linear_profile() -> bytes:
    """sRGB's own profile with its three tone curves replaced by straight lines."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    tags = {bytes(profile[at : at + 4]): at for at in range(132, 132 + 12 * profile[131], 12)}
    for name in (b"rTRC", b"gTRC", b"bTRC"):
        offset = int.from_bytes(profile[tags[name] + 4 : tags[name] + 8], "big")
        profile[offset : offset + 12] = b"curv" + bytes(8)  # no entries: the identity
        profile[tags[name] + 8 : tags[name] + 12] = (12).to_bytes(4, "big")
    return bytes(profile)


def test_a_profile_that_cannot_be_read_is_said():
    working = read_photo(encoded(halves(), "PNG", icc_profile=b"junk" * 40), LIMITS)
    assert working.warnings == ("the colour profile of the original cannot be read; it was taken for sRGB",)


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA"])
def test_grey_and_opaque_pictures_are_read(mode: str):
    assert read_photo(encoded(halves().convert(mode), "PNG"), LIMITS).pixels.shape == (512, 768, 3)


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size():
    data = encoded(halves(3000, 2000), quality=60)
    assert read_photo(data, LIMITS).pixels.shape == (512, 768, 3)


def test_what_a_phone_appends_to_a_photograph_is_not_looked_at():
    film = b"\0\0\0\x18ftypmp42" + b"\xff\xda\0\2" * 500
    assert read_photo(encoded(halves()) + film, LIMITS).pixels.shape == (512, 768, 3)


def test_a_thumbnail_inside_a_photograph_does_not_hide_its_scans():
    data = encoded(halves(), progressive=True)
    thumbnail = b"\xff\xe1\x01\x00" + encoded(halves(8, 8))[-254:]  # it ends with an end of picture
    last = data.rindex(b"\xff\xda")
    with pytest.raises(InvalidInput, match="more than 100 scans"):
        read_photo(data[:2] + thumbnail + data[2:last] + data[last:-2] * 200 + b"\xff\xd9", LIMITS)


def test_a_mask_is_scaled_to_the_working_image_and_white_may_change():
    working = read_photo(encoded(halves(), "PNG"), LIMITS)
    picture = Image.new("L", (1536, 1024))
    picture.paste(255, (0, 512, 1536, 1024))
    mask = read_mask(encoded(picture, "PNG"), working, LIMITS)
    assert mask.shape == (512, 768)
    assert mask[300:].all()
    assert not mask[:250].any()


def test_a_mask_drawn_on_an_answer_fits_at_any_aspect():
    photo = read_photo(encoded(halves(3000, 1447)), LIMITS)
    height_px, width_px = photo.pixels.shape[:2]
    assert abs(width_px / height_px / (3000 / 1447) - 1) > 0.02
    assert read_mask(encoded(Image.new("L", (width_px, height_px), 255), "PNG"), photo, LIMITS).all()


@pytest.mark.parametrize(
    ("picture", "sentence"),
    [(Image.new("L", (768, 768), 255), "aspect"), (Image.new("L", (768, 512)), "black everywhere")],
)
def test_a_mask_of_another_aspect_or_without_white_is_refused(picture: Image.Image, sentence: str):
    working = read_photo(encoded(halves(), "PNG"), LIMITS)
    with pytest.raises(InvalidInput, match=sentence):
        read_mask(encoded(picture, "PNG"), working, LIMITS)


def test_outside_the_mask_every_byte_is_the_working_images():
    rng = np.random.default_rng(3)
    working, staged = (rng.integers(0, 256, (96, 128, 3), np.uint8) for _ in range(2))
    mask = rng.random((96, 128)) > 0.5
    result = composite(working, staged, mask)
    assert np.array_equal(result[~mask], working[~mask])


def test_inside_the_mask_the_photograph_passes_into_the_staged_picture_over_eight_pixels():
    working, staged = (np.full((64, 64, 3), value, np.uint8) for value in (0, 160))
    mask = np.zeros((64, 64), np.bool_)
    mask[16:, 16:48] = True
    row = composite(working, staged, mask)[50, 14:28, 0].tolist()
    assert row == [0, 0, 20, 40, 60, 80, 100, 120, 140, 160, 160, 160, 160, 160]
    assert composite(working, staged, mask)[63, 32, 0] == 160, "the picture's own border is no seam"


def test_all_pixels_of_a_photograph_are_kept_where_they_are_asked_for():
    photo = halves(1536, 1024)
    data = encoded(photo, "PNG")
    assert read_photo(data, LIMITS).full is None
    full = read_photo(data, LIMITS, keep_full=True).full
    assert full is not None
    assert np.array_equal(full, np.asarray(photo))


def test_the_floor_is_below_the_walls():
    mask = floor_mask(640, 960)
    assert not mask[:320].any()
    assert mask[400:600, 300:660].all()


# Callers


def accounts_file(folder: Path, text: str) -> Path:
    path = folder / "clients.toml"
    path.write_text(text)
    return path


def entry(token: str = "secret", tiers: str = '["pro"]', prefixes: str = '["up/"]') -> str:
    return f'token_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"\ntiers = {tiers}\nprefixes = {prefixes}\n'


def test_a_bearer_token_finds_its_caller(tmp_path: Path):
    accounts = load_accounts(accounts_file(tmp_path, f"[a]\n{entry()}[b]\n{entry('other')}"))
    assert accounts.authenticate("Bearer other").name == "b"
    assert accounts.authenticate("bearer secret").name == "a"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer nope", "Basic secret", "secret", "Bearer secret extra"])
def test_any_other_header_finds_nobody(header: str | None, tmp_path: Path):
    with pytest.raises(Unauthorized):
        load_accounts(accounts_file(tmp_path, f"[a]\n{entry()}")).authenticate(header)


def test_the_operators_token_is_compared_whole():
    assert same_token("Bearer admin", "admin")
    assert not any(same_token(header, "admin") for header in (None, "", "admin", "Bearer admi", "Bearer admin "))


def test_a_users_and_a_projects_prefix_are_filled_in(tmp_path: Path):
    account = load_accounts(
        accounts_file(tmp_path, "[a]\n" + entry(prefixes='["up/{user_id}/{project_id}/"]'))
    ).authenticate("Bearer secret")
    wish = b'{"image_id": "a", "original_key": "k", "room_type": "office", "style": "modern", "user_id": "u1"%s}'
    (allowed,) = account.allowed("s3://bucket/in", read_request(wish % b', "project_id": "p"'))
    assert allowed.uri() == "s3://bucket/in/up/u1/p"
    with pytest.raises(InvalidInput, match="project_id is missing"):
        account.allowed("s3://bucket/in", read_request(wish % b""))


@pytest.mark.parametrize(("prefix", "users"), [("up/", 1), ("up/{user_id}/", 2)])
def test_users_count_apart_only_where_the_prefixes_tell_them_apart(prefix: str, users: int, tmp_path: Path):
    account = load_accounts(accounts_file(tmp_path, "[a]\n" + entry(prefixes=f'["{prefix}"]'))).authenticate(
        "Bearer secret"
    )
    wish = b'{"image_id": "a", "original_key": "k", "room_type": "office", "style": "modern", "user_id": "%s"}'
    assert len({account.payer(read_request(wish % user)) for user in (b"u1", b"u2")}) == users


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "lists nobody"),
        ("[a]\n" + entry(tiers='["gold"]'), "tiers"),
        ("[a]\n" + entry(tiers="[]"), "tiers"),
        ("[a]\n" + entry(prefixes='["up"]'), "ends with /"),
        ("[a]\n" + entry(prefixes='["{artist}/"]'), "artist"),
        ("[a]\n" + entry(prefixes='["../"]'), r"\.\./"),
        ("[a]\n" + entry() + "extra = 1\n", "nothing else"),
        (f"[a]\n{entry()}[b]\n{entry()}", "the same token"),
        ('[a]\ntoken_sha256 = "secret"\ntiers = ["pro"]\nprefixes = []\n', "its value is not shown"),
        ("[a", "cannot be read"),
    ],
)
def test_a_file_of_callers_with_a_mistake_stops_the_start(text: str, sentence: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=sentence):
        load_accounts(accounts_file(tmp_path, text))
