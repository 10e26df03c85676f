"""Paints a scene: flat shapes, soft skies, the same picture for the same scene at any size."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from demo.objects import PAINTERS
from demo.palette import (
    AMBIENT,
    AMBIENT_DROP,
    CLOUDS,
    CLOUDY_SKY,
    GROUNDS,
    HORIZON,
    MIST,
    MOON,
    OBJECT_AMBIENT,
    RAIN_CLOUDS,
    SKIES,
    SKY_GREYING,
    SUN,
    SUPERSAMPLING,
    Canvas,
    Rgb,
    lit,
    mix,
)
from demo.scenes import Scene, Thing


def draw(scene: Scene, width: int, height: int) -> Image.Image:
    """Paints `scene` as an RGB picture of exactly `width` x `height` pixels."""
    wide, high = width * SUPERSAMPLING, height * SUPERSAMPLING
    image = Image.fromarray(_sky(scene, wide, high))
    canvas = Canvas(image, ImageDraw.Draw(image), wide, high, float(min(wide, high)), random.Random(scene.wobble))
    if scene.time == "night" and scene.weather == "clear":
        _stars(canvas)
    if scene.light != "none":
        _light(canvas, scene)
    if scene.weather in ("cloudy", "rain", "snow"):
        _clouds(canvas, scene)
    if scene.mountains:
        _mountains(canvas, scene)
    _ground(canvas, scene)
    if scene.weather == "fog":
        _fog(canvas, scene)
    if scene.birds:
        _birds(canvas, scene)
    _things(canvas, scene)
    if scene.weather in ("rain", "snow"):
        _falling(canvas, scene)
    return canvas.image.resize((width, height), Image.Resampling.BOX)


def _sky(scene: Scene, wide: int, high: int) -> NDArray[np.uint8]:
    top, low = SKIES[scene.time]
    grey = CLOUDY_SKY[scene.time]
    share = SKY_GREYING[scene.weather]
    ramp = _ramp(mix(top, grey, share), mix(low, grey, share), round(high * HORIZON), high)
    return np.ascontiguousarray(np.broadcast_to(ramp[:, None, :], (high, wide, 3)))


def _ramp(top: Rgb, low: Rgb, rows: int, height: int) -> NDArray[np.uint8]:
    share = np.clip(np.arange(height) / max(rows, 1), 0, 1)[:, None]
    return np.rint(np.array(top) * (1 - share) + np.array(low) * share).astype(np.uint8)


def _stars(canvas: Canvas) -> None:
    for _ in range(16):
        x, y = canvas.rng.random() * canvas.width, canvas.rng.random() * canvas.height * 0.45
        canvas.disc(x, y, canvas.unit * canvas.rng.choice((0.004, 0.006)), (236, 238, 250))


def _across(side: str) -> float:
    return {"left": 0.2, "centre": 0.5, "right": 0.8}[side]


def _light(canvas: Canvas, scene: Scene) -> None:
    low = scene.light == "sun" and scene.time in ("dawn", "dusk")
    x = (_across(scene.light_side) + canvas.wobble(0.03)) * canvas.width
    y = (0.42 if low else 0.17) * canvas.height + canvas.wobble(0.02) * canvas.unit
    radius = canvas.unit * (0.105 if low else 0.085)
    colour = MOON if scene.light == "moon" else SUN[scene.time]
    sky = canvas.image.getpixel((min(max(int(x), 0), canvas.width - 1), int(y)))
    assert isinstance(sky, tuple)
    canvas.disc(x, y, radius * 1.45, mix((sky[0], sky[1], sky[2]), colour, 0.3))
    canvas.disc(x, y, radius, colour)
    if scene.light == "moon":
        for dx, dy, size in ((-0.35, -0.2, 0.2), (0.3, 0.25, 0.25), (0.2, -0.45, 0.14)):
            canvas.disc(x + dx * radius, y + dy * radius, size * radius, mix(colour, (150, 150, 160), 0.35))


def _clouds(canvas: Canvas, scene: Scene) -> None:
    colour = (CLOUDS if scene.weather == "cloudy" else RAIN_CLOUDS)[scene.time]
    if scene.weather == "snow":
        colour = mix(CLOUDS[scene.time], RAIN_CLOUDS[scene.time], 0.4)
    places = (
        ((0.16, 0.13), (0.5, 0.24), (0.83, 0.12))
        if scene.weather == "cloudy"
        else ((0.1, 0.07), (0.37, 0.1), (0.64, 0.07), (0.9, 0.1))
    )
    for across, down in places:
        if scene.light != "none" and abs(across - _across(scene.light_side)) < 0.15:
            continue
        x = (across + canvas.wobble(0.04)) * canvas.width
        y = down * canvas.height + canvas.wobble(0.02) * canvas.unit
        _cloud(canvas, x, y, canvas.unit * (0.13 + canvas.wobble(0.015)), colour)


def _cloud(canvas: Canvas, x: float, y: float, size: float, colour: Rgb) -> None:
    for dx, dy, radius in ((-0.6, 0.05, 0.4), (-0.1, -0.22, 0.55), (0.5, -0.05, 0.45)):
        canvas.disc(x + dx * size, y + dy * size, radius * size, colour)
    canvas.pen.rounded_rectangle((x - size, y, x + 0.98 * size, y + 0.45 * size), radius=0.22 * size, fill=colour)


def _mountains(canvas: Canvas, scene: Scene) -> None:
    light = AMBIENT[scene.time]
    foot = canvas.height * (HORIZON + 0.04)
    for across, tall in ((0.2, 0.25), (0.78, 0.27), (0.48, 0.34)):
        x = (across + canvas.wobble(0.03)) * canvas.width
        peak = canvas.height * HORIZON - canvas.unit * (tall + canvas.wobble(0.02))
        half = (foot - peak) * 0.85
        canvas.polygon([(x - half, foot), (x, peak), (x + half, foot)], lit((122, 130, 156), light))
        canvas.polygon([(x, foot), (x, peak), (x + half, foot)], lit((100, 108, 136), light))
        cap = 0.3
        h = (foot - peak) * cap
        canvas.polygon(
            [(x - half * cap, peak + h), (x, peak), (x + half * cap, peak + h), (x, peak + h * 0.75)],
            lit((244, 246, 250), light),
        )


def _ground(canvas: Canvas, scene: Scene) -> None:
    far, near = (lit(colour, AMBIENT[scene.time]) for colour in GROUNDS[scene.ground])
    if scene.ground == "sea":
        _sea(canvas, far, near)
        return
    bumps = {"hills": 0.05, "desert": 0.035, "snowfield": 0.02}[scene.ground]
    _rolling(canvas, HORIZON, bumps, far)
    _rolling(canvas, HORIZON + 0.14, bumps, mix(far, near, 0.55))
    _rolling(canvas, HORIZON + 0.27, bumps, near)


def _sea(canvas: Canvas, far: Rgb, near: Rgb) -> None:
    top = round(canvas.height * HORIZON)
    ramp = _ramp(far, near, canvas.height - top, canvas.height - top)
    water = np.ascontiguousarray(np.broadcast_to(ramp[:, None, :], (canvas.height - top, canvas.width, 3)))
    canvas.image.paste(Image.fromarray(water), (0, top))
    foam = mix(far, (255, 255, 255), 0.35)
    for row in range(4):
        y = top + (row + 0.6) / 4 * (canvas.height - top)
        for column in range(3):
            x = (column / 3 + (row % 2) / 6 + 0.08 + canvas.wobble(0.05)) * canvas.width
            half, thick = canvas.unit * 0.045, canvas.unit * 0.005
            canvas.pen.rounded_rectangle((x - half, y - thick, x + half, y + thick), radius=thick, fill=foam)


def _rolling(canvas: Canvas, level: float, bump: float, colour: Rgb) -> None:
    phase = canvas.rng.random() * 2 * np.pi
    x = np.linspace(0, canvas.width, 65)
    y = level * canvas.height + bump * canvas.unit * np.sin(x / canvas.unit * 5.0 + phase)
    outline = [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
    canvas.polygon([(0, canvas.height), *outline, (canvas.width, canvas.height)], colour)


def _fog(canvas: Canvas, scene: Scene) -> None:
    y = np.arange(canvas.height) / canvas.height
    share = 0.3 + 0.6 * np.exp(-(((y - HORIZON - 0.02) / 0.16) ** 2))
    mask = np.ascontiguousarray(np.broadcast_to((share * 255).astype(np.uint8)[:, None], (canvas.height, canvas.width)))
    canvas.image.paste(Image.new("RGB", canvas.image.size, MIST[scene.time]), mask=Image.fromarray(mask))


def _birds(canvas: Canvas, scene: Scene) -> None:
    colour = (206, 212, 232) if scene.time == "night" else (44, 46, 62)
    across = {"left": 0.68, "centre": 0.24, "right": 0.32}[scene.light_side]
    for dx, dy in ((-0.12, 0.02), (0.02, -0.05), (0.14, 0.05)):
        x = across * canvas.width + (dx + canvas.wobble(0.02)) * canvas.unit
        y = 0.3 * canvas.height + (dy + canvas.wobble(0.015)) * canvas.unit
        draw_bird(canvas, x, y, colour)


def draw_bird(canvas: Canvas, x: float, y: float, colour: Rgb) -> None:
    """Two raised wings that meet at (x, y)."""
    wing = canvas.unit * 0.055
    points = [
        (x - wing, y - wing * 0.5),
        (x - wing * 0.45, y - wing * 0.55),
        (x, y),
        (x + wing * 0.45, y - wing * 0.55),
        (x + wing, y - wing * 0.5),
    ]
    canvas.pen.line(points, fill=colour, width=max(1, round(canvas.unit * 0.013)), joint="curve")


def places(scene: Scene) -> list[tuple[Thing, float, float]]:
    """Where each object stands: (thing, x as a share of the width, size factor), left to right by kind."""
    standing = [thing for thing in scene.things if thing.kind != "balloon"]
    flying = [thing for thing in scene.things if thing.kind == "balloon"]
    placed = []
    for group in (standing, flying):
        ordered = list(group) if scene.side != "right" else list(reversed(group))
        row = [thing for thing in ordered for _ in range(thing.count)]
        side = scene.side
        if group is flying and standing:
            side = {"left": "right", "right": "left", "centre": "centre"}[scene.side]
            if scene.things[0].kind == "balloon":
                side = scene.side
        elif group is standing and flying and scene.things[0].kind == "balloon":
            side = {"left": "right", "right": "left", "centre": "centre"}[scene.side]
        for index, thing in enumerate(row):
            x = {"left": 0.26, "centre": 0.5, "right": 0.74}[side] if len(row) == 1 else (index + 0.5) / len(row)
            placed.append((thing, x, {1: 1.0, 2: 0.92, 3: 0.78}.get(len(row), 0.66)))
    return placed


def _things(canvas: Canvas, scene: Scene) -> None:
    light = OBJECT_AMBIENT[scene.time]
    for thing, across, size in places(scene):
        x = (across + canvas.wobble(0.025)) * canvas.width
        if thing.kind == "balloon":
            y = 0.28 * canvas.height + canvas.wobble(0.02) * canvas.unit
        else:
            y = (0.84 + canvas.wobble(0.012)) * canvas.height
        PAINTERS[thing.kind](canvas, x, y, size * canvas.unit, thing.colour, light, scene.ground == "sea")


def _falling(canvas: Canvas, scene: Scene) -> None:
    rain = mix((214, 228, 244), AMBIENT_DROP[scene.time], 0.5)
    for row in range(7):
        for column in range(7):
            x = (column + 0.5 + (row % 2) * 0.5 + canvas.wobble(0.22)) / 7 * canvas.width
            y = (row + 0.5 + canvas.wobble(0.22)) / 7 * canvas.height
            if scene.weather == "snow":
                canvas.disc(x, y, canvas.unit * 0.0095, (252, 252, 255))
            else:
                length = canvas.unit * 0.042
                canvas.pen.line(
                    [(x, y), (x - length * 0.35, y + length)], fill=rain, width=max(1, round(canvas.unit * 0.006))
                )
