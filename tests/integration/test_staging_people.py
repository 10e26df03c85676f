"""OpenCV's own detectors on a face and on empty rooms; the rule in the service."""

from pathlib import Path

import numpy as np
import pytest
from fakes.staging import encoded, room, staging
from PIL import Image, ImageDraw, ImageFilter

from orchestrator.imaging.opencv import PeopleDetector


def with_a_face() -> Image.Image:
    """A room with a large drawn face, shaded so that the cascade takes it for one."""
    picture = room().filter(ImageFilter.GaussianBlur(1))
    draw = ImageDraw.Draw(picture)
    x, y, r = 480, 260, 110
    draw.ellipse((x - r, y - r * 1.3, x + r, y + r * 1.3), fill=(224, 180, 150))
    draw.pieslice((x - r, y - r * 1.35, x + r, y + r * 0.6), 180, 360, fill=(60, 40, 30))
    draw.rectangle((x - r * 0.85, y - r * 0.55, x + r * 0.85, y - r * 0.1), fill=(224, 180, 150))
    for side in (-1, 1):
        eye = x + side * r * 0.42
        draw.rectangle((eye - 30, y - 52, eye + 30, y - 38), fill=(50, 35, 30))
        draw.ellipse((eye - 26, y - 32, eye + 26, y), fill=(250, 250, 250))
        draw.ellipse((eye - 12, y - 30, eye + 12, y - 4), fill=(30, 20, 20))
    draw.polygon([(x, y - 10), (x - 20, y + 48), (x + 20, y + 48)], fill=(196, 150, 122))
    draw.ellipse((x - 44, y + 68, x + 44, y + 96), fill=(150, 60, 60))
    return picture.filter(ImageFilter.GaussianBlur(2))


@pytest.fixture(scope="module")
def detector() -> PeopleDetector:
    return PeopleDetector()


def test_a_face_is_seen(detector: PeopleDetector):
    assert detector.count(np.asarray(with_a_face())) >= 1


@pytest.mark.parametrize("size", [(960, 640), (1024, 768), (640, 960)])
def test_nobody_is_seen_in_an_empty_room(detector: PeopleDetector, size: tuple[int, int]):
    assert detector.count(np.asarray(room(*size))) == 0


def test_a_photograph_with_a_person_is_content_rejected_before_any_provider(tmp_path: Path):
    with staging(tmp_path, REJECT_PEOPLE="true") as served:
        key = served.put("uploads/person.jpg", encoded(with_a_face()))
        answer = served.infer(served.wish("a", original_key=key))
        assert (answer.status_code, answer.json()["code"]) == (422, "content_rejected")
        assert served.infer(served.wish("b")).status_code == 200
        calls = 'remarque_staging_provider_calls_total{error_code="",outcome="succeeded",provider="mock"}'
        assert served.metric(calls) == 1
