"""How far a stream lies behind its own stamps. Pure.

One old stamp says nothing: ticks may be delivered out of order, and a stamp may be that of the minute in
which the tick fell. What is steady is the *youngest* stamp of the last minute, less a minute where every
stamp is a whole one.
"""

import math
from collections import deque
from typing import Final

OLD_S: Final = 120.0
"""An older stamp proves nothing: two minutes hold a stamp aligned to the minute and the vendor's own
delay."""
STEADY_S: Final = 65.0
"""The stretch whose youngest stamp counts: a minute, to which stamps may be aligned, and a margin."""
FEWEST: Final = 5
"""Seconds with prices that are looked at however long ago they were: a thin market has no more."""
MINUTE: Final = 60


class _Second:
    __slots__ = ("age", "aligned", "second")

    def __init__(self, second: int, age: float, aligned: bool) -> None:
        self.second = second
        self.age = age
        self.aligned = aligned


class StampAge:
    """The ages of the stamps that one connection brought lately; bounded, however many prices come."""

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque()  # oldest first
        self._misaligned = 0  # of them

    def clear(self) -> None:
        self._seconds.clear()
        self._misaligned = 0

    def add(self, stamp: int, age: float, at: float) -> None:
        """Note a price.

        :param stamp: the vendor's, unix seconds.
        :param age: seconds between it and the receipt; negative where the vendor's clock is ahead.
        :param at: the receipt; instants never go back.
        """
        second, aligned = math.floor(at), stamp % MINUTE == 0
        seconds = self._seconds
        if seconds and seconds[-1].second >= second:
            last = seconds[-1]
            last.age = min(last.age, age)
            if last.aligned and not aligned:
                last.aligned = False
                self._misaligned += 1
            return
        seconds.append(_Second(second, age, aligned))
        self._misaligned += not aligned
        while len(seconds) > FEWEST and seconds[0].second < second - STEADY_S:
            self._misaligned -= not seconds.popleft().aligned

    @property
    def lag_s(self) -> float:
        """How far the stream steadily lies behind, in seconds; 0 where nothing is known."""
        if not self._seconds:
            return 0.0
        youngest = min(one.age for one in self._seconds)
        return max(0.0, youngest - (MINUTE if self._misaligned == 0 else 0))
