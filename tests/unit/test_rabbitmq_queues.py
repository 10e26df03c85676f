"""Names, arguments and headers of the queues, without a broker."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from orchestrator.clients.queues import (
    MAX_COUNT,
    MAX_ERROR_CHARS,
    Delivery,
    Queues,
    death_headers,
    kept,
    life,
    named,
    replay_headers,
    tried,
)

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


def delivery(queue: str = "image_generation", **headers: object) -> Delivery:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Delivery(b"{}", named, "m", False, queue, 1, 1)


def test_publishers_queue_is_declared_with_no_arguments_at_all() -> None:
    assert Queues().work == "image_generation"
    assert Queues().arguments("image_generation") is None


@pytest.mark.parametrize(("asked_s", "given"), [(0, "5s"), (5, "5s"), (5.1, "30s"), (300, "300s"), (9999, "300s")])
def test_delay_is_the_next_longer_one_there_is(asked_s: float, given: str) -> None:
    name, arguments = Queues().delayed("image_generation", asked_s)
    assert name == f"image_generation.retry.{given}"
    assert arguments["x-message-ttl"] == int(given[:-1]) * 1000


def test_delayed_message_returns_by_the_default_exchange() -> None:
    _, arguments = Queues().delayed("image_generation.events", 5)
    assert arguments["x-dead-letter-exchange"] == ""
    assert arguments["x-dead-letter-routing-key"] == "image_generation.events"


def test_probe_never_grows() -> None:
    arguments = Queues().arguments(Queues().probe)
    assert arguments is not None
    assert arguments["x-max-length"] == 1


def test_death_is_told_with_reason_origin_and_utc_time() -> None:
    seoul = NOON.astimezone(timezone(timedelta(hours=9)))
    dead = death_headers(delivery(), reason="GPU_OOM", error="no room", attempts=3, now=seoul)
    assert dead == {
        "x-reason": "GPU_OOM",
        "x-error": "no room",
        "x-attempts": 3,
        "x-origin": "image_generation",
        "x-life": 0,
        "x-first-death": "2026-11-22T12:00:00+00:00",
    }


def test_second_death_keeps_the_time_of_the_first() -> None:
    dead = death_headers(delivery(x_first_death="earlier"), reason="TIMEOUT", error="", attempts=1, now=NOON)
    assert dead["x-first-death"] == "earlier"


def test_long_error_is_cut_to_fit_into_a_header() -> None:
    dead = death_headers(delivery(), reason="X", error="e" * 50_000, attempts=1, now=NOON)
    assert len(str(dead["x-error"])) == MAX_ERROR_CHARS


def test_replay_counts_lives_and_forgets_attempts() -> None:
    dead = delivery(x_attempts=3, x_attempt=3, x_life=1, x_first_death="earlier", x_reason="GPU_OOM")
    assert replay_headers(dead) == {"x-life": 2, "x-first-death": "earlier"}


@pytest.mark.parametrize("nonsense", ["2", -1, None, 1.5, {"a": 1}])
def test_counts_that_are_no_counts_are_zero(nonsense: object) -> None:
    assert tried(delivery(x_attempt=nonsense)) == 0
    assert life(delivery(x_life=nonsense)) == 0


def test_counts_that_somebody_made_up_can_still_be_counted_on() -> None:
    assert tried(delivery(x_attempt=2**63 - 1)) == life(delivery(x_life=2**63 - 1)) == MAX_COUNT


def test_headers_whose_names_are_no_text_are_left_out() -> None:
    assert named({b"\xff": 1, "x-attempt": 2}) == {"x-attempt": 2}
    assert named(None) == {}


def test_what_the_broker_would_copy_by_goes_along_with_no_retry() -> None:
    given = {"x-kept": 1, "CC": ["elsewhere"], "BCC": ["elsewhere"], "x-death": [], "x-death-reason": "expired"}
    assert kept(given) == {"x-kept": 1}
