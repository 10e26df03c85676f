"""What is decided about a webhook without a network: its bytes, its identity, its signature and its next try."""

import hmac
import json
from base64 import b64decode, b64encode
from hashlib import sha256
from random import Random

import pytest

from orchestrator.clients.webhook import encode_body, webhook_id
from orchestrator.clients.webhook_retry import MAX_DELAY_S, MAX_RETRY_AFTER_S, parse_retry_after, retry_delay
from orchestrator.clients.webhook_signature import Signer
from orchestrator.errors import ConfigError, WebhookRefused, WebhookUndelivered

SECRET = "whsec_" + b64encode(b"0123456789abcdef01234567").decode()
NOW_S = 1_795_000_000.0  # Thu, 18 Nov 2026 11:06:40 GMT


def test_equal_bodies_are_the_same_bytes_whatever_the_order_of_keys() -> None:
    assert encode_body({"b": 1, "a": {"d": 2.5, "c": None}}) == b'{"a":{"c":null,"d":2.5},"b":1}'
    assert encode_body({"a": {"c": None, "d": 2.5}, "b": 1}) == encode_body({"b": 1, "a": {"d": 2.5, "c": None}})


def test_a_body_that_went_through_a_queue_is_still_the_same_bytes() -> None:
    body = {"generation_id": 1, "progress": {"estimated_seconds": 0.1 + 0.2}, "metadata": {"prompt": "바다"}}
    assert encode_body(json.loads(encode_body(body))) == encode_body(body)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1}])
def test_a_body_that_is_no_json_is_refused_for_good(value: object) -> None:
    with pytest.raises(WebhookRefused, match="cannot be written as JSON"):
        encode_body({"a": value})


def test_every_event_of_a_job_has_its_own_identity() -> None:
    ids = {
        webhook_id(7, "progress", progress_percent=0),
        webhook_id(7, "progress", progress_percent=25),
        webhook_id(7, "complete"),
        webhook_id(7, "failed"),
        webhook_id(7, "failed", life=1),
        webhook_id(71, "failed"),
    }
    assert len(ids) == 6
    assert webhook_id(7, "complete") == "gen_7_complete"
    assert not any("." in name for name in ids)  # the standard separates the signed parts by dots


def test_the_signature_is_the_one_of_standard_webhooks() -> None:
    # The example of the specification's reference libraries, also in their own tests.
    headers = Signer.parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").headers(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}', now_s=1614265330.9
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_while_secrets_change_over_both_sign() -> None:
    other = "whsec_" + b64encode(b"f" * 32).decode()
    old, new = Signer.parse(f"{SECRET} {other}").headers("id", b"{}", now_s=5)["webhook-signature"].split()
    assert old == Signer.parse(SECRET).headers("id", b"{}", now_s=5)["webhook-signature"]
    assert b64decode(new.removeprefix("v1,")) == hmac.digest(b"f" * 32, b"id.5.{}", sha256)


@pytest.mark.parametrize("secret", ["whsec_", "whsec_short", "whsec_!!!!", "whsec_c2hvcnQ="])
def test_a_weak_or_broken_signing_secret_is_refused_without_showing_it(secret: str) -> None:
    with pytest.raises(ConfigError, match="WEBHOOK_SIGNING_SECRET") as caught:
        Signer.parse(secret)
    assert secret == "whsec_" or secret not in str(caught.value)


def test_the_secret_is_in_no_repr() -> None:
    assert "0123456789" not in repr(Signer.parse(SECRET))


@pytest.mark.parametrize("attempt", [1, 2, 5, 9, 10, 50, 100_000])
def test_delays_double_up_to_five_minutes_and_are_spread_over_the_whole_span(attempt: int) -> None:
    longest_s = min(2.0 ** (attempt - 1), 300.0) if attempt < 50 else 300.0
    rng = Random(1)
    delays = [retry_delay(WebhookUndelivered("down"), attempt, rng) for _ in range(500)]
    assert 0 <= min(delays) < longest_s * 0.05
    assert longest_s * 0.95 < max(delays) <= longest_s


def test_the_same_dice_give_the_same_delay() -> None:
    error = WebhookUndelivered("down", retry_after_s=3)
    assert retry_delay(error, 4, Random(7)) == retry_delay(error, 4, Random(7))


def test_nobody_comes_back_before_the_backend_asked_and_not_all_at_once() -> None:
    error = WebhookUndelivered("busy", status=429, retry_after_s=60.0)
    delays = {retry_delay(error, 3, Random(seed)) for seed in range(100)}
    assert min(delays) >= 60.0
    assert max(delays) <= 64.0
    assert len(delays) == 100


def test_a_backend_that_asks_for_a_week_gets_an_hour() -> None:
    error = WebhookUndelivered("busy", retry_after_s=7 * 86400.0)
    assert retry_delay(error, 100, Random(1)) <= MAX_RETRY_AFTER_S + MAX_DELAY_S


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("120", 120.0),
        (" 0 ", 0.0),
        ("9" * 400, 999_999_999_999.0),
        ("Wed, 18 Nov 2026 11:07:40 GMT", 60.0),
        ("Wednesday, 18-Nov-26 11:07:40 GMT", 60.0),
        ("Wed, 18 Nov 2026 12:07:40 +0100", 60.0),
        ("Wed, 18 Nov 2026 11:07:40 -0000", 60.0),
        ("Wed, 18 Nov 2020 11:07:40 GMT", 0.0),
        ("-5", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("²", None),
        ("Wed, 18 Nov 99999999999999999999 11:07:40 GMT", None),
        ("Wed, 18 Nov 2026 11:07:40 +99999999999999999999", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, now_s=NOW_S) == seconds
