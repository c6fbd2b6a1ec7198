"""For every candle and every number of ticks, the simulated ticks are exactly that candle."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.twelvedata.simulator.bar_ticks import CandleTicks
from enhanced_websocket_service.twelvedata.simulator.model import Candle
from enhanced_websocket_service.twelvedata.simulator.recorded import RecordedCandles

prices = st.floats(0.000001, 999_999).map(lambda value: round(value, 6))


@st.composite
def candles(draw: st.DrawFn) -> Candle:
    # Narrow candles as often as wide ones: there the corners coincide.
    if draw(st.booleans()):
        base = draw(st.floats(1.0, 900_000))
        around = st.integers(-3, 3).map(lambda step: round(base + step * 1e-6, 6))
        four = [draw(around) for _ in range(4)]
    else:
        four = [draw(prices) for _ in range(4)]
    low, *inner, high = sorted(four)
    opening, close = draw(st.permutations([draw(st.sampled_from(four)), inner[0]]))
    slot = draw(st.integers(0, 14_000_000)) * 300
    return Candle(slot, opening, high, low, close)


@given(
    candle=candles(),
    count=st.none() | st.integers(2, 400),
    seed=st.integers(),
    spread=st.floats(0, 100),
)
def test_ticks_give_exactly_the_candle(
    candle: Candle, count: int | None, seed: int, spread: float
) -> None:
    source = CandleTicks(
        "USD/COP",
        RecordedCandles([candle]),
        seed=seed,
        ticks_per_bar=count,
        spread_bp=spread,
    )
    start, end = candle.open_time, candle.open_time + 300
    ticks = source.ticks(start, end)
    values = [tick.price for tick in ticks]
    stamps = [tick.timestamp for tick in ticks]
    assert (values[0], max(values), min(values), values[-1]) == candle[1:]
    assert all(value == round(value, 6) for value in values)
    assert stamps == sorted(stamps)
    assert start <= stamps[0] <= stamps[-1] < end
    assert len(ticks) >= 2
    if count is None:
        assert len(ticks) <= 40
    else:
        assert len(ticks) in (count, 3, 4)
        assert len(ticks) >= count
    for tick in ticks:
        if tick.bid is not None and tick.ask is not None:
            assert tick.bid <= tick.price <= tick.ask


@given(candle=candles(), cuts=st.lists(st.integers(0, 300), max_size=5))
def test_windows_join_without_loss_or_repetition(candle: Candle, cuts: list[int]) -> None:
    source = CandleTicks("USD/COP", RecordedCandles([candle]))
    edges = [candle.open_time + cut for cut in sorted({0, *cuts, 300})]
    joined = [tick for start, end in itertools.pairwise(edges) for tick in source.ticks(start, end)]
    assert joined == source.ticks(candle.open_time, candle.open_time + 300)
