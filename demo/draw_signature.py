"""Draws ``signature.png``, a made-up artist's hand, and the sheet on which every position and size can be seen.

``python -m demo.draw_signature`` writes both anew, byte for byte the same.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from orchestrator.imaging.signature import load_signature, stamp, text_signature
from orchestrator.job import SignatureRef

FOLDER = Path(__file__).parent
SHEET = FOLDER.parent / "docs" / "images" / "signatures.png"

INK = (38, 30, 74)
SIZE_PX = (900, 400)
# Drawn four times as large and made smaller, which is what smooths the edges.
SUPERSAMPLING = 4

Point = tuple[float, float, float]
# Each stroke is the way of the pen: x and y in pixels, and the pressure, which is half the line's width.
STROKES: tuple[Sequence[Point], ...] = (
    # the stem of the R
    ((168, 60, 2), (160, 120, 6), (146, 200, 8), (130, 268, 7), (112, 312, 3)),
    # its bowl and leg, running on into e, m, a, r
    (
        (86, 128, 2), (120, 70, 5), (188, 38, 6), (248, 62, 7), (246, 122, 7), (196, 166, 5), (158, 180, 3),
        (196, 200, 5), (240, 252, 7), (276, 282, 6), (306, 262, 4), (322, 226, 4), (308, 208, 3), (294, 236, 4),
        (312, 274, 6), (340, 262, 4), (358, 222, 5), (364, 270, 6), (384, 226, 3), (396, 270, 6), (416, 224, 3),
        (426, 272, 6), (452, 258, 3), (484, 226, 4), (460, 232, 4), (456, 266, 6), (482, 262, 4), (494, 228, 4),
        (496, 270, 6), (518, 250, 3), (532, 222, 4), (550, 232, 5), (544, 272, 5), (568, 262, 3),
    ),
    # q, u, e and the flourish back under the name
    (
        (616, 228, 3), (588, 232, 5), (582, 266, 6), (606, 264, 4), (622, 230, 4), (616, 300, 7), (600, 356, 6),
        (576, 344, 3), (610, 296, 3), (648, 228, 4), (648, 268, 6), (670, 260, 4), (684, 226, 4), (686, 270, 6),
        (712, 256, 4), (732, 228, 4), (716, 222, 3), (706, 252, 5), (730, 276, 6), (790, 244, 5), (850, 206, 2),
    ),
    ((250, 356, 2), (380, 330, 5), (560, 322, 7), (720, 316, 4), (838, 300, 1)),
)  # fmt: skip


def main() -> None:
    """Writes both files."""
    signature = draw()
    signature.save(FOLDER / "signature.png", optimize=True)
    SHEET.parent.mkdir(parents=True, exist_ok=True)
    sheet((FOLDER / "signature.png").read_bytes()).save(SHEET, optimize=True)


def draw() -> Image.Image:
    """Gives the signature, RGBA with a transparent ground, cut to the ink."""
    large = Image.new("L", (SIZE_PX[0] * SUPERSAMPLING, SIZE_PX[1] * SUPERSAMPLING))
    pen = ImageDraw.Draw(large)
    for stroke in STROKES:
        for x, y, pressure in _smoothed(stroke):
            at, radius = (x * SUPERSAMPLING, y * SUPERSAMPLING), pressure * SUPERSAMPLING
            pen.ellipse((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), fill=255)
    signature = Image.new("RGBA", SIZE_PX, (*INK, 0))
    signature.putalpha(large.resize(SIZE_PX, Image.Resampling.BOX))
    return signature.crop(signature.getbbox())


def _smoothed(points: Sequence[Point]) -> Iterator[NDArray[np.float64]]:
    """Gives points along the Catmull-Rom curve through ``points``, half a pixel apart or less."""
    knots = np.array([points[0], *points, points[-1]], np.float64)
    for index, (start, end) in enumerate(pairwise(points)):
        before, here, there, after = knots[index : index + 4]
        count = int(2 * np.hypot(end[0] - start[0], end[1] - start[1])) + 2
        for t in np.linspace(0, 1, count):
            yield 0.5 * (
                2 * here
                + (there - before) * t
                + (2 * before - 5 * here + 4 * there - after) * t**2
                + (3 * here - before - 3 * there + after) * t**3
            )


def sheet(signature: bytes) -> Image.Image:
    """Gives ten stamped pictures in two rows: six positions, three sizes, opacities, and written names."""
    mark = load_signature(signature)
    refs = (
        SignatureRef(position="top-left", size="small", opacity=1.0),
        SignatureRef(position="top-center", size="medium", opacity=1.0),
        SignatureRef(position="top-right", size="large", opacity=1.0),
        SignatureRef(position="bottom-left", size="large", opacity=0.7),
        SignatureRef(position="bottom-center", size="medium", opacity=0.5),
        SignatureRef(position="bottom-right", size="small", opacity=0.3),
        SignatureRef(artist_name="김서연", position="bottom-right", size="medium", opacity=1.0),
        SignatureRef(artist_name="Seoyeon Kim", position="bottom-left", size="large", opacity=1.0),
        SignatureRef(artist_name="José Núñez", position="top-right", size="large", opacity=0.7),
        SignatureRef(artist_name="바다의 화가", position="bottom-right", size="large", opacity=1.0),
    )
    side, gap = 288, 8
    whole = Image.new("RGB", (5 * side + 6 * gap, 2 * side + 3 * gap), (250, 250, 250))
    for index, ref in enumerate(refs):
        chosen = mark if ref.artist_name is None else text_signature(ref.artist_name)
        stamped = Image.fromarray(stamp(_ground(index, side), chosen, ref))
        whole.paste(stamped, (gap + index % 5 * (side + gap), gap + index // 5 * (side + gap)))
    return whole


def _ground(index: int, side: int) -> NDArray[np.uint8]:
    """Gives a picture to stamp on, uint8 [side, side, 3]: a sky over a sea, from morning to night with ``index``."""
    skies = np.array([(250, 224, 190), (176, 212, 240), (214, 226, 200), (244, 176, 140), (238, 238, 232)], np.float64)
    seas = np.array([(150, 180, 190), (96, 150, 180), (150, 190, 150), (150, 110, 130), (226, 222, 212)], np.float64)
    darkness = 0.35 if index in (6, 7, 8) else 1.0
    heights = np.linspace(0, 1, side)[:, None, None]
    sky, sea = skies[index % 5] * darkness, seas[index % 5] * darkness
    picture = np.where(heights < 0.6, sky * (1 - 0.2 * heights), sea * (1.2 - 0.5 * heights))
    return np.broadcast_to(np.rint(picture), (side, side, 3)).astype(np.uint8)


if __name__ == "__main__":
    main()
