"""What OpenCV sees in a picture: the only module that imports ``cv2``, which ``people`` and ``staging`` bring."""

import threading
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import ConfigError

_LONGEST_PX: Final = 640
_FACES: Final = "haarcascade_frontalface_alt2.xml"
# Faces below a twentieth of the picture, and figures the HOG detector is unsure of, are mostly lamps and curtains.
_SMALLEST_FACE: Final = 0.05
_LEAST_SCORE: Final = 0.6


class PeopleDetector:
    """OpenCV's own detectors, of 2001 and 2005: good enough to notice somebody who stands in a room, no safeguard.

    Threads may share one; they wait for each other, since a cascade is not safe to share.
    """

    def __init__(self) -> None:
        self._cv2 = _opencv("REJECT_PEOPLE", "people")
        file = Path(self._cv2.__file__).parent / "data" / _FACES
        if not file.is_file():
            raise ConfigError(f"REJECT_PEOPLE: this OpenCV has no {_FACES}; versions 4.13 to 4.x ship it")
        self._faces = self._cv2.CascadeClassifier(str(file))
        self._figures = self._cv2.HOGDescriptor()
        self._figures.setSVMDetector(self._cv2.HOGDescriptor_getDefaultPeopleDetector())
        self._lock = threading.Lock()

    def count(self, picture: NDArray[np.uint8]) -> int:
        """How many faces and standing figures are seen in uint8 [h,w,3]; one person may count twice."""
        scale = min(1.0, _LONGEST_PX / max(picture.shape[:2]))
        size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
        small = self._cv2.resize(picture, size, interpolation=self._cv2.INTER_AREA)
        grey = self._cv2.cvtColor(small, self._cv2.COLOR_RGB2GRAY)
        least = max(24, round(min(size) * _SMALLEST_FACE))
        with self._lock:
            faces = self._faces.detectMultiScale(grey, scaleFactor=1.1, minNeighbors=6, minSize=(least, least))
            _, scores = self._figures.detectMultiScale(grey, winStride=(8, 8), scale=1.1)
        return len(faces) + int(np.count_nonzero(np.asarray(scores) > _LEAST_SCORE))


class Shapes:
    """Edges, and pieces of masks; without state, so threads may share one."""

    def __init__(self) -> None:
        self._cv2 = _opencv("INFERENCE_MODE self in the staging service", "staging")

    def edges(self, picture: NDArray[np.uint8], low: float, high: float) -> NDArray[np.uint8]:
        """Canny's edges of uint8 [h,w,3], 255 on 0 [h,w]; the thresholds are those of gradients, 0 to about 1000."""
        found: NDArray[np.uint8] = self._cv2.Canny(picture, low, high)
        return found

    def pieces(self, mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The number of each pixel's piece, 0 outside, [h,w]; and left, top, width, height, area by number, [n,5]."""
        _, labels, stats, _ = self._cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
        return labels, stats

    def closed(self, mask: NDArray[np.bool_], reach_px: int) -> NDArray[np.bool_]:
        """The mask with gaps of up to twice ``reach_px`` filled."""
        return self._morphed(mask, self._cv2.MORPH_CLOSE, reach_px)

    def opened(self, mask: NDArray[np.bool_], reach_px: int) -> NDArray[np.bool_]:
        """The mask without what is narrower than twice ``reach_px``."""
        return self._morphed(mask, self._cv2.MORPH_OPEN, reach_px)

    def _morphed(self, mask: NDArray[np.bool_], operation: int, reach_px: int) -> NDArray[np.bool_]:
        square = np.ones((2 * reach_px + 1,) * 2, np.uint8)
        # Beyond the border the picture goes on as it ends there; OpenCV's own border would eat the mask away.
        padded = np.pad(mask.astype(np.uint8), 2 * reach_px, mode="edge")
        done: NDArray[np.uint8] = self._cv2.morphologyEx(padded, operation, square)
        kept = slice(2 * reach_px, -2 * reach_px if reach_px else None)
        return done[kept, kept].astype(np.bool_)


def _opencv(what: str, extra: str) -> Any:
    try:
        import cv2
    except ImportError:
        raise ConfigError(f"{what} needs OpenCV; pip install 'remarque[{extra}]'") from None
    return cv2
