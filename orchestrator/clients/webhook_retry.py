"""When a webhook is tried again: pure decisions, no clock and no waiting."""

import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random

from orchestrator.errors import WebhookUndelivered

FIRST_DELAY_S = 1.0
MAX_DELAY_S = 300.0
MAX_RETRY_AFTER_S = 3600.0


def retry_delay(error: WebhookUndelivered, attempt: int, rng: Random) -> float:
    """Seconds to wait after the ``attempt``-th try (from 1) failed with a retryable ``error``.

    Exponential with full jitter, at most five minutes; on top of ``Retry-After`` where the backend gave one (at most an
    hour is obeyed), so that callers who were sent away together do not come back together.
    """
    longest_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(attempt - 1, 32))
    asked_s = 0.0 if error.retry_after_s is None else min(error.retry_after_s, MAX_RETRY_AFTER_S)
    return asked_s + rng.uniform(0.0, longest_s)


def parse_retry_after(value: str | None, *, now_s: float) -> float | None:
    """Seconds from now that a ``Retry-After`` header asks for, as a number or a date; None where it says nothing."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:12])
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # a year or an offset of twenty digits
        return None
    seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - datetime.fromtimestamp(now_s, UTC)
    return max(0.0, math.ceil(seconds.total_seconds()))
