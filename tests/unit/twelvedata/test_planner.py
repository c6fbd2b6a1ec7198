"""The pace of polling, and the back-off of retries."""

import math

import pytest

from enhanced_websocket_service.twelvedata.backoff import Backoff
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Lease
from enhanced_websocket_service.twelvedata.planner import CreditPlanner

OPENS = 1_749_042_000.0  # 2025-06-04 13:00:00 UTC
CLOSES = OPENS + 17_700


def keys(count: int) -> KeyPool:
    return KeyPool([ApiKey(f"K{i}", f"secret{i}") for i in range(count)])


def test_sixteen_free_keys_last_the_session() -> None:
    plan = CreditPlanner(keys(16)).plan(OPENS, CLOSES)
    assert plan.interval_s == pytest.approx(17_700 / (12_800 * 0.9))
    assert (plan.poll_credits, plan.reserve, plan.keys) == (11_520, 1_280, 16)
    assert "11520 credits on 16 keys: one poll per 1.5 s" in plan.forecast()


def test_one_key_covers_the_session_evenly() -> None:
    assert CreditPlanner(keys(1)).poll_interval(OPENS, CLOSES) == pytest.approx(17_700 / 720)


def test_never_faster_than_spacing_allows() -> None:
    assert CreditPlanner(keys(16)).poll_interval(CLOSES - 60, CLOSES) == 0.5
    assert CreditPlanner(keys(1)).poll_interval(CLOSES + 5, CLOSES) == 8.0


@pytest.mark.parametrize("count", [1, 3, 16])
def test_polling_by_the_plan_uses_the_credits_and_keeps_the_reserve(count: int) -> None:
    pool = keys(count)
    planner = CreditPlanner(pool)
    now, polls, widest = OPENS, 0, 0.0
    while now < CLOSES:
        answer = pool.acquire(now)
        assert isinstance(answer, Lease), "the pace outran the keys"
        polls += 1
        pace = planner.poll_interval(now, CLOSES)
        if now + pace < CLOSES:
            widest = max(widest, pace)
        now += pace
    assert 0.95 * 720 * count <= polls <= 720 * count
    assert pool.budget(now).left >= 80 * count
    assert widest < 1.1 * 17_700 / (720 * count)


def test_what_repair_spends_comes_from_its_reserve() -> None:
    pool = keys(1)
    before = CreditPlanner(pool).plan(OPENS, CLOSES)
    pool.acquire(OPENS, 1, "repair")
    after = CreditPlanner(pool).plan(OPENS, CLOSES)
    assert (after.poll_credits, after.reserve) == (before.poll_credits, before.reserve - 1)


def test_no_credits_no_polls() -> None:
    pool = KeyPool([ApiKey("K", "secret")], day_limit=1)
    planner = CreditPlanner(pool, reserve=0.0)
    assert math.isfinite(planner.poll_interval(OPENS, CLOSES))
    pool.acquire(OPENS)
    plan = planner.plan(OPENS, CLOSES)
    assert plan.interval_s == math.inf
    assert plan.forecast() == "no credits left for polling today"


def test_a_session_over_midnight_utc_plans_to_the_reset() -> None:
    midnight = 1_749_081_600.0
    plan = CreditPlanner(keys(1), reserve=0.0).plan(midnight - 8000, midnight + 8000)
    assert (plan.horizon, plan.interval_s) == (midnight, 10.0)


def test_backoff_doubles_to_its_cap_and_is_jittered() -> None:
    whole = Backoff(base=1, cap=60, jitter=lambda: 1.0)
    assert [whole.next() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    half = Backoff(base=1, cap=60, jitter=lambda: 0.0)
    assert [half.next() for _ in range(3)] == [0.5, 1, 2]
    half.reset()
    assert half.next() == 0.5
    whole.failures = 10_000
    assert whole.next() == 60
