"""Files as they come: broken ones are named, broken lines cost no more than themselves."""

import gzip
from pathlib import Path

import polars as pl
import pytest

from enhanced_websocket_service.errors import DataError
from enhanced_websocket_service.l0.foreign.reading import SCHEMA, read_table
from tests.foreign_files import write

HEADER = "time,open,high,low,close"
LINES = [
    f"2024-03-11 13:{minute:02}:00,3900.1,3901.2,3899.3,3900.{minute}" for minute in (0, 5, 10)
]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r\r\n"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_line_endings_and_compression(tmp_path: Path, name: str, ending: str) -> None:
    table = read_table(write(tmp_path / name, LINES, ending=ending, header=HEADER))
    assert table.rows.schema == SCHEMA
    assert table.rows["close"].to_list() == [3900.0, 3900.5, 3900.1]
    assert table.rows["fault"].null_count() == 3
    assert table.originals([1, 3]) == [LINES[0], LINES[2]]


@pytest.mark.parametrize(
    "header",
    [
        "datetime,o,h,l,c",
        "Timestamp,Open,High,Low,Close",
        "\ufeffDate_Time,<OPEN>,<HIGH>,<LOW>,<CLOSE>",
    ],
)
def test_names_of_columns(tmp_path: Path, header: str) -> None:
    assert read_table(write(tmp_path / "a.csv", LINES, header=header)).rows["open"][0] == 3900.1


def test_semicolons_and_decimal_commas(tmp_path: Path) -> None:
    line = "11.03.2024;13:05:00;3900,1;3901,2;3899,3;3900,5;7"
    other = line.replace("11.03", "25.03")
    path = write(tmp_path / "a.csv", [line, other], header="Date;Time;Open;High;Low;Close;Volume")
    row = read_table(path).rows.row(0, named=True)
    assert (row["open"], row["close"], row["volume"]) == (3900.1, 3900.5, 7)
    assert row["wall"] == 1_710_162_300


def test_broken_lines_are_rows_with_a_fault(tmp_path: Path) -> None:
    broken = [
        LINES[0],
        "2024-03-11 13:05:00,3900.1,3901.2",
        "",
        "2024-03-11 13:05:00,3900.1,3901.2,3899.3,3900.1,9,9",
        "never,3900.1,3901.2,3899.3,3900.1",
        "2024-03-11 13:05:00,3900.1,much,3899.3,3900.1",
        '"2024-03-11 13:10:00",3900.1,3901.2,3899.3,3900.1',
        'x"y"z,"1',
        "2024-03-11 13:15:00,3900.1,3901.2,3899.3,3900.\u00e9",
    ]
    table = read_table(write(tmp_path / "a.csv", broken, header=HEADER))
    faults = table.rows["fault"].to_list()
    assert [fault is None for fault in faults] == [
        True,
        False,
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    assert faults[1] == "has 3 of 5 fields"
    assert faults[3] == "the stamp cannot be read"
    assert faults[4] == "a price is missing or no number"
    assert table.originals([2, 4]) == [broken[1], broken[4]]


def test_a_file_cut_off_inside_a_price_does_not_pass_for_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    whole = "\n".join([HEADER, *LINES])
    path.write_text(whole[:-1])
    faults = read_table(path).rows["fault"].to_list()
    assert faults[:2] == [None, None]
    assert faults[2] is not None
    path.write_text(whole + "\n")
    assert read_table(path).rows["fault"].null_count() == 3


def test_a_cut_off_archive_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.gz"
    many = "\n".join([HEADER, *LINES * 20_000])
    path.write_bytes(gzip.compress(many.encode())[:-200])
    with pytest.raises(
        DataError, match=r"a\.csv\.gz: .*cut off or damaged after row \d\d+"
    ) as raised:
        read_table(path)
    assert "export it again" in str(raised.value)


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pl.DataFrame({"time": [1], "open": [1.0]}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"a\.parquet: is damaged or no parquet file"):
        read_table(path)


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("time,open,high,low", r"lacks the column close; it has time, open, high, low"),
        ("open,high,low,close", r"lacks the column datetime \(or time\)"),
        ("when,price", r"lacks the columns datetime \(or time\), open, high, low, close"),
        ("time,open,high,low,close,Close", r"several columns for close"),
        (LINES[0], r"Name the columns datetime, open, high, low, close in the first line"),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, header: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_table(write(tmp_path / "a.csv", LINES, header=header))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.csv: no such file"):
        read_table(tmp_path / "nothing.csv")
    with pytest.raises(DataError, match=r"unknown kind of file"):
        read_table(write(tmp_path / "a.xlsx", LINES))
    with pytest.raises(DataError, match=r"has no rows"):
        read_table(write(tmp_path / "a.csv", [], header=HEADER))


def test_volumes_that_are_none_are_mended_not_lost(tmp_path: Path) -> None:
    lines = [f"{line},{volume}" for line, volume in zip(LINES, ["7", "-1", ""], strict=True)]
    rows = read_table(write(tmp_path / "a.csv", lines, header=f"{HEADER},volume")).rows
    assert rows["volume"].to_list() == [7, 0, 0]
    assert rows["volume_mended"].to_list() == [False, True, False]
    assert rows["fault"].null_count() == 3


def test_parquet_and_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    frame = pl.DataFrame(
        {
            "datetime": ["2024-03-11 13:00:00"],
            **{name: [3900.0] for name in ("open", "high", "low", "close")},
            "open_reconstructed": [True],
        }
    )
    frame.write_parquet(path)
    table = read_table(path)
    assert table.rows["declared"].to_list() == ["reconstructed"]
    assert '"open":3900.0' in table.originals([1])[0]
