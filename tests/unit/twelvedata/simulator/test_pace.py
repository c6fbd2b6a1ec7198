"""Rates to order: the numbers, the gaps, the bars that still are the recorded ones."""

import random
import statistics
from itertools import pairwise

import pytest

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.twelvedata.simulator.bar_ticks import CandleTicks
from enhanced_websocket_service.twelvedata.simulator.model import SLOT_SECONDS
from enhanced_websocket_service.twelvedata.simulator.options import market_from_options
from enhanced_websocket_service.twelvedata.simulator.pace import CountedPace, Pace, TimedPace
from enhanced_websocket_service.twelvedata.simulator.recorded import RecordedCandles, candles_of

from .parts import OPEN, candles

BARS = 59


def stamps(pace: Pace, seed: int = 0) -> list[int]:
    """Of a session's ticks; the bars they make must be those they were made of."""
    source = CandleTicks("USD/COP", RecordedCandles(candles(BARS)), seed=seed, pace=pace)
    ticks = source.ticks(OPEN, OPEN + BARS * SLOT_SECONDS)
    points = ((tick.timestamp, tick.price) for tick in ticks)
    assert candles_of(points, SLOT_SECONDS) == candles(BARS)
    return [tick.timestamp for tick in ticks]


def per_bar(found: list[int]) -> list[int]:
    return [
        sum(one // SLOT_SECONDS == (OPEN + i * SLOT_SECONDS) // SLOT_SECONDS for one in found)
        for i in range(BARS)
    ]


def test_a_poisson_process_of_two_to_forty_ticks_a_bar() -> None:
    counts = per_bar(stamps(CountedPace(2, 40, "poisson")))
    assert min(counts) >= 2
    assert max(counts) <= 40
    assert 14 < statistics.mean(counts) < 28
    # Instants of a Poisson process: gaps vary as much as they last.
    gaps = [b - a for a, b in pairwise(stamps(CountedPace(30, 30, "poisson")))]
    assert 0.8 < statistics.stdev(gaps) / statistics.mean(gaps) < 1.2


def test_regular_ticks_leave_no_long_gap() -> None:
    found = stamps(CountedPace(300, 300, "regular"))
    assert per_bar(found) == [300] * BARS
    assert max(b - a for a, b in pairwise(found)) <= 2


def test_the_default_is_what_it_was() -> None:
    def earlier(open_time: int, count: int, rng: random.Random) -> list[int]:
        made = sorted(rng.randrange(300) for _ in range(count))
        for i in range(1, count):
            if rng.random() < 0.15:
                made[i] = made[i - 1]
        return [open_time + one for one in made]

    for count in (2, 17, 40):
        rngs = [random.Random(count) for _ in range(2)]
        assert CountedPace().stamps(OPEN, count, rngs[0]) == earlier(OPEN, count, rngs[1])


@pytest.mark.parametrize("arrivals", ["regular", "poisson"])
def test_a_rate_that_falls_at_an_instant(arrivals: str) -> None:
    market = market_from_options(
        tick_every="1,60@2025-06-03T10:32:00", arrivals=arrivals, random_symbols=()
    )
    source = market.sources["USD/COP"]
    falls = OPEN + 2 * 3600 + 32 * 60
    before = [tick.timestamp for tick in source.ticks(OPEN, falls)]
    after = [tick.timestamp for tick in source.ticks(falls, OPEN + 17_700)]
    assert 0.95 < len(before) / (falls - OPEN) < 1.05
    assert 0.7 < 60 * len(after) / (OPEN + 17_700 - falls) < 1.3
    if arrivals == "regular":
        assert max(b - a for a, b in pairwise(before)) <= 3
        assert 30 < statistics.mean(b - a for a, b in pairwise(after)) < 90
        assert max(b - a for a, b in pairwise(after)) <= 125


def test_bars_of_a_timed_pace_are_the_recorded_ones() -> None:
    pace = TimedPace([(0.0, 1.0), (OPEN + 1000.0, 60.0), (OPEN + 2000.5, 7.0)])
    found = stamps(pace)
    counts = per_bar(found)
    assert counts[:3] == [300, 300, 300]
    assert all(4 <= count <= 6 for count in counts[4:6])
    assert all(42 <= count <= 44 for count in counts[7:])
    assert stamps(pace) == found != stamps(pace, seed=1)


@pytest.mark.parametrize(
    "options",
    [
        {"ticks_per_bar": "40-2"},
        {"ticks_per_bar": "many"},
        {"ticks_per_bar": 1},
        {"arrivals": "sometimes"},
        {"tick_every": "1", "ticks_per_bar": 5},
        {"tick_every": "1", "arrivals": "bursty"},
        {"tick_every": "0"},
        {"tick_every": "301"},
        {"tick_every": "1,60"},
        {"tick_every": "1@2025-06-03T10:00"},
        {"tick_every": "1,60@2025-06-03T10:00,1@2025-06-03T09:00"},
    ],
)
def test_options_that_make_no_sense(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        market_from_options(**options)  # type: ignore[arg-type]


def test_a_range_of_ticks_per_bar() -> None:
    source = market_from_options(ticks_per_bar="5-9", random_symbols=()).sources["USD/COP"]
    counts = {len(source.ticks(OPEN + i * 300, OPEN + i * 300 + 300)) for i in range(BARS)}
    assert counts == {5, 6, 7, 8, 9}
