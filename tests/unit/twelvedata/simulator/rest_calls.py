"""The REST side without sockets, called as a client would."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import msgspec

from enhanced_websocket_service.twelvedata.simulator.answers import Answer, Request
from enhanced_websocket_service.twelvedata.simulator.credits import PLANS
from enhanced_websocket_service.twelvedata.simulator.faults import FaultBoard
from enhanced_websocket_service.twelvedata.simulator.model import MarketSource
from enhanced_websocket_service.twelvedata.simulator.rest import (
    KeyRing,
    RestVendor,
    lower_params,
)
from enhanced_websocket_service.twelvedata.simulator.time_series import Limits

from .parts import OPEN, bar_market, candles

NOW = OPEN + 20_000  # two hours after the last of 60 candles
PAIR = {"symbol": "USD/COP", "interval": "5min"}


def market() -> MarketSource:
    pairs = [bar_market(candles(60), name).sources for name in ("USD/COP", "EUR/USD")]
    return MarketSource({**pairs[0], **pairs[1]})


class Vendor:
    """Calls as a client would write them."""

    def __init__(self, plan: str = "ultra", **options: Any) -> None:
        self.faults = FaultBoard()
        keys = KeyRing(options.pop("keys", None))
        limits = options.pop("limits", Limits())
        self.rest = RestVendor(market(), PLANS[plan], keys, self.faults, limits, **options)

    def get(
        self,
        path: str,
        params: Mapping[str, object] | None = None,
        *,
        key: str | None = "k",
        now: float = NOW,
    ) -> Answer:
        query = lower_params(urlencode(params or {}))
        return self.rest.answer(Request("GET", path, query, key), now)

    def json(self, path: str, params: Mapping[str, object] | None = None, **kwargs: Any) -> Any:
        return msgspec.json.decode(self.get(path, params, **kwargs).body)

    def series(self, **params: object) -> Any:
        now = params.pop("now", NOW)
        return self.json("/time_series", {**PAIR, **params}, now=now)

    def post(self, body: object, now: float = NOW, key: str | None = None) -> Any:
        request = Request("POST", "/batch", {}, key, msgspec.json.encode(body))
        return msgspec.json.decode(self.rest.answer(request, now).body)
