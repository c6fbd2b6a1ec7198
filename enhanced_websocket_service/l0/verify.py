"""``l0 verify``: the backup set against its hash, against the database, and both against the calendar.

Slots that the vendor was asked for and does not have (``absences``) are told, and are no fault: a thin
session stays thin. Every other expected slot that is missing is one.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from enhanced_websocket_service.errors import ConfigurationError, DataError
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.calendar import TradingCalendar, iso_local

from .absences import Absences
from .backup import BackupMetadata, BackupSet, to_bars
from .interfaces import BarStore
from .slots import settled_labels

SHOWN = 40
NEW_SET = "Run `l0 incremental`: it writes the set anew from the database."
FIELDS = ("open", "high", "low", "close", "volume")


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be. ``slots`` are unix seconds UTC, at most of one day."""

    kind: str
    where: str
    what: str
    remedy: str
    slots: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "where": self.where,
            "what": self.what,
            "remedy": self.remedy,
            "slots": [iso_local(slot) for slot in self.slots],
        }


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """The outcome for one symbol; ``start`` and ``end`` are ``None`` where there is no data at all."""

    symbol: str
    start: date | None
    end: date | None
    rows_in_file: int | None  # of the range; None: the file cannot be read
    rows_in_database: int
    expected: int
    known_absent: tuple[int, ...]  # slots the vendor does not have, unix seconds UTC
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.differences

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``; times are ISO 8601 with offset, America/Bogota."""
        return {
            "symbol": self.symbol,
            "ok": self.ok,
            "start": None if self.start is None else self.start.isoformat(),
            "end": None if self.end is None else self.end.isoformat(),
            "rows_in_file": self.rows_in_file,
            "rows_in_database": self.rows_in_database,
            "expected_slots": self.expected,
            "known_absent": [iso_local(slot) for slot in self.known_absent],
            "differences": [one.as_dict() for one in self.differences],
            "notes": list(self.notes),
        }


class Verification:
    """Compares one symbol's set, database rows and calendar. Changes nothing.

    :param source: whose bars the set is meant to hold, and which rows of the database count.
    """

    def __init__(
        self,
        backup: BackupSet,
        database: BarStore,
        calendar: TradingCalendar,
        absences: Absences,
        *,
        source: str,
    ) -> None:
        self._backup, self._database, self._calendar = backup, database, calendar
        self._absences, self._source = absences, source
        self._found: list[Difference] = []
        self._notes: list[str] = []

    async def run(self, start: date | None, end: date | None, now: float) -> VerifyReport:
        """Verify the local days ``start .. end``, both inclusive; by default those of the set.

        :param now: unix seconds UTC.
        :raises ConfigurationError: ``start`` after ``end``.
        :raises StorageError: the database does not answer.
        """
        self._found, self._notes = [], []
        metadata, file = await self._examine()
        stored = {
            bar.open_time: bar
            for bar in await self._database.vendor_bars(self._backup.symbol, 0, int(now))
            if bar.source == self._source
        }
        first, last = self._range(metadata, stored)
        if first is None or last is None:
            return self._report(None, None, file, {}, 0, ())
        first_day, last_day = start or first, end or last
        if first_day > last_day:
            raise ConfigurationError(f"The start {first_day} is after the end {last_day}.")
        inside = _within(self._calendar, first_day, last_day)
        stored = {slot: bar for slot, bar in stored.items() if inside(slot)}
        if file is not None and metadata is not None:
            file = {slot: bar for slot, bar in file.items() if inside(slot)}
            self._compare(metadata, file, stored)
        # A set that is older than its last session lacks nothing that was due when it was written.
        due = (
            now if metadata is None or end is not None else min(now, _instant(metadata.created_at))
        )
        expected, missing = self._missing(first_day, last_day, due, {*stored, *(file or ())})
        return self._report(first_day, last_day, file, stored, expected, missing)

    def _report(
        self,
        start: date | None,
        end: date | None,
        file: Mapping[int, Bar] | None,
        stored: Mapping[int, Bar],
        expected: int,
        known_absent: tuple[int, ...],
    ) -> VerifyReport:
        return VerifyReport(
            symbol=self._backup.symbol,
            start=start,
            end=end,
            rows_in_file=None if file is None else len(file),
            rows_in_database=len(stored),
            expected=expected,
            known_absent=known_absent,
            differences=tuple(self._found),
            notes=tuple(self._notes),
        )

    async def _examine(self) -> tuple[BackupMetadata | None, dict[int, Bar] | None]:
        """The set by itself; what of it can be read."""
        try:
            metadata = await self._backup.read_metadata()
        except DataError as error:
            self._add("backup_set", str(self._backup.metadata), str(error), NEW_SET)
            return None, None
        if metadata.source != self._source:
            self._add(
                "other_source",
                str(self._backup.metadata),
                f"The set holds bars of {metadata.source}; this configuration is for {self._source}.",
                "Set PROVIDER and BACKUP_DIR to what belongs together.",
            )
        problems = await self._backup.verify()
        for problem in problems:
            self._add("backup_set", str(self._backup.parquet), problem, NEW_SET)
        frame = await self._backup.rows(doubted=bool(problems))
        if frame is None:
            return metadata, None
        file = {bar.open_time: bar for bar in to_bars(frame)}
        self._check_declared(metadata, file)
        return metadata, file

    def _check_declared(self, metadata: BackupMetadata, file: Mapping[int, Bar]) -> None:
        """What the metadata says about missing slots, against the file and the calendar."""
        expected: list[int] = []
        if file:
            days = map(self._calendar.local_date, (min(file), max(file)))
            due = _instant(metadata.created_at)
            for day in self._calendar.trading_days(*days):
                expected += settled_labels(self._calendar, day, due)
        missing = [iso_local(slot) for slot in expected if slot not in file]
        if (metadata.expected_slots, metadata.missing_slots) != (len(expected), missing):
            self._add(
                "metadata",
                str(self._backup.metadata),
                f"It says that {len(metadata.missing_slots)} of {metadata.expected_slots} slots are "
                f"missing; by file and calendar {len(missing)} of {len(expected)} are.",
                NEW_SET,
            )

    def _range(
        self, metadata: BackupMetadata | None, stored: Mapping[int, Bar]
    ) -> tuple[date | None, date | None]:
        """The days from the first to the last bar of the set or, without one, of the database."""
        if metadata is not None and metadata.range_start and metadata.range_end:
            ends = (_instant(metadata.range_start), _instant(metadata.range_end))
        elif stored:
            ends = (min(stored), max(stored))
        else:
            return None, None
        first, last = (self._calendar.local_date(end) for end in ends)
        return first, last

    def _compare(
        self, metadata: BackupMetadata, file: Mapping[int, Bar], stored: Mapping[int, Bar]
    ) -> None:
        """File against database, in the metadata's range."""
        if not metadata.range_start or not metadata.range_end:
            lower, upper = 0.0, -1.0
        else:
            lower, upper = _instant(metadata.range_start), _instant(metadata.range_end)
        ours = {slot for slot in stored if lower <= slot <= upper}
        self._by_day(
            "file_lacks_rows",
            ours - file.keys(),
            lambda slots: f"{_rows(slots)} of the database are not in {self._backup.parquet.name}.",
            lambda _day: NEW_SET,
        )
        self._by_day(
            "database_lacks_rows",
            file.keys() - ours,
            lambda slots: f"{_rows(slots)} of {self._backup.parquet.name} are not in the database.",
            lambda day: f"Run `l0 backfill --start {day} --end {day}` to fetch them again.",
        )
        changed = {
            slot for slot in ours & file.keys() if _values(file[slot]) != _values(stored[slot])
        }
        self._by_day(
            "values_differ",
            changed,
            lambda slots: _changes(slots, file, stored),
            lambda day: (
                f"Run `l0 backfill --start {day} --end {day} --refetch`: the vendor says which is "
                "right, and the set is written anew."
            ),
        )
        if behind := len(stored.keys() - ours - file.keys()):
            self._notes.append(
                f"{behind} bars of the database lie outside the range of the set: it is older. "
                + NEW_SET
            )

    def _missing(
        self, first: date, last: date, due: float, present: set[int]
    ) -> tuple[int, tuple[int, ...]]:
        """File and database against the calendar; the slots expected, and those known to be absent."""
        days = self._calendar.trading_days(first, last)
        labels = {slot for day in days for slot in self._calendar.expected_labels(day)}
        self._by_day(
            "outside_session",
            present - labels,
            lambda slots: f"{_rows(slots)} lie outside the sessions of the calendar.",
            lambda _day: (
                "Check MARKET_OPEN, MARKET_CLOSE, EXTRA_CLOSURES and EXTRA_OPENINGS; if they are "
                "right, delete these rows from market_data and run `l0 incremental`."
            ),
        )
        expected = [slot for day in days for slot in settled_labels(self._calendar, day, due)]
        missing = [slot for slot in expected if slot not in present]
        absent = self._absences.load()
        self._by_day(
            "slot_missing",
            {slot for slot in missing if slot not in absent},
            lambda slots: (
                f"{len(slots)} expected slots of a trading day have no bar: {_times(slots)}."
            ),
            lambda day: (
                f"Run `l0 backfill --start {day} --end {day}`. What the vendor does not have a day "
                "later is put on record and is no fault any more."
            ),
        )
        return len(expected), tuple(slot for slot in missing if slot in absent)

    def _by_day(
        self,
        kind: str,
        slots: Iterable[int],
        what: Callable[[list[int]], str],
        remedy: Callable[[date], str],
    ) -> None:
        days: dict[date, list[int]] = {}
        for slot in sorted(slots):
            days.setdefault(self._calendar.local_date(slot), []).append(slot)
        for day, of_day in days.items():
            self._add(kind, str(day), what(of_day), remedy(day), tuple(of_day))

    def _add(
        self, kind: str, where: str, what: str, remedy: str, slots: tuple[int, ...] = ()
    ) -> None:
        self._found.append(Difference(kind, where, what, remedy, slots))


def render_verification(report: VerifyReport) -> RenderableType:
    """The report for a terminal."""
    if report.start is None:
        head = f"{report.symbol}: there is no history, neither in a backup set nor in the database."
    else:
        file = "unreadable" if report.rows_in_file is None else f"{report.rows_in_file} rows"
        head = (
            f"{report.symbol} {report.start} .. {report.end}: file {file}, database "
            f"{report.rows_in_database} rows, {report.expected} slots expected, "
            f"{len(report.known_absent)} known to be absent at the vendor."
        )
    lines = [Text(head), *(Text(f"note: {note}") for note in report.notes)]
    for one in report.differences[:SHOWN]:
        lines.append(Text(f"- {one.kind} [{one.where}] {one.what}", style="red"))
        lines.append(Text(f"  {one.remedy}", style="yellow"))
    if (more := len(report.differences) - SHOWN) > 0:
        lines.append(Text(f"and {more} more; --json has them all.", style="red"))
    verdict = "No difference." if report.ok else f"{len(report.differences)} differences."
    return Group(*lines, Text(verdict, style="green" if report.ok else "red"))


def _within(calendar: TradingCalendar, first: date, last: date) -> Callable[[int], bool]:
    return lambda slot: first <= calendar.local_date(slot) <= last


def _instant(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _values(bar: Bar) -> tuple[float, ...]:
    return (bar.open, bar.high, bar.low, bar.close, bar.volume)


def _changes(slots: list[int], file: Mapping[int, Bar], stored: Mapping[int, Bar]) -> str:
    slot = slots[0]
    fields = ", ".join(
        f"{name} {old} in the file and {new} in the database"
        for name, old, new in zip(FIELDS, _values(file[slot]), _values(stored[slot]), strict=True)
        if old != new
    )
    more = f", and {len(slots) - 1} more rows" if len(slots) > 1 else ""
    return f"At {_times([slot])}: {fields}{more}."


def _rows(slots: list[int]) -> str:
    return f"{len(slots)} rows ({_times(slots)})"


def _times(slots: list[int]) -> str:
    """Local times of day, stretches put together: ``08:00-08:55, 12:50``."""
    stretches: list[list[int]] = []
    for slot in slots:
        if stretches and slot - stretches[-1][-1] == 300:
            stretches[-1][1:] = [slot]
        else:
            stretches.append([slot])
    return ", ".join("-".join(iso_local(slot)[11:16] for slot in one) for one in stretches)
