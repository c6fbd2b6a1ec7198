"""Any mix of disorders gives the bars of the accepted ticks that were in time, as polars builds them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.market.bar import Bar, BarUpdate
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.events import Event
from enhanced_websocket_service.market.tick import HELD, Flag, Quote, Rejection, Tick
from enhanced_websocket_service.service.pipeline import Pipeline, Record
from enhanced_websocket_service.telemetry import Metrics

OPEN = int(datetime(2025, 1, 20, 13, 0, tzinfo=UTC).timestamp())
CLOSE = int(datetime(2025, 1, 20, 17, 55, tzinfo=UTC).timestamp())
GRACE, TOLERANCE = 60.0, 5.0

SKEWS = {
    "now": st.just(0),
    "disorder": st.integers(-3, 3),
    "late": st.integers(-500, -5),
    "ancient": st.integers(-400_000, -500),
    "future": st.integers(6, 2000),
}


@dataclass(frozen=True)
class Step:
    """``wait`` seconds pass; then the process may be restarted; then a batch of quotes comes."""

    wait: float
    restart: bool
    batch: tuple[tuple[str, int, float, str], ...]  # kind, skew, price, where from


@st.composite
def quotes(draw: st.DrawFn) -> tuple[str, int, float, str]:
    kind = draw(st.sampled_from(["now", "now", "now", *SKEWS]))
    level = draw(st.sampled_from([4100.0, 4100.0, 4100.0, 4100.0, 4500.0, 9000.0]))
    price = level + draw(st.integers(0, 4)) / 4
    how = draw(st.sampled_from(["stream", "stream", "stream", "twice", "first", "rest", "noisy"]))
    return kind, draw(SKEWS[kind]), price, how


steps = st.builds(
    Step,
    wait=st.sampled_from([0.0, 0.25, 1.0, 7.5, 40.0, 120.0]),
    restart=st.sampled_from([False] * 19 + [True]),
    batch=st.lists(quotes(), max_size=6).map(tuple),
)


@dataclass
class Seen:
    """A journaled tick and the clock when it was."""

    tick: Tick
    now: float
    closed_until: float  # the last look of the bar clock


@dataclass
class World:
    """A pipeline with everything it ever wrote, across restarts."""

    now: float
    epoch: int = 1
    looked: float = 0.0
    given: int = 0
    held_now: int = 0
    records: list[Record] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    counted: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pipeline = self.start()

    def start(self) -> Pipeline:
        return Pipeline(
            {"USDCOP": TradingCalendar()},
            journal=self,
            publish=self.publish,
            metrics=Metrics(),
            epoch=self.epoch,
        )

    def append(self, records: Sequence[Record]) -> None:
        self.records += records
        self.seen += [Seen(one, self.now, self.looked) for one in records if isinstance(one, Tick)]

    def publish(self, events: Sequence[Event]) -> None:
        # In the end they are held against what was journaled before.
        assert all(event in self.records for event in events)

    def look(self) -> None:
        self.looked = self.now
        self.pipeline.on_time(self.now, GRACE)

    def end_life(self) -> None:
        shown = self.pipeline.hygiene()["USDCOP"]
        for name in ("ticks", "resent", "unchanged"):
            self.counted[name] = self.counted.get(name, 0) + shown[name]
        rejected = sum(shown["rejected"].values())
        self.counted["rejected"] = self.counted.get("rejected", 0) + rejected
        self.held_now = shown["held_now"]

    def restart(self) -> None:
        self.end_life()
        self.epoch += 1
        self.pipeline = self.start()
        ticks = [record for record in self.records if isinstance(record, Tick)]
        self.pipeline.seed(ticks[-1:])
        self.pipeline.restore(self.records)
        self.pipeline.interrupted(ticks[-1].received_at if ticks else 0.0, self.now)
        self.look()

    def give(self, batch: Sequence[tuple[str, int, float, str]]) -> None:
        made = []
        for _, skew, price, how in batch:
            one = Quote(
                "USDCOP",
                int(self.now) if how == "rest" else int(self.now) + skew,
                price + 0.00012 if how == "noisy" else price,
                "simulator_rest" if how == "rest" else "simulator_websocket",
                self.now,
                bid=None if how == "rest" else price + 0.5,
                ask=None if how == "rest" else price - 0.5 if skew % 2 else price + 1,
                stamped=how != "rest",
                first_after_subscribe=how == "first",
            )
            made += [one, one] if how == "twice" else [one]
        self.given += len(made)
        self.pipeline.on_quotes(made, self.now)


def in_session(stamp: int) -> bool:
    """No holiday is near: weekdays, in the same hours."""
    weekday = datetime.fromtimestamp(stamp, UTC).weekday() < 5
    return weekday and (stamp - OPEN) % 86_400 < CLOSE - OPEN


def expected(seen: Sequence[Seen]) -> list[tuple[object, ...]]:
    """The bars of the ticks that were in time, built by another program from the stamps alone."""
    rows = [
        (one.tick.timestamp, one.tick.price, one.tick.source)
        for one in seen
        if one.tick.timestamp <= one.now + TOLERANCE
        and in_session(one.tick.timestamp)
        and one.tick.timestamp // 300 * 300 + 300 > one.closed_until - GRACE
    ]
    frame = pl.DataFrame(rows, schema=["stamp", "price", "source"], orient="row")
    if frame.is_empty():
        return []
    return (
        frame.with_row_index("arrival")
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
        .rows()
    )


def last_versions(records: Sequence[Record]) -> list[Bar]:
    versions: dict[int, list[BarUpdate]] = {}
    for record in records:
        if isinstance(record, BarUpdate):
            versions.setdefault(record.bar.open_time, []).append(record)
    for told in versions.values():
        revisions = [one.bar.revision for one in told]
        assert revisions == list(range(len(told))), "a client would not know which is right"
    return [versions[slot][-1].bar for slot in sorted(versions)]


@settings(max_examples=300)
@given(
    start=st.sampled_from([OPEN - 20.0, OPEN + 290.0, CLOSE - 30.0, CLOSE - 400.0]),
    script=st.lists(steps, max_size=25),
)
def test_whatever_comes_the_bars_are_those_of_the_ticks_in_time(
    start: float, script: list[Step]
) -> None:
    world = World(start)
    world.look()
    for step in script:
        world.now += step.wait
        if step.restart:
            world.restart()
        world.look()
        world.give(step.batch)
    world.pipeline.flush_held()
    world.now += 10_000
    world.look()
    world.end_life()
    ticks = [one.tick for one in world.seen]

    # Nothing was lost, nothing was doubled, no offset has a hole.
    assert world.given == sum(world.counted.values()) + world.held_now
    assert world.held_now == 0, "also what was held when the process died has its fate"
    assert world.counted.get("ticks", 0) == len(ticks)
    rejections = [one for one in world.records if isinstance(one, Rejection) and one.reason != HELD]
    assert world.counted.get("rejected", 0) == len(rejections)
    for epoch in range(1, world.epoch + 1):
        offsets = [tick.offset for tick in ticks if tick.epoch == epoch]
        assert offsets == list(range(1, len(offsets) + 1))

    # The flags say what the stamps say.
    newest = 0
    for one in world.seen:
        tick = one.tick
        inside = in_session(tick.timestamp)
        future = tick.timestamp > one.now + TOLERANCE
        beyond = tick.timestamp // 300 * 300 + 300 <= one.closed_until - GRACE
        assert (Flag.FUTURE in tick.flags) == future
        assert (Flag.LATE in tick.flags) == (inside and beyond)
        if not future:
            assert (Flag.OUT_OF_ORDER in tick.flags) == (tick.timestamp < newest)
            newest = max(newest, tick.timestamp)

    # The bars are those of another program, whatever the order of arrival and the restarts.
    found = last_versions(world.records)
    counts = []
    for bar in found:
        assert bar.certificate is not None
        counts.append(sum(bar.certificate.ticks.values()))
    assert [
        (bar.open_time, bar.open, bar.high, bar.low, bar.close, count)
        for bar, count in zip(found, counts, strict=True)
    ] == expected(world.seen)
