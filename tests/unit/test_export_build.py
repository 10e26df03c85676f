"""A build from the outside: what it leaves on disk, what it says, how it ends."""

import errno
import io
import os
import shutil
import sys
from pathlib import Path

import pytest
from export_checkpoints import write_checkpoint

import export.build as build_module
from export.build_engines import main
from export.errors import ExportError
from export.progress import Progress
from export.repository import check_space, publish, staging


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def arguments(checkpoint: Path, out: Path, *more: str) -> list[str]:
    common = ["--checkpoint", str(checkpoint), "--out", str(out), "--graphs", str(out.parent / "graphs")]
    return [*common, "--runtime", "onnx", *more]


def built_models(folder: Path, mark: str) -> Path:
    """What a finished build hands to ``publish``."""
    for name in ("unet", "vae_decoder"):
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.onnx").write_text(mark)
    (folder / "remarque.json").write_text(mark)
    return folder


def test_bad_checkpoint_ends_with_one_sentence_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(arguments(tmp_path, tmp_path / "models"))

    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("build_engines: ") and "model_index.json" in line
    assert not (tmp_path / "models").exists()


def test_without_torch_an_architecture_nobody_prepared_is_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)

    code = main(arguments(checkpoint, tmp_path / "models"))

    assert code == 2
    assert "no prepared graph fits text_encoder, unet, vae_decoder, vae_encoder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_half_precision_on_a_cpu_is_refused_with_what_to_use_instead(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(arguments(checkpoint, tmp_path / "models", "--precision", "fp16"))

    assert code == 2
    assert "--local-runtime openvino-bf16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--runtime", "onnx", "--sm", "86"], "--sm is for tensorrt-rtx"),
        (["--runtime", "tensorrt-rtx", "--device", "cpu"], "tensorrt-rtx engines run on a GPU"),
        (["--runtime", "tensorrt-rtx", "--threads", "2"], "--local-runtime and --threads are for a CPU"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(
    checkpoint: Path, tmp_path: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "models"), *options])

    assert code == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--style-rank", "--threads"])
def test_counts_below_zero_are_refused(
    checkpoint: Path, tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(checkpoint, tmp_path / "models", f"{option}=-1"))

    assert ended.value.code == 2
    assert f"argument {option}: -1 is no count" in capsys.readouterr().err


def test_disk_that_fills_up_while_building_ends_with_a_sentence(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "model.onnx.data")

    monkeypatch.setattr(build_module, "build_model", full)

    assert main(arguments(checkpoint, tmp_path / "models")) == 2
    assert "model.onnx.data: No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_interrupted_build_leaves_what_was_there_and_nothing_else(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "models"
    out.mkdir()
    (out / "remarque.json").write_text("the old one")

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build_module, "build_model", interrupted)

    assert main(arguments(checkpoint, out)) == 130
    assert [path.name for path in out.iterdir()] == ["remarque.json"]
    assert (out / "remarque.json").read_text() == "the old one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "models"]


def test_full_disk_is_said_before_the_build(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="GB free; building writes 1000000000"):
        check_space(tmp_path / "not" / "yet" / "there", 10**18)


def test_finished_models_replace_old_ones_and_other_files_stay(tmp_path: Path) -> None:
    out = built_models(tmp_path / "models", "old")
    (out / "README.md").write_text("mine")

    with staging(out) as folder:
        publish(built_models(folder / "models", "new"), out)

    assert (out / "unet" / "1" / "model.onnx").read_text() == "new"
    assert (out / "remarque.json").read_text() == "new"
    assert (out / "README.md").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["models"]


def test_move_that_is_cut_off_leaves_no_description_of_a_mixed_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = built_models(tmp_path / "models", "old")
    renamed: list[Path] = []
    rename = Path.rename

    def cut_off(self: Path, target: Path) -> Path:
        renamed.append(self)
        if len(renamed) == 3:
            raise KeyboardInterrupt
        return rename(self, target)

    with pytest.raises(KeyboardInterrupt), staging(out) as folder:
        new = built_models(folder / "models", "new")
        monkeypatch.setattr(Path, "rename", cut_off)
        publish(new, out)

    assert not (out / "remarque.json").exists()


def killed_build(out: Path) -> Path:
    """The folder of a build that no cleaning up followed, made by a process whose id is this one's own."""
    with staging(out) as folder:
        left = folder.with_name(f".{out.name}.building-{os.getpid()}")
        shutil.copytree(folder, left)
    return left


def test_leftover_of_a_killed_build_is_removed_by_the_next_whatever_its_process_was_called(tmp_path: Path) -> None:
    left = killed_build(tmp_path / "models")

    with staging(tmp_path / "models"):
        assert not left.exists()


def test_two_builds_of_one_place_leave_each_other_alone(tmp_path: Path) -> None:
    with staging(tmp_path / "models") as one, staging(tmp_path / "models") as other:
        assert one != other
        assert one.is_dir() and other.is_dir()


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that nothing moves into or out of, as one that a container mounts."""
    out = tmp_path / "mount"
    out.mkdir()
    rename = Path.rename

    def within_one_disk(self: Path, target: Path) -> Path:
        if self.is_relative_to(out) != target.is_relative_to(out):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", within_one_disk)
    return out


@pytest.mark.parametrize("is_linked", [False, True])
def test_mounted_or_linked_place_is_built_within(mount: Path, tmp_path: Path, is_linked: bool) -> None:
    out = built_models(mount, "old")
    if is_linked:
        out = tmp_path / "linked"
        out.symlink_to(mount)

    with staging(out) as folder:
        assert folder.parent == mount and "--" in folder.name  # local.triton loads no model with two hyphens
        publish(built_models(folder / "models", "new"), out)

    assert (mount / "unet" / "1" / "model.onnx").read_text() == "new"
    assert sorted(path.name for path in mount.iterdir()) == ["remarque.json", "unet", "vae_decoder"]


def test_leftover_within_a_mounted_place_is_removed_by_the_next_build(mount: Path) -> None:
    left = killed_build(mount)

    with staging(mount):
        assert left.parent == mount and not left.exists()


def test_place_that_cannot_be_written_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    for place, sentence in (
        ("file/models", "cannot be written to"),
        ("file", "is not a folder that can be written to"),
    ):
        with pytest.raises(ExportError, match=sentence), staging(tmp_path / place):
            pass


def test_progress_prints_a_line_per_stage_and_estimates_the_rest() -> None:
    stream = io.StringIO()
    progress = Progress(stream, 10_000.0)

    with progress.stage("unet: weights", 0.001) as stage:
        stage.advance(1_500_000)
        stage.advance(500_000)

    (line,) = stream.getvalue().splitlines()
    assert line.startswith("unet: weights") and "2.0 MB" in line
