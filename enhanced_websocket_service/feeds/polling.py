"""The vendor's REST price as a feed, one credit at a time at the planner's pace.

``/price`` has no stamp, so a quote is stamped with its receipt in whole seconds. Only a changed price
becomes a quote: an unchanged one is knowledge (the feed is fresh), not a tick.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Sequence

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import VendorError
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote, quantise
from enhanced_websocket_service.twelvedata.backoff import Backoff
from enhanced_websocket_service.twelvedata.planner import POLL
from enhanced_websocket_service.twelvedata.rest import RestClient

from .base import BackgroundFeed, FeedStatus, Verdict

log = structlog.get_logger(__name__)

IDLE_CHECK_S = 1.0
NO_CREDITS_CHECK_S = 60.0
STALE_S = 60.0
"""Without a successful poll for this long (or three polls, if that is longer) the feed is dead."""


class PollingFeed(BackgroundFeed):
    """Quotes of the active symbols (at first: all), polled in turn.

    :param pace: instant -> seconds to leave between two credits; infinite: none may be spent.
    :param is_open: nothing is polled while this is false; credits are for the session.
    """

    def __init__(
        self,
        rest: RestClient,
        symbols: Sequence[str],
        clock: Clock,
        provider: Provider,
        pace: Callable[[float], float],
        *,
        is_open: Callable[[float], bool] = lambda _: True,
        backoff: Backoff | None = None,
    ) -> None:
        super().__init__("feed-polling")
        self.symbols = tuple(symbols)
        self._active = self.symbols
        self._wanted = asyncio.Event()
        self._rest = rest
        self._clock = clock
        self._source = provider.rest
        self._pace = pace
        self._is_open = is_open
        self._backoff = backoff or Backoff(base=2.0, cap=60.0)
        self.on_answer: Callable[[str, float, float], None] | None = None
        """Told every price that was answered, changed or not, and when it was asked."""
        self._turn = 0
        self._known: dict[str, float] = {}  # the last price by symbol, whoever brought it
        self._last_error: str | None = None
        self._last_success: float | None = None
        self._began = 0.0

    def set_symbols(self, symbols: Collection[str]) -> None:
        """Poll these from now on; none: rest. Answers still under way for others are dropped."""
        self._active = tuple(symbol for symbol in self.symbols if symbol in symbols)
        if self._active:
            self._wanted.set()

    def note_price(self, symbol: str, price: float) -> None:
        """Another feed delivered ``price``: the same price polled next is no change."""
        self._known[symbol] = quantise(price)

    def status(self) -> FeedStatus:
        verdict, detail = self._verdict()
        return FeedStatus(
            source=self._source,
            websocket_connected=False,
            verdict=verdict,
            detail=detail,
            reconnects=0,
            last_error=self._last_error,
            last_quote_at=self._last_success,
            subscribed=self._active,
            refused=(),
        )

    def _verdict(self) -> tuple[Verdict, str]:
        now = self._clock.now()
        if not self.running or not self._active:
            return "closed", "not polling"
        if not self._is_open(now):
            return "closed", "the market is closed"
        pace = self._pace(now)
        if not math.isfinite(pace):
            return "dead", "no API credits are left for polling today"
        since = now - max(self._last_success or 0.0, self._began)
        limit = self._clock.span(max(STALE_S, 3 * pace * len(self._active)), at_least_real=3.0)
        detail = f"one poll per {pace:.1f} s; {max(0.0, since):.0f} s since the last answer"
        if since > limit:
            return "dead", detail
        answering = self._last_success is not None and self._last_error is None
        return ("live" if answering else "suspect"), detail

    async def _run(self) -> None:
        clock = self._clock
        self._began = clock.now()
        while True:
            await self._until_wanted()
            began = clock.now()
            pace = self._pace(began)
            if not math.isfinite(pace):
                await clock.sleep(NO_CREDITS_CHECK_S)
                continue
            self._turn += 1
            symbol = self._active[self._turn % len(self._active)]
            try:
                asked_at = clock.now()
                price = await self._rest.price(symbol, POLL, retries=0)
            except VendorError as error:
                pace = max(pace, self._backoff.next())
                if str(error) != self._last_error:
                    log.warning("Price poll failed", symbol=symbol, error=str(error))
                self._last_error = str(error)
            else:
                if self.on_answer is not None:
                    self.on_answer(symbol, price, asked_at)
                await self._on_price(symbol, price)
            await clock.sleep_until(began + pace)

    async def _until_wanted(self) -> None:
        while not self._active or not self._is_open(self._clock.now()):
            if self._active:
                await self._clock.sleep(self._clock.span(IDLE_CHECK_S, at_least_real=0.05))
            else:
                self._wanted.clear()
                await self._wanted.wait()
                self._began = self._clock.now()

    async def _on_price(self, symbol: str, price: float) -> None:
        received_at = self._clock.now()
        self._last_success = received_at
        self._last_error = None
        self._backoff.reset()
        if symbol not in self._active or self._known.get(symbol) == price:
            return
        self._known[symbol] = price
        await self._deliver(
            [
                Quote(
                    symbol=symbol,
                    timestamp=int(received_at),
                    price=price,
                    source=self._source,
                    received_at=received_at,
                    stamped=False,
                )
            ]
        )
