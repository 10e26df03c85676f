"""Scenes of the demo world: what can be in a picture, and how one is drawn by lot.

A `Scene` says everything about a picture; `painting.draw` paints it, `captions.caption` names it. Nothing here
needs more than the standard library, so that the scorer and the tests stay light.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, replace

TIMES = ("day", "dawn", "dusk", "night")
WEATHERS = ("clear", "cloudy", "rain", "snow", "fog")
GROUNDS = ("sea", "hills", "desert", "snowfield")
LIGHTS = ("none", "sun", "moon")
SIDES = ("left", "centre", "right")
KINDS = ("boat", "house", "tree", "lighthouse", "balloon")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")

HELD_OUT_SHARE = 16
"""One in so many combinations of (kind, colour, time, ground) is never seen in training."""


@dataclass(frozen=True)
class Thing:
    """One kind of object in a scene: `count` (1 to 3) of them, all of one colour."""

    kind: str
    colour: str
    count: int = 1


@dataclass(frozen=True)
class Scene:
    """Everything a picture shows.

    `things` holds none, one or two kinds; `side` is where the first of them stands (the second stands across from
    it); `light_side` is where the sun or moon is. `wobble` seeds the small differences that no caption names.
    """

    time: str
    weather: str
    ground: str
    mountains: bool
    light: str
    light_side: str
    birds: bool
    things: tuple[Thing, ...]
    side: str
    wobble: int


def held_out(scene: Scene) -> bool:
    """True for scenes that only the held-out prompts may show."""
    return any(_combination_held_out(thing, scene) for thing in scene.things)


def _combination_held_out(thing: Thing, scene: Scene) -> bool:
    name = f"{thing.kind}/{thing.colour}/{scene.time}/{scene.ground}"
    return zlib.crc32(name.encode()) % HELD_OUT_SHARE == 0


def random_scene(rng: random.Random) -> Scene:
    """A scene drawn by lot, held-out combinations included; the same `rng` state gives the same scene."""
    time = rng.choices(TIMES, (4, 2, 3, 3))[0]
    weather = rng.choices(WEATHERS, (5, 3, 2, 2, 1))[0]
    ground = rng.choices(GROUNDS, (5, 4, 2, 2))[0]
    things = _random_things(rng, ground)
    side = rng.choice(SIDES)
    if len(things) == 2 and side == "centre":
        side = rng.choice(("left", "right"))
    light = _random_light(rng, time, weather)
    balloons = sum(thing.count for thing in things if thing.kind == "balloon")
    return Scene(
        time=time,
        weather=weather,
        ground=ground,
        mountains=rng.random() < 0.3,
        light="none" if balloons == 3 else light,
        light_side=rng.choice(_light_sides(things, side)),
        birds=rng.random() < 0.25,
        things=things,
        side=side,
        wobble=rng.randrange(1 << 30),
    )


def _light_sides(things: tuple[Thing, ...], side: str) -> list[str]:
    """Where the sun or moon may be without a balloon before it."""
    balloons = sum(thing.count for thing in things if thing.kind == "balloon")
    if balloons == 1:
        return [_opposite(side) if things[0].kind == "balloon" else side]
    return [place for place in SIDES if balloons == 0 or (place == "centre") == (balloons == 2)]


def _opposite(side: str) -> str:
    return {"left": "right", "centre": "left", "right": "left"}[side]


def usual(scene: Scene) -> Scene:
    """The scene with everything where it stands when nobody says where.

    A single object stands in the middle; of two kinds the one that comes first in `KINDS` stands left; the sun or moon
    is on the right. A caption that leaves places open thus describes one picture, not the mean of several.
    """
    side = "centre"
    if len(scene.things) == 2:
        side = "left" if KINDS.index(scene.things[0].kind) < KINDS.index(scene.things[1].kind) else "right"
    return replace(scene, side=side, light_side=_light_sides(scene.things, side)[-1])


def training_scene(rng: random.Random) -> Scene:
    """A scene drawn by lot that is not held out; every other one, and each whose places no words tell, is `usual`."""
    while True:
        scene = random_scene(rng)
        if not held_out(scene):
            unspeakable = len(scene.things) == 2 and any(thing.count > 1 for thing in scene.things)
            return usual(scene) if unspeakable or rng.random() < 0.5 else scene


def _random_light(rng: random.Random, time: str, weather: str) -> str:
    if rng.random() < (0.35 if weather == "clear" else 0.65):
        return "none"
    if time == "night":
        return "moon"
    return "moon" if time != "day" and rng.random() < 0.15 else "sun"


def _random_things(rng: random.Random, ground: str) -> tuple[Thing, ...]:
    weights = (6, 2, 1, 3, 2) if ground == "sea" else (0, 5, 5, 1, 2)
    number = rng.choices((0, 1, 2), (1, 6, 4))[0]
    kinds: list[str] = []
    while len(kinds) < number:
        kind = rng.choices(KINDS, weights)[0]
        if kind not in kinds:
            kinds.append(kind)
    return tuple(_random_thing(rng, kind, number) for kind in kinds)


def _random_thing(rng: random.Random, kind: str, number: int) -> Thing:
    colour = rng.choice(COLOURS)
    if kind == "tree" and rng.random() < 0.5:
        colour = "green"
    count = rng.choices((1, 2, 3), (6, 2, 2) if number == 1 else (4, 1, 0))[0]
    return Thing(kind, colour, 1 if kind == "lighthouse" else count)
