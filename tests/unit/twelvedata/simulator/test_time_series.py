"""``/time_series``: parameters, defaults and traps."""

import msgspec
import pytest

from enhanced_websocket_service.twelvedata.simulator.time_series import Limits

from .parts import OPEN, at
from .rest_calls import NOW, PAIR, Vendor


def test_time_series_default_shape() -> None:
    answer = Vendor().get("/time_series", PAIR)
    body = msgspec.json.decode(answer.body)
    assert answer.content_type == "application/json; charset=utf-8"
    assert list(body) == ["meta", "values", "status"]
    assert body["meta"] == {
        "symbol": "USD/COP",
        "interval": "5min",
        "currency_base": "US Dollar",
        "currency_quote": "Colombian Peso",
        "type": "Physical Currency",
    }
    assert len(body["values"]) == 30
    assert list(body["values"][0]) == ["datetime", "open", "high", "low", "close"]
    # Newest first, in Sydney's time (UTC+10): the last candle opened at 17:55 UTC.
    assert body["values"][0]["datetime"] == "2025-06-04 03:55:00"
    assert body["values"][0]["close"] == "4160.00000"


def test_output_is_sydney_but_filters_are_utc() -> None:
    body = Vendor().series(start_date="2025-06-03 14:00:00", end_date="2025-06-03T14:05:00")
    assert [value["datetime"] for value in body["values"]] == [
        "2025-06-04 00:05:00",
        "2025-06-04 00:00:00",
    ]
    body = Vendor().series(
        start_date="2025-06-03 09:00:00", end_date="2025-06-03 09:05:00", timezone="America/Bogota"
    )
    assert [value["datetime"] for value in body["values"]] == [
        "2025-06-03 09:05:00",
        "2025-06-03 09:00:00",
    ]


def test_daily_rows_ignore_the_timezone() -> None:
    vendor = Vendor()
    assert (
        vendor.series(interval="1day", timezone="UTC")["values"]
        == vendor.series(interval="1day")["values"]
    )
    # The day changes in Sydney at 14:00 UTC, in the middle of the session.
    values = vendor.series(interval="1day", order="asc")["values"]
    assert [value["datetime"] for value in values] == ["2025-06-03", "2025-06-04"]
    assert values[1]["open"] == "4112"  # the day is not over


def test_truncation_keeps_the_rows_nearest_the_end() -> None:
    body = Vendor(limits=Limits(row_cap=5)).series(
        start_date="2025-06-03", end_date="2025-06-03 15:00:00", timezone="UTC", order="ASC"
    )
    times = [value["datetime"][11:16] for value in body["values"]]
    assert times == ["14:40", "14:45", "14:50", "14:55", "15:00"]


def test_dates_raise_the_default_outputsize() -> None:
    assert len(Vendor().series(start_date="2025-06-01")["values"]) == 60
    assert len(Vendor().series(start_date="2025-06-01", outputsize=7)["values"]) == 7


@pytest.mark.parametrize(
    ("params", "count"),
    [
        ({"date": "2025-06-03"}, 60),
        ({"date": "today"}, 60),
        ({"date": "yesterday", "now": NOW + 86_400}, 60),
        # In Bogota it is still the 2nd until 05:00 UTC.
        ({"date": "yesterday", "timezone": "America/Bogota", "now": at("2025-06-05 04:00")}, 60),
    ],
)
def test_date(params: dict[str, object], count: int) -> None:
    assert len(Vendor().series(**params)["values"]) == count


@pytest.mark.parametrize(
    "params",
    [
        {"date": "2025-06-02"},
        {"start_date": "2030-01-01"},
        {"start_date": "2025-06-03 14:00:00", "end_date": "2025-06-03 13:00:00"},
        {"end_date": "2020-01-01"},
        {"now": OPEN - 1},
    ],
)
def test_an_empty_window_is_an_error(params: dict[str, object]) -> None:
    now = params.pop("now", NOW)
    assert isinstance(now, int)
    answer = Vendor().get("/time_series", {**PAIR, **params}, now=now)
    assert answer.status == 400
    assert msgspec.json.decode(answer.body) == {
        "code": 400,
        "message": "No data is available on the specified dates. "
        "Try setting different start/end dates.",
        "status": "error",
        "meta": {"symbol": "USD/COP", "interval": "5min"},
    }


def test_decimals_vary_and_dp_fixes_them() -> None:
    now = OPEN + 330
    newest, older = Vendor().series(now=now)["values"]
    assert older["open"] == "4100.00000"
    assert newest["open"] == "4101"
    assert Vendor().series(now=now, dp=1)["values"][1]["high"] == "4102.5"
    assert Vendor().series(now=now, dp=11)["values"][1]["high"] == "4102.50000000000"


def test_previous_close_reaches_before_the_window() -> None:
    values = Vendor().series(previous_close="true", outputsize=2)["values"]
    assert [value["previous_close"] for value in values] == ["4159.00000", "4158.00000"]
    first = Vendor().series(previous_close="true", end_date="2025-06-03 13:00:00")["values"]
    assert first[0]["previous_close"] is None


def test_csv() -> None:
    answer = Vendor().get("/time_series", {**PAIR, "format": "CSV", "outputsize": 1, "dp": 2})
    assert answer.content_type == "text/csv"
    assert answer.body.decode().splitlines() == [
        "datetime;open;high;low;close",
        "2025-06-04 03:55:00;4159.00;4161.50;4158.25;4160.00",
    ]
    answer = Vendor().get("/time_series", {**PAIR, "format": "csv", "delimiter": "|"})
    assert answer.body.startswith(b"datetime|open")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"interval": "1ms"},
            "Invalid **interval** provided: 1ms. Supported intervals: 1min, 5min, 15min, 30min, "
            "45min, 1h, 2h, 4h, 8h, 1day, 1week, 1month",
        ),
        ({"interval": ""}, "Invalid **interval** provided"),
        ({"outputsize": 0}, "Invalid **outputsize** provided: 0"),
        ({"outputsize": 5001}, "Invalid **outputsize** provided: 5001"),
        ({"outputsize": "many"}, "Invalid **outputsize** provided: many"),
        ({"dp": 12}, "Invalid **dp** provided: 12"),
        ({"order": "up"}, "Invalid **order** provided: up"),
        ({"format": "XML"}, "Invalid **format** provided: XML"),
        ({"timezone": "america/bogota"}, "Invalid **timezone** provided: america/bogota"),
        ({"timezone": "../etc/passwd"}, "Invalid **timezone** provided"),
        ({"timezone": "America"}, "Invalid **timezone** provided"),
        ({"start_date": "03.06.2025"}, "Invalid **start_date** provided: 03.06.2025"),
        ({"end_date": "2025-06-31"}, "Invalid **end_date** provided"),
        ({"end_date": "0001-01-01"}, "Invalid **end_date** provided"),
        ({"date": "tomorrow"}, "Invalid **date** provided"),
    ],
)
def test_parameter_errors(params: dict[str, object], message: str) -> None:
    answer = Vendor().get("/time_series", {**PAIR, **params})
    body = msgspec.json.decode(answer.body)
    assert (answer.status, body["code"], body["status"]) == (400, 400, "error")
    assert message in body["message"]
