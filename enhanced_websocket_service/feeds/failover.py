"""One line of quotes from two sources: the stream, and REST while the stream fails.

Every symbol has one owner at a time, and only the owner's quotes pass:

- the stream owns it at first; any failure of the stream (refused, not entitled, disconnected, silent)
  hands it to REST at once, while the stream keeps trying in the background;
- the stream has it back with the first usable price of a live connection, except a re-sent last price
  (the first one after a subscription, equal to the last one the stream brought): that proves nothing
  and is withheld, so that a mute socket cannot take the symbol back by reconnecting;
- a REST answer that arrives after the hand-back is dropped: no price from both at once. Stream quotes
  are never dropped otherwise: what was read before a connection broke still passes;
- while another process streams with our key, nobody polls: the credits are that process's, too;
- whatever the stream did not bring is reported as a gap when it delivers again, or at the end.
"""

import asyncio
import math
from collections.abc import Callable
from time import monotonic
from typing import Literal

import structlog

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.telemetry import Metrics, Rarely

from .base import BackgroundFeed, FeedGap, FeedStatus
from .liveness import worst
from .polling import PollingFeed
from .stream import StreamEvent, StreamFeed

log = structlog.get_logger(__name__)

FeedMode = Literal["auto", "websocket", "rest"]

_NEVER_OURS = frozenset({"refused", "unentitled"})
"""Failures that are no gap for a symbol that was never streamed: REST is its feed then."""


class FailoverFeed(BackgroundFeed):
    """The feed of the service. ``mode`` is ``FEED_MODE``; the part it excludes may be ``None``.

    :param on_gap: told of every stretch of time the stream did not cover; must not block.
    """

    def __init__(
        self,
        stream: StreamFeed | None,
        polling: PollingFeed | None,
        metrics: Metrics,
        mode: FeedMode = "auto",
        *,
        on_gap: Callable[[FeedGap], None] | None = None,
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
        self._last_streamed_at: dict[str, float] = {}
        self._outages: dict[str, FeedGap] = {}  # end: not known yet
        self._on_gap = on_gap
        self._began_at: float | None = None
        self._rarely = Rarely()  # real time: the log is read by people
        self.switches = 0
        if self._stream is not None:
            self._stream.on_event = self._on_stream_event
        if self._polling is not None:
            if self._stream is None:
                self._on_rest = set(self._polling.symbols)
            else:
                self._polling.on_answer = self._stream.liveness.polled
            self._share_out()

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
        streamed = [one for one in stream.verdicts if one.symbol not in self._on_rest]
        # The worst of what serves the symbols now: a dead stream that REST replaces is no outage.
        verdicts = [one.verdict for one in streamed]
        if self._on_rest:
            verdicts.append(polling.verdict)
        verdict = worst(verdicts)
        detail = next((one.evidence for one in streamed if one.verdict == verdict), None)
        if detail is None:
            detail = f"by REST, the fallback: {polling.detail}; stream: {stream.last_error}"
        moments = [at for at in (stream.last_quote_at, polling.last_quote_at) if at is not None]
        return FeedStatus(
            source=stream.source if streamed else polling.source,
            websocket_connected=stream.websocket_connected,
            verdict=verdict,
            detail=detail,
            reconnects=stream.reconnects,
            last_error=(stream if streamed else polling).last_error or stream.last_error,
            last_quote_at=max(moments, default=None),
            subscribed=stream.subscribed,
            refused=stream.refused,
            verdicts=stream.verdicts,
            sources={**stream.sources, **dict.fromkeys(self._on_rest, polling.source)},
        )

    async def _run(self) -> None:
        if self._stream is not None:
            self._began_at = self._stream.now()
        try:
            async with asyncio.TaskGroup() as group:
                if self._stream is not None:
                    group.create_task(self._pump_stream(self._stream), name="feed-from-stream")
                if self._polling is not None:
                    group.create_task(self._pump_polling(self._polling), name="feed-from-polling")
        finally:
            for symbol in list(self._outages):
                self._close_gap(symbol, None)

    async def _pump_stream(self, stream: StreamFeed) -> None:
        try:
            async for batch in stream:
                await self._deliver(self._from_stream(batch, stream.connected))
        finally:
            connected = stream.connected
            await stream.aclose()
            # A batch that was read in the very turn of the loop in which we were cancelled.
            self._keep(self._from_stream(stream.take_rest(), connected))

    async def _pump_polling(self, polling: PollingFeed) -> None:
        try:
            async for batch in polling:
                await self._deliver(self._from_polling(batch))
        finally:
            await polling.aclose()
            self._keep(self._from_polling(polling.take_rest()))

    def _from_polling(self, batch: list[Quote]) -> list[Quote]:
        return [quote for quote in batch if quote.symbol in self._on_rest]

    def _from_stream(self, batch: list[Quote], connected: bool) -> list[Quote]:
        passed: list[Quote] = []
        for quote in batch:
            symbol = quote.symbol
            if quote.raw or not math.isfinite(quote.price):
                passed.append(quote)
                continue
            seen = (quote.timestamp, quote.price, quote.bid, quote.ask)
            if connected and (symbol in self._on_rest or symbol in self._outages):
                if quote.first_after_subscribe and self._last_streamed.get(symbol) == seen:
                    self._metrics.resent.inc()
                    continue
                self._to_stream(symbol, quote.received_at)
            self._last_streamed[symbol] = seen
            self._last_streamed_at[symbol] = quote.received_at
            passed.append(quote)
        return passed

    def _on_stream_event(self, event: StreamEvent) -> None:
        for symbol in event.symbols:
            self._open_gap(symbol, event)
        new = set(event.symbols) - self._on_rest
        if self._polling is None or not new or event.kind == "leased":
            return
        self._on_rest |= new
        self._share_out()
        self.switches += 1
        if not self._rarely.due(monotonic(), event.kind):
            return
        told = "Prices come by REST, the fallback, until the stream delivers"
        if event.kind == "unentitled":
            named = ", ".join(sorted(new))
            told = (
                f"The plan of this key does not stream {named}: prices come by REST, the fallback"
            )
        log.warning(told, symbols=sorted(new), kind=event.kind, why=event.message)

    def _to_stream(self, symbol: str, at: float) -> None:
        if symbol in self._on_rest:
            self._on_rest.discard(symbol)
            self._share_out()
            self.switches += 1
        if self._rarely.due(monotonic(), "delivers"):
            log.info("The stream delivers: the fallback ends", symbol=symbol)
        self._close_gap(symbol, at)

    def _share_out(self) -> None:
        if self._polling is not None:
            self._polling.set_symbols(self._on_rest)
            if self._stream is not None:
                self._stream.liveness.covered = frozenset(self._on_rest)

    def _open_gap(self, symbol: str, event: StreamEvent) -> None:
        streamed_at = self._last_streamed_at.get(symbol)
        if symbol in self._outages or (streamed_at is None and event.kind in _NEVER_OURS):
            return
        start = self._began_at if streamed_at is None else streamed_at
        start = event.at if start is None else start
        self._outages[symbol] = FeedGap(symbol, start, math.inf, event.kind)
        self._metrics.feed_gaps.labels(symbol, event.kind).inc()

    def _close_gap(self, symbol: str, at: float | None) -> None:
        """The stream delivers again at ``at`` or, ``None``, will not any more in this session."""
        gap = self._outages.pop(symbol, None)
        if gap is None or self._stream is None or self._on_gap is None:
            return
        end = self._stream.now() if at is None else at
        self._on_gap(FeedGap(symbol, gap.start, end, gap.cause))
