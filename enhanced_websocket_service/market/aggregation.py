"""Ticks to bars of one symbol and one interval.

Invariants: a tick belongs to the bar of its own stamp; inside a bar ticks are ordered by stamp and,
within one second, by arrival; only ``advance`` (the clock) closes a bar; a bar without ticks does
not exist. The stamps of ticks never move the clock of the aggregator.
"""

from dataclasses import dataclass, field
from itertools import pairwise

from .bar import Bar, BarStatus, Certificate
from .tick import Tick


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

    def add(self, tick: Tick) -> None:
        price, stamp = tick.price, tick.timestamp
        if price > self.high:
            self.high = price
        elif price < self.low:
            self.low = price
        if stamp >= self.last_tick:
            self.last_tick, self.close = stamp, price
        elif stamp < self.first_tick:
            self.first_tick, self.open = stamp, price
        self.volume += tick.volume
        self.ticks[tick.source] = self.ticks.get(tick.source, 0) + 1
        self.stamps.add(stamp)


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
        self._gaps: list[tuple[float, float]] = []

    def interrupted(self, start: float, end: float) -> None:
        """Nothing was collected in ``[start, end)``; bars that touch it are partial."""
        self._gaps.append((start, end))

    def accepts(self, timestamp: int) -> bool:
        """Whether a tick stamped ``timestamp`` can still enter its bar."""
        slot = timestamp - timestamp % self.interval_s
        return slot in self._bars or slot + self.interval_s > self._forgotten_until

    def add(self, tick: Tick) -> bool:
        """Take ``tick`` into the bar of its stamp.

        :returns: ``False`` when that bar is beyond revision; the tick is then in no bar.
        """
        slot = tick.timestamp - tick.timestamp % self.interval_s
        bar = self._bars.get(slot)
        if bar is None:
            if slot + self.interval_s <= self._forgotten_until:
                return False
            price = tick.price
            bar = self._bars[slot] = _Growing(
                open_time=slot,
                open=price,
                high=price,
                low=price,
                close=price,
                first_tick=tick.timestamp,
                last_tick=tick.timestamp,
                volume=0,
                source=tick.source,
            )
        bar.add(tick)
        bar.dirty = True
        return True

    def advance(self, now: float, grace: float) -> list[Bar]:
        """Close and revise what is due at ``now``, oldest first; forget what is beyond revision.

        :param grace: seconds after a bar's end during which a late tick still revises it.
        """
        due: list[Bar] = []
        for slot in sorted(self._bars):
            bar = self._bars[slot]
            end = slot + self.interval_s
            if now < end + self.close_delay:
                break
            if bar.dirty:
                bar.dirty = False
                bar.revision += 1
                due.append(self._snapshot(bar, "closed" if bar.revision == 0 else "revised"))
            if now >= end + grace:
                del self._bars[slot]
        self._forgotten_until = max(self._forgotten_until, now - grace)
        if len(self._gaps) > 1:
            self._gaps = [gap for gap in self._gaps if gap[1] > self._forgotten_until]
        return due

    def next_close(self) -> float | None:
        """The earliest instant at which ``advance`` has a bar to close or revise."""
        instants = (
            slot + self.interval_s + self.close_delay
            for slot, bar in self._bars.items()
            if bar.dirty
        )
        return min(instants, default=None)

    def resume(self, slot: int, revision: int) -> None:
        """While replaying the journal: ``revision`` of the bar at ``slot`` was published here."""
        bar = self._bars.get(slot)
        if bar is not None:
            bar.revision = revision
            bar.dirty = False

    def _snapshot(self, bar: _Growing, status: BarStatus) -> Bar:
        end = bar.open_time + self.interval_s
        edges = sorted({bar.open_time, *bar.stamps, end})
        silence = max(later - earlier for earlier, later in pairwise(edges))
        partial = any(start < end and stop > bar.open_time for start, stop in self._gaps)
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
