"""The vendor's REST answers, sans I/O: status and body -> errors, bars, prices.

Every answer is judged by its body as well as its status: the vendor sends errors with their real HTTP
status today, and has sent them with 200. Times are unix seconds UTC.
"""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import msgspec

from enhanced_websocket_service.errors import (
    BadRequest,
    CreditsExhausted,
    InvalidKey,
    NoData,
    NotEntitled,
    UnfitPrices,
    UnknownSymbol,
    VendorError,
    VendorUnavailable,
)
from enhanced_websocket_service.market.bar import INTERVALS, Bar
from enhanced_websocket_service.market.scale import unfit
from enhanced_websocket_service.market.tick import MAX_PRICE, quantise

from .protocol import decode_json, number, text, vendor_symbol, whole_seconds

INTERVAL_NAMES: Final[dict[int, str]] = {seconds: name for name, seconds in INTERVALS.items()}
"""Seconds -> the vendor's name of the interval."""

CLAMP_TOLERANCE: Final = 0.001
"""Vendor bars may have an open or close a hair outside high and low (float32 noise, composed quotes).
Up to this fraction of the price the range is widened to hold them; beyond it the row is a fault."""

_MAX_VOLUME: Final = 2_147_483_647  # market_data.volume is INTEGER
_CREDITS = re.compile(r"(\d+) API credits were used, with the current limit being (\d+)")


class BarPage(msgspec.Struct, frozen=True):
    """One answer of ``/time_series``."""

    bars: list[Bar]  # ascending, finished, one per label
    faults: list[str]  # one sentence per row that could not be used
    forming: int = 0  # rows dropped because their bar had not ended yet


class ApiUsage(msgspec.Struct, frozen=True):
    """``/api_usage`` of one key; the daily pair is ``None`` on plans without a daily limit."""

    current_usage: int
    plan_limit: int
    daily_usage: int | None = None
    plan_daily_limit: int | None = None
    plan_category: str = ""


class DailyQuote(msgspec.Struct, frozen=True):
    """``/quote``: the running day of a symbol. ``timestamp`` is the day's, not the price's."""

    symbol: str
    price: float
    timestamp: int | None
    last_quote_at: int | None  # open of the last minute candle
    open: float | None
    high: float | None
    low: float | None
    previous_close: float | None
    is_market_open: bool | None


def classify_error(status: int, body: bytes) -> VendorError | None:
    """The error that an answer is, or ``None`` for a success.

    Wording wins over codes: a plan gate arrives as 404, an exhausted day and an exhausted minute
    share 429, and an empty window is a 400 that is no fault.
    """
    try:
        answer = decode_json(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict | list):
        if status == 429:
            return CreditsExhausted(_said(429, text(body.decode("utf-8", "replace"))), "minute")
        if status in (400, 414):
            return BadRequest(_said(status, text(body.decode("utf-8", "replace"))))
        shown = text(body[:200].decode("utf-8", "replace")).strip()
        return VendorUnavailable(f"The vendor answered {status} without JSON: {shown!r}.")
    envelope: dict[str, Any] = answer if isinstance(answer, dict) else {}
    code = envelope.get("code")
    code = code if isinstance(code, int) and not isinstance(code, bool) else None
    failed = (
        not 200 <= status < 300
        or envelope.get("status") == "error"
        or (code is not None and code >= 400)
    )
    if not failed:
        return None
    return _classified(code if code is not None else status, text(envelope.get("message")))


def _classified(code: int, message: str) -> VendorError:
    said, lower = _said(code, message), message.lower()
    if "run out of api credits" in lower:
        return CreditsExhausted(said, "day" if "for the day" in lower else "minute")
    if "no data is available" in lower:
        return NoData(said)
    if code == 401:
        return InvalidKey(said)
    plan = "available starting with" in lower or "available exclusively" in lower
    if code == 403 or (plan and 400 <= code < 500):
        return NotEntitled(said)
    if code == 429:
        return CreditsExhausted(said, "minute")
    if "not found" in lower and "symbol" in lower:
        return UnknownSymbol(said)
    if code == 404:
        if "page not found" in lower:
            return BadRequest(f"{said} Check TWELVEDATA_REST_URL.")
        return UnknownSymbol(said)
    if 400 <= code < 500 and code != 408:
        return BadRequest(said)
    return VendorUnavailable(said)


def _said(code: int, message: str) -> str:
    return f"The vendor answered {code}: {message or 'no message'}"


def credit_figures(message: str) -> tuple[int, int] | None:
    """``(used, limit)`` from the wording of a 429, when it has them."""
    found = _CREDITS.search(message)
    return (int(found[1]), int(found[2])) if found else None


def credit_headers(headers: Mapping[str, str]) -> tuple[int, int] | None:
    """``(used, left)`` in the current minute from ``api-credits-used`` and ``api-credits-left``."""
    used, left = (number(headers.get(f"api-credits-{name}")) for name in ("used", "left"))
    if used is None or left is None or not 0 <= used < 1e9 or not 0 <= left < 1e9:
        return None
    return int(used), int(left)


def http_date(headers: Mapping[str, str]) -> float | None:
    """What the ``Date`` header says, unix seconds UTC; of an answer from a cache, as old as it says it is."""
    try:
        at = parsedate_to_datetime(headers.get("date", ""))
        return at.timestamp() + max(0, int(headers.get("age", "0")))
    except (ValueError, OverflowError):
        return None


def interval_name(interval_s: int) -> str:
    """The vendor's name of an interval in seconds; ``BadRequest`` for one it does not have."""
    try:
        return INTERVAL_NAMES[interval_s]
    except KeyError:
        offered = ", ".join(str(seconds) for seconds in INTERVAL_NAMES)
        raise BadRequest(f"No interval of {interval_s} s; there are {offered} s.") from None


def time_series_params(
    symbol: str, interval_s: int, start: int, end: int, outputsize: int
) -> dict[str, str]:
    """Query of ``/time_series`` for bars that open at ``start .. end``, both inclusive.

    ``timezone=UTC`` always: without it the vendor answers forex in Sydney time.
    """
    return {
        "symbol": vendor_symbol(symbol),
        "interval": interval_name(interval_s),
        "start_date": _vendor_time(start),
        "end_date": _vendor_time(end),
        "outputsize": str(outputsize),
        "timezone": "UTC",
        "order": "desc",
        "format": "JSON",
    }


def parse_bars(body: bytes, *, symbol: str, interval_s: int, now: float, source: str) -> BarPage:
    """The finished bars of a ``/time_series`` answer, ascending, and what is wrong with the rest.

    The forming bar (``open + interval > now``) is dropped: the vendor sends it unmarked.

    :raises BadRequest: when the answer is about another symbol or interval than asked.
    :raises UnfitPrices: when the tables cannot hold prices of that size.
    :raises VendorUnavailable: when it is no time series at all.
    """
    answer = _object(body, "/time_series")
    meta = answer.get("meta")
    values = answer.get("values")
    if not isinstance(values, list):
        raise VendorUnavailable("The vendor's /time_series answer has no list of values.")
    if isinstance(meta, dict):
        _check_meta(meta, symbol, interval_s)
    closes = (number(row.get("close")) for row in values if isinstance(row, dict))
    told = unfit(symbol, [one for one in closes if one is not None and 0 < one < math.inf])
    if told is not None:
        raise UnfitPrices(told)
    bars: dict[int, Bar] = {}
    faults: list[str] = []
    forming = 0
    for row in values:
        bar = _bar(row, symbol, interval_s, source)
        if isinstance(bar, str):
            faults.append(bar)
        elif bar.close_time > now:
            forming += 1
        elif bars.setdefault(bar.open_time, bar) != bar:
            faults.append(f"a second, different bar for {_label(row)}")
    return BarPage([bars[label] for label in sorted(bars)], faults, forming)


def parse_price(body: bytes) -> float:
    """The price of a ``/price`` answer; ``VendorUnavailable`` when there is none to use."""
    answer = _object(body, "/price")
    return _price_of(answer.get("price"), "/price")


def parse_quote(body: bytes, symbol: str) -> DailyQuote:
    """A ``/quote`` answer; ``VendorUnavailable`` when it has no usable close."""
    answer = _object(body, "/quote")
    is_open = answer.get("is_market_open")
    return DailyQuote(
        symbol=symbol,
        price=_price_of(answer.get("close"), "/quote"),
        timestamp=whole_seconds(answer.get("timestamp")),
        last_quote_at=whole_seconds(answer.get("last_quote_at")),
        open=_price_or_none(answer.get("open")),
        high=_price_or_none(answer.get("high")),
        low=_price_or_none(answer.get("low")),
        previous_close=_price_or_none(answer.get("previous_close")),
        is_market_open=is_open if isinstance(is_open, bool) else None,
    )


def parse_usage(body: bytes) -> ApiUsage:
    """An ``/api_usage`` answer; ``VendorUnavailable`` when it lacks the figures of the minute."""
    answer = _object(body, "/api_usage")
    used, limit = _count(answer.get("current_usage")), _count(answer.get("plan_limit"))
    if used is None or limit is None:
        raise VendorUnavailable("The vendor's /api_usage answer lacks current_usage or plan_limit.")
    return ApiUsage(
        current_usage=used,
        plan_limit=limit,
        daily_usage=_count(answer.get("daily_usage")),
        plan_daily_limit=_count(answer.get("plan_daily_limit")),
        plan_category=text(answer.get("plan_category")),
    )


def parse_earliest(body: bytes) -> int:
    """The instant of an ``/earliest_timestamp`` answer; it may lie before 1970."""
    seconds = number(_object(body, "/earliest_timestamp").get("unix_time"))
    if seconds is None or not math.isfinite(seconds):
        raise VendorUnavailable("The vendor's /earliest_timestamp answer has no unix_time.")
    return int(seconds)


def _object(body: bytes, endpoint: str) -> dict[str, Any]:
    try:
        answer = decode_json(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise VendorUnavailable(f"The vendor's {endpoint} answer is no JSON object.")
    return answer


def _check_meta(meta: dict[str, Any], symbol: str, interval_s: int) -> None:
    # A valid ticker may resolve to another instrument: its bars must not enter our history.
    for key, asked in (("symbol", vendor_symbol(symbol)), ("interval", interval_name(interval_s))):
        given = meta.get(key)
        if given is not None and text(given).upper() != asked.upper():
            raise BadRequest(f"Asked for {key} {asked}, the vendor answered for {text(given)!r}.")


def _bar(row: object, symbol: str, interval_s: int, source: str) -> Bar | str:
    if not isinstance(row, dict):
        return f"a row that is no object: {text(row)[:80]!r}"
    label = _label(row)
    try:
        opened = datetime.fromisoformat(label)
    except ValueError:
        return f"a datetime that cannot be read: {label!r}"
    if opened.tzinfo is None:
        opened = opened.replace(tzinfo=UTC)
    try:
        open_time = int(opened.timestamp())
    except OverflowError:
        return f"a datetime out of range: {label!r}"
    if open_time % interval_s:
        return f"{label}: not on the grid of {interval_s} s"
    prices: list[float] = []
    for name in ("open", "high", "low", "close"):
        price = _price_or_none(row.get(name))
        if price is None:
            return f"{label}: {name} is {text(row.get(name))[:40]!r}, not a usable price"
        prices.append(price)
    open_, high, low, close = prices
    top, bottom = max(open_, close), min(open_, close)
    if max(top - high, low - bottom, low - high) > CLAMP_TOLERANCE * close:
        return f"{label}: open {open_}, high {high}, low {low}, close {close} contradict each other"
    volume = row.get("volume")
    amount = 0 if volume is None or volume == "" else _count(volume)
    if amount is None:
        return f"{label}: volume is {text(volume)[:40]!r}"
    return Bar(
        symbol=symbol,
        interval_s=interval_s,
        open_time=open_time,
        open=open_,
        high=max(high, low, top),
        low=min(low, high, bottom),
        close=close,
        volume=amount,
        source=source,
        revision=0,
        status="closed",  # final only when another answer agrees
    )


def _label(row: object) -> str:
    return text(row.get("datetime"))[:40] if isinstance(row, dict) else ""


def _vendor_time(instant: int) -> str:
    return datetime.fromtimestamp(instant, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _price_or_none(value: object) -> float | None:
    price = number(value)
    if price is None or not math.isfinite(price) or not 0 < price < MAX_PRICE:
        return None
    return quantise(price) or None


def _price_of(value: object, endpoint: str) -> float:
    price = _price_or_none(value)
    if price is None:
        raise VendorUnavailable(
            f"The vendor's {endpoint} answer has no usable price: {text(value)[:40]!r}."
        )
    return price


def _count(value: object) -> int | None:
    amount = number(value)
    if amount is None or not 0 <= amount <= _MAX_VOLUME:
        return None
    return int(amount)
