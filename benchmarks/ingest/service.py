"""The service's own path, from a frame's bytes to the committed row, wired as the service wires it."""

import asyncio
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from benchmarks.ingest.market import SYMBOL
from enhanced_websocket_service.bus.memory import MemoryBus
from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.service.pipeline import Pipeline
from enhanced_websocket_service.serving.hub import Hub
from enhanced_websocket_service.serving.outlet import AsgiOutlet
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.postgres import Database
from enhanced_websocket_service.storage.writer import JournalWriter
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata import protocol

PROVIDER = Provider("simulator")
CLOCK = SystemClock()
GRACE_S = 60.0
MOST_BEHIND = 50_000
"""Ticks in the journal but not in the table at which the vendor has to wait: a steady state."""
PAUSE_S = 0.001
LIVE_TICKS_A_SECOND, LIVE_BATCH = 2000, 20


def parse(frames: list[bytes]) -> list[Quote]:
    """As the stream's reader does it, frame by frame, each with its own instant of receipt."""
    quotes: list[Quote] = []
    now, source = CLOCK.now, PROVIDER.websocket
    for data in frames:
        received_at = now()
        price = protocol.parse_price(data, received_at, source)
        if price is not None:
            quotes.append(price)
            continue
        parsed = protocol.parse_frame(data, received_at, source)
        quotes += [frame for frame in parsed if isinstance(frame, Quote)]
    return quotes


class Listener(AsgiOutlet):
    """The connection of a client who wants every tick and reads at once; the socket is left out."""

    def __init__(self) -> None:
        super().__init__(self._never)
        self.taken = 0

    async def _never(self, _: object) -> None:
        raise AssertionError("nothing waits here")

    def write(self, frames: bytes, /) -> None:
        self.taken += len(frames)


class Ingest:
    """Everything between the socket and the table, but the socket itself."""

    def __init__(self, directory: Path, dsn: str, *, listening: bool) -> None:
        epoch = time.time_ns() // 1_000_000
        metrics = Metrics()
        self.journal = Journal.open(directory, metrics=metrics)
        self.database = Database(dsn, PROVIDER)
        self.bus = MemoryBus()
        hub = Hub([SYMBOL], CLOCK, lambda: "active", metrics)
        self.bus.subscribe(hub.on_events)
        self.client = Listener()
        if listening:
            hub.connect(self.client, [SYMBOL], "every")
        self.pipeline = Pipeline(
            {SYMBOL: TradingCalendar()},
            journal=self.journal,
            publish=self.bus.publish,
            metrics=metrics,
            epoch=epoch,
        )
        self.writer = JournalWriter(
            self.journal, self.database, epoch=epoch, symbols=[SYMBOL], metrics=metrics
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(self.journal.run(), name="journal"),
            asyncio.create_task(self.writer.run(), name="writer"),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            for task in tasks:
                with suppress(asyncio.CancelledError):
                    await task
            await self.database.close()
            self.journal.close()

    def take(self, frames: list[bytes]) -> None:
        """One batch as the feed hands it over, and the clock, which closes bars."""
        quotes = parse(frames)
        now = quotes[-1].timestamp + 0.5
        self.pipeline.on_quotes(quotes, now)
        self.pipeline.on_time(now, GRACE_S)


async def sustained(
    directory: Path, dsn: str, frames: list[bytes], batch: int, *, listening: bool = True
) -> dict[str, float]:
    """As fast as it goes, from the first frame to the last committed row."""
    ingest = Ingest(directory / f"journal-{time.time_ns()}", dsn, listening=listening)
    batches = [frames[i : i + batch] for i in range(0, len(frames), batch)]
    async with ingest.running():
        assert await ingest.writer.drain(30)
        began, cpu = time.perf_counter(), time.process_time()
        for one in batches:
            ingest.take(one)
            await asyncio.sleep(0)
            while ingest.writer.lag_records > MOST_BEHIND:
                await asyncio.sleep(PAUSE_S)
        assert await ingest.writer.drain(600)
        wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    assert (ingest.client.taken > 200 * len(frames)) is listening
    return {"seconds": wall, "cpu_seconds": cpu, "peak_mb": peak_mb()}


async def backlog(directory: Path, dsn: str, frames: list[bytes], batch: int) -> dict[str, float]:
    """Live ticks alone, then live ticks while the writer drains what an outage left behind.

    How late a live batch is tells how long the event loop was busy with something else.
    """
    ingest = Ingest(directory / f"journal-{time.time_ns()}", dsn, listening=True)
    half = len(frames) // 2
    old, live = frames[:half], frames[half:]
    for i in range(0, half, batch):
        ingest.take(old[i : i + batch])
    before = resident_mb()
    waiting = iter(range(0, len(live), LIVE_BATCH))
    figures: dict[str, float] = {}
    late: list[float] = []

    async def feed_until(enough: asyncio.Event) -> None:
        due = time.perf_counter()
        while not enough.is_set():
            due += LIVE_BATCH / LIVE_TICKS_A_SECOND
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            late.append(max(0.0, time.perf_counter() - due))
            first = next(waiting)
            ingest.take(live[first : first + LIVE_BATCH])

    async with ingest.running():
        enough = asyncio.Event()
        feeding = asyncio.create_task(feed_until(enough))
        began = time.perf_counter()
        while ingest.writer.lag_records > LIVE_TICKS_A_SECOND:
            await asyncio.sleep(PAUSE_S * 10)
        wall = time.perf_counter() - began
        figures["drained_a_second"] = half / wall
        figures |= {f"draining_{name}": value for name, value in summary(late).items()}
        figures["growth_mb"] = resident_mb() - before
        late.clear()
        await asyncio.sleep(wall)
        enough.set()
        await feeding
        figures |= {f"calm_{name}": value for name, value in summary(late).items()}
        assert await ingest.writer.drain(60)
    return figures


async def stretches(directory: Path, dsn: str, frames: list[bytes], batch: int) -> dict[str, float]:
    """How long the draining of a backlog keeps everything else waiting at a time: CPU milliseconds of
    the event loop's thread between two turns of a task that always wants one."""
    ingest = Ingest(directory / f"journal-{time.time_ns()}", dsn, listening=True)
    for i in range(0, len(frames), batch):
        ingest.take(frames[i : i + batch])
    longest = 0.0

    async def want_turns() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - before)

    async with ingest.running():
        wanting = asyncio.create_task(want_turns())
        assert await ingest.writer.drain(600)
        wanting.cancel()
    return {"longest_ms": longest * 1000}


def summary(late: list[float]) -> dict[str, float]:
    """Milliseconds."""
    ordered = sorted(late)
    return {
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[len(ordered) * 99 // 100] * 1000,
        "max_ms": ordered[-1] * 1000,
    }


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)
