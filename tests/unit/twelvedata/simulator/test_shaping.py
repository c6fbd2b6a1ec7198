"""Shaped ticks and bursts: exactly what was asked for, whoever looks and however often."""

import itertools
from collections import Counter

from enhanced_websocket_service.twelvedata.simulator.bursts import SLICES, Burst
from enhanced_websocket_service.twelvedata.simulator.distortion import float32
from enhanced_websocket_service.twelvedata.simulator.fault_values import Bursting
from enhanced_websocket_service.twelvedata.simulator.faults import FaultBoard
from enhanced_websocket_service.twelvedata.simulator.ledger import Shape
from enhanced_websocket_service.twelvedata.simulator.model import (
    SLOT_SECONDS,
    MarketSource,
    SimTick,
)
from enhanced_websocket_service.twelvedata.simulator.recorded import candles_of
from enhanced_websocket_service.twelvedata.simulator.schedule import Schedule
from enhanced_websocket_service.twelvedata.simulator.shaping import Departure, Shaper

from .parts import OPEN, bar_market, candles, tick_source

SYMBOL = "USD/COP"
TICKS = [
    SimTick(OPEN + i // 2, round(4000 + i / 100, 6), 3999.0, 4001.0) for i in range(2, 602)
]  # two a second
MARKET = MarketSource({SYMBOL: tick_source(TICKS)})


def shaped(seed: int = 0, **faults: object) -> list[Departure]:
    board = FaultBoard(seed)
    board.apply(faults)
    return Shaper(board).departures(SYMBOL, TICKS)


def marked(departures: list[Departure], shape: Shape) -> list[Departure]:
    return [one for one in departures if one.shape & shape]


def test_without_faults_nothing_is_touched() -> None:
    found = shaped()
    assert [one.tick for one in found] == TICKS
    assert all(one.at == one.tick.timestamp and not one.shape for one in found)
    assert Shaper(FaultBoard()).idle


def test_doubles_are_exact_and_adjacent() -> None:
    found = shaped(double=0.1)
    doubles = marked(found, Shape.DOUBLE)
    assert 30 <= len(doubles) <= 90
    for one in doubles:
        i = found.index(one)
        assert (found[i - 1].tick, found[i - 1].at) == (one.tick, one.at)
    assert [one.tick for one in found if not one.shape] == TICKS
    assert len(shaped(double=True)) == 2 * len(TICKS)


def test_disorder_within_seconds_keeps_every_tick() -> None:
    found = sorted(shaped(disorder={"within_s": 5, "share": 0.4}))
    late = marked(found, Shape.DISORDER)
    assert 180 <= len(late) <= 300
    assert {one.at - one.tick.timestamp for one in late} == {1, 2, 3, 4, 5}
    stamps = [one.tick.timestamp for one in found]
    assert stamps != sorted(stamps)
    assert Counter(one.tick for one in found) == Counter(TICKS)


def test_disorder_within_a_second_keeps_the_stamps_in_order() -> None:
    found = sorted(shaped(disorder=0))
    assert [one.tick for one in found] != TICKS
    assert [one.tick.timestamp for one in found] == [tick.timestamp for tick in TICKS]
    assert Counter(one.tick for one in found) == Counter(TICKS)
    assert {one.shape for one in found} == {0, Shape.DISORDER}


def test_stamps_of_the_future() -> None:
    found = shaped(future_s=16)
    assert [one.tick.timestamp - 16 for one in found] == [tick.timestamp for tick in TICKS]
    assert [one.at for one in found] == [tick.timestamp for tick in TICKS]
    some = shaped(future_s={"seconds": 16, "share": 0.1, "times": 7})
    assert len(marked(some, Shape.FUTURE)) == 7


def test_bad_prints_are_extra_ticks() -> None:
    found = shaped(outlier={"pct": 10, "share": 1, "times": 1})
    (bad,) = marked(found, Shape.OUTLIER)
    assert bad.tick == SimTick(TICKS[0].timestamp, round(TICKS[0].price * 1.1, 6), 4398.9, 4401.1)
    assert [one.tick for one in found if not one.shape] == TICKS


def test_a_change_of_scale_changes_every_price() -> None:
    found = shaped(scale=0.01)
    assert [one.tick.price for one in found] == [round(one.price * 0.01, 6) for one in TICKS]
    assert all(one.shape == Shape.SCALED for one in found)
    assert [one.tick for one in shaped(scale={"factor": 0.01, "at": ["price"]})] == TICKS


def test_crossed_quotes_and_float_noise() -> None:
    found = shaped(crossed=0.5, float32_noise=True)
    crossed = marked(found, Shape.CROSSED)
    assert 200 <= len(crossed) <= 400
    assert all(one.tick.bid == 4001.0 and one.tick.ask == 3999.0 for one in crossed)
    assert [one.tick.price for one in found] == [float32(tick.price) for tick in TICKS]


def test_delay_moves_the_departure_not_the_stamp() -> None:
    found = shaped(delay_s=[1, 9])
    assert [one.tick for one in found] == TICKS
    delays = [one.at - one.tick.timestamp for one in found]
    assert 1 <= min(delays) < 2 < 8 < max(delays) <= 9


def test_the_same_seed_the_same_ticks_however_they_are_cut() -> None:
    faults = {"double": 0.2, "disorder": 4, "outlier": 5, "crossed": 0.1}
    assert shaped(3, **faults) == shaped(3, **faults) != shaped(4, **faults)
    whole = [(one.at, one.tick, one.shape) for one in sorted(shaped(3, **faults))]
    for step in (1, 7, 100):
        board = FaultBoard(3)
        board.apply(faults)
        schedule = Schedule(MARKET, board)
        pieces = itertools.chain.from_iterable(
            schedule.due(max(OPEN, now - step), now, [SYMBOL])
            for now in range(OPEN + step, OPEN + 310 + 2 * step, step)
        )
        found = [(one.at, one.tick, one.shape) for one in pieces]
        assert Counter(found) == Counter(whole)
        assert [one[0] for one in found] == sorted(one[0] for one in found)


def test_what_is_held_back_is_lost_while_muted() -> None:
    board = FaultBoard()
    board.apply({"delay_s": 10})
    schedule = Schedule(MARKET, board)
    assert schedule.due(OPEN, OPEN + 5, [SYMBOL]) == []
    assert schedule.next_instant(OPEN + 5, [SYMBOL]) == OPEN + 6
    board.apply({"mute": [SYMBOL]})
    assert schedule.due(OPEN + 5, OPEN + 12, [SYMBOL]) == []
    board.clear()
    left = schedule.due(OPEN + 12, OPEN + 15, [SYMBOL])
    assert {one.tick.timestamp - OPEN for one in left} == {3, 4, 5, 13, 14, 15}


def burst(market: MarketSource, start: int, how: Bursting) -> Burst:
    return Burst(SYMBOL, market.sources[SYMBOL], start, how)


def test_a_burst_has_its_rate_in_even_portions() -> None:
    one = burst(MARKET, OPEN + 10, Bursting(seconds=3, rate=10_000))
    assert one.next_instant() == OPEN + 10
    assert one.due(OPEN + 9.99) == []
    portion = one.due(OPEN + 10)
    assert len(portion) == 10_000 // SLICES
    rest = one.due(OPEN + 100)
    assert one.next_instant() is None
    ticks = [tick for _, tick in portion + rest]
    assert Counter(tick.timestamp for tick in ticks) == {OPEN + 10 + i: 10_000 for i in range(3)}
    assert len(set(ticks)) == len(ticks)
    assert all(int(at) == tick.timestamp for at, tick in portion + rest)


def test_a_burst_is_the_same_however_it_is_cut() -> None:
    how = Bursting(seconds=2, rate=333)
    whole = burst(MARKET, OPEN, how).due(OPEN + 5)
    cut = burst(MARKET, OPEN, how)
    pieces = [one for i in range(60) for one in cut.due(OPEN + i / 17)]
    assert pieces == whole
    assert len(whole) == 666


def test_a_burst_leaves_every_bar_as_it_is() -> None:
    market = bar_market(candles(3))
    source = market.sources[SYMBOL]
    # Over the first bar's end, and into a bar whose first tick is still to come.
    how = Bursting(seconds=600, rate=50)
    extra = burst(market, OPEN + 60, how).due(OPEN + 1000)
    mixed = [(tick.timestamp, 0, tick.price) for tick in source.ticks(OPEN, OPEN + 900)]
    mixed += [(tick.timestamp, 1, tick.price) for _, tick in extra]
    mixed.sort(key=lambda item: item[:2])
    bars = candles_of(((stamp, price) for stamp, _, price in mixed), SLOT_SECONDS)
    assert bars == candles(3)
