"""The five styles' materials. They are far apart on purpose: a style must be told from a small picture."""

from __future__ import annotations

from dataclasses import dataclass

from demo.rooms.faces import Rgb


@dataclass(frozen=True)
class Palette:
    """What things are made of in one style."""

    fabric: Rgb
    second: Rgb
    wood: Rgb
    metal: Rgb
    rug: Rgb
    border: Rgb
    accent: Rgb
    shade: Rgb


PALETTES = {
    "modern": Palette(
        fabric=(112, 117, 124),
        second=(236, 236, 238),
        wood=(46, 48, 52),
        metal=(186, 191, 197),
        rug=(206, 208, 211),
        border=(206, 208, 211),
        accent=(24, 148, 164),
        shade=(248, 248, 248),
    ),
    "contemporary": Palette(
        fabric=(224, 206, 178),
        second=(204, 116, 72),
        wood=(156, 112, 76),
        metal=(206, 174, 104),
        rug=(242, 230, 208),
        border=(206, 160, 120),
        accent=(206, 104, 54),
        shade=(252, 236, 204),
    ),
    "traditional": Palette(
        fabric=(132, 30, 40),
        second=(168, 124, 58),
        wood=(86, 44, 24),
        metal=(180, 142, 62),
        rug=(124, 36, 36),
        border=(196, 156, 84),
        accent=(196, 152, 66),
        shade=(246, 222, 170),
    ),
    "industrial": Palette(
        fabric=(112, 66, 34),
        second=(74, 74, 77),
        wood=(132, 92, 58),
        metal=(26, 26, 29),
        rug=(92, 90, 87),
        border=(70, 68, 66),
        accent=(200, 84, 28),
        shade=(44, 44, 46),
    ),
    "scandinavian": Palette(
        fabric=(236, 236, 231),
        second=(150, 190, 180),
        wood=(224, 190, 144),
        metal=(244, 244, 243),
        rug=(226, 232, 226),
        border=(170, 196, 186),
        accent=(74, 142, 80),
        shade=(252, 250, 244),
    ),
}
