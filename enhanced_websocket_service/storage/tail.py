"""The newest ticks of the journal as they were appended, so that who follows need not read them back.

The journal stays the truth: only what was written is here, under the position at which it lies there,
and whatever is not here is read from the file. Bounded: of a backlog only the end is here.
"""

from bisect import bisect_right
from collections.abc import Sequence
from operator import attrgetter
from typing import Final

import msgspec

from enhanced_websocket_service.market.tick import Tick

from .records import Record
from .segment import Position

TAIL_TICKS: Final = 16_384
"""Some 6 MB of ticks."""


class _Part(msgspec.Struct, frozen=True, gc=False):
    """What one append wrote: record ``first + i`` ends at ``ends[i]`` of ``segment``."""

    segment: int
    begin: int
    first: int
    ticks: Sequence[Record]
    ends: Sequence[int]


_FIRST: Final = attrgetter("first")


class Tail:
    """``most``: ticks that are kept; older ones go first."""

    def __init__(self, most: int = TAIL_TICKS) -> None:
        self._most = most
        self._parts: list[_Part] = []  # ascending
        self._ticks = 0

    def __len__(self) -> int:
        return self._ticks

    def add(self, begin: Position, records: Sequence[Record], ends: Sequence[int]) -> None:
        """``records`` were appended at ``begin``; the first of them ends at ``ends[0]``."""
        if set(map(type, records)) != {Tick} or len(records) > self._most:
            return  # anything else is rare, and not always read as it was given
        self._parts.append(_Part(begin.segment, begin.offset, begin.record, tuple(records), ends))
        self._ticks += len(records)
        while self._ticks > self._most:
            self._ticks -= len(self._parts.pop(0).ticks)

    def read(self, position: Position, limit: int) -> tuple[Sequence[Record], Position] | None:
        """At most ``limit`` ticks from ``position`` on and where they end; ``None``: look into the file."""
        at = bisect_right(self._parts, position.record, key=_FIRST) - 1
        if at < 0:
            return None
        part = self._parts[at]
        index = position.record - part.first
        if index >= len(part.ends) or part.segment != position.segment:
            return None
        if position.offset != (part.ends[index - 1] if index else part.begin):
            return None
        ticks = part.ticks[index : index + limit]
        last = index + len(ticks)
        return ticks, Position(part.segment, part.ends[last - 1], part.first + last)
