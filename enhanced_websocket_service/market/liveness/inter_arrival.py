"""What was heard of a symbol today: its pace, and what there is to learn for the days to come. Pure."""

from collections import deque
from datetime import date
from statistics import median
from typing import Final

from .baseline import Usual

SOONEST_S, LATEST_S = 8.0, 120.0
"""Bounds of the silence after which a symbol is suspect."""
MARGIN: Final = 1.4
"""How much longer than the longest usual silence is unusual."""

MARGIN_TODAY: Final = 1.6
"""The same over the longest of today's last gaps, which are fewer."""
MANY: Final = 60
"""Gaps of today that say as much as earlier days do, when they are recent."""

_RECENT_S: Final = 1800.0
_SHORTEST_GAP_S: Final = 1.0
_THIN_GAPS: Final = 5
_FEWEST_GAPS: Final = 3


class InterArrivalTimes:
    """The distances of today's prices; those within a second count as one price."""

    def __init__(self) -> None:
        self._gaps: deque[float] = deque(maxlen=MANY)
        self._counted_at: float | None = None

    def forget(self) -> None:
        """A new day, or a new connection whose first price ends no silence."""
        self._gaps.clear()
        self._counted_at = None

    def restart(self) -> None:
        """The next price ends no silence that was heard from its start."""
        self._counted_at = None

    def price(self, at: float) -> None:
        if self._counted_at is None:
            self._counted_at = at
        elif at - self._counted_at >= _SHORTEST_GAP_S:
            self._gaps.append(at - self._counted_at)
            self._counted_at = at

    @property
    def recent_gap(self) -> float | None:
        """The median of the last gaps, in seconds; ``None`` when there were too few."""
        if len(self._gaps) < _FEWEST_GAPS:
            return None
        return float(median(list(self._gaps)[-_THIN_GAPS:]))

    @property
    def longest_gap(self) -> float:
        """The longest of the gaps that are remembered, in seconds; 0: none is."""
        return max(self._gaps, default=0.0)

    def suspect_after(self, usual: Usual) -> float:
        """The silence, in seconds, that is unusual now: by earlier days, corrected by today."""
        limit = MARGIN * usual.silence_s
        if len(self._gaps) == MANY and sum(self._gaps) <= _RECENT_S:
            today = MARGIN_TODAY * max(self._gaps)
            limit = today if not usual.days else min(limit, today)
        recent = self.recent_gap
        if recent is not None and recent >= 3 * usual.gap_s:
            # Thinner than usual, and that was no fault: or we would not be listening any more.
            limit = max(limit, 6 * recent)
        return min(max(limit, SOONEST_S), LATEST_S)


class MinuteStatistics:
    """What was heard in the minute of the session that is under way."""

    def __init__(self) -> None:
        self._day: date | None = None
        self._number = -1
        self._ticks = 0
        self._longest = 0.0

    def tick(self, gap: float) -> None:
        self._ticks += 1
        self._longest = max(self._longest, gap)

    def advance(self, day: date, number: int, silence: float) -> list[tuple[int, int, float]]:
        """Go on to minute ``number``.

        :param silence: how long the silence under way has lasted, in seconds.
        :returns: of the minutes that ended: number, ticks, longest silence.
        """
        if day == self._day and number == self._number:
            return []
        ended: list[tuple[int, int, float]] = []
        if day == self._day and self._number < number:
            ended.append((self._number, self._ticks, self._longest))
            # Minutes without a single price are as silent as the silence is long.
            ended += [(between, 0, silence) for between in range(self._number + 1, number)]
        self._day, self._number = day, number
        self._ticks, self._longest = 0, 0.0
        return ended
