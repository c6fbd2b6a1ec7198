"""REST answers: what is an error and which, and what a page of bars is worth."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.errors import (
    BadRequest,
    CreditsExhausted,
    InvalidKey,
    NoData,
    NotEntitled,
    UnknownSymbol,
    VendorError,
    VendorUnavailable,
)
from enhanced_websocket_service.twelvedata import answers
from enhanced_websocket_service.twelvedata.answers import BarPage, classify_error

OPEN = 1_749_042_000  # 2025-06-04 13:00:00 UTC
NOW = OPEN + 3600.0
MINUTE = (
    "You have run out of API credits for the current minute. 9 API credits were used, with the "
    "current limit being 8. Wait for the next minute or consider switching to a higher tier plan"
)
DAY = (
    "You have run out of API credits for the day. 801 API credits were used, with the current limit "
    "being 800. Wait for the next day or consider switching to a higher tier plan"
)


def envelope(code: int, message: str) -> bytes:
    return json.dumps({"code": code, "message": message, "status": "error"}).encode()


@pytest.mark.parametrize("with_200", [False, True])
@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (400, "**interval** provided: 1ms. Supported intervals: 1min", BadRequest),
        (
            400,
            "No data is available on the specified dates. Try setting different start/end dates.",
            NoData,
        ),
        (400, "**symbol** not found: XXX. Please specify it correctly", UnknownSymbol),
        (401, "**apikey** parameter is incorrect or not specified.", InvalidKey),
        (403, "/dividends is available exclusively with grow or pro plans.", NotEntitled),
        (404, "**symbol** or **figi** parameter is missing or invalid.", UnknownSymbol),
        (
            404,
            "This symbol is available starting with the Grow or Venture plan. Consider upgrading",
            NotEntitled,
        ),
        (414, "Input parameter array exceeds the allowed length", BadRequest),
        (429, MINUTE, CreditsExhausted),
        (429, DAY, CreditsExhausted),
        (500, "Internal server error", VendorUnavailable),
    ],
)
def test_every_error_of_the_vendor(
    with_200: bool, code: int, message: str, kind: type[VendorError]
) -> None:
    error = classify_error(200 if with_200 else code, envelope(code, message))
    assert type(error) is kind
    assert message in str(error)


def test_the_scope_of_exhausted_credits() -> None:
    for message, scope, figures in ((MINUTE, "minute", (9, 8)), (DAY, "day", (801, 800))):
        error = classify_error(429, envelope(429, message))
        assert isinstance(error, CreditsExhausted)
        assert error.scope == scope
        assert answers.credit_figures(str(error)) == figures


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (520, b"error code: 520", VendorUnavailable),
        (200, b"<html>hello</html>", VendorUnavailable),
        (200, b"", VendorUnavailable),
        (401, b"proxy says no", VendorUnavailable),  # not the vendor's word on our key
        (414, b"414 URI Too Long", BadRequest),
        (429, b"slow down", CreditsExhausted),
        (404, b'{"message":"404 page not found","code":404}', BadRequest),
        (200, b'{"status":"error"}', VendorUnavailable),
        (302, b"{}", VendorUnavailable),
        (503, b"\xff\xfe", VendorUnavailable),
    ],
)
def test_gateways_and_oddities(status: int, body: bytes, kind: type[VendorError]) -> None:
    assert type(classify_error(status, body)) is kind


@pytest.mark.parametrize(
    "body", [b'{"price":"4275.45"}', b'{"code":200,"status":"success","data":{}}', b"[]"]
)
def test_successes(body: bytes) -> None:
    assert classify_error(200, body) is None


@given(st.integers(100, 599), st.binary(max_size=100))
def test_classification_never_raises(status: int, body: bytes) -> None:
    classify_error(status, body)


def row(minute: int, **changes: object) -> dict[str, Any]:
    fields = {
        "datetime": f"2025-06-04 13:{minute:02}:00",
        "open": "4100.10",
        "high": "4102.00000",
        "low": "4099.5",
        "close": "4101.25999",
    }
    return {**fields, **changes}


def page(*values: object, now: float = NOW, **meta: object) -> BarPage:
    body = json.dumps(
        {
            "meta": {"symbol": "USD/COP", "interval": "5min", **meta},
            "values": values,
            "status": "ok",
        }
    ).encode()
    return answers.parse_bars(body, symbol="USDCOP", interval_s=300, now=now, source="simulator")


def test_bars_come_ascending_and_whole() -> None:
    result = page(row(10), row(5), row(0))
    assert [bar.open_time for bar in result.bars] == [OPEN, OPEN + 300, OPEN + 600]
    bar = result.bars[0]
    assert (bar.open, bar.high, bar.low, bar.close) == (4100.1, 4102.0, 4099.5, 4101.25999)
    assert (bar.volume, bar.source, bar.revision, bar.status) == (0, "simulator", 0, "closed")
    assert (bar.symbol, bar.interval_s, bar.certificate) == ("USDCOP", 300, None)
    assert result.faults == []


def test_the_forming_bar_is_dropped_until_its_end() -> None:
    assert page(row(5), row(0), now=OPEN + 599.9).forming == 1
    assert [bar.open_time for bar in page(row(5), row(0), now=OPEN + 599.9).bars] == [OPEN]
    assert len(page(row(5), row(0), now=OPEN + 600.0).bars) == 2


def test_a_hair_outside_the_range_widens_it() -> None:
    (bar,) = page(row(0, high="4101.25", close="4101.25999", open="4099.49", low="4099.5")).bars
    assert (bar.high, bar.low) == (4101.25999, 4099.49)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (row(0, high="4050"), "contradict"),
        (row(0, close=None), "close"),
        (row(0, close="NaN"), "close"),
        (row(0, open="0"), "open"),
        (row(0, low=-4), "low"),
        (row(0, open="1000000"), "open"),
        (row(3), "grid"),
        (row(0, datetime="yesterday"), "cannot be read"),
        (row(0, datetime=None), "cannot be read"),
        (row(0, volume="many"), "volume"),
        ("row", "no object"),
    ],
)
def test_bad_rows_are_reported_and_cost_no_other(bad: object, says: str) -> None:
    result = page(row(10), bad)
    assert [bar.open_time for bar in result.bars] == [OPEN + 600]
    assert len(result.faults) == 1
    assert says in result.faults[0]


def test_doubles_are_collapsed_and_contradictions_reported() -> None:
    assert page(row(0), row(0)).faults == []
    result = page(row(0), row(0, close="4100"))
    assert len(result.bars) == len(result.faults) == 1


@pytest.mark.parametrize("volume", ["", None, "0", 0])
def test_forex_has_no_volume(volume: object) -> None:
    assert page(row(0, volume=volume)).bars[0].volume == 0


def test_another_instrument_under_our_name_is_refused() -> None:
    with pytest.raises(BadRequest, match="EUR/USD"):
        page(row(0), symbol="EUR/USD")
    with pytest.raises(BadRequest, match="1min"):
        page(row(0), interval="1min")


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"values":null}', b"x"])
def test_no_time_series_at_all(body: bytes) -> None:
    with pytest.raises(VendorUnavailable):
        answers.parse_bars(body, symbol="USDCOP", interval_s=300, now=NOW, source="simulator")


def test_questions_are_always_in_utc() -> None:
    asked = answers.time_series_params("USDCOP", 300, OPEN, OPEN + 300, 5000)
    assert asked["timezone"] == "UTC"
    assert (asked["symbol"], asked["interval"]) == ("USD/COP", "5min")
    assert (asked["start_date"], asked["end_date"]) == (
        "2025-06-04T13:00:00",
        "2025-06-04T13:05:00",
    )
    with pytest.raises(BadRequest, match="17"):
        answers.time_series_params("USDCOP", 17, OPEN, OPEN, 1)


def test_single_answers() -> None:
    assert answers.parse_price(b'{"price":"200.99001"}') == 200.99001
    for body in (b'{"price":null}', b'{"price":"NaN"}', b"{}", b"[]", b'{"price":0}'):
        with pytest.raises(VendorUnavailable):
            answers.parse_price(body)
    usage = answers.parse_usage(
        b'{"timestamp":"2021-07-01 22:23:31","current_usage":3,"plan_limit":8,"daily_usage":36,'
        b'"plan_daily_limit":800}'
    )
    assert (usage.current_usage, usage.plan_limit) == (3, 8)
    assert (usage.daily_usage, usage.plan_daily_limit) == (36, 800)
    assert answers.parse_usage(b'{"current_usage":3,"plan_limit":55}').plan_daily_limit is None
    assert answers.parse_earliest(b'{"datetime":"1980-12-12","unix_time":345479400}') == 345479400
    quote = answers.parse_quote(
        b'{"symbol":"USD/COP","close":"4101.5","timestamp":1749042000,"is_market_open":true}',
        "USDCOP",
    )
    assert (quote.price, quote.timestamp, quote.is_market_open) == (4101.5, OPEN, True)
    assert quote.previous_close is None


def test_credit_headers() -> None:
    assert answers.credit_headers({"api-credits-used": "3", "api-credits-left": "5"}) == (3, 5)
    assert answers.credit_headers({"api-credits-used": "3"}) is None
    assert answers.credit_headers({"api-credits-used": "x", "api-credits-left": "5"}) is None
