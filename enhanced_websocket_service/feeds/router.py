"""One line of quotes from two sources: the stream, and REST while the stream fails.

Both sources call the router synchronously, from its own task: one buffer and one wake-up between a socket
and the consumer. Every symbol has one owner at a time, and only the owner's quotes pass:

- the stream owns it at first; any failure of the stream (refused, not entitled, disconnected, silent, late)
  hands it to REST at once, while the stream keeps trying in the background;
- the stream has it back with the first quote that proves it: a new price with a young stamp. Until then its
  quotes are withheld: a stream that repeats an old price, or tells of five minutes ago, takes nothing back;
- a REST answer that arrives after the hand-back is dropped: no price from both at once. Stream quotes
  are never dropped otherwise: what was read before a connection broke still passes;
- while another process streams with our key, nobody polls: the credits are that process's, too;
- whatever the stream did not bring is a gap: told when it begins, and again when it has ended. A symbol's
  collection begins with one, until its first granted subscription or, where REST is its feed, the first
  REST price.
"""

import asyncio
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from time import monotonic
from typing import Literal

import structlog

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.telemetry import Metrics, Rarely

from .base import BackgroundFeed, FeedGap, FeedStatus, Verdict
from .liveness_monitor import worst
from .polling import PollingFeed
from .stream import StreamEvent, StreamFeed

log = structlog.get_logger(__name__)

FeedMode = Literal["auto", "websocket", "rest"]

CONNECTING = "connecting"
"""The cause of the gap with which every collection begins."""
FIRST_KEPT_S = 60.0
"""For so long the first price after a subscription may still pass, before the one that proves the stream."""
SET_BACK_S = 1.0
"""A clock that goes back by more was set."""
_NEVER_OURS = frozenset({"refused", "unentitled"})
"""Failures that are no gap for a symbol that was never streamed: REST is its feed then."""


@dataclass(slots=True)
class _Outage:
    """A gap that has not ended."""

    start: float
    began: float  # the same in the time of the detectors, which is never set
    cause: str
    to_rest: bool = False  # REST is the symbol's feed now: its first price ends it


class FeedRouter(BackgroundFeed):
    """The feed of the service. ``mode`` is ``FEED_MODE``; the part it excludes may be ``None``.

    :param on_gap: told of every stretch of time the stream did not cover, once it is over; must not block.
    :param on_outage: told the symbol and the start of such a stretch as soon as it is known; must not block.
    """

    def __init__(
        self,
        stream: StreamFeed | None,
        polling: PollingFeed | None,
        metrics: Metrics,
        mode: FeedMode = "auto",
        *,
        on_gap: Callable[[FeedGap], None] = lambda _: None,
        on_outage: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        super().__init__("feed")
        self._stream = None if mode == "rest" else stream
        self._polling = None if mode == "websocket" else polling
        if (mode != "rest" and self._stream is None) or (
            mode != "websocket" and self._polling is None
        ):
            raise ConfigurationError(f"FEED_MODE={mode} lacks the feed it names.")
        self._metrics = metrics
        self._on_gap = on_gap
        self._on_outage = on_outage
        self._on_rest: set[str] = set()
        self._condemned: dict[str, str] = {}  # of those, the ones whose stream failed, and why
        self._last_streamed: dict[str, tuple[int, float, float | None, float | None]] = {}
        self._covered_until: dict[str, float] = {}  # by the stream, as far as is known
        self._outages: dict[str, _Outage] = {}
        self._first: dict[str, Quote] = {}  # withheld, and the first after a subscription
        self._rarely = Rarely()  # real time: the log is read by people
        self.switches = 0
        if self._stream is None and self._polling is not None:
            self._on_rest = set(self._polling.symbols)
        self._share_out()

    @property
    def on_rest(self) -> frozenset[str]:
        """The symbols whose quotes come by REST now."""
        return frozenset(self._on_rest)

    def set_symbols(self, symbols: Collection[str]) -> None:
        """Collect exactly these from now on.

        One that is added is an open gap until its first granted subscription or REST price.
        """
        for symbol in set(self._first) - set(symbols):
            del self._first[symbol]
        sources = [one for one in (self._stream, self._polling) if one is not None]
        before = set(sources[0].symbols)
        for source in sources:
            source.collect(symbols)
        for symbol in before - set(symbols):
            self._on_rest.discard(symbol)
            self._condemned.pop(symbol, None)
            self._last_streamed.pop(symbol, None)
            self._covered_until.pop(symbol, None)
            self._close_gap(symbol)
        added = set(symbols) - before
        if self._stream is None:
            self._on_rest |= added
        elif self.running:
            for symbol in added:
                self._begin_gap(symbol, self._stream.now(), CONNECTING)
            self._stream.tell_failure(added)
        self._share_out()

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
        by_rest = f"by REST, the fallback: {polling.detail}"
        if self._on_rest:
            verdict, fault = self._of_rest(polling.verdict)
            verdicts.append(verdict)
            by_rest += f"; {fault}" if fault else ""
        verdict = worst(verdicts)
        detail = next((one.evidence for one in streamed if one.verdict == verdict), None)
        if detail is None:
            detail = f"{by_rest}; stream: {stream.last_error}"
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
            condemned=dict(self._condemned),
        )

    # --- what the sources tell ------------------------------------------------------------------

    def on_streamed(self, quote: Quote, *, proves: bool) -> None:
        """The stream brought a quote of a symbol that is collected.

        :param proves: it is a new price with a young stamp.
        """
        if quote.raw or not math.isfinite(quote.price):
            self.put(quote)
            return
        symbol = quote.symbol
        seen = (quote.timestamp, quote.price, quote.bid, quote.ask)
        if symbol in self._on_rest or symbol in self._outages:
            resent = quote.first_after_subscribe and self._last_streamed.get(symbol) == seen
            if resent:
                self._metrics.resent.inc()
                return
            if proves:
                self._to_stream(symbol, quote.received_at)
            elif symbol in self._on_rest:
                self._withhold(quote)
                return
        self._last_streamed[symbol] = seen
        self._covered_until[symbol] = quote.received_at
        self.put(quote)

    def on_granted(self, symbols: Collection[str], at: float) -> None:
        """The vendor streams these to us from now on."""
        for symbol in symbols:
            outage = self._outages.get(symbol)
            if outage is not None and outage.cause == CONNECTING and symbol not in self._on_rest:
                self._close_gap(symbol, at)
            self._covered_until.setdefault(symbol, at)

    def on_failure(self, event: StreamEvent) -> None:
        """Some symbols cannot be had from the stream now."""
        for symbol in event.symbols:
            self._first.pop(symbol, None)
            self._open_gap(symbol, event)
        if self._polling is None or event.kind == "leased":
            return
        if event.kind != "unentitled":
            self._condemned |= dict.fromkeys(event.symbols, event.message)
        new = set(event.symbols) - self._on_rest
        if not new:
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

    def on_polled(self, quote: Quote) -> None:
        """REST brought a changed price."""
        if quote.symbol in self._on_rest:
            self.put(quote)

    def on_answer(self, symbol: str, price: float, asked_at: float) -> None:
        """REST answered a poll, changed or not."""
        if self._stream is not None:
            self._stream.liveness.polled(symbol, price, asked_at)
        outage = self._outages.get(symbol)
        if outage is not None and outage.to_rest and symbol in self._on_rest:
            self._close_gap(symbol, asked_at)

    # --- what follows -------------------------------------------------------------------------

    async def _run(self) -> None:
        stream, polling = self._stream, self._polling
        if stream is not None:
            for symbol in stream.symbols:
                self._begin_gap(symbol, stream.now(), CONNECTING)
        try:
            async with asyncio.TaskGroup() as group:
                if stream is not None:
                    group.create_task(stream.run(self), name="feed-stream")
                if polling is not None:
                    group.create_task(polling.run(self), name="feed-polling")
        finally:
            for symbol in list(self._outages):
                self._close_gap(symbol)

    def _of_rest(self, verdict: Verdict) -> tuple[Verdict, str | None]:
        """What REST is worth where it serves, and why not more."""
        faults = [
            fault
            for symbol in sorted(self._on_rest)
            if self._stream is not None
            and (fault := self._stream.liveness.rest_fault(symbol)) is not None
        ]
        if not faults:
            return verdict, None
        return worst([verdict, "suspect"]), faults[0]

    def _withhold(self, quote: Quote) -> None:
        """The first one after a subscription may be a tick like any other, which its next one tells."""
        self._metrics.withheld.labels(quote.symbol).inc()
        if quote.first_after_subscribe:
            self._first[quote.symbol] = quote

    def _to_stream(self, symbol: str, at: float) -> None:
        if symbol in self._on_rest:
            self._on_rest.discard(symbol)
            self._condemned.pop(symbol, None)
            self._share_out()
            self.switches += 1
            first = self._first.pop(symbol, None)
            if first is not None and at - first.received_at <= FIRST_KEPT_S:
                self.put(first)
        if self._rarely.due(monotonic(), "delivers"):
            log.info("The stream delivers: the fallback ends", symbol=symbol)
        self._close_gap(symbol, at)

    def _share_out(self) -> None:
        if self._polling is not None:
            self._polling.set_symbols(self._on_rest)
            if self._stream is not None:
                self._stream.liveness.cover(frozenset(self._on_rest))

    def _begin_gap(self, symbol: str, start: float, cause: str) -> None:
        assert self._stream is not None
        ago = max(0.0, self._stream.now() - start)
        self._outages[symbol] = _Outage(start, self._stream.liveness.now() - ago, cause)
        self._on_outage(symbol, start)

    def _open_gap(self, symbol: str, event: StreamEvent) -> None:
        streamed = symbol in self._last_streamed
        outage = self._outages.get(symbol)
        ours = streamed or event.kind not in _NEVER_OURS
        if outage is not None:
            if not ours and self._polling is not None:
                self._hand_over(symbol, outage, event.at)
            elif ours and outage.cause == CONNECTING and not outage.to_rest:
                # It failed before it began: only a proof ends it now.
                outage.cause = event.kind
                self._metrics.feed_gaps.labels(symbol, event.kind).inc()
            return
        if symbol in self._on_rest or not ours or self._stream is None:
            return  # REST is its feed: what the stream lacks is no gap
        start = self._covered_until.get(symbol, event.at)
        if event.kind == "silent":  # what came since the last proof is what the verdict is about
            start = min(start, self._stream.liveness.proved_at(symbol))
        self._begin_gap(symbol, start, event.kind)
        self._metrics.feed_gaps.labels(symbol, event.kind).inc()

    def _hand_over(self, symbol: str, outage: _Outage, at: float) -> None:
        """REST is the feed of a symbol that is not streamed to us."""
        outage.to_rest = True
        if self._stream is not None and not self._stream.liveness.is_open(symbol, at):
            self._close_gap(symbol, at)  # the polls begin with the session: nothing is missed

    def _close_gap(self, symbol: str, at: float | None = None) -> None:
        """The symbol is collected again since ``at`` or, ``None``, will not be any more in this session."""
        gap = self._outages.pop(symbol, None)
        if gap is None or self._stream is None:
            return
        now = self._stream.now()
        end = now if at is None else at
        # By the clock as it is now: it may have been set back since.
        began = min(end, now - (self._stream.liveness.now() - gap.began))
        start = began if began < gap.start - SET_BACK_S else min(gap.start, end)
        self._on_gap(FeedGap(symbol, start, end, gap.cause))
