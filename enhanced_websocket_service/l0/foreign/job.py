"""``l0 import``: read a file, judge it against what is known, store what can be stood behind."""

import contextlib
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import polars as pl
import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import ConfigurationError, DataError
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.source import SIMULATOR
from enhanced_websocket_service.storage.atomic_file import SHARED, replace_file
from enhanced_websocket_service.storage.imports import COMPARED, ImportStore, Written

from .conventions import Convention, Run
from .judgement import EXISTING, REFUSED, Judgement, judge
from .reading import Table, quarantine_bytes, read_table

log = structlog.get_logger(__name__)

_SOURCE_LENGTH: Final = 50
_MARGIN_S: Final = 86_400

QUARANTINE: Final = pl.Schema(
    {
        "file": pl.String(),
        "row": pl.UInt32(),
        "reason": pl.String(),
        "detail": pl.String(),
        "line": pl.String(),
    }
)


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of one file: ``accepted + corrected + quarantined == read``, always."""

    file: Path
    source: str
    read: int
    accepted: int
    corrected: int
    reasons: dict[str, int]  # of quarantined rows
    grades: dict[str, int]  # of accepted and corrected ones
    found: dict[str, int]
    runs: tuple[tuple[str, Run], ...]  # with their symbol
    refused: str | None  # why nothing was imported; all rows are then quarantined
    dry_run: bool
    written: Written | None = None
    quarantine_file: Path | None = None
    quarantine_problem: str | None = None  # why the refused rows could not be put on file
    bars: dict[str, pl.DataFrame] = field(default_factory=dict, repr=False)  # by symbol
    quarantine: pl.DataFrame = field(
        default_factory=lambda: pl.DataFrame(schema=QUARANTINE), repr=False
    )

    @property
    def quarantined(self) -> int:
        return sum(self.reasons.values())


class ForeignImport:
    """Imports files of one kind of market.

    :param calendars: the symbols, each with its calendar.
    :param store: where bars are compared and stored; ``None`` allows dry runs only.
    :param simulated: the database's world is a simulated one: what is imported belongs to it.
    :param quarantine: a .csv or .parquet file for the rows of all files, or else a directory with one
        file for each.
    """

    def __init__(
        self,
        store: ImportStore | None,
        calendars: Mapping[str, TradingCalendar],
        clock: Clock,
        *,
        quarantine: Path,
        band: float = 0.05,
        simulated: bool = False,
    ) -> None:
        self._store, self._calendars, self._clock = store, dict(calendars), clock
        self._symbols = tuple(calendars)
        self._quarantine = quarantine
        self._band, self._simulated = band, simulated
        self._collected: list[pl.DataFrame] = []

    async def run(
        self, path: Path, *, assume: Convention | None = None, dry_run: bool = False
    ) -> FileReport:
        """Import ``path``; a second time it changes nothing.

        :param assume: the convention of the rows that the evidence leaves open.
        :param dry_run: judge and report, store nothing.
        :raises DataError: the file cannot be used at all.
        :raises StorageError: the database failed; nothing of this file was stored.
        """
        table = read_table(path)
        source = self.source_of(path)
        judged = {}
        by_symbol = self._by_symbol(table)
        for symbol in by_symbol:
            if self._calendars[symbol].round_the_clock:
                raise DataError(
                    f"{path}: {symbol} has the calendar {self._calendars[symbol].name}, and where the stamps "
                    "of a file lie is judged by the hours of a market that rests every day. Fetch its "
                    "history with `l0 backfill`."
                )
        for symbol, rows in by_symbol.items():
            compared = await self._compared(rows, symbol, source)
            judged[symbol] = judge(
                rows,
                symbol=symbol,
                calendar=self._calendars[symbol],
                now=self._clock.now(),
                existing=compared.filter(~pl.col("own")).select(EXISTING.names()),
                own=compared.filter("own").select(EXISTING.names()),
                assume=assume,
                band=self._band,
                allow_simulated=self._simulated,
                where=str(path),
            )
        thin = [] if assume else [one for one in judged.values() if one.thin]
        refusal = _refusal(path, thin) if thin else None
        if refusal:
            judged = {symbol: _withdrawn(one) for symbol, one in judged.items()}
        report = _report(table, source, judged, refusal, dry_run)
        if dry_run or self._store is None:
            return report
        place = self._place(report)
        if refusal:
            log.warning("file refused", file=str(path), rows=report.read)
            return self._write_quarantine(report, place)
        # First the bars: a folder that takes no file must not keep them out.
        new = changed = 0
        for symbol, bars in report.bars.items():
            if bars.height:
                written = await self._store.store(bars, symbol, source, self._clock.now())
                new, changed = new + written.new, changed + written.changed
        log.info(
            "file imported",
            file=str(path),
            source=source,
            read=report.read,
            accepted=report.accepted,
            corrected=report.corrected,
            quarantined=report.quarantined,
            new=new,
            changed=changed,
        )
        return self._write_quarantine(replace(report, written=Written(new, changed)), place)

    def source_of(self, path: Path) -> str:
        """The source under which the bars of ``path`` are stored: from its name, so that the same file is
        the same source again."""
        name = path.name
        for ending in (".gz", ".csv", ".parquet", ".pq", ".txt", ".tsv"):
            name = name.removesuffix(ending)
        prefix = f"{SIMULATOR}_import:" if self._simulated else "import:"
        if len(prefix + name) > _SOURCE_LENGTH:
            digest = hashlib.sha256(name.encode()).hexdigest()[:8]
            name = f"{name[: _SOURCE_LENGTH - len(prefix) - 9]}~{digest}"
        # The names of live sources end like this, and rank lower.
        return prefix + name.replace("_websocket", "-websocket").replace("_rest", "-rest")

    def _by_symbol(self, table: Table) -> dict[str, pl.DataFrame]:
        rows = table.rows
        named = set(rows["symbol"].drop_nulls().unique().to_list())
        chosen = [symbol for symbol in self._symbols if symbol in named]
        if not named and len(self._symbols) > 1:
            raise DataError(
                f"{table.path}: has no column symbol, and several symbols are configured "
                f"({', '.join(self._symbols)}). Add the column, or set SYMBOLS to the one it holds."
            )
        if not chosen:
            if named:
                raise DataError(
                    f"{table.path}: holds {', '.join(sorted(named))[:100]}; configured is "
                    f"{', '.join(self._symbols)}. Set SYMBOLS, or choose another file."
                )
            chosen = [self._symbols[0]]
        # Rows of other symbols, or of none, are accounted for with the first.
        mine = {symbol: rows.filter(pl.col("symbol") == symbol) for symbol in chosen[1:]}
        rest = rows.filter(~pl.col("symbol").is_in(chosen[1:]).fill_null(False))
        return {chosen[0]: rest, **mine}

    async def _compared(self, rows: pl.DataFrame, symbol: str, source: str) -> pl.DataFrame:
        first, last = rows["wall"].min(), rows["wall"].max()
        if self._store is None or not isinstance(first, int) or not isinstance(last, int):
            return pl.DataFrame(schema=COMPARED)
        return await self._store.compared(symbol, first - _MARGIN_S, last + _MARGIN_S, source)

    def _place(self, report: FileReport) -> Path:
        """Where the refused rows of ``report`` go."""
        path = self._quarantine
        if path.suffix.lower() not in (".csv", ".parquet"):
            return path / f"{report.source.partition(':')[2]}.parquet"
        with contextlib.suppress(OSError):  # not there yet
            if path.samefile(report.file):
                raise ConfigurationError(
                    f"--quarantine {path} is the file to import; name another."
                )
        return path

    def _write_quarantine(self, report: FileReport, path: Path) -> FileReport:
        if report.quarantine.is_empty():
            return report
        frame = report.quarantine
        if path == self._quarantine:
            self._collected.append(frame)
            frame = pl.concat(self._collected)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(path, quarantine_bytes(frame, path.name), SHARED)
        except OSError as error:
            problem = (
                f"{report.file}: the {report.quarantined} refused rows could not be written to {path}: "
                f"{error.strerror or error}. Name another place with --quarantine and run it again."
            )
            return replace(report, quarantine_problem=problem)
        return replace(report, quarantine_file=path)


def _refusal(path: Path, thin: Sequence[Judgement]) -> str:
    doubts = [run.doubt for one in thin for run in one.runs if run.doubt]
    why = f" ({doubts[0]})" if doubts else ""
    return (
        f"{path}: the evidence is too thin to tell whether "
        f"{sum(one.ambiguous for one in thin)} of {sum(one.candidates for one in thin)} possible bars "
        f"are in UTC or in local time{why}; nothing was imported. If you know it, say --assume utc or "
        "--assume cot."
    )


def _withdrawn(judged: Judgement) -> Judgement:
    """``judged`` with every bar quarantined: the file it came from is refused."""
    gone = judged.bars.select("row", reason=pl.lit(REFUSED))
    return replace(
        judged, bars=judged.bars.clear(), quarantined=pl.concat([judged.quarantined, gone])
    )


def _report(
    table: Table,
    source: str,
    judged: dict[str, Judgement],
    refused: str | None,
    dry_run: bool,
) -> FileReport:
    read = sum(one.read for one in judged.values())
    found: Counter[str] = Counter()
    for one in judged.values():
        found.update(one.found)
    runs = tuple((symbol, run) for symbol, one in judged.items() for run in one.runs)
    quarantined = pl.concat([one.quarantined for one in judged.values()]).sort("row")
    lines = table.originals(quarantined["row"].to_list()) if quarantined.height else []
    quarantine = (
        quarantined.join(table.rows.select("row", detail="fault"), on="row", how="left")
        .sort("row")
        .with_columns(file=pl.lit(str(table.path)), line=pl.Series(lines, dtype=pl.String))
        .select(QUARANTINE.names())
    )
    grades = pl.concat([one.bars for one in judged.values()])["grade"].value_counts()
    report = FileReport(
        file=table.path,
        source=source,
        read=read,
        accepted=sum(one.accepted for one in judged.values()),
        corrected=sum(one.corrected for one in judged.values()),
        reasons=dict(quarantined["reason"].value_counts(sort=True).iter_rows()),
        grades=dict(grades.sort("grade").iter_rows()),
        found=dict(found),
        runs=runs,
        refused=refused,
        dry_run=dry_run,
        bars={symbol: one.bars for symbol, one in judged.items()},
        quarantine=quarantine,
    )
    counted = report.accepted + report.corrected + report.quarantined
    assert counted == read == table.rows.height, "every row is accounted for"
    return report
