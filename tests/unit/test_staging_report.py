"""Curated sets as they are read, and the report as it is written."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from orchestrator.errors import InvalidInput
from orchestrator.staging.curated import CuratedSet, Entry, load_set
from orchestrator.staging.report import Outcome, Report
from orchestrator.staging.scores.verdict import Verdict

ROOM = {"id": "bed-1", "original": "a.png", "room_type": "bedroom", "style": "modern"}
ENTRY = Entry(id="bed-1", original="a.png", mask=None, room_type="bedroom", style="modern", seed=7)
GOOD = Verdict(scores={"seam": 1.0, "noise": 0.9}, reasons={}, unjudged=("the style was not judged",))
BAD = Verdict(scores={"seam": 0.25, "noise": 0.9}, reasons={"seam": "a seam runs along the mask"})


def written(folder: Path, *entries: object, **fields: object) -> Path:
    (folder / "a.png").write_bytes(b"picture")
    content = {"name": "Two rooms", "origin": "drawn", "entries": list(entries)} | fields
    (folder / "set.json").write_text(json.dumps(content))
    return folder


def report(*outcomes: Outcome, least: float = 0.8) -> Report:
    return Report(title="Staged <rooms>", origin="drawn", outcomes=outcomes, least=least, facts={"model": "mock-1"})


def outcome(verdict: Verdict | None, **fields: object) -> Outcome:
    return Outcome(entry=ENTRY, before="pictures/b.png", after="pictures/a.png", verdict=verdict, **fields)


class Links(HTMLParser):
    """Collects what a page loads, and what its pictures are called for those who do not see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.named: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.loaded += [value for name in ("src", "href") if (value := found.get(name)) is not None]
        if tag == "img":
            self.named.append(found.get("alt") or "")


def test_a_set_is_read_with_what_it_leaves_out(tmp_path: Path):
    found = load_set(written(tmp_path, ROOM, ROOM | {"id": "bed-2", "mask": "a.png", "seed": 0}))
    assert found == CuratedSet(
        folder=tmp_path,
        name="Two rooms",
        origin="drawn",
        entries=(
            Entry(id="bed-1", original="a.png", mask=None, room_type="bedroom", style="modern", seed=None),
            Entry(id="bed-2", original="a.png", mask="a.png", room_type="bedroom", style="modern", seed=0),
        ),
    )


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([], "has no entries"),
        ([ROOM, ROOM], "two entries with one id"),
        ([ROOM | {"room_type": "garage"}], "entry 1: entries[0].room_type is 'garage'"),
        ([ROOM | {"style": "baroque"}], "entry 1: entries[0].style is 'baroque'"),
        ([ROOM, ROOM | {"id": "b", "seed": -1}], "entry 2: seed is -1"),
        ([ROOM | {"original": "none.png"}], "there is no file none.png"),
        ([ROOM | {"original": "../a.png"}], "leads out of the folder"),
        ([ROOM | {"original": "/etc/passwd"}], "leads out of the folder"),
        ([ROOM | {"mask": "none.png"}], "there is no file none.png"),
        ([ROOM | {"id": "../x"}], "image_id does not match"),
        (["room"], "entries[0] is a string; an object"),
    ],
)
def test_a_set_that_is_wrong_is_refused_with_the_entry(entries: list[object], sentence: str, tmp_path: Path):
    with pytest.raises(InvalidInput, match=re.escape(sentence)):
        load_set(written(tmp_path, *entries))


def test_a_set_without_an_origin_is_refused(tmp_path: Path):
    with pytest.raises(InvalidInput, match="origin is missing"):
        load_set(written(tmp_path, ROOM, origin=""))


def test_a_folder_that_is_no_set_is_refused_with_what_a_set_is(tmp_path: Path):
    with pytest.raises(InvalidInput, match="a set is a folder with set.json"):
        load_set(tmp_path / "none")


def test_a_set_that_is_not_json_is_refused(tmp_path: Path):
    (tmp_path / "set.json").write_text("{")
    with pytest.raises(InvalidInput, match="is not JSON"):
        load_set(tmp_path)


@pytest.mark.parametrize(("least", "good"), [(0.5, True), (0.6, False)])
def test_a_report_is_good_where_enough_rooms_pass(least: float, good: bool):
    assert report(outcome(GOOD), outcome(BAD), least=least).good is good


def test_a_room_that_could_not_be_staged_did_not_pass():
    unmade = Outcome(entry=ENTRY, before="pictures/b.png", error="TIMEOUT: it was not done in time")
    assert report(outcome(GOOD), unmade).pass_rate == 0.5


def test_the_document_names_every_room_with_its_scores_and_what_was_wrong():
    found = report(outcome(BAD, seed=7, strength=0.6)).document()
    entry = found["entries"][0]
    assert (entry["scores"], entry["reasons"], entry["seed"]) == (BAD.scores, BAD.reasons, 7)
    assert found["scores"]["seam"] == {"mean": 0.25, "lowest": 0.25, "low": 1}


def test_the_page_loads_nothing_but_its_own_pictures():
    page = report(outcome(GOOD)).page()
    assert Links(page).loaded == ["pictures/b.png", "pictures/a.png"]
    assert "http" not in page


def test_the_page_shows_both_pictures_without_its_script():
    page = report(outcome(GOOD)).page()
    assert Links(page.partition("<script>")[0]).named == [
        "The empty room bed-1",
        "The same room staged as bedroom, modern",
    ]


def test_the_page_says_what_was_wrong_and_what_was_not_judged():
    page = report(outcome(BAD), outcome(GOOD, warnings=("scaled",))).page()
    assert all(line in page for line in ("a seam runs along the mask", "the style was not judged", "scaled"))


def test_the_page_shows_a_room_that_could_not_be_staged():
    page = report(Outcome(entry=ENTRY, before="pictures/b.png", error="TIMEOUT: late")).page()
    assert "TIMEOUT: late" in page
    assert Links(page).loaded == ["pictures/b.png"]


def test_what_a_set_says_cannot_become_markup():
    assert "<rooms>" not in report(outcome(GOOD)).page()
