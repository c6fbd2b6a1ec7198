"""Rows in PostgreSQL's binary COPY format: exact for 6 decimals and several times faster than text.

Pure. What cannot be encoded raises one of ``UNENCODABLE``; what can be, but does not fit its column,
PostgreSQL refuses. The format: https://www.postgresql.org/docs/current/sql-copy.html
"""

import struct
from collections.abc import Iterable
from datetime import date, datetime
from typing import Final
from zoneinfo import ZoneInfo

from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.tick import Tick

UNENCODABLE: Final = (struct.error, ValueError, OverflowError)

TICK_COLUMNS: Final = (
    *("symbol", "time", "bid", "ask", "last", "volume", "spread", "session_date"),
    *("trading_session", "source", "epoch", "tick_offset", "received_at", "flags"),
)
BAR_COLUMNS: Final = (
    *("symbol", "datetime", "open", "high", "low", "close", "volume", "source"),
    *("bar_revision", "bar_status"),
)

_HEAD: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TAIL: Final = struct.pack("!h", -1)
_NULL: Final = struct.pack("!i", -1)
_EPOCH_S: Final = 946_684_800  # 2000-01-01, where PostgreSQL's time begins; unix seconds
_EPOCH_DAY: Final = date(2000, 1, 1).toordinal()
_TEXT_OID: Final = 25
_NEGATIVE: Final = 0x4000

# length, number of digits, weight of the first, sign, digits behind the point; four digits of base
# 10,000: two before the point, two behind. PostgreSQL strips the zeros.
_NUMERIC: Final = struct.Struct("!ihhHhhhhh")
_INT8: Final = struct.Struct("!iq")
_INT4: Final = struct.Struct("!ii")
_TRUE: Final = struct.pack("!i?", 1, True)
_FALSE: Final = struct.pack("!i?", 1, False)


def numeric(value: float | None) -> bytes:
    """A price with its 6 decimals. Raises ``ValueError`` or ``OverflowError`` for no price at all."""
    if value is None:
        return _NULL
    scaled = round(value * 1_000_000)
    sign = 0
    if scaled < 0:
        scaled, sign = -scaled, _NEGATIVE
    whole, fraction = divmod(scaled, 1_000_000)
    high, low = divmod(whole, 10_000)
    if high >= 10_000:
        raise OverflowError(f"{value} is no price")
    return _NUMERIC.pack(16, 4, 1, sign, 6, high, low, fraction // 100, fraction % 100 * 100)


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("!i", len(encoded)) + encoded


def timestamptz(instant: float) -> bytes:
    """Unix seconds UTC, to the microsecond."""
    return _INT8.pack(8, round((instant - _EPOCH_S) * 1_000_000))


def text_array(values: tuple[str, ...]) -> bytes:
    if not values:
        body = struct.pack("!iii", 0, 0, _TEXT_OID)
    else:
        body = struct.pack("!iiiii", 1, 0, _TEXT_OID, len(values), 1)
        body += b"".join(text(value) for value in values)
    return struct.pack("!i", len(body)) + body


def tick_rows(ticks: Iterable[Tick], zone: ZoneInfo) -> bytearray:
    """``ticks`` for ``TICK_COLUMNS``; ``session_date`` is their day in ``zone``."""
    rows = bytearray(_HEAD)
    count = struct.pack("!h", len(TICK_COLUMNS))
    # Few different values over many rows: encode each once.
    texts: dict[str, bytes] = {}
    days: dict[int, bytes] = {}
    flag_sets: dict[tuple[str, ...], bytes] = {}
    for tick in ticks:
        stamp = tick.timestamp
        symbol = texts.get(tick.symbol) or texts.setdefault(tick.symbol, text(tick.symbol))
        source = texts.get(tick.source) or texts.setdefault(tick.source, text(tick.source))
        day = days.get(stamp) or days.setdefault(stamp, _day(stamp, zone))
        flags = flag_sets.get(tick.flags) or flag_sets.setdefault(
            tick.flags, text_array(tick.flags)
        )
        rows += b"".join(
            (
                count,
                symbol,
                _INT8.pack(8, (stamp - _EPOCH_S) * 1_000_000),
                numeric(tick.bid),
                numeric(tick.ask),
                numeric(tick.price),
                _INT4.pack(4, tick.volume),
                numeric(tick.spread),
                day,
                _TRUE if tick.trading_session else _FALSE,
                source,
                _INT8.pack(8, tick.epoch),
                _INT8.pack(8, tick.offset),
                timestamptz(tick.received_at),
                flags,
            )
        )
    rows += _TAIL
    return rows


def bar_rows(bars: Iterable[Bar]) -> bytearray:
    """``bars`` for ``BAR_COLUMNS``."""
    rows = bytearray(_HEAD)
    count = struct.pack("!h", len(BAR_COLUMNS))
    for bar in bars:
        rows += b"".join(
            (
                count,
                text(bar.symbol),
                timestamptz(bar.open_time),
                numeric(bar.open),
                numeric(bar.high),
                numeric(bar.low),
                numeric(bar.close),
                _INT4.pack(4, bar.volume),
                text(bar.source),
                _INT4.pack(4, bar.revision),
                text(bar.status),
            )
        )
    rows += _TAIL
    return rows


def _day(stamp: int, zone: ZoneInfo) -> bytes:
    ordinal = datetime.fromtimestamp(stamp, zone).date().toordinal()
    return _INT4.pack(4, ordinal - _EPOCH_DAY)
