"""CONTRACT of POST /infer: fields, codes, replays, and a hundred cases that schemathesis invents."""

import http.client
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import requests
import schemathesis
from fakes.staging import ADMIN_TOKEN, OTHER_TOKEN, TOKEN, Staging, encoded, room, staging
from PIL import Image

from orchestrator.imaging.inspection import read
from orchestrator.staging.original import PhotoLimits, read_photo
from orchestrator.staging.request import ROOM_TYPES, STAGING_STYLES

CODES = {"invalid_input", "not_found", "timeout", "oom", "provider_transient", "rate_limited", "content_rejected"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staging]:
    with staging(tmp_path_factory.mktemp("contract")) as running:
        yield running


def assert_problem(answer: requests.Response, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document = answer.json()
    assert document["code"] == code
    assert document["status"] == status
    assert document["title"]
    assert document["detail"]


def test_an_answer_holds_the_fields_of_the_contract(served: Staging):
    answer = served.infer(served.wish("fields"))
    assert answer.status_code == 200
    body = answer.json()
    assert {name: type(body[name]) for name in ("staged_key", "width", "height", "model_rev", "duration_ms")} == {
        "staged_key": str, "width": int, "height": int, "model_rev": str, "duration_ms": int,
    }  # fmt: skip
    assert body["inference_meta"]["mock"] is True
    assert set(body["durations_ms"]) == {"queue", "fetch", "preprocess", "provider", "composite", "encode", "store"}


@pytest.mark.parametrize("room_type", ROOM_TYPES)
def test_every_room_type_is_staged_in_every_style(served: Staging, room_type: str):
    answers = [
        served.infer(served.wish(f"{room_type}-{style}", room_type=room_type, style=style)) for style in STAGING_STYLES
    ]
    assert {answer.status_code for answer in answers} == {200}


def test_pixels_outside_the_mask_are_those_of_the_working_image_to_the_byte(served: Staging):
    photo = np.asarray(room(1200, 800)).copy()
    photo += np.random.default_rng(1).integers(0, 20, photo.shape, np.uint8)
    data = encoded(Image.fromarray(photo), quality=92)
    mask = np.zeros((800, 1200), np.uint8)
    mask[500:760, 200:900] = 255
    served.put("uploads/noisy.jpg", data)
    served.put("uploads/mask.png", encoded(Image.fromarray(mask), "PNG"))
    body = served.infer(served.wish("bytes", original_key="uploads/noisy.jpg", mask_key="uploads/mask.png")).json()
    staged = np.asarray(Image.open(io.BytesIO(served.stored(body["staged_key"]))))
    working = read_photo(data, PhotoLimits()).pixels
    inside = np.asarray(Image.fromarray(mask).resize((body["width"], body["height"]), Image.Resampling.NEAREST)) > 127
    assert staged.shape == (body["height"], body["width"], 3)
    assert np.array_equal(staged[~inside], working[~inside])
    assert not np.array_equal(staged[inside], working[inside])


def test_a_staged_picture_says_what_it_is_in_xmp_and_in_a_manifest(served: Staging):
    body = served.infer(served.wish("provenance")).json()
    found = read(served.stored(body["staged_key"]))
    # A mock is no trained model; a picture of one says compositeWithTrainedAlgorithmicMedia (test_staging_managed.py).
    assert found.xmp["Iptc4xmpExt:DigitalSourceType"].endswith("/compositeSynthetic")
    assert found.credentials.state == "untrusted"
    assert found.credentials.digital_source_type.endswith("/compositeSynthetic")
    assert found.credentials.record["generation_id"] == "provenance"


def test_a_repeat_gets_the_first_answer(served: Staging):
    first = served.infer(served.wish("again", seed=3))
    again = served.infer(served.wish("again", seed=3))
    assert again.json() == first.json()
    assert again.headers["Idempotent-Replayed"] == "true"


def test_a_repeat_with_other_parameters_is_a_conflict(served: Staging):
    served.infer(served.wish("other", seed=3))
    assert_problem(served.infer(served.wish("other", seed=4)), 409, "invalid_input")


def test_the_same_seed_gives_the_same_pixels(served: Staging):
    keys = [served.infer(served.wish(f"seed{n}", seed=7)).json()["staged_key"] for n in range(2)]
    one, two = (np.asarray(Image.open(io.BytesIO(served.stored(key)))) for key in keys)
    assert np.array_equal(one, two)


def test_two_callers_may_use_the_same_image_id(served: Staging):
    served.put("private/u/p/room.jpg", encoded(room()))
    mine = served.infer(served.wish("shared")).json()
    wish = served.wish("shared", original_key="private/u/p/room.jpg", user_id="u", project_id="p")
    theirs = served.infer(wish, OTHER_TOKEN)
    assert theirs.status_code == 200
    assert theirs.json()["staged_key"] != mine["staged_key"]


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"original_key": "uploads/none.jpg"}, 404, "not_found"),
        ({"original_key": "private/u/p/room.jpg"}, 404, "not_found"),
        ({"room_type": "garage"}, 400, "invalid_input"),
        ({"style": "baroque"}, 400, "invalid_input"),
        ({"image_id": "../x"}, 400, "invalid_input"),
        ({"seed": -1}, 400, "invalid_input"),
        ({"strength": 1.5}, 400, "invalid_input"),
        ({"guidance_scale": "7"}, 400, "invalid_input"),
        ({"tier": "platinum"}, 400, "invalid_input"),
    ],
)
def test_what_is_not_served_is_a_problem_with_its_code(served: Staging, changes: dict, status: int, code: str):
    assert_problem(served.infer(served.wish("refused") | changes), status, code)


@pytest.mark.parametrize("token", ["", "wrong", TOKEN + "x", "ünicode"])
def test_a_wrong_token_is_refused_before_the_body_is_looked_at(served: Staging, token: str):
    answer = requests.post(
        served.url + "/infer", data=b"no JSON", headers={"Authorization": f"Bearer {token}".encode()}, timeout=10
    )
    assert_problem(answer, 401, "invalid_input")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_large_body_is_refused_by_its_stated_size(served: Staging):
    assert_problem(
        served.call("POST", "/infer", data=b"[" + b" " * 70_000, headers={"Content-Type": "application/json"}),
        413,
        "invalid_input",
    )


def test_a_large_body_of_unknown_size_is_refused_while_it_comes(served: Staging):
    sent = []

    def endless() -> Iterator[bytes]:
        for _ in range(5000):
            sent.append(1)
            yield b" " * 10_000

    try:
        answer = served.call("POST", "/infer", data=endless(), headers={"Content-Type": "application/json"})
    except requests.ConnectionError:
        pass  # the server hung up on us in the middle of the body, which it may
    else:
        assert_problem(answer, 413, "invalid_input")
    assert len(sent) < 3000


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("GET", "/infer", {}, 405),
        ("PATCH", "/infer/a", {}, 405),
        ("POST", "/infer/", {}, 404),
        ("GET", "/nothing", {}, 404),
        ("POST", "/infer", {"data": b"<xml/>", "headers": {"Content-Type": "text/xml"}}, 415),
        ("POST", "/infer", {"data": b"{", "headers": {"Content-Type": "application/json"}}, 400),
        ("GET", "/infer/unheard-of", {}, 404),
        ("DELETE", "/infer/unheard-of", {}, 404),
        ("GET", "/infer/unheard-of/events", {}, 404),
    ],
)
def test_wrong_calls_are_problems_too(served: Staging, method: str, path: str, options: dict, status: int):
    assert_problem(served.call(method, path, **options), status, "not_found" if status == 404 else "invalid_input")


def test_a_fault_of_the_service_is_a_problem_that_says_nothing_of_its_inside(
    served: Staging, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr("orchestrator.staging.routes.openapi_document", lambda: 1 / 0)
    answer = requests.get(served.url + "/openapi.json", timeout=10)
    assert_problem(answer, 500, "provider_transient")
    assert "division" not in answer.text
    assert "ZeroDivisionError" in caplog.text


def test_operators_and_callers_do_not_share_tokens(served: Staging):
    assert_problem(served.call("GET", "/admin/routing"), 401, "invalid_input")
    assert_problem(served.call("GET", "/infer/a", ADMIN_TOKEN), 401, "invalid_input")
    assert served.call("GET", "/admin/routing", ADMIN_TOKEN).json()["mode"] == "mock"


def test_a_routing_with_a_name_that_is_no_text_is_a_problem(served: Staging):
    headers = {"Content-Type": "application/json"}
    answer = served.call("PUT", "/admin/routing", ADMIN_TOKEN, data=b'{"\\ud83d": 1}', headers=headers)
    assert_problem(answer, 400, "invalid_input")


def test_preferences_in_two_lines_both_count(served: Staging):
    body = json.dumps(served.wish("two-lines")).encode()
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=10)
    connection.putrequest("POST", "/infer")
    headers = [("Authorization", f"Bearer {TOKEN}"), ("Content-Length", str(len(body)))]
    for name, value in [*headers, ("Prefer", "wait=30"), ("Prefer", "respond-async")]:
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    assert answer.getheader("Preference-Applied") == "respond-async, wait=30"
    connection.close()


def test_every_answer_says_how_much_of_the_rate_is_left(tmp_path: Path):
    with staging(tmp_path, STAGING_RATES="free=2/60, pro=60/60, business=600/60") as served:
        answers = [served.infer(served.wish(f"r{n}", tier="free")) for n in range(3)]
        assert [answer.headers["RateLimit-Remaining"] for answer in answers] == ["1", "0", "0"]
        assert answers[0].headers["RateLimit-Policy"] == '"free";q=2;w=60'
        assert_problem(answers[2], 429, "rate_limited")
        assert 1 <= int(answers[2].headers["Retry-After"]) <= 30
        assert served.infer(served.wish("r9", tier="pro")).status_code == 200


def test_a_rate_is_not_evaded_by_inventing_users(tmp_path: Path):
    with staging(tmp_path, STAGING_RATES="free=2/60, pro=60/60, business=600/60") as served:
        answers = [served.infer(served.wish(f"r{n}", tier="free", user_id=f"u{n}")) for n in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]


def test_health_readiness_and_metrics_answer_without_a_token(served: Staging):
    assert [
        requests.get(served.url + path, timeout=10).status_code for path in ("/healthz", "/readyz", "/metrics")
    ] == [200] * 3


def test_the_openapi_document_is_one(served: Staging):
    document = requests.get(served.url + "/openapi.json", timeout=10).json()
    assert document["openapi"].startswith("3.1")
    assert set(document["components"]["schemas"]["Problem"]["properties"]["code"]["enum"]) == CODES


def checked(operation: Any, mode: schemathesis.GenerationMode, cases: Counter[str]) -> Callable[[], None]:
    """A test of many cases of one operation: valid ones, or ones that break the schema somewhere."""

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @hypothesis.settings(
        max_examples=100 if operation.label == "POST /infer" else 15,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def check(case: schemathesis.Case) -> None:
        cases[f"{operation.label} {mode.value}"] += 1
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)

    return check


def test_schemathesis_finds_nothing_in_a_hundred_valid_and_a_hundred_broken_requests(served: Staging):
    schema = schemathesis.openapi.from_url(served.url + "/openapi.json")
    cases: Counter[str] = Counter()
    for result in schema.get_all_operations():
        for mode in schemathesis.GenerationMode:
            if mode == schemathesis.GenerationMode.POSITIVE or "infer" in result.ok().label:
                checked(result.ok(), mode, cases)()
    print(dict(cases))
    assert cases["POST /infer positive"] >= 100
    assert cases["POST /infer negative"] >= 100
    assert len(cases) == 11
