"""What OpenCV sees in a picture: the only module that imports ``cv2``, which the extra ``people`` brings."""

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
        try:
            import cv2
        except ImportError:
            raise ConfigError("REJECT_PEOPLE needs OpenCV; pip install 'remarque[people]'") from None
        self._cv2: Any = cv2
        file = Path(cv2.__file__).parent / "data" / _FACES
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
