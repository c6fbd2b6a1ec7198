"""Rows of any interval at any instant: what the vendor would answer. Pure.

A finished row appears ``latency`` seconds after its end. The unfinished current row is included,
unmarked, built from the ticks up to now; between its end and ``latency`` later it is absent.
Intraday rows are aligned in the zone of display, days, weeks and months in ``daily_zone``.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Final

from .distortion import CandleFaults
from .model import SLOT_SECONDS, Candle, SymbolSource
from .recorded import candles_of

_DAY = 86_400

INTERVALS: Final[dict[str, int]] = {
    "1min": 60,
    "5min": 300,
    "15min": 900,
    "30min": 1800,
    "45min": 2700,
    "1h": 3600,
    "2h": 7200,
    "4h": 14_400,
    "8h": 28_800,
    "1day": _DAY,
    "1week": 7 * _DAY,
    "1month": 31 * _DAY,
}
"""The vendor's intervals in its order -> seconds (the longest a month can be)."""


def is_daily(interval: str) -> bool:
    """Whether rows of ``interval`` are labelled with a date instead of a time."""
    return interval in ("1day", "1week", "1month")


@dataclass(frozen=True, slots=True)
class View:
    """How one request looks at the prices of a symbol."""

    source: SymbolSource
    interval: str
    zone: tzinfo  # alignment: the zone of display, or the daily zone for daily rows
    now: float  # unix seconds UTC
    latency: float  # seconds until a finished row appears
    faults: CandleFaults | None = None

    def bucket(self, instant: int) -> tuple[int, int]:
        """Start and end (exclusive) of the row that ``instant`` belongs to."""
        local = datetime.fromtimestamp(instant, self.zone)
        if not is_daily(self.interval):
            length = INTERVALS[self.interval]
            offset = local.utcoffset() or timedelta(0)
            shift = int(offset.total_seconds())
            start = (instant + shift) // length * length - shift
            return start, start + length
        day = local.date()
        if self.interval == "1day":
            return self._midnight(day), self._midnight(day + timedelta(days=1))
        if self.interval == "1week":
            first = day - timedelta(days=day.weekday())
            return self._midnight(first), self._midnight(first + timedelta(days=7))
        first = day.replace(day=1)
        following = (first + timedelta(days=32)).replace(day=1)
        return self._midnight(first), self._midnight(following)

    def rows(self, start: int | None, end: int | None, count: int) -> list[Candle]:
        """The last ``count`` visible rows whose open lies in ``start .. end``, both inclusive.

        ``None`` leaves a side open. Oldest first.
        """
        first = self.source.first_open()
        now = int(self.now)
        newest = now if end is None else min(end, now)
        if first is None or newest < first or (start is not None and start > newest):
            return []
        earliest = self.bucket(first if start is None else max(start, first))[0]
        upper = self.bucket(newest)[1]
        span = max(INTERVALS[self.interval] * (count + 2), _DAY)
        rows: list[Candle] = []
        while upper > earliest and len(rows) < count:
            lower = max(self.bucket(upper - span)[0], earliest)
            rows = [*self._visible(lower, upper, start, newest), *rows]
            upper = lower
            # Closed hours have no rows: look further back in larger steps, but not so far
            # that a thin recording makes one step read its whole past.
            span = min(span * 2, 400 * _DAY)
        return rows[-count:]

    def _midnight(self, day: date) -> int:
        return int(datetime(day.year, day.month, day.day, tzinfo=self.zone).timestamp())

    def _visible(self, lower: int, upper: int, start: int | None, newest: int) -> list[Candle]:
        now = int(self.now)
        if self.interval == "1min":
            pieces = candles_of(self._points(lower, min(upper, now + 1)), 60)
        else:
            slot = now - now % SLOT_SECONDS
            pieces = self.source.candles(lower, min(upper, slot))
            if lower <= slot < upper:
                pieces += candles_of(self._points(slot, now + 1), SLOT_SECONDS)
        rows = pieces if self.interval in ("1min", "5min") else merged(pieces, self.bucket)
        visible = [
            row
            for row in rows
            if (start is None or row.open_time >= start)
            and row.open_time <= newest
            and not self._settling(row)
        ]
        faults = self.faults
        if faults is None:
            return visible
        shown = (faults.shown(row, self.bucket(row.open_time)[1], self.now) for row in visible)
        return [row for row in shown if row is not None]

    def _points(self, start: int, end: int) -> Iterator[tuple[int, float]]:
        return ((tick.timestamp, tick.price) for tick in self.source.ticks(start, end))

    def _settling(self, row: Candle) -> bool:
        if self.faults is not None and self.faults.late is not None:
            return False  # the fault has the say
        if row.open_time + INTERVALS[self.interval] + self.latency <= self.now:
            return False  # the common case, without asking for the exact end of a month
        end = self.bucket(row.open_time)[1]
        return end <= self.now < end + self.latency


def merged(pieces: Iterable[Candle], bucket: Callable[[int], tuple[int, int]]) -> list[Candle]:
    """Candles put together into the larger rows that ``bucket`` names."""
    rows: list[Candle] = []
    end = -1
    start, opening, high, low, close = 0, 0.0, 0.0, 0.0, 0.0
    for piece in pieces:
        if piece.open_time >= end:
            if end >= 0:
                rows.append(Candle(start, opening, high, low, close))
            start, end = bucket(piece.open_time)
            opening, high, low = piece.open, piece.high, piece.low
        else:
            high, low = max(high, piece.high), min(low, piece.low)
        close = piece.close
    if end >= 0:
        rows.append(Candle(start, opening, high, low, close))
    return rows


def label(row: Candle, interval: str, zone: tzinfo) -> str:
    """The row's ``datetime`` as the vendor writes it: naive, in ``zone``."""
    local = datetime.fromtimestamp(row.open_time, zone)
    if is_daily(interval):
        return local.date().isoformat()
    return local.replace(tzinfo=None).isoformat(sep=" ")


def utc_text(instant: float) -> str:
    """``instant`` as ``YYYY-MM-DD HH:MM:SS`` in UTC."""
    return datetime.fromtimestamp(int(instant), UTC).replace(tzinfo=None).isoformat(sep=" ")
