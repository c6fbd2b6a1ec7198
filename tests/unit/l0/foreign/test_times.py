"""Every way of writing a stamp that we know, against the instant it means."""

from datetime import datetime
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from enhanced_websocket_service.errors import DataError
from enhanced_websocket_service.l0.foreign.times import parse

AT = 1_710_162_300_000_000  # 2024-03-11 13:05:00, counted as UTC
HOURS = 3600


@pytest.mark.parametrize(
    ("text", "offset"),
    [
        ("2024-03-11 13:05:00", None),
        ("  2024-03-11 13:05:00 ", None),
        ("2024-03-11T13:05:00", None),
        ("2024-03-11 13:05", None),
        ("2024-03-11T13:05:00Z", 0),
        ("2024-03-11 13:05:00+00", 0),
        ("2024-03-11 13:05:00+00:00", 0),
        ("2024-03-11 13:05:00 UTC", 0),
        ("2024-03-11T13:05:00-05:00", -5 * HOURS),
        ("2024-03-11T13:05:00-0500", -5 * HOURS),
        ("2024-03-11 13:05:00+05:30", 5 * HOURS + 1800),
        ("2024-03-11 13:05:00.000", None),
        ("2024-03-11 13:05:00.000000+00", 0),
        ("2024/03/11 13:05:00", None),
        ("2024.03.11 13:05", None),
        ("20240311 13:05:00", None),
        ("20240311 130500", None),
        ("20240311 130500000", None),
        ("20240311130500", None),
        ("1710162300", 0),
        ("1710162300000", 0),
        ("1710162300.0", 0),
        ("03/11/2024 01:05:00 PM", None),
    ],
)
def test_forms(text: str, offset: int | None) -> None:
    # The second row tells month from day where the form leaves it open.
    second = text.replace("11", "12") if "/11/" not in text else text.replace("/11/", "/13/")
    stamps = parse(pl.Series([text, second, None]), "here")
    assert stamps.wall_us[0] == AT
    assert stamps.offset_s.to_list()[0] == offset
    assert stamps.wall_us[2] is None


@pytest.mark.parametrize("clock", [" 13:05", " 13:05:00", " 1:05:00 PM"])
@pytest.mark.parametrize("separator", ["/", ".", "-"])
def test_day_first_when_a_later_row_says_so(separator: str, clock: str) -> None:
    texts = [f"11{separator}03{separator}2024{clock}", f"25{separator}03{separator}2024{clock}"]
    assert parse(pl.Series(texts), "here").wall_us[0] == AT


def test_dates_that_can_be_read_both_ways_are_refused() -> None:
    with pytest.raises(DataError, match=r"rates\.csv, column time: .* day first or month first"):
        parse(pl.Series(["03/04/2024 13:05", "03/05/2024 13:05"]), "rates.csv, column time")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "2024-03-11",
        "2024-13-45 13:05:00",
        "2024-03-11 25:00:00",
        "1",
        "0001-01-01 00:00:00",
    ],
)
def test_what_is_no_stamp_is_null(text: str) -> None:
    stamps = parse(pl.Series([text, "2024-03-11 13:05:00"]), "here")
    assert stamps.wall_us.to_list() == [None, AT]


def test_one_file_may_mix_forms() -> None:
    texts = [
        "2024-03-11 13:05:00",
        "2024-03-11T13:05:00.5",
        "2024-03-11 13:05:00+00",
        "20240311 1305",
    ]
    stamps = parse(pl.Series(texts), "here")
    assert stamps.wall_us.to_list() == [AT, AT + 500_000, AT, AT]
    assert stamps.offset_s.to_list() == [None, None, 0, None]


def test_datetime_columns_keep_their_digits() -> None:
    local = datetime(2024, 3, 11, 13, 5, tzinfo=ZoneInfo("America/Bogota"))
    aware = pl.Series([local]).dt.convert_time_zone("America/Bogota")
    assert parse(aware, "here").wall_us[0] == AT
    assert parse(aware, "here").offset_s[0] == -5 * HOURS
    naive = aware.dt.replace_time_zone(None)
    assert parse(naive, "here").wall_us[0] == AT
    assert parse(naive, "here").offset_s[0] is None
