"""One attempt, with the mock painter in Triton's place and a store in memory."""

import hashlib
import io
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from fakes.memory import MemoryStore
from PIL import Image
from small_checkpoint import WIDTH, small_checkpoint
from small_styles import LAYERS, kohya_style

from orchestrator.attempt import Attempt, Control, derived_seed
from orchestrator.checkpoint import CheckpointInfo
from orchestrator.errors import (
    Cancelled,
    DeadlineExceeded,
    Interrupted,
    InvalidInput,
    LoraIncompatible,
    LoraNotFound,
    ModelUnavailable,
    SignatureInvalid,
    SignatureNotFound,
    StorageError,
)
from orchestrator.imaging.signing_key import development_key
from orchestrator.job import ControlRef, Event, Job, PictureRefs, Progress, SignatureRef, Stepped, StyleRef
from orchestrator.ledger import Ledger, Manifest
from orchestrator.mock import MockPainter
from orchestrator.pipeline import PipelineStep, Turns
from orchestrator.plan import Plan
from orchestrator.runner import Runner, RunnerSettings
from orchestrator.styles import StyleShelf

KEY = "orchestrator"


class Watched:
    """A painter that breaks, or calls ``then``, after so many steps, and counts them."""

    def __init__(self, steps: int | None = None, then: object = None) -> None:
        self._painter = MockPainter(0.0)
        self.checkpoint = self._painter.checkpoint
        self.breaks_after, self.then, self.taken = steps, then, 0

    def run(self, plan: Plan, resume: PipelineStep | None = None) -> Turns:
        for turn in self._painter.run(plan, resume):
            if isinstance(turn, PipelineStep):
                self.taken += 1
            yield turn
            if self.taken == self.breaks_after and isinstance(turn, PipelineStep):
                if isinstance(self.then, Exception):
                    raise self.then
                if callable(self.then):
                    self.then()


class Bench:
    def __init__(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.store = MemoryStore()
        self.ledger = Ledger(self.store, "file:///r")
        self.settings = RunnerSettings(
            checkpoint_every_s=1000.0,
            signing_key=development_key(tmp_path_factory.getbasetemp() / "key", datetime.now(UTC)),
            mock=True,
        )
        self.served: CheckpointInfo | None = None
        self.events: list[Event] = []
        self.control = Control(60.0)

    def run(self, attempt: Attempt, painter: object = None) -> Manifest:
        styles = StyleShelf(self.store, self.served)
        runner = Runner(painter or MockPainter(0.0), self.ledger, self.store, styles, self.settings)  # type: ignore[arg-type]
        return runner.run(attempt, self.control, self.events.append)

    def picture(self, manifest: Manifest) -> np.ndarray:
        data = self.store.objects[str(manifest.body["result_url"])]
        return np.asarray(Image.open(io.BytesIO(data)))


@pytest.fixture
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory)


def attempt(fingerprint: str = "f", **changes: object) -> Attempt:
    fields: dict[str, object] = {"seed": 5, "num_inference_steps": 12, "artist_id": 3} | changes
    places = {name: fields.pop(name) for name in ("number", "life", "redelivered") if name in fields}
    job = Job(**{"generation_id": 8, "task_id": "t", "prompt": "sea", **fields})  # type: ignore[arg-type]
    return Attempt(job=job, fingerprint=fingerprint, **places)  # type: ignore[arg-type]


def test_a_job_ends_with_its_picture_under_the_public_name_and_the_seed_that_was_used(bench: Bench) -> None:
    manifest = bench.run(attempt())
    assert manifest.body["result_url"] == "file:///r/generations/gen-8.png"
    assert manifest.body["metadata"]["seed"] == 5  # type: ignore[index]
    data = bench.store.objects["file:///r/generations/gen-8.png"]
    assert hashlib.sha256(data).hexdigest() == manifest.picture_sha256
    assert sorted(bench.store.objects) == ["file:///r/generations/gen-8.json", "file:///r/generations/gen-8.png"]


def test_a_job_without_a_seed_reports_one_that_is_the_same_on_every_attempt(bench: Bench) -> None:
    manifest = bench.run(attempt(seed=None))
    assert manifest.body["metadata"]["seed"] == derived_seed(attempt().job)  # type: ignore[index]


def test_milestones_come_in_order_with_an_estimate(bench: Bench) -> None:
    bench.run(attempt())
    heard = [event for event in bench.events if isinstance(event, Progress)]
    assert [event.progress_percent for event in heard] == [0, 25, 50, 75, 90, 100]
    assert all(event.estimated_seconds is not None and event.estimated_seconds >= 0 for event in heard)
    assert heard[0].current_step == 0
    assert heard[-1].current_step == heard[-1].total_steps == 12


@pytest.mark.parametrize("fields", [{"aspect_ratio": "2:2", "num_inference_steps": 4}, {"sampler": "pndm"}])
def test_every_milestone_counts_the_steps_that_are_taken(bench: Bench, fields: dict[str, object]) -> None:
    bench.run(attempt(**fields))
    heard = [event for event in bench.events if isinstance(event, Progress)]
    taken = sum(isinstance(event, Stepped) for event in bench.events)
    assert {event.total_steps for event in heard} == {taken} != {attempt(**fields).job.num_inference_steps}


def test_a_picture_that_came_second_is_not_reported_as_stored(bench: Bench) -> None:
    other = bench.run(attempt())
    del bench.store.objects["file:///r/generations/gen-8.json"], bench.events[:]

    assert bench.run(attempt(), Watched(12, lambda: bench.ledger.commit(other))) == other
    assert [event.progress_percent for event in bench.events if isinstance(event, Progress)][-1] == 90


def test_a_redelivered_job_that_is_done_runs_nothing(bench: Bench) -> None:
    first = bench.run(attempt())
    painter = Watched()
    assert bench.run(attempt(redelivered=True), painter) == first
    assert painter.taken == 0


def test_the_same_id_with_other_parameters_is_refused_and_leaves_the_first_picture(bench: Bench) -> None:
    first = bench.run(attempt())
    with pytest.raises(InvalidInput, match="generation_id 8 was used before"):
        bench.run(attempt(fingerprint="g", seed=6))
    assert bench.ledger.find(8) == first


def test_a_failure_stays_until_an_operator_replays_the_job(bench: Bench) -> None:
    failed = bench.ledger.commit(Manifest(generation_id=8, outcome="failed", body={}, fingerprint="f"))
    assert bench.run(attempt()) == failed
    assert bench.run(attempt(life=1)).outcome == "complete"


def test_an_interrupted_job_resumed_elsewhere_gives_the_identical_picture(bench: Bench) -> None:
    whole = bench.picture(bench.run(attempt(sampler="dpmpp_2m_sde")))
    bench.store.objects.clear()
    with pytest.raises(Interrupted):
        bench.run(attempt(sampler="dpmpp_2m_sde"), Watched(5, bench.control.stopping.set))
    bench.control = Control(60.0)
    painter = Watched()
    manifest = bench.run(attempt(sampler="dpmpp_2m_sde", redelivered=True), painter)
    assert painter.taken == 12 - 6
    assert np.array_equal(bench.picture(manifest), whole)


def test_an_attempt_that_broke_leaves_its_last_step_for_the_next(bench: Bench) -> None:
    with pytest.raises(ModelUnavailable):
        bench.run(attempt(), Watched(9, ModelUnavailable("Triton is away")))
    painter = Watched()
    bench.run(attempt(number=2), painter)
    assert painter.taken == 3


def test_a_checkpoint_of_another_plan_is_not_used(bench: Bench) -> None:
    with pytest.raises(ModelUnavailable):
        bench.run(attempt(), Watched(9, ModelUnavailable("Triton is away")))
    painter = Watched()
    bench.run(attempt(number=2, seed=6), painter)
    assert painter.taken == 12


def test_checkpoints_are_kept_while_a_long_job_runs(bench: Bench) -> None:
    bench.settings = RunnerSettings(checkpoint_every_s=0.0, signing_key=bench.settings.signing_key)
    bench.run(attempt())
    assert bench.store.writes.count("file:///r/checkpoints/gen-8.npz") == 12


def test_a_store_that_takes_no_checkpoints_costs_only_the_shortcut(bench: Bench) -> None:
    bench.settings = RunnerSettings(checkpoint_every_s=0.0, signing_key=bench.settings.signing_key)
    bench.store.broken = "checkpoints"
    assert bench.run(attempt()).outcome == "complete"


def test_a_cancelled_job_stops_at_its_next_step(bench: Bench) -> None:
    painter = Watched(3, bench.control.cancelled.set)
    with pytest.raises(Cancelled):
        bench.run(attempt(), painter)
    assert painter.taken == 4


def test_a_job_that_takes_too_long_is_stopped(bench: Bench) -> None:
    bench.control = Control(0.01)
    with pytest.raises(DeadlineExceeded, match=r"over 0.01 s"):
        bench.run(attempt(), Watched(2, lambda: time.sleep(0.02)))


def test_another_workers_outcome_is_adopted_and_our_picture_discarded(bench: Bench) -> None:
    other = bench.ledger
    theirs: list[Manifest] = []

    def finish_elsewhere() -> None:
        theirs.append(Bench.run(bench, attempt()))

    manifest = bench.run(attempt(), Watched(6, finish_elsewhere))
    assert [manifest] == theirs
    assert other.find(8) == manifest
    assert not [uri for uri in bench.store.objects if "attempts" in uri]


def test_a_signature_is_stamped_where_it_was_asked_for(bench: Bench) -> None:
    plain = bench.picture(bench.run(attempt()))
    bench.store.objects.clear()
    mark = io.BytesIO()
    Image.new("RGBA", (100, 50), (255, 0, 0, 255)).save(mark, "PNG")
    bench.store.objects["gs://b/sign.png"] = mark.getvalue()
    signed = bench.picture(bench.run(attempt(signature=SignatureRef(path="gs://b/sign.png", opacity=1.0))))
    changed = np.argwhere((signed != plain).any(axis=2))
    assert changed.min(axis=0).tolist() == [512 - 10 - 64, 512 - 10 - 128]
    assert changed.max(axis=0).tolist() == [512 - 11, 512 - 11]


@pytest.mark.parametrize(
    ("content", "error"),
    [(None, SignatureNotFound), (b"no image", SignatureInvalid)],
    ids=["missing", "broken"],
)
def test_a_signature_that_cannot_be_had_fails_the_job_before_a_step_is_taken(
    bench: Bench, content: bytes | None, error: type[Exception]
) -> None:
    if content is not None:
        bench.store.objects["gs://b/sign.png"] = content
    painter = Watched()
    with pytest.raises(error):
        bench.run(attempt(signature=SignatureRef(path="gs://b/sign.png")), painter)
    assert painter.taken == 0


STYLE = StyleRef(path="gs://b/ink.safetensors", style_id=7, weight=0.5)


@pytest.mark.parametrize(
    ("content", "error", "told"),
    [
        (None, LoraNotFound, "lora_path is gs://b/ink.safetensors; there is no such object"),
        (b"PK\x03\x04" + bytes(60), LoraIncompatible, "a zip archive"),
        (kohya_style()[:-1], LoraIncompatible, "cut short"),
        (kohya_style(text_width=2 * WIDTH), LoraIncompatible, "reads text of width 12"),
    ],
    ids=["missing", "pickled", "truncated", "another base model"],
)
def test_a_style_that_cannot_be_had_fails_the_job_instead_of_being_dropped(
    bench: Bench, content: bytes | None, error: type[Exception], told: str
) -> None:
    bench.served = small_checkpoint(layers=LAYERS)
    if content is not None:
        bench.store.objects[STYLE.path] = content
    painter = Watched()
    with pytest.raises(error, match=told):
        bench.run(attempt(styles=(STYLE,)), painter)
    assert painter.taken == 0
    assert bench.ledger.find(8) is None


def test_a_picture_says_which_styles_made_it(bench: Bench) -> None:
    bench.store.objects[STYLE.path] = data = kohya_style()
    manifest = bench.run(attempt(styles=(STYLE,)))
    record = {"name": "style-7", "sha256": hashlib.sha256(data).hexdigest(), "weight": 0.5}
    assert manifest.body["metadata"]["styles"] == [record]  # type: ignore[index]
    picture = bench.store.objects[str(manifest.body["result_url"])]
    assert f"style-7@{record['sha256'][:10]}".encode() in picture  # type: ignore[index]


def test_a_mock_checks_the_file_of_a_style_and_asks_for_no_layers(bench: Bench) -> None:
    bench.store.objects[STYLE.path] = kohya_style(text_width=768)
    assert bench.run(attempt(styles=(STYLE,))).outcome == "complete"


def test_a_mock_refuses_a_broken_style_like_any_other(bench: Bench) -> None:
    bench.store.objects[STYLE.path] = b"pickle"
    with pytest.raises(LoraIncompatible):
        bench.run(attempt(styles=(STYLE,)))


def test_without_a_stored_picture_there_is_no_outcome(bench: Bench) -> None:
    bench.store.broken = "attempts"
    with pytest.raises(StorageError):
        bench.run(attempt())
    assert bench.ledger.find(8) is None


def test_pictures_of_the_mock_say_that_they_are(bench: Bench) -> None:
    manifest = bench.run(attempt())
    assert manifest.body["metadata"]["mock"] is True  # type: ignore[index]


def test_the_key_is_made_once(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    assert development_key(tmp_path / "k", now) == development_key(tmp_path / "k", now)


def stored(bench: Bench, name: str, width_px: int, height_px: int) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width_px, height_px), (200, 180, 160)).save(file, format="PNG")
    bench.store.objects[f"file:///in/{name}"] = file.getvalue()
    return f"file:///in/{name}"


def test_a_job_that_brings_a_picture_starts_from_it_and_has_its_size(bench: Bench) -> None:
    refs = PictureRefs(source_path=stored(bench, "a.png", 384, 320), strength=0.5, mask_path=None)
    painter = Watched()
    manifest = bench.run(attempt(pictures=refs), painter)
    assert bench.picture(manifest).shape == (320, 384, 3)
    assert painter.taken == 6, "half of twelve steps"


def test_a_mask_goes_with_the_picture_and_must_have_its_size(bench: Bench) -> None:
    source = stored(bench, "a.png", 384, 320)
    fitting = PictureRefs(source_path=source, strength=0.5, mask_path=stored(bench, "m.png", 384, 320))
    assert bench.picture(bench.run(attempt(pictures=fitting))).shape == (320, 384, 3)
    other = PictureRefs(source_path=source, strength=0.5, mask_path=stored(bench, "n.png", 320, 320))
    with pytest.raises(InvalidInput, match="384x320, 320x320 px; one size for all of them"):
        bench.run(attempt(pictures=other, generation_id=9))


@pytest.mark.parametrize(
    ("refs", "sentence"),
    [
        (PictureRefs(source_path="file:///in/none.png", strength=0.5), "data.init_image_path names an object that is"),
        (PictureRefs(source_path="file:///in/text.png", strength=0.5), "data.init_image_path of 7 bytes is not an im"),
        (PictureRefs(strength=1.0, controls=(ControlRef(name="pose", path="file:///in/a.png"),)), "built with none"),
    ],
)
def test_a_picture_that_cannot_be_used_refuses_the_job(bench: Bench, refs: PictureRefs, sentence: str) -> None:
    stored(bench, "a.png", 384, 320)
    bench.store.objects["file:///in/text.png"] = b"a text."
    with pytest.raises(InvalidInput, match=sentence):
        bench.run(attempt(pictures=refs))


def test_a_picture_larger_than_any_the_engines_serve_is_refused_by_its_header(bench: Bench) -> None:
    whole = stored(bench, "large.png", 2048, 1024)
    bench.store.objects[whole] = bench.store.objects[whole][:100]  # whoever decoded it would call it broken
    with pytest.raises(InvalidInput, match="is 2048x1024 px; at most 1048576 pixels are decoded"):
        bench.run(attempt(pictures=PictureRefs(source_path=whole, strength=0.5)))


def test_no_picture_is_fetched_for_a_control_that_is_not_there(bench: Bench) -> None:
    controls = (ControlRef(name="pose", path=stored(bench, "a.png", 384, 320)),)
    with pytest.raises(InvalidInput, match="built with none"):
        bench.run(attempt(pictures=PictureRefs(strength=1.0, controls=controls)))
    assert bench.store.reads == []
