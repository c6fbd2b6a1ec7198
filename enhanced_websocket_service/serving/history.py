"""What was published for one symbol, as encoded frames, in a ring of bounded length. Pure.

Entries are ordered by ``(epoch, offset)``. A client is a position in this order, not a queue: it is live,
or it is behind and reads the ring at its own pace. Invariant: offsets inside an epoch have no hole here;
where the bus has one (ticks stored but not published), a ``GAP`` entry stands in for them.
"""

import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple

import msgspec

from enhanced_websocket_service.market.tick import Tick

from .outlet import text_frame, text_frames
from .wire import market_data, market_data_of

TICK: Final = 0
BAR: Final = 1
EPOCH: Final = 2
GAP: Final = 3

_EPOCHS_REMEMBERED = 64


class Entry(NamedTuple):
    """One published message; ``first .. offset`` are the tick offsets it accounts for."""

    kind: int
    epoch: int
    offset: int  # a tick's own; for a bar that of the last tick before it; 0 for an epoch
    first: int
    frame: bytes


class TickEntry(msgspec.Struct, gc=False):
    """A published tick. Its frame is made when the first client wants it, and once."""

    kind: ClassVar[int] = TICK
    epoch: int
    offset: int
    tick: Tick | None
    made: bytes = b""

    @property
    def first(self) -> int:
        return self.offset

    @property
    def frame(self) -> bytes:
        if self.tick is not None:
            self.made, self.tick = text_frame(market_data(self.tick)), None
        return self.made


def frames_of(entries: Sequence[TickEntry]) -> list[bytes]:
    """The frame of each."""
    if len(entries) == 1:
        return [entries[0].frame]  # a lone tick's steps are cold ones: the fewest
    if any(entry.tick is None for entry in entries):
        return [entry.frame for entry in entries]
    messages = market_data_of([entry.tick for entry in entries if entry.tick is not None])
    frames = text_frames(messages)
    for entry, frame in zip(entries, frames, strict=True):
        entry.made, entry.tick = frame, None
    return frames


class Skip(NamedTuple):
    """Offsets ``first .. last`` of ``epoch`` that cannot be given any more."""

    epoch: int
    first: int
    last: int | None
    reason: str


class Position(NamedTuple):
    """Where a client stands: the ring entry it reads next, and the last tick it knows about."""

    seq: int
    epoch: int
    offset: int


class History:
    """The ring of one symbol. ``capacity`` counts entries: ticks and bars together."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError("A history holds at least one entry.")
        self._capacity = capacity
        self._ring: list[Entry | TickEntry] = []
        self._marks: deque[tuple[int, Entry]] = deque(maxlen=min(capacity, 4096))
        self._finals: dict[int, int] = {}  # epoch -> its last offset, for epochs that ended
        self._empty: deque[tuple[int, int]] = deque(maxlen=_EPOCHS_REMEMBERED)  # no ticks between
        self._own_from = 0  # entries before were published by another process, and not all are here
        self.next_seq = 0
        self.epoch: int | None = None
        self.head = 0
        """The last tick offset published in ``epoch``."""
        self.last_tick: Entry | TickEntry | None = None

    @property
    def first_seq(self) -> int:
        return self.next_seq - len(self._ring)

    @property
    def end(self) -> Position:
        """The position of a client that has everything."""
        return Position(self.next_seq, self.epoch or 0, self.head)

    def append(self, entry: Entry) -> None:
        """Add the newest entry; the caller keeps ``(epoch, offset)`` from going back."""
        if len(self._ring) < self._capacity:
            self._ring.append(entry)
        else:
            self._ring[self.next_seq % self._capacity] = entry
        if entry.kind == EPOCH:
            self._own_from = min(self._own_from, self.next_seq)
        if entry.kind in (BAR, EPOCH):
            self._marks.append((self.next_seq, entry))
        if entry.kind == TICK:
            self.last_tick = entry
        self.next_seq += 1
        self.epoch = entry.epoch
        self.head = entry.offset

    def extend(self, ticks: Sequence[TickEntry]) -> None:
        """Add ticks, at least one, that follow the last one and each other without a hole."""
        at = 0
        while at < len(ticks):
            begin = self.next_seq % self._capacity
            # The end of a ring that is not full yet is where the next one belongs, too.
            part = ticks[at : at + self._capacity - begin]
            self._ring[begin : begin + len(part)] = part
            self.next_seq += len(part)
            at += len(part)
        self.last_tick = last = ticks[-1]
        self.epoch, self.head = last.epoch, last.offset

    def seed(self, tick: TickEntry) -> None:
        """Begin with the last tick from before a restart; what followed it is not here.

        What is published here begins with an epoch of its own.
        """
        self.extend([tick])
        self._own_from = sys.maxsize

    def holds_from(self, epoch: int, offset: int) -> bool:
        """Whether everything published behind that tick is here, bars included."""
        seq = max(self.first_seq, self._own_from)
        if seq >= self.next_seq:
            return False
        first = self.at(seq)
        begins = (first.epoch, first.offset)
        # Of the bars behind a tick that has gone some may have gone, too.
        return (epoch, offset) > begins if first.kind == BAR else (epoch, offset) >= begins

    def close_epoch(self, epoch: int, last_offset: int, following: int | None = None) -> None:
        """Remember where ``epoch`` ended, so that a later cursor into it can be judged.

        :param following: the next epoch; those between the two, if any, had no ticks.
        """
        if following is not None:
            self._empty.append((epoch, following))
        self._finals[epoch] = last_offset
        while len(self._finals) > _EPOCHS_REMEMBERED:
            del self._finals[min(self._finals)]

    def at(self, seq: int) -> Entry | TickEntry:
        """The entry ``seq``, which must lie in ``first_seq .. next_seq - 1``."""
        return self._ring[seq % self._capacity]

    def marks_from(self, seq: int) -> list[Entry]:
        """The bars and epochs from ``seq`` on, oldest first."""
        found: list[Entry] = []
        for at, entry in reversed(self._marks):
            if at < seq:
                break
            found.append(entry)
        found.reverse()
        return found

    def final(self, epoch: int) -> int | None:
        """The last offset of ``epoch``; ``None`` when it is not known here."""
        return self.head if epoch == self.epoch else self._finals.get(epoch)

    def epochs_between(self, first: int, behind: int) -> list[int]:
        """The known epochs ``first <= epoch < behind``, in order."""
        known = self._finals if self.epoch is None else {*self._finals, self.epoch}
        return sorted(epoch for epoch in known if first <= epoch < behind)

    def locate(self, epoch: int, offset: int) -> tuple[Position, list[Skip]] | None:
        """Where a client that has everything up to ``(epoch, offset)`` must read on.

        The skips name what lies between and is gone. ``None``: the cursor is ahead of everything
        ever published here, so it cannot have come from this service.
        """
        if self.epoch is None:
            return self.end, []
        if epoch > self.epoch or (epoch == self.epoch and offset > self.head):
            return None
        skips: list[Skip] = []
        empty = offset == 0 and any(one < epoch < other for one, other in self._empty)
        if self.final(epoch) is None and not empty:
            # Nobody remembers that epoch: say so instead of guessing where it ended.
            skips.append(Skip(epoch, offset + 1, None, "epoch_unknown"))
        known = sorted({**self._finals, self.epoch: self.head}.items())
        for other, last in known:
            if other < epoch:
                continue
            wanted = offset + 1 if other == epoch else 1
            held = self._first_held(other)
            missing_to = last if held is None else min(held - 1, last)
            if wanted <= missing_to:
                skips.append(Skip(other, wanted, missing_to, "no_longer_held"))
        return Position(self._bisect(epoch, offset), epoch, offset), skips

    def _bisect(self, epoch: int, offset: int) -> int:
        def place(seq: int) -> tuple[int, int]:
            entry = self.at(seq)
            return entry.epoch, entry.offset

        window = range(self.first_seq, self.next_seq)
        return self.first_seq + bisect_left(window, (epoch, offset), key=place)

    def _first_held(self, epoch: int) -> int | None:
        """The first tick offset of ``epoch`` that the ring accounts for."""
        for seq in range(self._bisect(epoch, 0), self.next_seq):
            entry = self.at(seq)
            if entry.epoch != epoch:
                return None
            if entry.kind in (TICK, GAP):
                return entry.first
        return None
