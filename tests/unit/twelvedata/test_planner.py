"""The pace of polling, what is kept for other purposes, and the back-off of retries."""

import math
from datetime import UTC

import pytest

from enhanced_websocket_service.twelvedata.backoff import Backoff
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Lease
from enhanced_websocket_service.twelvedata.planner import CreditPlanner

OPENS = 1_749_042_000.0  # 2025-06-04 13:00:00 UTC
CLOSES = OPENS + 17_700


def keys(count: int) -> KeyPool:
    return KeyPool([ApiKey(f"K{i}", f"secret{i}", 1 + i // 8) for i in range(count)])


def call(pool: KeyPool, now: float, purpose: str = "poll") -> None:
    answer = pool.acquire(now, 1, purpose)
    assert isinstance(answer, Lease), "the pace outran the keys"
    pool.report(answer, "ok", now)


def test_sixteen_free_keys_last_the_session() -> None:
    plan = CreditPlanner(keys(16)).plan(OPENS, CLOSES)
    assert plan.interval_s == pytest.approx(17_700 / 12_560)
    assert (plan.poll_credits, plan.reserve, plan.keys) == (12_560, 240, 16)
    assert plan.kept == {"liveness": 100, "repair": 80, "reconcile": 60}
    assert plan.forecast() == ("12560 credits on 16 keys: enough until 12:55 at one poll per 1.4 s")


def test_one_key_covers_the_session_evenly() -> None:
    plan = CreditPlanner(keys(1)).plan(OPENS, CLOSES)
    assert plan.interval_s == pytest.approx(17_700 / 720)
    assert plan.kept == {"liveness": 32, "repair": 24, "reconcile": 24}
    assert plan.forecast() == "720 credits on 1 key: enough until 12:55 at one poll per 24.6 s"


def test_never_faster_than_spacing_allows() -> None:
    assert CreditPlanner(keys(16)).poll_interval(CLOSES - 60, CLOSES) == 0.5
    assert CreditPlanner(keys(1)).poll_interval(CLOSES - 60, CLOSES) == 8.0
    assert CreditPlanner(keys(1)).poll_interval(CLOSES + 5, CLOSES) == math.inf


@pytest.mark.parametrize("count", [1, 3, 16])
def test_polling_by_the_plan_uses_the_credits_and_keeps_the_reserve(count: int) -> None:
    pool = keys(count)
    planner = CreditPlanner(pool)
    planned = planner.plan(OPENS, CLOSES).poll_credits
    now, polls, widest = OPENS, 0, 0.0
    while now < CLOSES:
        call(pool, now)
        polls += 1
        pace = planner.poll_interval(now, CLOSES)
        if now + pace < CLOSES:
            widest = max(widest, pace)
        now += pace
    assert planned - 1 <= polls <= planned
    assert pool.budget(now).left >= 800 * count - planned
    assert widest < 1.01 * 17_700 / planned


def test_what_repair_spends_comes_from_its_reserve() -> None:
    pool = keys(1)
    before = CreditPlanner(pool).plan(OPENS, CLOSES)
    call(pool, OPENS, "repair")
    call(pool, OPENS + 8, "backfill")  # history too
    after = CreditPlanner(pool).plan(OPENS, CLOSES)
    assert (after.poll_credits, after.reserve) == (before.poll_credits, before.reserve - 2)
    assert after.kept["repair"] == 22


def test_no_credits_no_polls() -> None:
    pool = KeyPool([ApiKey("K", "secret")], day_limit=1)
    planner = CreditPlanner(pool, {})
    assert math.isfinite(planner.poll_interval(OPENS, CLOSES))
    assert planner.may_spend("anything", OPENS, CLOSES)
    call(pool, OPENS)
    plan = planner.plan(OPENS, CLOSES)
    assert plan.interval_s == math.inf
    assert plan.forecast() == "no credits left for polling today"
    assert not planner.may_spend("liveness", OPENS, CLOSES)


def test_before_the_open_nothing_is_spread() -> None:
    plan = CreditPlanner(keys(1)).plan(OPENS - 1800, CLOSES, OPENS)
    assert plan.interval_s == pytest.approx(17_700 / 720)
    assert plan.begins == OPENS


def test_once_the_session_is_over_all_credits_are_free() -> None:
    pool = keys(1)
    planner = CreditPlanner(pool)
    later, tomorrow = CLOSES + 600, OPENS + 86_400
    plan = planner.plan(later, tomorrow + 17_700, tomorrow)
    assert (plan.poll_credits, plan.reserve) == (720, 800)
    assert plan.forecast() == (
        "720 credits of the next session's day on 1 key: enough until 12:55 at one poll per 24.6 s"
    )
    for i in range(100):
        assert planner.may_spend("reconcile", later, tomorrow + 17_700, tomorrow)
        call(pool, later + 8 * i, "reconcile")


def test_a_session_over_midnight_utc_plans_to_the_reset() -> None:
    midnight = 1_749_081_600.0
    plan = CreditPlanner(keys(1), {}).plan(midnight - 8000, midnight + 8000)
    assert (plan.horizon, plan.interval_s) == (midnight, 10.0)
    assert plan.forecast(zone=UTC).endswith("until 00:00 at one poll per 10.0 s")  # type: ignore[arg-type]


def test_each_purpose_has_its_own_reserve() -> None:
    pool, now = keys(1), OPENS
    planner = CreditPlanner(pool)

    def spend_all(purpose: str) -> int:
        nonlocal now
        count = 0
        while planner.may_spend(purpose, now, CLOSES):
            call(pool, now, purpose)
            now, count = now + 8, count + 1
        return count

    assert spend_all("reconcile") == 24
    assert not planner.may_spend("reconcile", now, CLOSES)
    liveness = spend_all("liveness")
    assert 32 + 0.2 * 720 < liveness < 32 + 0.25 * 720 + 1, "borrows a quarter of the polls"
    plan = planner.plan(now, CLOSES)
    assert plan.kept == {"liveness": 0, "repair": 24, "reconcile": 0}
    assert spend_all("poll") == plan.poll_credits
    assert not planner.may_spend("unheard of", now, CLOSES), "nobody touches what is kept"
    assert spend_all("repair") == 24
    assert pool.left(now) == 0


def test_dead_and_cooling_keys_change_the_pace_and_returning_ones_too() -> None:
    pool = keys(16)
    planner = CreditPlanner(pool)
    first = pool.acquire(OPENS)
    assert isinstance(first, Lease)
    pool.report(first, "invalid_key", OPENS, detail="unknown")
    assert planner.plan(OPENS, CLOSES).poll_credits == 15 * 800 - 240
    assert planner.poll_interval(OPENS, OPENS + 60) == pytest.approx(8 / 15)
    for _ in range(15):
        answer = pool.acquire(OPENS)
        assert isinstance(answer, Lease)
        pool.report(answer, "minute_exhausted", OPENS)
    # By the vendor's clock it may have been in either minute.
    assert pool.free_at(OPENS) == OPENS + 62
    assert math.isfinite(planner.poll_interval(OPENS, CLOSES)), "they come back in a moment"
    for at in (OPENS, OPENS + 900):
        dead = CreditPlanner(keys(1))
        assert math.isfinite(dead.poll_interval(at, CLOSES))
    alone = keys(1)
    held = alone.acquire(OPENS)
    assert isinstance(held, Lease)
    alone.report(held, "invalid_key", OPENS)
    planner = CreditPlanner(alone)
    assert planner.plan(OPENS, CLOSES).forecast() == "every API key is disabled"
    assert math.isinf(planner.poll_interval(OPENS + 3599, CLOSES))
    assert math.isfinite(planner.poll_interval(OPENS + 3600, CLOSES)), "it is worth a try again"


def test_what_status_shows() -> None:
    pool = keys(16)
    planner = CreditPlanner(pool)
    call(pool, OPENS)
    pool.got("poll", "prices")
    shown = planner.show(OPENS, CLOSES)
    assert shown["left_today"] == 12_799
    assert shown["spent_by_purpose"] == {"poll": 1}
    assert shown["reserve"] == 240
    assert shown["plan"] == {
        "keys": 16,
        "poll_credits": 12_559,
        "interval_s": 1.409,
        "from": "2025-06-04T08:00:00-05:00",
        "until": "2025-06-04T12:55:00-05:00",
    }
    assert shown["bought"] == {
        "poll": {
            "credits": 1,
            "calls": 1,
            "outcomes": {"ok": 1},
            "items": {"prices": 1},
            "last_at": "2025-06-04T08:00:00-05:00",
            "last_outcome": "ok",
        }
    }
    assert [one["left_today"] for one in shown["groups"]] == [6399, 6400]


def test_backoff_doubles_to_its_cap_and_is_jittered() -> None:
    whole = Backoff(base=1, cap=60, jitter=lambda: 1.0)
    assert [whole.next() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    half = Backoff(base=1, cap=60, jitter=lambda: 0.0)
    assert [half.next() for _ in range(3)] == [0.5, 1, 2]
    half.reset()
    assert half.next() == 0.5
    whole.failures = 10_000
    assert whole.next() == 60
