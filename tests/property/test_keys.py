"""Whatever is asked of the key pool, in whatever order: no key is used too often."""

import itertools
import math
from collections import Counter, defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Outcome, Wait

START = 1_748_995_100.0  # a little before midnight UTC
SPACING, PER_MINUTE, PER_DAY = 8.0, 5, 12

_OUTCOMES = st.sampled_from(
    ["ok", "minute_exhausted", "day_exhausted", "not_entitled", "unavailable", "cancelled", None]
)
_STEPS = st.lists(
    st.tuples(
        # The edges of spacing and minute, anything else, and a clock that is set back.
        st.sampled_from([0.0, 1.0, 7.9, SPACING, 60.0, -5.0, -60.0]) | st.floats(-20.0, 200.0),
        st.integers(1, 3),
        _OUTCOMES,
        st.floats(0.0, 15.0),
        st.booleans(),  # restart from saved state first
    ),
    max_size=60,
)


def make(count: int, spacing: float) -> KeyPool:
    keys = [ApiKey(f"K{i}", f"secret-{i}") for i in range(count)]
    return KeyPool(keys, spacing_s=spacing, minute_limit=PER_MINUTE, day_limit=PER_DAY)


@settings(max_examples=300)
@given(st.integers(1, 4), st.sampled_from([0.0, SPACING]), _STEPS)
def test_never_within_spacing_never_over_a_limit(
    count: int,
    spacing: float,
    steps: list[tuple[float, int, Outcome | None, float, bool]],
) -> None:
    pool = make(count, spacing)
    now = latest = START
    uses: defaultdict[int, list[float]] = defaultdict(list)
    minutes: Counter[tuple[int, int]] = Counter()
    days: Counter[tuple[int, int]] = Counter()
    for pause, cost, outcome, takes, restart in steps:
        now += pause
        latest = max(latest, now)
        if restart and now == latest:
            saved, pool = pool.export_state(now), make(count, spacing)
            assert pool.import_state(saved, now)
        answer = pool.acquire(now, cost)
        if isinstance(answer, Wait):
            assert answer.until > now
            if not math.isfinite(answer.until) or answer.until > now + 3600:
                continue
            now = answer.until  # where a rule that is too lax would show
            latest = max(latest, now)
            answer = pool.acquire(now, cost)
            assert not isinstance(answer, Wait)
        uses[answer.index].append(now)
        minutes[answer.index, math.floor(now / 60)] += cost
        days[answer.index, math.floor(now / 86_400)] += cost
        if outcome is not None:
            pool.report(answer, outcome, now + takes)
            latest = max(latest, now + takes)
    for moments in uses.values():
        assert all(b - a >= spacing for a, b in itertools.pairwise(moments))
    assert all(spent <= PER_MINUTE for spent in minutes.values())
    assert all(spent <= PER_DAY for spent in days.values())


@given(st.integers(1, 4), st.lists(st.floats(0.0, 30.0), max_size=40))
def test_a_wait_is_exact(count: int, pauses: list[float]) -> None:
    """Asking again at the promised instant succeeds; asking just before it does not."""
    pool, now = make(count, SPACING), START
    for pause in pauses:
        now += pause
        answer = pool.acquire(now)
        if isinstance(answer, Wait):
            assert isinstance(pool.acquire(math.nextafter(answer.until, 0)), Wait)
            now = answer.until
            assert not isinstance(pool.acquire(now), Wait)
