"""Files become candles and ticks; whatever is wrong with them is said with file and row."""

import gzip
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from enhanced_websocket_service.errors import DataError
from enhanced_websocket_service.twelvedata.simulator.loading import load_candles, load_ticks
from enhanced_websocket_service.twelvedata.simulator.model import Candle, SimTick

from .parts import OPEN

HEAD = "datetime,open,high,low,close\n"


def csv(folder: Path, text: str, name: str = "data.csv") -> Path:
    path = folder / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize(
    "stamp", ["2025-06-03 13:00:00", "2025-06-03T13:00:00Z", "2025-06-03T08:00:00-05:00"]
)
@pytest.mark.parametrize("name", ["data.csv", "data.csv.gz"])
def test_bars_from_csv(tmp_path: Path, stamp: str, name: str) -> None:
    path = csv(tmp_path, f"{HEAD}{stamp},4100,4105.1234567,4095.5,4101\n", name)
    assert load_candles(path, "USD/COP") == [Candle(OPEN, 4100, 4105.123457, 4095.5, 4101)]


@pytest.mark.parametrize("zone", ["UTC", "America/Bogota", None])
@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_bars_from_parquet(tmp_path: Path, zone: str | None, unit: str) -> None:
    start = datetime(2025, 6, 3, 13, tzinfo=UTC)
    frame = pl.DataFrame(
        {
            "datetime": [start + timedelta(minutes=5), start],
            "symbol": ["USDCOP", "USDCOP"],
            "open": [2.0, 1.0],
            "high": [3.0, 2.0],
            "low": [2.0, 1.0],
            "close": [2.5, 2.0],
        }
    )
    at = pl.col("datetime").dt.cast_time_unit(unit)  # type: ignore[arg-type]
    frame = frame.with_columns(
        at.dt.replace_time_zone(None) if zone is None else at.dt.convert_time_zone(zone)
    )
    path = tmp_path / "bars.parquet"
    frame.write_parquet(path)
    assert load_candles(path, "USD/COP") == [
        Candle(OPEN, 1, 2, 1, 2),
        Candle(OPEN + 300, 2, 3, 2, 2.5),
    ]


def test_a_file_of_several_symbols_gives_the_one_asked_for(tmp_path: Path) -> None:
    rows = "".join(f"2025-06-03 13:00:00,{name},1,1,1,1\n" for name in ("EUR/USD", "usdcop"))
    path = csv(tmp_path, f"datetime,symbol,open,high,low,close\n{rows}")
    assert len(load_candles(path, "USD/COP")) == 1
    with pytest.raises(DataError, match=r"no rows of GBP/USD; it holds EURUSD, USDCOP"):
        load_candles(path, "GBP/USD")


def test_a_hair_outside_the_range_is_widened(tmp_path: Path) -> None:
    path = csv(tmp_path, f"{HEAD}2025-06-03 13:00:00,4100,4105,4095,4105.00001\n")
    assert load_candles(path, "USD/COP") == [Candle(OPEN, 4100, 4105.00001, 4095, 4105.00001)]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("2025-06-03 13:00:00,4100,4105,4095,4200", "open and close must lie between"),
        ("2025-06-03 13:00:00,4100,4090,4110,4100", "is not a bar"),
        ("2025-06-03 13:00:01,4100,4105,4095,4101", "not on the 5-minute grid"),
        ("2025-06-03 13:00:00,-1,4105,4095,4101", "is not a price"),
        ("2025-06-03 13:00:00,nan,4105,4095,4101", "is not a price"),
        ("2025-06-03 13:00:00,1000000,1000000,1000000,1000000", "is not a price"),
        ("2025-06-03 13:00:00,4100,much,4095,4101", "high 'much' is not a number"),
        ("2025-06-03 13:00:00,,4105,4095,4101", "open is empty"),
        ("yesterday,4100,4105,4095,4101", "'yesterday' is not an ISO 8601 time"),
        (",4100,4105,4095,4101", "datetime is empty"),
        ("2025-06-03 12:55:00,1,1,1,1", "appears twice"),
    ],
)
def test_bad_bars_are_named_with_file_and_row(tmp_path: Path, row: str, fault: str) -> None:
    path = csv(tmp_path, f"{HEAD}2025-06-03 12:55:00,1,1,1,1\n{row}\n")
    with pytest.raises(DataError) as refused:
        load_candles(path, "USD/COP")
    assert str(path) in str(refused.value)
    assert "row 2" in str(refused.value)
    assert fault in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("absent.csv", None, "no such file"),
        ("data.xlsx", "x", "unknown kind of file"),
        ("data.csv", "", "cannot be read"),
        ("data.csv", HEAD, "has no rows"),
        ("data.parquet", "not parquet", "cannot be read"),
        ("data.csv", "datetime,open,high\n2025-06-03,1,1\n", "lacks the columns low, close"),
        ("data.csv", "open,high,low,close\n1,1,1,1\n", "lacks a time column"),
    ],
)
def test_unusable_files(tmp_path: Path, name: str, content: str | None, fault: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=fault) as refused:
        load_candles(path, "USD/COP")
    assert str(path) in str(refused.value)


def test_ticks_keep_the_order_of_the_file_inside_a_second(tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        "timestamp,bid,ask\n"
        "2025-06-03 13:00:00.900+00:00,1.3,1.5\n"
        "2025-06-03 13:00:00.100+00:00,1.2,1.4\n"
        "2025-06-03 13:00:01+00:00,1.25,1.45\n",
    )
    source = load_ticks(path, scale=3000)
    assert source.ticks(OPEN, OPEN + 2) == [
        SimTick(OPEN, 4200.0, 3900.0, 4500.0),
        SimTick(OPEN, 3900.0, 3600.0, 4200.0),
        SimTick(OPEN + 1, 4050.0, 3750.0, 4350.0),
    ]
    assert source.candles(OPEN, OPEN + 1) == [Candle(OPEN, 4200, 4200, 3900, 4050)]


def test_ticks_out_of_order_are_sorted_by_whole_seconds(tmp_path: Path) -> None:
    path = csv(tmp_path, f"time,bid,ask\n{OPEN + 5},3,3\n{OPEN},2,2\n{OPEN}.5,1,1\n")
    ticks = load_ticks(path).ticks(OPEN, OPEN + 10)
    assert [(tick.timestamp - OPEN, tick.price) for tick in ticks] == [(0, 2), (0, 1), (5, 3)]


def test_crossed_quotes_are_kept(tmp_path: Path) -> None:
    path = csv(tmp_path, f"time,bid,ask\n{OPEN},3,1\n")
    assert load_ticks(path).ticks(OPEN, OPEN + 1) == [SimTick(OPEN, 2, 3, 1)]


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("1e12,1,1", "no time between 1970 and 2200"),
        ("nan,1,1", "no time between 1970 and 2200"),
        (f"{OPEN},0,1", "0.0 is not a price"),
        (f"{OPEN},nan,1", "is not a price"),
        (f"{OPEN},1,1e300", "is not a price"),
        (f"{OPEN},1,", "ask is empty"),
    ],
)
def test_bad_ticks_are_named_with_file_and_row(tmp_path: Path, row: str, fault: str) -> None:
    path = csv(tmp_path, f"time,bid,ask\n{OPEN}.5,1,1\n{row}\n")
    with pytest.raises(DataError, match=fault) as refused:
        load_ticks(path)
    assert f"{path}, row 2" in str(refused.value)
