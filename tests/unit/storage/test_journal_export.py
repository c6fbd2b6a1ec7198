"""Copies of the journal, read back by other programs' readers."""

import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.storage import journal_export
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_export import Form, Selection, What, export
from enhanced_websocket_service.storage.journal_reader import segment_path
from tests.storage_samples import CERTIFICATE, OPEN, SYMBOL, bar, rejected, tick, ticks, update

TICKS = [
    *ticks(30, flags=("crossed", "held")),
    tick(31, bid=None, ask=None, trading_session=False, received_at=OPEN + 31.000001),
    tick(1, epoch=2, symbol="EURUSD"),
]
BAR = bar(certificate=CERTIFICATE, source="simulator_websocket")


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = Journal.open(tmp_path / "journal", segment_bytes=1500)
    opened.append([EpochStarted(SYMBOL, 1, None, None)])
    for i in range(0, len(TICKS), 5):
        opened.append(TICKS[i : i + 5])
    opened.append([update(BAR, at=OPEN + 301.0, offset=31)])
    opened.append([rejected(raw='a "quoted"\nline', price=None), rejected(timestamp=10**15)])
    yield opened
    opened.close()


def lines(journal: Journal, selection: Selection, form: Form = "ndjson") -> list[dict[str, Any]]:
    out = io.BytesIO()
    report = export(journal.directory, selection, form, out)
    text = out.getvalue().decode()
    if form == "csv":
        rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text)))
    else:
        rows = [json.loads(line) for line in text.splitlines()]
    assert (report.rows, report.damages) == (len(rows), 0)
    return rows


def seconds(text: str) -> float:
    moment = datetime.fromisoformat(text)
    assert moment.utcoffset() is not None
    return moment.timestamp()


def test_ndjson_has_every_field_of_every_tick(journal: Journal) -> None:
    rows = lines(journal, Selection())
    assert len(rows) == len(TICKS)
    for row, one in zip(rows, TICKS, strict=True):
        times = {name: seconds(row.pop(name)) for name in ("timestamp", "received_at")}
        expected = msgspec.structs.asdict(one) | {"flags": list(one.flags)}
        assert row | times == expected


def test_csv_has_the_same(journal: Journal) -> None:
    rows = lines(journal, Selection(), "csv")
    assert [int(row["offset"]) for row in rows] == [one.offset for one in TICKS]
    assert [float(row["price"]) for row in rows] == [one.price for one in TICKS]
    assert (rows[0]["flags"], rows[30]["bid"], rows[30]["trading_session"]) == (
        "crossed held",
        "",
        "False",
    )
    refused = lines(journal, Selection(what="rejections"), "csv")
    assert [row["raw"] for row in refused] == ['a "quoted"\nline', ""]
    assert [row["timestamp"] == "" for row in refused] == [False, True]


@pytest.mark.parametrize("piece", [7, 100_000])
def test_parquet_has_the_same(
    journal: Journal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(journal_export, "_PIECE", piece)
    monkeypatch.setattr(journal_export, "_READ", 5)
    for what, count in (("ticks", len(TICKS)), ("bars", 1), ("rejections", 2)):
        out = tmp_path / f"{what}.parquet"
        assert export(journal.directory, Selection(what=what), "parquet", out).rows == count  # type: ignore[arg-type]
        frame = pl.read_parquet(out)
        assert list(frame.columns) == list(journal_export.SCHEMAS[what])  # type: ignore[index]
        assert frame.height == count
    frame = pl.read_parquet(tmp_path / "ticks.parquet")
    assert frame["price"].to_list() == [one.price for one in TICKS]
    assert frame["flags"].to_list() == [list(one.flags) for one in TICKS]
    assert frame["received_at"].dt.timestamp("us").to_list() == [
        round(one.received_at * 1_000_000) for one in TICKS
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("bars.parquet", "journal", "rejections.parquet", "ticks.parquet")
    ]


def test_bars_tell_how_they_came_to_be(journal: Journal) -> None:
    (row,) = lines(journal, Selection(what="bars"))
    assert (seconds(row["datetime"]), row["close"], row["offset"]) == (OPEN, BAR.close, 31)
    assert row["certificate"] == msgspec.to_builtins(CERTIFICATE)
    (row,) = lines(journal, Selection(what="bars"), "csv")
    assert json.loads(row["certificate"])["ticks"] == CERTIFICATE.ticks


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(symbol="EURUSD"), [(2, 1)]),
        (Selection(start=OPEN + 29, end=OPEN + 31), [(1, 29), (1, 30)]),
        (Selection(first=(1, 30), last=(1, 31)), [(1, 30), (1, 31)]),
        (Selection(first=(1, 31)), [(1, 31), (2, 1)]),
        (Selection(last=(1, 2), start=OPEN + 2), [(1, 2)]),
        (Selection(symbol="NOBODY"), []),
    ],
)
def test_ranges(journal: Journal, selection: Selection, expected: list[tuple[int, int]]) -> None:
    assert [(row["epoch"], row["offset"]) for row in lines(journal, selection)] == expected


def test_while_the_service_writes_only_whole_records_are_copied(journal: Journal) -> None:
    """A reader may see a part of a write: it is neither a record nor damage, and comes next time."""
    path = segment_path(journal.directory, journal.end.segment)
    before = path.read_bytes()
    journal.append([tick(32)])
    after = segment_path(journal.directory, journal.end.segment)
    assert after == path
    whole = after.read_bytes()
    for size in range(len(before), len(whole)):
        path.write_bytes(whole[:size])
        out = io.BytesIO()
        report = export(journal.directory, Selection(), "ndjson", out)
        assert (report.rows, report.damages) == (len(TICKS), 0)
        assert report.torn_bytes == size - len(before)
    path.write_bytes(whole)
    assert len(lines(journal, Selection())) == len(TICKS) + 1


def test_damage_is_left_out_and_counted(journal: Journal, tmp_path: Path) -> None:
    path = segment_path(journal.directory, 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    report = export(journal.directory, Selection(), "csv", tmp_path / "out.csv")
    assert (report.rows, report.damages) == (len(TICKS) - 1, 1)


@pytest.mark.parametrize("what", ["ticks", "bars"])
def test_what_cannot_be_done_is_said(journal: Journal, tmp_path: Path, what: What) -> None:
    with pytest.raises(JournalError, match="no journal in"):
        export(tmp_path / "nowhere", Selection(what=what), "csv", tmp_path / "out")
    with pytest.raises(JournalError, match="cannot be written"):
        export(journal.directory, Selection(what=what), "csv", tmp_path / "no" / "folder.csv")
    with pytest.raises(JournalError, match="needs a file"):
        export(journal.directory, Selection(what=what), "parquet", io.BytesIO())
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]
