"""How long a symbol is usually silent, minute by minute of the session, learned from earlier days.

For each day and minute two numbers are kept: the ticks, and the longest silence that ended in it.
What is usual is the median over the last days, newer ones weighing more, of the five minutes around:
one holiday or one burst moves it little. Minutes that were not listened to from end to end are not
learned. Pure: plain values in and out; instants are unix seconds UTC, silences seconds.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

VERSION: Final = 1
DAYS_KEPT: Final = 10
DAILY_WEIGHT: Final = 0.85
"""A day weighs this much less than the one after it: half of the weight is in the last four."""
AROUND: Final = 2
"""Minutes on either side that count as "this minute of the session"."""
MOST_MINUTES: Final = 1440
LONGEST_S: Final = 300


class Usual(msgspec.Struct, frozen=True, gc=False):
    """What is usual in a minute of the session."""

    silence_s: float  # the longest silence one expects within five minutes
    gap_s: float  # the mean distance of ticks
    days: int  # how many days it rests on; 0: the prior


PRIOR = Usual(silence_s=6.3, gap_s=1.0, days=0)
"""Before anything was learned: a tick a second. Too short a guess costs a few credits, since a price
asked by REST decides; too long a one would hide a dead socket."""


class Day(msgspec.Struct, gc=False):
    """One day of one symbol, by minute of the session; -1: not listened to."""

    day: str  # ISO date
    ticks: list[int] = []
    silence: list[int] = []

    def put(self, minute: int, ticks: int, silence_s: float) -> None:
        for numbers in (self.ticks, self.silence):
            numbers.extend([-1] * (minute + 1 - len(numbers)))
        self.ticks[minute] = ticks
        self.silence[minute] = min(LONGEST_S, round(silence_s))

    def around(self, minute: int) -> tuple[float, float] | None:
        """Longest silence and mean gap near ``minute``; ``None`` when too little is known."""
        window = slice(max(0, minute - AROUND), minute + AROUND + 1)
        ticks = [count for count in self.ticks[window] if count >= 0]
        if len(ticks) < AROUND:
            return None
        longest = max(self.silence[window])
        if not any(ticks):
            return float(LONGEST_S), float(LONGEST_S)
        return float(max(1, longest)), 60.0 * len(ticks) / sum(ticks)


class _Saved(msgspec.Struct):
    version: int
    symbols: dict[str, list[Day]]


class InactivityBaseline:
    """The usual silences of all symbols."""

    def __init__(self) -> None:
        self._days: dict[str, list[Day]] = {}  # oldest first
        self._usual: dict[tuple[str, str, int], Usual] = {}

    def learn(self, symbol: str, day: str, minute: int, ticks: int, silence_s: float) -> None:
        """Take a minute that was listened to from end to end.

        :param day: the ISO date of the session, which counts from the next day on.
        :param silence_s: the longest silence that ended in the minute.
        """
        if not 0 <= minute < MOST_MINUTES:
            return
        days = self._days.setdefault(symbol, [])
        if not days or days[-1].day < day:
            days.append(Day(day))
            del days[:-DAYS_KEPT]
        found = next((one for one in days if one.day == day), None)
        if found is not None:
            found.put(minute, ticks, silence_s)

    def usual(self, symbol: str, day: str, minute: int) -> Usual:
        """What the days before ``day`` say about ``minute``."""
        key = (symbol, day, minute)
        known = self._usual.get(key)
        if known is None:
            if len(self._usual) >= MOST_MINUTES:
                self._usual.clear()
            known = self._usual[key] = self._ask(symbol, day, minute)
        return known

    def export(self) -> dict[str, Any]:
        """As plain JSON values, for ``restore`` after a restart."""
        plain: dict[str, Any] = msgspec.to_builtins(_Saved(VERSION, self._days))
        return plain

    def restore(self, saved: object, today: str) -> None:
        """Take over what was exported; days after ``today`` are another timeline's and left out.

        :raises ValueError: it cannot be used; nothing was taken over.
        """
        try:
            found = msgspec.convert(saved, _Saved)
        except msgspec.ValidationError as error:
            raise ValueError(f"it does not look like a silence profile: {error}") from error
        if found.version != VERSION:
            raise ValueError(f"it is of version {found.version}, this program knows {VERSION}")
        for symbol, days in found.symbols.items():
            for one in days:
                _check(one)
            usable = sorted((one for one in days if one.day <= today), key=lambda one: one.day)
            if len({one.day for one in usable}) != len(usable):
                raise ValueError(f"a day of {symbol} is in it twice")
            found.symbols[symbol] = usable[-DAYS_KEPT:]
        self._days = found.symbols
        self._usual.clear()

    def _ask(self, symbol: str, day: str, minute: int) -> Usual:
        earlier = [one for one in self._days.get(symbol, []) if one.day < day]
        known = [
            (DAILY_WEIGHT**age, found)
            for age, one in enumerate(reversed(earlier))
            if (found := one.around(minute)) is not None
        ]
        if not known:
            return PRIOR
        return Usual(
            silence_s=_median((weight, silence) for weight, (silence, _) in known),
            gap_s=_median((weight, gap) for weight, (_, gap) in known),
            days=len(known),
        )


def _median(weighted: Iterable[tuple[float, float]]) -> float:
    """The value below and above which lies half of the weight; of two such the smaller."""
    ordered: Sequence[tuple[float, float]] = sorted(weighted, key=lambda pair: pair[1])
    half = sum(weight for weight, _ in ordered) / 2
    below = 0.0
    for weight, value in ordered:
        below += weight
        if below >= half - 1e-12:
            return value
    return ordered[-1][1]


def _check(day: Day) -> None:
    numbers = [*day.ticks, *day.silence]
    if len(day.ticks) != len(day.silence) or len(day.ticks) > MOST_MINUTES:
        raise ValueError(f"the minutes of {day.day} do not match")
    if any(number < -1 for number in numbers):
        raise ValueError(f"a negative number in {day.day}")
