"""Stretches of time in which a feed failed, until the vendor's bars have repaired them. Pure.

Kept in memory: after a restart the bars themselves are the evidence (absent, partial, of two feeds).
"""

from collections.abc import Iterable

from .calendar import BAR_SECONDS


class LostSpans:
    """Spans ``[start, end)`` of one symbol, unix seconds UTC; those that meet are one."""

    def __init__(self) -> None:
        self._spans: list[tuple[float, float]] = []

    def __bool__(self) -> bool:
        return bool(self._spans)

    @property
    def spans(self) -> list[tuple[float, float]]:
        return list(self._spans)

    def add(self, start: float, end: float) -> bool:
        """Remember a span; whether it covers anything that was not remembered already."""
        if end <= start:
            return False
        if any(known[0] <= start and end <= known[1] for known in self._spans):
            return False
        apart = [known for known in self._spans if known[1] < start or end < known[0]]
        met = [known for known in self._spans if known not in apart]
        merged = (min([start, *(one[0] for one in met)]), max([end, *(one[1] for one in met)]))
        self._spans = sorted([*apart, merged])
        return True

    def touches(self, slot: int) -> bool:
        """Whether a part of the bar that opens at ``slot`` was lost."""
        return any(start < slot + BAR_SECONDS and end > slot for start, end in self._spans)

    def keep(self, slots: Iterable[int]) -> None:
        """Forget the spans that touch none of ``slots``, which are all that is not repaired yet."""
        wanted = tuple(slots)
        self._spans = [
            (start, end)
            for start, end in self._spans
            if any(start < slot + BAR_SECONDS and end > slot for slot in wanted)
        ]
