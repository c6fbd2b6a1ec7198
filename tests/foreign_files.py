"""Makes what other systems export: a true market, and files that tell it wrongly in known ways."""

import gzip
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar

CALENDAR = TradingCalendar()
SHIFT = 5 * 3600
COT, UTC_DIGITS = "cot", "utc"
_NEW_YORK = ZoneInfo("America/New_York")


@dataclass(frozen=True)
class Row:
    """One bar as it is told. ``slot`` is its true open; what is written is ``slot`` less ``shift``."""

    slot: int
    open: float
    high: float
    low: float
    close: float
    shift: int = 0
    claim: str = ""  # the offset it claims
    written: int | None = None  # unix seconds UTC; told with its offset

    @property
    def digits(self) -> int:
        return self.slot - self.shift

    @property
    def prices(self) -> tuple[float, float, float, float]:
        return self.open, self.high, self.low, self.close


def market(start: date, days: int, seed: int, *, around_the_clock: bool = False) -> dict[int, Row]:
    """The true bars by slot, of ``days`` calendar days from ``start``: sessions of trading days, or a feed
    that pauses only over the weekend and is twice as lively in session."""
    chance = random.Random(seed)
    price = 3500 + chance.random() * 1000
    bars = {}
    first = int(datetime(start.year, start.month, start.day, tzinfo=UTC).timestamp())
    sessions = {
        label
        for n in range(-1, days + 1)
        for label in CALENDAR.expected_labels(start + timedelta(days=n))
    }
    for slot in range(first, first + days * 86_400, BAR_SECONDS):
        inside = slot in sessions
        if not inside and not (around_the_clock and _week_is_open(slot)):
            continue
        size = price * (4e-4 if inside else 1.5e-4)
        opened = price + chance.gauss(0, size / 4)
        price = max(1000.0, opened + chance.gauss(0, size))
        high = max(opened, price) + abs(chance.gauss(0, size / 2)) + 0.01
        low = min(opened, price) - abs(chance.gauss(0, size / 2)) - 0.01
        bars[slot] = Row(slot, *(round(value, 4) for value in (opened, high, low, price)))
    return bars


def _week_is_open(slot: int) -> bool:
    local = datetime.fromtimestamp(slot, _NEW_YORK)
    minute = local.hour * 60 + local.minute
    weekday = local.isoweekday()
    return not (
        weekday == 6 or (weekday == 5 and minute >= 1020) or (weekday == 7 and minute < 1020)
    )


def told(rows: Iterable[Row], convention: str, claim: str = "") -> list[Row]:
    shift = SHIFT if convention == COT else 0
    return [replace(row, shift=shift, claim=claim) for row in rows]


def close_only(row: Row) -> Row:
    return replace(row, open=row.close, high=row.close, low=row.close)


def partial(row: Row, lag: int, chance: random.Random) -> Row:
    """Taken ``lag`` seconds after the end of the bar (before it: negative): narrower, another close."""
    close = round(row.low + (row.high - row.low) * chance.random(), 4)
    high = round(max(row.open, close, row.high - (row.high - row.low) * 0.2), 4)
    low = round(min(row.open, close, row.low + (row.high - row.low) * 0.2), 4)
    written = row.slot + BAR_SECONDS + lag
    return replace(row, high=high, low=low, close=close, written=written)


def filler(day: date, price: float) -> list[Row]:
    """A closed day on which the last price is repeated at the hours of a session."""
    first = int(datetime(day.year, day.month, day.day, 13, tzinfo=UTC).timestamp())
    slots = range(first, first + 60 * BAR_SECONDS, BAR_SECONDS)
    return [Row(slot, price, price, price, price) for slot in slots]


def line(row: Row, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    digits = datetime.fromtimestamp(row.digits, UTC).strftime(form)
    written = ""
    if row.written is not None:
        written = datetime.fromtimestamp(row.written, UTC).strftime("%Y-%m-%d %H:%M:%S+00")
    prices = ",".join(f"{value:g}" if value != value else repr(value) for value in row.prices)
    return f"{digits}{row.claim},USD/COP,{prices},0,vendor,{written}"


HEADER = "time,symbol,open,high,low,close,volume,source,created_at"


def write(path: Path, lines: Sequence[str], *, ending: str = "\n", header: str = HEADER) -> Path:
    """``lines`` as a file: .csv or .csv.gz."""
    content = "".join(f"{one}{ending}" for one in [header, *lines]).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path
