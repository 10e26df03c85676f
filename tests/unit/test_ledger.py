import pytest
from fakes.memory import MemoryStore

from orchestrator.errors import StorageError
from orchestrator.ledger import Ledger, Manifest, Picture

ROOT = "file:///results"
PICTURE = Picture(data=b"pixels", content_type="image/png")


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def ledger(store: MemoryStore) -> Ledger:
    return Ledger(store, ROOT + "/")


def complete(ledger: Ledger, picture: Picture = PICTURE, attempt: str = "a") -> Manifest:
    uri, sha256 = ledger.store_attempt(7, attempt, picture)
    return Manifest(
        generation_id=7,
        outcome="complete",
        body={"generation_id": 7},
        fingerprint="f",
        picture_uri=uri,
        picture_sha256=sha256,
        content_type="image/png",
    )


def test_a_job_without_an_outcome_has_no_manifest(ledger: Ledger) -> None:
    assert ledger.find(7) is None


def test_a_committed_manifest_is_found_as_it_was_written(ledger: Ledger) -> None:
    manifest = complete(ledger)
    assert ledger.commit(manifest) is manifest
    assert ledger.find(7) == manifest


def test_of_two_outcomes_the_first_counts_for_both(ledger: Ledger) -> None:
    first = ledger.commit(complete(ledger))
    second = Manifest(generation_id=7, outcome="failed", body={}, fingerprint="f")
    assert ledger.commit(second) == first


def test_the_picture_is_under_its_public_name_only_after_the_commit(ledger: Ledger, store: MemoryStore) -> None:
    manifest = complete(ledger)
    assert f"{ROOT}/generations/gen-7.png" not in store.objects
    ledger.reveal(ledger.commit(manifest), PICTURE)
    assert store.objects[f"{ROOT}/generations/gen-7.png"] == b"pixels"
    assert manifest.picture_uri not in store.objects


def test_a_crash_after_the_commit_is_repaired_from_the_attempt(ledger: Ledger, store: MemoryStore) -> None:
    ledger.commit(complete(ledger))
    found = ledger.find(7)
    assert found is not None
    ledger.reveal(found)
    assert store.objects[f"{ROOT}/generations/gen-7.png"] == b"pixels"


def test_revealing_twice_changes_nothing(ledger: Ledger, store: MemoryStore) -> None:
    manifest = complete(ledger)
    ledger.reveal(manifest)
    ledger.reveal(manifest)
    assert store.writes.count(f"{ROOT}/generations/gen-7.png") == 1


def test_a_picture_that_is_not_the_committed_one_is_never_revealed(ledger: Ledger, store: MemoryStore) -> None:
    manifest = complete(ledger)
    assert manifest.picture_uri is not None
    store.objects[manifest.picture_uri] = b"other pixels"
    with pytest.raises(StorageError, match="not the picture that was committed"):
        ledger.reveal(manifest)


def test_a_manifest_that_cannot_be_read_is_an_error_and_not_a_missing_one(ledger: Ledger, store: MemoryStore) -> None:
    store.objects[f"{ROOT}/generations/gen-7.json"] = b"{"
    with pytest.raises(StorageError, match="generation 7 cannot be read"):
        ledger.find(7)


def test_a_reopened_failure_leaves_no_trace_of_its_cancel(ledger: Ledger) -> None:
    failed = ledger.commit(Manifest(generation_id=7, outcome="failed", body={}, fingerprint="f"))
    ledger.request_cancel(7)
    ledger.reopen(failed)
    assert (ledger.find(7), ledger.cancel_requested(7)) == (None, False)


def test_checkpoints_and_cancels_are_gone_once_the_job_is_over(ledger: Ledger, store: MemoryStore) -> None:
    ledger.save_checkpoint(7, b"step 3")
    ledger.request_cancel(7)
    assert (ledger.checkpoint(7), ledger.cancel_requested(7)) == (b"step 3", True)
    ledger.clear(7)
    assert store.objects == {}


def test_no_word_is_left_for_a_job_that_has_ended(ledger: Ledger, store: MemoryStore) -> None:
    ledger.commit(complete(ledger))
    ledger.request_cancel(7)
    assert not ledger.cancel_requested(7)


def test_no_word_is_left_for_a_job_that_ends_meanwhile(
    ledger: Ledger, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = iter([None, complete(ledger)])
    monkeypatch.setattr(ledger, "find", lambda generation_id: next(asked))
    ledger.request_cancel(7)
    assert not ledger.cancel_requested(7)
