"""Ticks to bars of one symbol and one interval.

Invariants: a tick belongs to the bar of its own stamp; inside a bar ticks are ordered by stamp and,
within one second, by arrival; only ``advance`` (the clock) closes a bar; a bar without ticks does
not exist. The stamps of ticks never move the clock of the aggregator.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from .bar import Bar, BarStatus, Certificate
from .tick import Tick

CLOCK_STEP_S = 1.0
"""A clock that goes back by more than this was set; by less it was adjusted."""
REMEMBERED_BARS = 300
"""Published bars of which a gap may still be learned: a day of a market that never closes."""


@dataclass(slots=True)
class _Growing:
    open_time: int
    open: float
    high: float
    low: float
    close: float
    first_tick: int
    last_tick: int
    volume: int
    source: str
    ticks: dict[str, int] = field(default_factory=dict)
    stamps: set[int] = field(default_factory=set)  # seconds with a tick, for the longest silence
    revision: int = -1  # -1 until first closed
    dirty: bool = False
    gap: bool = False  # collection was interrupted in it; settled when it is first closed

    def add_from(self, ticks: Sequence[Tick], first: int, end: int) -> int:
        """Take ``ticks[first]`` and those behind it, up to one stamped outside ``open_time .. end``.

        :returns: its index.
        """
        ticks_of, stamps, open_time = self.ticks, self.stamps, self.open_time
        for at in range(first, len(ticks)):
            tick = ticks[at]
            stamp = tick.timestamp
            if not open_time <= stamp < end:
                return at
            price, source = tick.price, tick.source
            if price > self.high:
                self.high = price
            elif price < self.low:
                self.low = price
            if stamp >= self.last_tick:
                self.last_tick, self.close = stamp, price
            elif stamp < self.first_tick:
                self.first_tick, self.open = stamp, price
                if self.revision < 0:  # later it is the key under which the bar is known
                    self.source = source
            self.volume += tick.volume
            ticks_of[source] = ticks_of.get(source, 0) + 1
            stamps.add(stamp)
        return len(ticks)


class BarAggregator:
    """Builds the bars of one symbol.

    :param close_delay: seconds after a bar's end at which the clock closes it.
    """

    def __init__(self, symbol: str, *, interval_s: int = 300, close_delay: float = 1.0) -> None:
        self.symbol = symbol
        self.interval_s = interval_s
        self.close_delay = close_delay
        self._bars: dict[int, _Growing] = {}
        self._forgotten_until = 0.0  # bars that end at or before are beyond revision
        self._now = 0.0
        self._gaps: list[tuple[float, float]] = []
        self._open_gap = math.inf  # the start of one that has not ended
        self._doubts: set[int] = set()  # slots of which a part was lost
        self._published: dict[int, Bar] = {}  # the last version of each slot, oldest slot first
        self._settled: set[int] = set()  # slots that the vendor's bars have taken over
        self._to_amend: set[int] = set()

    def interrupted(self, start: float, end: float, *, published: bool = False) -> None:
        """Nothing was collected in ``[start, end)``; bars that touch it are partial.

        :param end: infinite: it is not over; the next call with ``published`` says when it was.
        :param published: also those that were already published whole; they get a revision, unless
            the vendor's bar has taken their place.
        """
        if published:
            self._open_gap = start if end == math.inf else math.inf
        if end <= start:
            return
        if end < math.inf:
            self._gaps.append((start, end))
        if published:
            for slot in self._published:
                if slot < end and slot + self.interval_s > start:
                    self._amend(slot)

    def doubt(self, timestamp: int) -> None:
        """Something stamped ``timestamp`` may belong to its bar and is lost: the bar is partial."""
        slot = self._slot(timestamp)
        if len(self._doubts) >= REMEMBERED_BARS:
            self._doubts.discard(min(self._doubts))
        self._doubts.add(slot)
        if slot in self._published:
            self._amend(slot)

    def accepts(self, timestamp: int) -> bool:
        """Whether a tick stamped ``timestamp`` can still enter its bar."""
        slot = timestamp - timestamp % self.interval_s
        return slot in self._bars or (
            slot + self.interval_s > self._forgotten_until
            # After the clock was set back: what was published is not begun anew.
            and slot not in self._published
            and slot not in self._settled
        )

    def add(self, tick: Tick) -> bool:
        """Take ``tick`` into the bar of its stamp.

        :returns: ``False`` when that bar is beyond revision; the tick is then in no bar.
        """
        return self.add_all((tick,)) == 1

    def add_all(self, ticks: Sequence[Tick]) -> int:
        """Take ``ticks`` in order, as ``add`` does; how many a bar took."""
        at = taken = 0
        while at < len(ticks):
            bar = self._bar_of(ticks[at])
            if bar is None:
                at += 1
                continue
            first, at = at, bar.add_from(ticks, at, bar.open_time + self.interval_s)
            bar.dirty = True
            taken += at - first
        return taken

    def advance(
        self,
        now: float,
        grace: float,
        undecided: Collection[int] = (),
        reached: float = math.inf,
    ) -> list[Bar]:
        """Close and revise what is due at ``now``, oldest first; forget what is beyond revision.

        :param grace: seconds after a bar's end during which a late tick still revises it.
        :param undecided: stamps of quotes that may yet become ticks; their bars are partial until then.
        :param reached: the stamp up to which the feed has told everything; bars that end later are partial
            until it has passed their end.
        """
        if now < self._now - CLOCK_STEP_S:
            self._forgotten_until = min(self._forgotten_until, now - grace)
            self._doubt_what_ends_after(now)
            if self._open_gap < math.inf:
                self._open_gap = min(self._open_gap, now)  # it lasts, and began before now
        elif 0.0 < self._now < now - grace - self.interval_s:
            # Set ahead, or nobody looked for so long that a whole bar could come and go.
            self._gaps.append((self._now, now))
        self._now = now
        doubtful = {self._slot(stamp) for stamp in undecided} | self._doubts
        due = self._amended()
        for slot in sorted(self._bars):
            bar = self._bars[slot]
            end = slot + self.interval_s
            if now < end + self.close_delay:
                break
            if bar.revision < 0:
                bar.gap = bar.gap or any(start < end and stop > slot for start, stop in self._gaps)
            bar.gap = bar.gap or self._open_gap < end
            known = self._published.get(slot)
            partial = bar.gap or slot in doubtful or end > reached
            if bar.dirty or (known is not None and _is_partial(known) != partial):
                bar.dirty = False
                bar.revision += 1
                status: BarStatus = "closed" if bar.revision == 0 else "revised"
                due.append(self._publish(self._snapshot(bar, status, partial)))
            if now >= end + grace:
                del self._bars[slot]
        self._forgotten_until = max(self._forgotten_until, now - grace)
        if len(self._gaps) > 1:
            # A bar that has no tick yet may still begin in the middle of an old gap's slot.
            needed = min([*self._bars, self._forgotten_until - self.interval_s])
            self._gaps = [gap for gap in self._gaps if gap[1] > needed]
        return due

    def next_close(self) -> float | None:
        """The earliest instant at which ``advance`` has a bar to close or revise."""
        slots = [slot for slot, bar in self._bars.items() if bar.dirty]
        slots += self._to_amend
        return min(slots) + self.interval_s + self.close_delay if slots else None

    def resume(self, bar: Bar) -> None:
        """While replaying the journal: ``bar`` was published here."""
        if bar.certificate is None:
            self.settle(bar.open_time)
            return
        self._publish(bar)
        growing = self._bars.get(bar.open_time)
        if growing is not None:
            growing.revision = bar.revision
            growing.dirty = False
            growing.gap = bar.certificate.partial

    def settle(self, slot: int) -> None:
        """The vendor's bar of ``slot`` was published: ticks and gaps change it no more."""
        if len(self._settled) >= REMEMBERED_BARS:
            self._settled.discard(min(self._settled))
        self._settled.add(slot)
        self._bars.pop(slot, None)
        self._published.pop(slot, None)
        self._to_amend.discard(slot)

    def revision(self, slot: int) -> int:
        """The last revision that was published of ``slot``; -1: none that matters any more."""
        bar = self._published.get(slot)
        return -1 if bar is None else bar.revision

    def _bar_of(self, tick: Tick) -> _Growing | None:
        slot = self._slot(tick.timestamp)
        bar = self._bars.get(slot)
        if bar is None and self.accepts(tick.timestamp):
            price, stamp = tick.price, tick.timestamp
            bar = self._bars[slot] = _Growing(
                open_time=slot,
                open=price,
                high=price,
                low=price,
                close=price,
                first_tick=stamp,
                last_tick=stamp,
                volume=0,
                source=tick.source,
            )
        return bar

    def _slot(self, stamp: int) -> int:
        return stamp - stamp % self.interval_s

    def _doubt_what_ends_after(self, now: float) -> None:
        """The clock was set back to ``now``: what it has closed before its end lacks the rest."""
        for slot in [one for one in self._published if one + self.interval_s > now]:
            self.doubt(slot)

    def _amend(self, slot: int) -> None:
        """The published bar of ``slot`` turned out to have a gap."""
        if (growing := self._bars.get(slot)) is not None:
            growing.gap = True
        elif not _is_partial(self._published[slot]):
            self._to_amend.add(slot)

    def _amended(self) -> list[Bar]:
        """Bars beyond revision that must say that they are partial."""
        found = []
        for slot in sorted(self._to_amend):
            bar = self._published[slot]
            if bar.certificate is not None:
                partial = msgspec.structs.replace(bar.certificate, partial=True)
                bar = msgspec.structs.replace(
                    bar, revision=bar.revision + 1, status="revised", certificate=partial
                )
                found.append(self._publish(bar))
        return found

    def _publish(self, bar: Bar) -> Bar:
        if len(self._published) >= REMEMBERED_BARS:
            oldest = min(self._published)
            del self._published[oldest]
            self._to_amend.discard(oldest)
        self._published[bar.open_time] = bar
        self._to_amend.discard(bar.open_time)
        return bar

    def _snapshot(self, bar: _Growing, status: BarStatus, partial: bool) -> Bar:
        edges = sorted({bar.open_time, *bar.stamps, bar.open_time + self.interval_s})
        silence = max(later - earlier for earlier, later in pairwise(edges))
        return Bar(
            symbol=self.symbol,
            interval_s=self.interval_s,
            open_time=bar.open_time,
            open=bar.open,
            high=bar.high,
            low=bar.low,
            close=bar.close,
            volume=bar.volume,
            source=bar.source,
            revision=bar.revision,
            status=status,
            certificate=Certificate(
                ticks=dict(bar.ticks),
                first_tick=bar.first_tick,
                last_tick=bar.last_tick,
                longest_silence_s=silence,
                partial=partial,
            ),
        )


def _is_partial(bar: Bar) -> bool:
    return bar.certificate is not None and bar.certificate.partial
