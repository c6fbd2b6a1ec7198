"""The vendor's REST side as a function of a request and an instant. Pure: no sockets, no clock.

The order in which a real call is decided: path, key, length of the symbol list, credits, parameters.
Every call that has a key costs credits, refused ones too.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from . import quotes
from .answers import (
    BAD_KEY,
    CSV_TYPE,
    NO_DATA,
    UNKNOWN_SYMBOL,
    Answer,
    Refusal,
    Request,
    json_answer,
)
from .credits import CreditLedger, Plan, Usage
from .distortion import as_quoted, candle_faults, scaled_source
from .faults import FaultBoard
from .model import MarketSource, SymbolInfo, SymbolSource, describe
from .refusals import NOT_FOUND, rest_refusal, text_answer
from .series import utc_text
from .time_series import Limits, csv_text, parse_query, time_series

_PerSymbol = Callable[[Mapping[str, str], SymbolInfo, SymbolSource, float], dict[str, Any] | str]

_MOST_BATCHED_CALLS = 100


class KeyRing:
    """Which API keys the vendor knows: all, or a given set; never one that begins with ``invalid``."""

    def __init__(self, keys: frozenset[str] | None = None) -> None:
        self._keys = keys

    def knows(self, key: str | None) -> bool:
        if not key or key.lower().startswith("invalid"):
            return False
        return self._keys is None or key in self._keys


class RestVendor:
    """Answers REST calls.

    :param error_status_200: send errors with HTTP status 200, as some old endpoints did.
    :param batch_limit: most symbols in one comma list; more is a 414.
    """

    def __init__(
        self,
        market: MarketSource,
        plan: Plan,
        keys: KeyRing,
        faults: FaultBoard,
        limits: Limits,
        *,
        error_status_200: bool = False,
        batch_limit: int = 120,
    ) -> None:
        self._market = market
        self._plan = plan
        self._keys = keys
        self._faults = faults
        self._limits = limits
        self._error_status_200 = error_status_200
        self._batch_limit = batch_limit
        self.ledger = CreditLedger(plan)
        self._years = quotes.YearRanges()
        self._frozen_at: float | None = None  # while REST is frozen
        self._infos = {symbol: describe(symbol) for symbol in market.symbols}
        self._per_symbol: dict[str, _PerSymbol] = {
            "/time_series": self._time_series,
            "/price": self._price,
            "/quote": self._quote,
            "/exchange_rate": self._exchange_rate,
            "/earliest_timestamp": lambda params, _info, source, _now: quotes.earliest_timestamp(
                params, source, self._limits
            ),
        }
        self._plain = ("/api_usage", "/technical_indicators", "/forex_pairs")

    @property
    def paths(self) -> tuple[str, ...]:
        """Every path that is answered."""
        return (*self._per_symbol, *self._plain, "/batch")

    def answer(self, request: Request, now: float) -> Answer:
        """The answer to ``request`` at ``now`` (unix seconds UTC)."""
        method = "POST" if request.path == "/batch" else "GET"
        if request.path not in self.paths or request.method != method:
            return NOT_FOUND
        forced = self._forced(request.path)
        if forced is not None and (plain := text_answer(forced)) is not None:
            return plain
        headers: tuple[tuple[str, str], ...] = ()
        try:
            if forced is not None:
                raise rest_refusal(forced, self._plan)
            if not self._keys.knows(request.key) and request.path != "/batch":
                raise Refusal(401, BAD_KEY)
            if request.path == "/batch":
                return self._batch(request, now)
            symbols = self._symbols_of(request)
            usage = self._charge(request, max(1, len(symbols)), now)
            headers = usage.headers
            refused = usage.refusal()
            if refused is not None:
                raise refused
            return self._evaluate(request, symbols, usage, now)
        except Refusal as refusal:
            return self._error(refusal, headers)

    def _forced(self, path: str) -> str | None:
        """The error that a fault puts in the place of the answer."""
        fault = self._faults.rest_status
        if fault is None or (fault.paths is not None and path not in fault.paths):
            return None
        self._faults.spend("rest_status")
        return fault.status

    def _charge(self, request: Request, cost: int, now: float) -> Usage:
        assert request.key is not None
        return self.ledger.charge(request.key, cost, now)

    def _symbols_of(self, request: Request) -> list[str]:
        if request.path not in self._per_symbol:
            return []
        text = request.params.get("symbol", "")
        symbols = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
        if len(symbols) > self._batch_limit:
            raise Refusal(414, "Input parameter array exceeds the allowed length")
        return symbols

    def _evaluate(self, request: Request, symbols: list[str], usage: Usage, now: float) -> Answer:
        if request.path == "/api_usage":
            return json_answer(_usage_body(usage, now), headers=usage.headers)
        if request.path == "/technical_indicators":
            return json_answer({"data": {}, "status": "ok"}, headers=usage.headers)
        if request.path == "/forex_pairs":
            infos = list(self._infos.values())
            return json_answer(quotes.forex_pairs(request.params, infos), headers=usage.headers)
        if len(symbols) > 1:
            body = dict(self._members(request, symbols, now))
            return json_answer(body, headers=(*usage.headers, ("Is_batch", "true")))
        result = self._one(request, symbols[0] if symbols else "", now)
        if isinstance(result, str):
            return Answer(200, result.encode(), CSV_TYPE, usage.headers)
        return json_answer(result, headers=usage.headers)

    def _members(
        self, request: Request, symbols: list[str], now: float
    ) -> Iterator[tuple[str, Any]]:
        json_only = replace(request, params={**request.params, "format": "JSON"})
        for symbol in symbols:
            try:
                yield symbol, self._one(json_only, symbol, now)
            except Refusal as refusal:
                yield symbol, refusal.envelope()

    def _one(self, request: Request, symbol: str, now: float) -> dict[str, Any] | str:
        source = self._market.get(symbol)
        if source is None:
            raise Refusal(404, UNKNOWN_SYMBOL)
        info = self._infos[symbol.upper()]
        return self._per_symbol[request.path](request.params, info, source, now)

    def _time_series(
        self, params: Mapping[str, str], info: SymbolInfo, source: SymbolSource, now: float
    ) -> dict[str, Any] | str:
        query = parse_query(params, self._limits, now)
        if self._faults.empty_windows:
            raise Refusal(400, NO_DATA, {"symbol": info.symbol, "interval": query.interval})
        faults = candle_faults(self._faults, info.symbol)
        source = scaled_source(source, self._faults, "bars")
        body = time_series(query, info, source, now, self._limits, faults)
        return csv_text(body, query.delimiter) if query.csv else body

    def _price(
        self, params: Mapping[str, str], _info: SymbolInfo, source: SymbolSource, now: float
    ) -> dict[str, Any]:
        return quotes.price(*as_quoted(params, source, self._frozen(now), self._faults))

    def _exchange_rate(
        self, params: Mapping[str, str], info: SymbolInfo, source: SymbolSource, now: float
    ) -> dict[str, Any]:
        params, source, now = as_quoted(params, source, self._frozen(now), self._faults)
        return quotes.exchange_rate(params, info, source, now)

    def _quote(
        self, params: Mapping[str, str], info: SymbolInfo, source: SymbolSource, now: float
    ) -> dict[str, Any]:
        params, source, now = as_quoted(params, source, self._frozen(now), self._faults)
        return quotes.quote(params, info, source, now, self._limits, self._years)

    def _frozen(self, now: float) -> float:
        """The instant whose market is shown."""
        if not self._faults.rest_frozen:
            self._frozen_at = None
        elif self._frozen_at is None:
            self._frozen_at = now
        return now if self._frozen_at is None else self._frozen_at

    def _batch(self, request: Request, now: float) -> Answer:
        """``POST /batch``: every member is a call of its own, with its own key or the outer one."""
        try:
            calls = msgspec.json.decode(request.body, type=dict[str, dict[str, Any]])
        except msgspec.DecodeError as error:
            raise Refusal(400, f"Invalid **batch** request provided: {error}") from error
        if not calls:
            raise Refusal(400, "Invalid **batch** request provided: it holds no requests.")
        if len(calls) > _MOST_BATCHED_CALLS:
            raise Refusal(414, "Input parameter array exceeds the allowed length")
        data: dict[str, Any] = {}
        for name, call in calls.items():
            path, _, query = str(call.get("url", "")).partition("?")
            params = lower_params(query)
            inner = Request("GET", path, params, params.get("apikey") or request.key)
            answer = self.answer(inner, now)
            response: Any
            if answer.content_type == CSV_TYPE:
                response = answer.body.decode()
            else:
                response = msgspec.json.decode(answer.body)
            failed = answer.status >= 400 or (
                isinstance(response, dict) and response.get("status") == "error"
            )
            data[name] = {"response": response, "status": "error" if failed else "success"}
        return json_answer({"code": 200, "status": "success", "data": data})

    def _error(self, refusal: Refusal, headers: tuple[tuple[str, str], ...]) -> Answer:
        softened = self._error_status_200 or self._faults.status_200_errors
        return json_answer(refusal.envelope(), 200 if softened else refusal.code, headers)


def _usage_body(usage: Usage, now: float) -> dict[str, Any]:
    body: dict[str, Any] = {
        "timestamp": utc_text(now),
        "current_usage": usage.minute_used,
        "plan_limit": usage.plan.per_minute,
    }
    if usage.plan.per_day is not None:
        body["daily_usage"] = usage.day_used
        body["plan_daily_limit"] = usage.plan.per_day
    body["plan_category"] = usage.plan.name
    return body


def lower_params(query: str) -> dict[str, str]:
    """The parameters of a query string; their names are case-insensitive, the first one counts."""
    params: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, errors="replace"):
        params.setdefault(name.lower(), value)
    return params
