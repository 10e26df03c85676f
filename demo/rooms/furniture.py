"""Pieces of furniture, each standing around (0, 0) and looking towards whoever looks into the room (negative z)."""

from __future__ import annotations

from demo.rooms.faces import Face, Rgb, box, face, prism, shadow
from demo.rooms.palettes import Palette

Faces = list[Face]


def legs(width: float, deep: float, high: float, colour: Rgb, thick: float = 0.05) -> Faces:
    """Four legs at the corners of a footprint."""
    found: Faces = []
    for x in (-width / 2, width / 2 - thick):
        for z in (-deep / 2, deep / 2 - thick):
            found += box((x, x + thick), (0, high), (z, z + thick), colour)
    return found


def sofa(made: Palette, width: float = 2.0) -> Faces:
    """A seat with back, arms and three cushions, one of them in the accent colour."""
    half = width / 2
    faces = shadow((-half, half), (-0.42, 0.42)) + legs(width - 0.1, 0.7, 0.12, made.wood)
    faces += box((-half, half), (0.12, 0.42), (-0.42, 0.42), _dim(made.fabric, 0.93))
    faces += box((-half, half), (0.42, 0.84), (0.2, 0.42), made.fabric)
    for x in (-half, half - 0.18):
        faces += box((x, x + 0.18), (0.12, 0.62), (-0.42, 0.42), _dim(made.fabric, 0.88))
    seat = (width - 0.36) / 2
    for x in (-seat, 0.01):
        faces += box((x, x + seat - 0.01), (0.42, 0.5), (-0.4, 0.2), _dim(made.fabric, 1.06))
    faces += box((-half + 0.24, -half + 0.62), (0.5, 0.82), (0.08, 0.2), made.accent)
    return faces + box((half - 0.62, half - 0.24), (0.5, 0.8), (0.08, 0.2), made.second)


def armchair(made: Palette) -> Faces:
    """One seat, in the second fabric."""
    faces = shadow((-0.4, 0.4), (-0.38, 0.38)) + legs(0.7, 0.66, 0.16, made.wood)
    faces += box((-0.4, 0.4), (0.16, 0.44), (-0.38, 0.38), made.second)
    faces += box((-0.4, 0.4), (0.44, 0.88), (0.22, 0.38), _dim(made.second, 0.95))
    for x in (-0.4, 0.28):
        faces += box((x, x + 0.12), (0.16, 0.62), (-0.38, 0.38), _dim(made.second, 0.9))
    return faces


def coffee_table(made: Palette) -> Faces:
    """A low top on thin legs."""
    return (
        shadow((-0.5, 0.5), (-0.28, 0.28), 0.05)
        + legs(0.92, 0.48, 0.36, made.metal, 0.04)
        + box((-0.52, 0.52), (0.36, 0.42), (-0.3, 0.3), made.wood)
        + box((-0.12, 0.06), (0.42, 0.47), (-0.08, 0.08), made.accent)
    )


def rug(made: Palette, width: float, deep: float) -> Faces:
    """A flat rug with a border."""

    def flat(w: float, d: float, y: float, colour: Rgb) -> Face:
        return face(((-w / 2, y, -d / 2), (w / 2, y, -d / 2), (w / 2, y, d / 2), (-w / 2, y, d / 2)), colour)

    return [flat(width, deep, 0.008, made.border), flat(width - 0.3, deep - 0.3, 0.011, made.rug)]


def floor_lamp(made: Palette) -> Faces:
    """A pole with a shade at eye level."""
    return (
        shadow((-0.14, 0.14), (-0.14, 0.14), 0.05)
        + prism((0, 0), (0, 0.03), (0.16, 0.16), made.metal)
        + box((-0.02, 0.02), (0.03, 1.4), (-0.02, 0.02), made.metal)
        + prism((0, 0), (1.35, 1.68), (0.24, 0.15), made.shade)
    )


def plant(made: Palette, high: float = 1.1) -> Faces:
    """A pot and a crown of three tufts."""
    green: Rgb = (66, 124, 66)
    return (
        shadow((-0.18, 0.18), (-0.18, 0.18), 0.06)
        + prism((0, 0), (0, 0.34), (0.14, 0.2), made.second)
        + prism((0, 0), (0.34, high), (0.12, 0.34), green)
        + prism((-0.12, 0.05), (0.5 * high, high + 0.12), (0.1, 0.2), _dim(green, 1.18))
        + prism((0.14, -0.04), (0.45 * high, high - 0.05), (0.1, 0.22), _dim(green, 0.85))
    )


def bed(made: Palette) -> Faces:
    """A double bed: headboard at the wall, mattress, blanket over its foot, two pillows."""
    faces = shadow((-0.85, 0.85), (-1.05, 1.05))
    faces += box((-0.88, 0.88), (0.0, 1.05), (0.98, 1.06), made.wood)
    faces += box((-0.84, 0.84), (0.08, 0.3), (-1.02, 1.0), _dim(made.wood, 1.1))
    faces += box((-0.82, 0.82), (0.3, 0.54), (-1.0, 0.98), (246, 244, 240))
    faces += box((-0.84, 0.84), (0.24, 0.57), (-1.02, 0.2), made.fabric)
    faces += box((-0.84, 0.84), (0.25, 0.585), (-0.75, -0.3), made.accent)
    for x in (-0.72, 0.08):
        faces += box((x, x + 0.62), (0.54, 0.74), (0.55, 0.94), made.second)
    return faces


def bedside_table(made: Palette) -> Faces:
    """A small chest with a lamp on it."""
    return (
        shadow((-0.22, 0.22), (-0.2, 0.2), 0.05)
        + box((-0.23, 0.23), (0.05, 0.5), (-0.2, 0.2), made.wood)
        + box((-0.025, 0.025), (0.5, 0.72), (-0.025, 0.025), made.metal)
        + prism((0, 0), (0.7, 0.94), (0.17, 0.11), made.shade)
    )


def table(made: Palette, width: float, deep: float) -> Faces:
    """A table to sit at."""
    return (
        shadow((-width / 2, width / 2), (-deep / 2, deep / 2))
        + legs(width - 0.1, deep - 0.1, 0.7, made.metal, 0.06)
        + box((-width / 2, width / 2), (0.7, 0.76), (-deep / 2, deep / 2), made.wood)
        + prism((0, 0), (0.76, 0.94), (0.09, 0.06), made.accent)
    )


def chair(made: Palette) -> Faces:
    """A chair whose back is at positive z."""
    return (
        shadow((-0.2, 0.2), (-0.2, 0.2), 0.05)
        + legs(0.4, 0.4, 0.42, made.metal, 0.04)
        + box((-0.22, 0.22), (0.42, 0.48), (-0.22, 0.22), made.fabric)
        + box((-0.22, 0.22), (0.48, 0.92), (0.17, 0.22), made.fabric)
    )


def bar_stool(made: Palette) -> Faces:
    """A tall stool."""
    return (
        shadow((-0.16, 0.16), (-0.16, 0.16), 0.05)
        + legs(0.34, 0.34, 0.64, made.metal, 0.035)
        + box((-0.19, 0.19), (0.64, 0.7), (-0.19, 0.19), made.fabric)
    )


def stool(made: Palette) -> Faces:
    """A low stool with a folded towel."""
    return (
        shadow((-0.18, 0.18), (-0.18, 0.18), 0.05)
        + legs(0.36, 0.36, 0.42, made.metal, 0.04)
        + box((-0.2, 0.2), (0.42, 0.47), (-0.2, 0.2), made.wood)
        + box((-0.14, 0.14), (0.47, 0.56), (-0.12, 0.12), made.second)
    )


def pendant_lamp(made: Palette, ceiling: float, low: float) -> Faces:
    """A lamp that hangs from the ceiling down to ``low``."""
    return box((-0.012, 0.012), (low + 0.25, ceiling), (-0.012, 0.012), made.metal) + prism(
        (0, 0), (low, low + 0.28), (0.26, 0.08), made.shade if made.shade[0] > 100 else made.metal
    )


def sideboard(made: Palette, width: float = 1.6) -> Faces:
    """A long low cupboard with something on it."""
    half = width / 2
    faces = shadow((-half, half), (-0.2, 0.2)) + legs(width - 0.1, 0.34, 0.14, made.metal, 0.04)
    faces += box((-half, half), (0.14, 0.78), (-0.2, 0.2), made.wood)
    for x in (-half + 0.03, 0.02):
        faces += box((x, x + half - 0.05), (0.18, 0.74), (-0.21, -0.2), _dim(made.wood, 1.12))
    return faces + prism((half * 0.5, 0), (0.78, 1.06), (0.07, 0.1), made.accent)


def desk(made: Palette) -> Faces:
    """A desk with a screen and a lamp, its user's side at negative z."""
    return (
        shadow((-0.75, 0.75), (-0.34, 0.34))
        + legs(1.44, 0.64, 0.7, made.metal)
        + box((-0.76, 0.76), (0.7, 0.75), (-0.35, 0.35), made.wood)
        + box((-0.28, 0.28), (0.84, 1.16), (0.12, 0.15), (30, 32, 36))
        + box((-0.03, 0.03), (0.75, 0.86), (0.12, 0.15), made.metal)
        + box((0.5, 0.53), (0.75, 1.1), (0.14, 0.17), made.metal)
        + prism((0.515, 0.155), (1.08, 1.24), (0.12, 0.06), made.shade)
    )


def office_chair(made: Palette) -> Faces:
    """A chair on a column, its back towards whoever looks in."""
    return (
        shadow((-0.26, 0.26), (-0.26, 0.26), 0.05)
        + prism((0, 0), (0.02, 0.08), (0.28, 0.24), made.metal)
        + box((-0.03, 0.03), (0.08, 0.44), (-0.03, 0.03), made.metal)
        + box((-0.25, 0.25), (0.44, 0.52), (-0.24, 0.24), made.fabric)
        + box((-0.24, 0.24), (0.58, 1.06), (-0.26, -0.2), made.fabric)
    )


def bookshelf(made: Palette) -> Faces:
    """Open shelves full of books."""
    books: tuple[Rgb, ...] = (made.accent, made.second, made.fabric, (232, 226, 214), made.border)
    faces = shadow((-0.5, 0.5), (-0.16, 0.16)) + box((-0.52, 0.52), (0, 1.9), (0.12, 0.16), _dim(made.wood, 0.7))
    for x in (-0.52, 0.48):
        faces += box((x, x + 0.04), (0, 1.9), (-0.16, 0.16), made.wood)
    for shelf in range(5):
        low = 0.06 + shelf * 0.38
        faces += box((-0.5, 0.5), (low - 0.04, low), (-0.16, 0.16), made.wood)
        for place in range(5):
            if (shelf + place) % 4 != 3:
                left = -0.46 + place * 0.19
                tone = books[(shelf * 2 + place) % len(books)]
                faces += box((left, left + 0.17), (low, low + 0.2 + 0.03 * (place % 3)), (-0.12, 0.1), tone)
    return faces + box((-0.52, 0.52), (1.9, 1.94), (-0.16, 0.16), made.wood)


def bath_mat(made: Palette) -> Faces:
    """A mat without a border."""
    flat = ((-0.45, 0.012, -0.3), (0.45, 0.012, -0.3), (0.45, 0.012, 0.3), (-0.45, 0.012, 0.3))
    return [face(flat, made.fabric)]


def towels(made: Palette) -> Faces:
    """Two towels on a rail, its back at z = 0."""
    faces = box((-0.4, 0.4), (1.3, 1.33), (-0.06, -0.03), made.metal)
    faces += box((-0.34, -0.04), (0.75, 1.34), (-0.08, -0.03), made.fabric)
    return faces + box((0.04, 0.34), (0.85, 1.34), (-0.08, -0.03), made.accent)


def picture(made: Palette) -> Faces:
    """A framed print, its back at z = 0."""
    return (
        box((-0.45, 0.45), (1.3, 1.95), (-0.03, 0), made.wood)
        + box((-0.4, 0.4), (1.35, 1.9), (-0.035, 0), (240, 238, 232))
        + box((-0.25, 0.1), (1.45, 1.75), (-0.04, 0), made.accent)
    )


def _dim(colour: Rgb, factor: float) -> Rgb:
    red, green, blue = (min(255.0, part * factor) for part in colour)
    return red, green, blue
