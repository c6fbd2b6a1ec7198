"""A clock moved by hand, and small markets."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from enhanced_websocket_service.twelvedata.simulator.bar_ticks import CandleTicks
from enhanced_websocket_service.twelvedata.simulator.model import (
    Candle,
    MarketSource,
    SimTick,
)
from enhanced_websocket_service.twelvedata.simulator.recorded import (
    RecordedCandles,
    RecordedTicks,
)


def at(text: str) -> int:
    """``text`` (ISO, UTC) as unix seconds."""
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())


OPEN = at("2025-06-03 13:00")  # 08:00 in Bogota


class ManualClock:
    """Time stands still until a test moves it."""

    def __init__(self, now: float = OPEN) -> None:
        self._now = self._made = float(now)
        self._moved = asyncio.Condition()

    def now(self) -> float:
        return self._now

    def elapsed(self) -> float:
        return self._now - self._made

    async def sleep(self, seconds: float) -> None:
        await self.sleep_until(self._now + seconds)

    async def sleep_until(self, instant: float) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._now >= instant)

    def span(self, seconds: float, at_least_real: float = 0.0) -> float:
        return max(seconds, at_least_real)

    async def move_to(self, instant: float) -> None:
        async with self._moved:
            self._now = float(instant)
            self._moved.notify_all()


def candle(i: int, *prices: float, start: int = OPEN) -> Candle:
    """The ``i``-th 5-minute candle after ``start``."""
    return Candle(start + 300 * i, *prices)


def candles(count: int, start: int = OPEN) -> list[Candle]:
    """``count`` candles in a row, all different."""
    return [
        candle(i, 4100 + i, 4102.5 + i, 4099.25 + i, 4101 + i, start=start) for i in range(count)
    ]


def bar_market(
    recorded: Sequence[Candle], symbol: str = "USD/COP", ticks_per_bar: int | None = None
) -> MarketSource:
    source = CandleTicks(symbol, RecordedCandles(recorded), ticks_per_bar=ticks_per_bar)
    return MarketSource({symbol: source})


def tick_source(ticks: Sequence[SimTick]) -> RecordedTicks:
    nan = float("nan")
    return RecordedTicks(
        [tick.timestamp for tick in ticks],
        [tick.price for tick in ticks],
        [nan if tick.bid is None else tick.bid for tick in ticks],
        [nan if tick.ask is None else tick.ask for tick in ticks],
    )
