"""How far the vendor's clock is from ours, by what witnesses say. Pure; one ``ClockSkew`` per vendor.

Two witnesses, of different worth:

- the ``Date`` header of an HTTP answer: whole seconds, read somewhere between asking and answering. The
  last three must agree; then they decide;
- the stamps of prices: they may be late (a slow stream looks like our clock running fast), and aligned
  to whole minutes. They prove one thing alone: a stamp from our future means that our clock is behind.
  And when they agree with our clock and the ``Date`` headers do not, nobody is believed.

Instants are unix seconds UTC, those of receipts by our own clock, uncorrected; offsets are the vendor's
clock minus ours, seconds.
"""

from collections import deque
from statistics import median
from typing import Final, NamedTuple

LIMIT_S: Final = 3.0
"""More is wrong: ``Date`` headers have whole seconds, and travel."""
AGREEING: Final = 3
"""So many ``Date`` headers in a row must agree."""
DATE_HOLDS_S: Final = 1800.0
"""A ``Date`` header says nothing any more after this."""
UNCONFIRMED_S: Final = 30.0
"""After our clock was set nobody knows which of the two times was right. So long what was known before
stands without a new witness; the machine may have been asleep."""
WIDENED_S: Final = 1.0
"""Our clock may be slowed down or sped up by so much between two headers."""
STAMPS_HOLD_S: Final = 300.0
STAMPS_NEEDED: Final = 12
STAMPS_OVER_S: Final = 20.0
"""What so many stamps say, over so long at least, is sustained."""
MINUTE_S: Final = 60
LATE_S: Final = 65.0
"""A stamp that is aligned to its minute is as late as this without being late."""


class _Date(NamedTuple):
    low: float  # the offset lies between them
    high: float
    at: float


class _Stamp(NamedTuple):
    lead: float  # stamp minus receipt
    at: float
    aligned: bool


class ClockSkew:
    """``limit_s``: offsets up to it are no news; it may be changed at any time."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self.limit_s = limit_s
        self.disagreement = False
        """At the last ``offset``, the ``Date`` headers and the stamps did not agree about our clock."""
        self._dates: deque[_Date] = deque(maxlen=8)
        self._stamps: deque[_Stamp] = deque(maxlen=120)
        self._set_at: float | None = None  # and nothing has confirmed the offset since

    def http_date(self, date: float, sent_at: float, received_at: float) -> None:
        """An answer to what was asked at ``sent_at`` said that it was ``date``."""
        new = _Date(date - received_at, date + 1.0 - sent_at, received_at)
        if self._set_at is not None:
            known = self._by_dates(received_at)
            if known is not None and not _within(new, known):
                self._forget()
            self._set_at = None
        self._dates.append(new)

    def stamp(self, stamp: float, received_at: float) -> None:
        """A price that was received at ``received_at`` has this stamp."""
        lead = stamp - received_at
        if self._set_at is not None and (known := self._by_dates(received_at)) is not None:
            if known - LATE_S <= lead <= known + self.limit_s:
                self._set_at = None
            elif abs(lead) <= LATE_S:  # our clock is right now, it was asleep
                self._forget()
        self._stamps.append(_Stamp(lead, received_at, stamp % MINUTE_S == 0))

    def set(self, by: float, now: float) -> None:
        """Our clock was set by ``by`` seconds, and shows ``now``; the vendor's was not, as far as we know."""
        self._dates = deque(
            (_Date(one.low - by, one.high - by, one.at + by) for one in self._dates), maxlen=8
        )
        self._stamps = deque(
            (_Stamp(one.lead - by, one.at + by, one.aligned) for one in self._stamps), maxlen=120
        )
        self._set_at = now

    def settled(self, now: float) -> bool:
        """Whether the offset is known, our clock was not set since, and the last witness agrees."""
        offset = self.offset(now)
        return (
            self._set_at is None
            and offset is not None
            and (not self._dates or _within(self._dates[-1], offset))
        )

    def heard_within(self, now: float, seconds: float) -> bool:
        """Whether there was a ``Date`` header lately."""
        return any(abs(now - one.at) <= seconds for one in self._dates)

    def offset(self, now: float) -> float | None:
        """The vendor's clock minus ours; ``None``: unknown."""
        if self._set_at is not None and not 0 <= now - self._set_at <= UNCONFIRMED_S:
            self._forget()
        by_dates, by_stamps = self._by_dates(now), self._by_stamps(now)
        self.disagreement = (
            by_dates is not None
            and by_stamps is not None
            and abs(by_dates) > self.limit_s
            and abs(by_stamps) <= self.limit_s
        )
        if self.disagreement:
            return None
        if by_dates is not None:
            return by_dates
        # Late stamps may be a late stream's; those from our future are by a clock that is ahead of ours.
        return None if by_stamps is None or by_stamps < -self.limit_s else by_stamps

    def _forget(self) -> None:
        self._dates.clear()
        self._stamps.clear()
        self._set_at = None

    def _by_dates(self, now: float) -> float | None:
        """What the last headers that agree say; up to two newer ones that do not are an accident."""
        dates = [one for one in self._dates if abs(now - one.at) <= DATE_HOLDS_S]
        for newer in range(AGREEING):
            agreeing = _agreed(dates[: len(dates) - newer])
            if agreeing is not None:
                low, high = agreeing
                # Slow answers tell little: of what they allow, the least is claimed.
                return (low + high) / 2 if high - low <= self.limit_s else min(max(0.0, low), high)
        return None

    def _by_stamps(self, now: float) -> float | None:
        stamps = [one for one in self._stamps if abs(now - one.at) <= STAMPS_HOLD_S]
        if len(stamps) < STAMPS_NEEDED or stamps[-1].at - stamps[0].at < STAMPS_OVER_S:
            return None
        if 2 * sum(one.aligned for one in stamps) > len(stamps):
            return None
        # A stamp is a whole second that has begun.
        return median(one.lead for one in stamps) + 0.5


def _within(one: _Date, offset: float) -> bool:
    return one.low - WIDENED_S <= offset <= one.high + WIDENED_S


def _agreed(dates: list[_Date]) -> tuple[float, float] | None:
    """Between which offsets lies what the last of ``dates`` agree on, if enough of them do."""
    if len(dates) < AGREEING:
        return None
    low, high = dates[-1].low, dates[-1].high
    agreeing = 1
    for one in reversed(dates[:-1]):
        narrower = max(low, one.low - WIDENED_S), min(high, one.high + WIDENED_S)
        if narrower[0] > narrower[1]:
            break
        low, high = narrower
        agreeing += 1
    return (low, high) if agreeing >= AGREEING else None
