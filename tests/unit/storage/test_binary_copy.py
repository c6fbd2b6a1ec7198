import struct
from decimal import Decimal

import pytest

from enhanced_websocket_service.market.calendar import BOGOTA
from enhanced_websocket_service.storage.binary_copy import (
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
