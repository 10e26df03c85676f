"""The painted objects: each painter gets the foot point (or a balloon's middle), a size in pixels and a colour."""

from __future__ import annotations

from collections.abc import Callable

from demo.palette import PAINTS, PANE, ROOF, SAIL, SAND, WOOD, Canvas, lit, mix

Light = tuple[float, float, float]
Painter = Callable[[Canvas, float, float, float, str, Light, bool], None]


def _islet(canvas: Canvas, x: float, y: float, half: float, light: Light) -> None:
    canvas.disc(x, y, half, lit(SAND, light), squash=0.2)


def _boat(canvas: Canvas, x: float, y: float, size: float, colour: str, light: Light, sea: bool) -> None:
    paint = lit(PAINTS[colour], light)
    half, deep, tall = 0.17 * size, 0.095 * size, 0.27 * size
    rim = y - deep * 0.6
    canvas.box(x - 0.007 * size, rim - tall, x + 0.007 * size, rim, lit(WOOD, light))
    sail = lit(SAIL, light)
    canvas.polygon(
        [(x + 0.016 * size, rim - tall), (x + 0.016 * size, rim - 0.03 * size), (x + half * 0.85, rim - 0.03 * size)],
        sail,
    )
    canvas.polygon(
        [
            (x - 0.016 * size, rim - tall * 0.9),
            (x - 0.016 * size, rim - 0.03 * size),
            (x - half * 0.62, rim - 0.03 * size),
        ],
        mix(sail, (180, 180, 190), 0.25),
    )
    hull = [(x - half, rim), (x + half, rim), (x + half * 0.68, rim + deep), (x - half * 0.68, rim + deep)]
    canvas.polygon(hull, paint)


def _house(canvas: Canvas, x: float, y: float, size: float, colour: str, light: Light, sea: bool) -> None:
    paint = lit(PAINTS[colour], light)
    half, tall, peak = 0.145 * size, 0.19 * size, 0.13 * size
    if sea:
        _islet(canvas, x, y, half * 1.7, light)
    canvas.box(x + half * 0.45, y - tall - peak, x + half * 0.68, y - tall, lit(ROOF, light))
    canvas.box(x - half, y - tall, x + half, y, paint)
    canvas.polygon([(x - half * 1.22, y - tall), (x, y - tall - peak), (x + half * 1.22, y - tall)], lit(ROOF, light))
    canvas.box(x - half * 0.2, y - tall * 0.52, x + half * 0.2, y, lit(WOOD, light))
    for dx in (-0.62, 0.62):
        middle = x + dx * half
        canvas.box(middle - 0.2 * half, y - tall * 0.76, middle + 0.2 * half, y - tall * 0.42, PANE)


def _tree(canvas: Canvas, x: float, y: float, size: float, colour: str, light: Light, sea: bool) -> None:
    paint = lit(PAINTS[colour], light)
    if sea:
        _islet(canvas, x, y, 0.16 * size, light)
    canvas.polygon(
        [
            (x - 0.024 * size, y),
            (x + 0.024 * size, y),
            (x + 0.016 * size, y - 0.2 * size),
            (x - 0.016 * size, y - 0.2 * size),
        ],
        lit(WOOD, light),
    )
    for dx, dy, radius in ((-0.075, -0.19, 0.085), (0.075, -0.19, 0.085), (0.0, -0.275, 0.105)):
        canvas.disc(x + dx * size, y + dy * size, radius * size, paint)


def _lighthouse(canvas: Canvas, x: float, y: float, size: float, colour: str, light: Light, sea: bool) -> None:
    paint, white = lit(PAINTS[colour], light), lit((248, 248, 246), light)
    if colour == "white":
        white = lit((206, 210, 218), light)
    if sea:
        _islet(canvas, x, y, 0.17 * size, light)
    foot, head, tall, bands = 0.075 * size, 0.048 * size, 0.38 * size, 5
    for band in range(bands):
        low, high = band / bands, (band + 1) / bands
        a, b = foot + (head - foot) * low, foot + (head - foot) * high
        shape = [(x - a, y - tall * low), (x + a, y - tall * low), (x + b, y - tall * high), (x - b, y - tall * high)]
        canvas.polygon(shape, paint if band % 2 == 0 else white)
    top = y - tall
    canvas.box(x - 0.062 * size, top - 0.012 * size, x + 0.062 * size, top, lit(ROOF, light))
    canvas.box(x - 0.034 * size, top - 0.062 * size, x + 0.034 * size, top - 0.012 * size, PANE)
    canvas.polygon(
        [(x - 0.056 * size, top - 0.062 * size), (x, top - 0.115 * size), (x + 0.056 * size, top - 0.062 * size)],
        lit(ROOF, light),
    )


def _balloon(canvas: Canvas, x: float, y: float, size: float, colour: str, light: Light, sea: bool) -> None:
    paint = lit(PAINTS[colour], light)
    shade = mix(paint, (255, 255, 255), 0.22) if colour != "white" else lit((214, 218, 226), light)
    radius = 0.125 * size
    basket = y + radius * 1.75
    for dx in (-0.3, 0.3):
        canvas.pen.line(
            [(x + dx * 2 * radius, y + radius * 0.75), (x + dx * 0.75 * radius, basket)],
            fill=lit(WOOD, light),
            width=max(1, round(size * 0.006)),
        )
    canvas.polygon(
        [
            (x - radius * 0.86, y + radius * 0.5),
            (x + radius * 0.86, y + radius * 0.5),
            (x + radius * 0.22, y + radius * 1.32),
            (x - radius * 0.22, y + radius * 1.32),
        ],
        paint,
    )
    canvas.disc(x, y, radius, paint)
    canvas.pen.ellipse((x - radius * 0.38, y - radius, x + radius * 0.38, y + radius * 1.3), fill=shade)
    canvas.box(x - 0.3 * radius, basket, x + 0.3 * radius, basket + 0.4 * radius, lit(WOOD, light))


PAINTERS: dict[str, Painter] = {
    "boat": _boat,
    "house": _house,
    "tree": _tree,
    "lighthouse": _lighthouse,
    "balloon": _balloon,
}
"""Kind of object -> its painter."""
