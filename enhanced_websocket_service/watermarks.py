"""Watermarks of work: per hop how far the work is done, and since when what is not done waits. Pure.

Every hop counts positions that only grow: journal records, offsets of ticks. Who makes work says up to where
and when (``owed``), who does it says up to where (``done``); the age of the oldest work not done follows from
both. Nothing here reads a clock, waits or asks anybody; times are seconds of the machine's monotonic span,
handed in by a callable, as disks, databases and networks do not run faster in virtual time.

Does not own: whether an age is too high (``judge`` is given the limits), why work is not done, and the ages
of bars, which are of the service's clock: their owners are asked.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

GRAIN_S: Final = 0.25
"""Work that comes within this is one entry: an age may be told too high by so much."""
MOST_ENTRIES: Final = 512
"""Then neighbours become one: the memory stays bounded, and an age is told within a 256th of the outage."""
FEW_ENTRIES: Final = MOST_ENTRIES // 4
"""With so few left, what comes is told within ``GRAIN_S`` again, though something always waits."""


class Hop(StrEnum):
    """The stations of a price, in order."""

    RECEIVED = "received"
    ACCEPTED = "accepted"
    JOURNALED = "journaled"
    PUBLISHED = "published"
    CACHED = "cached"
    COMMITTED = "committed"
    BAR_CLOSED = "bar_closed"
    BAR_RECONCILED = "bar_reconciled"


@dataclass(frozen=True, slots=True)
class Mark:
    """The last work done at a hop: up to which position, and when (monotonic)."""

    position: int
    at: float


@dataclass(frozen=True, slots=True)
class Undone:
    """Work that waits at a hop: for how many seconds the oldest has, how much it is, of which symbol.

    ``symbols`` has the counts by symbol, where they are known; ``why`` what the hop itself knows.
    """

    hop: Hop
    age_s: float
    count: int
    symbols: Mapping[str, int] = field(default_factory=dict)
    why: str | None = None


class Trail:
    """When positions came to be. Bounded: what comes within the grain is one entry, and the grain grows."""

    __slots__ = ("_at", "_counts", "_ends", "_grain_s")

    def __init__(self) -> None:
        self._grain_s = GRAIN_S
        self._ends: list[int] = []  # behind the last position of each entry
        self._at: list[float] = []  # when its first one came
        self._counts: list[int] = []

    def add(self, end: int, count: int, at: float) -> None:
        """``count`` pieces of work came at ``at``; the last has position ``end``."""
        if self._at and at - self._at[-1] < self._grain_s:
            self._ends[-1] = end
            self._counts[-1] += count
            return
        self._ends.append(end)
        self._at.append(at)
        self._counts.append(count)
        if len(self._ends) > MOST_ENTRIES:
            self._thin()

    def behind(self, position: int) -> tuple[float, int] | None:
        """When the oldest work behind ``position`` came, and how much there is; ``None``: all is done."""
        first = bisect_right(self._ends, position)
        if first == len(self._ends):
            return None
        begun = min(self._counts[first], self._ends[first] - position)
        return self._at[first], begun + sum(self._counts[first + 1 :])

    def forget(self, position: int) -> None:
        """Nobody will ask about what lies up to ``position`` any more."""
        done = bisect_right(self._ends, position)
        if done:
            del self._ends[:done], self._at[:done], self._counts[:done]
        if len(self._ends) <= FEW_ENTRIES:
            self._grain_s = GRAIN_S

    def _thin(self) -> None:
        self._grain_s *= 2
        ends, at, counts = self._ends, self._at, self._counts
        even = len(ends) // 2 * 2
        self._ends = ends[1:even:2] + ends[even:]
        self._at = at[:even:2] + at[even:]
        pairs = zip(counts[:even:2], counts[1:even:2], strict=True)
        self._counts = [one + other for one, other in pairs] + counts[even:]


class _Symbol:
    """What is kept of one symbol."""

    __slots__ = ("marks", "offsets", "records", "refused", "refused_at", "why")

    def __init__(self) -> None:
        self.marks: dict[Hop, Mark] = {}
        self.offsets = Trail()  # of ticks that are to be published
        self.records = Trail()  # of the journal
        self.refused: dict[Hop, int] = {}  # since the hop last did its work
        self.refused_at: dict[Hop, float] = {}  # the first of them
        self.why: dict[Hop, str] = {}


_BY_OFFSET: Final = (Hop.PUBLISHED, Hop.CACHED)
_BY_RECORD: Final = (Hop.JOURNALED, Hop.COMMITTED)


class Watermarks:
    """The marks of one process. Every method is cheap: one call per batch, none per tick.

    :param now: seconds of a clock that nobody sets.
    :param cached: whether there is a Redis whose work counts.
    """

    def __init__(
        self, symbols: Iterable[str], now: Callable[[], float], *, cached: bool = True
    ) -> None:
        self._now = now
        self._symbols = {symbol: _Symbol() for symbol in symbols}
        self._records = Trail()  # of the journal, all symbols
        self._marks: dict[Hop, Mark] = {}
        self._end = 0  # records in the journal
        self._excused: set[Hop] = set()
        self._expected_since: dict[Hop, float] = {}
        self._offset_hops = _BY_OFFSET if cached else (Hop.PUBLISHED,)

    @property
    def symbols(self) -> Sequence[str]:
        return tuple(self._symbols)

    # --- work comes, and is done --------------------------------------------------------------

    def add(self, symbol: str) -> None:
        """``symbol`` is collected from now on."""
        self._symbols.setdefault(symbol, _Symbol())

    def begin_epoch(self) -> None:
        """Offsets begin again at 1: nothing of the epoch before is owed to clients and Redis any more."""
        for one in self._symbols.values():
            one.offsets = Trail()
            for hop in (Hop.ACCEPTED, *_BY_OFFSET):
                one.marks.pop(hop, None)

    def received(self, symbol: str, quotes: int) -> None:
        """``quotes`` of ``symbol`` have come so far."""
        self._reach(symbol, Hop.RECEIVED, quotes)

    def refused(self, symbol: str, hop: Hop, count: int, why: str) -> None:
        """``count`` pieces of work came to ``hop`` and were not done for good: refused, quarantined."""
        one = self._symbols.get(symbol)
        if one is None:
            return
        one.refused[hop] = one.refused.get(hop, 0) + count
        one.refused_at.setdefault(hop, self._now())
        one.why[hop] = why

    def worked(self, symbol: str, hop: Hop) -> None:
        """``hop`` did its work for a piece of ``symbol``: what it refused before was no habit."""
        one = self._symbols.get(symbol)
        if one is not None and hop in one.refused:
            del one.refused[hop], one.refused_at[hop], one.why[hop]

    def appended(self, records: int, end: int) -> None:
        """The journal took ``records``; it has ``end`` in all. They are owed to the disk and PostgreSQL."""
        self._end = end
        self._records.add(end, records, self._now())

    def accepted(self, symbol: str, ticks: int, offset: int) -> None:
        """``ticks`` of ``symbol`` up to ``offset`` are among what the journal took last."""
        one = self._symbols.get(symbol)
        if one is None:
            return
        at = self._now()
        one.marks[Hop.ACCEPTED] = Mark(offset, at)
        one.records.add(self._end, ticks, at)
        if one.refused:
            self.worked(symbol, Hop.ACCEPTED)

    def owed(self, symbol: str, ticks: int, offset: int) -> None:
        """Clients and Redis are to get ``ticks`` of ``symbol``, the last of which is ``offset``."""
        one = self._symbols.get(symbol)
        if one is not None:
            one.offsets.add(offset, ticks, self._now())

    def done(self, hop: Hop, position: int) -> None:
        """``hop`` has done everything up to journal record ``position``, of all symbols."""
        known = self._marks.get(hop)
        if known is None or position >= known.position:
            self._marks[hop] = Mark(position, self._now())

    def reached(self, symbol: str, hop: Hop, position: int) -> None:
        """``hop`` has done everything of ``symbol`` up to offset, or slot, ``position``."""
        self._reach(symbol, hop, position)
        one = self._symbols.get(symbol)
        if one is not None and one.refused:
            self.worked(symbol, hop)

    def excuse(self, hop: Hop) -> None:
        """``hop`` may not do its work now: what waits for it is nobody's fault."""
        self._excused.add(hop)

    def expect(self, hop: Hop) -> None:
        """``hop`` is to do its work; what waited while it was excused waits from now on."""
        if hop in self._excused:
            self._excused.discard(hop)
            self._expected_since[hop] = self._now()

    def rest(self, symbol: str) -> None:
        """The session of ``symbol`` is over: what its market sent in vain says nothing about the next one."""
        for hop in (Hop.ACCEPTED, Hop.PUBLISHED):
            self.worked(symbol, hop)

    def alive(self, hop: Hop) -> None:
        """A probe did the work of ``hop``, up to where it was."""
        known = self._marks.get(hop)
        self._marks[hop] = Mark(0 if known is None else known.position, self._now())

    def _reach(self, symbol: str, hop: Hop, position: int) -> None:
        one = self._symbols.get(symbol)
        if one is None:
            return
        known = one.marks.get(hop)
        if known is None or position >= known.position:
            one.marks[hop] = Mark(position, self._now())

    # --- what follows -------------------------------------------------------------------------

    def last(self, hop: Hop, symbol: str | None = None) -> Mark | None:
        """The last work done at ``hop``, of ``symbol`` or of all; a probe counts as work."""
        if symbol is None:
            marks = [mark for one in self._symbols.values() if (mark := one.marks.get(hop))]
            if common := self._marks.get(hop):
                marks.append(common)
            return max(marks, key=lambda mark: mark.at, default=None)
        return self._marks.get(hop) if hop in _BY_RECORD else self._symbols[symbol].marks.get(hop)

    def age_s(self, mark: Mark) -> float:
        """Seconds since the work of ``mark`` was done."""
        return self._now() - mark.at

    def undone(self) -> list[Undone]:
        """What waits at each hop that counts positions, and what was refused there; by hop."""
        now = self._now()
        self._forget()
        found = [self._of_journal(hop, now) for hop in _BY_RECORD]
        found += [self._of_offsets(hop, now) for hop in self._offset_hops]
        found += [self._refusals(hop, now) for hop in Hop]
        return [one for one in found if one is not None]

    def of_symbol(self, symbol: str, hop: Hop) -> tuple[float, int] | None:
        """Since how many seconds work of ``symbol`` waits at ``hop``, and how much; ``None``: none does."""
        one = self._symbols[symbol]
        if hop in self._excused:
            waiting = None
        elif hop in _BY_RECORD:
            waiting = one.records.behind(self._position(self._marks.get(hop)))
            if waiting is not None:
                since = max(waiting[0], self._expected_since.get(hop, waiting[0]))
                waiting = (since, waiting[1])
        elif hop in self._offset_hops:
            waiting = one.offsets.behind(self._position(one.marks.get(hop)))
        else:
            waiting = None
        refused = one.refused.get(hop, 0)
        begun = [at for at in (waiting and waiting[0], one.refused_at.get(hop)) if at is not None]
        if not begun:
            return None
        return self._now() - min(begun), (waiting[1] if waiting else 0) + refused

    def _of_journal(self, hop: Hop, now: float) -> Undone | None:
        position = self._position(self._marks.get(hop))
        if hop in self._excused or (waiting := self._records.behind(position)) is None:
            return None
        counts = {
            symbol: behind[1]
            for symbol, one in self._symbols.items()
            if (behind := one.records.behind(position)) is not None
        }
        since = max(waiting[0], self._expected_since.get(hop, waiting[0]))
        return Undone(hop, now - since, waiting[1], counts)

    def _of_offsets(self, hop: Hop, now: float) -> Undone | None:
        since: list[float] = []
        counts: dict[str, int] = {}
        for symbol, one in self._symbols.items():
            waiting = one.offsets.behind(self._position(one.marks.get(hop)))
            if waiting is not None:
                since.append(waiting[0])
                counts[symbol] = waiting[1]
        if not counts:
            return None
        return Undone(hop, now - min(since), sum(counts.values()), counts)

    def _refusals(self, hop: Hop, now: float) -> Undone | None:
        counts = {s: one.refused[hop] for s, one in self._symbols.items() if hop in one.refused}
        if not counts:
            return None
        oldest = min(counts, key=lambda symbol: self._symbols[symbol].refused_at[hop])
        first = self._symbols[oldest]
        age_s = now - first.refused_at[hop]
        return Undone(hop, age_s, sum(counts.values()), counts, first.why[hop])

    def _forget(self) -> None:
        record = min(self._position(self._marks.get(hop)) for hop in _BY_RECORD)
        self._records.forget(record)
        for one in self._symbols.values():
            one.records.forget(record)
            one.offsets.forget(min(self._position(one.marks.get(hop)) for hop in self._offset_hops))

    @staticmethod
    def _position(mark: Mark | None) -> int:
        return 0 if mark is None else mark.position


_TOLD: Final = {
    Hop.ACCEPTED: ("quotes", "were received and not accepted"),
    Hop.JOURNALED: ("records", "are not on the journal's disk"),
    Hop.PUBLISHED: ("ticks", "have not reached the clients"),
    Hop.CACHED: ("ticks", "are not cached and published in Redis"),
    Hop.COMMITTED: ("records", "are not committed in their table in PostgreSQL"),
    Hop.BAR_CLOSED: ("bars", "should be closed and are not"),
    Hop.BAR_RECONCILED: ("symbols", "have slots that should be compared with the vendor's bars"),
}


def judge(
    undone: Iterable[Undone],
    limits: Mapping[Hop, float],
    cause: Callable[[Hop], str | None] = lambda _: None,
) -> list[str]:
    """A sentence for each hop whose oldest work not done is older than its limit.

    :param limits: seconds; a hop without one is never too late.
    :param cause: why a hop does not do its work, in the words of whoever refuses it.
    """
    problems = []
    for one in undone:
        limit = limits.get(one.hop)
        if limit is None or one.age_s < limit:
            continue
        what, state = _TOLD.get(one.hop, ("pieces of work", "are not done"))
        what = what[:-1] if one.count == 1 else what
        state = state.replace("are ", "is ", 1) if one.count == 1 else state
        state = (
            state.replace("have ", "has ", 1).replace("were ", "was ", 1)
            if one.count == 1
            else state
        )
        which = ", ".join(f"{symbol} {count}" for symbol, count in one.symbols.items())
        told = f"{one.hop}: {one.count} {what}{f' ({which})' if which else ''} {state}"
        why = one.why or cause(one.hop) or "no answer to it yet, and no refusal"
        problems.append(f"{told}, the oldest for {one.age_s:.0f} s: {why}")
    return problems
