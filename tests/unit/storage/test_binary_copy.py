import struct
from datetime import date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.market.calendar import BOGOTA
from enhanced_websocket_service.storage.binary_copy import (
    TICK_COLUMNS,
    UNENCODABLE,
    bar_rows,
    numeric,
    text_array,
    tick_rows,
    timestamptz,
)
from tests.storage_samples import bar, tick


def decoded(field: bytes) -> Decimal:
    """What PostgreSQL reads: digits of base 10,000 from the weight downwards."""
    length, count, weight, sign, scale = struct.unpack_from("!ihhHh", field)
    assert length == len(field) - 4
    digits = struct.unpack_from(f"!{count}h", field, 12)
    value = sum(
        (Decimal(digit) * Decimal(10_000) ** (weight - i) for i, digit in enumerate(digits)),
        Decimal(0),
    )
    return (-value if sign else value).quantize(Decimal(1).scaleb(-scale))


@pytest.mark.parametrize(
    "value", [0.0, 0.000001, 0.1, 1.5, 4275.45, 4100.123456, 999_999.999999, -0.5, -12.000001]
)
def test_prices_are_exact(value: float) -> None:
    assert decoded(numeric(value)) == Decimal(repr(value)).quantize(Decimal("0.000001"))


def test_null() -> None:
    assert numeric(None) == b"\xff\xff\xff\xff"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_what_is_no_price_is_refused(value: float) -> None:
    with pytest.raises((ValueError, OverflowError)):
        numeric(value)


def test_times_count_microseconds_from_2000() -> None:
    assert timestamptz(946_684_800 + 1.25) == struct.pack("!iq", 8, 1_250_000)


def test_an_empty_array_is_not_null() -> None:
    assert struct.unpack("!iiii", text_array(())) == (12, 0, 0, 25)


@pytest.mark.parametrize(
    "broken", [tick(1, volume=2**31), tick(1, timestamp=10**15), tick(1, source="\ud800")]
)
def test_a_tick_that_has_no_row_is_refused_as_unencodable(broken: object) -> None:
    with pytest.raises(UNENCODABLE):
        tick_rows([tick(2), broken], BOGOTA)  # type: ignore[list-item]


def test_a_stream_of_rows_has_head_and_tail() -> None:
    for rows in (tick_rows([tick(1)], BOGOTA), bar_rows([bar()])):
        assert rows.startswith(b"PGCOPY\n\xff\r\n\0")
        assert rows.endswith(b"\xff\xff")


PRICES = st.integers(1, 999_999_999_999).map(lambda millionths: millionths / 1_000_000)


@settings(max_examples=300)
@given(
    price=PRICES,
    bid=st.none() | PRICES,
    ask=st.none() | PRICES,
    volume=st.integers(-(2**31), 2**31 - 1),
    stamp=st.integers(1, 4_000_000_000),
    received=st.floats(1.0, 4e9),
    flags=st.sampled_from([(), ("crossed",), ("crossed", "held")]),
    session=st.booleans(),
)
def test_rows_hold_what_the_ticks_do(
    price: float,
    bid: float | None,
    ask: float | None,
    volume: int,
    stamp: int,
    received: float,
    flags: tuple[str, ...],
    session: bool,
) -> None:
    one = tick(
        7,
        price,
        bid=bid,
        ask=ask,
        volume=volume,
        timestamp=stamp,
        received_at=received,
        flags=flags,
        trading_session=session,
    )
    first, second = fields(bytes(tick_rows([tick(1), one], BOGOTA)))
    assert first["symbol"] == b"USDCOP"
    assert second["source"] == one.source.encode()
    assert second["trading_session"] == bytes([session])
    assert second["flags"] == text_array(flags)[4:]
    day = date(2000, 1, 1) + timedelta(days=number("!i", second["session_date"]))
    assert day == datetime.fromtimestamp(stamp, BOGOTA).date()
    assert number("!q", second["time"]) == (stamp - 946_684_800) * 1_000_000
    assert abs(number("!q", second["received_at"]) / 1e6 + 946_684_800 - received) < 1e-6
    assert [number("!i", second["volume"]), number("!q", second["epoch"])] == [volume, one.epoch]
    assert number("!q", second["tick_offset"]) == 7
    spread = None if bid is None or ask is None else decimal(ask) - decimal(bid)
    for name, value in (("last", price), ("bid", bid), ("ask", ask)):
        assert price_of(second[name]) == (None if value is None else decimal(value))
    assert price_of(second["spread"]) == spread


def fields(stream: bytes) -> list[dict[str, bytes | None]]:
    """The rows of a COPY stream, read as PostgreSQL's manual describes it."""
    at, rows = 19, []
    while (count := struct.unpack_from("!h", stream, at)[0]) != -1:
        at += 2
        row: dict[str, bytes | None] = {}
        for name in TICK_COLUMNS[:count]:
            (length,) = struct.unpack_from("!i", stream, at)
            at += 4
            row[name] = None if length == -1 else stream[at : at + length]
            at += max(0, length)
        rows.append(row)
    assert at + 2 == len(stream)
    return rows


def number(form: str, field: bytes | None) -> int:
    assert field is not None
    (value,) = struct.unpack(form, field)
    return int(value)


def decimal(value: float) -> Decimal:
    return Decimal(repr(value)).quantize(Decimal("0.000001"))


def price_of(field: bytes | None) -> Decimal | None:
    return None if field is None else decoded(struct.pack("!i", len(field)) + field)
