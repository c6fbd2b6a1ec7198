"""Content negotiation, and rows in three forms."""

import io
import json

import polars as pl
import pytest

from enhanced_websocket_service.serving import tables, wire

from .fakes import bar, tick


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        (None, tables.JSON),
        ("", tables.JSON),
        ("*/*", tables.JSON),
        ("text/html,application/xhtml+xml,*/*;q=0.8", tables.JSON),
        ("text/csv", tables.CSV),
        ("text/*", tables.CSV),
        ("application/json;q=0.5, text/csv", tables.CSV),
        ("APPLICATION/VND.APACHE.ARROW.STREAM", tables.ARROW),
        ("application/json;q=0, */*", tables.CSV),
        ("image/png", None),
        ("text/csv;q=0", None),
    ],
)
def test_negotiation(accept: str | None, form: str | None) -> None:
    assert tables.negotiate(accept) == form


def test_bars_are_the_same_in_every_form() -> None:
    rows = [wire.bar_data(bar(n, certificate=None)) for n in range(3)]
    answer = {"data": rows}
    as_json = tables.table_response(tables.JSON, answer, tables.BAR_SCHEMA, {})
    as_csv = tables.table_response(tables.CSV, answer, tables.BAR_SCHEMA, {"X-Next-Cursor": "7"})
    as_arrow = tables.table_response(tables.ARROW, answer, tables.BAR_SCHEMA, {})
    assert json.loads(bytes(as_json.body))["data"] == rows
    csv = pl.read_csv(io.BytesIO(bytes(as_csv.body)))
    arrow = pl.read_ipc_stream(io.BytesIO(bytes(as_arrow.body)))
    assert as_csv.headers["x-next-cursor"] == "7"
    assert csv.columns == arrow.columns == list(tables.BAR_SCHEMA)
    assert csv["close"].to_list() == arrow["close"].to_list() == [4105.0, 4106.0, 4107.0]
    assert csv["datetime"][1] == "2025-06-04T08:05:00-05:00"
    assert arrow["datetime"][1].isoformat() == "2025-06-04T08:05:00-05:00"


def test_ticks_with_nothing_known_but_the_price() -> None:
    rows = [wire.tick_data(tick(1, bid=None, ask=None, flags=("received", "late")))]
    response = tables.table_response(tables.ARROW, {"data": rows}, tables.TICK_SCHEMA, {})
    frame = pl.read_ipc_stream(io.BytesIO(bytes(response.body)))
    assert frame.row(0, named=True)["bid"] is None
    assert frame.row(0, named=True)["flags"] == "received late"


def test_no_rows_still_have_columns() -> None:
    response = tables.table_response(tables.CSV, {"data": []}, tables.TICK_SCHEMA, {})
    assert bytes(response.body).decode().strip() == ",".join(tables.TICK_SCHEMA)
