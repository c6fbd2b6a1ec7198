"""Who is asked about a doubted price, when, at what cost, and what /health says meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest

from enhanced_websocket_service.errors import JournalError, StorageError, VendorUnavailable
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.bar import Bar, BarUpdate
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.tick import HELD, Flag, Rejection, Tick
from enhanced_websocket_service.service.pipeline import Pipeline
from enhanced_websocket_service.service.witnesses import LONGEST_WAIT_S, PriceWitnesses
from enhanced_websocket_service.telemetry import Metrics
from tests.unit.feeds.clocks import ManualClock

from .test_pipeline import Recorder, quote

OPEN = int(datetime(2025, 1, 20, 13, 0, tzinfo=UTC).timestamp())
PART = "price of USDCOP"


def bar(opens: int, close: float) -> Bar:
    return Bar("USDCOP", 300, opens, close, close, close, close, 0, "simulator", 0, "closed")


class Vendor:
    """Answers what stands in ``now`` and ``bars``; ``None``: it cannot be reached."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.now: float | None = None
        self.bars: list[Bar] | None = None
        self.asked: list[tuple[str, float]] = []

    async def price(self, symbol: str, purpose: str, *, retries: int | None = None) -> float:
        assert (symbol, purpose) == ("USDCOP", "liveness")
        self.asked.append(("rest", self._clock.now() - OPEN))
        if self.now is None:
            raise VendorUnavailable("The vendor cannot be reached.")
        return self.now

    async def time_series(self, symbol: str, *, start: int, end: int, purpose: str) -> list[Bar]:
        assert purpose == "repair"
        self.asked.append(("bar", self._clock.now() - OPEN))
        if self.bars is None:
            raise VendorUnavailable("The vendor cannot be reached.")
        assert start < end
        return [one for one in self.bars if start <= one.open_time <= end]

    def when(self, what: str) -> list[float]:
        return [at for kind, at in self.asked if kind == what]


class Stored:
    def __init__(self) -> None:
        self.bar: Bar | None = None
        self.move: float | None = None
        self.away = False
        self.too_many = False  # bars, to look through all of them in time
        self.asked = 0

    async def last_bar(self, symbol: str) -> Bar | None:
        self.asked += 1
        if self.away:
            raise StorageError("The database is away.")
        return self.bar

    async def largest_move(self, symbol: str) -> float | None:
        if self.too_many:
            raise StorageError("canceling statement due to statement timeout")
        return self.move


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock(float(OPEN))
        self.recorder = Recorder()
        self.vendor = Vendor(self.clock)
        self.stored = Stored()
        self.failures = Failures(self.clock)
        self.failed: list[JournalError] = []
        self.credits = True
        self.wanted: list[tuple[str, float, float]] = []
        self.pipeline = self.make()
        self.witnesses = PriceWitnesses(
            ["USDCOP"],
            self.clock,
            self.pipeline,
            vendor=self.vendor,
            stored=self.stored,
            may_spend=lambda *_: self.credits,
            is_open=lambda _, at: TradingCalendar().is_open(at),
            failures=self.failures,
            on_failure=self.failed.append,
        )
        self._second = 0

    def make(self) -> Pipeline:
        return Pipeline(
            {"USDCOP": TradingCalendar()},
            journal=self.recorder,
            publish=self.recorder.publish,
            metrics=Metrics(),
            epoch=1,
            incomplete=lambda *span: self.wanted.append(span),
            doubted=lambda symbol: self.witnesses.wake(symbol),
        )

    def give(self, price: float, *, rest: bool = False) -> None:
        stamp = int(self.clock.now())
        fields = {"source": "simulator_rest", "stamped": False} if rest else {}
        self.pipeline.on_quotes([quote(stamp, price, **fields)], self.clock.now())

    def start(self, last: float | None) -> None:
        """Begin from an accepted price."""
        if last is not None:
            self.stored.bar = bar(OPEN - 300, last)

    @property
    def ticks(self) -> list[float]:
        return [one.price for one in self.recorder.events if isinstance(one, Tick)]

    @property
    def fates(self) -> list[str]:
        return [
            one.reason
            for one in self.recorder.records
            if isinstance(one, Rejection) and one.reason != HELD
        ]

    @property
    def problem(self) -> str:
        failure = self.failures.of(PART)
        return "" if failure is None else failure.reason

    async def turns(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    one = Bench()
    task = asyncio.create_task(one.witnesses.run())
    try:
        yield one
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("witness")] == []


async def test_the_last_stored_bar_is_known_before_the_first_price(bench: Bench) -> None:
    bench.start(4000.0)
    bench.witnesses.prepare()
    await bench.turns()
    bench.give(4001.0)
    assert bench.ticks == [4001.0]
    assert bench.problem == ""
    assert bench.vendor.asked == []


async def test_the_last_stored_bar_is_known_whatever_becomes_of_the_search_among_all(
    bench: Bench,
) -> None:
    bench.stored.too_many = True
    bench.start(4000.0)
    bench.witnesses.prepare()
    await bench.turns()
    bench.give(4001.0)
    assert bench.ticks == [4001.0]


async def test_the_first_price_is_held_until_postgresql_answers_at_no_cost(bench: Bench) -> None:
    await bench.turns()
    bench.stored.bar = bar(OPEN - 300, 4000.0)
    bench.give(4001.0)
    assert bench.ticks == []
    await bench.turns()
    assert bench.ticks == [4001.0]
    assert bench.vendor.asked == []
    await bench.clock.pass_time(3)
    assert bench.problem == ""


async def test_a_first_price_that_overtakes_the_stored_bar_is_no_trouble_yet(bench: Bench) -> None:
    """Of several symbols at the start the prices come within milliseconds, before PostgreSQL has answered."""
    answers = asyncio.Event()

    async def later(symbol: str) -> Bar | None:
        await answers.wait()
        return bar(OPEN - 300, 4000.0)

    bench.stored.last_bar = later  # type: ignore[method-assign]
    bench.witnesses.prepare()
    await bench.turns()
    bench.give(4001.0)
    await bench.turns()
    assert (bench.ticks, bench.problem) == ([], "")
    answers.set()
    await bench.turns()
    assert (bench.ticks, bench.problem) == ([4001.0], "")


async def test_a_first_price_that_waits_for_a_database_that_hangs_is_told(bench: Bench) -> None:
    async def hang(symbol: str) -> Bar | None:
        await asyncio.Event().wait()
        return None

    bench.stored.last_bar = hang  # type: ignore[method-assign]
    bench.credits = False
    bench.witnesses.prepare()
    await bench.turns()
    bench.give(4001.0)
    await bench.clock.pass_time(3)
    assert "4001 is the first price" in bench.problem


async def test_the_first_price_of_all_is_asked_of_the_vendor(bench: Bench) -> None:
    bench.stored.away = True
    await bench.turns()
    bench.vendor.now = 4000.0
    bench.give(4001.0)
    await bench.turns()
    assert "4001 is the first price" in bench.problem
    assert "the vendor's REST price or the vendor's 5-minute bar" in bench.problem
    await bench.clock.pass_time(5)
    assert bench.ticks == [4001.0]
    assert bench.problem == ""
    assert bench.vendor.when("rest") == pytest.approx([2.0], abs=1.0)


async def test_another_scale_on_the_stream_is_asked_once_with_growing_distance(
    bench: Bench,
) -> None:
    bench.start(4100.0)
    bench.witnesses.prepare()
    await bench.turns()
    bench.give(4100.0)
    for _ in range(int(LONGEST_WAIT_S) + 2):
        await bench.clock.pass_time(1)
        bench.give(41.0)
    assert bench.ticks == [4100.0]
    asked = bench.vendor.when("rest")
    assert asked == pytest.approx([3.0, 33.0, 93.0, 213.0, 453.0], abs=2.0)
    assert "power of ten" in bench.problem
    assert "from 4100 to 41" in bench.problem
    assert "cannot be reached" in bench.problem
    assert set(bench.fates) == {"unwitnessed"}
    assert len(bench.fates) >= 500
    # Its bars lack what nobody could vouch for, and are asked of the vendor.
    assert {start for _, start, _ in bench.wanted} >= {OPEN}
    bench.pipeline.on_time(OPEN + 700.0, 1.0)
    bars = [one.bar for one in bench.recorder.events if isinstance(one, BarUpdate)]
    assert bars[0].certificate is not None
    assert bars[0].certificate.partial
    # It is over when a price is accepted, not before.
    bench.give(4101.0)
    await bench.turns()
    assert bench.problem == ""


async def test_the_vendor_s_own_bar_is_asked_for_as_soon_as_it_can_know(bench: Bench) -> None:
    bench.start(4100.0)
    bench.witnesses.prepare()
    await bench.turns()
    await bench.clock.pass_time(100)
    bench.give(4100.0)
    await bench.clock.pass_time(1)
    bench.give(41.0, rest=True)
    bench.vendor.bars = [bar(OPEN, 41.1)]
    await bench.clock.pass_time(230)
    assert bench.vendor.when("rest") == [], "REST is no witness of REST"
    first = bench.vendor.when("bar")[0]
    assert 320 <= first <= 325
    assert bench.ticks == [4100.0, 41.0]
    assert bench.problem == ""
    (believed,) = [one for one in bench.recorder.events if isinstance(one, Tick) and one.flags]
    assert Flag.HELD in believed.flags


async def test_a_source_that_prints_wrong_prices_all_day_costs_few_credits(bench: Bench) -> None:
    bench.start(4100.0)
    bench.witnesses.prepare()
    await bench.turns()
    bench.vendor.now, bench.vendor.bars = 4100.0, []
    for number in range(600):
        bench.give(4100.0 + number % 7)
        bench.give(41.0)
        await bench.clock.pass_time(4)
    assert len(bench.ticks) == 600
    assert set(bench.fates) == {"outlier"}
    assert 10 <= len(bench.vendor.when("rest")) <= 2400 / 240 + 6
    assert len(bench.vendor.when("bar")) <= 2400 / 60


async def test_without_a_credit_it_says_so(bench: Bench) -> None:
    bench.credits = False
    bench.stored.away = True
    await bench.turns()
    bench.give(4001.0)
    await bench.clock.pass_time(5)
    assert bench.vendor.asked == []
    assert "no credit is left" in bench.problem
    assert "The database is away" in bench.problem
    await bench.clock.pass_time(LONGEST_WAIT_S)
    assert bench.ticks == [4001.0], "nobody disputes it, and there is no other"


async def test_a_move_asks_only_when_no_other_price_comes(bench: Bench) -> None:
    bench.start(4100.0)
    bench.witnesses.prepare()
    await bench.turns()
    bench.give(4100.0)
    bench.vendor.now = 4401.0
    bench.give(4400.0)
    await bench.clock.pass_time(29)
    assert bench.vendor.asked == []
    assert bench.problem == ""
    await bench.clock.pass_time(4)
    assert bench.ticks == [4100.0, 4400.0]
    assert bench.vendor.when("rest") == pytest.approx([30.0], abs=2.0)


async def test_a_known_history_widens_what_is_believed(bench: Bench) -> None:
    bench.start(4100.0)
    bench.stored.move = 0.6
    bench.witnesses.prepare()
    await bench.turns()
    for price in (6000.0, 6001.0, 6002.0):
        bench.give(price)
        await bench.clock.pass_time(1)
    assert bench.ticks == [6000.0, 6001.0, 6002.0]


async def test_a_journal_that_fails_decides_nothing(bench: Bench) -> None:
    bench.start(4100.0)
    bench.witnesses.prepare()
    await bench.turns()
    bench.give(4100.0)
    bench.give(4400.0)
    bench.recorder.full = True
    bench.witnesses.on_rest_price("USDCOP", 4400.0)
    assert len(bench.failed) == 1
    bench.recorder.full = False
    bench.witnesses.on_rest_price("USDCOP", 4400.0)
    assert bench.ticks == [4100.0, 4400.0]


async def test_what_was_held_when_the_process_died_is_held_again_and_decided(
    bench: Bench,
) -> None:
    bench.start(4100.0)
    bench.witnesses.prepare()
    await bench.turns()
    bench.give(4100.0)
    for _ in range(3):
        await bench.clock.pass_time(1)
        bench.give(41.0)
    before = list(bench.recorder.records)
    assert [one.reason for one in before if isinstance(one, Rejection)] == [HELD] * 3
    again = Bench()
    again.clock.advance(60)
    again.pipeline.seed(one for one in before if isinstance(one, Tick))
    again.pipeline.restore(before)
    assert again.pipeline.hygiene()["USDCOP"]["held_now"] == 3
    again.vendor.now = 41.0
    task = asyncio.create_task(again.witnesses.run())
    await again.clock.pass_time(4)
    assert again.ticks == [41.0] * 3
    assert again.fates == []
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    # And after yet another start nothing is left to decide.
    third = Bench()
    third.pipeline.restore([*before, *again.recorder.records])
    assert third.pipeline.hygiene()["USDCOP"]["held_now"] == 0


async def test_a_database_that_hangs_holds_nobody_up(bench: Bench) -> None:
    hanging = asyncio.Event()

    async def hang(symbol: str) -> Bar | None:
        await hanging.wait()
        return None

    bench.stored.last_bar = hang  # type: ignore[method-assign]
    bench.witnesses.prepare()
    await bench.turns()
    bench.vendor.now = 4000.0
    bench.give(4001.0)
    await bench.clock.pass_time(5)
    assert bench.ticks == [4001.0]


async def test_a_journal_that_fails_when_time_is_up_is_not_asked_without_pause(
    bench: Bench,
) -> None:
    bench.start(4100.0)
    bench.witnesses.prepare()
    await bench.turns()
    bench.give(4100.0)
    bench.give(41.0)
    bench.recorder.full = True
    await bench.clock.pass_time(LONGEST_WAIT_S + 5)
    assert 1 <= len(bench.failed) <= 10
    bench.recorder.full = False
    await bench.clock.pass_time(3)
    assert bench.fates == ["unwitnessed"]
