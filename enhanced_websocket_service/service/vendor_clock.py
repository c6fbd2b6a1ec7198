"""The clock of the service: the machine's, set right by the vendor's where the machine's is wrong.

The vendor's clock makes the stamps, the bars and the limits of the keys; ours decides what is in the
future, when a bar is closed, when the session opens. While the two agree within seconds, nothing happens
here. Beyond that the whole service goes by the vendor's time, says so and goes on publishing prices. A
jump of the machine's clock is noticed at the next look at it: while the offset was known, nobody else
notices; bars across it are doubtful all the same.

Owns: the decision whose time it is, the problem ``clock``, its metric. Does not own: what witnesses say
(``market.clock_skew``).
"""

import math
import time
from collections.abc import Awaitable, Callable

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import VendorError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.market.clock_skew import AGREEING, LIMIT_S, ClockSkew
from enhanced_websocket_service.telemetry import Metrics, Rarely

log = structlog.get_logger(__name__)

PART = "clock"
"""As ``Failures`` calls it."""
JUMP_S, JUMP_AT_LEAST_REAL_S = 1.5, 0.005
"""A clock that is further than this from where its own span says it must be was set."""
LIMIT_AT_LEAST_REAL_S = 0.05
"""Answers travel in real time, however fast the clock runs."""
LOOK_S = 1.0
ASK_EVERY_S, ASK_AT_LEAST_REAL_S = 60.0, 2.0
"""Without an answer of REST for so long, the vendor is asked for nothing but its time; that is free."""
ASK_SOON_REAL_S = 1.0
ASK_SOON_TIMES = 2 * AGREEING


class VendorClock:
    """Shows the time of ``machine``, or the vendor's where the two differ.

    :param virtual: ``machine`` shows invented time. A witness that is nearer to the real time than to
        that shows the real one, and says nothing about ours.
    """

    def __init__(
        self,
        machine: Clock,
        failures: Failures,
        metrics: Metrics,
        *,
        virtual: bool = False,
        real_time: Callable[[], float] = time.time,  # real time: see ``virtual``
    ) -> None:
        self.on_set: Callable[[float, float], None] | None = None
        """Told that the clock was at the first instant when it was set to the second one, which may be
        the same: then the machine's was set. Must not block."""
        self._machine = machine
        self._failures = failures
        self._metrics = metrics
        self._virtual = virtual
        self._real_time = real_time
        self._rarely = Rarely()
        self._skew = ClockSkew()
        self._correction = 0.0
        self._wall_minus_elapsed = machine.now() - machine.elapsed()
        self._asked_at = -math.inf  # elapsed
        self._asked = 0  # how often since there was reason to
        metrics.clock_offset.set(math.nan)

    @property
    def correction(self) -> float:
        """What is added to the machine's time now, seconds."""
        return self._correction

    def now(self) -> float:
        return self._wall() + self._correction

    def elapsed(self) -> float:
        return self._machine.elapsed()

    async def sleep(self, seconds: float) -> None:
        await self._machine.sleep(seconds)

    async def sleep_until(self, instant: float) -> None:
        machine = self._machine
        while (left := instant - self.now()) > 0:
            await machine.sleep(min(left, machine.span(LOOK_S, at_least_real=LOOK_S)))

    def span(self, seconds: float, at_least_real: float = 0.0) -> float:
        return self._machine.span(seconds, at_least_real)

    def http_date(self, date: float, took_s: float) -> None:
        """An answer that came just now, ``took_s`` after it was asked for, has this ``Date`` header."""
        wall = self._wall()
        if not self._is_real_time(date, wall):
            self._skew.http_date(date, wall - took_s, wall)
            self._decide(wall)

    def stamp(self, stamp: float, received_at: float) -> None:
        """A price of the stream, received at ``received_at`` of this clock, has this stamp."""
        wall = received_at - self._correction
        if not self._is_real_time(stamp, wall):
            self._skew.stamp(stamp, wall)

    async def run(self, ask: Callable[[], Awaitable[None]]) -> None:
        """Look at the clock, and ``ask`` the vendor for its time when nobody has; until cancelled.

        :param ask: its answer comes by ``http_date``. Raises ``VendorError``.
        """
        machine = self._machine
        while True:
            self._decide(self._wall())
            if self._must_ask():
                self._asked_at = machine.elapsed()
                self._asked += 1
                try:
                    await ask()
                except VendorError as error:
                    log.debug("The vendor does not tell its time", error=str(error))
            await machine.sleep(machine.span(LOOK_S, at_least_real=LOOK_S))

    def _must_ask(self) -> bool:
        machine, wall = self._machine, self._wall()
        since = machine.elapsed() - self._asked_at
        if self._skew.settled(wall):
            self._asked = 0
        elif self._asked < ASK_SOON_TIMES:
            return since >= machine.span(ASK_SOON_REAL_S, at_least_real=ASK_SOON_REAL_S)
        every_s = machine.span(ASK_EVERY_S, at_least_real=ASK_AT_LEAST_REAL_S)
        return since >= every_s and not self._skew.heard_within(wall, every_s)

    def _wall(self) -> float:
        """The machine's time; whether it was set since the last look is found out here."""
        machine = self._machine
        before = machine.elapsed()
        wall = machine.now()
        by = wall - before - self._wall_minus_elapsed
        if -JUMP_S <= by <= JUMP_S:  # as nearly always, and with every frame of the vendor
            return wall
        after = machine.elapsed()
        # Whoever is held up between two looks at two clocks has not seen a jump.
        by -= min(max(0.0, by), after - before)
        if abs(by) > JUMP_S and abs(by) > machine.span(JUMP_S, JUMP_AT_LEAST_REAL_S):
            self._wall_minus_elapsed = wall - after
            self._was_set(by, wall)
        return wall

    def _was_set(self, by: float, wall: float) -> None:
        before = wall - by + self._correction
        known = self._skew.offset(wall - by) is not None
        self._skew.set(by, wall)
        self._asked = 0
        if known:
            corrected = self._correction - by
            self._correction = corrected if abs(corrected) > self._limit() else 0.0
        # One that drifts is set all the time. Real time: the log is for people.
        if times := self._rarely.due(time.monotonic(), "set"):
            log.warning(
                "The machine's clock was set, or the machine slept",
                by_s=round(by, 1),
                shows=iso_local(int(wall)),
                gone_by=iso_local(int(wall + self._correction)),
                times=times,
            )
        self._tell(before, wall + self._correction)

    def _decide(self, wall: float) -> None:
        """Whose time it is from now on."""
        limit = self._skew.limit_s = self._limit()
        offset = self._skew.offset(wall)
        self._metrics.clock_offset.set(math.nan if offset is None else offset)
        wanted = offset if offset is not None and abs(offset) > limit else 0.0
        if (wanted == 0.0) != (self._correction == 0.0) or abs(wanted - self._correction) > limit:
            before = wall + self._correction
            self._correction = wanted
            if times := self._rarely.due(time.monotonic(), f"gone by {wanted != 0.0}"):
                log.warning(
                    "The service goes by the vendor's time"
                    if wanted
                    else "The service goes by this machine's time again",
                    offset_s=round(wanted, 1),
                    shows=iso_local(int(wall)),
                    gone_by=iso_local(int(wall + wanted)),
                    times=times,
                )
            self._tell(before, wall + wanted)
        if self._skew.disagreement:
            self._failures.failed(
                PART,
                "The vendor's HTTP Date header and the stamps of its prices do not agree about the time: "
                "this machine's clock is believed. Look at proxies between, and at this machine's NTP.",
            )
        elif offset is not None and abs(offset) > limit:
            self._failures.failed(PART, _words(offset))
        else:
            self._failures.succeeded(PART)

    def _limit(self) -> float:
        return self._machine.span(LIMIT_S, at_least_real=LIMIT_AT_LEAST_REAL_S)

    def _is_real_time(self, witness: float, wall: float) -> bool:
        return self._virtual and abs(witness - self._real_time()) < abs(witness - wall)

    def _tell(self, before: float, after: float) -> None:
        if self.on_set is not None:
            self.on_set(before, after)


def _words(offset: float) -> str:
    way = "behind" if offset > 0 else "ahead of"
    return (
        f"This machine's clock is {_length(abs(offset))} {way} the vendor's. Until it is set right (NTP), "
        "the vendor's time decides: of stamps, bars, keys and the session."
    )


def _length(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
