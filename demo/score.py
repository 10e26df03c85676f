"""Scores a picture against what its prompt claims, with numpy and Pillow alone.

    claims = claims_from_json(entry["claims"])        # one entry of prompts_heldout.json
    checks = score(picture, claims)                   # {"time": 1.0, "boat": 0.0, ...}, one number per claim
    share = fraction(checks)                          # their mean, 0 to 1

A check looks for colours in the right region: sky and ground against the palette, an object as a silhouette filled
with its paint, the sun or moon as a disc. `has_thing` and `has_light` answer for a single object, named or not. Drawn
scenes score above 95 %, drawn scenes against another scene's claims below 40 % (tests/unit/test_demo_scenes.py).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from demo import painting, palette
from demo.captions import Claims, ThingClaim
from demo.objects import PAINTERS
from demo.scenes import COLOURS, GROUNDS, TIMES, WEATHERS, Scene

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]

SIDE_PX = 128
TOLERANCE = 160.0
"""How far, over red, green and blue together, a pixel may be from the drawn one where the paint is not in question."""
PAINTED, SHAPED, BESIDE = 0.45, 0.5, 0.5
"""Least share of a silhouette's paint that has the colour's name, least share of the whole that has about the drawn
colours, and how much of the paint's share may be found beside the silhouette."""
DISC_FILLED = 0.5


@dataclass(frozen=True)
class Silhouette:
    """One object as drawn: its colours [h, w, 3], where it is, where its paint is, and its place in the picture."""

    colours: Pixels
    shape: Mask
    paint: Mask
    foot_row: int


@dataclass(frozen=True)
class Setting:
    """What the palette says of a picture's background."""

    time: str
    weather: str
    ground: str


def claims_to_json(claims: Claims) -> dict[str, Any]:
    """Claims as plain JSON values."""
    return asdict(claims)


def claims_from_json(data: Mapping[str, Any]) -> Claims:
    """Claims out of `claims_to_json`'s form."""
    things = tuple(ThingClaim(**thing) for thing in data["things"])
    return Claims(**{**data, "things": things})


def score(picture: Image.Image, claims: Claims, strict: bool = False) -> dict[str, float]:
    """One number per claim, 1.0 where the picture keeps it and 0.0 where not; `strict` adds numbers and sides."""
    pixels = _pixels(picture)
    setting = read_setting(pixels)
    checks: dict[str, bool] = {}
    if claims.time:
        checks["time"] = setting.time == claims.time
    if claims.ground:
        checks["ground"] = setting.ground == claims.ground
    if claims.weather in ("cloudy", "rain", "snow", "fog"):
        checks["weather"] = _weather(pixels, setting, claims.weather)
    if claims.mountains:
        checks["mountains"] = _mountain_share(pixels, setting) > 0.08
    if claims.birds:
        checks["birds"] = _birds(pixels, setting) >= 1
    if claims.light:
        sides = _light_places(pixels, claims.light)
        checks["light"] = bool(sides)
        if strict and claims.light_side:
            checks["light side"] = claims.light_side in sides
    for claim in claims.things:
        checks.update(_thing_checks(pixels, claim, strict))
    return {name: float(kept) for name, kept in checks.items()}


def fraction(checks: Mapping[str, float]) -> float:
    """Mean of the checks; 1.0 for a prompt that claims nothing."""
    return sum(checks.values()) / len(checks) if checks else 1.0


def has_thing(picture: Image.Image, kind: str, colour: str | None = None) -> bool:
    """True when an object of this kind (and colour, if given) is in the picture."""
    return bool(_find(_pixels(picture), kind, colour))


def has_light(picture: Image.Image, light: str) -> bool:
    """True when the "sun" or "moon" is in the picture's sky."""
    return bool(_light_places(_pixels(picture), light))


def _pixels(picture: Image.Image) -> Pixels:
    small = picture.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)
    return np.asarray(small, np.float32)


def _thing_checks(pixels: Pixels, claim: ThingClaim, strict: bool) -> dict[str, bool]:
    found = _find(pixels, claim.kind, claim.colour)
    checks = {claim.kind: bool(found)}
    if not strict:
        return checks
    if claim.count == 0:
        checks[f"{claim.kind} count"] = len(found) >= 2
    elif claim.count is not None and claim.count > 1:
        checks[f"{claim.kind} count"] = len(found) == claim.count
    if claim.side:
        checks[f"{claim.kind} side"] = any(_side(x) == claim.side for x in found)
    return checks


def _side(x: float) -> str:
    return "left" if x < 0.41 else "right" if x > 0.59 else "centre"


def _band(pixels: Pixels, low: float, high: float) -> Pixels:
    rows = pixels[round(low * SIDE_PX) : max(round(high * SIDE_PX), round(low * SIDE_PX) + 1)]
    middle: Pixels = np.median(rows.reshape(-1, 3), axis=0).astype(np.float32)
    return middle


BANDS = ((0.0, 0.02), (0.27, 0.31), (0.43, 0.47), (0.64, 0.67), (0.9, 0.93), (0.98, 1.0))


def read_setting(pixels: Pixels) -> Setting:
    """Time, weather and ground whose drawn picture has the nearest colours in six bands."""
    seen = np.stack([_band(pixels, low, high) for low, high in BANDS])
    best = min(_palettes().items(), key=lambda item: float(np.minimum(np.abs(item[1] - seen).sum(axis=1), 150).sum()))
    return best[0]


@lru_cache(maxsize=1)
def _palettes() -> dict[Setting, Pixels]:
    palettes = {}
    for time in TIMES:
        for weather in WEATHERS:
            for ground in GROUNDS:
                scene = Scene(time, weather, ground, False, "none", "left", False, (), "left", 1)
                drawn = _pixels(painting.draw(scene, SIDE_PX, SIDE_PX))
                palettes[Setting(time, weather, ground)] = np.stack([_band(drawn, low, high) for low, high in BANDS])
    return palettes


def _near(pixels: Pixels, colour: tuple[int, int, int], tolerance: float) -> Mask:
    near: Mask = np.abs(pixels - np.array(colour, np.float32)).sum(axis=-1) < tolerance
    return near


def _weather(pixels: Pixels, setting: Setting, weather: str) -> bool:
    if weather == "fog":
        return setting.weather == "fog"
    if weather == "cloudy":
        sky = pixels[: round(0.36 * SIDE_PX)]
        return float(_near(sky, palette.CLOUDS[setting.time], 50).mean()) > 0.06
    return _speckles(pixels, weather) and setting.weather != "fog"


def _speckles(pixels: Pixels, weather: str) -> bool:
    """True when small bright marks lie all over the upper picture: round ones for snow, dimmer ones for rain."""
    upper = pixels[round(0.18 * SIDE_PX) : round(0.95 * SIDE_PX)].mean(axis=-1)
    blurred = np.asarray(
        Image.fromarray(upper.astype(np.uint8))
        .resize((32, 24), Image.Resampling.BOX)
        .resize(upper.shape[::-1], Image.Resampling.BILINEAR),
        np.float32,
    )
    marks = upper - blurred
    cells = np.stack(
        [
            part.max(axis=(0, 1)) if part.ndim == 3 else part.max()
            for row in np.array_split(marks, 6)
            for part in np.array_split(row, 8, axis=1)
        ]
    )
    level = float(np.median(cells))
    return level > 24 if weather == "snow" else level > 5


def _mountain_share(pixels: Pixels, setting: Setting) -> float:
    band = pixels[round(0.38 * SIDE_PX) : round(0.6 * SIDE_PX)]
    light = palette.AMBIENT[setting.time]
    near = np.zeros(band.shape[:2], bool)
    for rock in ((122, 130, 156), (100, 108, 136)):
        near |= _near(band, palette.lit(rock, light), 45)
    return float(near.mean())


def _birds(pixels: Pixels, setting: Setting) -> int:
    """How many birds fly in the upper half: strokes of a bird's colour on a sky that is not of it."""
    look = _bird_silhouette(setting.time == "night")
    height, width = look.shape.shape
    near = _near(pixels, (206, 212, 232) if setting.time == "night" else (44, 46, 62), 130)
    band = near[round(0.14 * SIDE_PX) : round(0.46 * SIDE_PX)]
    windows = np.lib.stride_tricks.sliding_window_view(band, (height, width))
    hits = windows[..., look.paint].mean(axis=-1) - windows[..., ~look.shape].mean(axis=-1)
    places: list[tuple[int, int]] = []
    for flat in np.argsort(-hits, axis=None)[:400]:
        row, column = divmod(int(flat), hits.shape[1])
        if hits[row, column] > 0.5 and all(abs(row - r) > 4 or abs(column - c) > 8 for r, c in places):
            places.append((row, column))
    return len(places)


@lru_cache(maxsize=2)
def _bird_silhouette(night: bool) -> Silhouette:
    scale = 4
    image = Image.new("RGB", (SIDE_PX * scale,) * 2, (255, 0, 255))
    side = float(SIDE_PX * scale)
    canvas = palette.Canvas(image, ImageDraw.Draw(image), SIDE_PX * scale, SIDE_PX * scale, side, random.Random(0))
    painting.draw_bird(canvas, side / 2, side / 2, (0, 0, 0))
    cover = 1 - np.asarray(image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX), np.float32)[..., 0] / 255
    touched = cover > 0.1
    rows, columns = np.nonzero(touched.any(axis=1))[0], np.nonzero(touched.any(axis=0))[0]
    cut = (slice(rows[0] - 1, rows[-1] + 2), slice(columns[0] - 1, columns[-1] + 2))
    return Silhouette(np.zeros((1, 1, 3), np.float32), touched[cut], (cover > 0.5)[cut], 0)


def _light_places(pixels: Pixels, light: str) -> list[str]:
    """The sides on which a disc of the light's colour stands in the sky."""
    setting = read_setting(pixels)
    colour = palette.MOON if light == "moon" else palette.SUN[setting.time]
    if setting.weather == "fog":
        colour = palette.mix(colour, palette.MIST[setting.time], 0.3)
    near = _near(pixels, colour, 42 if light == "moon" and setting.time != "night" else 75)
    reach = round(0.19 * SIDE_PX)
    distance = np.hypot(*np.mgrid[-reach : reach + 1, -reach : reach + 1]) / SIDE_PX
    disc, ring = distance <= 0.075, (distance > 0.155) & (distance <= 0.185)
    padded = np.pad(near, reach)
    sides = []
    for side, across in (("left", 0.2), ("centre", 0.5), ("right", 0.8)):
        fills = []
        for row in range(round(0.1 * SIDE_PX), round(0.52 * SIDE_PX), 2):
            for column in range(round((across - 0.09) * SIDE_PX), round((across + 0.09) * SIDE_PX) + 1, 2):
                window = padded[row : row + 2 * reach + 1, column : column + 2 * reach + 1]
                fills.append(window[disc].mean() - 0.5 * window[ring].mean())
        if max(fills) > DISC_FILLED:
            sides.append(side)
    return sides


@lru_cache(maxsize=1024)
def _silhouette(kind: str, colour: str, size: float, time: str) -> Silhouette:
    light = palette.OBJECT_AMBIENT[time]
    drawn = []
    scale = 4
    for backdrop in ((255, 0, 255), (0, 255, 0)):
        image = Image.new("RGB", (SIDE_PX * scale,) * 2, backdrop)
        side = float(SIDE_PX * scale)
        canvas = palette.Canvas(image, ImageDraw.Draw(image), SIDE_PX * scale, SIDE_PX * scale, side, random.Random(0))
        PAINTERS[kind](canvas, side / 2, side * 0.75, size * side, colour, light, False)
        drawn.append(np.asarray(image.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX), np.float32))
    shape = np.abs(drawn[0] - drawn[1]).sum(axis=-1) < 30
    rows, columns = np.nonzero(shape.any(axis=1))[0], np.nonzero(shape.any(axis=0))[0]
    cut = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    paint = _near(drawn[0], palette.lit(palette.PAINTS[colour], light), 60) & shape
    return Silhouette(drawn[0][cut], shape[cut], paint[cut], round(SIDE_PX * 0.75) - int(rows[0]))


def _named(pixels: Pixels, colour: str) -> Mask:
    """Where a person would call the pixel by this name; pale and dusky backgrounds have none."""
    high, low = pixels.max(axis=-1), pixels.min(axis=-1)
    chroma = high - low
    if colour == "white":
        named: Mask = (low > 165) & (chroma < 48)
        return named
    if colour == "black":
        return np.asarray((high < 78) & (chroma < 34))
    red, green, blue = np.moveaxis(pixels, -1, 0)
    safe = np.maximum(chroma, 1)
    hue = np.where(high == red, (green - blue) / safe % 6, (blue - red) / safe + 2)
    hue = 60 * np.where((high == blue) & (high != red), (red - green) / safe + 4, hue)
    first, last, vivid, bright = HUES[colour]
    inside = (hue >= first) & (hue < last) if first < last else (hue >= first) | (hue < last)
    return np.asarray(inside & (chroma > vivid * high) & (high > bright))


HUES: dict[str, tuple[float, float, float, float]] = {
    "red": (342, 17, 0.6, 110),
    "orange": (12, 45, 0.6, 130),
    "yellow": (38, 66, 0.55, 130),
    "green": (105, 175, 0.55, 60),
    "blue": (212, 262, 0.6, 110),
    "purple": (255, 305, 0.4, 90),
    "pink": (300, 352, 0.3, 150),
}
"""Colour name -> hues from and to (degrees), least saturation, least brightness."""


def _find(pixels: Pixels, kind: str, colour: str | None) -> list[float]:
    """Where objects of this kind stand, as shares of the width, best match first, none overlapping."""
    hits: list[tuple[float, float]] = []
    time = read_setting(pixels).time
    for name in COLOURS if colour is None else (colour,):
        named = _named(pixels, name)
        for size in (1.0, 0.86, 0.72):
            look = _silhouette(kind, name, size, time)
            hits += _matches(pixels, named, look, 0.28 if kind == "balloon" else 0.84)
    places: list[float] = []
    for _, x in sorted(hits, reverse=True):
        if all(abs(x - other) > 0.17 for other in places):
            places.append(x)
    return places


def _matches(pixels: Pixels, named: Mask, look: Silhouette, foot: float) -> list[tuple[float, float]]:
    """(match, x) of the places where the silhouette is filled well enough, its foot near the row `foot`."""
    height, width = look.shape.shape
    over = width // 6
    wide = np.pad(pixels, ((0, 0), (over, over), (0, 0)))
    wide_named = np.pad(named, ((0, 0), (over, over)))
    inside = np.pad(np.ones(SIDE_PX, bool), over)
    view = np.lib.stride_tricks.sliding_window_view
    seen = view(inside, width)[::2, np.nonzero(look.shape)[1]]
    beside_seen = view(inside, width)[::2, np.nonzero(~look.shape)[1]]
    paint = look.paint[look.shape] & seen
    hits = []
    for row in range(round((foot - 0.07) * SIDE_PX), round((foot + 0.07) * SIDE_PX) + 1, 2):
        rows = slice(row - look.foot_row, row - look.foot_row + height)
        windows = view(wide[rows], width, axis=1)[:, ::2].transpose(1, 0, 3, 2)
        name_windows = view(wide_named[rows], width, axis=1)[:, ::2].transpose(1, 0, 2)
        near = np.abs(windows[:, look.shape] - look.colours[look.shape]).sum(axis=-1) < TOLERANCE
        right = np.where(look.paint[look.shape], name_windows[:, look.shape], near)
        shaped = (right & seen).sum(axis=1) / seen.sum(axis=1)
        painted = (name_windows[:, look.shape] & paint).sum(axis=1) / np.maximum(paint.sum(axis=1), 1)
        beside = (name_windows[:, ~look.shape] & beside_seen).sum(axis=1) / np.maximum(beside_seen.sum(axis=1), 1)
        good = (painted > PAINTED) & (shaped > SHAPED) & (beside < BESIDE * painted)
        hits += [
            (float(shaped[index] + painted[index]), float(2 * index - over + width / 2) / SIDE_PX)
            for index in np.nonzero(good)[0]
        ]
    return hits
