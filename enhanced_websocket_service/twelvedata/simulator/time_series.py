"""``/time_series``: its parameters, its defaults and its traps. Pure.

Without ``timezone`` the rows come in the exchange's zone while the filters are read as UTC: that is
what the vendor does with currencies, and what its users fall over.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo

from .answers import NO_DATA, Refusal, decimals, flag, invalid, number, whole
from .distortion import CandleFaults
from .model import Candle, SymbolInfo, SymbolSource
from .series import INTERVALS, View, is_daily, label

_DATE_FORMS = ("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M")
_DEFAULT_ROWS = 30
_FIRST_YEAR, _LAST_YEAR = 1970, 2200


@dataclass(frozen=True, slots=True)
class Limits:
    """The vendor's habits that the documents leave open or that a test wants smaller."""

    row_cap: int = 5000  # most rows in one answer, whatever outputsize asks for
    latency: float = 20.0  # seconds until a finished row appears
    exchange_zone: str = "Australia/Sydney"  # of currencies; also where their day begins


@dataclass(frozen=True, slots=True)
class Query:
    """The parameters of a request that do not depend on the symbol."""

    interval: str
    filter_zone: tzinfo
    output_zone: tzinfo
    start: int | None
    end: int | None
    count: int
    newest_first: bool
    dp: int
    previous_close: bool
    csv: bool
    delimiter: str


def parse_interval(params: Mapping[str, str], default: str = "") -> str:
    interval = params.get("interval", default).strip()
    if interval not in INTERVALS:
        raise Refusal(
            400,
            f"Invalid **interval** provided: {interval}. "
            f"Supported intervals: {', '.join(INTERVALS)}",
        )
    return interval


def parse_query(params: Mapping[str, str], limits: Limits, now: float) -> Query:
    """Read the parameters of ``/time_series``.

    :raises Refusal: 400 with the vendor's wording.
    """
    interval = parse_interval(params)
    exchange = ZoneInfo(limits.exchange_zone)
    asked = parse_zone(params)
    filter_zone: tzinfo = UTC if asked is None else asked
    output_zone: tzinfo = exchange if asked is None else asked
    if is_daily(interval):
        filter_zone = output_zone = exchange
    start, end = _window(params, filter_zone, now)
    dated = start is not None or end is not None
    count = whole(params, "outputsize", 5000 if dated else _DEFAULT_ROWS, 1, 5000)
    order = params.get("order", "desc").strip().lower()
    if order not in ("asc", "desc"):
        raise invalid("order", order, "values: asc, desc")
    form = params.get("format", "JSON").strip().upper()
    if form not in ("JSON", "CSV"):
        raise invalid("format", form, "values: JSON, CSV")
    return Query(
        interval=interval,
        filter_zone=filter_zone,
        output_zone=output_zone,
        start=start,
        end=end,
        count=min(count, limits.row_cap),
        newest_first=order == "desc",
        dp=decimals(params, -1),
        previous_close=flag(params, "previous_close"),
        csv=form == "CSV",
        delimiter=params.get("delimiter") or ";",
    )


def time_series(
    query: Query,
    info: SymbolInfo,
    source: SymbolSource,
    now: float,
    limits: Limits,
    faults: CandleFaults | None = None,
) -> dict[str, Any]:
    """The body of one symbol.

    :raises Refusal: 400 when the window is empty.
    """
    view = View(source, query.interval, query.output_zone, now, limits.latency, faults)
    rows = view.rows(query.start, query.end, query.count)
    if not rows:
        raise Refusal(400, NO_DATA, {"symbol": info.symbol, "interval": query.interval})
    before: Candle | None = None
    if query.previous_close:
        earlier = view.rows(None, rows[0].open_time - 1, 1)
        before = earlier[0] if earlier else None
    values = []
    newest = rows[-1]
    unfinished = view.bucket(newest.open_time)[1] > now
    for row in rows:
        forming = unfinished and row is newest
        value: dict[str, str | None] = {
            "datetime": label(row, query.interval, query.output_zone),
            "open": number(row.open, query.dp, forming=forming),
            "high": number(row.high, query.dp, forming=forming),
            "low": number(row.low, query.dp, forming=forming),
            "close": number(row.close, query.dp, forming=forming),
        }
        if query.previous_close:
            value["previous_close"] = None if before is None else number(before.close, query.dp)
            before = row
        values.append(value)
    if query.newest_first:
        values.reverse()
    return {"meta": meta(info, query.interval), "values": values, "status": "ok"}


def meta(info: SymbolInfo, interval: str) -> dict[str, str]:
    return {
        "symbol": info.symbol,
        "interval": interval,
        "currency_base": info.base_name,
        "currency_quote": info.quote_name,
        "type": info.type,
    }


def csv_text(body: Mapping[str, Any], delimiter: str) -> str:
    """The rows of ``body`` as the vendor's CSV."""
    values = body["values"]
    lines = [delimiter.join(values[0])]
    lines += [delimiter.join(cell or "" for cell in value.values()) for value in values]
    return "\n".join(lines) + "\n"


def parse_zone(params: Mapping[str, str]) -> tzinfo | None:
    """The zone asked for; ``None`` for the exchange's own. Names are case-sensitive."""
    name = params.get("timezone", "").strip()
    if not name or name.lower() == "exchange":
        return None
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise invalid(
            "timezone", name, "values: Exchange, UTC or a case-sensitive IANA name"
        ) from error


def _window(params: Mapping[str, str], zone: tzinfo, now: float) -> tuple[int | None, int | None]:
    day = params.get("date", "").strip()
    if day:
        today = datetime.fromtimestamp(now, zone).date()
        match day.lower():
            case "today":
                chosen = today
            case "yesterday":
                chosen = today - timedelta(days=1)
            case _:
                chosen = _naive("date", day).date()
        midnight = datetime(chosen.year, chosen.month, chosen.day, tzinfo=zone)
        following = datetime.combine(chosen + timedelta(days=1), midnight.time(), zone)
        return int(midnight.timestamp()), int(following.timestamp()) - 1
    start, end = params.get("start_date", "").strip(), params.get("end_date", "").strip()
    return (
        int(_naive("start_date", start).replace(tzinfo=zone).timestamp()) if start else None,
        int(_naive("end_date", end).replace(tzinfo=zone).timestamp()) if end else None,
    )


def _naive(parameter: str, text: str) -> datetime:
    for form in _DATE_FORMS:
        try:
            parsed = datetime.strptime(text, form)  # noqa: DTZ007 the zone is another parameter
        except ValueError:
            continue
        if _FIRST_YEAR <= parsed.year <= _LAST_YEAR:
            return parsed
    raise invalid(parameter, text, "formats: YYYY-MM-DD, YYYY-MM-DDTHH:MM:SS, YYYY-MM-DD HH:MM:SS")
