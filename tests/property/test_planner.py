"""The plan under disturbance: the session is covered to its end, no limit is broken, nothing is left over.

The vendor's side is the simulator's own ledger, by a clock that is up to a second from ours.
"""

import math

from hypothesis import example, given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Lease, Outcome, Wait
from enhanced_websocket_service.twelvedata.planner import CreditPlanner, Reserve
from enhanced_websocket_service.twelvedata.simulator.credits import CreditLedger, Plan

OPENS = 1_749_042_000.0  # 2025-06-04 13:00:00 UTC
LENGTH = 1200.0
CLOSES = OPENS + LENGTH

_EVENTS = st.lists(
    st.tuples(
        st.floats(0.0, LENGTH),
        st.sampled_from(["dies", "cools", "day over", "repair", "others", "away"]),
        st.integers(0, 15),
    ),
    max_size=12,
)


@settings(max_examples=60)
@given(
    st.integers(1, 16),
    st.integers(4, 60),  # credits a day
    st.sampled_from([0.0, 8.0]),
    st.floats(-1.0, 1.0),
    st.floats(0.0, 3.0),  # seconds of a call
    st.floats(0.0, 0.9),  # when in the session polling begins
    _EVENTS,
)
@example(1, 36, 8.0, 0.0, 3.0, 0.75, [])  # a key that waits for its answer, then its spacing
@example(7, 19, 0.0, 0.0, 1.0, 0.9, [])  # more credits left than the keys' minutes can spend
def test_polls_reach_the_close_and_no_key_is_refused(
    count: int,
    per_day: int,
    spacing: float,
    skew: float,
    latency: float,
    begin: float,
    events: list[tuple[float, str, int]],
) -> None:
    vendor = CreditLedger(Plan("free", 8, per_day, 8, 1, True))
    pool = KeyPool(
        [ApiKey(f"K{i}", f"secret-{i}") for i in range(count)],
        spacing_s=spacing,
        day_limit=per_day,
    )
    planner = CreditPlanner(pool, {"repair": Reserve(0.1, 10)})
    now = OPENS + begin * LENGTH
    todo = sorted(event for event in events if OPENS + event[0] >= now)
    polls: list[float] = []

    def call(purpose: str) -> bool:
        nonlocal now
        answer = pool.acquire(now, 1, purpose)
        if isinstance(answer, Wait):
            return False
        began = now
        now += latency
        outcome: Outcome = "ok"
        if answer.key.label in dead:
            outcome = "invalid_key"
        usage = vendor.charge(answer.key.label, 1, began + latency / 2 + skew)
        assert usage.refusal() is None
        headers = (usage.minute_used, 8 - usage.minute_used)
        pool.report(answer, outcome, now, header_credits=headers if outcome == "ok" else None)
        return outcome == "ok"

    dead: set[str] = set()
    planned = planner.plan(now, CLOSES).poll_credits
    disturbed = hurried = False
    while now < CLOSES:
        while todo and OPENS + todo[0][0] <= now:
            _, what, number = todo.pop(0)
            disturbed = True
            key = pool.keys[number % count]
            if what == "dies" and len(dead) < count - 1:
                dead.add(key.label)
            elif what == "repair":
                call("repair")
            elif what == "away":
                now, hurried = min(CLOSES, now + 60.0), True
            elif what in ("cools", "day over"):
                answer = pool.acquire(now)
                if isinstance(answer, Lease):
                    vendor.charge(answer.key.label, 1, now + skew)
                    over: Outcome = "minute_exhausted" if what == "cools" else "day_exhausted"
                    pool.report(answer, over, now)
        if now >= CLOSES:
            break
        pace = planner.poll_interval(now, CLOSES)
        free_at = pool.free_at(now)
        if not math.isfinite(pace):
            now += 60.0
            continue
        if free_at > now:
            now, hurried = min(free_at, now + 60.0), True
            continue
        # Then the keys set the pace, and something may be left over.
        fastest = pool.budget(now).min_interval_s
        hurried = hurried or pace <= max(1.05 * fastest, latency)
        due = now + pace
        if call("poll"):
            polls.append(now)
        now = max(due, now)
    left_over = pool.left(CLOSES) - planner.plan(CLOSES, CLOSES).reserve
    assert hurried or left_over <= 3 + 0.05 * planned
    if not disturbed:
        # One for each rounding, and what calls in a row cost a pace that is shorter than they take.
        assert len(polls) <= planned
        gap = LENGTH * (1 - begin) / max(1, planned)
        # A key that waits for an answer, and then for its spacing, can do no more.
        if latency < gap and spacing + latency <= gap * count:
            assert len(polls) >= 0.95 * planned - 2
            assert not polls or CLOSES - polls[-1] <= 2.5 * max(gap, 8.0) + latency


@given(
    st.integers(1, 16),
    st.integers(1, 800),
    st.floats(OPENS - 7200, CLOSES - 1),
    st.integers(0, 50),
)
def test_a_plan_never_promises_more_than_there_is(
    count: int, per_day: int, now: float, spent: int
) -> None:
    pool = KeyPool(
        [ApiKey(f"K{i}", f"secret-{i}") for i in range(count)], spacing_s=0.0, day_limit=per_day
    )
    for i in range(spent):
        answer = pool.acquire(now, 1, ("poll", "repair", "liveness", "backfill")[i % 4])
        if isinstance(answer, Lease):
            pool.report(answer, "ok", now)
    plan = CreditPlanner(pool).plan(now, CLOSES, OPENS)
    left = pool.left(now)
    assert plan.poll_credits + plan.reserve <= left
    assert plan.reserve <= 240
    if plan.poll_credits:
        seconds = CLOSES - max(now, OPENS)
        assert plan.interval_s >= seconds / plan.poll_credits * (1 - 1e-9)
        assert (plan.poll_credits - 1) * plan.interval_s <= seconds * (1 + 1e-9)
    else:
        assert math.isinf(plan.interval_s)
