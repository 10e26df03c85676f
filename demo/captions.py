"""Names scenes: captions in many wordings, and the claims that each caption makes.

A caption names only some of what is in its scene. `Claims` records exactly that: it is what the text encoder learns
to read and what the scorer checks.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

from demo.scenes import Scene, Thing, usual
from demo.wordings import (
    BIRD_WORDS,
    CLOSINGS,
    COLOUR_WORDS,
    COUNT_WORDS,
    GROUND_PLACES,
    GROUND_TAGS,
    KIND_WORDS,
    LIGHT_WORDS,
    MOUNTAIN_WORDS,
    OPENINGS,
    PREPOSITIONS,
    SIDE_WORDS,
    STRAY_WORDS,
    TIME_TAGS,
    TIME_WORDS,
    WEATHER_TAGS,
    WEATHER_WORDS,
)

EMPTY_SHARE = 0.1


@dataclass(frozen=True)
class ThingClaim:
    """What a caption says of one kind; None where it says nothing. `count` 0 means several, number unsaid."""

    kind: str
    colour: str | None = None
    count: int | None = None
    side: str | None = None


@dataclass(frozen=True)
class Claims:
    """What a caption says of its scene; None (or False) where it says nothing."""

    time: str | None = None
    weather: str | None = None
    ground: str | None = None
    mountains: bool = False
    light: str | None = None
    light_side: str | None = None
    birds: bool = False
    things: tuple[ThingClaim, ...] = field(default=())


def choose_claims(scene: Scene, rng: random.Random) -> Claims:
    """Decides by lot what of `scene` a caption will name."""
    light = scene.light if scene.light != "none" and rng.random() < 0.65 else None
    return Claims(
        time=scene.time if rng.random() < 0.62 else None,
        weather=scene.weather if rng.random() < (0.2 if scene.weather == "clear" else 0.65) else None,
        ground=scene.ground if rng.random() < 0.62 else None,
        mountains=scene.mountains and rng.random() < 0.75,
        light=light,
        light_side=scene.light_side if light and rng.random() < 0.25 else None,
        birds=scene.birds and rng.random() < 0.8,
        things=tuple(_claim(thing, scene, rng) for thing in scene.things if rng.random() < 0.93),
    )


def _claim(thing: Thing, scene: Scene, rng: random.Random) -> ThingClaim:
    side = None
    if thing.count == 1 and rng.random() < 0.3:
        side = thing_side(thing, scene)
    count = 0 if thing.count > 1 and rng.random() < 0.25 else thing.count
    return ThingClaim(thing.kind, thing.colour if rng.random() < 0.87 else None, count, side)


def thing_side(thing: Thing, scene: Scene) -> str | None:
    """The side on which a single object stands, None where it shares a row unevenly."""
    if len(scene.things) == 1:
        return scene.side
    if any(other.count > 1 for other in scene.things):
        return None
    first = scene.things[0] == thing
    return scene.side if first else {"left": "right", "right": "left", "centre": "centre"}[scene.side]


def say_places(claims: Claims, scene: Scene) -> Claims:
    """The claims, and where things are that are not in their usual place (`scenes.usual`)."""
    habit = usual(scene)
    light_side = scene.light_side if claims.light and scene.light_side != habit.light_side else claims.light_side
    if scene.side == habit.side:
        return replace(claims, light_side=light_side)
    standing = {thing.kind: thing_side(thing, scene) for thing in scene.things if thing.count == 1}
    things = tuple(replace(claim, side=claim.side or standing.get(claim.kind)) for claim in claims.things)
    return replace(claims, light_side=light_side, things=things)


def caption(scene: Scene, rng: random.Random) -> str:
    """A caption for `scene`, worded by lot; one in ten is empty, for guidance."""
    return captioned(scene, rng)[0]


def captioned(scene: Scene, rng: random.Random) -> tuple[str, Claims]:
    """A caption and what it claims."""
    lot = rng.random()
    if lot < EMPTY_SHARE:
        return "", Claims()
    if lot < EMPTY_SHARE + 0.02:
        return " ".join(_stray(rng) for _ in range(rng.randint(1, 6))), Claims()
    claims = say_places(choose_claims(scene, rng), scene)
    return word(claims, rng), claims


def plain_words(claims: Claims, rng: random.Random) -> str:
    """Puts claims into words: a phrase or a list of tags."""
    return _tags(claims, rng) if rng.random() < 0.35 else _phrase(claims, rng)


def word(claims: Claims, rng: random.Random) -> str:
    """Plain words with what people put around them: openings, closings, stray words, missing commas."""
    text = plain_words(claims, rng)
    if rng.random() < 0.15:
        text = f"{rng.choice(OPENINGS)} {text}"
    if rng.random() < 0.15:
        text = f"{text}, {rng.choice(CLOSINGS)}"
    if rng.random() < 0.1:
        words = text.split(" ")
        for _ in range(rng.randint(1, 3)):
            words.insert(rng.randint(0, len(words)), _stray(rng))
        text = " ".join(words)
    if rng.random() < 0.08:
        text = text.replace(",", "")
    return text.strip(" ,") + ("." if rng.random() < 0.08 else "")


def _stray(rng: random.Random) -> str:
    if rng.random() < 0.6:
        return rng.choice(STRAY_WORDS)
    return "".join(rng.choice("aaabcdeeefghiiijklmnooopqrstuuvwxyz") for _ in range(rng.randint(3, 8)))


def name_thing(claim: ThingClaim, rng: random.Random, article: bool = True) -> str:
    """One object in words: "two red boats", "cottage on the left"."""
    kind = rng.choice(KIND_WORDS[claim.kind])
    count = claim.count if claim.count is not None else 1
    if count == 1:
        number = rng.choice(COUNT_WORDS[1]) if article else ""
    else:
        kind = "oaks" if kind == "oak" else kind + "s"
        number = rng.choice(COUNT_WORDS[count]) if count else rng.choice(("some", "", "several"))
    colour = rng.choice(COLOUR_WORDS[claim.colour]) if claim.colour else ""
    side = rng.choice(SIDE_WORDS[claim.side]) if claim.side else ""
    text = " ".join(part for part in (number, colour, kind, side) if part)
    return _an(text)


def _an(text: str) -> str:
    return "an" + text[1:] if text.startswith("a ") and text[2] in "aeio" else text


def _extras(claims: Claims, rng: random.Random) -> list[str]:
    extras = []
    if claims.mountains:
        extras.append(rng.choice(MOUNTAIN_WORDS))
    if claims.light:
        side = " " + rng.choice(SIDE_WORDS[claims.light_side]) if claims.light_side else ""
        extras.append(rng.choice(LIGHT_WORDS[claims.light]) + side)
    if claims.birds:
        extras.append(rng.choice(BIRD_WORDS))
    return extras


def _tags(claims: Claims, rng: random.Random) -> str:
    tags = [name_thing(thing, rng, article=rng.random() < 0.2) for thing in claims.things]
    tags += _extras(claims, rng)
    if claims.time:
        tags.append(rng.choice(TIME_TAGS[claims.time]))
    if claims.weather:
        tags.append(rng.choice(WEATHER_TAGS[claims.weather]))
    if claims.ground:
        tags.append(rng.choice(GROUND_TAGS[claims.ground]))
    rng.shuffle(tags)
    return rng.choice((", ", ", ", ", ", " ")).join(tags)


def _phrase(claims: Claims, rng: random.Random) -> str:
    things = list(claims.things)
    rng.shuffle(things)
    core = " and ".join(name_thing(thing, rng) for thing in things)
    if claims.ground:
        place = rng.choice(GROUND_PLACES[claims.ground])
        core = f"{core} {rng.choice(PREPOSITIONS[things[-1].kind])} {place}" if things else place
    clauses = []
    if claims.time:
        clauses.append(rng.choice(TIME_WORDS[claims.time]))
    if claims.weather:
        clauses.append(rng.choice(WEATHER_WORDS[claims.weather]))
    clauses += [
        rng.choice(("with", "and", ",", "with", "and there is")) + " " + extra for extra in _extras(claims, rng)
    ]
    rng.shuffle(clauses)
    if clauses and rng.random() < 0.12:
        first = clauses.pop()
        return f"{first.lstrip(', ')}, {core} {' '.join(clauses)}".replace(" ,", ",").replace("  ", " ")
    text = core + "".join((", " if rng.random() < 0.25 else " ") + clause for clause in clauses)
    return text.replace(" ,", ",").replace(",,", ",").strip()
