"""The one JSON shape of a price: cache, pub/sub, WebSocket messages and REST answers share it."""

from typing import Any

from .calendar import iso_local
from .tick import Tick


def price_data(tick: Tick) -> dict[str, Any]:
    """``data`` of a price message.

    ``volume`` is 0 and ``bid``, ``ask``, ``spread`` are ``None`` when the vendor has none;
    ``timestamp`` is the vendor's, ISO 8601 with offset in America/Bogota.
    """
    return {
        "symbol": tick.symbol,
        "price": tick.price,
        "bid": tick.bid,
        "ask": tick.ask,
        "spread": tick.spread,
        "volume": tick.volume,
        "timestamp": iso_local(tick.timestamp),
        "source": tick.source,
    }
