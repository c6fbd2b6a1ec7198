"""Clocks are set: by a second or a day, ahead and back, at any moment. What waits or counts gets over it.

The right time is that of the vendor; the test knows it, the units only see the clock that is set.
"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.clock import still_ahead
from enhanced_websocket_service.feeds.event_budget import EventBudget
from enhanced_websocket_service.feeds.polling import PollingFeed
from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.events import Event
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.service.pipeline import Pipeline
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Lease
from tests.unit.feeds.alone import Alone
from tests.unit.feeds.clocks import SetManualClock

DAY = 86_400.0
NOON = 1_748_952_000.0 + 0.5  # 2025-06-03 12:00 UTC: no jump back and forth meets a real midnight

_ERRORS = (
    st.floats(1.5, DAY)
    | st.floats(-DAY, -1.5)
    | st.sampled_from([-DAY, -3600.0, -90.0, 90.0, 3600.0, 12 * 3600.0, 13 * 3600.0, DAY])
)
"""By how much the clock is wrong meanwhile."""
_GLITCHES = st.lists(
    st.tuples(
        st.floats(0.1, 900.0),  # seconds before it
        _ERRORS,
        st.floats(0.01, 300.0),  # seconds it lasts
        st.integers(0, 4),  # calls meanwhile
        st.booleans(),  # the process is killed meanwhile
    ),
    min_size=1,
    max_size=12,
)


def make() -> KeyPool:
    return KeyPool([ApiKey("K", "secret")], spacing_s=8.0, minute_limit=8, day_limit=800)


@dataclass
class World:
    """One key, its ledgers on file, a vendor with the right time."""

    pool: KeyPool = field(default_factory=make)
    right: float = NOON
    error: float = 0.0
    spent: int = 0
    file: object = None

    def now(self) -> float:
        return self.right + self.error

    def call(self) -> bool:
        if self.file is not None:
            assert self.pool.import_state(self.file, self.now(), same_timeline=True)
        lease = self.pool.acquire(self.now())
        if isinstance(lease, Lease):
            self.spent += 1
            self.pool.report(lease, "ok", self.now())
        self.file = self.pool.export_state(self.now())
        self.pool.exported(self.file)
        return isinstance(lease, Lease)

    def look(self) -> None:
        self.pool.snapshot(self.now())


@given(_GLITCHES)
def test_keys_are_free_soon_after_the_clock_is_right_again_and_forget_nothing(
    glitches: list[tuple[float, float, float, int, bool]],
) -> None:
    world = World()
    world.call()
    for pause, error, lasts, calls, killed in glitches:
        # As in a session: somebody looks all the time, and asks now and then.
        for _ in range(int(pause // 20)):
            world.right += 20.0
            world.look()
        world.right += pause % 20
        world.call()
        world.error = error
        world.look()
        for _ in range(calls):
            world.right += lasts / (calls + 1)
            world.call()
        world.right += lasts / (calls + 1)
        if killed:
            world.pool = make()
            assert world.pool.import_state(world.file, world.now(), same_timeline=True)
        world.error = 0.0
        now = world.now()
        if world.file is not None:
            assert world.pool.import_state(world.file, now, same_timeline=True)
        # A minute may be full; nothing waits for the wrong instant.
        assert world.pool.free_at(now) - now <= 61.0
        budget = world.pool.budget(now)
        assert budget.left == 800 - world.spent, "credits of the vendor's day"
        assert world.pool.total_calls(now) == world.spent
        assert math.isfinite(budget.min_interval_s)


@given(st.floats(-2 * DAY, 2 * DAY), st.floats(0.0, DAY))
def test_an_instant_further_ahead_than_its_longest_wait_is_void(
    ahead: float, longest: float
) -> None:
    assert still_ahead(NOON + ahead, NOON, longest) == (NOON < NOON + ahead <= NOON + longest)


class Prices:
    """A vendor that answers at once, and notes when (the right time) it was asked."""

    def __init__(self, clock: SetManualClock, keys: KeyPool) -> None:
        self.keys = keys
        self._clock = clock
        self.asked: list[float] = []

    async def price(self, _symbol: str, purpose: str, *, retries: int | None = None) -> float:
        lease = self.keys.acquire(self._clock.now(), 1, purpose)
        assert isinstance(lease, Lease), retries
        self.asked.append(self._clock.elapsed())
        self.keys.report(lease, "ok", self._clock.now())
        return 4000.0 + len(self.asked)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.floats(1.0, 60.0), _ERRORS, st.floats(0.5, 60.0)), min_size=1, max_size=5)
)
def test_polls_go_on_within_half_a_minute_of_the_right_time(
    glitches: list[tuple[float, float, float]],
) -> None:
    async def tried() -> None:
        clock = SetManualClock(NOON + 7200.0)  # 09:00 in Bogota
        pool = KeyPool([ApiKey(f"K{i}", f"secret-{i}") for i in range(16)], spacing_s=8.0)
        prices = Prices(clock, pool)
        polling = PollingFeed(
            prices,  # type: ignore[arg-type] - all that a feed asks of it
            ["USDCOP"],
            clock,
            Provider("simulator"),
            # Outside the session, and at its end, the plan would have another pace.
            pace=lambda at: 1.4 if abs(at - NOON - 7200.0) < 7200.0 else 900.0,
            is_open=TradingCalendar().is_open,
        )
        feed = Alone(polling)

        async def consume() -> None:
            async for _ in feed:
                pass

        consumer = asyncio.create_task(consume())
        for pause, error, lasts in glitches:
            await clock.pass_time(math.ceil(pause))
            clock.error = error
            await clock.pass_time(math.ceil(lasts))
            clock.error = 0.0
            right_at = clock.elapsed()
            await clock.pass_time(30.0)
            assert any(at >= right_at for at in prices.asked), glitches
            assert feed.status().verdict == "live"
        await feed.aclose()
        await consumer

    asyncio.run(tried())


@given(st.lists(st.tuples(st.floats(0.0, 30.0), st.booleans()), max_size=200))
def test_never_more_events_than_the_vendor_takes_in_any_minute(
    steps: list[tuple[float, bool]],
) -> None:
    budget, elapsed = EventBudget(), 0.0
    sent: list[float] = []
    for pause, urgent in steps:
        elapsed += pause / (30.0 if urgent else 1.0)
        wait = budget.wait_s(elapsed)
        assert wait <= 60.0
        elapsed += wait
        budget.spend(elapsed)
        sent.append(elapsed)
    assert all(later - sent[at] >= 59.99 for at, later in enumerate(sent[60:]))


class Journal:
    def append(self, records: object) -> None: ...


@given(
    st.lists(st.tuples(st.integers(0, 1799), _ERRORS, st.integers(1, 400)), min_size=1, max_size=6)
)
def test_no_bar_across_a_jump_says_that_it_is_whole(
    glitches: list[tuple[int, float, int]],
) -> None:
    """Nobody knows how wrong the clock is. One price a second, each stamped by the vendor."""
    begin = int(NOON) + 7200
    wanted: list[tuple[str, float, float]] = []
    published: list[Event] = []

    def publish(events: Sequence[Event]) -> None:
        published.extend(events)

    made = Pipeline(
        {"USDCOP": TradingCalendar()},
        journal=Journal(),
        publish=publish,
        metrics=Metrics(),
        epoch=1,
        incomplete=lambda *gap: wanted.append(gap),
    )
    wrong: dict[int, float] = {}
    for at, error, lasts in glitches:
        wrong |= dict.fromkeys(range(at, at + lasts), error)
    before, error, touched = float(begin), 0.0, set()
    for second in range(1800 + 90):
        if wrong.get(second, 0.0) != error:
            touched.add(begin + second - second % 300)
            was, error = error, wrong.get(second, 0.0)
            made.clock_set(begin + second + was, begin + second + error)
        now = begin + second + 0.5 + error
        made.on_quotes(
            [Quote("USDCOP", begin + second, 4000.0 + second % 7, "simulator_websocket", now)], now
        )
        made.on_time(now, 60.0)
        before = now
    bars = {one.bar.open_time: one.bar for one in published if isinstance(one, BarUpdate)}
    assert before
    for slot, bar in bars.items():
        assert bar.certificate is not None
        taken = sum(bar.certificate.ticks.values())
        assert bar.certificate.partial or taken == 300, (slot - begin, taken)
    for slot in touched & bars.keys():
        certificate = bars[slot].certificate
        assert certificate is not None
        assert certificate.partial
        assert ("USDCOP", slot, slot + 300) in wanted
