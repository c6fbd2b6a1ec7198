"""What is in a journal directory, and what of it is broken. Changes nothing, needs no lock.

The service may be appending meanwhile: what is looked at ends at the last record that was whole when the
look began. What lies behind it is a write under way, or what a killed process left; the next start cuts
it off. That is no damage.
"""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.tick import Tick

from .folders import holder
from .journal_reader import (
    JournalReader,
    read_header,
    read_identity,
    segment_numbers,
    segment_path,
)
from .pool import WRITES, Pool
from .records import Record
from .segment import HEADER_SIZE, START, Damage, Position, scan, seed
from .tenure import KeptBack, kept_back

KIND_NAMES = {"Tick": "ticks", "Rejection": "rejections", "BarUpdate": "bars"}
_EPOCHS = "epochs"


def whole_end(directory: Path, identity: UUID) -> tuple[Position, int]:
    """Behind the last whole record of the journal (its ``record`` is 0), and how many bytes follow it.

    :raises JournalError: the directory cannot be read.
    """
    torn = 0
    try:
        for number in reversed(segment_numbers(directory)):
            content = segment_path(directory, number).read_bytes()
            if len(content) < HEADER_SIZE:  # killed while it began this segment
                torn += len(content)
                continue
            data = content[HEADER_SIZE:]
            found = scan(data, HEADER_SIZE, seed(identity, number), final=True, limit=len(data) + 1)
            end = found.consumed
            if found.gaps and found.gaps[-1][1] == len(data):
                end = found.gaps[-1][0]
            return Position(number, HEADER_SIZE + end, 0), torn + len(data) - end
    except OSError as error:
        raise JournalError(f"The journal in {directory} cannot be read: {error}") from error
    return START, torn


@dataclass(slots=True)
class OffsetRange:
    """The ticks of one symbol in one epoch; ``count`` is less than the span where some are missing."""

    first: int
    last: int
    count: int


@dataclass(slots=True)
class SegmentReport:
    """One segment file. Instants are unix seconds UTC; ``created_at`` is real time."""

    number: int
    size: int
    created_at: float | None
    first_record: int | None
    kinds: dict[str, int]
    first_at: float | None
    last_at: float | None
    damage: list[Damage]

    @property
    def records(self) -> int:
        return sum(self.kinds.values())


@dataclass(slots=True)
class JournalReport:
    """The whole journal. ``end`` is behind its last whole record."""

    directory: Path
    journal_id: UUID
    owner: str | None
    segments: list[SegmentReport] = field(default_factory=list)
    ranges: dict[tuple[str, int], OffsetRange] = field(default_factory=dict)
    end: Position = START
    torn_bytes: int = 0
    checkpoint: Position | None = None
    checkpoint_note: str = ""
    kept_back: list[KeptBack] = field(default_factory=list)

    @property
    def damage(self) -> list[Damage]:
        return [one for segment in self.segments for one in segment.damage]

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``; times ISO 8601, America/Bogota."""
        return {
            "directory": str(self.directory),
            "journal_id": str(self.journal_id),
            "owner_pid": self.owner,
            "bytes": sum(one.size for one in self.segments),
            "records": sum(one.records for one in self.segments),
            "end": self.end._asdict(),
            "torn_bytes": self.torn_bytes,
            "checkpoint": None if self.checkpoint is None else self.checkpoint._asdict(),
            "checkpoint_note": self.checkpoint_note,
            "not_stored": self.not_stored,
            "kept_back": [
                {
                    "first_record": one.first.record,
                    "end_record": None if one.end is None else one.end.record,
                    "collected_by": one.winner,
                    "since": _iso(one.since),
                }
                for one in self.kept_back
            ],
            "segments": [
                {
                    "number": one.number,
                    "bytes": one.size,
                    "created_at": _iso(one.created_at),
                    "first_record": one.first_record,
                    "records": one.kinds,
                    "first_at": _iso(one.first_at),
                    "last_at": _iso(one.last_at),
                    "damage": [_damage_dict(damage) for damage in one.damage],
                }
                for one in self.segments
            ],
            "ranges": [
                {
                    "symbol": symbol,
                    "epoch": epoch,
                    "first": r.first,
                    "last": r.last,
                    "ticks": r.count,
                }
                for (symbol, epoch), r in sorted(self.ranges.items())
            ],
        }

    @property
    def not_stored(self) -> int | None:
        """Records behind the checkpoint; ``None`` when it is not known."""
        if self.checkpoint is None:
            return None
        return max(0, self.end.record - self.checkpoint.record)


def inspect(directory: Path) -> JournalReport:
    """Look at every record of the journal in ``directory``.

    :raises JournalError: there is none, or it cannot be read.
    """
    identity = read_identity(directory) if directory.is_dir() else None
    if identity is None:
        raise JournalError(
            f"There is no journal in {directory}: name its directory, STATE_DIR/journal."
        )
    report = JournalReport(directory, identity, holder(directory / "LOCK"))
    report.kept_back = [one for one in kept_back(directory, identity) if one.collected]
    end, report.torn_bytes = whole_end(directory, identity)
    for number in segment_numbers(directory):
        if number <= end.segment:
            _look(report, number, end)
    return report


def _look(report: JournalReport, number: int, end: Position) -> None:
    """Add what segment ``number`` holds."""
    path = segment_path(report.directory, number)
    try:
        size = path.stat().st_size
        header = read_header(report.directory, number)
    except FileNotFoundError:
        raise JournalError(f"{path} was pruned while it was looked at: try again.") from None
    damage: list[Damage] = []
    if header is not None and report.segments:
        absent = report.segments[-1].number + 1
        if absent <= header.previous_number:
            damage.append(Damage(absent, 0, 0, f"missing up to {header.previous_number}"))
    kinds: Counter[str] = Counter()
    first_at = last_at = None
    start = Position(number, 0, report.end.record if header is None else header.first_record)
    with JournalReader(report.directory, start, end=lambda: end, last=number) as reader:
        while records := reader.read():
            for record in records:
                kinds[KIND_NAMES.get(type(record).__name__, _EPOCHS)] += 1
                at = _instant(record)
                if at is not None:
                    first_at = at if first_at is None else min(first_at, at)
                    last_at = at if last_at is None else max(last_at, at)
                if isinstance(record, Tick):
                    _extend(report.ranges, record)
        report.end = reader.position
        damage += reader.damage
    report.segments.append(
        SegmentReport(
            number,
            size,
            None if header is None else header.created_at,
            None if header is None else header.first_record,
            dict(kinds),
            first_at,
            last_at,
            damage,
        )
    )


def _extend(ranges: dict[tuple[str, int], OffsetRange], tick: Tick) -> None:
    known = ranges.get((tick.symbol, tick.epoch))
    if known is None:
        ranges[tick.symbol, tick.epoch] = OffsetRange(tick.offset, tick.offset, 1)
        return
    known.first = min(known.first, tick.offset)
    known.last = max(known.last, tick.offset)
    known.count += 1


def _instant(record: Record) -> float | None:
    if isinstance(record, EpochStarted):
        return None
    return record.published_at if isinstance(record, BarUpdate) else record.received_at


def _iso(instant: float | None) -> str | None:
    return None if instant is None else iso_local(instant)


def _damage_dict(damage: Damage) -> dict[str, Any]:
    return {
        "segment": damage.segment,
        "offset": damage.offset,
        "bytes": damage.length,
        "reason": damage.reason,
    }


async def stored_up_to(dsn: str, journal_id: UUID, timeout_s: float = 5.0) -> Position | None:
    """The checkpoint of the journal in the database; ``None`` when that never heard of it.

    :param timeout_s: real seconds for the connection and the answer.
    :raises StorageError: the database cannot be asked.
    """
    pool = Pool(dsn, max_size=1, timeout_s=timeout_s)
    try:
        async with pool.bare_connection("reading the journal's checkpoint") as connection:
            row = await connection.fetchrow(WRITES["checkpoint"], journal_id)
    finally:
        await pool.close()
    return None if row is None else Position(*row)
