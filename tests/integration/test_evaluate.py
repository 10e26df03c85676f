"""``python -m orchestrator evaluate`` from a folder to a report, with the mock and with a provider that furnishes."""

import json
from pathlib import Path

import numpy as np
import pytest
from fakes.staging import room
from PIL import Image

from orchestrator import evaluate
from orchestrator.__main__ import main
from orchestrator.errors import ModelUnavailable
from orchestrator.staging.provider import StagedPicture, Task, Watch

SIZE = (384, 256)


@pytest.fixture
def curated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two rooms; the second brings a mask."""
    folder = tmp_path / "rooms"
    folder.mkdir()
    room(*SIZE).save(folder / "one.png")
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[120:250, 40:340] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    entries = [
        {"id": "one", "original": "one.png", "room_type": "bedroom", "style": "modern", "seed": 3},
        {"id": "two", "original": "one.png", "mask": "mask.png", "room_type": "office", "style": "industrial"},
    ]
    (folder / "set.json").write_text(json.dumps({"name": "Two", "origin": "a test", "entries": entries}))
    for name, value in {"STAGING_MOCK_SECONDS": "0", "DEVELOPMENT_KEY_FOLDER": str(tmp_path / "key")}.items():
        monkeypatch.setenv(name, value)
    return folder


def results(out: Path) -> dict:
    return json.loads((out / "results.json").read_text())


class Decorator:
    """Puts a brown chest on the floor; fails where it is asked for an office."""

    def stage(self, task: Task, watch: Watch) -> StagedPicture:
        if task.style == "industrial":
            raise ModelUnavailable("no card")
        pixels = task.picture.copy()
        height, width = task.mask.shape
        pixels[round(0.6 * height) : round(0.85 * height), round(0.4 * width) : round(0.6 * width)] = (110, 62, 30)
        return StagedPicture(pixels=pixels, provider="managed", model_rev="chest-1")

    def not_ready(self) -> str | None:
        return None


def test_a_set_is_staged_by_the_mock_into_a_report(curated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "report"
    code = main(["evaluate", "--set", str(curated), "--out", str(out), "--provider", "mock", "--least", "0"])
    found = results(out)
    assert (code, found["rooms"], found["facts"]["made by"], found["facts"]["model"]) == (0, 2, "mock", "mock-1")
    assert "of 2 rooms pass" in capsys.readouterr().out
    for entry in found["entries"]:
        before, after = (np.asarray(Image.open(out / entry[name])) for name in ("before", "after"))
        assert before.shape == after.shape
        assert not np.array_equal(before, after)
    assert 'src="pictures/one-after.png"' in (out / "index.html").read_text()


def test_too_few_rooms_that_pass_are_exit_code_1(
    curated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(evaluate, "build_providers", lambda wanted: {"mock": Decorator()})
    out = tmp_path / "report"
    assert main(["evaluate", "--set", str(curated), "--out", str(out), "--provider", "mock"]) == 1
    one, two = results(out)["entries"]
    assert two["error"] == "MODEL_UNAVAILABLE: no card"
    assert (one["scores"]["furnished"], one["scores"]["outside"], one["reasons"].get("standing")) == (1, 1, None)
    assert (out / two["before"]).read_bytes() == (curated / "one.png").read_bytes()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--provider", "managed"], "cannot be built from these settings"),
        (["--set", "nowhere"], "a set is a folder with set.json"),
    ],
)
def test_what_cannot_be_evaluated_is_said_in_a_sentence(
    words: list[str], sentence: str, curated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["evaluate", "--set", str(curated), "--out", str(tmp_path / "out"), "--provider", "mock", *words]
    assert main(arguments) == 2
    assert sentence in capsys.readouterr().err


def test_a_share_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["evaluate", "--least", "80"])
    assert "80 is no share" in capsys.readouterr().err
