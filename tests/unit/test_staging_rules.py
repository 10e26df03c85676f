"""Pure parts of staging: requests, prompts, sizes, quotas, breaker, retries, routing, preferences, problems, cost."""

from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from orchestrator import errors
from orchestrator.errors import ConfigError, ContentRejected, InvalidInput, RateLimited, RemarqueError, StorageError
from orchestrator.staging.breaker import Breaker, BreakerSettings
from orchestrator.staging.cost import CostLedger
from orchestrator.staging.policy import BlockedWords, NoPeople, check_original, check_wording
from orchestrator.staging.preference import Preference, read_preference
from orchestrator.staging.problems import problem_of
from orchestrator.staging.prompts import BUILT_IN, Wording, load_prompts
from orchestrator.staging.quota import Quota, Rate
from orchestrator.staging.request import ROOM_TYPES, STAGING_STYLES, read_request
from orchestrator.staging.retry import MAX_DELAY_S, RetryBudget, delay_s
from orchestrator.staging.routing import Routing, read_routing
from orchestrator.staging.sizes import Size, working_size

WISH = b'{"image_id": "a", "original_key": "u/r.jpg", "room_type": "office", "style": "modern"%s}'


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


# Requests


def test_a_seed_that_is_not_given_follows_from_the_id():
    request = read_request(WISH % b"")
    assert request.seed is None
    assert request.used_seed == read_request(WISH % b"").used_seed
    assert (request.strength, request.guidance_scale) == (None, None)


def test_seed_and_strength_may_be_zero():
    request = read_request(WISH % b', "seed": 0, "strength": 0, "guidance_scale": 0')
    assert (request.used_seed, request.strength, request.guidance_scale) == (0, 0.0, 0.0)


def test_a_numeric_id_is_the_same_as_its_digits():
    assert read_request(WISH.replace(b'"a"', b"12") % b"").image_id == "12"


def test_who_pays_is_not_part_of_what_is_wished():
    assert read_request(WISH % b', "tier": "pro"').fingerprint == read_request(WISH % b"").fingerprint
    assert read_request(WISH % b', "seed": 1').fingerprint != read_request(WISH % b"").fingerprint


def test_unknown_fields_are_remembered_so_that_the_answer_can_name_them():
    assert read_request(WISH % b', "guidence": 3').unknown == ("guidence",)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"7", b'"x"', b"{", b"\xff", b"[" * 100_000, b"{}", WISH % b', "seed": NaN', WISH % b', "seed": true',
     WISH % b', "seed": 1.5', WISH % b', "seed": 4294967296', WISH % b', "mask_key": "/etc/passwd"', WISH % b', "user_id": "a/b"',
     WISH.replace(b'"a"', b'""') % b"", WISH.replace(b'"a"', b"true") % b"", WISH.replace(b'"a"', b'".hidden"') % b"",
     WISH.replace(b"office", b"garage") % b"", WISH % b', "\\ud83d": 1'],
)  # fmt: skip
def test_bodies_that_mean_nothing_are_invalid_input(body: bytes):
    with pytest.raises(InvalidInput):
        read_request(body)


# Prompts


def test_the_built_in_table_has_a_prompt_for_every_room_in_every_style():
    table = load_prompts()
    assert set(table.wordings) == {(room, style) for room in ROOM_TYPES for style in STAGING_STYLES}
    assert len({wording.prompt for wording in table.wordings.values()}) == 30


def test_every_negative_prompt_holds_the_shared_one():
    assert all("changed walls" in wording.negative_prompt for wording in load_prompts().wordings.values())


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("version:", "revision:", "lacks version"),
        ("  office:", "  garage:", "lacks office"),
        ("      scandinavian: >-", "      baroque: >-", "lacks scandinavian"),
        ("rooms:", "extra: 1\nrooms:", "holds extra"),
        ("rooms:", "rooms: [", "cannot be read"),
    ],
)
def test_a_table_with_a_hole_stops_the_start(old: str, new: str, sentence: str, tmp_path: Path):
    (tmp_path / "p.yaml").write_text(BUILT_IN.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=sentence):
        load_prompts(tmp_path / "p.yaml")


def test_another_wording_has_another_revision(tmp_path: Path):
    (tmp_path / "p.yaml").write_text(BUILT_IN.read_text().replace("desk lamp", "lamp"))
    assert load_prompts(tmp_path / "p.yaml").revision != load_prompts().revision


# Sizes


@pytest.mark.parametrize(
    ("original", "step", "size"),
    [
        ((4000, 3000), 64, (1024, 768)),
        ((3000, 2000), 64, (960, 640)),
        ((2000, 3000), 64, (640, 960)),
        ((1920, 1080), 64, (1024, 576)),
        ((3000, 3000), 64, (1024, 1024)),
        ((600, 450), 64, (1024, 768)),
        ((1920, 1080), 8, (1024, 576)),
    ],
)
def test_usual_aspects_are_kept_exactly(original: tuple[int, int], step: int, size: tuple[int, int]):
    assert working_size(Size(*original), longest_px=1024, step_px=step) == Size(*size)


@pytest.mark.parametrize("step", [8, 32, 64])
def test_any_aspect_is_kept_within_four_percent_and_on_the_grid(step: int):
    for height_px in range(300, 1201, 7):
        size = working_size(Size(1200, height_px), longest_px=1024, step_px=step)
        assert size.width_px % step == size.height_px % step == 0
        assert 768 <= max(size.width_px, size.height_px) <= 1024
        assert abs(size.width_px / size.height_px / (1200 / height_px) - 1) < (0.04 if step == 64 else 0.02)


# Quota


def test_a_caller_may_use_its_whole_rate_at_once_and_then_waits(clock: Clock):
    quota = Quota({"free": Rate(2, 60), "pro": Rate(5, 60), "business": Rate(9, 60)}, clock)
    verdicts = [quota.take("me", "free") for _ in range(3)]
    assert [verdict.allowed for verdict in verdicts] == [True, True, False]
    assert verdicts[2].headers()["Retry-After"] == "30"
    clock.now_s += 30
    assert quota.take("me", "free").allowed


def test_callers_and_tiers_do_not_share_a_bucket(clock: Clock):
    quota = Quota({"free": Rate(1, 60), "pro": Rate(1, 60), "business": Rate(1, 60)}, clock)
    assert [quota.take(who, tier).allowed for who, tier in (("a", "free"), ("b", "free"), ("a", "pro"), ("a", "free"))] == [
        True, True, True, False,
    ]  # fmt: skip


# Breaker

QUICK = BreakerSettings(window=4, least_calls=4, failing_share=0.5, cool_s=10)


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(QUICK, clock)
    for succeeded in (True, True, False, False):
        breaker.report(number(breaker), succeeded)
    return breaker


def number(breaker: Breaker) -> int:
    admitted = breaker.admit()
    assert admitted is not None
    return admitted


def test_half_of_the_last_calls_failing_opens_the_breaker(clock: Clock):
    breaker = opened(clock)
    assert breaker.state == "open"
    assert breaker.admit() is None
    assert breaker.wait_s() == 10


def test_half_open_lets_a_single_probe_through(clock: Clock):
    breaker = opened(clock)
    clock.now_s += 10
    assert breaker.state == "half_open"
    assert [breaker.admit() is not None for _ in range(5)] == [True, False, False, False, False]


def test_a_probe_that_succeeds_closes_and_one_that_fails_opens_again(clock: Clock):
    for succeeded, state in ((True, "closed"), (False, "open")):
        breaker = opened(clock)
        clock.now_s += 10
        breaker.report(number(breaker), succeeded)
        assert breaker.state == state


def test_calls_from_before_the_outage_do_not_close_the_breaker(clock: Clock):
    breaker = Breaker(QUICK, clock)
    early = number(breaker)
    for _ in range(4):
        breaker.report(number(breaker), succeeded=False)
    clock.now_s += 10
    probe = number(breaker)
    breaker.report(early, succeeded=True)
    assert breaker.state == "half_open"
    breaker.report(probe, succeeded=True)
    assert breaker.state == "closed"


def test_a_probe_that_was_cancelled_makes_place_for_another(clock: Clock):
    breaker = opened(clock)
    clock.now_s += 10
    breaker.forget(number(breaker))
    assert breaker.admit() is not None


def test_a_probe_whose_caller_died_makes_place_after_a_while(clock: Clock):
    breaker = opened(clock)
    clock.now_s += 10
    number(breaker)
    clock.now_s += 300
    assert breaker.admit() is not None


# Retries


def test_delays_grow_with_full_jitter_and_stay_below_the_longest():
    assert all(0 <= delay_s(attempt, None, Random(attempt)) <= MAX_DELAY_S for attempt in range(1, 40))
    assert max(delay_s(1, None, Random(seed)) for seed in range(50)) <= 0.2


def test_a_provider_that_says_when_is_obeyed_up_to_half_a_minute():
    assert 3 <= delay_s(1, 3.0, Random(1)) <= 3.2
    assert delay_s(1, 3600.0, Random(1)) < 31


def test_retries_are_a_share_of_the_calls_once_the_reserve_is_spent():
    budget = RetryBudget(share=0.5, reserve=2)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(2):
        budget.earn()
    assert [budget.spend() for _ in range(2)] == [True, False]


# Routing


def test_a_larger_share_only_adds_images_to_the_canary():
    images = [f"image-{n}" for n in range(2000)]
    chosen = [
        {
            image
            for image in images
            if Routing(mode="mock", canary_mode="managed", canary_percent=p).choose(image) == "managed"
        }
        for p in (0, 1, 10, 50, 100)
    ]
    assert all(less <= more for less, more in pairwise(chosen))
    assert (len(chosen[0]), len(chosen[4])) == (0, 2000)
    assert 130 < len(chosen[2]) < 270


def test_another_salt_deals_anew():
    dealt = [Routing(mode="mock", canary_mode="managed", canary_percent=50, canary_salt=salt) for salt in "ab"]
    assert len({(dealt[0].choose(str(n)), dealt[1].choose(str(n))) for n in range(50)}) == 4


def test_a_change_keeps_the_fields_it_does_not_name():
    before = Routing(mode="managed", canary_mode="mock", canary_percent=5, canary_salt="s")
    assert read_routing({"enabled": False}, before) == Routing(
        mode="managed", enabled=False, canary_mode="mock", canary_percent=5, canary_salt="s"
    )


@pytest.mark.parametrize(
    "values", [{"mode": "gpu"}, {"canary_percent": 101}, {"canary_percent": 5}, {"salt": "x"}, {"enabled": "no"}]
)
def test_a_routing_that_means_nothing_is_refused(values: dict):
    with pytest.raises(InvalidInput):
        read_routing(values, Routing(mode="mock"))


# Preferences, problems, policy, cost


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("", Preference(False, None)),
        ("respond-async", Preference(True, None)),
        ("Respond-Async, wait=10", Preference(True, 10)),
        ("wait=30; x=1, handling=lenient", Preference(False, 30)),
        ("wait=soon", Preference(False, None)),
        ("wait=-1", Preference(False, None)),
    ],
)
def test_preferences_are_read_and_nonsense_is_ignored(header: str, found: Preference):
    assert read_preference(header) == found


def test_every_error_of_the_tree_becomes_one_of_the_seven_codes():
    known = {"invalid_input", "not_found", "timeout", "oom", "provider_transient", "rate_limited", "content_rejected"}
    tree = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, RemarqueError)]
    problems = [problem_of(cls("sentence")) for cls in tree]
    assert {problem.code for problem in problems} == known
    assert all("Retry-After" in problem.headers for problem in problems if problem.status in (429, 503))


def test_a_problem_does_not_repeat_what_a_store_or_a_provider_said():
    assert "secret-bucket" not in problem_of(StorageError("s3://secret-bucket/x could not be reached")).detail


def test_a_limited_caller_hears_when_to_come_back():
    assert problem_of(RateLimited("slow down", retry_after_s=7.2)).headers["Retry-After"] == "8"


def test_a_blocked_word_is_refused_whole_and_in_any_case():
    rule = BlockedWords(["gun"])
    check_wording([rule], Wording("a burgundy sofa", ""))
    with pytest.raises(ContentRejected):
        check_wording([rule], Wording("a GUN on the wall", ""))


def test_a_photograph_with_people_is_refused_where_the_rule_is_on():
    check_original([NoPeople(lambda picture: 0)], None)  # type: ignore[arg-type]
    with pytest.raises(ContentRejected):
        check_original([NoPeople(lambda picture: 2)], None)  # type: ignore[arg-type]


def test_a_days_cost_is_added_up_and_crossing_the_threshold_is_said_once(
    clock: Clock, caplog: pytest.LogCaptureFixture
):
    cost = CostLedger({"managed": 0.5, "mock": 0.0}, 2.0, clock)
    assert [cost.charge("managed", 1.0), cost.charge("mock", 9.0), cost.charge("self", 9.0)] == [0.5, 0.0, 0.0]
    assert not cost.alert()
    for _ in range(4):
        cost.charge("managed", 1.0)
    assert cost.alert()
    assert len(caplog.records) == 1
    clock.now_s += 86_400
    assert (cost.alert(), cost.today_usd()) == (False, 0.0)
