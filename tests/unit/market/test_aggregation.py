"""Bars against polars, an independent implementation, and the rules about late ticks."""

import math

import msgspec
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.market.aggregation import BarAggregator
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.tick import Tick

START = 1_700_000_100 - 1_700_000_100 % 300


def tick(stamp: int, price: float, source: str = "simulator_websocket") -> Tick:
    return Tick("USDCOP", 1, 1, stamp, price, None, None, 0, source, float(stamp), True)


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(st.integers(0, 1799), st.integers(3_000_000, 5_000_000)), min_size=1, max_size=200
    )
)
def test_bars_equal_polars_whatever_the_order_of_arrival(arrivals: list[tuple[int, int]]) -> None:
    ticks = [tick(START + offset, micros / 1000) for offset, micros in arrivals]
    aggregator = BarAggregator("USDCOP")
    for one in ticks:
        assert aggregator.add(one)
    bars = aggregator.advance(START + 10_000, grace=60)
    frame = (
        pl.DataFrame(
            {
                "stamp": [one.timestamp for one in ticks],
                "arrival": range(len(ticks)),
                "price": [one.price for one in ticks],
            }
        )
        .sort("stamp", "arrival")
        .with_columns(slot=pl.col("stamp") // 300 * 300)
        .group_by("slot", maintain_order=True)
        .agg(
            open=pl.col("price").first(),
            high=pl.col("price").max(),
            low=pl.col("price").min(),
            close=pl.col("price").last(),
            ticks=pl.len(),
        )
        .sort("slot")
    )
    assert [(b.open_time, b.open, b.high, b.low, b.close, _count(b)) for b in bars] == frame.rows()


def _count(bar: Bar) -> int:
    assert bar.certificate is not None
    return sum(bar.certificate.ticks.values())


def test_only_the_clock_closes_a_bar() -> None:
    aggregator = BarAggregator("USDCOP", close_delay=1.0)
    aggregator.add(tick(START + 10, 4100.0))
    aggregator.add(tick(START + 400, 4200.0))  # the next bar began
    assert aggregator.advance(START + 300.9, grace=60) == []
    assert aggregator.next_close() == START + 301
    (bar,) = aggregator.advance(START + 301, grace=60)
    assert (bar.open_time, bar.status, bar.revision, bar.close) == (START, "closed", 0, 4100.0)
    assert aggregator.advance(START + 302, grace=60) == []


def test_a_late_tick_inside_the_grace_revises_and_later_ones_do_not() -> None:
    aggregator = BarAggregator("USDCOP")
    aggregator.add(tick(START + 10, 4100.0))
    aggregator.advance(START + 301, grace=60)
    assert aggregator.add(tick(START + 299, 4150.0))
    (bar,) = aggregator.advance(START + 305, grace=60)
    assert (bar.status, bar.revision, bar.close, bar.high) == ("revised", 1, 4150.0, 4150.0)
    assert aggregator.advance(START + 361, grace=60) == []
    assert not aggregator.accepts(START + 299)
    assert not aggregator.add(tick(START + 299, 4000.0))


def test_a_bar_without_ticks_is_never_invented() -> None:
    aggregator = BarAggregator("USDCOP")
    aggregator.add(tick(START, 4100.0))
    aggregator.add(tick(START + 900, 4100.0))
    bars = aggregator.advance(START + 5000, grace=60)
    assert [bar.open_time for bar in bars] == [START, START + 900]


def test_the_certificate_tells_how_the_bar_came_to_be() -> None:
    aggregator = BarAggregator("USDCOP")
    aggregator.interrupted(0.0, START + 5.0)  # collection began five seconds into the bar
    aggregator.add(tick(START + 10, 4100.0))
    aggregator.add(tick(START + 110, 4100.0, "simulator_rest"))
    aggregator.add(tick(START + 310, 4100.0))
    first, second = aggregator.advance(START + 5000, grace=60)
    assert first.certificate is not None
    assert second.certificate is not None
    assert first.certificate.ticks == {"simulator_websocket": 1, "simulator_rest": 1}
    assert (first.certificate.first_tick, first.certificate.last_tick) == (START + 10, START + 110)
    assert first.certificate.longest_silence_s == 190
    assert first.certificate.partial
    assert not second.certificate.partial
    assert first.source == "simulator_websocket"


def test_replaying_the_journal_restores_revision_and_pending_ticks() -> None:
    before = BarAggregator("USDCOP")
    before.add(tick(START + 10, 4100.0))
    (closed,) = before.advance(START + 301, grace=60)
    after = BarAggregator("USDCOP")
    after.add(tick(START + 10, 4100.0))
    after.resume(closed)
    assert after.advance(START + 302, grace=60) == []
    after.add(tick(START + 20, 4090.0))
    (revised,) = after.advance(START + 303, grace=60)
    assert (revised.revision, revised.status, revised.low) == (1, "revised", 4090.0)


def partial(bar: Bar) -> bool:
    assert bar.certificate is not None
    return bar.certificate.partial


def test_a_bar_is_called_after_the_source_of_its_first_tick_by_stamp() -> None:
    aggregator = BarAggregator("USDCOP")
    aggregator.add(tick(START + 10, 4100.0, "simulator_rest"))
    aggregator.add(tick(START + 5, 4090.0, "simulator_websocket"))
    (bar,) = aggregator.advance(START + 301, grace=60)
    assert (bar.source, bar.open, bar.close) == ("simulator_websocket", 4090.0, 4100.0)
    aggregator.add(tick(START + 1, 4080.0, "simulator_rest"))
    (revised,) = aggregator.advance(START + 302, grace=60)
    # It is known by that name now.
    assert (revised.source, revised.open) == ("simulator_websocket", 4080.0)


def test_a_gap_is_remembered_for_the_slot_it_lies_in_however_late_its_first_tick() -> None:
    aggregator = BarAggregator("USDCOP")
    aggregator.interrupted(START - 900, START - 800)
    aggregator.interrupted(START, START + 10)
    aggregator.advance(START + 200, grace=60)
    aggregator.add(tick(START + 210, 4100.0))
    (bar,) = aggregator.advance(START + 301, grace=60)
    assert partial(bar)


def test_a_gap_told_afterwards_revises_what_was_published_and_only_once() -> None:
    aggregator = BarAggregator("USDCOP")
    for slot in range(3):
        aggregator.add(tick(START + 300 * slot + 10, 4100.0 + slot))
    first, second, _ = aggregator.advance(START + 901, grace=60)
    assert not partial(first)
    aggregator.interrupted(START + 290, START + 320, published=True)
    revised = aggregator.advance(START + 902, grace=60)
    assert [(bar.open_time, bar.revision, bar.status) for bar in revised] == [
        (START, 1, "revised"),
        (START + 300, 1, "revised"),
    ]
    assert all(partial(bar) for bar in revised)
    assert [bar.close for bar in revised] == [first.close, second.close]
    aggregator.interrupted(START + 290, START + 320, published=True)
    aggregator.interrupted(START + 300, START + 310, published=True)
    assert aggregator.advance(START + 903, grace=60) == []
    assert aggregator.revision(START) == 1


def test_the_gap_of_a_restart_leaves_published_bars_alone() -> None:
    aggregator = BarAggregator("USDCOP")
    aggregator.add(tick(START + 10, 4100.0))
    aggregator.advance(START + 301, grace=60)
    aggregator.interrupted(START + 299, START + 400)
    assert aggregator.advance(START + 402, grace=60) == []


def test_a_bar_of_the_vendor_is_touched_by_no_tick_and_no_gap() -> None:
    aggregator = BarAggregator("USDCOP")
    aggregator.add(tick(START + 10, 4100.0))
    aggregator.advance(START + 400, grace=60)
    aggregator.interrupted(START, START + 300, published=True)
    aggregator.settle(START)
    assert aggregator.advance(START + 401, grace=60) == []
    # Not even when the clock is set back over it.
    assert aggregator.advance(START + 100, grace=60) == []
    assert not aggregator.add(tick(START + 20, 1.0))
    assert aggregator.accepts(START + 310)


def test_after_a_clock_was_ahead_for_a_while_bars_are_built_again() -> None:
    aggregator = BarAggregator("USDCOP")
    aggregator.add(tick(START + 10, 4100.0))
    (early,) = aggregator.advance(START + 7200, grace=60)
    assert not aggregator.accepts(START + 900)
    (doubtful,) = aggregator.advance(START + 15, grace=60)
    assert (doubtful.revision, doubtful.certificate.partial) == (1, True)  # type: ignore[union-attr] - a live bar
    assert aggregator.accepts(START + 900)
    # What was published is not begun anew under revision 0.
    assert not aggregator.accepts(START + 20)
    assert early.revision == 0


def test_a_bar_that_the_clock_leaps_over_does_not_say_that_it_is_whole() -> None:
    aggregator = BarAggregator("USDCOP")
    closed = []
    for second in range(100):
        aggregator.add(tick(START + second, 4100.0))
        closed += aggregator.advance(START + second, grace=60)
    (leapt,) = aggregator.advance(START + 3700, grace=60)
    assert closed == []
    assert leapt.certificate is not None
    assert leapt.certificate.partial


def test_a_clock_that_runs_on_a_little_unevenly_is_not_set_back() -> None:
    aggregator = BarAggregator("USDCOP")
    aggregator.advance(START + 400, grace=60)
    # The grace may grow with the speed of the clock; what is beyond revision stays so.
    aggregator.advance(START + 399.5, grace=4000)
    assert not aggregator.accepts(START + 10)


def test_quotes_in_doubt_make_their_bar_partial_until_they_are_decided() -> None:
    aggregator = BarAggregator("USDCOP")
    aggregator.add(tick(START + 10, 4100.0))
    (closed,) = aggregator.advance(START + 301, 60, [START + 299])
    assert partial(closed)
    assert aggregator.advance(START + 302, 60, [START + 299]) == []
    (decided,) = aggregator.advance(START + 303, 60)
    assert (decided.revision, decided.status, partial(decided)) == (1, "revised", False)
    aggregator.doubt(START + 299)
    (lost,) = aggregator.advance(START + 304, 60)
    assert (lost.revision, partial(lost)) == (2, True)


def test_a_restart_remembers_what_was_partial_and_what_was_the_vendors() -> None:
    before = BarAggregator("USDCOP")
    before.interrupted(START, START + 5)
    before.add(tick(START + 10, 4100.0))
    (closed,) = before.advance(START + 301, grace=60)
    after = BarAggregator("USDCOP")
    after.add(tick(START + 10, 4100.0))
    after.resume(closed)
    after.add(tick(START + 299, 4101.0))
    (revised,) = after.advance(START + 302, grace=60)
    assert (revised.revision, partial(revised)) == (1, True)
    after.resume(msgspec.structs.replace(closed, source="simulator", certificate=None, revision=2))
    assert not after.accepts(START + 299)


def _partial(bars: list[Bar]) -> list[bool]:
    return [bar.certificate is not None and bar.certificate.partial for bar in bars]


def test_bars_that_close_while_an_outage_lasts_are_partial() -> None:
    """It begins in the first bar, is known when that is published, and ends in the third."""
    aggregator = BarAggregator("USDCOP")
    for second in range(10, 1200, 10):
        aggregator.add(tick(START + second, 4100.0 + second))
    assert _partial(aggregator.advance(START + 301, grace=60)) == [False]
    aggregator.interrupted(START + 290, math.inf, published=True)
    assert _partial(aggregator.advance(START + 302, grace=60)) == [True], "a revision says so"
    assert _partial(aggregator.advance(START + 601, grace=60)) == [True]
    aggregator.interrupted(START + 290, START + 610, published=True)
    assert _partial(aggregator.advance(START + 901, grace=60)) == [True]
    assert _partial(aggregator.advance(START + 1201, grace=60)) == [False]


def test_an_outage_that_lasts_while_the_clock_is_set_back_has_begun_before() -> None:
    aggregator = BarAggregator("USDCOP")
    aggregator.interrupted(START + 3700, math.inf, published=True)
    aggregator.advance(START + 3710, grace=60)
    assert aggregator.advance(START + 110, grace=60) == []
    aggregator.add(tick(START + 310, 4100.0))
    assert _partial(aggregator.advance(START + 601, grace=60)) == [True]


def test_a_bar_whose_end_the_stream_has_not_reached_is_partial_until_it_has() -> None:
    aggregator = BarAggregator("USDCOP")
    for second in range(0, 280, 10):
        aggregator.add(tick(START + second, 4100.0 + second))
    (closed,) = aggregator.advance(START + 301, grace=60, reached=START + 281)
    assert _partial([closed]) == [True]
    aggregator.add(tick(START + 290, 4500.0))
    (revised,) = aggregator.advance(START + 315, grace=60, reached=START + 295)
    assert _partial([revised]) == [True]
    (whole,) = aggregator.advance(START + 321, grace=60, reached=START + 301)
    assert (_partial([whole]), whole.high, whole.status) == ([False], 4500.0, "revised")


def test_a_stream_that_lies_too_far_behind_leaves_its_bars_partial() -> None:
    aggregator = BarAggregator("USDCOP")
    aggregator.add(tick(START, 4100.0))
    (closed,) = aggregator.advance(START + 301, grace=60, reached=START + 201)
    assert aggregator.advance(START + 361, grace=60, reached=START + 261) == []
    assert aggregator.advance(START + 500, grace=60, reached=START + 400) == []
    assert _partial([closed]) == [True]
