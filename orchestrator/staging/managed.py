"""A hosted model as a provider: sends the picture, follows the prediction, fetches what came of it."""

import base64
import binascii
import io
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from orchestrator.clients.predictions import Prediction, Predictions
from orchestrator.errors import (
    Cancelled,
    ContentRejected,
    DeadlineExceeded,
    GenerationFailed,
    ModelUnavailable,
    OutOfMemory,
    RateLimited,
    RemarqueError,
)
from orchestrator.imaging.decoding import BROKEN
from orchestrator.staging.provider import RESERVE_S, StagedPicture, Task, Watch

CALL_DEADLINE_S: Final = 20.0
MOST_LOST_LOOKS: Final = 5
REMEMBERED: Final = 1000
MOST_LARGER: Final = 64
PAUSES_S: Final = (0.1, 0.3)
SLOWER: Final = 1.5
T = TypeVar("T")
OUTPUT_FORMATS: Final = ("PNG", "JPEG", "WEBP")


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedSettings:
    """``names`` gives our inputs (image, mask, prompt, negative_prompt, strength, guidance_scale, seed) other names."""

    model_rev: str
    timeout_s: float = 90.0
    poll_s: float = 0.5
    longest_poll_s: float = 5.0
    inline_bytes: int = 256 << 10
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Run:
    """What is known of a task's predictions: how many ended badly, and the one under way."""

    ended: int = 0
    prediction_id: str | None = None

    def end(self) -> None:
        """The next try begins a prediction of its own."""
        self.ended, self.prediction_id = self.ended + 1, None


class ManagedProvider:
    """Stages by predictions. A task that is tried again goes on with its prediction instead of paying for another."""

    def __init__(self, predictions: Predictions, settings: ManagedSettings) -> None:
        self._predictions = predictions
        self._settings = settings
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._bells: dict[str, Callable[[], None]] = {}
        self._lock = threading.Lock()

    def not_ready(self) -> str | None:
        """A provider that is away is the breaker's affair, so it never keeps this service from being ready."""
        return None

    def ring(self, prediction_id: str) -> None:
        """A webhook said that a prediction ended: look at it now. Nothing else in a webhook is believed."""
        with self._lock:
            bell = self._bells.get(prediction_id)
        if bell is not None:
            bell()

    def stage(self, task: Task, watch: Watch) -> StagedPicture:
        """The output of one prediction, made anew only after one that ended badly."""
        run = self._run_of(task.key)
        limit_s = min(self._settings.timeout_s, watch.left_s() - RESERVE_S)
        if run.prediction_id is None:
            key = f"{task.key}-{run.ended}"
            run.prediction_id = _persistently(lambda: self._created(task, key, limit_s), watch).id
        try:
            prediction = self._followed(run.prediction_id, watch, limit_s)
        except (Cancelled, DeadlineExceeded):
            with suppress(RemarqueError):
                self._predictions.cancel(run.prediction_id)
            run.end()
            raise
        data = _persistently(lambda: self._fetched(prediction, run, watch.left_s() - RESERVE_S), watch)
        try:
            pixels, resized = _decoded(data, task.picture)
        except GenerationFailed:
            run.end()
            raise
        with self._lock:
            self._runs.pop(task.key, None)
        return StagedPicture(
            pixels=pixels,
            provider="managed",
            model_rev=self._settings.model_rev,
            gpu_s=prediction.predict_s,
            warnings=("the provider's picture had another size and was scaled",) if resized else (),
        )

    def _run_of(self, key: str) -> _Run:
        with self._lock:
            run = self._runs.setdefault(key, _Run())
            if len(self._runs) > REMEMBERED:
                self._runs.popitem(last=False)
            return run

    def _created(self, task: Task, key: str, limit_s: float) -> Prediction:
        deadline_s = min(CALL_DEADLINE_S, limit_s)
        values = {
            "image": self._sent("image.png", _png(task.picture), deadline_s),
            "mask": self._sent("mask.png", _png(task.mask.astype(np.uint8) * 255), deadline_s),
            "prompt": task.wording.prompt,
            "negative_prompt": task.wording.negative_prompt,
            "strength": task.strength,
            "guidance_scale": task.guidance_scale,
            "seed": task.seed,
        }
        # A field that is mapped to nothing is one that the model does not have.
        named = {self._settings.names.get(name, name): value for name, value in values.items()}
        named.pop("", None)
        return self._predictions.create(named, key=key, deadline_s=deadline_s)

    def _sent(self, name: str, data: bytes, deadline_s: float) -> str:
        """The picture as an address: a data URL while it is small, else a file that the provider keeps."""
        if len(data) <= self._settings.inline_bytes:
            return f"data:image/png;base64,{base64.b64encode(data).decode()}"
        return self._predictions.upload(name, data, "image/png", deadline_s=deadline_s)

    def _followed(self, prediction_id: str, watch: Watch, limit_s: float) -> Prediction:
        """The prediction once it ended; looks that are lost on the way do not count against it.

        DeadlineExceeded means that the prediction took too long, never that a look did.
        """
        give_up_at_left_s, pause_s, lost = watch.left_s() - limit_s, self._settings.poll_s, 0
        with self._listening(prediction_id, watch.nudge):
            while True:
                try:
                    found = self._predictions.get(prediction_id, deadline_s=min(CALL_DEADLINE_S, limit_s))
                    lost = 0
                except (ModelUnavailable, DeadlineExceeded, RateLimited) as error:
                    lost += 1
                    if lost >= MOST_LOST_LOOKS or not error.retryable:
                        raise ModelUnavailable(f"a prediction was lost sight of: {error}") from error
                else:
                    if found.status != "running":
                        return found
                if watch.left_s() < give_up_at_left_s:
                    raise DeadlineExceeded(f"a prediction took over {limit_s:.0f} s and was cancelled")
                watch.wait(pause_s)
                pause_s = min(pause_s * SLOWER, self._settings.longest_poll_s)

    @contextmanager
    def _listening(self, prediction_id: str, bell: Callable[[], None]) -> Iterator[None]:
        with self._lock:
            self._bells[prediction_id] = bell
        try:
            yield
        finally:
            with self._lock:
                self._bells.pop(prediction_id, None)

    def _fetched(self, prediction: Prediction, run: _Run, deadline_s: float) -> bytes:
        """The output's bytes. A prediction that ended badly is not looked at again; one whose output was lost is."""
        if prediction.status != "succeeded" or not prediction.output_urls:
            run.end()
            _refuse(prediction)
        url = prediction.output_urls[-1]
        return _inline(url) if url.startswith("data:") else self._predictions.fetch(url, deadline_s=deadline_s)


def _persistently(call: Callable[[], T], watch: Watch) -> T:
    """The call's result, made up to three times where the way to the provider fails; each is safe to repeat."""
    for pause_s in PAUSES_S:
        try:
            return call()
        except (ModelUnavailable, DeadlineExceeded) as error:
            if not error.retryable or watch.left_s() <= RESERVE_S + pause_s:
                raise
            watch.wait(pause_s)
    return call()


def _refuse(prediction: Prediction) -> NoReturn:
    said = prediction.error.lower()
    if "nsfw" in said or "safety" in said:
        raise ContentRejected("the provider's content policy refused the picture")
    if "out of memory" in said:
        raise OutOfMemory("the provider ran out of memory")
    raise GenerationFailed(f"the provider's prediction {prediction.status} without an output")


def _decoded(data: bytes, asked: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], bool]:
    """The picture at the size that was asked for, and whether it had to be scaled to it."""
    height_px, width_px = asked.shape[:2]
    try:
        picture = Image.open(io.BytesIO(data), formats=OUTPUT_FORMATS)
        if picture.width * picture.height > MOST_LARGER * width_px * height_px:
            raise GenerationFailed(f"the provider's picture is {picture.width}x{picture.height} px")
        upright = picture.convert("RGB")
    except (Image.DecompressionBombError, *BROKEN):
        raise GenerationFailed("the provider's output is not a picture that can be read") from None
    fits = upright.size == (width_px, height_px)
    scaled = upright if fits else upright.resize((width_px, height_px), Image.Resampling.LANCZOS)
    return np.array(scaled, dtype=np.uint8), not fits


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=6)
    return file.getvalue()


def _inline(url: str) -> bytes:
    try:
        return base64.b64decode(url.partition(",")[2], validate=True)
    except (ValueError, binascii.Error):
        raise GenerationFailed("the provider's output is a data URL that cannot be read") from None
