"""Time as a dependency: every component reads one of these instead of the operating system.

All instants are unix seconds in UTC (``float``); all durations are seconds of the clock, unless a name
says ``real``. A virtual clock is a pure function of the machine's real time, so two processes given
the same ``VIRTUAL_CLOCK`` (with its anchor) agree on the time without talking to each other.

A machine's time may be set at any moment, by a day, either way. So waits and ages inside a process come
from ``elapsed``, which never jumps; instants (``now``) are for what has a place in the calendar, and for
what outlives the process.
"""

import asyncio
import math
import time
from bisect import bisect_right
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from datetime import time as wall_time
from functools import cached_property
from typing import Protocol
from zoneinfo import ZoneInfo

from .errors import ConfigurationError

FAST_WINDOW = (wall_time(7, 50), wall_time(13, 10))
"""Local hours of a trading day in which ``speed`` rules; outside them ``closed speed`` does."""

_LONGEST_REAL_SLEEP = 1.0
"""The machine's clock may be set while somebody sleeps until an instant: how late that is noticed."""


def still_ahead(instant: float, now: float, longest_s: float) -> bool:
    """Whether ``instant``, noted as the end of a wait of ``longest_s`` at most, is to be waited for.

    Further ahead than that it was stored by a clock that was ahead, and has been set back since: it is void.
    For what outlives the process, or is shown; waits inside it come from ``Clock.elapsed``.
    """
    return now < instant <= now + longest_s


class Clock(Protocol):
    """What a component may ask of time."""

    def now(self) -> float:
        """The instant, unix seconds UTC. It may jump, either way: the machine's time may be set."""
        ...

    def elapsed(self) -> float:
        """Seconds of this clock since it was made; never set, so it neither jumps nor goes back.

        It stands still while the machine sleeps.
        """
        ...

    async def sleep(self, seconds: float) -> None:
        """Return once ``seconds`` of this clock have passed; cancellable at any moment."""
        ...

    async def sleep_until(self, instant: float) -> None:
        """Return once ``now() >= instant``; at once when it has passed."""
        ...

    def span(self, seconds: float, at_least_real: float = 0.0) -> float:
        """``seconds`` of this clock, stretched to last at least ``at_least_real`` real seconds.

        Networks, disks and schedulers do not run faster in virtual time: a grace period meant
        for messages in flight must never shrink below what the machine really needs.
        """
        ...


class SystemClock:
    """The machine's own clock."""

    def __init__(self) -> None:
        self._made = time.monotonic()

    def now(self) -> float:
        return time.time()

    def elapsed(self) -> float:
        return time.monotonic() - self._made

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    async def sleep_until(self, instant: float) -> None:
        while (left := instant - self.now()) > 0:
            await asyncio.sleep(min(left, _LONGEST_REAL_SLEEP))

    def span(self, seconds: float, at_least_real: float = 0.0) -> float:
        return max(seconds, at_least_real)


class VirtualClock:
    """A clock that shows ``start`` at real time ``anchor`` and then runs at a chosen speed.

    ``speed`` rules from 07:50 to 13:10 local time of trading days; ``closed_speed`` (default: the
    same) elsewhere. The mapping is piecewise linear and strictly increasing.
    """

    def __init__(
        self,
        start: float,
        speed: float,
        *,
        is_trading_day: Callable[[date], bool],
        anchor: float | None = None,
        closed_speed: float | None = None,
        zone: ZoneInfo | None = None,
        real_time: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if any(not 0 < one < math.inf for one in (speed, closed_speed) if one is not None):
            raise ConfigurationError("VIRTUAL_CLOCK: speeds must be finite numbers greater than 0.")
        self._real_time = real_time
        self._monotonic = monotonic
        self.start = start
        self.speed = speed
        self.anchor = real_time() if anchor is None else anchor
        self.closed_speed = speed if closed_speed is None else closed_speed
        self._is_trading_day = is_trading_day
        self._zone = zone or ZoneInfo("America/Bogota")
        # Knots of the piecewise map; segment i runs at _speeds[i] from knot i on.
        self._virtual = [start]
        self._real = [self.anchor]
        self._speeds = [self._speed_at(start)]
        # Where the clock would stand had nobody set the machine's time since: what ``elapsed`` measures.
        self._made = (real_time(), monotonic())

    def specification(self) -> str:
        """The ``VIRTUAL_CLOCK`` value that makes another process share this clock."""
        start = datetime.fromtimestamp(self.start, UTC).isoformat()
        return f"{start},{self.speed:g},{self.anchor!r},{self.closed_speed:g}"

    def now(self) -> float:
        return self._to_virtual(self._real_time())

    def elapsed(self) -> float:
        return self._to_virtual(self._unset_real()) - self._made_at

    async def sleep(self, seconds: float) -> None:
        end = self._to_real(self._made_at + self.elapsed() + max(0.0, seconds))
        while (left := end - self._unset_real()) > 0:
            await asyncio.sleep(left)

    async def sleep_until(self, instant: float) -> None:
        while (left := self._to_real(instant) - self._real_time()) > 0:
            await asyncio.sleep(min(left, _LONGEST_REAL_SLEEP))

    def span(self, seconds: float, at_least_real: float = 0.0) -> float:
        real = self._real_time()
        return max(seconds, self._to_virtual(real + at_least_real) - self._to_virtual(real))

    @cached_property
    def _made_at(self) -> float:
        # When first asked for: settings are judged before, and from an anchor far away it counts for ever.
        return self._to_virtual(self._made[0])

    def _unset_real(self) -> float:
        """The machine's real time, had nobody set it since this clock was made."""
        real, monotonic = self._made
        return real + self._monotonic() - monotonic

    def _to_virtual(self, real: float) -> float:
        if self.closed_speed == self.speed or real <= self.anchor:
            return self.start + (real - self.anchor) * self.speed
        while real >= self._real[-1]:
            self._extend()
        i = bisect_right(self._real, real) - 1
        return self._virtual[i] + (real - self._real[i]) * self._speeds[i]

    def _to_real(self, virtual: float) -> float:
        if self.closed_speed == self.speed or virtual <= self.start:
            return self.anchor + (virtual - self.start) / self.speed
        while virtual >= self._virtual[-1]:
            self._extend()
        i = bisect_right(self._virtual, virtual) - 1
        return self._real[i] + (virtual - self._virtual[i]) / self._speeds[i]

    def _extend(self) -> None:
        """Append the next knot: the next instant at which the speed changes."""
        at = self._virtual[-1]
        end = self._next_boundary(at)
        self._real.append(self._real[-1] + (end - at) / self._speeds[-1])
        self._virtual.append(end)
        self._speeds.append(self._speed_at(end))

    def _window(self, day: date) -> tuple[float, float]:
        opens, closes = (datetime.combine(day, at, self._zone).timestamp() for at in FAST_WINDOW)
        return opens, closes

    def _speed_at(self, instant: float) -> float:
        day = datetime.fromtimestamp(instant, self._zone).date()
        opens, closes = self._window(day)
        inside = opens <= instant < closes and self._is_trading_day(day)
        return self.speed if inside else self.closed_speed

    def _next_boundary(self, instant: float) -> float:
        day = datetime.fromtimestamp(instant, self._zone).date()
        while True:
            if self._is_trading_day(day):
                for boundary in self._window(day):
                    if boundary > instant:
                        return boundary
            day += timedelta(days=1)


def parse_virtual_clock(text: str, is_trading_day: Callable[[date], bool]) -> VirtualClock:
    """Make the clock that ``<ISO start>,<speed>[,<unix anchor>[,<closed speed>]]`` describes.

    A start without an offset is America/Bogota wall time. An empty anchor means "now".

    :raises ConfigurationError: naming what is wrong with the text.
    """
    parts = [part.strip() for part in text.split(",")]
    usage = (
        f"VIRTUAL_CLOCK={text!r} is not '<ISO start>,<speed>[,<unix anchor>[,<closed speed>]]', "
        "for example '2025-06-03T07:55:00-05:00,60'."
    )
    if not 2 <= len(parts) <= 4:
        raise ConfigurationError(usage)
    try:
        start = datetime.fromisoformat(parts[0])
        speed = float(parts[1])
        anchor = float(parts[2]) if len(parts) > 2 and parts[2] else None
        closed_speed = float(parts[3]) if len(parts) > 3 else None
    except ValueError as error:
        raise ConfigurationError(usage) from error
    if start.tzinfo is None:
        start = start.replace(tzinfo=ZoneInfo("America/Bogota"))
    return VirtualClock(
        start.timestamp(),
        speed,
        is_trading_day=is_trading_day,
        anchor=anchor,
        closed_speed=closed_speed,
    )
