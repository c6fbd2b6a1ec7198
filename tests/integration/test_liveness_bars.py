"""What becomes of the bars while a stream lies or has not begun: they say that they are partial."""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from enhanced_websocket_service.feeds.base import FeedGap
from enhanced_websocket_service.market.bar import Bar, BarUpdate
from enhanced_websocket_service.market.events import Event
from enhanced_websocket_service.service.pipeline import Pipeline
from enhanced_websocket_service.telemetry import Metrics
from tests.unit.feeds.vendor import until

from .test_feeds import CALENDAR, OPENS, Stage, stage

pytestmark = pytest.mark.long

SLOT = int(OPENS) + 3600


class Kept:
    """A journal that keeps nothing."""

    def append(self, records: Sequence[object]) -> None:
        pass


class Bars:
    """The pipeline behind the feed of a stage, and its last version of each bar."""

    def __init__(self, it: Stage) -> None:
        self.it = it
        self.bars: dict[int, Bar] = {}
        self.first: dict[int, Bar] = {}
        monitor = it.feed._stream.liveness if it.feed._stream is not None else None
        assert monitor is not None
        self.pipeline = Pipeline(
            {"USDCOP": CALENDAR},
            journal=Kept(),
            publish=self._publish,
            metrics=Metrics(),
            epoch=1,
            reached=monitor.reached,
        )

    def _publish(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, BarUpdate):
                self.bars[event.bar.open_time] = event.bar
                self.first.setdefault(event.bar.open_time, event.bar)

    def on_gap(self, gap: FeedGap) -> None:
        self.pipeline.interrupted(gap.start, gap.end, gap.symbol)

    def on_outage(self, symbol: str, start: float) -> None:
        self.pipeline.interrupted(start, math.inf, symbol)

    async def run(self) -> None:
        taken = 0
        while True:
            quotes = self.it.quotes[taken:]
            taken += len(quotes)
            self.pipeline.on_quotes(quotes, self.it.clock.now())
            self.pipeline.on_time(self.it.clock.now(), 60.0)
            await self.it.clock.sleep(1.0)

    async def closed(self, slot: int) -> Bar:
        await until(lambda: slot in self.bars)
        return self.bars[slot]


@asynccontextmanager
async def bars(begin: float, **what: object) -> AsyncIterator[Bars]:
    made: list[Bars] = []
    early: list[tuple[str, float]] = []

    def on_outage(symbol: str, start: float) -> None:
        if made:
            made[0].on_outage(symbol, start)
        else:
            early.append((symbol, start))

    async with stage(
        ticks_per_bar=300,
        begin=begin,
        on_outage=on_outage,
        on_closed=lambda gap: made[0].on_gap(gap),
        **what,  # type: ignore[arg-type]  # as stage takes it
    ) as it:
        made.append(one := Bars(it))
        for symbol, start in early:
            one.on_outage(symbol, start)
        task = asyncio.create_task(one.run())
        try:
            yield one
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def partial(bar: Bar) -> bool:
    assert bar.certificate is not None
    return bar.certificate.partial


async def test_bars_of_a_frozen_stream_are_partial_when_they_close() -> None:
    async with bars(SLOT - 30, speed=30.0) as it:
        assert not partial(await it.closed(SLOT)), "a whole one, to begin with"
        it.it.simulator.inject({"frozen": True})
        await it.closed(SLOT + 900)
        for slot in (SLOT + 300, SLOT + 600, SLOT + 900):
            assert partial(it.bars[slot])
        assert partial(it.first[SLOT + 600])
        assert partial(it.first[SLOT + 900])
        it.it.simulator.inject({"frozen": None})
        await until(lambda: it.it.quotes[-1].source == "simulator_websocket")
        slot = int(it.it.clock.now()) // 300 * 300 + 300
        assert not partial(await it.closed(slot))


async def test_a_bar_is_whole_only_once_the_stream_has_told_its_end() -> None:
    """Forty seconds late: less than would be called dead, and more than a bar waits to be closed."""
    async with bars(SLOT - 250, speed=20.0, faults={"delay_s": 40}) as it:
        await until(lambda: SLOT in it.bars)
        assert partial(it.first[SLOT])
        await until(lambda: not partial(it.bars[SLOT]))
        assert it.bars[SLOT].certificate.last_tick >= SLOT + 295
        assert it.bars[SLOT].status == "revised"


async def test_a_bar_that_began_before_the_first_subscription_is_partial() -> None:
    """The handshake hangs for a minute over the beginning of the bar."""
    async with bars(SLOT - 20, speed=20.0, faults={"hang_handshake": True}) as it:
        await until(lambda: it.it.clock.now() > SLOT + 40)
        it.it.simulator.inject({"hang_handshake": None})
        assert partial(await it.closed(SLOT))
        assert not partial(await it.closed(SLOT + 600))
