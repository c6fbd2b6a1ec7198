"""The vendor's REST price as a feed, one credit at a time at the planner's pace.

``/price`` has no stamp, so a quote is stamped with its receipt in whole seconds. Only a changed price
becomes a quote: an unchanged one is knowledge (the feed is fresh, the price a witness), not a tick. A poll
does not wait for the answer of the one before, or a slow vendor would set the pace; an answer overtaken by
that of a later question is old and is left out.
"""

import asyncio
import math
from collections.abc import Callable, Collection, Sequence
from time import monotonic
from typing import Protocol

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import VendorError
from enhanced_websocket_service.market.noise import same_but_noise
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.telemetry import Metrics, Rarely
from enhanced_websocket_service.twelvedata.backoff import Backoff
from enhanced_websocket_service.twelvedata.rest import RestClient
from enhanced_websocket_service.twelvedata.spending import POLL

from .base import FeedStatus, Intake, Verdict

log = structlog.get_logger(__name__)

IDLE_CHECK_S = 1.0
NO_CREDITS_CHECK_S = 60.0
ROUNDING_S = 1e-3
"""Who waits as long as told must not be told to wait for the last bit of a float."""
LOOK_S = 5.0
"""How often somebody who waits for the next poll looks whether the clock was set by more than that."""
STALE_S = 60.0
"""Without a successful poll for this long (or three polls, if that is longer) the feed is dead."""


class PollingReceiver(Intake, Protocol):
    """Whom the polls tell what they bring, at once; nothing of it may block."""

    def on_polled(self, quote: Quote) -> None:
        """A changed price."""
        ...

    def on_answer(self, symbol: str, price: float, asked_at: float) -> None:
        """Every price that was answered, changed or not, and when it was asked (unix seconds UTC)."""
        ...


class PollingFeed:
    """Quotes of the active symbols (at first: all), polled in turn.

    As many polls may be under way as there are usable keys. One that fails is repeated with another key,
    unless the one before it failed too: then polling backs off.

    :param pace: instant -> seconds to leave between two credits; infinite: none may be spent.
    :param is_open: nothing is polled while this is false; credits are for the session.
    :param witness: told every price that is answered, changed or not, before it becomes a quote, but for
        those that a later question has overtaken.
    :param last_price: the price of a symbol that was accepted last, whoever brought it: the same price
        again is no change. One that is not accepted yet stays a change.
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
        witness: Callable[[str, float], None] = lambda *_: None,
        last_price: Callable[[str], float | None] = lambda _: None,
        backoff: Backoff | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.symbols = tuple(symbols)
        self._active = self.symbols
        self._wanted = asyncio.Event()
        self._rest = rest
        self._clock = clock
        self._source = provider.rest
        self._pace = pace
        self._is_open = is_open
        self._witness = witness
        self._last_price = last_price
        self._backoff = backoff or Backoff(base=2.0, cap=60.0)
        self._polls = (metrics or Metrics()).polls.labels
        self._asked = 0  # polls so far: each has its number
        self._answered = 0  # the highest number that was answered, or failed
        self._newest: dict[str, int] = {}  # by symbol: answers up to this number are old
        self._receiver: PollingReceiver | None = None  # while it runs
        self._under_way = 0
        self._ended = asyncio.Event()
        # Spans of the clock since it was made: nobody can set them.
        self._resting_until = -math.inf  # after failures
        self._succeeded = -math.inf
        self._began = 0.0
        self._same_failure = 0  # polls up to this number were under way when one failed
        self._last_error: str | None = None
        self._rarely = Rarely()  # real time: the log is read by people
        self._last_success: float | None = None  # unix seconds UTC

    def collect(self, symbols: Collection[str]) -> None:
        """These may be polled from now on; ``set_symbols`` says which of them are."""
        self.symbols = tuple(symbols)

    def set_symbols(self, symbols: Collection[str]) -> None:
        """Poll these from now on; none: rest. Answers still under way for others are dropped."""
        before = self._active
        self._active = tuple(symbol for symbol in self.symbols if symbol in symbols)
        for symbol in set(self._active) - set(before):
            # What was asked before another feed had the symbol is older than what that one brought.
            self._newest[symbol] = self._asked
        if self._active:
            self._wanted.set()

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
        if self._receiver is None or not self._active:
            return "closed", "not polling"
        if not self._is_open(now):
            return "closed", "the market is closed"
        pace = self._pace(now)
        if not math.isfinite(pace):
            return "dead", "no API credits are left for polling today"
        since = self._clock.elapsed() - max(self._succeeded, self._began)
        limit = self._clock.span(max(STALE_S, 3 * pace * len(self._active)), at_least_real=3.0)
        detail = f"one poll per {pace:.1f} s; {since:.0f} s since the last answer"
        if since > limit:
            return "dead", detail
        answering = self._last_success is not None and self._last_error is None
        return ("live" if answering else "suspect"), detail

    async def run(self, receiver: PollingReceiver) -> None:
        """Poll into ``receiver`` until cancelled. One run at a time."""
        self._receiver = receiver
        try:
            await self._poll_for_ever()
        finally:
            self._receiver = None

    async def _poll_for_ever(self) -> None:
        elapsed = self._clock.elapsed
        self._began = due = elapsed()
        async with asyncio.TaskGroup() as polls:
            while True:
                if await self._until_wanted():
                    due = elapsed()
                    continue
                due = await self._until(due)
                if due > elapsed() + ROUNDING_S or not self._may_poll():
                    continue
                pace = self._pace(self._clock.now())
                if not math.isfinite(pace):
                    due = elapsed() + NO_CREDITS_CHECK_S
                    continue
                self._asked += 1
                symbol = self._active[self._asked % len(self._active)]
                self._under_way += 1
                polls.create_task(self._poll(self._asked, symbol), name="feed-polling-call")
                # It shall have its key before the next one is planned: else that would not know of it.
                await asyncio.sleep(0)
                # From when it was due, so that lateness does not add up; after a stall, no burst.
                due = max(due + pace, elapsed())

    async def _until(self, due: float) -> float:
        """Wait until a poll that is due then may be made; a later span when that must be asked anew."""
        clock = self._clock
        due = max(due, self._resting_until)
        set_to = clock.now() - clock.elapsed()
        while (left := due - clock.elapsed()) > ROUNDING_S:
            await clock.sleep(min(left, clock.span(LOOK_S, at_least_real=0.5)))
            if abs(clock.now() - clock.elapsed() - set_to) > clock.span(LOOK_S, at_least_real=0.5):
                # The pace, or that there were no credits, was found by a clock that was wrong.
                due = max(clock.elapsed(), self._resting_until)
                break
        if not self._may_poll() or self._resting_until > clock.elapsed() + ROUNDING_S:
            return max(due, self._resting_until)
        if self._under_way >= max(1, self._rest.keys.usable()):
            self._ended.clear()
            await self._ended.wait()
            return max(due, clock.elapsed(), self._resting_until)
        now = clock.now()
        wait_s = self._rest.keys.free_at(now) - now
        # Never in the queue for a key: the polls there would all be made when it is free again.
        return due if wait_s <= 0 else clock.elapsed() + min(wait_s, NO_CREDITS_CHECK_S)

    def _may_poll(self) -> bool:
        return bool(self._active) and self._is_open(self._clock.now())

    async def _until_wanted(self) -> bool:
        """Whether it had to be waited for."""
        waited = False
        while not self._may_poll():
            waited = True
            if self._active:
                await self._clock.sleep(self._clock.span(IDLE_CHECK_S, at_least_real=0.05))
            else:
                self._wanted.clear()
                await self._wanted.wait()
                self._began = self._clock.elapsed()
        return waited

    async def _poll(self, number: int, symbol: str) -> None:
        again = 1 if self._last_error is None else 0
        asked_at = self._clock.now()
        try:
            price = await self._rest.price(symbol, POLL, retries=again)
        except VendorError as error:
            self._on_failure(number, symbol, error)
        else:
            if (receiver := self._receiver) is not None:
                receiver.on_answer(symbol, price, asked_at)
                self._on_price(number, symbol, price, receiver)
                await receiver.room()
        finally:
            self._under_way -= 1
            self._ended.set()

    def _on_failure(self, number: int, symbol: str, error: VendorError) -> None:
        self._polls("failed").inc()
        if number < self._answered:
            return  # a later one has shown what is the case now
        self._answered = number
        if number > self._same_failure:
            self._same_failure = self._asked
            self._resting_until = self._clock.elapsed() + self._backoff.next()
        if times := self._rarely.due(monotonic()):
            log.warning("Price poll failed", symbol=symbol, error=str(error), times=times)
        self._last_error = str(error)

    def _on_price(self, number: int, symbol: str, price: float, receiver: PollingReceiver) -> None:
        received_at = self._clock.now()
        self._last_success, self._succeeded = received_at, self._clock.elapsed()
        if number > self._answered:
            self._answered = number
            self._last_error = None
            self._backoff.reset()
            self._resting_until = -math.inf
        if number <= self._newest.get(symbol, 0):
            self._polls("superseded").inc()
            return
        self._newest[symbol] = number
        self._witness(symbol, price)
        if symbol not in self._active:
            self._polls("superseded").inc()
            return
        known = self._last_price(symbol)
        if known is not None and same_but_noise(known, price):
            self._polls("unchanged").inc()
            return
        self._polls("changed").inc()
        receiver.on_polled(
            Quote(
                symbol=symbol,
                timestamp=int(received_at),
                price=price,
                source=self._source,
                received_at=received_at,
                stamped=False,
            )
        )
