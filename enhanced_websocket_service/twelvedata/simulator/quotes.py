"""``/price``, ``/quote``, ``/exchange_rate`` and ``/earliest_timestamp``. Pure."""

from collections.abc import Mapping
from typing import Any
from zoneinfo import ZoneInfo

from .answers import NO_DATA, Refusal, decimals, number
from .model import SLOT_SECONDS, Candle, SimTick, SymbolInfo, SymbolSource
from .series import View, is_daily, label
from .time_series import Limits, parse_interval, parse_zone

_QUOTE_DP = 5
_YEAR = 365 * 86_400
_MOST_RANGES = 1000


def last_price(source: SymbolSource, now: float) -> SimTick:
    """The newest tick at ``now``.

    :raises Refusal: 400 before the first tick of all.
    """
    tick = source.last_tick(int(now))
    if tick is None:
        raise Refusal(400, NO_DATA)
    return tick


def price(params: Mapping[str, str], source: SymbolSource, now: float) -> dict[str, Any]:
    dp = decimals(params, _QUOTE_DP)
    return {"price": number(last_price(source, now).price, dp)}


def exchange_rate(
    params: Mapping[str, str], info: SymbolInfo, source: SymbolSource, now: float
) -> dict[str, Any]:
    dp = decimals(params, _QUOTE_DP)
    tick = last_price(source, now)
    rate = tick.price if dp < 0 else round(tick.price, dp)
    return {
        "symbol": info.symbol,
        "rate": rate,
        "timestamp": tick.timestamp - tick.timestamp % 60,
    }


def earliest_timestamp(
    params: Mapping[str, str], source: SymbolSource, limits: Limits
) -> dict[str, Any]:
    interval = parse_interval(params)
    first = source.first_open()
    if first is None:
        raise Refusal(400, NO_DATA)
    exchange = ZoneInfo(limits.exchange_zone)
    zone = exchange if is_daily(interval) else (parse_zone(params) or exchange)
    start, _ = View(source, interval, zone, first, limits.latency).bucket(first)
    row = Candle(start, 0, 0, 0, 0)
    return {"datetime": label(row, interval, zone), "unix_time": start}


class YearRanges:
    """The 52 weeks before a day, remembered: a poller asks for it with every quote."""

    def __init__(self) -> None:
        self._ranges: dict[tuple[str, int], tuple[float, float] | None] = {}

    def before(self, symbol: str, source: SymbolSource, day: int) -> tuple[float, float] | None:
        """Lowest and highest price of the year that ends at ``day`` (unix seconds)."""
        if (symbol, day) not in self._ranges:
            if len(self._ranges) >= _MOST_RANGES:
                self._ranges.clear()
            candles = source.candles(day - _YEAR, day)
            self._ranges[symbol, day] = (
                (min(one.low for one in candles), max(one.high for one in candles))
                if candles
                else None
            )
        return self._ranges[symbol, day]


def quote(
    params: Mapping[str, str],
    info: SymbolInfo,
    source: SymbolSource,
    now: float,
    limits: Limits,
    years: YearRanges,
) -> dict[str, Any]:
    """The state of the symbol's current row (of ``interval``, by default the day)."""
    interval = parse_interval(params, "1day")
    dp = decimals(params, _QUOTE_DP)
    exchange = ZoneInfo(limits.exchange_zone)
    zone = exchange if is_daily(interval) else (parse_zone(params) or exchange)
    tick = last_price(source, now)
    rows = View(source, interval, zone, now, latency=0.0).rows(None, None, 2)
    row = rows[-1]
    before = rows[-2].close if len(rows) > 1 else row.open
    change = row.close - before
    slot = int(now) - int(now) % SLOT_SECONDS
    body: dict[str, Any] = {
        "symbol": info.symbol,
        "name": f"{info.base_name} / {info.quote_name}",
        "exchange": "Forex" if info.type == "Physical Currency" else "Binance",
        "datetime": label(row, interval, zone),
        "timestamp": row.open_time,
        "last_quote_at": tick.timestamp - tick.timestamp % 60,
        "open": number(row.open, dp),
        "high": number(row.high, dp),
        "low": number(row.low, dp),
        "close": number(row.close, dp),
        "previous_close": number(before, dp),
        "change": number(change, dp),
        "percent_change": number(100 * change / before, dp),
        "is_market_open": bool(source.candles(slot, slot + 1)),
    }
    low, high = _year(info.symbol, source, row, slot, years)
    body["fifty_two_week"] = {
        "low": number(low, dp),
        "high": number(high, dp),
        "low_change": number(row.close - low, dp),
        "high_change": number(row.close - high, dp),
        "low_change_percent": number(100 * (row.close - low) / low, dp),
        "high_change_percent": number(100 * (row.close - high) / high, dp),
        "range": f"{number(low, dp)} - {number(high, dp)}",
    }
    return body


def _year(
    symbol: str, source: SymbolSource, row: Candle, slot: int, years: YearRanges
) -> tuple[float, float]:
    day = row.open_time - row.open_time % 86_400
    earlier = years.before(symbol, source, day)
    # Whole candles only: the one of the current slot knows the future.
    known = [row, *source.candles(day, slot)]
    lows = [one.low for one in known] + ([earlier[0]] if earlier else [])
    highs = [one.high for one in known] + ([earlier[1]] if earlier else [])
    return min(lows), max(highs)


def forex_pairs(params: Mapping[str, str], infos: list[SymbolInfo]) -> dict[str, Any]:
    wanted = {
        name: params[name].strip().upper()
        for name in ("symbol", "currency_base", "currency_quote")
        if params.get(name, "").strip()
    }
    data = [
        row
        for row in (
            {
                "symbol": info.symbol,
                "currency_group": info.group,
                "currency_base": info.base_name,
                "currency_quote": info.quote_name,
            }
            for info in infos
            if info.type == "Physical Currency"
        )
        if all(_matches(row, name, text) for name, text in wanted.items())
    ]
    return {"data": data, "count": len(data), "status": "ok"}


def _matches(row: Mapping[str, str], name: str, wanted: str) -> bool:
    if name == "symbol":
        return row["symbol"] == wanted
    position = 0 if name == "currency_base" else 1
    return wanted in (row["symbol"].split("/")[position], row[name].upper())
