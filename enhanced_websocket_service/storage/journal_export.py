"""Ticks, bars or rejections of a journal as files: NDJSON, CSV or parquet.

Works while the service appends: what is written ends at the last record that was whole at the start.
Memory is bounded however large the journal is.
"""

import csv
import io
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import msgspec
import polars as pl

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.market.tick import Rejection, Tick

from .journal_inspect import whole_end
from .journal_reader import JournalReader, read_identity
from .records import Record

What = Literal["ticks", "bars", "rejections"]
Form = Literal["ndjson", "csv", "parquet"]
Row = dict[str, Any]

_READ: Final = 1000
_PIECE: Final = 100_000  # rows of parquet held in memory
_encode: Final = msgspec.json.Encoder().encode

_TIME = pl.Datetime("us", "UTC")
SCHEMAS: Final[dict[What, dict[str, Any]]] = {
    "ticks": {
        **{"symbol": pl.String, "epoch": pl.Int64, "offset": pl.Int64, "timestamp": _TIME},
        **{"price": pl.Float64, "bid": pl.Float64, "ask": pl.Float64, "volume": pl.Int64},
        **{"source": pl.String, "received_at": _TIME, "trading_session": pl.Boolean},
        **{"flags": pl.List(pl.String)},
    },
    "bars": {
        **{"symbol": pl.String, "interval_s": pl.Int64, "datetime": _TIME, "open": pl.Float64},
        **{"high": pl.Float64, "low": pl.Float64, "close": pl.Float64, "volume": pl.Int64},
        **{"source": pl.String, "epoch": pl.Int64, "offset": pl.Int64, "revision": pl.Int64},
        **{"status": pl.String, "published_at": _TIME, "certificate": pl.String},
    },
    "rejections": {
        **{"symbol": pl.String, "timestamp": _TIME, "price": pl.Float64, "bid": pl.Float64},
        **{"ask": pl.Float64, "source": pl.String, "received_at": _TIME, "reason": pl.String},
        **{"raw": pl.String},
    },
}
"""The columns, in order, with their parquet types."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which records. ``start`` and ``end`` are compared with the vendor's stamp, of bars with their
    open: ``start <= stamp < end``, unix seconds UTC. ``first`` and ``last`` (both inclusive) are
    (epoch, offset) of ticks, and of bars those of the last tick before them.
    """

    what: What = "ticks"
    symbol: str | None = None
    start: float | None = None
    end: float | None = None
    first: tuple[int, int] | None = None
    last: tuple[int, int] | None = None

    def row(self, record: Record) -> Row | None:
        """The row of ``record``; ``None`` when it was not asked for."""
        if isinstance(record, Tick) and self.what == "ticks":
            place = (record.epoch, record.offset)
            wanted = self._wants(record.symbol, record.timestamp, place)
            return _tick(record) if wanted else None
        if isinstance(record, BarUpdate) and self.what == "bars":
            place = (record.epoch, record.offset)
            wanted = self._wants(record.bar.symbol, record.bar.open_time, place)
            return _bar(record) if wanted else None
        if isinstance(record, Rejection) and self.what == "rejections":
            wanted = self._wants(record.symbol, record.timestamp, None)
            return _rejection(record) if wanted else None
        return None

    def _wants(self, symbol: str, stamp: float, place: tuple[int, int] | None) -> bool:
        return (
            (self.symbol is None or symbol == self.symbol)
            and (self.start is None or stamp >= self.start)
            and (self.end is None or stamp < self.end)
            and (place is None or self.first is None or place >= self.first)
            and (place is None or self.last is None or place <= self.last)
        )


@dataclass(slots=True)
class Exported:
    """What an export came to."""

    rows: int = 0
    damages: int = 0
    torn_bytes: int = 0


def export(directory: Path, selection: Selection, form: Form, out: Path | BinaryIO) -> Exported:
    """Write the selected records in journal order; a file appears whole or not at all.

    NDJSON and CSV have times as ISO 8601, America/Bogota; parquet has timestamps in UTC.

    :raises JournalError: no journal there, it cannot be read, or ``out`` cannot be written.
    """
    identity = read_identity(directory) if directory.is_dir() else None
    if identity is None:
        raise JournalError(
            f"There is no journal in {directory}: name its directory, STATE_DIR/journal."
        )
    end, torn = whole_end(directory, identity)
    report = Exported(torn_bytes=torn)

    def rows() -> Iterator[list[Row]]:
        with JournalReader(directory, end=lambda: end) as reader:
            while records := reader.read(_READ):
                chosen = [row for record in records if (row := selection.row(record)) is not None]
                report.rows += len(chosen)
                yield chosen
            report.damages = reader.damages

    try:
        if not isinstance(out, Path):
            _write_text(rows(), selection.what, form, out)
            return report
        staged = out.with_name(f".{out.name}.part")
        try:
            if form == "parquet":
                _write_parquet(rows(), selection.what, staged)
            else:
                with staged.open("wb") as file:
                    _write_text(rows(), selection.what, form, file)
            staged.replace(out)
        finally:
            staged.unlink(missing_ok=True)
    except BrokenPipeError:
        raise  # the reader of our standard output has seen enough
    except OSError as error:
        raise JournalError(f"The export cannot be written: {error}") from error
    return report


def _write_text(pages: Iterator[list[Row]], what: What, form: Form, out: BinaryIO) -> None:
    if form == "parquet":
        raise JournalError("Parquet needs a file: name one with --out.")
    columns = list(SCHEMAS[what])
    times = [name for name, kind in SCHEMAS[what].items() if kind == _TIME]
    if form == "csv":
        out.write(_csv([columns]))
    for page in pages:
        for row in page:
            for name in times:
                row[name] = _iso(row[name])
        if form == "csv":
            out.write(_csv([[_flat(row[name]) for name in columns] for row in page]))
        else:
            out.write(b"".join(_encode(row) + b"\n" for row in page))


def _write_parquet(pages: Iterator[list[Row]], what: What, out: Path) -> None:
    """In pieces that are joined by streaming: polars writes a file only from one whole frame."""
    schema = SCHEMAS[what]
    pieces = Path(tempfile.mkdtemp(prefix=out.name, dir=out.parent))
    try:
        held: list[Row] = []
        count = 0

        def flush() -> None:
            nonlocal held, count
            columns = {
                name: [_cell(row[name], kind) for row in held] for name, kind in schema.items()
            }
            pl.DataFrame(columns, schema=schema).write_parquet(pieces / f"{count:08d}.parquet")
            held, count = [], count + 1

        for page in pages:
            held += page
            if len(held) >= _PIECE:
                flush()
        flush()
        pl.scan_parquet(pieces / "*.parquet").sink_parquet(out, compression="zstd")
    finally:
        shutil.rmtree(pieces, ignore_errors=True)


def _tick(tick: Tick) -> Row:
    return {**msgspec.structs.asdict(tick), "flags": list(tick.flags)}


def _rejection(rejection: Rejection) -> Row:
    row = msgspec.structs.asdict(rejection)
    return {name: row[name] for name in SCHEMAS["rejections"]}


def _bar(update: BarUpdate) -> Row:
    row = msgspec.structs.asdict(update.bar)
    row["datetime"] = row.pop("open_time")
    row |= {"epoch": update.epoch, "offset": update.offset, "published_at": update.published_at}
    return {name: row[name] for name in SCHEMAS["bars"]}


def _iso(instant: float) -> str | None:
    try:
        return iso_local(instant)
    except (ValueError, OverflowError, OSError):
        return None  # a refused quote may be stamped with anything


def _flat(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(value)
    return _encode(value).decode() if isinstance(value, msgspec.Struct) else value


def _cell(value: Any, kind: Any) -> Any:
    if kind == _TIME:
        # What no calendar has, as above; a column of microseconds holds about 290,000 years.
        return None if _iso(value) is None else round(value * 1_000_000)
    return _encode(value).decode() if isinstance(value, msgspec.Struct) else value


def _csv(rows: list[list[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def parse_place(text: str) -> tuple[int, int]:
    """``EPOCH:OFFSET``; raises ``ValueError``."""
    epoch, offset = text.split(":")
    return int(epoch), int(offset)
