"""A consumer of the service: one WebSocket client that keeps everything it was told."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


@dataclass
class Consumer:
    """What one client got, in the order in which it came."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    close_code: int | None = None

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.messages if one["type"] == kind]

    def verdicts(self, start: float, end: float) -> list[tuple[float, str]]:
        """The changes of the feed's verdict it was told in ``[start, end]``."""
        told = []
        for one in self.of("status"):
            at = datetime.fromisoformat(one["timestamp"]).timestamp()
            if start <= at <= end:
                told.append((at, str(one["feed_verdict"])))
        return told

    def line(self) -> tuple[list[tuple[int, int]], list[str]]:
        """The (epoch, offset) of each tick, and what is wrong with their order."""
        offsets: list[tuple[int, int]] = []
        wrong: list[str] = []
        for one in self.of("market_data"):
            if one.get("snapshot"):
                continue
            at = (int(one["epoch"]), int(one["offset"]))
            if offsets and at <= offsets[-1]:
                wrong.append(f"offset {at} after {offsets[-1]}")
            offsets.append(at)
        return offsets, wrong

    def skipped(self) -> set[tuple[int, int]]:
        """The (epoch, offset) it was told it would not get."""
        return {
            (int(one["epoch"]), offset)
            for one in self.of("skipped")
            for offset in range(int(one["from"]), int(one["to"]) + 1)
        }


@contextlib.asynccontextmanager
async def consuming(url: str) -> AsyncIterator[Consumer]:
    """Read ``url`` in the background until the end of the block."""
    consumer = Consumer()

    async def read() -> None:
        async with connect(url, max_size=None, max_queue=None) as socket:
            try:
                async for text in socket:
                    consumer.messages.append(json.loads(text))
            except ConnectionClosed:
                pass  # the code says it all
            consumer.close_code = socket.close_code

    task = asyncio.create_task(read(), name="consumer")
    try:
        yield consumer
    finally:
        done, _ = await asyncio.wait({task}, timeout=5.0)
        if not done:
            task.cancel()
            await asyncio.wait({task})
