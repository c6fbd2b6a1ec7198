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

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import VendorError
from enhanced_websocket_service.market.calendar import Session
from enhanced_websocket_service.market.liveness.baseline import InactivityBaseline
from enhanced_websocket_service.market.liveness.detector import LivenessDetector, always_open
from enhanced_websocket_service.market.liveness.status import (
    SampleResult,
    SymbolVerdict,
    Verdict,
    is_news,
)
from enhanced_websocket_service.telemetry import Metrics, Rarely

log = structlog.get_logger(__name__)

PURPOSE = "liveness"
"""What the credits spent on comparing are booked on."""
ANSWER_WITHIN_REAL_S = 10.0
LOOK_AT_LEAST_REAL_S = 0.005

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

    :param session_at: the session that is open at an instant, or ``None``.
    :param ask: the vendor's REST price of a symbol; raises ``VendorError``. ``None``: there is no
        REST, silence alone decides.
    :param may_ask: whether a credit may be spent on comparing at an instant.
    :param spacing: how many seconds lie between two calls at least, at an instant.
    """

    def __init__(
        self,
        symbols: Sequence[str],
        clock: Clock,
        metrics: Metrics,
        *,
        profile: InactivityBaseline | None = None,
        session_at: Callable[[float], Session | None] = always_open,
        ask: Callable[[str], Awaitable[float]] | None = None,
        may_ask: Callable[[float], bool] = lambda _: True,
        spacing: Callable[[float], float] = lambda _: 0.0,
    ) -> None:
        self.session_at = session_at
        self.covered: Collection[str] = ()
        """Symbols that are polled anyway: their polled prices are compared, no credit is spent."""
        self.on_news: Callable[[], None] | None = None
        """Told when a verdict changes, but for changes between live and quiet; must not block."""
        self._clock = clock
        self._metrics = metrics
        self._ask = ask
        self._may_ask = may_ask
        self._spacing = spacing
        self._news = VerdictNews()
        profile = InactivityBaseline() if profile is None else profile
        self.detectors = {one: LivenessDetector(one, profile, session_at) for one in symbols}
        for symbol, detector in self.detectors.items():
            detector.on_change = self._changed
            self._show(detector)
            metrics.feed_silence.labels(symbol).set_function(partial(self._silence, detector))

    def is_open(self, at: float) -> bool:
        return self.session_at(at) is not None

    def shown(self) -> tuple[SymbolVerdict, ...]:
        """Everything worth telling of every symbol, now."""
        now = self._clock.now()
        self._stretch(now)
        return tuple(detector.shown(now) for detector in self.detectors.values())

    def excuse(self) -> None:
        """We did not read: whatever silence there was is ours."""
        for detector in self.detectors.values():
            detector.excuse(self._clock.now())

    def polled(self, symbol: str, price: float, asked_at: float) -> None:
        """A REST price that was asked for another reason: it costs nothing to compare it."""
        detector = self.detectors.get(symbol)
        if detector is not None and detector.listening:
            self._count(symbol, detector.sample(price, asked_at, self._clock.now()))

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
                now = clock.now()
                self._stretch(now)
                due = math.inf
                for symbol in symbols():
                    detector = self.detectors[symbol]
                    if detector.look(now) == "dead":
                        on_dead(symbol, detector.evidence)
                    if symbol in asking:
                        continue
                    if detector.wants_sample(now) and self._may_compare(detector, now):
                        asking[symbol] = asyncio.create_task(
                            self._compare(detector), name=f"feed-compare-{symbol}"
                        )
                    due = min(due, detector.next_look(now))
                due = min(max(due, now + clock.span(0.05, LOOK_AT_LEAST_REAL_S)), now + 60.0)
                sleeper = asyncio.create_task(clock.sleep_until(due), name="feed-next-look")
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
        elif detector.symbol in self.covered:
            detector.sample_failed("the polled price has not come", now, None)
        elif not self._may_ask(now):
            detector.sample_failed("no credits are left for it", now, "refused")
            self._count(detector.symbol, "refused")
        else:
            return True
        return False

    async def _compare(self, detector: LivenessDetector) -> None:
        assert self._ask is not None
        asked_at = self._clock.now()
        try:
            async with asyncio.timeout(ANSWER_WITHIN_REAL_S):
                price = await self._ask(detector.symbol)
        except (VendorError, TimeoutError) as error:
            why = str(error) or f"no answer within {ANSWER_WITHIN_REAL_S:g} s"
            detector.sample_failed(why, self._clock.now())
            self._count(detector.symbol, "failed")
            return
        result = detector.sample(price, asked_at, self._clock.now())
        self._count(detector.symbol, result)
        log.debug("REST price compared", symbol=detector.symbol, price=price, result=result)

    def _stretch(self, now: float) -> None:
        real_second, spacing_s = self._clock.span(0.0, 1.0), self._spacing(now)
        for detector in self.detectors.values():
            detector.real_second, detector.spacing_s = real_second, spacing_s

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
        if self.on_news is not None:
            self.on_news()

    def _show(self, detector: LivenessDetector) -> None:
        for verdict in VERDICTS:
            gauge = self._metrics.feed_verdict.labels(detector.symbol, verdict)
            gauge.set(verdict == detector.verdict)

    def _silence(self, detector: LivenessDetector) -> float:
        if detector.last_price_at is None:
            return math.nan
        return max(0.0, self._clock.now() - detector.last_price_at)

    def _count(self, symbol: str, result: SampleResult) -> None:
        self._metrics.liveness_samples.labels(symbol, result).inc()
