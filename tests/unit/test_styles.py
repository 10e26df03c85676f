"""The shelf of styles: one download for all who wait, kept while used, never an old or half a file."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes.memory import MemoryStore
from small_checkpoint import small_checkpoint
from small_styles import LAYERS, LAYOUT, QUERY, kohya_style, peft_config, peft_style

from orchestrator.errors import InvalidInput, LoraIncompatible, LoraNotFound, StorageError
from orchestrator.job import StyleRef
from orchestrator.styles import ShelfSettings, StyleShelf

PATH = "gs://b/ink.safetensors"
FOLDER = "gs://b/styles/ink"
SERVED = small_checkpoint(layers=LAYERS, style_layout=LAYOUT)


class Bench:
    def __init__(self, **settings: object) -> None:
        self.store = MemoryStore()
        self.counted: list[tuple[str, str]] = []
        self.settings = ShelfSettings(**{"trusted_s": 0.0} | settings)  # type: ignore[arg-type]
        self.shelf = self.another()

    def another(self) -> StyleShelf:
        return StyleShelf(
            self.store, SERVED, self.settings, lambda sha256, origin, seconds: self.counted.append((sha256, origin))
        )

    @property
    def origins(self) -> list[str]:
        return [origin for _, origin in self.counted]

    def folder(self, **config: object) -> None:
        self.store.objects[f"{FOLDER}/adapter_model.safetensors"] = peft_style()
        self.store.objects[f"{FOLDER}/adapter_config.json"] = peft_config(**config)


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    bench.store.objects[PATH] = kohya_style()
    return bench


def until(happened: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 5.0
    while not happened():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def test_a_style_is_read_from_the_store_once(bench: Bench) -> None:
    assert bench.shelf.get(PATH) is bench.shelf.get(PATH)
    assert bench.store.reads == [PATH]
    assert bench.origins == ["store", "memory"]


def test_a_style_that_was_uploaded_anew_is_read_anew(bench: Bench) -> None:
    first = bench.shelf.get(PATH)
    bench.store.objects[PATH] = kohya_style(rank=3)
    assert bench.shelf.get(PATH).sha256 != first.sha256


def test_within_a_few_seconds_the_store_is_not_even_asked() -> None:
    bench = Bench(trusted_s=60.0)
    bench.store.objects[PATH] = kohya_style()
    bench.shelf.get(PATH)
    bench.store.broken = "gs://"
    assert bench.shelf.get(PATH).size_bytes == len(kohya_style())


def test_the_same_file_under_two_paths_is_kept_once(bench: Bench) -> None:
    bench.store.objects["gs://b/copy.safetensors"] = kohya_style()
    assert bench.shelf.get(PATH).sha256 == bench.shelf.get("gs://b/copy.safetensors").sha256


def test_everybody_who_waits_shares_one_download(bench: Bench) -> None:
    everybody = threading.Barrier(6)
    reading = threading.Event()
    read = bench.store.read

    def slow(uri: str, *, limit_bytes: int) -> bytes:
        reading.wait(5.0)
        return read(uri, limit_bytes=limit_bytes)

    bench.store.read = slow  # type: ignore[method-assign]
    found = []

    def ask() -> None:
        everybody.wait(5.0)
        found.append(bench.shelf.get(PATH))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    everybody.wait(5.0)
    threading.Timer(0.2, reading.set).start()
    for thread in threads:
        thread.join()
    assert bench.store.reads == [PATH]
    assert len(set(map(id, found))) == 1


def test_a_download_that_failed_is_tried_again_by_the_next(bench: Bench) -> None:
    bench.store.broken = PATH
    with pytest.raises(StorageError):
        bench.shelf.get(PATH)
    bench.store.broken = None
    assert bench.shelf.get(PATH).lora is not None


@pytest.mark.parametrize("path", [FOLDER, f"{FOLDER}/", f"{FOLDER}/adapter_model.safetensors"])
def test_a_folder_of_peft_is_read_by_any_of_its_names(bench: Bench, path: str) -> None:
    bench.folder()
    style = bench.shelf.get(path)
    assert style.lora is not None
    assert style.lora.family == "peft"
    assert list(style.lora.unet) == [QUERY]


def test_a_file_without_an_ending_is_read(bench: Bench) -> None:
    bench.store.objects["gs://b/ink"] = kohya_style()
    assert bench.shelf.get("gs://b/ink").lora is not None


def test_a_new_configuration_beside_the_same_weights_counts(bench: Bench) -> None:
    bench.folder(lora_alpha=2)
    norms = [bench.shelf.get(FOLDER).lora.unet[QUERY].norm()]  # type: ignore[union-attr]
    bench.folder(lora_alpha=4)
    norms.append(bench.shelf.get(FOLDER).lora.unet[QUERY].norm())  # type: ignore[union-attr]
    assert norms[1] == pytest.approx(2 * norms[0])


def test_weights_of_peft_without_their_configuration_are_refused(bench: Bench) -> None:
    bench.folder()
    del bench.store.objects[f"{FOLDER}/adapter_config.json"]
    with pytest.raises(LoraIncompatible, match=f"{FOLDER}/adapter_config.json is missing"):
        bench.shelf.get(FOLDER)


@pytest.mark.parametrize(("config", "told"), [(b"", "is not JSON"), (b"{}", "r in adapter_config.json is None")])
def test_an_empty_configuration_is_not_taken_for_none(bench: Bench, config: bytes, told: str) -> None:
    bench.folder()
    bench.store.objects[f"{FOLDER}/adapter_config.json"] = config
    with pytest.raises(LoraIncompatible, match=told):
        bench.shelf.get(FOLDER)


@pytest.mark.parametrize("path", ["gs://b/none.safetensors", "gs://b/none", "gs://b/none/"])
def test_a_path_that_leads_nowhere_is_not_found(bench: Bench, path: str) -> None:
    with pytest.raises(LoraNotFound, match=f"lora_path is {path}; there is no such object"):
        bench.shelf.get(path)


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_lora_weights.bin"])
@pytest.mark.parametrize("path", [FOLDER, f"{FOLDER}/"])
def test_a_folder_that_holds_only_a_pickle_is_refused_with_its_name(bench: Bench, path: str, name: str) -> None:
    bench.store.objects[f"{FOLDER}/{name}"] = b"\x80pickle"
    with pytest.raises(LoraIncompatible, match=f"{FOLDER}/{name} is a pickle, which is never opened; save it as"):
        bench.shelf.get(path)


def test_a_pickle_beside_the_safetensors_is_left_alone(bench: Bench) -> None:
    bench.folder()
    bench.store.objects[f"{FOLDER}/adapter_model.bin"] = b"\x80pickle"
    assert bench.shelf.get(FOLDER).lora is not None


def test_a_broken_file_is_refused_with_its_path_and_not_kept(bench: Bench) -> None:
    bench.store.objects[PATH] = b"\x80pickle"
    for _ in range(2):
        with pytest.raises(LoraIncompatible, match=f"style {PATH} cannot be applied: the file is a Python pickle"):
            bench.shelf.get(PATH)


def test_a_file_over_the_limit_is_refused() -> None:
    bench = Bench(limit_bytes=100)
    bench.store.objects[PATH] = kohya_style()
    with pytest.raises(LoraIncompatible, match="is larger than 100 bytes"):
        bench.shelf.get(PATH)


def test_the_styles_used_last_are_kept_within_the_memory_allowed() -> None:
    bench = Bench(memory_bytes=len(kohya_style()) * 5 // 2)
    paths = [f"gs://b/{i}.safetensors" for i in range(3)]
    for i, path in enumerate(paths):
        bench.store.objects[path] = kohya_style()[:-1] + bytes([i])
    bench.shelf.get(paths[0])
    bench.shelf.get(paths[1])
    bench.shelf.get(paths[0])
    bench.shelf.get(paths[2])
    bench.counted.clear()
    bench.shelf.get(paths[0])
    bench.shelf.get(paths[1])
    assert bench.origins == ["memory", "store"]


def test_after_a_restart_the_file_comes_from_disk(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path)
    bench.store.objects[PATH] = kohya_style()
    bench.shelf.get(PATH)
    assert bench.another().get(PATH).sha256 == bench.counted[0][0]
    assert bench.origins == ["store", "disk"]
    assert bench.store.reads == [PATH]


def test_a_file_that_rotted_on_disk_is_fetched_again(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path)
    bench.store.objects[PATH] = kohya_style()
    kept = tmp_path / "weights" / bench.shelf.get(PATH).sha256
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    bench.another().get(PATH)
    assert bench.origins == ["store", "store"]
    assert kept.read_bytes() == kohya_style()


def test_an_old_version_on_disk_is_not_used(tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path)
    bench.store.objects[PATH] = kohya_style()
    bench.shelf.get(PATH)
    bench.store.objects[PATH] = kohya_style(rank=3)
    bench.another().get(PATH)
    assert bench.origins == ["store", "store"]


def test_the_disk_holds_no_more_than_allowed(tmp_path: Path) -> None:
    size_bytes = len(kohya_style())
    bench = Bench(folder=tmp_path, disk_bytes=size_bytes * 3 // 2)
    for i in range(3):
        bench.store.objects[f"gs://b/{i}.safetensors"] = kohya_style()[:-1] + bytes([i])
        bench.shelf.get(f"gs://b/{i}.safetensors")
    assert sum(path.stat().st_size for path in (tmp_path / "weights").iterdir()) <= size_bytes * 3 // 2


def test_a_disk_that_takes_nothing_costs_only_speed(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    bench = Bench(folder=tmp_path / "taken")
    bench.store.objects[PATH] = kohya_style()
    assert bench.shelf.get(PATH).lora is not None


def test_what_was_fetched_ahead_is_there_when_the_job_comes(bench: Bench) -> None:
    bench.shelf.prefetch([StyleRef(path=PATH), StyleRef(path="gs://b/none.safetensors")])
    until(lambda: bench.origins == ["store"])
    bench.shelf.get(PATH)
    assert bench.store.reads == [PATH]


def test_what_a_waiting_jobs_styles_will_need_is_prepared_once_all_of_them_are_here(bench: Bench) -> None:
    prepared: list[list[str]] = []
    shelf = StyleShelf(bench.store, SERVED, prepare=lambda styles: prepared.append([one.path for one in styles]))
    shelf.prefetch([StyleRef(path=PATH), StyleRef(path="gs://b/none.safetensors")])
    shelf.prefetch([])
    shelf.prefetch([StyleRef(path=PATH), StyleRef(path=PATH, weight=0.5)])
    until(lambda: prepared == [[PATH, PATH]])


def test_what_cannot_be_prepared_does_not_disturb(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(styles: object) -> None:
        raise LoraIncompatible("it cannot be merged")

    caplog.set_level("INFO")
    StyleShelf(bench.store, SERVED, prepare=refuse).prefetch([StyleRef(path=PATH)])
    until(lambda: "could not be made ready ahead: it cannot be merged" in caplog.text)


def test_a_job_gets_all_of_its_styles_or_none(bench: Bench) -> None:
    refs = [StyleRef(path=PATH, weight=0.5), StyleRef(path="gs://b/none.safetensors")]
    with pytest.raises(LoraNotFound):
        bench.shelf.admit(refs)
    (applied,) = bench.shelf.admit(refs[:1])
    assert (applied.weight, applied.record.name, applied.record.sha256) == (0.5, "ink", applied.style.sha256)


def test_a_store_that_may_not_be_read_is_said(bench: Bench) -> None:
    def refuse(uri: str) -> str:
        raise InvalidInput(f"{uri} is outside of what may be read")

    bench.store.version = refuse  # type: ignore[method-assign]
    with pytest.raises(LoraIncompatible, match="outside of what may be read"):
        bench.shelf.get(PATH)
