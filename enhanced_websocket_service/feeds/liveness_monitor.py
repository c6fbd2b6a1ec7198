"""The detectors of all symbols and their errands: time, REST prices to compare with, metrics, log.

What a verdict rests on is decided in ``market.liveness``; here it is only told what happens. One
object for the life of the process: profile, history and today's pace outlive the feed of a session.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from time import monotonic
from typing import get_args

import msgspec
import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import VendorError
from enhanced_websocket_service.market.calendar import Session
from enhanced_websocket_service.market.liveness.baseline import InactivityBaseline
from enhanced_websocket_service.market.liveness.detector import (
    LivenessDetector,
    Timing,
    always_open,
)
from enhanced_websocket_service.market.liveness.status import (
    Change,
    DeadSpan,
    SampleResult,
    SymbolVerdict,
    Verdict,
    is_news,
)
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.telemetry import Metrics, Rarely

log = structlog.get_logger(__name__)

ANSWER_WITHIN_REAL_S = 10.0
LOOK_AT_LEAST_REAL_S = 0.005
BEHIND_S, BEHIND_AT_LEAST_REAL_S = 5.0, 0.3
"""A stream whose stamps steadily lie farther behind has not told the end of the bar that is being closed."""

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
_RANK = {name: rank for rank, name in enumerate(("closed", "live", "quiet", "suspect", "dead"))}


def worst(verdicts: Collection[Verdict]) -> Verdict:
    """The one that speaks for all of them."""
    return max(verdicts, key=lambda one: _RANK[one], default="closed")


class VerdictNews:
    """Which verdicts the log hears of, by whom they are on. Pure.

    Each attempt to connect again makes a dead stream suspect and then dead: that is no news, and a
    verdict that comes and goes is told once a minute.
    """

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._rarely = Rarely()

    def due(self, name: str, verdict: str, now: float) -> bool:
        """Whether the log should hear of it.

        :param now: seconds of a clock that is not set back; real ones, as the log is read by people.
        """
        told = self._told.get(name)
        if (told, verdict) == ("dead", "suspect") or not is_news(told or "", verdict):
            return False
        if not self._rarely.due(now, f"{name} {verdict}"):
            return False
        self._told[name] = verdict
        return True


class LivenessMonitor:
    """Judges ``symbols`` on behalf of the stream.

    The detectors live in a time that is never set: ``elapsed`` of the clock, counted from what the clock
    showed at the start. A clock that jumps ages nothing. Sessions are met, and instants are shown, by the
    clock as it is now.

    :param session_at: the session of a symbol that is open at an instant, or ``None``.
    :param ask: the vendor's REST price of a symbol; raises ``VendorError``. ``None``: there is no
        REST, silence alone decides.
    :param may_ask: whether a credit may be spent on comparing at an instant.
    :param spacing: how many seconds lie between two calls at least, at an instant.
    :param skew: the vendor's clock minus ours in seconds, where witnesses agree on it; ``None``: unknown.
        Stamps that look old because our clock is fast are young.
    :param doubtful: whether a price of a symbol would be held whatever its source adds to it: no proof.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        clock: Clock,
        metrics: Metrics,
        *,
        baseline: InactivityBaseline | None = None,
        session_at: Callable[[str, float], Session | None] = lambda _, at: always_open(at),
        ask: Callable[[str], Awaitable[float]] | None = None,
        may_ask: Callable[[float], bool] = lambda _: True,
        spacing: Callable[[float], float] = lambda _: 0.0,
        skew: Callable[[float], float | None] = lambda _: None,
        doubtful: Callable[[str, float], bool] = lambda *_: False,
    ) -> None:
        self._session_at = session_at
        self.detectors: dict[str, LivenessDetector] = {}
        self._covered: Collection[str] = ()
        self._listeners: list[Callable[[], None]] = []
        self._clock = clock
        self._metrics = metrics
        self._baseline = InactivityBaseline() if baseline is None else baseline
        self._ask = ask
        self._may_ask = may_ask
        self._spacing = spacing
        self._skew = skew
        self._doubtful = doubtful
        self._news = VerdictNews()
        self._base = clock.now() - clock.elapsed()
        self._shift = 0.0  # the clock minus the time of the detectors, when it was last looked at
        self._time = Timing()
        self.follow(symbols)

    def subscribe(self, listener: Callable[[], None]) -> None:
        """``listener`` is told when a verdict changes, but for changes between live and quiet; must not
        block."""
        self._listeners.append(listener)

    def follow(self, symbols: Collection[str]) -> None:
        """Judge these, too; a detector once made keeps what it has learned."""
        for symbol in symbols:
            if symbol not in self.detectors:
                self.detectors[symbol] = detector = LivenessDetector(
                    symbol,
                    self._baseline,
                    partial(self._session, symbol),
                    timing=lambda _: self._time,
                    on_change=self._changed,
                )
                self._show(detector)
                self._metrics.feed_silence.labels(symbol).set_function(
                    partial(self._silence, detector)
                )

    def cover(self, symbols: Collection[str]) -> None:
        """These are polled anyway: their polled prices are compared, no credit is spent."""
        self._covered = symbols

    def is_open(self, symbol: str, at: float) -> bool:
        return self._session_at(symbol, at) is not None

    def now(self) -> float:
        """The instant in the time of the detectors."""
        now, clock = self._base + self._clock.elapsed(), self._clock.now()
        self._shift = clock - now
        self._time = Timing(self._clock.span(0.0, 1.0), self._spacing(clock))
        return now

    def shown(self) -> tuple[SymbolVerdict, ...]:
        """Everything worth telling of every symbol, now."""
        now = self.now()
        return tuple(self._by_clock(one.shown(now)) for one in self.detectors.values())

    def tell(self, what: Callable[[LivenessDetector, float], None]) -> None:
        """Tell every detector the same."""
        now = self.now()
        for detector in self.detectors.values():
            what(detector, now)

    def price(self, quote: Quote, *, resent: bool) -> bool:
        """The stream brought a usable price; whether it proves the stream.

        :param resent: it may be the last one again, sent upon our subscription.
        """
        now = self._base + self._clock.elapsed()
        self._shift = quote.received_at - now
        return self.detectors[quote.symbol].price(
            quote.price,
            now,
            stamp=quote.timestamp,
            age=quote.received_at - quote.timestamp,
            clock_ahead=-(self._skew(quote.received_at) or 0.0),
            resent=resent,
            doubtful=self._doubtful(quote.symbol, quote.price),
        )

    def proved_at(self, symbol: str) -> float:
        """When the stream of ``symbol`` was last proved, or its silence began otherwise; by the clock."""
        self.now()
        return self.detectors[symbol].proved_at + self._shift

    def reached(self, symbol: str) -> float:
        """Up to which instant the stream has told everything; infinite where nothing is known to be late.

        Unix seconds by the vendor's stamps. A bar that ends later may lack what is still to come.
        """
        detector = self.detectors.get(symbol)
        if detector is None or not detector.listening or symbol in self._covered:
            return math.inf
        lag = detector.stamps.lag_s
        if lag <= self._clock.span(BEHIND_S, BEHIND_AT_LEAST_REAL_S):
            return math.inf
        return self._clock.now() - lag

    def rest_fault(self, symbol: str) -> str | None:
        """Why REST is no witness for ``symbol``, and no fallback to be called live."""
        detector = self.detectors.get(symbol)
        return None if detector is None else detector.rest_fault

    def excuse(self) -> None:
        """Reading was paused: whatever silence there was is ours."""
        self.tell(lambda detector, now: detector.excuse(now))

    def polled(self, symbol: str, price: float, asked_at: float) -> None:
        """A REST price that was asked for another reason: it costs nothing to compare it.

        :param asked_at: by the clock, unix seconds UTC.
        """
        detector = self.detectors.get(symbol)
        if detector is not None and detector.listening:
            now = self.now()
            self._count(symbol, detector.sample(price, min(asked_at - self._shift, now), now))

    async def watch(
        self, symbols: Callable[[], Collection[str]], on_dead: Callable[[str, str], None]
    ) -> None:
        """Look whenever something is due, and ask REST where a detector wants it; until cancelled.

        :param symbols: those that are subscribed now.
        :param on_dead: told the symbol and the evidence, again at every look while it is dead.
        """
        clock = self._clock
        asking: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                now = self.now()
                due = math.inf
                for symbol in symbols():
                    detector = self.detectors[symbol]
                    if detector.look(now) == "dead":
                        on_dead(symbol, detector.evidence)
                    if symbol in asking:
                        continue
                    if detector.wants_sample(now) and self._may_compare(detector, now):
                        detector.asked(now)
                        asking[symbol] = asyncio.create_task(
                            self._compare(detector), name=f"feed-compare-{symbol}"
                        )
                    due = min(due, detector.next_look(now))
                wait = min(max(due - now, clock.span(0.05, LOOK_AT_LEAST_REAL_S)), 60.0)
                sleeper = asyncio.create_task(clock.sleep(wait), name="feed-next-look")
                try:
                    await asyncio.wait(
                        {sleeper, *asking.values()}, return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    sleeper.cancel()
                for symbol in [one for one, task in asking.items() if task.done()]:
                    asking.pop(symbol).result()
        finally:
            for task in asking.values():
                task.cancel()
            await asyncio.gather(*asking.values(), return_exceptions=True)

    def _may_compare(self, detector: LivenessDetector, now: float) -> bool:
        if self._ask is None:
            detector.sample_failed("there is no REST client", now, None)
        elif detector.symbol in self._covered:
            detector.sample_failed("the polled price has not come", now, None)
        elif not self._may_ask(self._clock.now()):
            detector.sample_failed("no credits are left for it", now, "refused")
            self._count(detector.symbol, "refused")
        else:
            return True
        return False

    async def _compare(self, detector: LivenessDetector) -> None:
        assert self._ask is not None
        asked_at = self.now()
        try:
            async with asyncio.timeout(ANSWER_WITHIN_REAL_S):
                price = await self._ask(detector.symbol)
        except (VendorError, TimeoutError) as error:
            why = str(error) or f"no answer within {ANSWER_WITHIN_REAL_S:g} s"
            detector.sample_failed(why, self.now())
            self._count(detector.symbol, "failed")
            return
        result = detector.sample(price, asked_at, self.now())
        self._count(detector.symbol, result)
        log.debug("REST price compared", symbol=detector.symbol, price=price, result=result)

    def _session(self, symbol: str, at: float) -> Session | None:
        """The session that is open at an instant of the detectors, in their time."""
        session, shift = self._session_at(symbol, at + self._shift), round(self._shift)
        if session is None or not shift:
            return session
        return Session(session.day, session.opens - shift, session.closes - shift)

    def _by_clock(self, one: SymbolVerdict) -> SymbolVerdict:
        """``one`` with its instants by the clock."""
        shift = self._shift

        def moved(at: float | None) -> float | None:
            return None if at is None else at + shift

        return msgspec.structs.replace(
            one,
            since=one.since + shift,
            last_price_at=moved(one.last_price_at),
            last_new_price_at=moved(one.last_new_price_at),
            rest_asked_at=moved(one.rest_asked_at),
            history=tuple(Change(was.verdict, was.evidence, was.at + shift) for was in one.history),
            dead_spans=tuple(
                DeadSpan(was.start + shift, was.found_at + shift, moved(was.end), was.evidence)
                for was in one.dead_spans
            ),
        )

    def _changed(self, detector: LivenessDetector, before: Verdict) -> None:
        self._show(detector)
        if not is_news(before, detector.verdict):
            return
        if self._news.due(detector.symbol, detector.verdict, monotonic()):
            level = log.warning if detector.verdict == "dead" else log.info
            level(
                "Verdict",
                symbol=detector.symbol,
                verdict=detector.verdict,
                evidence=detector.evidence,
            )
        for listener in self._listeners:
            listener()

    def _show(self, detector: LivenessDetector) -> None:
        for verdict in VERDICTS:
            gauge = self._metrics.feed_verdict.labels(detector.symbol, verdict)
            gauge.set(verdict == detector.verdict)

    def _silence(self, detector: LivenessDetector) -> float:
        if detector.last_price_at is None:
            return math.nan
        return max(0.0, self.now() - detector.last_price_at)

    def _count(self, symbol: str, result: SampleResult) -> None:
        self._metrics.liveness_samples.labels(symbol, result).inc()
