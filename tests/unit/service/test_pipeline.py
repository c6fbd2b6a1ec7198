"""The hot path: order, numbering, and what is never published."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.events import EpochStarted, Event
from enhanced_websocket_service.market.tick import Flag, Quote, Rejection, Tick
from enhanced_websocket_service.service.pipeline import Pipeline, Record
from enhanced_websocket_service.telemetry import Metrics

OPEN = int(datetime(2025, 1, 20, 13, 0, tzinfo=UTC).timestamp())
CLOSE = int(datetime(2025, 1, 20, 17, 55, tzinfo=UTC).timestamp())


class Recorder:
    """A journal and a bus that remember the order of what they were given."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.events: list[Event] = []
        self.calls: list[str] = []
        self.full = False

    def append(self, records: Sequence[Record]) -> None:
        if self.full:
            raise JournalError("No space left on device")
        self.calls.append("journal")
        self.records += records

    def publish(self, events: Sequence[Event]) -> None:
        self.calls.append("publish")
        self.events += events


def pipeline(recorder: Recorder, epoch: int = 7) -> Pipeline:
    return Pipeline(
        {"USDCOP": TradingCalendar()},
        journal=recorder,
        publish=recorder.publish,
        metrics=Metrics(),
        epoch=epoch,
    )


def quote(stamp: int, price: float, **fields: object) -> Quote:
    return Quote(
        **{  # type: ignore[arg-type]
            "symbol": "USDCOP",
            "timestamp": stamp,
            "price": price,
            "source": "simulator_websocket",
            "received_at": stamp + 0.1,
            **fields,
        }
    )


def test_a_batch_is_journaled_once_before_it_is_published() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.on_quotes([quote(OPEN, 4100.1234567), quote(OPEN, 4100.2)], OPEN + 1.0)
    assert recorder.calls == ["journal", "publish"]
    assert recorder.records == recorder.events
    first, second = recorder.events
    assert isinstance(first, Tick)
    assert isinstance(second, Tick)
    assert (first.epoch, first.offset, first.price) == (7, 1, 4100.123457)
    assert second.offset == 2
    assert line.offsets == {"USDCOP": 2}


def test_a_failed_journal_write_publishes_nothing_and_uses_no_offset() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    recorder.full = True
    with pytest.raises(JournalError):
        line.on_quotes([quote(OPEN, 4100.0)], OPEN + 1.0)
    assert recorder.events == []
    recorder.full = False
    line.on_quotes([quote(OPEN + 1, 4101.0)], OPEN + 1.0)
    assert [event.offset for event in recorder.events if isinstance(event, Tick)] == [1]


def test_after_a_failed_write_the_vendors_resent_price_is_taken() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.on_quotes([quote(OPEN, 4100.0)], OPEN + 1.0)
    recorder.full = True
    with pytest.raises(JournalError):
        line.on_quotes([quote(OPEN + 1, 4101.0), quote(OPEN + 1, 9000.0)], OPEN + 1.0)
    recorder.full = False
    line.on_quotes([quote(OPEN + 1, 4101.0, first_after_subscribe=True)], OPEN + 2.0)
    line.flush_held()
    prices = [event.price for event in recorder.events if isinstance(event, Tick)]
    assert prices == [4100.0, 4101.0]
    assert line.counts.rejected == {}


def test_a_bar_whose_journal_write_failed_is_published_by_the_next_call() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.on_quotes([quote(OPEN, 4100.0)], OPEN + 1.0)
    recorder.full = True
    with pytest.raises(JournalError):
        line.on_time(OPEN + 301.0, 60.0)
    recorder.full = False
    line.on_time(OPEN + 302.0, 60.0)
    (update,) = [event for event in recorder.events if isinstance(event, BarUpdate)]
    assert (update.bar.open_time, update.bar.revision, update.offset) == (OPEN, 0, 1)


def test_ticks_outside_the_session_are_stored_but_not_published() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    stamps = [OPEN - 1, OPEN, CLOSE - 1, CLOSE, CLOSE + 1]
    for stamp in stamps:
        line.on_quotes([quote(stamp, 4100.0)], stamp + 0.1)
    stored = [record for record in recorder.records if isinstance(record, Tick)]
    assert [tick.trading_session for tick in stored] == [False, True, True, False, False]
    assert [event.timestamp for event in recorder.events if isinstance(event, Tick)] == [
        OPEN,
        CLOSE - 1,
    ]
    line.on_time(CLOSE + 10.0, 60.0)
    bars = [event.bar for event in recorder.events if isinstance(event, BarUpdate)]
    assert [bar.open_time for bar in bars] == [OPEN, CLOSE - 300]


def test_a_stamp_too_far_ahead_is_stored_flagged_and_enters_no_bar() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.on_quotes([quote(OPEN + 106, 4100.0), quote(OPEN + 104, 4105.0)], OPEN + 100.0)
    stored = [record for record in recorder.records if isinstance(record, Tick)]
    assert [tick.flags for tick in stored] == [(Flag.FUTURE,), ()]
    assert [event.offset for event in recorder.events if isinstance(event, Tick)] == [2]
    line.on_time(OPEN + 301.0, 60.0)
    (update,) = [event for event in recorder.events if isinstance(event, BarUpdate)]
    assert update.bar.open == 4105.0


def test_rejections_are_journaled_and_counted_and_hold_back_nothing() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.on_quotes(
        [quote(OPEN, math.nan), quote(OPEN, 4100.0), quote(OPEN, 1.0, symbol="EURUSD")], OPEN + 1.0
    )
    assert [type(record) for record in recorder.records] == [Rejection, Rejection, Tick]
    assert line.counts.rejected == {"not_a_number": 1, "unknown_symbol": 1}
    assert line.counts.ticks == 1


def test_a_resent_last_price_is_dropped_and_counted() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.on_quotes([quote(OPEN, 4100.0)], OPEN + 1.0)
    line.on_quotes([quote(OPEN, 4100.0, first_after_subscribe=True)], OPEN + 2.0)
    line.on_quotes([quote(OPEN, 4100.0)], OPEN + 2.0)
    assert line.counts.resent == 1
    assert line.offsets == {"USDCOP": 2}


def test_a_restart_goes_on_with_the_open_bar_from_the_journal() -> None:
    before, after = Recorder(), Recorder()
    line = pipeline(before)
    line.on_quotes([quote(OPEN + 1, 4100.0), quote(OPEN + 2, 4110.0)], OPEN + 3.0)
    line.on_quotes([quote(OPEN + 310, 4120.0)], OPEN + 311.0)
    line.on_time(OPEN + 311.0, 60.0)
    restarted = pipeline(after, epoch=8)
    restarted.restore(before.records)
    restarted.begin_epoch(8, {"USDCOP": (7, 3)})
    restarted.interrupted(OPEN + 311.0, OPEN + 320.0)
    restarted.on_quotes([quote(OPEN + 330, 4090.0)], OPEN + 331.0)
    restarted.on_time(OPEN + 601.0, 60.0)
    assert after.events[0] == EpochStarted("USDCOP", 8, 7, 3)
    (update,) = [event for event in after.events if isinstance(event, BarUpdate)]
    bar = update.bar
    assert (bar.open_time, bar.open, bar.low, bar.close) == (OPEN + 300, 4120.0, 4090.0, 4090.0)
    assert bar.certificate is not None
    assert bar.certificate.partial
    assert (update.epoch, update.offset) == (8, 1)


def test_a_second_restart_still_knows_the_gap_of_the_first() -> None:
    """The process that was killed in between had not published the bar yet."""
    first, second, third = Recorder(), Recorder(), Recorder()
    line = pipeline(first)
    line.on_quotes([quote(OPEN + 10, 4100.0)], OPEN + 11.0)
    line = pipeline(second, epoch=8)
    line.restore(first.records)
    line.on_quotes([quote(OPEN + 280, 4110.0)], OPEN + 281.0)
    line.on_quotes([quote(OPEN + 300, 4120.0)], OPEN + 300.2)
    line = pipeline(third, epoch=9)
    line.restore([*first.records, *second.records])
    line.interrupted(OPEN + 300.1, OPEN + 302.0)
    line.on_time(OPEN + 302.0, 60.0)
    (update,) = [event for event in third.events if isinstance(event, BarUpdate)]
    assert update.bar.certificate is not None
    assert update.bar.certificate.partial
