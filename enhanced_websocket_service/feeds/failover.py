"""One line of quotes from two sources: the stream, and REST while the stream fails.

Every symbol has one owner at a time, and only the owner's quotes pass:

- the stream owns it at first; any failure of the stream (refused, not entitled, disconnected, silent)
  hands it to REST at once, while the stream keeps trying in the background;
- the stream has it back with the first usable price of a live connection, except a re-sent last price
  (the first one after a subscription, equal to the last one the stream brought): that proves nothing
  and is withheld, so that a mute socket cannot take the symbol back by reconnecting;
- a REST answer that arrives after the hand-back is dropped: no price from both at once. Stream quotes
  are never dropped otherwise: what was read before a connection broke still passes.
"""

import asyncio
import math
from contextlib import aclosing
from typing import Literal

import structlog

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.telemetry import Metrics

from .base import BackgroundFeed, FeedStatus
from .polling import PollingFeed
from .stream import StreamEvent, StreamFeed

log = structlog.get_logger(__name__)

FeedMode = Literal["auto", "websocket", "rest"]


class FailoverFeed(BackgroundFeed):
    """The feed of the service. ``mode`` is ``FEED_MODE``; the part it excludes may be ``None``."""

    def __init__(
        self,
        stream: StreamFeed | None,
        polling: PollingFeed | None,
        metrics: Metrics,
        mode: FeedMode = "auto",
    ) -> None:
        super().__init__("feed")
        self._stream = None if mode == "rest" else stream
        self._polling = None if mode == "websocket" else polling
        if (mode != "rest" and self._stream is None) or (
            mode != "websocket" and self._polling is None
        ):
            raise ConfigurationError(f"FEED_MODE={mode} lacks the feed it names.")
        self._metrics = metrics
        self._on_rest: set[str] = set()
        self._last_streamed: dict[str, tuple[int, float, float | None, float | None]] = {}
        self.switches = 0
        if self._stream is not None:
            self._stream.on_event = self._on_stream_event
        if self._polling is not None:
            if self._stream is None:
                self._on_rest = set(self._polling.symbols)
            self._polling.set_symbols(self._on_rest)

    @property
    def on_rest(self) -> frozenset[str]:
        """The symbols whose quotes come by REST now."""
        return frozenset(self._on_rest)

    def status(self) -> FeedStatus:
        stream = self._stream.status() if self._stream else None
        polling = self._polling.status() if self._polling else None
        if stream is None or polling is None:
            only = stream or polling
            assert only is not None
            return only
        streaming = len(self._on_rest) < len(self._stream.symbols if self._stream else ())
        owner = stream if streaming else polling
        moments = [at for at in (stream.last_quote_at, polling.last_quote_at) if at is not None]
        return FeedStatus(
            source=owner.source,
            websocket_connected=stream.websocket_connected,
            verdict=owner.verdict,
            detail=owner.detail if streaming else f"by REST; stream: {stream.last_error}",
            reconnects=stream.reconnects,
            last_error=owner.last_error or stream.last_error,
            last_quote_at=max(moments, default=None),
            subscribed=stream.subscribed,
            refused=stream.refused,
        )

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            if self._stream is not None:
                group.create_task(self._pump_stream(self._stream), name="feed-from-stream")
            if self._polling is not None:
                group.create_task(self._pump_polling(self._polling), name="feed-from-polling")

    async def _pump_stream(self, stream: StreamFeed) -> None:
        async with aclosing(stream) as batches:
            async for batch in batches:
                await self._deliver(self._from_stream(batch, stream.connected))

    async def _pump_polling(self, polling: PollingFeed) -> None:
        async with aclosing(polling) as batches:
            async for batch in batches:
                await self._deliver([quote for quote in batch if quote.symbol in self._on_rest])

    def _from_stream(self, batch: list[Quote], connected: bool) -> list[Quote]:
        passed: list[Quote] = []
        for quote in batch:
            symbol = quote.symbol
            if quote.raw or not math.isfinite(quote.price):
                passed.append(quote)
                continue
            seen = (quote.timestamp, quote.price, quote.bid, quote.ask)
            if symbol in self._on_rest and connected:
                if quote.first_after_subscribe and self._last_streamed.get(symbol) == seen:
                    self._metrics.resent.inc()
                    continue
                self._to_stream(symbol)
            self._last_streamed[symbol] = seen
            if self._polling is not None:
                self._polling.note_price(symbol, quote.price)
            passed.append(quote)
        return passed

    def _on_stream_event(self, event: StreamEvent) -> None:
        new = set(event.symbols) - self._on_rest
        if self._polling is None or not new:
            return
        self._on_rest |= new
        self._polling.set_symbols(self._on_rest)
        self.switches += 1
        log.warning(
            "Quotes come by REST until the stream delivers again",
            symbols=sorted(new),
            kind=event.kind,
            why=event.message,
        )

    def _to_stream(self, symbol: str) -> None:
        self._on_rest.discard(symbol)
        if self._polling is not None:
            self._polling.set_symbols(self._on_rest)
        self.switches += 1
        log.info("The stream delivers again", symbol=symbol)
