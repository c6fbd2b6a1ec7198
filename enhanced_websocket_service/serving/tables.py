"""Rows as JSON, CSV or Arrow, chosen by the ``Accept`` header."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal

import msgspec
import polars as pl
from starlette.responses import Response

from enhanced_websocket_service.market.calendar import BOGOTA

JSON: Final = "application/json"
CSV: Final = "text/csv"
ARROW: Final = "application/vnd.apache.arrow.stream"
Form = Literal["application/json", "text/csv", "application/vnd.apache.arrow.stream"]
OFFERED: Final[tuple[Form, ...]] = (JSON, CSV, ARROW)

_encode = msgspec.json.Encoder().encode
_QUALITY: Final = re.compile(r"q=([01](?:\.[0-9]{0,3})?)", re.ASCII)

BAR_SCHEMA: Final[dict[str, pl.DataType]] = {
    "symbol": pl.String(),
    "datetime": pl.String(),
    "open": pl.Float64(),
    "high": pl.Float64(),
    "low": pl.Float64(),
    "close": pl.Float64(),
    "volume": pl.Int64(),
    "source": pl.String(),
    "revision": pl.Int64(),
    "status": pl.String(),
}
TICK_SCHEMA: Final[dict[str, pl.DataType]] = {
    "symbol": pl.String(),
    "epoch": pl.Int64(),
    "offset": pl.Int64(),
    "timestamp": pl.String(),
    "price": pl.Float64(),
    "bid": pl.Float64(),
    "ask": pl.Float64(),
    "spread": pl.Float64(),
    "volume": pl.Int64(),
    "source": pl.String(),
    "received_at": pl.String(),
    "trading_session": pl.Boolean(),
    "flags": pl.String(),
}
_TIMES: Final = frozenset({"datetime", "timestamp", "received_at"})


def negotiate(accept: str | None) -> Form | None:
    """The offered form the client likes best; ``None`` when it takes none of them."""
    if accept is None or not accept.strip():
        return JSON
    wanted: dict[str, float] = {}
    for item in accept.split(","):
        name, _, parameters = item.strip().lower().partition(";")
        match = _QUALITY.search(parameters)
        wanted[name.strip()] = float(match.group(1)) if match else 1.0

    def liking(form: Form) -> float:
        group = form.split("/")[0] + "/*"
        return wanted.get(form, wanted.get(group, wanted.get("*/*", 0.0)))

    best = max(OFFERED, key=liking)  # of equals the first: JSON
    return best if liking(best) > 0 else None


def table_response(
    form: Form,
    answer: Mapping[str, Any],
    schema: Mapping[str, pl.DataType],
    headers: Mapping[str, str],
) -> Response:
    """``answer`` with its rows in ``data``. CSV and Arrow carry the rows; the rest is in headers.

    Times are ISO 8601 text in CSV and timestamps in Arrow; lists (flags) are joined by spaces.
    """
    if form == JSON:
        return Response(_encode(answer), media_type=JSON, headers=dict(headers))
    rows: Sequence[Mapping[str, Any]] = answer["data"]
    columns = {name: [_flat(row[name]) for row in rows] for name in schema}
    if form == CSV:
        frame = pl.DataFrame(columns, schema=dict(schema))
        return Response(frame.write_csv(), media_type=CSV, headers=dict(headers))
    typed = dict(schema)
    for name in _TIMES & schema.keys():
        columns[name] = [datetime.fromisoformat(text) for text in columns[name]]
        typed[name] = pl.Datetime("us", BOGOTA.key)
    buffer = pl.DataFrame(columns, schema=typed).write_ipc_stream(None)
    return Response(buffer.getvalue(), media_type=ARROW, headers=dict(headers))


def _flat(value: Any) -> Any:
    return " ".join(value) if isinstance(value, list) else value
