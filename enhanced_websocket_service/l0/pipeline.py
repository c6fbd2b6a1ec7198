"""The L0 jobs as a whole: what ``l0 backfill``, ``l0 incremental``, ``l0 status`` and the service run.

The commands withdraw the ready flag first and write it last, so the flag never speaks for a set
that is half-way; when a command fails the flag stays withdrawn. Symbols are independent: one that
fails stops no other, and the flag, of which there is one, is written when at least one symbol is done. It
names those that are and those that are not; whether a symbol goes live is decided by its own data. The
service's own repair rewrites database and backup set and leaves the flag alone: it belongs to its writer.

Bars come first: they are in the database before a file is written, and a folder that takes no file is told
in ``failures``. For a command that is a failure, as a set that is not written is not ready; the service
goes on and writes the files as soon as it can.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import (
    ConfigurationError,
    DataError,
    L0Error,
    PartlyDone,
    StorageError,
    WrongWorld,
    sentences,
)
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.scale import unfit
from enhanced_websocket_service.market.source import (
    Provider,
    World,
    check_world,
    is_simulated,
    world_of,
)
from enhanced_websocket_service.storage.folders import fault_of
from enhanced_websocket_service.twelvedata.keys import KeyPool

from .absences import Absences
from .backfill import Announce, Backfill
from .backup import BackupMetadata, BackupSet, unwritable
from .incremental import Incremental
from .interfaces import BarStore, HistorySource, Progress
from .readiness import ReadyFlag
from .report import L0Report, SymbolReport
from .run import BackfillPlan, BackfillResult
from .slots import window_slots
from .validator import DEFAULT_WINDOW_DAYS, Assessment, assess
from .verify import Verification, VerifyReport

log = structlog.get_logger(__name__)

BACKUP_FILES = "backup files"
"""As ``Failures`` calls them."""

SymbolProgress = Callable[[str, int, int], None]
"""Told the symbol, the trading days done, and those in all."""


def check_history(ours: World, sets: Sequence[BackupSet], flag: ReadyFlag) -> None:
    """Whether an instance of world ``ours`` may replace ``sets`` and ``flag``: simulated history never takes
    the place of real history.

    :raises WrongWorld: it may not.
    """
    if ours == "real":
        return
    for one in sets:
        place = f"The backup set of {one.symbol} in BACKUP_DIR {one.directory}"
        check_world(one.world(), ours, place, "Set BACKUP_DIR to a folder of its own.")
    source = flag.read().details.get("source")
    if isinstance(source, str):
        remedy = "Set READY_SIGNALS_DIR to a folder of its own."
        check_world(world_of(source), ours, f"The ready flag {flag.path}", remedy)


class NoHistory(L0Error):
    """Neither the vendor nor the database has a bar of the symbol."""


class L0Pipeline:
    """All L0 jobs, one symbol after the other.

    :param calendars: the symbols, each with its calendar.

    ``rest`` may be ``None`` for ``assess``, ``status`` and ``verify`` alone. ``keys`` are those behind
    it: as many calls are under way at a time as there are usable ones. ``failures`` hears of files.
    """

    def __init__(
        self,
        *,
        rest: HistorySource | None,
        database: BarStore,
        calendars: Mapping[str, TradingCalendar],
        clock: Clock,
        provider: Provider,
        backup_dir: Path,
        flag: ReadyFlag,
        failures: Failures,
        window_days: int = DEFAULT_WINDOW_DAYS,
        keys: KeyPool | None = None,
    ) -> None:
        if not calendars or window_days < 1:
            raise ConfigurationError(
                "L0 needs at least one symbol (SYMBOLS) and a window of a day (L0_WINDOW_DAYS)."
            )
        self.flag = flag
        self._rest, self._database = rest, database
        self._calendars, self._clock = dict(calendars), clock
        self._provider, self._symbols = provider, tuple(calendars)
        self._backup_dir, self._window_days = backup_dir, window_days
        self._keys = keys
        self._failures = failures
        self._kept: set[str] = set()  # symbols whose set is known to hold the database's bars
        # They outlive a job: what could not be put on file is remembered.
        self._absences = {
            symbol: Absences(backup_dir, symbol, provider.bars, calendar, failures)
            for symbol, calendar in calendars.items()
        }

    async def plan(
        self, start: date, end: date, *, refetch: bool = False
    ) -> tuple[BackfillPlan, ...]:
        """What ``backfill`` would ask the vendor for. Raises as ``Backfill.plan``."""
        return tuple(
            [
                await self._backfill(symbol).plan(start, end, refetch=refetch)
                for symbol in self._symbols
            ]
        )

    async def backfill(
        self,
        start: date,
        end: date,
        progress: SymbolProgress | None = None,
        *,
        refetch: bool = False,
        announce: Announce | None = None,
    ) -> tuple[BackfillResult, ...]:
        """``l0 backfill``: flag withdrawn, history of ``start .. end`` fetched, set and flag written.

        :param refetch: ask also for what is there, or is known to be absent.
        :param announce: told the plan of each symbol before its first call.
        :raises ConfigurationError: ``start`` after ``end``; the flag is untouched.
        :raises L0Error: what failed and what is missing; the flag stays withdrawn. Bars that came are
            in the database, also where the set cannot be written.
        :raises PartlyDone: the same of some symbols; the others are done, and the flag says so.
        """
        if start > end:
            raise ConfigurationError(f"The start {start} is after the end {end}; swap them.")

        async def fetch(symbol: str) -> BackfillResult:
            return await self._backfill(symbol).run(
                start,
                end,
                _for(symbol, progress),
                refetch=refetch,
                announce=announce,
            )

        return await self._command("backfill", fetch)

    async def incremental(
        self,
        progress: SymbolProgress | None = None,
        *,
        start: date | None = None,
        announce: Announce | None = None,
    ) -> tuple[BackfillResult, ...]:
        """``l0 incremental``: the same around a catch-up to now. Raises as ``backfill``."""

        async def fetch(symbol: str) -> BackfillResult:
            return await self._incremental(symbol).run(
                _for(symbol, progress), start=start, announce=announce
            )

        return await self._command("incremental", fetch)

    async def repair(self, symbol: str) -> None:
        """The service's catch-up: as ``incremental``, but the flag is neither read nor written.

        The set is rewritten only when bars came, or when there is none. Raises ``L0Error``.
        """
        result = await self._incremental(symbol).run(purpose="repair")
        if result.bars_written or not self._set(symbol).exists:
            await self.write_backup(symbol)

    async def check_files(self) -> None:
        """Find out whether files can be written, and write the sets that are owed: that could not be written,
        are gone or, after a start, do not hold what the database has. A database without bars owes none.

        Never raises for a file or the database; ``failures`` hears how it is.
        """
        if (error := await asyncio.to_thread(fault_of, self._backup_dir)) is not None:
            self._failures.failed(BACKUP_FILES, unwritable(self._backup_dir, error))
            return
        for absences in self._absences.values():
            absences.try_again()
        for symbol in self._symbols:
            if symbol in self._kept and self._set(symbol).exists:
                continue
            self._kept.discard(symbol)
            try:
                bars = await self._bars_to_back_up(symbol)
                if await self._set(symbol).lacks(bars) and await self.write_backup(symbol) is None:
                    return
            except L0Error:
                return  # the database is away, which is told elsewhere; what is owed is still owed
            if bars:
                self._kept.add(symbol)
        self._failures.succeeded(BACKUP_FILES)

    async def status(self) -> L0Report:
        """Everything ``l0 status`` shows. Raises ``StorageError``."""
        symbols = []
        for symbol in self._symbols:
            backup_set = self._set(symbol)
            metadata: BackupMetadata | None = None
            try:
                metadata = await backup_set.read_metadata()
                problems = tuple(await backup_set.verify())
            except DataError as error:
                problems = (str(error),)
            last = await self._database.last_bar(symbol, vendor_only=True)
            symbols.append(
                SymbolReport(
                    assessment=await self.assess(symbol),
                    last_vendor_bar=None if last is None else last.open_time,
                    backup=metadata,
                    backup_problems=problems,
                )
            )
        return L0Report(
            now=self._clock.now(),
            provider=self._provider.name,
            flag_path=str(self.flag.path),
            flag=self.flag.read(),
            symbols=tuple(symbols),
        )

    async def verify(
        self, start: date | None = None, end: date | None = None
    ) -> tuple[VerifyReport, ...]:
        """``l0 verify``: each symbol's set, rows and calendar compared. Raises as ``Verification.run``."""
        return tuple(
            [
                await Verification(
                    self._set(symbol),
                    self._database,
                    self._calendars[symbol],
                    self._absences[symbol],
                    source=self._provider.bars,
                ).run(start, end, self._clock.now())
                for symbol in self._symbols
            ]
        )

    async def write_backup(self, symbol: str) -> BackupMetadata | None:
        """Replace the backup set of ``symbol`` by the database's vendor bars.

        :returns: what was written; ``None`` when the files cannot be: ``failures`` knows why, and
            ``check_files`` tries again.
        :raises L0Error: the database cannot be read.
        """
        bars = await self._bars_to_back_up(symbol)
        try:
            self._check_world()
            metadata = await self._set(symbol).write(
                bars,
                provider=self._provider.name,
                source=self._provider.bars,
                now=self._clock.now(),
            )
        except (L0Error, WrongWorld) as error:
            self._kept.discard(symbol)
            self._failures.failed(BACKUP_FILES, str(error))
            return None
        self._kept.add(symbol)
        if self._kept.issuperset(self._symbols):
            self._failures.succeeded(BACKUP_FILES)
        log.info("backup set written", symbol=symbol, rows=metadata.rows, file=metadata.file)
        return metadata

    async def _bars_to_back_up(self, symbol: str) -> list[Bar]:
        """:raises L0Error: the database cannot be read."""
        try:
            bars = await self._database.vendor_bars(symbol, 0, int(self._clock.now()))
        except StorageError as error:
            raise L0Error(f"{symbol}: the bars to back up cannot be read: {error}") from error
        return [bar for bar in bars if bar.source == self._provider.bars]

    async def _command(
        self, name: str, fetch: Callable[[str], Awaitable[BackfillResult]]
    ) -> tuple[BackfillResult, ...]:
        self._check_world()
        problems = self._withdraw(name)
        flag = (
            "The old ready flag is still there." if problems else "The ready flag stays withdrawn."
        )
        results: list[BackfillResult] = []
        described: dict[str, object] = {}
        failed: dict[str, L0Error] = {}
        for symbol in self._symbols:
            try:
                result, metadata = await fetch(symbol), await self.write_backup(symbol)
                if metadata is not None and not metadata.rows:
                    raise NoHistory(
                        f"{symbol}: there is no history, neither from the vendor for this range nor "
                        "in the database. Choose a range with trading days."
                    )
            except L0Error as error:
                failed[symbol] = error
                log.warning("L0 of a symbol failed", command=name, symbol=symbol, why=str(error))
                continue
            results.append(result)
            if metadata is not None:
                described[symbol] = {
                    "rows": metadata.rows,
                    "range_start": metadata.range_start,
                    "range_end": metadata.range_end,
                    "completeness_percentage": metadata.completeness_percentage,
                }
        told = [str(error) for error in failed.values()]
        if any(not isinstance(error, NoHistory) for error in failed.values()):
            told.append("Run it again: what is done is kept and not asked for again.")
        if len(failed) == len(self._symbols):
            raise L0Error(sentences(*problems, *told, flag)) from next(iter(failed.values()))
        problems += [one.reason for one in self._failures.present]
        done = "The bars are in PostgreSQL, and a new run does not ask for them again."
        if problems:
            raise L0Error(sentences(*problems, *told, done, flag))
        content: dict[str, object] = {
            "source": self._provider.bars,
            "command": name,
            "symbols": described,
        }
        if failed:
            content["failed"] = {symbol: str(error) for symbol, error in failed.items()}
        try:
            self.flag.write(content)
        except L0Error as error:
            raise L0Error(sentences(str(error), *told, done)) from error
        log.info("ready flag written", command=name, path=str(self.flag.path))
        if failed:
            ready = f"Done, and named in the ready flag: {', '.join(described)}."
            raise PartlyDone(sentences(*told, ready), tuple(results))
        return tuple(results)

    def _withdraw(self, command: str) -> list[str]:
        """Withdraw the flag; what kept it there. It does not keep the bars out of the database."""
        try:
            if self.flag.withdraw():
                log.info("ready flag withdrawn", command=command, path=str(self.flag.path))
        except L0Error as error:
            return [str(error)]
        return []

    async def assess(self, symbol: str) -> Assessment:
        """Fresh and complete now? Raises ``StorageError``."""
        now = self._clock.now()
        calendar = self._calendars[symbol]
        wanted = window_slots(calendar, now, self._window_days)
        present: dict[int, list[str]] = {}
        if wanted:
            present = await self._database.slots_present(symbol, wanted[0], wanted[-1] + 1)
        last: Bar | None = await self._database.last_bar(symbol)
        found = assess(
            [slot for slot, sources in present.items() if any(map(self._is_ours, sources))],
            partial=[slot for slot, sources in present.items() if not sources],
            last_open=last.open_time if last is not None and self._is_ours(last.source) else None,
            calendar=calendar,
            now=now,
            window_days=self._window_days,
            symbol=symbol,
        )
        told = None if last is None else unfit(symbol, [last.close])
        if told is not None:  # there may be all its bars, each of them rounded away
            found = replace(found, is_complete=False, reasons=(told, *found.reasons))
        return found

    def _is_ours(self, source: str) -> bool:
        """Simulated bars prove nothing about real data, nor the other way round."""
        return is_simulated(source) == self._provider.simulated

    def _check_world(self) -> None:
        check_history(self._provider.world, [self._set(one) for one in self._symbols], self.flag)

    def _set(self, symbol: str) -> BackupSet:
        return BackupSet(self._backup_dir, symbol, self._calendars[symbol])

    def _backfill(self, symbol: str) -> Backfill:
        if self._rest is None:
            raise L0Error("No connection to the vendor was configured for this command.")
        return Backfill(
            self._rest,
            self._database,
            self._calendars[symbol],
            self._clock,
            provider=self._provider,
            symbol=symbol,
            absences=self._absences[symbol],
            keys=self._keys,
        )

    def _incremental(self, symbol: str) -> Incremental:
        return Incremental(
            self._backfill(symbol),
            self._database,
            self._calendars[symbol],
            self._clock,
            provider=self._provider,
            symbol=symbol,
            window_days=self._window_days,
        )


def _for(symbol: str, progress: SymbolProgress | None) -> Progress | None:
    if progress is None:
        return None

    def tell(done: int, total: int) -> None:
        progress(symbol, done, total)

    return tell
