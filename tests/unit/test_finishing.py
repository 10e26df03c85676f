"""What a finished file says of the pictures that its job brought."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from fakes.memory import MemoryStore
from small_checkpoint import small_checkpoint

from orchestrator.finishing import Finishing, Materials
from orchestrator.imaging.inspection import Inspection, read
from orchestrator.imaging.provenance import ALGORITHMIC_MEDIA, COMPOSITE_TRAINED, TRAINED_ALGORITHMIC_MEDIA
from orchestrator.imaging.signing_key import development_key
from orchestrator.job import Job
from orchestrator.pictures import NO_PICTURES, ControlPicture, Pictures, SourcePicture
from orchestrator.plan import make_plan
from orchestrator.styles import StyleShelf

CHECKPOINT = small_checkpoint(controls=("depth", "canny"))
PICTURE = np.full((256, 320, 3), 100, np.uint8)


@pytest.fixture(scope="module")
def finishing(tmp_path_factory: pytest.TempPathFactory) -> Finishing:
    store = MemoryStore()
    key = development_key(tmp_path_factory.mktemp("key") / "key", datetime.now(UTC))
    return Finishing(checkpoint=CHECKPOINT, inputs=store, styles=StyleShelf(store, None), signing_key=key)


def finished(finishing: Finishing, pictures: Pictures, *, mock: bool = False) -> Inspection:
    job = Job(generation_id=1, task_id="t", prompt="red", seed=7, num_inference_steps=6)
    plan = make_plan(job, CHECKPOINT, lambda: 1, pictures=pictures)
    pixels = np.zeros((plan.height_px, plan.width_px, 3), np.uint8)
    return read(replace(finishing, mock=mock).file(job, plan, Materials(styles=(), mark=None), pixels))


MASK = np.zeros((256, 320), np.uint8)
REPAINTED = SourcePicture(picture=PICTURE, strength=0.5)


@pytest.mark.parametrize(
    ("source", "origin"),
    [
        (None, TRAINED_ALGORITHMIC_MEDIA),
        (REPAINTED, COMPOSITE_TRAINED),
        (SourcePicture(picture=PICTURE, strength=1.0, mask=MASK), COMPOSITE_TRAINED),
        (SourcePicture(picture=PICTURE, strength=1.0), TRAINED_ALGORITHMIC_MEDIA),
    ],
)
def test_picture_that_keeps_something_of_its_source_calls_itself_a_composite(
    finishing: Finishing, source: SourcePicture | None, origin: str
) -> None:
    found = finished(finishing, Pictures(source=source))
    assert found.credentials.digital_source_type == origin
    assert found.xmp["Iptc4xmpExt:DigitalSourceType"] == origin
    assert found.identity["digital_source_type"] == origin


def test_mock_keeps_nothing_of_a_source_and_claims_no_more(finishing: Finishing) -> None:
    found = finished(finishing, Pictures(source=REPAINTED), mock=True)
    assert found.credentials.digital_source_type == ALGORITHMIC_MEDIA


def test_strength_and_digest_of_a_source_are_told_in_every_form(finishing: Finishing) -> None:
    found = finished(finishing, Pictures(source=REPAINTED))
    told = {"Denoising strength": 0.5, "Source digest": REPAINTED.sha256}
    assert found.credentials.record["extra"] == found.identity["extra"] == told
    assert f"Denoising strength: 0.5, Source digest: {REPAINTED.sha256}" in found.parameters


def test_controls_are_told_in_the_words_of_a1111(finishing: Finishing) -> None:
    depth = ControlPicture(name="depth", picture=PICTURE, scale=0.8, end=0.5)
    canny = ControlPicture(name="canny", picture=PICTURE)
    found = finished(finishing, Pictures(controls=(depth, canny)))
    assert 'ControlNet 0: "Model: depth, Weight: 0.8, Guidance Start: 0, Guidance End: 0.5"' in found.parameters
    assert 'ControlNet 1: "Model: canny, Weight: 1, Guidance Start: 0, Guidance End: 1"' in found.parameters
    assert f"ControlNet 1 digest: {canny.sha256}" in found.parameters


def test_picture_of_words_alone_tells_of_no_source(finishing: Finishing) -> None:
    assert finished(finishing, NO_PICTURES).identity["extra"] == {}
