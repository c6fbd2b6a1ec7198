"""Rows in PostgreSQL's binary COPY format: exact for 6 decimals and several times faster than text.

Pure. What cannot be encoded raises one of ``UNENCODABLE``; what can be, but does not fit its column,
PostgreSQL refuses. The format: https://www.postgresql.org/docs/current/sql-copy.html
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from msgspec.structs import astuple

from enhanced_websocket_service.market.bar import Bar
from enhanced_websocket_service.market.tick import Tick

UNENCODABLE: Final = (struct.error, ValueError, OverflowError)

# What many rows share comes first: it is encoded once for all of them.
TICK_COLUMNS: Final = (
    *("symbol", "source", "flags", "trading_session", "session_date", "time", "volume", "epoch"),
    *("tick_offset", "received_at", "last", "bid", "ask", "spread"),
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
_MICRO: Final = 1_000_000
_CHUNK: Final = 2000  # pieces
_ONE: Final = 100_000_000  # in hundred-millionths
_NOWHERE: Final = -2.0
_PLUS_0: Final = _NUMERIC.pack(16, 4, 1, 0, 6, 0, 0, 0, 0)[:16]
_MINUS_0: Final = _NUMERIC.pack(16, 4, 1, _NEGATIVE, 6, 0, 0, 0, 0)[:16]
_TICK: Final = struct.Struct("!qiq")  # the offset, a length, when it was received
_QUOTED_TICK: Final = struct.Struct(_TICK.format + "16sI" * 4)
_Head = tuple[int, tuple[str, ...], str, str, bool, int, int]
"""stamp, flags, symbol, source, session, volume, epoch"""
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
    return copy_stream(tick_tuples(ticks, zone))


def copy_stream(tuples: Iterable[bytes]) -> bytearray:
    """Rows with head and tail. No ``bytes``: asyncpg would take those for the name of a file."""
    return bytearray().join((_HEAD, *tuples, _TAIL))


def copy_chunks(pieces: Sequence[bytes]) -> Iterator[bytes]:
    """``copy_stream`` in chunks of some 200 kB, which is about what a socket takes at a time."""
    yield _HEAD
    for at in range(0, len(pieces), _CHUNK):
        yield b"".join(pieces[at : at + _CHUNK])
    yield _TAIL


def tick_tuples(ticks: Iterable[Tick], zone: ZoneInfo) -> list[bytes]:
    """The rows of ``ticks``, in pieces: those of several calls may stand behind one another."""
    # Few different values over many rows, and several million rows an hour at worst: what rows share
    # is encoded once, the rest of a row by one call.
    heads: dict[_Head, bytes] = {}
    known: _Head | None = None
    head = whole = b""
    base = _NOWHERE  # the whole part of the last price, which ``whole`` holds
    rows: list[bytes] = []
    add, pack, pack_quote = rows.append, _TICK.pack, _QUOTED_TICK.pack
    for tick in ticks:
        symbol, epoch, offset, stamp, price, bid, ask, volume, source, received, session, flags = (
            astuple(tick)
        )
        its = (stamp, flags, symbol, source, session, volume, epoch)
        if its != known:
            known = its
            if its not in heads:
                heads[its] = _head(its, zone)
            head = heads[its]
        add(head)
        received = round((received - _EPOCH_S) * _MICRO)
        if bid is not None and ask is not None:
            if not 0.0 <= price - base < 1.0:
                base = price // 1.0
                whole = _whole(base)
            # As floats, since the difference to a near whole number is exact; in hundred-millionths,
            # four digits of base 10,000 that two divisions tell apart.
            a = round((price - base) * 1e6) * 100
            b = round((bid - base) * 1e6) * 100
            c = round((ask - base) * 1e6) * 100
            d, whole_bid, whole_ask, whole_spread = c - b, whole, whole, _PLUS_0
            if not 0 <= b < _ONE:
                whole_bid, b = _whole(base + b // _ONE), b % _ONE
            if not 0 <= c < _ONE:
                whole_ask, c = _whole(base + c // _ONE), c % _ONE
            if d < 0:
                d, whole_spread = -d, _MINUS_0
            if d >= _ONE:
                whole_spread, d = whole_spread[:12] + _whole(d // _ONE)[12:], d % _ONE
            if a < _ONE and whole and whole_bid and whole_ask:
                row = pack_quote(
                    offset,
                    8,
                    received,
                    whole,
                    a // 10_000 * 55_536 + a,
                    whole_bid,
                    b // 10_000 * 55_536 + b,
                    whole_ask,
                    c // 10_000 * 55_536 + c,
                    whole_spread,
                    d // 10_000 * 55_536 + d,
                )
                add(row)
                continue
        add(pack(offset, 8, received))
        add(numeric(price) + numeric(bid) + numeric(ask) + numeric(tick.spread))
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


def _head(its: _Head, zone: ZoneInfo) -> bytes:
    """The columns up to ``epoch``, and the length of the next one."""
    stamp, flags, symbol, source, in_session, volume, epoch = its
    return b"".join(
        (
            struct.pack("!h", len(TICK_COLUMNS)),
            text(symbol),
            text(source),
            text_array(flags),
            _TRUE if in_session else _FALSE,
            _day(stamp, zone),
            _INT8.pack(8, (stamp - _EPOCH_S) * _MICRO),
            _INT4.pack(4, volume),
            _INT8.pack(8, epoch),
            struct.pack("!i", 8),
        )
    )


@lru_cache(maxsize=1024)
def _whole(value: float) -> bytes:
    """The beginning of a number up to its point; empty for what ``numeric`` has to deal with."""
    if not 0 <= value < 100_000_000:
        return b""
    return _NUMERIC.pack(16, 4, 1, 0, 6, *divmod(int(value), 10_000), 0, 0)[:16]


def _day(stamp: int, zone: ZoneInfo) -> bytes:
    ordinal = datetime.fromtimestamp(stamp, zone).date().toordinal()
    return _INT4.pack(4, ordinal - _EPOCH_DAY)
