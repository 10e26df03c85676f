"""The shelf of merged models: what it writes, what it loads, what it lets go of and what it never does."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from small_repository import base_weight, read_weight, write_models
from small_styles import MODELS, QUERY, STYLED, applied_style

from orchestrator.diffusion.deltas import merged
from orchestrator.errors import DeadlineExceeded, LoraIncompatible, ModelUnavailable
from orchestrator.merged_folders import MergedFolders
from orchestrator.merged_models import MergedModels, MergedSettings
from orchestrator.style_ways import AppliedStyle, merged_name

TEXT = "encoder.layers.0.mlp.fc1"


def styles(count: int) -> list[AppliedStyle]:
    return [applied_style(sha256=f"{i}" * 64) for i in range(count)]


class Server:
    """Loads what lies in its repository, as Triton does."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self.names: list[str] = ["unet", "text_encoder"]
        self.calls: list[tuple[str, str]] = []
        self.loading_s = 0.0

    def load(self, model: str) -> None:
        self.calls.append(("load", model))
        time.sleep(self.loading_s)
        if not (self.repository / model / "config.pbtxt").is_file():
            raise ModelUnavailable(f"Triton did not load {model}: not in the repository")
        self.names.append(model)

    def unload(self, model: str) -> None:
        self.calls.append(("unload", model))
        self.names.remove(model)

    def is_ready(self, model: str) -> bool:
        return model in self.names

    def loaded(self) -> list[str]:
        return list(self.names)


class Bench:
    def __init__(self, repository: Path, disk_bytes: int = 1 << 30, **settings: float) -> None:
        self.repository = repository
        self.server = Server(repository)
        self.heard: list[tuple[str, str]] = []
        self.disk_bytes, self.settings = disk_bytes, settings
        self.shelf = self.another()

    def another(self) -> MergedModels:
        """A second process's shelf on the same repository and server."""
        return MergedModels(
            self.server,
            MergedFolders(self.repository, self.disk_bytes),
            STYLED,
            MergedSettings(**{"wait_s": 5.0} | self.settings),  # type: ignore[arg-type]
            lambda name, what, seconds: self.heard.append((what, name)),
        )

    def use(self, applied: AppliedStyle, network: str = "unet") -> str:
        with self.shelf.serving(network, [applied]) as name:
            assert name in self.server.names
            return name

    @property
    def did(self) -> list[str]:
        return [what for what, _ in self.heard]

    def merged_folders(self) -> set[str]:
        return {path.name for path in self.repository.iterdir() if "--" in path.name}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.merged_models.LOOKS_EVERY_S", 0.005)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(write_models(tmp_path))


@contextmanager
def in_threads(*calls: Callable[[], object]) -> Iterator[None]:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(10)


# What is got ready ahead


def test_a_waiting_jobs_models_are_written_and_loaded_before_its_turn(bench: Bench) -> None:
    bench.shelf.prepare([applied_style()], "merged")
    names = {merged_name(network, MODELS[network], [applied_style()]) for network in ("unet", "text_encoder")}
    assert bench.merged_folders() == names <= set(bench.server.names)
    bench.use(applied_style())
    assert bench.did == ["merge", "load", "merge", "load", "hit"]


def test_of_styles_that_mix_only_the_text_encoder_is_got_ready(bench: Bench) -> None:
    bench.shelf.prepare([applied_style()], "auto")
    assert bench.merged_folders() == {merged_name("text_encoder", MODELS["text_encoder"], [applied_style()])}


def test_nothing_is_unloaded_for_a_job_that_has_not_begun(tmp_path: Path) -> None:
    bench = Bench(write_models(tmp_path), memory_bytes=1)
    in_use = bench.use(styles(2)[0])
    bench.shelf.prepare([styles(2)[1]], "merged")
    assert bench.server.names[2:] == [in_use]
    assert len(bench.merged_folders()) == 3, "but its models are written"


def test_what_is_ready_is_neither_written_nor_loaded_again(bench: Bench) -> None:
    for _ in range(2):
        bench.shelf.prepare([applied_style()], "merged")
    assert bench.did == ["merge", "load"] * 2


# What is written


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_merged_model_holds_the_changed_weights_in_the_files_own_precision(tmp_path: Path, dtype: str) -> None:
    bench = Bench(write_models(tmp_path, dtype))
    applied = applied_style(weight=0.5)
    folder = tmp_path / bench.use(applied)
    base = read_weight(tmp_path / "unet", tmp_path / "unet", QUERY)
    expected = merged(base, applied.style.deltas("unet")[QUERY], 0.5)
    found = read_weight(folder, tmp_path / "unet", QUERY)
    np.testing.assert_allclose(found, expected, rtol={"float32": 0, "float16": 2**-11, "bfloat16": 2**-8}[dtype])
    assert np.abs(found - base).max() > 1e-3


def test_every_copy_of_a_layers_weight_changes(bench: Bench) -> None:
    folder = bench.repository / bench.use(applied_style(), "text_encoder")
    first, second = (read_weight(folder, bench.repository / "text_encoder", TEXT, i) for i in (0, 1))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, base_weight("text_encoder", TEXT))


def test_all_but_the_changed_weights_is_shared_with_the_base_model(bench: Bench) -> None:
    folder = bench.repository / bench.use(applied_style())
    base = bench.repository / "unet"
    own = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.stat().st_nlink == 1}
    changed = {f"1/weights/{layer}.weight" for layer in applied_style().style.deltas("unet")}
    assert own == changed | {"config.pbtxt", "merged.json"}
    assert (folder / "1/model.onnx").samefile(base / "1/model.onnx")


def test_the_base_model_is_left_as_it_was(bench: Bench) -> None:
    before = {p: p.read_bytes() for p in (bench.repository / "unet").rglob("*") if p.is_file()}
    bench.use(applied_style())
    assert {p: p.read_bytes() for p in (bench.repository / "unet").rglob("*") if p.is_file()} == before


def test_a_second_style_on_other_layers_does_not_inherit_the_first(bench: Bench) -> None:
    first = bench.use(applied_style(sha256="1" * 64))
    other = applied_style(sha256="2" * 64)
    kept = {name: delta for name, delta in other.style.lora.unet.items() if name != QUERY}  # type: ignore[union-attr]
    object.__setattr__(other.style.lora, "unet", kept)
    second = bench.use(other)
    weights = [
        read_weight(bench.repository / name, bench.repository / "unet", QUERY) for name in (first, second, "unet")
    ]
    assert not np.array_equal(weights[0], weights[2])
    assert np.array_equal(weights[1], weights[2])


def test_several_styles_are_merged_one_after_the_other(bench: Bench) -> None:
    both = [applied_style(weight=0.7, sha256="1" * 64), applied_style(rank=3, weight=-0.3, sha256="2" * 64)]
    with bench.shelf.serving("unet", both) as name:
        found = read_weight(bench.repository / name, bench.repository / "unet", QUERY)
    expected = base_weight("unet", QUERY)
    for one in both:
        expected = merged(expected, one.style.deltas("unet")[QUERY], one.weight)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_the_configuration_says_its_own_name_and_revision(bench: Bench) -> None:
    name = bench.use(applied_style())
    text = (bench.repository / name / "config.pbtxt").read_text()
    assert text.startswith(f'name: "{name}"\nbackend: "python"\n')
    assert f'key: "revision" value {{ string_value: "{name}" }}' in text


def test_a_merged_model_gets_no_graphs_of_one_shape_whose_memory_nobody_counts(bench: Bench) -> None:
    config = bench.repository / "unet" / "config.pbtxt"
    config.write_text(config.read_text() + 'parameters { key: "own_shapes" value { string_value: "4" } }\n')
    text = (bench.repository / bench.use(applied_style()) / "config.pbtxt").read_text()
    assert "revision" in text
    assert "own_shapes" not in text


def test_the_name_tells_styles_weights_order_and_base_apart() -> None:
    one, other = applied_style(sha256="1" * 64), applied_style(sha256="2" * 64)
    names = [
        merged_name("unet", "0" * 64, [one]),
        merged_name("unet", "0" * 64, [applied_style(sha256="1" * 64, weight=0.5)]),
        merged_name("unet", "0" * 64, [one, other]),
        merged_name("unet", "0" * 64, [other, one]),
        merged_name("unet", "9" * 64, [one]),
    ]
    assert len(set(names)) == len(names)
    assert merged_name("unet", "0" * 64, [one]) == "unet--d2ae5f5547fa312f"


# What is refused


def test_an_engine_is_not_merged_and_a_folder_built_for_the_style_is_served(bench: Bench) -> None:
    (bench.repository / "unet" / "weights.json").unlink()
    with pytest.raises(LoraIncompatible, match=r"style gs://b/ink cannot be applied: unet merges no style.*--style"):
        bench.use(applied_style())
    built = bench.repository / merged_name("unet", MODELS["unet"], [applied_style()])
    built.mkdir()
    (built / "config.pbtxt").write_text("an engine's")
    assert bench.use(applied_style()) == built.name
    assert bench.did == ["load"]


def test_a_repository_that_cannot_be_written_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: object, **options: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(LoraIncompatible, match=r"which cannot be written \(Read-only file system\); styles that mix"):
        bench.use(applied_style())


def test_a_full_disk_is_no_fault_of_the_style_and_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ModelUnavailable, match="No space left on device"):
        bench.use(applied_style())
    assert bench.merged_folders() == set()
    assert list((bench.repository / "unet" / ".merging").iterdir()) == []


def test_a_repository_without_locks_says_so(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(ModelUnavailable, match="files cannot be locked: No locks available"):
        bench.use(applied_style())


def test_a_merged_model_that_cannot_be_deleted_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(write_models(tmp_path), disk_bytes=1, memory_bytes=1)
    first, second = styles(2)
    name = bench.use(first)

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(13, "Permission denied")

    place = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, to: place(self, to) if "--" in to.name else refuse(self, to))
    bench.use(second)
    assert name in bench.merged_folders()


def test_a_table_of_weights_that_lacks_a_layer_is_refused(bench: Bench) -> None:
    (bench.repository / "unet" / "weights.json").write_text('{"format": 1, "layers": {}}')
    with pytest.raises(ModelUnavailable, match=r"weights.json lacks or misstates .*attn"):
        bench.use(applied_style())


def test_a_server_that_does_not_see_the_folder_says_what_it_needs(bench: Bench, tmp_path: Path) -> None:
    bench.server.repository = tmp_path / "elsewhere"
    with pytest.raises(ModelUnavailable, match=r"model-control-mode=explicit that serves"):
        bench.use(applied_style())


# What is loaded, kept and let go


def test_a_model_is_written_and_loaded_once(bench: Bench) -> None:
    assert bench.use(applied_style()) == bench.use(applied_style())
    assert bench.did == ["merge", "load", "hit"]


def test_everybody_who_waits_shares_one_merge_and_one_load(bench: Bench) -> None:
    bench.server.loading_s = 0.05
    with in_threads(*[lambda: bench.use(applied_style())] * 5):
        pass
    assert sorted(bench.did) == ["hit"] * 4 + ["load", "merge"]
    assert bench.server.calls == [("load", bench.heard[0][1])]


def test_the_models_used_last_stay_within_the_memory_allowed(bench: Bench) -> None:
    first, second, third = styles(3)
    size_bytes = bench.shelf._folders.size_bytes(bench.use(first))
    bench.settings = {"memory_bytes": size_bytes * 5 // 2}
    bench.shelf = bench.another()
    names = [bench.use(one) for one in (second, first, third)]
    assert bench.server.calls[-2:] == [("unload", names[0]), ("load", names[2])]
    assert bench.server.names == ["unet", "text_encoder", names[1], names[2]]


def test_a_model_under_a_running_job_is_not_evicted_and_the_next_job_waits_for_it(tmp_path: Path) -> None:
    bench = Bench(write_models(tmp_path), memory_bytes=1)
    first, second = styles(2)
    with ExitStack() as job:
        name = job.enter_context(bench.shelf.serving("unet", [first]))
        with in_threads(lambda: bench.use(second)):
            time.sleep(0.05)
            assert name in bench.server.names
            job.close()
    assert ("unload", name) in bench.server.calls
    assert bench.server.calls[-1][0] == "load"


def test_a_job_that_waits_for_a_model_being_loaded_does_not_keep_it_from_being_let_go(tmp_path: Path) -> None:
    bench = Bench(write_models(tmp_path), memory_bytes=1)
    bench.server.loading_s = 0.01
    done: list[str] = []
    jobs = [styles(3)[i % 3] for i in range(9)]
    with in_threads(*[lambda job=job: done.append(bench.use(job)) for job in jobs]):  # type: ignore[misc]
        pass
    assert len(done) == len(jobs)


def test_a_style_in_demand_lets_go_for_one_that_has_waited_long(tmp_path: Path) -> None:
    bench = Bench(write_models(tmp_path), memory_bytes=1, fair_after_s=0.05)
    first, second = styles(2)
    bench.use(first)
    stop = threading.Event()

    def demanded() -> None:
        while not stop.is_set():
            with bench.shelf.serving("unet", [first]):
                time.sleep(0.02)

    with in_threads(demanded, lambda: (time.sleep(0.01), demanded())):
        try:
            assert "--" in bench.use(second)
        finally:
            stop.set()


def test_a_job_that_finds_no_room_in_time_is_tried_again(tmp_path: Path) -> None:
    bench = Bench(write_models(tmp_path), memory_bytes=1, wait_s=0.05)
    first, second = styles(2)
    with bench.shelf.serving("unet", [first]), pytest.raises(ModelUnavailable, match="found no room within 0.05 s"):
        bench.use(second)


def test_another_process_does_not_evict_what_runs_here(tmp_path: Path) -> None:
    bench = Bench(write_models(tmp_path), memory_bytes=1, wait_s=0.05)
    first, second = styles(2)
    with bench.shelf.serving("unet", [first]) as name:
        bench.shelf = bench.another()
        with pytest.raises(ModelUnavailable):
            bench.use(second)
        assert name in bench.server.names
    bench.use(second)
    assert name not in bench.server.names


def test_one_model_may_be_larger_than_the_memory_allowed(tmp_path: Path) -> None:
    assert "--" in Bench(write_models(tmp_path), memory_bytes=1).use(applied_style())


def test_after_a_restart_of_the_server_the_model_is_loaded_again(bench: Bench) -> None:
    name = bench.use(applied_style())
    bench.server.names = ["unet", "text_encoder"]
    assert bench.use(applied_style()) == name
    assert bench.did == ["merge", "load", "load"]


def test_a_server_that_is_slow_to_say_what_it_has_is_asked_to_load(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(model: str) -> bool:
        raise DeadlineExceeded("took longer than 2 s")

    monkeypatch.setattr(bench.server, "is_ready", slow)
    assert bench.use(applied_style()) == bench.use(applied_style())
    assert bench.did == ["merge", "load", "load"]


def test_a_model_lost_while_a_job_runs_can_be_loaded_again(bench: Bench) -> None:
    with bench.shelf.serving("unet", [applied_style()]) as name:
        assert bench.shelf.load(name) is False
        bench.server.names.remove(name)
        assert bench.shelf.load(name) is True
        assert name in bench.server.names


def test_the_disk_holds_no_more_than_allowed_and_nothing_that_is_loaded_goes(tmp_path: Path) -> None:
    bench = Bench(write_models(tmp_path), disk_bytes=1, memory_bytes=1)
    names = [bench.use(one) for one in styles(3)]
    assert bench.merged_folders() == {names[2]}
    assert bench.server.names[-1] == names[2]


def test_a_model_that_was_deleted_is_written_again(tmp_path: Path) -> None:
    bench = Bench(write_models(tmp_path), disk_bytes=1, memory_bytes=1)
    first, *others = styles(3)
    name = bench.use(first)
    for one in others:
        bench.use(one)
    assert name not in bench.merged_folders()
    assert bench.use(first) == name


def test_a_model_merged_into_a_base_that_was_built_anew_is_written_again(bench: Bench) -> None:
    name = bench.use(applied_style())
    shutil.rmtree(bench.repository / "unet")
    shutil.rmtree(bench.repository / "text_encoder")
    write_models(bench.repository, "float16")
    assert bench.use(applied_style()) == name
    assert bench.did == ["merge", "load", "merge", "hit"]
    assert (bench.repository / name / "1/weights" / f"{QUERY}.weight").stat().st_size == 8 * 8 * 2


def test_folders_that_were_built_offline_are_never_deleted(tmp_path: Path) -> None:
    bench = Bench(write_models(tmp_path), disk_bytes=1, memory_bytes=1)
    built = tmp_path / "unet--0123456789abcdef"
    built.mkdir()
    (built / "config.pbtxt").write_text("an engine's")
    for one in styles(3):
        bench.use(one)
    assert built.is_dir()


def test_what_a_killed_process_left_is_cleared_away_after_an_hour(bench: Bench) -> None:
    left = bench.repository / "unet" / ".merging" / "unet--x.1"
    left.mkdir(parents=True)
    fresh = left.with_name("unet--y.1")
    fresh.mkdir()
    os.utime(left, (0, 0))
    bench.use(applied_style())
    assert (left.exists(), fresh.exists()) == (False, True)
