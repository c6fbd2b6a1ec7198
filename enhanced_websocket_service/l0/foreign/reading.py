"""A foreign file to a table, every row accounted for; what cannot be a table at all is a ``DataError``."""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import polars as pl

from enhanced_websocket_service.errors import DataError
from enhanced_websocket_service.market.tick import PRICE_DECIMALS

from . import times

PRICES: Final = ("open", "high", "low", "close")
_NAMES: Final = {
    **dict.fromkeys(("datetime", "timestamp", "date_time", "ts", "time_utc"), "datetime"),
    **dict.fromkeys(("dtyyyymmdd", "day"), "date"),
    **{short: name for name in PRICES for short in (name[0], f"{name}_price", f"price_{name}")},
    **dict.fromkeys(("vol", "v", "tick_volume"), "volume"),
    **dict.fromkeys(("ticker", "pair", "instrument"), "symbol"),
    **dict.fromkeys(("created", "inserted_at"), "created_at"),
    **dict.fromkeys(("updated", "modified_at"), "updated_at"),
}
_MAX_VOLUME: Final = 2**31 - 1
_GRID_US: Final = 300_000_000

SCHEMA: Final = pl.Schema(
    {
        "row": pl.UInt32(),  # of the data, counted from 1, the header not among them
        "symbol": pl.String(),  # letters and digits alone, upper case; null: the file has none
        "wall": pl.Int64(),  # the digits of the stamp, counted as unix seconds UTC; null: unreadable
        "offset": pl.Int32(),  # the offset the stamp claims, seconds east; null: none
        "on_grid": pl.Boolean(),  # on a whole 5 minutes
        **dict.fromkeys(PRICES, pl.Float64()),  # null: unreadable
        "volume": pl.Int64(),
        "origin": pl.String(),  # what the file's own column ``source`` says
        "created": pl.Int64(),  # when the row was first written, digits as unix seconds
        "changed": pl.Int64(),  # and when last
        "created_aware": pl.Boolean(),  # those two had an offset, and are true UTC
        "declared": pl.String(),  # the grade that the file itself gives
        "fault": pl.String(),  # why the row cannot be read; null: it can
        "volume_mended": pl.Boolean(),
    }
)


@dataclass(frozen=True, slots=True)
class Table:
    """A file as it was read."""

    path: Path
    rows: pl.DataFrame  # SCHEMA
    _original: bytes | list[str] | pl.DataFrame = field(repr=False)

    def originals(self, rows: Sequence[int]) -> list[str]:
        """The lines as they stand in the file (a parquet file's rows as JSON)."""
        if isinstance(self._original, pl.DataFrame):
            chosen = self._original[[row - 1 for row in rows]]
            return chosen.select(pl.struct(pl.all()).struct.json_encode()).to_series().to_list()
        if isinstance(self._original, bytes):
            # Blank lines are no rows, here as for the reader; the header is line 0.
            lines = [line for line in self._original.split(b"\n") if line]
            return [lines[row].rstrip(b"\r").decode("utf-8", "replace") for row in rows]
        return [self._original[row - 1] for row in rows]


def read_table(path: Path) -> Table:
    """Read ``path``: parquet, csv or csv.gz.

    :raises DataError: missing, unreadable, of another kind, without rows or without the columns of
        bars; says which file, what is wrong with it and what to do.
    """
    name = path.name.lower()
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give the path of a .parquet, .csv or .csv.gz file.")
    if name.endswith((".parquet", ".pq")):
        frame = _read_parquet(path)
        return Table(path, _normalised(frame, path, _no_faults(frame)), frame)
    if name.endswith((".csv", ".csv.gz", ".txt", ".tsv")):
        return _read_text(path)
    raise DataError(f"{path}: unknown kind of file; use .parquet, .csv or .csv.gz.")


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path)
    # polars panics, which is no Exception, on some damaged files
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: is damaged or no parquet file: {said} Copy or export it again; nothing was imported."
        ) from error
    if frame.is_empty():
        raise DataError(f"{path}: has no rows.")
    return frame


def _read_text(path: Path) -> Table:
    data = _content(path)
    first, _, rest = data.partition(b"\n")
    header = first.decode("utf-8", "replace").strip("\r\n \ufeff")
    if not rest.strip():
        raise DataError(f"{path}: has no rows.")
    separator = max(",;\t|", key=header.count)
    names = [name.strip().strip('"') for name in header.split(separator)]
    _require(names, path)
    fast = _quick(data, separator, len(names))
    if fast is not None:
        frame = fast.rename(dict(zip(fast.columns, names, strict=True)))
        original: bytes | list[str] = data
        faults = _no_faults(frame)
    else:
        frame, original, faults = _carefully(rest, separator, names)
        if frame.is_empty():
            raise DataError(f"{path}: has no rows.")
    if not data.endswith(b"\n"):
        faults = _doubt_the_end(frame, names, faults)
    return Table(path, _normalised(frame, path, faults, decimal_comma=separator == ";"), original)


def _content(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}.") from error
    if data[:2] == b"\x1f\x8b":
        whole = zlib.decompressobj(wbits=31)
        read = b""
        try:
            read = whole.decompress(data)
            data = gzip.decompress(data)
        except (EOFError, zlib.error, OSError) as error:
            raise DataError(
                f"{path}: the compressed file is cut off or damaged after row "
                f"{max(0, read.count(10) - 1)} ({error}). Copy or export it again; nothing was imported."
            ) from error
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        data = data.decode("utf-16", "replace").encode()
    return data


def _require(names: list[str], path: Path) -> None:
    known = {_name(name) for name in names}
    missing = [name for name in PRICES if name not in known]
    if not known & {"datetime", "time", "date"}:
        missing.insert(0, "datetime (or time)")
    if missing:
        raise DataError(
            f"{path}: the first line lacks the column{'s' if len(missing) > 1 else ''} "
            f"{', '.join(missing)}; it has {', '.join(names)[:200]}. Name the columns datetime, open, "
            "high, low, close in the first line."
        )
    doubled = {name for name in known if [_name(one) for one in names].count(name) > 1}
    if doubled & {*PRICES, "datetime", "time", "date"}:
        raise DataError(f"{path}: has several columns for {', '.join(sorted(doubled))}; keep one.")


def _name(name: str) -> str:
    plain = name.strip().strip("<>").strip().lower().replace(" ", "_")
    return _NAMES.get(plain, plain)


def _quick(data: bytes, separator: str, width: int) -> pl.DataFrame | None:
    """The whole file at once, when every line is one regular row; ``None`` when any is not."""
    if b'"' in data or not data.isascii():
        return None
    try:
        frame = pl.read_csv(
            data,
            separator=separator,
            infer_schema=False,
            has_header=False,
            skip_rows=1,
            quote_char=None,
            new_columns=[f"c{i}" for i in range(width)],
            schema={f"c{i}": pl.String() for i in range(width)},
        )
    except pl.exceptions.PolarsError:
        return None
    if frame.width != width:
        return None
    # A line with too few fields is filled up with nulls, and so is an empty last field.
    last = frame.to_series(width - 1)
    return None if last.null_count() or frame.to_series(0).null_count() else frame


def _carefully(
    rest: bytes, separator: str, names: list[str]
) -> tuple[pl.DataFrame, list[str], pl.Series]:
    """Line by line: one broken line costs no more than itself. Blank lines are no rows."""
    lines = [
        line for raw in rest.decode("utf-8", "replace").split("\n") if (line := raw.strip("\r"))
    ]
    table: list[list[str | None]] = []
    faults: list[str | None] = []
    for line in lines:
        try:
            fields: list[str] = next(csv.reader([line], delimiter=separator, strict=True))
            fault = None
        except csv.Error as error:
            fields, fault = [], f"cannot be split into fields: {error}"
        if fault is None and len(fields) != len(names):
            fault = f"has {len(fields)} of {len(names)} fields"
        faults.append(fault)
        table.append([*fields[: len(names)], *[None] * (len(names) - len(fields))])
    schema = {f"c{i}": pl.String() for i in range(len(names))}
    frame = pl.DataFrame(table, schema=schema, orient="row")
    return (
        frame.rename(dict(zip(frame.columns, names, strict=True))),
        lines,
        pl.Series("fault", faults, dtype=pl.String),
    )


def _doubt_the_end(frame: pl.DataFrame, names: list[str], faults: pl.Series) -> pl.Series:
    """A file cut off inside its last price looks like a whole one with another price."""
    if _name(names[-1]) not in (*PRICES, "datetime", "time", "date"):
        return faults
    marked = faults.to_frame("fault").with_row_index("i")
    last = frame.height - 1
    fault = pl.lit("the file ends without a line break, inside a field that counts")
    return marked.select(
        pl.when(pl.col("i") == last).then(fault).otherwise("fault").alias("fault")
    )["fault"]


def _no_faults(frame: pl.DataFrame) -> pl.Series:
    return pl.repeat(None, frame.height, dtype=pl.String, eager=True).alias("fault")


def _normalised(
    found: pl.DataFrame, path: Path, faults: pl.Series, *, decimal_comma: bool = False
) -> pl.DataFrame:
    names = [_name(name) for name in found.columns]
    _require(list(found.columns), path)
    columns = {name: found.to_series(i) for i, name in enumerate(names)}
    stamps = times.parse(_stamp_column(columns), f"{path}, column {_stamp_name(columns)}")
    created = _written(columns, ("created_at", "updated_at"), path)
    changed = created
    both = {"created_at", "updated_at"} <= columns.keys()
    if both and not columns["created_at"].equals(columns["updated_at"]):
        changed = _written(columns, ("updated_at", "created_at"), path)
    prices = {name: _price(columns[name], decimal_comma) for name in PRICES}
    volume, mended = _volume(columns.get("volume"), found.height)
    nothing = pl.repeat(None, found.height, dtype=pl.String, eager=True)
    origin = columns.get("source", nothing).cast(pl.String)
    frame = pl.DataFrame(
        {
            "row": pl.int_range(1, found.height + 1, dtype=pl.UInt32, eager=True),
            "symbol": _symbols(columns.get("symbol", nothing)),
            "wall": stamps.wall_us,
            "offset": stamps.offset_s,
            "on_grid": stamps.wall_us % _GRID_US == 0,
            **prices,
            "volume": volume,
            "origin": origin,
            "created": created.wall_us,
            "changed": changed.wall_us,
            "created_offset": created.offset_s,
            "changed_offset": changed.offset_s,
            "declared": _declared(columns, nothing),
            "fault": faults,
            "volume_mended": mended,
        }
    )
    wall, fault = pl.col("wall") // 1_000_000, pl.col("fault")
    unreadable = pl.any_horizontal(pl.col(name).is_null() for name in PRICES)
    return frame.with_columns(
        wall=wall,
        created=pl.col("created") // 1_000_000 - pl.col("created_offset").fill_null(0),
        changed=pl.col("changed") // 1_000_000 - pl.col("changed_offset").fill_null(0),
        created_aware=pl.col("created_offset").is_not_null()
        & pl.col("changed_offset").is_not_null(),
        fault=pl.when(fault.is_not_null())
        .then(fault)
        .when(wall.is_null())
        .then(pl.lit("the stamp cannot be read"))
        .when(unreadable)
        .then(pl.lit("a price is missing or no number")),
    ).select(pl.col(name).cast(kind) for name, kind in SCHEMA.items())


def _stamp_name(columns: dict[str, pl.Series]) -> str:
    if "date" in columns and "time" in columns:
        return "date and time"
    return next(name for name in ("datetime", "time", "date") if name in columns)


def _stamp_column(columns: dict[str, pl.Series]) -> pl.Series:
    if "datetime" not in columns and "date" in columns and "time" in columns:
        return columns["date"].cast(pl.String) + " " + columns["time"].cast(pl.String)
    return next(columns[name] for name in ("datetime", "time", "date") if name in columns)


def _written(columns: dict[str, pl.Series], names: tuple[str, str], path: Path) -> times.Stamps:
    for name in names:
        if name in columns:
            return times.parse(columns[name], f"{path}, column {name}")
    height = len(next(iter(columns.values())))
    return times.Stamps(
        pl.repeat(None, height, dtype=pl.Int64, eager=True),
        pl.repeat(None, height, dtype=pl.Int32, eager=True),
    )


def _price(column: pl.Series, decimal_comma: bool) -> pl.Series:
    if column.dtype == pl.String and decimal_comma:
        column = column.str.replace(",", ".", literal=True)
    return _number(column).round(PRICE_DECIMALS)


def _number(column: pl.Series) -> pl.Series:
    read = column.cast(pl.Float64, strict=False)
    if column.dtype == pl.String and read.null_count() > column.null_count():
        read = column.str.strip_chars().cast(pl.Float64, strict=False)
    return read


def _volume(column: pl.Series | None, height: int) -> tuple[pl.Series, pl.Series]:
    """Volumes, and which of them were unusable and became 0."""
    if column is None:
        zero = pl.repeat(0, height, dtype=pl.Int64, eager=True)
        return zero, pl.repeat(False, height, dtype=pl.Boolean, eager=True)
    read = _number(column)
    usable = (read.is_finite() & read.is_between(0, _MAX_VOLUME)).fill_null(False)
    volume = pl.select(pl.when(usable).then(read).otherwise(0.0)).to_series().cast(pl.Int64)
    # An empty volume is none; any other that is no number was mended.
    empty = column.is_null() | (column == "") if column.dtype == pl.String else column.is_null()
    return volume, ~usable & ~empty


def _symbols(column: pl.Series) -> pl.Series:
    distinct = column.cast(pl.String).unique().drop_nulls()
    clean = distinct.str.replace_all(r"[^A-Za-z0-9]", "").str.to_uppercase()
    return column.cast(pl.String).replace(distinct, clean)


def _declared(columns: dict[str, pl.Series], nothing: pl.Series) -> pl.Series:
    """What the file itself says about the quality of its bars."""
    if "grade" in columns:
        return columns["grade"].cast(pl.String).str.strip_chars().str.to_lowercase()
    mark = columns.get("open_reconstructed", columns.get("reconstructed"))
    if mark is None:
        return nothing
    yes = mark.cast(pl.String).str.to_lowercase().is_in(["true", "t", "1", "yes"]).fill_null(False)
    return pl.select(pl.when(yes).then(pl.lit("reconstructed"))).to_series()


def quarantine_bytes(frame: pl.DataFrame, name: str) -> bytes:
    """``frame`` as a file of the kind that ``name`` asks for: .csv, else parquet."""
    buffer = io.BytesIO()
    if name.lower().endswith(".csv"):
        frame.write_csv(buffer)
    else:
        frame.write_parquet(buffer, compression="zstd")
    return buffer.getvalue()
