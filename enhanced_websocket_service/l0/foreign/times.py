"""Stamps as other systems write them. Pure.

A stamp is kept as its *digits* (``wall``: what the clock showed, counted as if it were UTC) beside the
offset it claims, because the claim may be a lie. Microseconds since 1970.
"""

from dataclasses import dataclass
from typing import Final

import polars as pl

from enhanced_websocket_service.errors import DataError

_OFFSET: Final = r"^(.*\d)\s*(Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?)$"
_MICROS: Final = 1_000_000
_FIRST, _LAST = 0, 4_102_444_800  # 1970 .. 2100, unix seconds

_PLAIN: Final = "%Y-%m-%d %H:%M:%S"
_YEAR_FIRST: Final = (
    *("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y%m%d %H:%M:%S%.f", "%Y%m%d %H:%M"),
    *("%Y%m%d %H%M%S%3f", "%Y%m%d %H%M%S", "%Y%m%d %H%M", "%Y%m%d%H%M%S", "%Y%m%d%H%M"),
)
_CLOCKS: Final = (" %H:%M:%S%.f", " %H:%M", " %I:%M:%S %p", " %I:%M %p")
_DAY_FIRST: Final = tuple("%d-%m-%Y" + clock for clock in _CLOCKS)
_MONTH_FIRST: Final = tuple("%m-%d-%Y" + clock for clock in _CLOCKS)


@dataclass(frozen=True, slots=True)
class Stamps:
    """One column of stamps, row by row; null where there is none that can be read."""

    wall_us: pl.Series  # Int64: the digits, counted as UTC
    offset_s: pl.Series  # Int32: the offset they claim, seconds east; null: none


def parse(column: pl.Series, where: str) -> Stamps:
    """The stamps in ``column``: text in any of the known forms, datetimes, or unix numbers.

    :param where: names file and column in errors.
    :raises DataError: day and month cannot be told apart.
    """
    if isinstance(column.dtype, pl.Datetime):
        return _datetimes(column)
    if column.dtype.is_numeric():
        return _numbers(column)
    text = column.cast(pl.String)
    if len(text) and text.str.len_bytes().max() == len("2024-03-11 13:00:00"):
        quick = text.str.to_datetime(_PLAIN, time_unit="us", strict=False, exact=True)
        if quick.null_count() == text.null_count():
            naive = pl.repeat(None, len(text), dtype=pl.Int32, eager=True)
            return Stamps(_sane(_micros(quick)), naive)
    text = text.str.strip_chars()
    # Stamps repeat (one batch, one stamp), so each different one is read once.
    distinct = pl.DataFrame({"text": text}).unique().drop_nulls()
    parsed = _texts(distinct["text"], where)
    if distinct.height == 1 and not text.null_count():
        return Stamps(
            *(one.new_from_index(0, len(text)) for one in (parsed.wall_us, parsed.offset_s))
        )
    found = pl.DataFrame({"text": text}).join(
        distinct.with_columns(wall=parsed.wall_us, offset=parsed.offset_s),
        on="text",
        how="left",
        maintain_order="left",
    )
    return Stamps(found["wall"], found["offset"])


def _texts(text: pl.Series, where: str) -> Stamps:
    if (numbers := text.cast(pl.Float64, strict=False)).null_count() == 0 and not _compact(text):
        return _numbers(numbers)
    parts = text.to_frame("text").select(
        digits=pl.coalesce(pl.col("text").str.extract(_OFFSET, 1), pl.col("text"))
        .str.replace("T", " ", literal=True)
        .str.replace(r"^(\d{1,4})[/.](\d{1,2})[/.](\d{1,4})", "$1-$2-$3")
        .str.replace(r"\s+", " "),
        zone=pl.col("text").str.extract(_OFFSET, 2),
    )
    # A date has hyphens of its own: "2024-03-11" ends like an offset of -11.
    dates = parts["digits"].str.contains(r"\d[:\d]{3,}") & parts["digits"].str.contains(
        " |^\\d{12}"
    )
    parts = parts.with_columns(
        zone=pl.when(dates).then("zone"), digits=pl.when(dates).then("digits")
    )
    digits = parts["digits"]
    wall = _first_that_fits(digits, _YEAR_FIRST)
    if wall.null_count() > digits.null_count():
        rest = digits.zip_with(
            wall.is_null(), pl.Series([None], dtype=pl.String).new_from_index(0, len(digits))
        )
        wall = wall.fill_null(_days_and_months(rest, where))
    zone = parts["zone"]
    sign = zone.str.slice(0, 1)
    hours = zone.str.slice(1, 2).cast(pl.Int32, strict=False)
    minutes = zone.str.slice(3).str.strip_chars(":").cast(pl.Int32, strict=False).fill_null(0)
    seconds = (hours * 3600 + minutes * 60) * sign.replace_strict(
        {"-": -1, "+": 1}, default=None, return_dtype=pl.Int32
    )
    utc = zone.is_in(["Z", "UTC", "GMT"]).fill_null(False)
    offset = pl.select(pl.when(utc).then(0).otherwise(seconds).cast(pl.Int32)).to_series()
    return Stamps(_sane(wall), offset)


def _compact(text: pl.Series) -> bool:
    """``20240311130500``: digits alone, yet no number of seconds."""
    return bool(text.str.contains(r"^(19|20)\d{10}(\d{2})?$").all())


def _first_that_fits(digits: pl.Series, forms: tuple[str, ...]) -> pl.Series:
    wall = pl.repeat(None, len(digits), dtype=pl.Int64, eager=True)
    for form in forms:
        if wall.null_count() == digits.null_count():
            break
        found = digits.str.to_datetime(form, time_unit="us", strict=False, exact=True)
        wall = wall.fill_null(_micros(found))
    return wall


def _days_and_months(digits: pl.Series, where: str) -> pl.Series:
    day_first = _first_that_fits(digits, _DAY_FIRST)
    month_first = _first_that_fits(digits, _MONTH_FIRST)
    read = (day_first.is_not_null().sum(), month_first.is_not_null().sum())
    if read[0] == read[1] and read[0] and not day_first.equals(month_first):
        raise DataError(
            f"{where}: the dates can be read day first or month first ({digits.drop_nulls()[0]!r} for "
            "one). Export them as YYYY-MM-DD."
        )
    return day_first if read[0] >= read[1] else month_first


def _datetimes(column: pl.Series) -> Stamps:
    zone = column.dtype.time_zone if isinstance(column.dtype, pl.Datetime) else None
    if zone is None:
        naive = pl.repeat(None, len(column), dtype=pl.Int32, eager=True)
        return Stamps(_sane(_micros(column)), naive)
    digits = _micros(column.dt.replace_time_zone(None))
    offset = (digits - _micros(column)) // _MICROS
    return Stamps(_sane(digits), offset.cast(pl.Int32))


def _numbers(column: pl.Series) -> Stamps:
    """Unix seconds, milliseconds, microseconds or nanoseconds: UTC by their definition."""
    values = column.cast(pl.Float64, strict=False).fill_nan(None)
    typical = values.abs().median()
    size = float(typical) if isinstance(typical, int | float) else 0.0
    # Seconds of 1973 .. 5138 lie below 1e11; each finer unit is a thousand times as large.
    unit = next((10.0**-power for power in (0, 3, 6) if size * 10.0**-power < 1e11), 1e-9)
    micros = (values * unit * _MICROS).round().cast(pl.Int64, strict=False)
    offset = pl.select(pl.when(micros.is_not_null()).then(0).cast(pl.Int32)).to_series()
    return Stamps(_sane(micros), offset)


def _micros(column: pl.Series) -> pl.Series:
    return column.dt.epoch("us")


def _sane(wall_us: pl.Series) -> pl.Series:
    sane = wall_us.is_between(_FIRST * _MICROS, _LAST * _MICROS)
    return pl.select(pl.when(sane).then(wall_us)).to_series()
