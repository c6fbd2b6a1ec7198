"""Each stage by itself, over the same ticks: microseconds of CPU a tick."""

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ingest.market import SYMBOL
from benchmarks.ingest.service import Listener, parse
from enhanced_websocket_service.bus.memory import MemoryBus
from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.market.aggregation import BarAggregator
from enhanced_websocket_service.market.calendar import BOGOTA, TradingCalendar
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.market.validation import QuoteValidator
from enhanced_websocket_service.service.pipeline import Pipeline
from enhanced_websocket_service.serving.hub import Hub
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import JournalReader
from enhanced_websocket_service.storage.record_store import Batch
from enhanced_websocket_service.storage.writer import SLICE_RECORDS
from enhanced_websocket_service.telemetry import Metrics

REPEATS = 5


class _Kept:
    """A journal that only keeps what it is given."""

    def __init__(self) -> None:
        self.batches: list[Any] = []

    def append(self, records: Sequence[Any]) -> None:
        self.batches.append(records)


def stages(directory: Path, frames: list[bytes], batch: int) -> dict[str, float]:
    """The best of several repeats."""
    found: dict[str, float] = {}

    def measure(name: str, work: Callable[[], Any]) -> Any:
        best, result = float("inf"), None
        for _ in range(REPEATS):
            gc.collect()
            began = time.process_time()
            result = work()
            best = min(best, time.process_time() - began)
        found[name] = best / len(frames) * 1e6
        return result

    cut = [frames[i : i + batch] for i in range(0, len(frames), batch)]
    quotes = measure("parse", lambda: [parse(one) for one in cut])

    def validate() -> None:
        validator = QuoteValidator()
        for one in quotes:
            for quote in one:
                validator.is_resent(quote)
                validator.check(quote)

    def pipeline() -> list[list[Tick]]:
        kept = _Kept()
        made = Pipeline(
            {SYMBOL: TradingCalendar()},
            journal=kept,
            publish=lambda _: None,
            metrics=Metrics(),
            epoch=1,
        )
        for one in quotes:
            made.on_quotes(one, one[-1].timestamp + 0.5)
        return kept.batches

    measure("validate", validate)
    ticks = measure("pipeline", pipeline)

    def aggregate() -> None:
        aggregator = BarAggregator(SYMBOL)
        for one in ticks:
            aggregator.add_all(one)

    def journal() -> Path:
        folder = directory / f"stage-{time.time_ns()}"
        opened = Journal.open(folder, metrics=Metrics())
        for one in ticks:
            opened.append(one)
        opened.close()
        return folder

    def publish(*listeners: Listener) -> None:
        bus = MemoryBus()
        hub = Hub([SYMBOL], SystemClock(), lambda: "active", Metrics())
        bus.subscribe(hub.on_events)
        for one in listeners:
            hub.connect(one, [SYMBOL], "every")
        for one in ticks:
            bus.publish(one)

    measure("aggregate", aggregate)
    written = measure("journal", journal)
    measure("publish", publish)
    measure("to a client", lambda: publish(Listener()))

    def read() -> list[Any]:
        found = []
        with JournalReader(written) as reader:
            while records := reader.read(SLICE_RECORDS):
                found.append(records)
        return found

    def encode() -> None:
        for records in slices:
            Batch(BOGOTA).add(records)

    slices = measure("read back", read)
    measure("encode rows", encode)
    return found


PARTS = {
    "validate": "one by one; most quotes go the short way in pipeline",
    "aggregate": "part of pipeline",
    "to a client": "publish, when somebody listens",
    "read back": "only of a backlog",
}
"""Measured by themselves too, but not part of the path of a usual tick."""
