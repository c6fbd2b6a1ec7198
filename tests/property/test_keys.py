"""Whatever is asked of the key pool, in whatever order: the vendor, by its own clock, never refuses."""

import heapq
import itertools
import math
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Lease, Outcome, Wait

START = 1_748_995_100.0  # a little before midnight UTC
SPACING, PER_MINUTE, PER_DAY = 8.0, 5, 12

_OUTCOMES = st.sampled_from(
    ["ok", "minute_exhausted", "day_exhausted", "not_entitled", "unavailable", "cancelled"]
)
_STEPS = st.lists(
    st.tuples(
        # The edges of spacing and minute, and anything else.
        st.sampled_from([0.0, 1.0, 7.9, SPACING, 19.0, 60.0]) | st.floats(0.0, 200.0),
        st.integers(1, 3),  # credits
        _OUTCOMES,
        st.floats(0.0, 15.0),  # seconds until the answer
        st.floats(0.0, 1.0),  # where in them the call arrived
        st.integers(0, 1),  # the process that calls
        st.booleans(),  # it is killed and started again first
    ),
    max_size=60,
)


def make(count: int, spacing: float) -> KeyPool:
    keys = [ApiKey(f"K{i}", f"secret-{i}") for i in range(count)]
    return KeyPool(keys, spacing_s=spacing, minute_limit=PER_MINUTE, day_limit=PER_DAY)


@dataclass
class Processes:
    """Two processes with one file of ledgers, and a vendor whose clock is ``skew`` s from theirs."""

    count: int
    spacing: float
    skew: float
    pools: list[KeyPool] = field(default_factory=list)
    file: dict[str, Any] | None = None
    answers: list[tuple[float, int, int, KeyPool, Lease, Outcome]] = field(default_factory=list)
    arrivals: list[tuple[int, float, int]] = field(default_factory=list)
    uses: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    # By key: when it was first heard to be wrong, and how often it had been used by then.
    refused_at: dict[int, tuple[float, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pools = [make(self.count, self.spacing) for _ in range(2)]

    def restart(self, which: int) -> None:
        """Killed: nobody hears the answers to its calls."""
        self.pools[which] = make(self.count, self.spacing)

    def pass_time(self, now: float) -> None:
        """Deliver the answers of up to ``now``."""
        while self.answers and self.answers[0][0] <= now:
            at, _, which, pool, lease, outcome = heapq.heappop(self.answers)
            if self.pools[which] is pool:
                self._take_over(pool, at)
                pool.report(lease, outcome, at)
                if outcome == "invalid_key":
                    uses = len(self.uses[lease.index])
                    self.refused_at.setdefault(lease.index, (at, uses))
                self._hand_on(pool, at)

    def acquire(
        self, which: int, now: float, cost: int, outcome: Outcome, takes: float, arrives: float
    ) -> Wait | None:
        self.pass_time(now)
        pool = self.pools[which]
        self._take_over(pool, now)
        answer = pool.acquire(now, cost)
        self._hand_on(pool, now)
        if isinstance(answer, Wait):
            return answer
        self.uses[answer.index].append(now)
        self.arrivals.append((answer.index, now + takes * arrives + self.skew, cost))
        number = len(self.arrivals)
        heapq.heappush(self.answers, (now + takes, number, which, pool, answer, outcome))
        return None

    def _take_over(self, pool: KeyPool, now: float) -> None:
        if self.file is not None:
            assert pool.import_state(self.file, now)

    def _hand_on(self, pool: KeyPool, now: float) -> None:
        self.file = pool.export_state(now)
        pool.exported(self.file)


@settings(max_examples=300)
@given(st.integers(1, 4), st.sampled_from([0.0, SPACING]), st.floats(-1.0, 1.0), _STEPS)
def test_never_within_spacing_never_over_a_limit(
    count: int,
    spacing: float,
    skew: float,
    steps: list[tuple[float, int, Outcome, float, float, int, bool]],
) -> None:
    world, now = Processes(count, spacing, skew), START
    for pause, cost, outcome, takes, arrives, which, killed in steps:
        now += pause
        if killed:
            world.pass_time(now)
            world.restart(which)
        for _ in range(4):
            answer = world.acquire(which, now, cost, outcome, takes, arrives)
            if answer is None or not answer.until < now + 3600:
                break
            assert answer.until > now
            now = answer.until  # where a rule that is too lax would show
    minutes: Counter[tuple[int, int]] = Counter()
    days: Counter[tuple[int, int]] = Counter()
    for index, at, cost in world.arrivals:
        minutes[index, math.floor(at / 60)] += cost
        days[index, math.floor(at / 86_400)] += cost
    for moments in world.uses.values():
        assert all(b - a >= spacing for a, b in itertools.pairwise(moments))
    assert all(spent <= PER_MINUTE for spent in minutes.values())
    assert all(spent <= PER_DAY for spent in days.values())


_TRIES = st.lists(
    st.tuples(
        st.sampled_from([0.0, 8.0, 3599.0, 3600.0, 3601.0]) | st.floats(0.0, 4000.0),
        st.sampled_from(["invalid_key", "invalid_key", "unavailable", "cancelled"]),
        st.floats(0.0, 15.0),  # seconds until the answer
        st.integers(0, 1),
        st.booleans(),
        st.sampled_from([0.0, 0.0, 0.0, -30.0, -59.0]),  # how far the clock is set back first
    ),
    max_size=60,
)


@given(st.integers(1, 3), _TRIES)
def test_a_key_that_is_wrong_is_tried_once_an_hour_by_all_processes_together(
    count: int, steps: list[tuple[float, Outcome, float, int, bool, float]]
) -> None:
    world, now = Processes(count, 0.0, 0.0), START
    latest = now
    for pause, outcome, takes, which, killed, back in steps:
        now += pause
        if killed:
            world.pass_time(now)
            world.restart(which)
        latest = max(latest, now)
        # Ledgers from further ahead than a minute are of another timeline, and not taken over.
        now = max(now + back, latest - 59.0)
        world.acquire(which, now, 1, outcome, takes, 0.5)
    for index, moments in world.uses.items():
        known, uses = world.refused_at.get(index, (math.inf, len(moments)))
        tries = [known, *moments[uses:]]
        assert all(b - a >= 3600 for a, b in itertools.pairwise(tries))


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
            answer = pool.acquire(now)
        assert isinstance(answer, Lease)
        pool.report(answer, "ok", now)


_SHARED = st.lists(
    st.tuples(
        st.integers(0, 2),  # who
        st.sampled_from(["spend", "exchange", "lost write", "forget"]),
        st.floats(0.0, 20.0),
    ),
    max_size=40,
)


@given(_SHARED)
def test_no_spending_is_lost_or_doubled_however_processes_interleave(
    steps: list[tuple[int, str, float]],
) -> None:
    pools = [make(2, 0.0) for _ in range(3)]
    file: dict[str, Any] | None = None
    now, spent = START + 1000.0, 0
    for who, what, pause in steps:
        now += pause
        pool = pools[who]
        if what == "spend":
            answer = pool.acquire(now, 1, f"purpose-{who}")
            if isinstance(answer, Lease):
                pool.report(answer, "ok", now)
                spent += 1
            continue
        if file is not None:
            assert pool.import_state(file, now)
        state = pool.export_state(now)
        if what == "exchange":
            file = state
            pool.exported(state)
        elif what == "forget":  # an orderly end and a new start
            file = state
            pools[who] = make(2, 0.0)
            assert pools[who].import_state(file, now)
    for pool in [*pools, *pools]:
        if file is not None:
            assert pool.import_state(file, now)
        file = pool.export_state(now)
        pool.exported(file)
    for pool in pools:
        assert sum(one["day_used"] for one in pool.snapshot(now)["keys"]) == spent
        assert sum(pool.budget(now).spent.values()) == spent
        assert pool.total_calls(now) == spent
