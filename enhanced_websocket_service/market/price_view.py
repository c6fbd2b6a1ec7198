"""The one JSON shape of a price: cache, pub/sub, WebSocket messages and REST answers share it."""

from typing import Any

import msgspec

from .calendar import iso_local
from .tick import Tick


class PriceData(msgspec.Struct, frozen=True, gc=False):
    """``data`` of a price message.

    ``volume`` is 0 and ``bid``, ``ask``, ``spread`` are ``None`` when the vendor has none;
    ``timestamp`` is the vendor's, ISO 8601 with offset in America/Bogota.
    """

    symbol: str
    price: float
    bid: float | None
    ask: float | None
    spread: float | None
    volume: int
    timestamp: str
    source: str


def price_view(tick: Tick) -> PriceData:
    """What a message says about ``tick``."""
    return PriceData(
        tick.symbol,
        tick.price,
        tick.bid,
        tick.ask,
        tick.spread,
        tick.volume,
        iso_local(tick.timestamp),
        tick.source,
    )


def price_data(tick: Tick) -> dict[str, Any]:
    """The same as a mapping, to be told beside other things."""
    return msgspec.structs.asdict(price_view(tick))
