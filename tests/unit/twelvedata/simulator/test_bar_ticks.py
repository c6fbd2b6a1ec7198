"""Candles become ticks that are exactly the candle; the same ones every time."""

import itertools
import random

import pytest

from enhanced_websocket_service.twelvedata.simulator.bar_ticks import CandleTicks, tick_prices
from enhanced_websocket_service.twelvedata.simulator.model import Candle, SimTick
from enhanced_websocket_service.twelvedata.simulator.recorded import RecordedCandles

from .parts import OPEN, candle, candles


def source(*recorded: Candle, ticks_per_bar: int | None = None, seed: int = 0) -> CandleTicks:
    return CandleTicks("USD/COP", RecordedCandles(recorded), ticks_per_bar=ticks_per_bar, seed=seed)


def ohlc(ticks: list[SimTick]) -> tuple[float, float, float, float]:
    prices = [tick.price for tick in ticks]
    return prices[0], max(prices), min(prices), prices[-1]


def test_ticks_are_exactly_the_candle() -> None:
    market = source(*candles(50))
    for one in candles(50):
        ticks = market.ticks(one.open_time, one.open_time + 300)
        assert ohlc(ticks) == one[1:]
        assert 2 <= len(ticks) <= 40
        assert [tick.timestamp for tick in ticks] == sorted(tick.timestamp for tick in ticks)


def test_number_and_places_of_ticks_are_irregular() -> None:
    market = source(*candles(50))
    sizes = {len(market.ticks(OPEN + 300 * i, OPEN + 300 * i + 300)) for i in range(50)}
    assert len(sizes) > 10
    stamps = [tick.timestamp % 300 for tick in market.ticks(OPEN, OPEN + 15_000)]
    assert len(set(stamps)) > 100


def test_a_flat_candle_still_has_two_ticks() -> None:
    ticks = source(candle(0, 4100, 4100, 4100, 4100), ticks_per_bar=2).ticks(OPEN, OPEN + 300)
    assert [tick.price for tick in ticks] == [4100, 4100]


@pytest.mark.parametrize("count", [2, 3, 4, 25, 1000])
def test_ticks_per_bar_is_exact_where_the_corners_fit(count: int) -> None:
    recorded = candle(0, 4100, 4105, 4095, 4101)
    ticks = source(recorded, ticks_per_bar=count).ticks(OPEN, OPEN + 300)
    assert len(ticks) == max(count, 4)
    assert ohlc(ticks) == recorded[1:]


def test_the_same_seed_gives_the_same_ticks_whatever_was_asked_before() -> None:
    first, second = source(*candles(20)), source(*candles(20))
    second.ticks(OPEN + 1500, OPEN + 3000)
    assert first.ticks(OPEN, OPEN + 6000) == second.ticks(OPEN, OPEN + 6000)
    assert first.ticks(OPEN, OPEN + 6000) != source(*candles(20), seed=1).ticks(OPEN, OPEN + 6000)


def test_a_window_is_cut_to_the_second() -> None:
    market = source(*candles(4))
    everything = market.ticks(OPEN, OPEN + 1200)
    for cut in (OPEN + 1, OPEN + 299, OPEN + 300, OPEN + 777):
        assert market.ticks(OPEN, cut) + market.ticks(cut, OPEN + 1200) == everything


def test_next_stamp_and_last_tick_skip_holes() -> None:
    market = source(candle(0, 1, 2, 1, 2), candle(10, 3, 4, 3, 4))
    first, last = market.ticks(OPEN, OPEN + 300), market.ticks(OPEN + 3000, OPEN + 3300)
    assert market.next_stamp(OPEN - 10_000) == first[0].timestamp
    assert market.next_stamp(first[-1].timestamp + 1) == last[0].timestamp
    assert market.next_stamp(last[-1].timestamp + 1) is None
    assert market.last_tick(OPEN + 2000) == first[-1]
    assert market.last_tick(OPEN + 9000) == last[-1]
    assert market.last_tick(OPEN - 1) is None


def test_bid_and_ask_lie_around_the_price_and_are_missing_at_times() -> None:
    ticks = source(*candles(50)).ticks(OPEN, OPEN + 15_000)
    known = [tick for tick in ticks if tick.bid is not None and tick.ask is not None]
    assert 0 < len(ticks) - len(known) < 0.1 * len(ticks)
    for tick in known:
        assert tick.bid is not None
        assert tick.ask is not None
        assert tick.bid < tick.price < tick.ask
        assert 0.1 < tick.ask - tick.bid < 1.5


def test_no_spread_means_no_bid_and_ask() -> None:
    market = CandleTicks("USD/COP", RecordedCandles(candles(1)), spread_bp=0)
    assert {(tick.bid, tick.ask) for tick in market.ticks(OPEN, OPEN + 300)} == {(None, None)}


def test_prices_move_gradually_instead_of_jumping_about() -> None:
    prices = tick_prices(candle(0, 100, 200, 100, 200), 100, random.Random(1))
    assert all(abs(later - earlier) < 60 for earlier, later in itertools.pairwise(prices))
