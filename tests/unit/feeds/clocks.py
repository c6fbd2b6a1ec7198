"""Clocks that move only when told, for tests of what waits."""

import asyncio
import heapq


class ManualClock:
    """Stands still until ``advance``; real time counts for nothing."""

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self._now = self._made = now
        self._sleepers: set[asyncio.Future[None]] = set()

    def now(self) -> float:
        return self._now

    def elapsed(self) -> float:
        return self._now - self._made

    async def sleep(self, seconds: float) -> None:
        await self.sleep_until(self._now + seconds)

    async def sleep_until(self, instant: float) -> None:
        while self._now < instant:
            woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._sleepers.add(woken)
            try:
                await woken
            finally:
                self._sleepers.discard(woken)

    def span(self, seconds: float, at_least_real: float = 0.0) -> float:
        return seconds

    def advance(self, seconds: float) -> None:
        self._now += seconds
        for woken in self._sleepers:
            if not woken.done():
                woken.set_result(None)

    async def pass_time(self, seconds: float, step: float = 1.0) -> None:
        """Let ``seconds`` pass in steps, giving every task its turns in between."""
        for _ in range(round(seconds / step)):
            self.advance(step)
            for _ in range(20):
                await asyncio.sleep(0)


class SetManualClock(ManualClock):
    """A manual clock that is wrong by ``error``: whoever sleeps for a while does not notice."""

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        super().__init__(now)
        self.error = 0.0

    def now(self) -> float:
        return self._now + self.error

    async def sleep(self, seconds: float) -> None:
        await super().sleep_until(self._now + seconds)

    async def sleep_until(self, instant: float) -> None:
        while self.now() < instant:
            await self.sleep(1.0)


class JumpingClock(ManualClock):
    """Whoever sleeps on it moves it; for one task at a time."""

    async def sleep_until(self, instant: float) -> None:
        self._now = max(self._now, instant)
        await asyncio.sleep(0)


class IdleClock(ManualClock):
    """Moves to the next instant somebody sleeps for as soon as nobody has anything else to do.

    For tasks that wait for this clock alone: sessions pass as fast as the machine computes, and the same
    each time.
    """

    TURNS = 12
    """Of the event loop, after which whoever could go on has."""

    def __init__(self, now: float) -> None:
        super().__init__(now)
        self._instants: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    async def sleep_until(self, instant: float) -> None:
        if instant <= self._now:
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._count += 1
        heapq.heappush(self._instants, (instant, self._count, woken))
        await woken

    async def run_until(self, end: float) -> None:
        """Let time pass up to ``end``."""
        while True:
            for _ in range(self.TURNS):
                await asyncio.sleep(0)
            if not self._instants or self._instants[0][0] > end:
                self._now = end
                return
            instant, _, woken = heapq.heappop(self._instants)
            if not woken.done():
                self._now = instant
                woken.set_result(None)
