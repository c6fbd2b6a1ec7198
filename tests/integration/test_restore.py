"""A restart in mid-session: journal, reader, pipeline and wiring together."""

from pathlib import Path

import msgspec
import pytest

from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar
from enhanced_websocket_service.market.events import EpochStarted, Event
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.service.pipeline import Pipeline
from enhanced_websocket_service.service.restoring import (
    go_on,
    has_happened,
    look_up_last_ticks,
    restore,
    until_when,
)
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import recover
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.telemetry import Metrics
from tests.storage_samples import SYMBOL, tick, ticks, writing

OPEN = 1737378000  # 2025-01-20T08:00:00-05:00


@pytest.mark.parametrize("restart_after", range(60, 2400, 70))
def test_no_bar_that_was_published_is_published_again_from_half_its_ticks(
    tmp_path: Path, restart_after: int
) -> None:
    """Whatever the moment, also when the replayed stretch begins in the middle of a bar."""
    published: dict[int, list[BarUpdate]] = {}

    def publish(events: list[Event]) -> None:
        for event in events:
            if isinstance(event, BarUpdate):
                published.setdefault(event.bar.open_time, []).append(event)

    def process(epoch: int, start: int, end: int) -> None:
        journal = Journal.open(tmp_path / "journal")
        pipeline = Pipeline(
            {"USDCOP": TradingCalendar()},
            journal=journal,
            publish=publish,  # type: ignore[arg-type]
            metrics=Metrics(),
            epoch=epoch,
        )
        restore(pipeline, journal, float(start))
        for now in range(start, end, 7):
            quote = Quote("USDCOP", now, 4000.0 + now % 97, "simulator_websocket", now + 0.1)
            pipeline.on_quotes([quote], now + 0.1)
            pipeline.on_time(now + 0.1, grace=60.0)
        journal.close()

    process(1, OPEN, OPEN + restart_after)
    process(2, OPEN + restart_after, OPEN + 3600)
    for label, updates in published.items():
        assert len(updates) == 1, label
        prices = [
            4000.0 + now % 97 for now in _stamps(restart_after) if 0 <= now - label < BAR_SECONDS
        ]
        bar = updates[0].bar
        assert (bar.open, bar.high, bar.low, bar.close) == (
            prices[0],
            max(prices),
            min(prices),
            prices[-1],
        )
    assert len(published) == 11


def test_the_forming_bar_is_published_however_long_the_process_was_away(tmp_path: Path) -> None:
    published: list[BarUpdate] = []

    def publish(events: list[Event]) -> None:
        published.extend(event for event in events if isinstance(event, BarUpdate))

    ticks = []
    for epoch, start in ((1, OPEN + 1800), (2, OPEN + 4500)):
        journal = Journal.open(tmp_path / "journal")
        pipeline = Pipeline(
            {"USDCOP": TradingCalendar()},
            journal=journal,
            publish=publish,  # type: ignore[arg-type]
            metrics=Metrics(),
            epoch=epoch,
        )
        last = recover(journal.directory, ["USDCOP"]).last_in_session
        restore(pipeline, journal, float(start), list(last.values()))
        pipeline.on_time(float(start), grace=60.0)
        if epoch == 1:
            for second in (10, 20, 30):
                ticks.append(4000.0 + second)
                quote = Quote(
                    "USDCOP", start + second, ticks[-1], "simulator_websocket", start + second
                )
                pipeline.on_quotes([quote], start + second)
        journal.close()
    (update,) = published
    bar = update.bar
    assert (bar.open_time, bar.open, bar.close) == (OPEN + 1800, ticks[0], ticks[-1])


def test_a_tick_that_the_vendor_stamped_ahead_is_of_the_past_all_the_same() -> None:
    ahead = tick(1, timestamp=OPEN + 4, received_at=OPEN + 0.5)
    assert has_happened(ahead, OPEN + 2.0)
    assert not has_happened(ahead, OPEN - 60.0), "a virtual clock was set back"


async def test_the_last_price_is_known_after_its_segment_was_pruned(
    tmp_path: Path, database_dsn: str
) -> None:
    """Two restarts on a weekend: the first one's commit lets Friday's segment go."""
    database = Database(database_dsn, Provider("simulator"))
    journal = Journal.open(tmp_path / "journal")
    journal.append([*ticks(5), tick(6, trading_session=False)])
    journal.close()
    journal = Journal.open(tmp_path / "journal")
    journal.append([EpochStarted(SYMBOL, 2, 1, 6)])
    async with writing(journal, database, epoch=2, keep_s=-1) as writer:
        assert await writer.drain(20)
    journal.close()
    recovery = recover(tmp_path / "journal", [SYMBOL])
    assert recovery.last == {}
    await look_up_last_ticks(recovery, database, [SYMBOL])
    assert recovery.last == {SYMBOL: tick(6, trading_session=False)}
    assert recovery.last_in_session == {SYMBOL: ticks(5)[-1]}
    await database.close()


async def test_what_another_instance_collected_since_is_known_to_who_takes_over(
    tmp_path: Path, database_dsn: str
) -> None:
    """Else the vendor's re-sent price is taken a second time, and the epochs are no chain."""
    database = Database(database_dsn, Provider("simulator"))
    ours, theirs = Journal.open(tmp_path / "ours"), Journal.open(tmp_path / "theirs")
    *_, ours_last = ticks(5)
    ours.append(ticks(5))
    away = ours_last.timestamp + 1700
    last = tick(7, 4100.5, epoch=3, timestamp=away, received_at=away + 0.5)
    theirs.append([tick(6, epoch=3), last])
    async with writing(theirs, database, epoch=3) as writer:
        assert await writer.drain(20)
    recovery = recover(ours.directory, [SYMBOL])
    own = dict(recovery.last_in_session)
    started: list[Event] = []
    pipeline = Pipeline(
        {SYMBOL: TradingCalendar()},
        journal=ours,
        publish=started.extend,
        metrics=Metrics(),
        epoch=2,
    )
    pipeline.seed(recovery.last.values())
    await look_up_last_ticks(recovery, database, [SYMBOL])
    assert recovery.last_in_session == {SYMBOL: last}
    assert until_when([last], own) == {SYMBOL: own[SYMBOL].received_at}
    assert until_when([last], {}) == {SYMBOL: last.received_at}
    assert go_on(pipeline, recovery, 4, away + 100.0) == [last]
    assert started == [EpochStarted(SYMBOL, 4, 3, 7)]
    resent = Quote(
        SYMBOL,
        last.timestamp,
        last.price,
        last.source,
        away + 100.0,
        bid=last.bid,
        ask=last.ask,
        first_after_subscribe=True,
    )
    pipeline.on_quotes([resent], away + 100.0)
    assert pipeline.counts.resent == 1
    # What we collect ourselves is not forgotten for what stands in PostgreSQL.
    later = msgspec.structs.replace(resent, timestamp=away + 101, first_after_subscribe=False)
    pipeline.on_quotes([later], away + 101.0)
    assert go_on(pipeline, recovery, 5, away + 102.0) == []
    assert started[-1] == EpochStarted(SYMBOL, 5, 4, 1)
    for journal in (ours, theirs):
        journal.close()
    await database.close()


def test_simulated_records_never_touch_real_prices(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")
    published: list[Event] = []

    def make(epoch: int) -> Pipeline:
        return Pipeline(
            {"USDCOP": TradingCalendar()},
            journal=journal,
            publish=published.extend,
            metrics=Metrics(),
            epoch=epoch,
        )

    simulated = Quote("USDCOP", OPEN + 1, 4100.0, "simulator_websocket", OPEN + 1.0)
    make(1).on_quotes([simulated], OPEN + 1.0)
    real = make(2)
    restore(real, journal, OPEN + 60.0, simulated=False)
    real.on_quotes(
        [Quote("USDCOP", OPEN + 61, 4050.0, "twelvedata_websocket", OPEN + 61.0)], OPEN + 61.0
    )
    real.on_time(OPEN + 301.0, grace=60.0)
    journal.close()
    (update,) = [event for event in published if isinstance(event, BarUpdate)]
    assert (update.bar.source, update.bar.high) == ("twelvedata_websocket", 4050.0)


def _stamps(restart_after: int) -> list[int]:
    return [
        *range(OPEN, OPEN + restart_after, 7),
        *range(OPEN + restart_after, OPEN + 3600, 7),
    ]
