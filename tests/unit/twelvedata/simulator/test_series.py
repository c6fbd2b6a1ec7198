"""Rows at an instant: the forming one, the settling one, larger intervals, zones."""

from datetime import UTC, datetime, tzinfo
from itertools import groupby
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from enhanced_websocket_service.twelvedata.simulator.bar_ticks import CandleTicks
from enhanced_websocket_service.twelvedata.simulator.model import Candle, SymbolSource
from enhanced_websocket_service.twelvedata.simulator.random_market import RandomCandles, Regime
from enhanced_websocket_service.twelvedata.simulator.series import INTERVALS, View

from .parts import OPEN, at, bar_market, candle, candles


def source(count: int = 60) -> SymbolSource:
    found = bar_market(candles(count)).get("USD/COP")
    assert found is not None
    return found


def view(
    prices: SymbolSource,
    now: float,
    interval: str = "5min",
    zone: tzinfo = UTC,
    latency: float = 20.0,
) -> View:
    return View(prices, interval, zone, now, latency)


def everything(look: View) -> list[Candle]:
    return look.rows(None, None, 5000)


def test_the_forming_row_is_built_from_the_ticks_so_far() -> None:
    prices = source()
    now = OPEN + 300 + 150
    rows = everything(view(prices, now))
    seen = [tick.price for tick in prices.ticks(OPEN + 300, now + 1)]
    assert rows == [
        candles(1)[0],
        Candle(OPEN + 300, seen[0], max(seen), min(seen), seen[-1]),
    ]


@pytest.mark.parametrize(
    ("seconds", "visible"), [(299.9, True), (300, False), (319.9, False), (320, True)]
)
def test_a_finished_row_is_absent_until_the_latency_has_passed(
    seconds: float, visible: bool
) -> None:
    rows = everything(view(source(), OPEN + seconds))
    assert (OPEN in [row.open_time for row in rows]) is visible


def test_without_latency_a_finished_row_is_there_at_once() -> None:
    rows = everything(view(source(), OPEN + 300, latency=0))
    assert rows[0] == candles(1)[0]


def test_only_the_window_and_the_last_rows_of_it() -> None:
    look = view(source(), OPEN + 20_000)
    opens = [row.open_time for row in look.rows(OPEN + 300, OPEN + 1500, 3)]
    assert opens == [OPEN + 900, OPEN + 1200, OPEN + 1500]  # both ends belong to it
    assert look.rows(OPEN + 301, OPEN + 599, 10) == []
    assert look.rows(None, OPEN - 1, 10) == []
    assert look.rows(OPEN + 30_000, None, 10) == []
    assert len(look.rows(OPEN - 10_000_000, None, 5000)) == 60


def test_rows_far_in_the_past_are_found_across_a_hole() -> None:
    recorded = [*candles(3, start=OPEN - 400 * 86_400), *candles(1)]
    prices = bar_market(recorded).get("USD/COP")
    assert prices is not None
    assert everything(view(prices, OPEN + 400)) == recorded


def week(regime: Regime = "24x5") -> CandleTicks:
    book = RandomCandles("USD/COP", seed=3, base_price=4100, regime=regime)
    return CandleTicks("USD/COP", book, ticks_per_bar=4)


@pytest.mark.parametrize("zone", ["UTC", "America/Bogota", "Asia/Kolkata", "Australia/Sydney"])
@pytest.mark.parametrize("interval", ["15min", "30min", "45min", "1h", "2h", "4h", "8h", "1day"])
def test_larger_rows_agree_with_polars(interval: str, zone: str) -> None:
    prices = week()
    start, end = at("2025-06-01"), at("2025-06-07")
    rows = View(prices, interval, ZoneInfo(zone), end + 3600, 20).rows(start, end - 1, 5000)
    every = interval.replace("min", "m").replace("day", "d")
    frame = pl.DataFrame(prices.candles(start, end), orient="row", schema=list(Candle._fields))
    local = pl.from_epoch("open_time").dt.replace_time_zone("UTC").dt.convert_time_zone(zone)
    # Truncated wall time: the vendor aligns rows in the zone of display.
    expected = (
        frame.group_by(local.dt.replace_time_zone(None).dt.truncate(every).alias("wall"))
        .agg(
            pl.col("open").first(),
            pl.col("high").max(),
            pl.col("low").min(),
            pl.col("close").last(),
        )
        .sort("wall")
    )
    wall = [
        datetime.fromtimestamp(row.open_time, ZoneInfo(zone)).replace(tzinfo=None) for row in rows
    ]
    got = pl.DataFrame(
        [(time, *row[1:]) for time, row in zip(wall, rows, strict=True)],
        orient="row",
        schema=expected.schema,
    )
    first = got["wall"][0]  # the window may cut the first row of polars
    assert got.equals(expected.filter(pl.col("wall") >= first))
    assert len(got) >= len(expected) - 1


def test_minutes_come_from_the_ticks() -> None:
    prices = source()
    rows = everything(view(prices, OPEN + 20_000, "1min"))
    ticks = prices.ticks(OPEN, OPEN + 18_000)
    expected = [
        (minute * 60, [tick.price for tick in group])
        for minute, group in groupby(ticks, key=lambda tick: tick.timestamp // 60)
    ]
    assert rows == [
        Candle(start, values[0], max(values), min(values), values[-1]) for start, values in expected
    ]


def test_weeks_begin_on_monday_and_months_on_the_first() -> None:
    now = at("2025-06-20")
    weeks = View(week("onshore"), "1week", UTC, now, 20).rows(None, None, 4)
    assert {datetime.fromtimestamp(row.open_time, UTC).weekday() for row in weeks} == {0}
    months = View(week("onshore"), "1month", UTC, now, 20).rows(None, None, 3)
    assert [datetime.fromtimestamp(row.open_time, UTC).date().isoformat() for row in months] == [
        "2025-04-01",
        "2025-05-01",
        "2025-06-01",
    ]


@pytest.mark.parametrize("interval", list(INTERVALS))
def test_a_row_never_knows_the_future(interval: str) -> None:
    """The newest row at an instant is made of ticks up to that instant alone."""
    low_then_high = [candle(0, 100, 100, 100, 100), candle(1, 100, 900, 100, 900)]
    prices = bar_market(low_then_high, ticks_per_bar=2).get("USD/COP")
    assert prices is not None
    last = prices.ticks(OPEN + 300, OPEN + 600)[-1].timestamp
    rows = everything(view(prices, last - 1, interval))
    assert max(row.high for row in rows) == 100
    rows = everything(view(prices, last, interval))
    assert max(row.high for row in rows) == 900
