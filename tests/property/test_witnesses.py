"""Any sequence of quotes, answers and bars: nothing is lost, no scale is believed by hearsay, and a true move
is published by the second answer."""

from collections.abc import Sequence
from datetime import time

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.market.plausibility import BarWitness
from enhanced_websocket_service.market.tick import Quote, quantise
from enhanced_websocket_service.market.validation import Decision, QuoteValidator
from tests.shared_data import shared

NOW = 1_750_000_200
LAST = 4100.0

levels = st.sampled_from([LAST, LAST, LAST * 1.07, LAST * 0.8, LAST * 1.9, 41.0, 410_000.0, 4.1])
offsets = st.integers(-8, 8).map(lambda n: 1 + n / 1000)
prices = st.builds(lambda level, off: round(level * off, 6), levels, offsets)
events = st.tuples(
    st.sampled_from(["stream", "stream", "double", "old", "rest", "answer", "bar", "stored"]),
    prices,
)


class World:
    """A validator and an account of what it was given and what it decided."""

    def __init__(self, last: float | None = LAST) -> None:
        self.validator = QuoteValidator(5.0, believe_first=False)
        if last is not None:
            self.validator.seed(NOW - 1, last)
        self.now = NOW
        self.given = 0
        self.accepted: list[Quote] = []
        self.refused = 0

    def take(self, decision: Decision) -> None:
        self.accepted += [one.quote for one in decision[0]]
        self.refused += len(decision[1])

    def stream(self, price: float, age: int = 0) -> None:
        self.given += 1
        at = self.now
        self.take(
            self.validator.check(Quote("USDCOP", at - age, price, "simulator_websocket", at + 0.1))
        )

    def polled(self, price: float) -> None:
        """An answer of ``/price`` as the feed hands it on: a witness first, a quote if it is news."""
        self.answer(price)
        if self.validator.last != quantise(price):
            self.given += 1
            quote = Quote(
                "USDCOP", self.now, price, "simulator_rest", self.now + 0.1, stamped=False
            )
            if self.validator.is_unchanged(quote):
                self.given -= 1
            else:
                self.take(self.validator.check(quote))

    def answer(self, price: float) -> None:
        self.take(self.validator.on_rest_price(price, self.now + 0.1))

    def happen(self, what: str, price: float) -> None:
        self.now += 7
        if what in ("stream", "double", "old"):
            self.stream(price, 60 if what == "old" else 0)
            if what == "double":
                self.stream(price)
        elif what == "rest":
            self.polled(price)
        elif what == "answer":
            self.answer(price)
        else:
            opens = self.now - self.now % 300 - 300
            bar = BarWitness(price, opens, opens + 300, asked=what == "bar")
            self.take(self.validator.on_bar(bar))


@settings(max_examples=500)
@given(st.lists(events, max_size=40), st.booleans(), st.booleans())
def test_every_quote_is_accepted_refused_or_held(
    script: list[tuple[str, float]], known: bool, late: bool
) -> None:
    world = World(LAST if known else None)
    for number, (what, price) in enumerate(script):
        world.happen(what, price)
        if late and number % 11 == 10:
            world.take(world.validator.overdue())
    assert len(world.accepted) + world.refused + world.validator.held == world.given
    world.take((*([],), world.validator.flush()))
    assert len(world.accepted) + world.refused == world.given


@settings(max_examples=500)
@given(
    st.lists(events, max_size=40),
    st.sampled_from([{"stream", "double", "old"}, {"rest", "answer"}]),
)
def test_one_source_alone_never_changes_the_scale(
    script: list[tuple[str, float]], source: set[str]
) -> None:
    world = World()
    for number, (what, price) in enumerate(script):
        if what in source:
            world.happen(what, price)
        if number % 7 == 6:
            world.take(world.validator.overdue())
    # A leap that stands may be believed in the end; from there a power of ten is another price.
    allowed = {LAST, LAST * 1.07, LAST * 0.8, LAST * 1.9}
    for quote in world.accepted:
        assert any(abs(quote.price / one - 1) < 0.01 for one in allowed), quote


@settings(max_examples=500)
@given(
    st.lists(events, max_size=25),
    st.floats(0.82, 1.19).filter(lambda ratio: abs(ratio - 1) > 0.051),
    st.booleans(),
)
def test_a_standing_move_is_published_by_the_second_answer(
    script: list[tuple[str, float]], ratio: float, streamed: bool
) -> None:
    world = World()
    for what, price in script:
        world.happen(what, price)
    last = world.validator.last
    assert last is not None
    moved = round(last * ratio, 6)
    world.now += 30
    if streamed:
        world.stream(moved)
        world.now += 2
        world.polled(moved)
    else:
        for _ in range(2):
            world.polled(moved)
            world.now += 2
    assert world.validator.last == pytest.approx(moved, rel=1e-9)
    assert any(quote.price == moved for quote in world.accepted)


def held_at_most(quotes: Sequence[Quote], last: float | None = None) -> tuple[int, set[str]]:
    """The most quotes that were held at a time, and why."""
    validator = QuoteValidator(5.0, believe_first=last is None)
    if last is not None:
        validator.assume(BarWitness(last, quotes[0].timestamp - 300, quotes[0].timestamp, False))
    most, reasons = 0, set()
    for quote in quotes:
        validator.check(quote)
        if validator.held:
            most = max(most, validator.held)
            assert validator.doubt is not None
            reasons.add(validator.doubt.why)
    return most, reasons


def test_no_false_alarm_on_all_real_days_of_usdcop() -> None:
    """Every bar as four prices, each day begun from the close before: nothing waits, ever."""
    bars = pl.read_parquet(shared("data/usdcop_m5_dev.parquet")).sort("datetime")
    days = bars.with_columns(day=pl.col("datetime").dt.date()).partition_by("day")
    last: float | None = None
    leaps = 0
    for day in days:
        quotes = [
            Quote("USDCOP", int(at.timestamp()) + second, price, "simulator_websocket", 0.0)
            for at, *values in day.select("datetime", "open", "high", "low", "close").iter_rows()
            for second, price in zip((0, 90, 180, 299), values, strict=True)
        ]
        most, reasons = held_at_most(quotes, last)
        leaps += bool(reasons & {"first", "scale", "leap"})
        assert most <= 2, (day["day"][0], most, reasons)
        last = quotes[-1].price
    assert len(days) > 300
    assert leaps == 0


@pytest.mark.parametrize("venue", ["fxcm", "oanda"])
def test_no_false_alarm_on_real_ticks(venue: str) -> None:
    ticks = pl.read_parquet(shared(f"data/ticks/eurusd_{venue}_201405_dev.parquet"))
    stamp = next(name for name, kind in ticks.schema.items() if kind.is_temporal())
    mids = ticks.select(
        pl.col(stamp).dt.epoch("s").alias("at"), mid=(pl.col("bid") + pl.col("ask")) / 2
    )
    assert len(mids) > 300_000
    # The band alone decides whether anything is held: of real ticks none is outside it.
    factors = mids.select(one=(pl.col("mid") / pl.col("mid").shift() - 1).abs().max()).item()
    assert factors < 0.05
    quotes = [
        Quote("USDCOP", at, round(3000 * mid, 6), "simulator_websocket", float(at))
        for at, mid in mids.head(100_000).iter_rows()
    ]
    assert held_at_most(quotes) == (0, set())


def test_the_session_is_the_recorded_one() -> None:
    """What the recorded bars are compared with begins at eight in the morning of Bogota."""
    bars = pl.read_parquet(shared("data/usdcop_m5_dev.parquet"))
    assert bars["datetime"].dt.time().min() == time(13, 0)
