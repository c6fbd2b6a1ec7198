"""Recordings on disk to candles and ticks, or an error that names the file, the row and the fault."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import polars as pl
import structlog

from enhanced_websocket_service.errors import DataError
from enhanced_websocket_service.market.tick import MAX_PRICE, quantise

from .model import SLOT_SECONDS, Candle
from .recorded import RecordedTicks

log = structlog.get_logger(__name__)

PRICE_COLUMNS = ("open", "high", "low", "close")
TIME_COLUMNS = ("datetime", "time", "timestamp")
_LATEST = 7_258_118_400  # 2200-01-01

REPAIRABLE = 1e-3
"""A recorded close or open this far outside [low, high], relative to the price, is the vendor's
rounding: the range is widened to hold it. Beyond that the row is wrong and refused."""


class _Where(NamedTuple):
    """A place in a file. Turned into text only for an error: most rows have none."""

    path: Path
    row: int
    at: float  # unix seconds

    def __str__(self) -> str:
        shown = datetime.fromtimestamp(self.at, UTC).isoformat(sep=" ")
        return f"{self.path}, row {self.row} ({shown})"


def read_frame(path: Path) -> pl.DataFrame:
    """The table in ``path``: parquet, csv or csv.gz.

    :raises DataError: missing, unreadable, of another kind, or without rows.
    """
    name = path.name.lower()
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give the path of a .parquet, .csv or .csv.gz file.")
    try:
        if name.endswith(".parquet"):
            frame = pl.read_parquet(path)
        elif name.endswith((".csv", ".csv.gz")):
            frame = pl.read_csv(path, try_parse_dates=False, infer_schema_length=None)
        else:
            raise DataError(f"{path}: unknown kind of file; use .parquet, .csv or .csv.gz.")
        frame = frame.rename({column: column.strip().lower() for column in frame.columns})
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if frame.is_empty():
        raise DataError(f"{path}: has no rows.")
    return frame


def load_candles(path: Path, symbol: str) -> list[Candle]:
    """The recorded 5-minute candles of ``symbol`` (vendor's spelling) in ``path``.

    Columns: ``datetime`` (the OPEN of the bar; UTC where it has no offset), ``open``, ``high``,
    ``low``, ``close``, optionally ``symbol``. A file with one symbol is taken whatever its name.

    :raises DataError: naming the file, the row and what is wrong with it.
    """
    frame = _of_symbol(read_frame(path), symbol, path)
    _require(frame, PRICE_COLUMNS, path)
    opens = _unix_seconds(frame, path)
    columns = [_numbers(frame, name, path) for name in PRICE_COLUMNS]
    widened = 0
    candles: dict[int, Candle] = {}
    for row, (at, *raw) in enumerate(zip(opens, *columns, strict=True), start=1):
        where = _Where(path, row, at)
        opening, high, low, close = (_price(value, where) for value in raw)
        if at % SLOT_SECONDS:
            raise DataError(f"{where}: not on the 5-minute grid; datetime must be a bar's open.")
        if int(at) in candles:
            raise DataError(f"{where}: this bar appears twice.")
        top, bottom = max(opening, close, high), min(opening, close, low)
        excess = max(top - high, low - bottom)
        if high < low or excess > REPAIRABLE * bottom:
            raise DataError(
                f"{where}: open {opening}, high {high}, low {low}, close {close} is not a bar: "
                "open and close must lie between low and high."
            )
        widened += excess > 0
        candles[int(at)] = Candle(int(at), opening, top, bottom, close)
    if widened:
        log.warning(
            "Recorded bars were widened to hold their open and close.", file=str(path), bars=widened
        )
    return [candles[at] for at in sorted(candles)]


def load_ticks(path: Path, scale: float = 1.0) -> RecordedTicks:
    """The recorded quotes in ``path``; price = round((bid + ask) / 2 * scale, 6).

    Columns: ``datetime``, ``time`` or ``timestamp`` (UTC where it has no offset; numbers are unix
    seconds), ``bid``, ``ask``. Stamps are cut to whole seconds; inside one second the order of the
    file rules. A file out of order is sorted by whole seconds, with a warning.

    :raises DataError: naming the file, the row and what is wrong with it.
    """
    frame = read_frame(path)
    _require(frame, ("bid", "ask"), path)
    instants = _unix_seconds(frame, path)
    stamps = [int(at) for at in instants]
    bids, asks = (_numbers(frame, name, path) for name in ("bid", "ask"))
    mids = [(bid + ask) / 2 for bid, ask in zip(bids, asks, strict=True)]
    columns = [[round(value * scale, 6) for value in column] for column in (mids, bids, asks)]
    for column in columns:
        # NaN is neither small nor large: min() may pass it over, the sum does not.
        if not (min(column) > 0 and max(column) < MAX_PRICE and math.isfinite(sum(column))):
            for row, value in enumerate(column, start=1):
                _price(value, _Where(path, row, instants[row - 1]))
    if any(later < earlier for earlier, later in pairwise(stamps)):
        log.warning("Recorded ticks are out of order; sorted by whole seconds.", file=str(path))
        order = sorted(range(len(stamps)), key=stamps.__getitem__)
        stamps = [stamps[i] for i in order]
        columns = [[column[i] for i in order] for column in columns]
    return RecordedTicks(stamps, *columns)


def _require(frame: pl.DataFrame, columns: Sequence[str], path: Path) -> None:
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise DataError(
            f"{path}: lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} "
            f"(it has {', '.join(frame.columns)})."
        )


def _of_symbol(frame: pl.DataFrame, symbol: str, path: Path) -> pl.DataFrame:
    if "symbol" not in frame.columns:
        return frame
    names = frame["symbol"].cast(pl.String).str.to_uppercase().str.replace_all("/", "")
    distinct = sorted({name for name in names.to_list() if name is not None})
    if len(distinct) == 1:
        return frame
    chosen = frame.filter(names == symbol.replace("/", ""))
    if chosen.is_empty():
        raise DataError(f"{path}: has no rows of {symbol}; it holds {', '.join(distinct)}.")
    return chosen


def _unix_seconds(frame: pl.DataFrame, path: Path) -> list[float]:
    name = next((name for name in TIME_COLUMNS if name in frame.columns), None)
    if name is None:
        raise DataError(
            f"{path}: lacks a time column ({' or '.join(TIME_COLUMNS)}); "
            f"it has {', '.join(frame.columns)}."
        )
    column = frame[name]
    row = _first_null(column)
    if row is not None:
        raise DataError(f"{path}, row {row}: {name} is empty.")
    if isinstance(column.dtype, pl.Datetime):
        # Microseconds since 1970 UTC, whatever the zone of the column; naive counts as UTC.
        instants = [micros / 1e6 for micros in column.dt.epoch("us").to_list()]
    elif column.dtype.is_numeric():
        instants = [float(value) for value in column.to_list()]
    else:
        texts = column.cast(pl.String).to_list()
        instants = [_iso(text, f"{path}, row {row}") for row, text in enumerate(texts, start=1)]
    if min(instants) >= 0 and max(instants) < _LATEST and math.isfinite(sum(instants)):
        return instants
    for row, at in enumerate(instants, start=1):
        if not 0 <= at < _LATEST:
            raise DataError(
                f"{path}, row {row}: {name} {column[row - 1]} is no time between 1970 and 2200 "
                "(numbers must be unix seconds)."
            )
    return instants


def _iso(text: str, where: str) -> float:
    try:
        parsed = datetime.fromisoformat(text.strip())
    except ValueError as error:
        try:
            return float(text)  # one odd row makes text of a column of unix seconds
        except ValueError:
            raise DataError(f"{where}: {text!r} is not an ISO 8601 time.") from error
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()


def _numbers(frame: pl.DataFrame, name: str, path: Path) -> list[float]:
    column = frame[name]
    if not column.dtype.is_numeric():
        parsed = column.cast(pl.Float64, strict=False)
        row = _first_null(parsed)
        if row is not None:
            raise DataError(f"{path}, row {row}: {name} {column[row - 1]!r} is not a number.")
        column = parsed
    row = _first_null(column)
    if row is not None:
        raise DataError(f"{path}, row {row}: {name} is empty.")
    return [float(value) for value in column.to_list()]


def _first_null(column: pl.Series) -> int | None:
    """The number of the first row without a value, counted from 1."""
    if not column.null_count():
        return None
    first = column.is_null().arg_max()
    return None if first is None else first + 1


def _price(value: float, where: _Where) -> float:
    price = quantise(value)
    if not (math.isfinite(price) and 0 < price < MAX_PRICE):
        raise DataError(f"{where}: {value} is not a price.")
    return price
