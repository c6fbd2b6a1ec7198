"""Reading the journal: the writer's live tail, recovery after a restart, inspection by others.

A reader never changes a file. What is not intact is skipped, remembered in ``damage`` and logged once;
it is never guessed at. Reads are synchronous: the pages are in memory or about to be.
"""

import math
import os
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import structlog

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.events import EPOCH_LIMIT, EpochStarted
from enhanced_websocket_service.market.source import World, world_of
from enhanced_websocket_service.market.tick import Flag, Rejection, Tick

from .records import Record, UnreadableRecord, decode, decode_all
from .segment import (
    FRAME_OVERHEAD,
    HEADER_SIZE,
    START,
    Damage,
    Header,
    Position,
    decode_header,
    scan,
    seed,
)
from .tail import Tail

log = structlog.get_logger(__name__)

SUFFIX: Final = ".journal"
IDENTITY: Final = "journal_id"
_CHUNK: Final = 64 * 1024
_STAMP_TOLERANCE_S: Final = 5.0  # stamps further ahead of the receipt are flagged and in no bar
SEARCH_BYTES: Final = 64 * 1024 * 1024
"""How much of the journal a start reads to find what is older than the rest: one to two seconds. A symbol
that never ticked would make it read all of it, and somebody's probe kills who does not listen for so long.
"""


def segment_path(directory: Path, number: int) -> Path:
    return directory / f"{number:020d}{SUFFIX}"


def segment_numbers(directory: Path) -> list[int]:
    """The segments in ``directory``, ascending."""
    names = (path.stem for path in directory.glob(f"*{SUFFIX}"))
    return sorted(int(name) for name in names if name.isdecimal())


def read_header(directory: Path, number: int) -> Header | None:
    """The header of a segment; ``None`` when it is torn, damaged or of another file."""
    with segment_path(directory, number).open("rb") as file:
        header = decode_header(file.read(HEADER_SIZE))
    return header if header is not None and header.number == number else None


def read_identity(directory: Path) -> uuid.UUID | None:
    """The journal's identity: from its file or, should that be lost, from any intact header."""
    try:
        return uuid.UUID((directory / IDENTITY).read_text().strip())
    except (FileNotFoundError, ValueError):
        for number in reversed(segment_numbers(directory)):
            header = read_header(directory, number)
            if header is not None:
                return header.journal_id
    return None


class JournalReader:
    """Reads records from ``position`` on, in the order they were appended.

    :param end: how far the journal's owner has acknowledged; without it (somebody else's journal)
        everything intact is read.
    :param last: the last segment to read; without it all of them.
    :param tail: the owner's newest ticks; what is there need not be read from the disk.
    """

    def __init__(
        self,
        directory: Path,
        position: Position = START,
        *,
        end: Callable[[], Position] | None = None,
        last: int | None = None,
        tail: Tail | None = None,
    ) -> None:
        self._directory = directory
        self._tail = tail
        self._end = end
        self._last = last
        self._position = position
        self._fd = -1
        self._stop: int | None = None  # where the open segment ends, once it is sealed
        self._seed = 0
        self.damage: deque[Damage] = deque(maxlen=100)
        self.damages = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def position(self) -> Position:
        """Behind the last record returned."""
        return self._position

    def seek(self, position: Position) -> None:
        self.close()
        self._position = position

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._stop = -1, None

    def read(self, limit: int = 1000) -> list[Record]:
        """At most ``limit`` further records; none when there are no more yet.

        :raises JournalError: the disk cannot be read.
        """
        records: list[Record] = []
        try:
            while len(records) < limit:
                kept = self._tail and self._tail.read(self._position, limit - len(records))
                if kept:
                    records += kept[0]
                    self._position = kept[1]
                    continue
                if self._fd < 0 and not self._open(at_least=self._position.segment):
                    break
                stop = self._segment_stop()
                if self._position.offset < stop:
                    self._take(stop, records, limit - len(records))
                elif not self._open(at_least=self._position.segment + 1):
                    break
        except OSError as error:
            raise JournalError(
                f"The journal in {self._directory} cannot be read: {error}"
            ) from error
        return records

    def _open(self, at_least: int) -> bool:
        """Go to the first segment numbered ``at_least`` or higher."""
        limits = [self._last, None if self._end is None else self._end().segment]
        last = min((limit for limit in limits if limit is not None), default=None)
        if last is not None and at_least > last:
            return False
        number = next((n for n in segment_numbers(self._directory) if n >= at_least), None)
        if number is None or (last is not None and number > last):
            if self._end is not None and 0 < self._end().segment == last:
                # "Nothing more yet" would be asked for again at once, and for ever.
                raise JournalError(f"{segment_path(self._directory, last)} was deleted.")
            return False
        before = self._position
        self.close()
        try:
            header = read_header(self._directory, number)
        except FileNotFoundError:
            # Somebody else's journal, and its owner has just pruned it: the next one may be there.
            return self._open(at_least)
        identity = read_identity(self._directory)
        if identity is None:
            raise JournalError(
                f"{self._directory} holds segments, but nothing says whose they are."
            )
        self._fd = os.open(segment_path(self._directory, number), os.O_RDONLY | os.O_CLOEXEC)
        self._seed = seed(identity, number)
        if number == before.segment:
            offset, record = max(before.offset, HEADER_SIZE), before.record
        else:
            offset, record = HEADER_SIZE, before.record
            if header is not None:
                record = header.first_record
                if before.segment and at_least <= header.previous_number:
                    self._report(Damage(at_least, 0, 0, f"missing up to {header.previous_number}"))
        if header is None:
            self._report(Damage(number, 0, HEADER_SIZE, "the header is damaged"))
        self._position = Position(number, offset, record)
        return True

    def _segment_stop(self) -> int:
        """Where the open segment ends, as far as is known now."""
        if self._stop is not None:
            return self._stop
        number = self._position.segment
        if self._end is not None:
            end = self._end()
            if number >= end.segment:
                return end.offset if number == end.segment else 0
        size = os.fstat(self._fd).st_size
        following = next((n for n in segment_numbers(self._directory) if n > number), None)
        if following is None:
            return size  # somebody else's journal: it may still grow
        header = read_header(self._directory, following)  # only that one knows how much counts
        self._stop = size
        if header is not None and header.previous_number == number:
            self._stop = min(size, header.previous_end)
            if size < header.previous_end:
                self._report(Damage(number, size, header.previous_end - size, "the end is missing"))
        return self._stop

    def _take(self, stop: int, records: list[Record], limit: int) -> None:
        number, offset, record = self._position
        length = stop - offset
        data = os.pread(self._fd, min(length, _CHUNK), offset)
        found = scan(data, offset, self._seed, final=len(data) == length, limit=limit)
        if found.stuck and not found.payloads:
            # Damaged, or a frame larger than the chunk: only the rest of the segment can tell.
            data = os.pread(self._fd, length, offset)
            found = scan(data, offset, self._seed, final=True, limit=limit)
        if not data:
            self._report(Damage(number, offset, length, "the end is missing"))
            self._position = Position(number, stop, record)
            return
        for begin, finish in found.gaps:
            self._report(Damage(number, offset + begin, finish - begin, "no intact record"))
        try:
            records += decode_all(found.payloads)
        except UnreadableRecord:
            for begin, payload in zip(found.starts, found.payloads, strict=True):
                try:
                    records.append(decode(payload))
                except UnreadableRecord as error:
                    length = FRAME_OVERHEAD + len(payload)
                    self._report(Damage(number, offset + begin, length, str(error)))
        self._position = Position(number, offset + found.consumed, record + len(found.payloads))

    def _report(self, damage: Damage) -> None:
        self.damage.append(damage)
        self.damages += 1
        log.error(
            "The journal is damaged; what is intact is kept",
            directory=str(self._directory),
            segment=damage.segment,
            offset=damage.offset,
            bytes=damage.length,
            reason=damage.reason,
        )


def iterate(directory: Path, first: int = 0, last: int | None = None) -> Iterator[Record]:
    """The records of the segments ``first .. last`` (inclusive; ``None``: all), oldest first."""
    with JournalReader(directory, Position(first, 0, 0), last=last) as reader:
        while records := reader.read():
            yield from records


@dataclass(slots=True)
class Recovery:
    """What the journal remembers of the time before a restart."""

    last: dict[str, Tick] = field(default_factory=dict)  # by symbol: the highest (epoch, offset)
    last_in_session: dict[str, Tick] = field(default_factory=dict)  # the same of published ones
    highest_epoch: int = 0
    impossible_epoch: int | None = None  # one that is none, of a poisoned older release

    def keep(self, world: World) -> None:
        """Forget the ticks of the other world, which an instance of it left in the same folder."""
        for known in (self.last, self.last_in_session):
            for symbol in [one for one, tick in known.items() if world_of(tick.source) != world]:
                del known[symbol]

    def see(self, record: Record) -> None:
        if isinstance(record, Tick | EpochStarted | BarUpdate) and record.epoch >= EPOCH_LIMIT:
            self.impossible_epoch = record.epoch
            return
        if isinstance(record, Tick):
            _keep_higher(self.last, record)
            if record.trading_session and Flag.FUTURE not in record.flags:
                _keep_higher(self.last_in_session, record)
        if isinstance(record, Tick | EpochStarted | BarUpdate):
            self.highest_epoch = max(self.highest_epoch, record.epoch)


def _keep_higher(known: dict[str, Tick], tick: Tick) -> None:
    other = known.get(tick.symbol)
    if other is None or (tick.epoch, tick.offset) > (other.epoch, other.offset):
        known[tick.symbol] = tick


def recover(
    directory: Path, symbols: Collection[str] = (), search_bytes: int = SEARCH_BYTES
) -> Recovery:
    """Search backwards, segment by segment, until the last price of each of ``symbols`` is known.

    Without ``symbols`` everything that is kept is searched.

    :param search_bytes: with ``symbols``, search no further than the segment this far from the end: what
        is older is in PostgreSQL.
    """
    recovery = Recovery()
    searched = 0
    for number in reversed(segment_numbers(directory)):
        for record in iterate(directory, number, number):
            recovery.see(record)
        searched += segment_path(directory, number).stat().st_size
        if symbols and (
            searched >= search_bytes
            or all(symbol in recovery.last_in_session for symbol in symbols)
        ):
            break
    return recovery


def records_since(
    directory: Path,
    instant: float,
    until: float | None = None,
    *,
    earlier: Mapping[str, float] | None = None,
    search_bytes: int = SEARCH_BYTES,
) -> Iterator[Tick | Rejection | BarUpdate]:
    """Ticks stamped at or after ``instant``, rejections received and bars opened then or later, in journal
    order.

    Searches backwards for where to start.

    :param until: leave out what was received or published after it (a virtual clock may have been set
        back).
    :param earlier: by symbol, from when on its records are wanted where that is before ``instant``; none
        of them are told when that lies more than ``search_bytes`` before the segment with ``instant``.
    """
    wanted = dict(earlier or {})
    first, beyond, begins = 0, 0, -math.inf
    for number in reversed(segment_numbers(directory)):
        if beyond >= search_bytes:
            break
        first = number
        seen = (_received(record) for record in iterate(directory, number, number))
        begins = next((at for at in seen if at is not None), math.inf) - _STAMP_TOLERANCE_S
        if begins < min([instant, *wanted.values()]):
            break
        if begins < instant:
            beyond += segment_path(directory, number).stat().st_size
    else:
        begins = -math.inf  # all there is
    for symbol in [symbol for symbol, since in wanted.items() if since < begins]:
        wanted[symbol] = math.inf  # half a bar would be published over the whole one
    for record in iterate(directory, first):
        if isinstance(record, EpochStarted):
            continue
        stamp: float
        if isinstance(record, BarUpdate):
            symbol, stamp = record.bar.symbol, record.bar.open_time
        elif isinstance(record, Tick):
            symbol, stamp = record.symbol, record.timestamp
        else:  # a refused quote may be stamped with anything
            symbol, stamp = record.symbol, record.received_at
        received = _received(record)
        if stamp >= wanted.get(symbol, instant) and (
            until is None or received is None or received <= until
        ):
            yield record


def _received(record: Record) -> float | None:
    if isinstance(record, EpochStarted):
        return None
    return record.published_at if isinstance(record, BarUpdate) else record.received_at
