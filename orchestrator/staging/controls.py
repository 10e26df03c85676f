"""What ControlNets see of a room: its edges, and how far everything is."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from orchestrator.imaging.opencv import Shapes

# Those of the pictures that the published canny ControlNets were trained on.
_CANNY: Final = (100.0, 200.0)


def canny_picture(picture: NDArray[np.uint8], shapes: Shapes) -> NDArray[np.uint8]:
    """White edges on black, uint8 [h,w,3], of a picture of that shape."""
    return np.repeat(shapes.edges(picture, *_CANNY)[..., None], 3, axis=2)


def depth_picture(inverse_depth: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Inverse depth [h,w] as grey, uint8 [h,w,3]: what is nearest is white and what is farthest black."""
    near, far = float(inverse_depth.max()), float(inverse_depth.min())
    grey = np.rint((inverse_depth - far) / max(near - far, 1e-9) * 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
