"""L0 from the simulated vendor's port to real PostgreSQL rows, files and the flag."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from enhanced_websocket_service.clock import VirtualClock
from enhanced_websocket_service.errors import L0Error
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.l0.backup import BackupSet, to_bars
from enhanced_websocket_service.l0.interfaces import BarStore, HistorySource
from enhanced_websocket_service.l0.pipeline import L0Pipeline
from enhanced_websocket_service.l0.readiness import ReadyFlag
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool
from enhanced_websocket_service.twelvedata.rest import RestClient
from enhanced_websocket_service.twelvedata.simulator import (
    Candle,
    Limits,
    MarketSource,
    Simulator,
    SimulatorConfig,
    market_from_options,
)
from tests.shared_data import shared
from tests.unit.l0.fakes import at

CALENDAR = TradingCalendar()
SIMULATOR = Provider("simulator")
START, END = date(2025, 5, 26), date(2025, 6, 6)  # a weekend and a holiday Monday inside
EVENING = "2025-06-06T18:00"
DAYS = CALENDAR.trading_days(START, END)
LABELS = [label for day in DAYS for label in CALENDAR.expected_labels(day)]


class House:
    """Vendor, client, database and L0 wired together, in fast virtual time."""

    def __init__(
        self,
        simulator: Simulator,
        rest: RestClient,
        database: Database,
        directory: Path,
        clock: VirtualClock,
    ) -> None:
        # That these classes are what L0 asks for is checked by mypy here.
        source: HistorySource = rest
        store: BarStore = database
        self.simulator, self.rest, self.database, self.clock = simulator, rest, database, clock
        self.flag = ReadyFlag(directory / "signals", clock)
        self.set = BackupSet(directory / "backups", "USDCOP", CALENDAR)
        self.pipeline = L0Pipeline(
            rest=source,
            database=store,
            calendars={"USDCOP": CALENDAR},
            clock=clock,
            provider=SIMULATOR,
            backup_dir=directory / "backups",
            flag=self.flag,
            failures=Failures(clock),
            keys=rest.keys,
        )

    def calls(self) -> int:
        """How many history pages the vendor was asked for."""
        return int(self.simulator.status()["calls"].get("/time_series", 0))

    async def stored(self) -> list[tuple[int, float, float, float, float]]:
        bars = await self.database.vendor_bars("USDCOP", LABELS[0], LABELS[-1])
        assert {bar.source for bar in bars} <= {"simulator"}
        return [(bar.open_time, bar.open, bar.high, bar.low, bar.close) for bar in bars]


Opener = Callable[..., contextlib.AbstractAsyncContextManager[House]]


@pytest.fixture
def house(database_dsn: str, tmp_path: Path) -> Opener:
    @contextlib.asynccontextmanager
    async def open_house(
        market: MarketSource, *, now: str = EVENING, cap: int = 5000
    ) -> AsyncIterator[House]:
        clock = VirtualClock(at(now), 500.0, is_trading_day=CALENDAR.is_trading_day)
        config = SimulatorConfig(market, limits=Limits(row_cap=cap))
        simulator = Simulator(config, clock)
        await simulator.start()
        keys = KeyPool([ApiKey(f"key-{i}", f"simulated-key-{i}") for i in range(8)])
        rest = RestClient(simulator.rest_url, keys, clock, SIMULATOR, Metrics(), retries=0)
        database = Database(database_dsn, SIMULATOR, clock=clock)
        try:
            await database.connect()
            yield House(simulator, rest, database, tmp_path, clock)
        finally:
            await database.close()
            await rest.aclose()
            await simulator.stop()

    return open_house


def market(regime: str = "onshore") -> MarketSource:
    return market_from_options(seed=7, regime=regime, random_symbols=(), calendar=CALENDAR)


def truth(source: MarketSource, labels: list[int] = LABELS) -> list[Candle]:
    """What the market really did, straight from the simulator's data."""
    wanted = set(labels)
    candles = source.sources["USD/COP"].candles(labels[0], labels[-1] + 1)
    return [candle for candle in candles if candle.open_time in wanted]


async def test_backfill_stores_what_the_vendor_has(house: Opener) -> None:
    source = market()
    async with house(source) as l0:
        (result,) = await l0.pipeline.backfill(START, END)
        assert (result.days, result.calls, result.missing) == (9, 1, ())
        assert result.bars_written == len(LABELS) == 540
        assert await l0.stored() == [tuple(candle) for candle in truth(source)]
        frame, metadata = await l0.set.read()
        assert [
            (b.open_time, b.open, b.high, b.low, b.close) for b in to_bars(frame)
        ] == await l0.stored()
        assert (metadata.rows, metadata.missing_slots, metadata.source) == (540, [], "simulator")
        assert l0.flag.read().ready
        assert (await l0.pipeline.assess("USDCOP")).ok
        report = await l0.pipeline.status()
        assert report.ok, report.reasons

        (again,) = await l0.pipeline.backfill(START, END)
        assert again.calls == 0
        assert l0.calls() == 1


@pytest.mark.parametrize("cap", [7, 77, 250])
async def test_pages_of_a_feed_around_the_clock_join_without_loss(house: Opener, cap: int) -> None:
    source = market("24x5")
    start = date(2025, 6, 4) if cap == 7 else START
    labels = [s for s in LABELS if CALENDAR.local_date(s) >= start]
    async with house(source, cap=cap) as l0:
        (result,) = await l0.pipeline.backfill(start, END)
        assert await l0.stored() == [tuple(candle) for candle in truth(source, labels)]
        assert result.dropped > 0
        assert result.calls > 1


async def test_a_failing_vendor_leaves_the_flag_down_and_the_rows_in_place(house: Opener) -> None:
    source = market()
    async with house(source, cap=100) as l0:
        l0.flag.write()

        def stop_after_two_days(_symbol: str, done: int, _total: int) -> None:
            if done >= 2:
                l0.simulator.inject({"rest_status": "500"})

        with pytest.raises(L0Error, match="trading days are done"):
            await l0.pipeline.backfill(START, END, stop_after_two_days)
        assert not l0.flag.path.exists()
        kept = await l0.stored()
        assert 120 <= len(kept) < 540

        l0.simulator.inject({"rest_status": None})
        (result,) = await l0.pipeline.backfill(START, END)
        assert result.bars_written == 540 - len(kept)
        assert await l0.stored() == [tuple(candle) for candle in truth(source)]
        assert l0.flag.read().ready


async def test_cancelled_and_resumed(house: Opener) -> None:
    source = market()
    async with house(source, cap=60) as l0:
        reached = asyncio.Event()

        def tell(_symbol: str, done: int, _total: int) -> None:
            if done >= 3:
                reached.set()

        task = asyncio.create_task(l0.pipeline.backfill(START, END, tell))
        await asyncio.wait_for(reached.wait(), 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = l0.calls()
        (result,) = await l0.pipeline.backfill(START, END)
        assert await l0.stored() == [tuple(candle) for candle in truth(source)]
        assert before + result.calls <= 9 + 8  # at most the pages in flight are fetched twice


async def test_repair_catches_up_in_the_middle_of_a_session(house: Opener) -> None:
    source = market()
    async with house(source, now="2025-06-06T09:00") as l0:
        await l0.pipeline.backfill(START, date(2025, 6, 4))
        assert not (await l0.pipeline.assess("USDCOP")).ok
        l0.flag.withdraw()
        await l0.pipeline.repair("USDCOP")
        assessment = await l0.pipeline.assess("USDCOP")
        assert assessment.ok, assessment.reasons
        assert not l0.flag.read().exists
        last = await l0.database.last_bar("USDCOP", vendor_only=True)
        assert last is not None
        assert last.open_time >= at("2025-06-06T08:50")


async def test_incremental_goes_on_where_backfill_ended(house: Opener) -> None:
    source = market()
    async with house(source) as l0:
        await l0.pipeline.backfill(START, date(2025, 6, 3))
        (result,) = await l0.pipeline.incremental()
        assert (result.calls, result.bars_written) == (1, 180)
        assert await l0.stored() == [tuple(candle) for candle in truth(source)]


async def test_the_recorded_history_arrives_whole(house: Opener) -> None:
    """Eighteen months of recorded bars, 5,000 a page: no bar lost, none invented."""
    path = shared("data/usdcop_m5_dev.parquet")
    recorded = pl.read_parquet(path).sort("datetime")
    source = market_from_options(bars=path)
    async with house(source, now="2025-06-30T18:00") as l0:
        (result,) = await l0.pipeline.backfill(date(2024, 1, 2), date(2025, 6, 27))
        assert result.bars_written == recorded.height
        frame = pl.read_parquet(l0.set.parquet)
        columns = ["datetime", "open", "high", "low", "close"]
        same = recorded.select(
            pl.col("datetime").dt.cast_time_unit("us").dt.convert_time_zone("UTC"),
            *(pl.col(name).cast(pl.Float64).round(6) for name in columns[1:]),
        )
        assert frame.select(columns).equals(same)
        assert result.calls <= 5 + 2
        (again,) = await l0.pipeline.backfill(date(2024, 1, 2), date(2025, 6, 27))
        assert again.calls == 0
        assert len(again.missing) == len(result.missing)
