"""The staging service on a real Triton with networks of our own: small pictures, few steps, prompts of a few words."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from fakes.staging import Staging, encoded, room
from PIL import Image

from orchestrator.staging.original import PhotoLimits, read_photo
from orchestrator.staging.request import ROOM_TYPES, STAGING_STYLES

EDGE_PX = 256


def settings(url: str, repository: Path, folder: Path, **more: str) -> dict[str, str]:
    """What serves ``repository`` at ``url``; the tokenizers of small checkpoints make many tokens of few words."""
    prompts = {style: f"a {style} room" for style in STAGING_STYLES}
    rooms = {name: {"negative_prompt": "blur", "prompts": prompts} for name in ROOM_TYPES}
    table = folder / "prompts.yaml"
    table.write_text(yaml.safe_dump({"version": "test", "negative_prompt": "text", "rooms": rooms}))
    return {
        "INFERENCE_MODE": "self",
        "TRITON_URL": url,
        "MODEL_REPOSITORY": str(repository),
        "STAGING_PROMPTS_FILE": str(table),
        "STAGING_WORKING_PX": str(EDGE_PX),
        "STAGING_FALLBACK": "refuse",
        "STAGING_QUALITY": "off",
        "STAGING_STEPS": "4",
        "STAGING_ATTEMPTS": "1",
        "STAGING_DEADLINE_SECONDS": "600",
    } | more


def photo() -> Image.Image:
    """An empty room with grain in it, 640x640."""
    grain = np.random.default_rng(3).integers(0, 12, (640, 640, 3), np.uint8)
    return Image.fromarray(np.asarray(room(640, 640)) // 2 + grain)


def mask() -> np.ndarray:
    area = np.zeros((640, 640), np.bool_)
    area[380:600, 100:540] = True
    return area


def put(served: Staging) -> None:
    """Upload both."""
    served.put("uploads/room.png", encoded(photo(), "PNG"))
    served.put("uploads/mask.png", encoded(Image.fromarray(mask().astype(np.uint8) * 255), "PNG"))


def wish(served: Staging, image_id: str, **changes: Any) -> dict[str, Any]:
    wanted = {"original_key": "uploads/room.png", "mask_key": "uploads/mask.png", "tier": "pro", "seed": 5}
    return served.wish(image_id, **(wanted | changes))


def staged(served: Staging, image_id: str, **changes: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Pixels and answer."""
    answer = served.infer(wish(served, image_id, **changes))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return np.asarray(Image.open(io.BytesIO(served.stored(body["staged_key"])))), body


def working() -> tuple[np.ndarray, np.ndarray]:
    """The photograph as it is worked on, and the mask at that size."""
    limits = PhotoLimits(longest_px=EDGE_PX, step_px=64)
    inside = np.asarray(Image.fromarray(mask()).resize((EDGE_PX, EDGE_PX), Image.Resampling.NEAREST))
    return read_photo(encoded(photo(), "PNG"), limits).pixels, inside


def until(condition: Callable[[], bool], within_s: float = 300) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s
        time.sleep(0.1)
