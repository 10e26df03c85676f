"""The command line on networks that are formulas, and the sentences it refuses with."""

import argparse
import io
import json
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_checkpoint import FormulaModels, small_checkpoint, write_repository
from small_styles import kohya_style

from orchestrator import generate
from orchestrator.__main__ import COMMANDS, main
from orchestrator.errors import InvalidInput, ModelUnavailable, StorageError
from orchestrator.finishing import Finishing
from orchestrator.generate import AT_ONCE, INTERRUPTED, Generation
from orchestrator.imaging.signing_key import development_key
from orchestrator.job import StyleRef
from orchestrator.orders import Order, add_arguments, job_from, orders_from
from orchestrator.pipeline import Finished, Pipeline, PipelineStep
from orchestrator.plan import Plan
from orchestrator.styles import StyleShelf
from orchestrator.terminal import ProgressBar

ROOT = Path(__file__).parents[2]
SMALL = ["--size", "256x256", "--steps", "4"]


@pytest.fixture(scope="module")
def finishing(tmp_path_factory: pytest.TempPathFactory) -> Finishing:
    key = development_key(tmp_path_factory.mktemp("key") / "key", datetime.now(UTC))
    styles = StyleShelf(NoInputs(), None)
    return Finishing(checkpoint=small_checkpoint(), inputs=NoInputs(), styles=styles, signing_key=key)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class NoInputs:
    def read(self, uri: str, *, limit_bytes: int) -> bytes:
        raise AssertionError(f"{uri} was read")


class Watched:
    """The pipeline, which calls ``then`` after each step."""

    def __init__(self, then=lambda step: None) -> None:
        self.checkpoint = small_checkpoint()
        self.then = then

    def run(self, plan: Plan, resume: PipelineStep | None = None) -> Iterator[PipelineStep | Finished]:
        for turn in Pipeline(FormulaModels(), self.checkpoint).run(plan, resume):
            yield turn
            if isinstance(turn, PipelineStep):
                self.then(turn)


def ordered(*words: str) -> list[Order]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(words)
    return orders_from(args, job_from(args), small_checkpoint())


def opened(name: str) -> Image.Image:
    with Image.open(name) as image:
        image.load()
    return image


def message(path: Path, **fields: object) -> Path:
    data = {"generation_id": 456, "prompt": "red boat", "aspect_ratio": "1:2", "seed": 42, "num_inference_steps": 30}
    path.write_text(json.dumps({"task_id": "t", "type": "image_generation", "data": data | fields}))
    return path


def test_options_reach_the_plan():
    words = "--negative rain --seed 7 --steps 9 --guidance 5 --sampler euler --spacing trailing --sigmas karras"
    (order,) = ordered("a boat", *words.split(), "--size", "320x256")
    plan = order.plan
    assert (plan.prompt, plan.negative_prompt, plan.seed, plan.num_inference_steps) == ("a boat", "rain", 7, 9)
    assert (plan.guidance_scale, plan.sampler, plan.spacing, plan.sigmas) == (5.0, "euler", "trailing", "karras")
    assert (plan.width_px, plan.height_px) == (320, 256)


@pytest.mark.parametrize(
    ("words", "passes"),
    [(["--aspect", "2:2"], 2), (["--aspect", "2:2", "--direct"], 1), (["--aspect", "1:2", "--two-pass"], 2)],
)
def test_passes_can_be_chosen(words: list[str], passes: int):
    assert len(ordered("a boat", *words)[0].plan.passes) == passes


def test_a_message_is_read_as_a_publisher_writes_it(tmp_path: Path):
    (order,) = ordered("--message", str(message(tmp_path / "m.json")))
    assert (order.job.generation_id, order.plan.seed, order.plan.height_px) == (456, 42, 1024)


def test_options_overrule_the_message(tmp_path: Path):
    path = message(tmp_path / "m.json")
    (order,) = ordered("a house", "--message", str(path), "--seed", "0", "--size", "256x256", "--generation-id", "9")
    assert (order.plan.prompt, order.plan.seed, order.plan.width_px, order.job.generation_id) == ("a house", 0, 256, 9)


def test_styles_are_named_on_the_command_line_with_their_weights():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    job = job_from(parser.parse_args(["a boat", "--style", "ink", "--style", "gs://b/night.safetensors=-0.6"]))
    assert job.styles == (
        StyleRef(path=str(Path("ink").resolve())),
        StyleRef(path="gs://b/night.safetensors", weight=-0.6),
    )


def test_a_style_whose_weight_is_no_number_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        ordered("a boat", "--style", "ink=much")
    assert "'ink=much' ends in no weight; write PATH or PATH=0.8" in capsys.readouterr().err


def test_a_style_outside_the_working_directory_may_be_named_by_whoever_runs_the_command(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("INFERENCE_MODE", "mock")
    monkeypatch.setenv("MOCK_SECONDS", "0")
    monkeypatch.setenv("DEVELOPMENT_KEY_FOLDER", str(tmp_path_factory.mktemp("key") / "key"))
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "ink.safetensors"
    elsewhere.write_bytes(kohya_style())
    words = ["a boat", "--seed", "1", "--out", "boat.png", "--style", str(elsewhere), *SMALL]
    assert main(["generate", *words]) == 0
    assert b"ink@" in Path("boat.png").read_bytes()


def test_several_pictures_get_seeds_in_a_row_and_names_with_them():
    orders = ordered("a boat", "--seed", "7", "--count", "3", "--out", "boat.png", "--preview", "rough.png")
    assert [order.plan.seed for order in orders] == [7, 8, 9]
    assert [str(order.out) for order in orders] == ["boat-7.png", "boat-8.png", "boat-9.png"]
    assert [str(order.rough) for order in orders] == ["rough-7.png", "rough-8.png", "rough-9.png"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["--seed", "7"], "picture-7.png"),
        (["--seed", "7", "--generation_id", "3"], "generations/gen-3.png"),
        (["--out", "a.webp"], "a.webp"),
    ],
)
def test_the_file_has_a_name_in_any_case(words: list[str], name: str):
    assert str(ordered("a boat", *words)[0].out) == name


@pytest.mark.parametrize(("name", "picture_format"), [("a.png", "png"), ("a.JPG", "jpeg"), ("a.webp", "webp")])
def test_the_ending_decides_the_format(name: str, picture_format: str):
    assert ordered("a boat", "--out", name)[0].job.picture_format == picture_format


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], 'nothing says what to make; give a prompt like "a red boat at dusk", or --message FILE'),
        (["x", "--count", "0"], "--count is 0; 1 to 100 are served"),
        (["x", "--out", "boat.gif"], "--out is boat.gif; names that end in .png, .jpg, .jpeg, .webp are served"),
        (["--message", "none.json"], "none.json cannot be read: No such file or directory"),
        (["x", "--seed", str(2**63 - 1), "--count", "2"], f"seed is {2**63}; 0 to {2**63 - 1} is served"),
        (["x", "--steps", "0"], "num_inference_steps is 0; 1 to 150 is served"),
    ],
)
def test_what_cannot_be_ordered_is_refused_in_one_sentence(words: list[str], told: str):
    with pytest.raises(InvalidInput) as raised:
        ordered(*words)
    assert str(raised.value) == told


def test_a_picture_is_written_with_its_seed_and_said(finishing: Finishing, capsys: pytest.CaptureFixture[str]):
    code = Generation(ordered("a boat", "--seed", "7", "--out", "boat.png", *SMALL), Watched(), finishing).run()
    captured = capsys.readouterr()
    picture = opened("boat.png")
    assert (code, picture.size) == (0, (256, 256))
    assert "Seed: 7" in picture.text["parameters"]
    assert captured.out.startswith("boat.png  256x256 px, seed 7, 4 steps of dpmpp_2m, ")
    assert "step 4 of 4" in captured.err


def test_the_pixels_are_those_of_the_pipeline(finishing: Finishing):
    (order,) = ordered("a boat", "--seed", "7", "--out", "boat.png", *SMALL)
    Generation([order], Watched(), finishing).run()
    *_, last = Watched().run(order.plan)
    assert np.array_equal(np.asarray(opened("boat.png")), last.picture)


def test_pictures_run_side_by_side_up_to_four(finishing: Finishing):
    together = threading.Barrier(AT_ONCE, timeout=20)

    def meet(step: PipelineStep) -> None:
        if step.index == 0:
            together.wait()

    assert Generation(ordered("a boat", "--count", "8", *SMALL), Watched(meet), finishing).run() == 0
    assert len(list(Path().glob("picture-*.png"))) == 8


def test_a_preview_is_there_while_the_picture_is_made(finishing: Finishing):
    sizes = []

    def look(step: PipelineStep) -> None:
        sizes.append(opened("rough.png").size if Path("rough.png").exists() else None)

    Generation(ordered("a boat", "--preview", "rough.png", *SMALL), Watched(look), finishing).run()
    assert sizes[0] == (256, 256)


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """A shell starts what runs in the background with SIGINT ignored, the tests' own process perhaps among it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c() -> None:
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
    time.sleep(0.1)  # formulas are quick: without it all steps may be made before the main thread gets its turn


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_stops_within_a_step_and_says_what_was_kept(finishing: Finishing, capsys: pytest.CaptureFixture[str]):
    seen = []

    def interrupt(step: PipelineStep) -> None:
        seen.append(step.index)
        if step.index == 1:
            press_ctrl_c()

    orders = ordered("a boat", "--preview", "rough.png", "--size", "256x256", "--steps", "60")
    assert Generation(orders, Watched(interrupt), finishing).run() == INTERRUPTED
    assert len(seen) < 60
    assert f"stopped at step {len(seen)}; kept rough.png" in capsys.readouterr().err


@pytest.mark.usefixtures("ctrl_c_raises")
def test_ctrl_c_before_anything_says_that_nothing_was_kept(finishing: Finishing, capsys: pytest.CaptureFixture[str]):
    def interrupt(step: PipelineStep) -> None:
        if step.index == 0:
            press_ctrl_c()

    Generation(ordered("a boat", "--size", "256x256", "--steps", "60"), Watched(interrupt), finishing).run()
    assert "no picture was finished and nothing was kept" in capsys.readouterr().err


def test_a_picture_that_fails_stops_the_others_and_says_so(finishing: Finishing, capsys: pytest.CaptureFixture[str]):
    def fail(step: PipelineStep) -> None:
        if step.index == 1:
            raise ModelUnavailable("unet is gone")

    with pytest.raises(ModelUnavailable, match="unet is gone"):
        Generation(ordered("a boat", "--count", "6", *SMALL), Watched(fail), finishing).run()
    assert list(Path().glob("*.png")) == []
    assert "no picture was finished and nothing was kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--out", "file/boat.png"], r"file/boat.png cannot be written"),
        (["--out", "folder.png"], r"folder.png is a folder"),
        (["--out", "boat.png", "--preview", "file/rough.png"], r"file/rough.png cannot be written"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_anything_is_painted(
    words: list[str], told: str, finishing: Finishing
):
    Path("file").write_text("in the way")
    Path("folder.png").mkdir()

    def painted(step: PipelineStep) -> None:
        raise AssertionError("a step was made")

    with pytest.raises(InvalidInput, match=told):
        Generation(ordered("a boat", *words, *SMALL), Watched(painted), finishing).run()
    assert sorted(Path().iterdir()) == [Path("file"), Path("folder.png")]


def test_no_half_file_is_left_behind(finishing: Finishing, monkeypatch: pytest.MonkeyPatch):
    def full(self: Path, data: bytes) -> int:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(generate.Path, "write_bytes", full)
    with pytest.raises(StorageError, match="No space left on device"):
        Generation(ordered("a boat", "--out", "boat.png", *SMALL), Watched(), finishing).run()
    assert list(Path().iterdir()) == []


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_knows_seconds_per_step_and_what_is_left():
    clock, stream = Clock(), Terminal()
    bar = ProgressBar(stream, 50, 50.0, clock)
    for _ in range(10):
        clock.now_s += 0.5
        bar.step(1.0)
    assert stream.getvalue().split("\r")[-1].startswith("step 10 of 50 ████····················")
    assert stream.getvalue().endswith("0.50 s/step, 20 s left\x1b[K")


def test_the_estimate_counts_a_large_step_as_more_than_a_small_one():
    clock, stream = Clock(), Terminal()
    bar = ProgressBar(stream, 20, 10.0 + 40.0, clock)
    for _ in range(10):
        clock.now_s += 1.0
        bar.step(1.0)
    assert "40 s left" in stream.getvalue().split("\r")[-1]


def test_minutes_are_said_where_seconds_would_be_many():
    clock, stream = Clock(), Terminal()
    clock_s = ProgressBar(stream, 100, 100.0, clock)
    clock.now_s = 4.0
    clock_s.step(1.0)
    assert "6 min 36 s left" in stream.getvalue()


def test_a_log_gets_a_line_a_tenth_and_no_control_characters():
    clock, stream = Clock(), io.StringIO()
    bar = ProgressBar(stream, 100, 100.0, clock)
    for _ in range(100):
        clock.now_s += 0.1
        bar.step(1.0)
    bar.end()
    lines = stream.getvalue().splitlines()
    assert (len(lines), "\r" in stream.getvalue(), "\x1b" in stream.getvalue()) == (11, False, False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0 and f"orchestrator {command}" in capsys.readouterr().out


def test_an_unknown_command_is_one_sentence_and_exit_code_2(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as left:
        main(["paint"])
    assert left.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_a_bad_request_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("MODEL_REPOSITORY", str(write_repository(tmp_path / "models")))
    assert main(["generate", "a boat", "--steps", "151"]) == 2
    assert capsys.readouterr().err == "num_inference_steps is 151; 1 to 150 is served\n"


def test_a_wrong_setting_is_one_sentence_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LOG_LEVEL", "LOUD")
    assert main(["generate", "a boat"]) == 2
    assert capsys.readouterr().err.startswith("LOG_LEVEL is 'LOUD'; expected ")


def test_a_folder_without_models_says_what_builds_them(capsys: pytest.CaptureFixture[str]):
    assert main(["generate", "a boat", "--models", "nowhere"]) == 2
    assert "make triton" in capsys.readouterr().err


def test_a_triton_that_does_not_answer_says_what_starts_one_and_is_exit_code_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    models = write_repository(tmp_path / "models")
    assert main(["generate", "a boat", "--models", str(models), "--triton", "http://127.0.0.1:9"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("no Triton answers at http://127.0.0.1:9; `make triton` starts one")


def test_the_whole_command_makes_a_mock_picture(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setenv("INFERENCE_MODE", "mock")
    monkeypatch.setenv("MOCK_SECONDS", "0")
    monkeypatch.setenv("DEVELOPMENT_KEY_FOLDER", str(tmp_path / "key"))
    assert main(["generate", "a boat", "--seed", "7", "--out", "boat.png", "--preview", "rough.png", *SMALL]) == 0
    assert opened("boat.png").size == opened("rough.png").size == (256, 256)
    assert capsys.readouterr().out.startswith("boat.png")


def test_the_page_of_docs_names_every_option():
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert {option for option in options - {"--help"} if f"`{option}" not in page} == set()
