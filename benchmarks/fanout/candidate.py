"""The service as a process of its own: its application, hub, journal and pipeline, wired as it wires them.

Started by the benchmark. Prints ``ready PORT``; then takes one command a line: ``feed`` begins to hand over
ticks, ``idle`` ends that, ``memory`` and ``counts`` print a line of JSON. The ticks are events on the bus,
still to be composed, encoded and sent; or, with ``--frames``, bytes of the vendor, to be parsed,
validated, journaled, fsynced and aggregated before that.
"""

import argparse
import asyncio
import gc
import json
import mmap
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import uvloop

from benchmarks.ingest.market import OPEN
from benchmarks.ingest.service import PROVIDER, parse
from enhanced_websocket_service.bus.memory import MemoryBus
from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.service.pipeline import Pipeline
from enhanced_websocket_service.serving.admission import Admission
from enhanced_websocket_service.serving.api import create_app
from enhanced_websocket_service.serving.hub import Hub
from enhanced_websocket_service.serving.limits import Limits
from enhanced_websocket_service.serving.server import ApiServer
from enhanced_websocket_service.serving.views import ServiceView
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.telemetry import Metrics, configure_logging

T = TypeVar("T")
SYMBOLS = ("USDCOP", "EURUSD", "USDJPY", "GBPUSD", "USDCHF", "USDCAD", "AUDUSD", "NZDUSD")
SLOTS = 1 << 20
"""Of the file of stamps, as in floor.c and load.c."""
TICKS_A_SECOND = 50
"""Of the stamps. What is measured is not bound to it."""
PING_INTERVAL_S = 20.0


class _View:
    """What the WebSocket endpoints ask of the service's view."""

    def __init__(self, symbols: tuple[str, ...]) -> None:
        self.symbols = symbols

    def now(self) -> float:
        return time.time()

    def service_state(self) -> str:
        return "active"


class Candidate:
    def __init__(self, options: argparse.Namespace) -> None:
        self.symbols = SYMBOLS[: options.symbols]
        self.rate, self.burst, self.apart = options.rate, options.burst, options.apart
        self._stamps: memoryview | None = None
        if options.stamps is not None:
            with options.stamps.open("r+b") as file:
                self._stamps = memoryview(mmap.mmap(file.fileno(), SLOTS * 8)).cast("q")
        metrics = Metrics()
        self.journal = Journal.open(options.directory, metrics=metrics)
        bus = self.bus = MemoryBus()
        unsent = options.unsent_kib * 1024
        limits = Limits(high_water=unsent, low_water=unsent // 8, hard=unsent * 4)
        self.hub = Hub(self.symbols, SystemClock(), lambda: "active", metrics, limits)
        bus.subscribe(self.hub.on_events)
        self.frames, self.epoch = options.frames, time.time_ns() // 1_000_000
        calendar = TradingCalendar()
        self.pipeline = Pipeline(
            dict.fromkeys(self.symbols, calendar),
            journal=self.journal,
            publish=bus.publish,
            metrics=metrics,
            epoch=self.epoch,
        )
        admission = Admission(limits, metrics)
        view = cast(ServiceView, _View(self.symbols))
        app = create_app(view, self.hub, metrics.registry, admission=admission)
        self.api = ApiServer(
            app,
            "127.0.0.1",
            0,
            admission=admission,
            ping_interval_s=PING_INTERVAL_S if options.pings else None,
        )
        self._number = self._handed = 0
        self._chance = random.Random(0)
        self._prices = dict.fromkeys(self.symbols, 4100.0)

    def _next(self) -> tuple[str, int, int, float]:
        """Symbol, offset, stamp and price of the next tick."""
        turn, which = divmod(self._number, len(self.symbols))
        symbol = self.symbols[which]
        price = self._prices[symbol] + self._chance.gauss(0, 0.05)
        price = self._prices[symbol] = min(4300.0, max(3900.0, price))
        stamp = OPEN + self._number // TICKS_A_SECOND % 14_000
        self._number += 1
        return symbol, turn + 1, stamp, round(price, 5)

    def _frame(self) -> bytes:
        symbol, _, stamp, price = self._next()
        return (
            f'{{"event":"price","symbol":"{symbol[:3]}/{symbol[3:]}","currency_base":"US Dollar",'
            f'"currency_quote":"Colombian Peso","type":"Physical Currency","timestamp":{stamp},'
            f'"price":{price},"bid":{price - 0.2:.5f},"ask":{price + 0.2:.5f}}}'
        ).encode()

    def _tick(self) -> Tick:
        symbol, offset, stamp, price = self._next()
        return Tick(
            symbol=symbol,
            epoch=self.epoch,
            offset=offset,
            timestamp=stamp,
            price=price,
            bid=round(price - 0.2, 6),
            ask=round(price + 0.2, 6),
            volume=0,
            source=PROVIDER.websocket,
            received_at=time.time(),
            trading_session=True,
        )

    def _stamp(self, number: int) -> None:
        """Keep the instant at which the next ``number`` ticks are handed over."""
        if self._stamps is None:
            return
        slots = [offset % SLOTS for offset in range(self._handed + 1, self._handed + 1 + number)]
        self._handed += number
        stamps = self._stamps
        for slot in slots:
            stamps[slot] = 0  # the page is there: the instant is not to pay for it
        begun = time.monotonic_ns()
        for slot in slots:
            stamps[slot] = begun

    def _take_frames(self, frames: list[bytes]) -> None:
        """As the feed's reader and the lifecycle do it, from the bytes on."""
        self._stamp(len(frames))
        quotes = parse(frames)
        self.pipeline.on_quotes(quotes, quotes[-1].timestamp + 0.5)

    def _take_ticks(self, ticks: list[Tick]) -> None:
        """As the pipeline does it at its end."""
        self._stamp(len(ticks))
        self.bus.publish(ticks)

    async def feed(self) -> None:
        if self.frames:
            await self._feed(self._frame, self._take_frames)
        else:
            await self._feed(self._tick, self._take_ticks)

    async def _feed(self, make: Callable[[], T], take: Callable[[list[T]], None]) -> None:
        due = time.monotonic()
        while True:
            made = [make() for _ in range(self.burst)]
            due += 1 / self.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if self.apart:
                for one in made:
                    take([one])
                    await asyncio.sleep(0)
            else:
                take(made)

    def memory(self) -> dict[str, Any]:
        gc.collect()
        rollup = dict(
            line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
        )
        kib = {key.lower(): int(rollup[key].split()[0]) for key in ("Pss", "Rss")}
        return {**kib, "clients": self.hub.counts().connected}

    def counts(self) -> dict[str, Any]:
        """What the hub knows of clients, and the last offset it published of the first symbol."""
        head = self.hub.positions()[self.symbols[0]].offset
        return {**self.hub.counts().model_dump(), "head": head}


async def commands() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    return reader


async def run(options: argparse.Namespace) -> None:
    candidate = Candidate(options)
    gc.collect()
    gc.freeze()  # as the service does it
    journal = asyncio.create_task(candidate.journal.run(), name="journal")
    print("ready", await candidate.api.start(), flush=True)
    feeding: asyncio.Task[None] | None = None
    reader = await commands()
    while line := (await reader.readline()).strip():
        if line == b"feed":
            feeding = asyncio.create_task(candidate.feed(), name="feed")
            feeding.add_done_callback(lambda task: task.cancelled() or task.result())
        elif line == b"idle" and feeding is not None:
            feeding.cancel()
        elif line == b"memory":
            print(json.dumps(candidate.memory()), flush=True)
        elif line == b"counts":
            print(json.dumps(candidate.counts()), flush=True)
    journal.cancel()
    os._exit(0)  # thousands of goodbyes are not what is measured


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=50.0, help="turns of the loop a second")
    parser.add_argument("--burst", type=int, default=1, help="frames in each")
    parser.add_argument("--apart", action="store_true", help="each frame in a turn of its own")
    parser.add_argument("--frames", action="store_true", help="from the bytes of the vendor on")
    parser.add_argument("--symbols", type=int, default=1)
    parser.add_argument("--pings", action="store_true", help="as the service sends them")
    parser.add_argument("--unsent-kib", type=int, default=256, help="as CLIENT_BUFFER_KB")
    parser.add_argument("--stamps", type=Path)
    parser.add_argument("--directory", type=Path, required=True)
    configure_logging(level="WARNING")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
