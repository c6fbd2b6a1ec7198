"""A client of the service's WebSocket that never misses a thing silently.

>>> async for event in MarketClient("ws://localhost:8080", symbols=["USDCOP"]):
...     match event:
...         case Tick(symbol=symbol, price=price): ...
...         case Gap() if event.lost: ...

Needs nothing of the server but its address. ``SyncMarketClient`` is the same without ``async``.
"""

from .events import (
    Bar,
    Connected,
    Cursor,
    Disconnected,
    Epoch,
    Event,
    Gap,
    ServerError,
    Snapshot,
    Status,
    Tick,
)
from .market_client import MarketClient, Mode, RefusedByServer
from .sync_client import SyncMarketClient

__all__ = [
    "Bar",
    "Connected",
    "Cursor",
    "Disconnected",
    "Epoch",
    "Event",
    "Gap",
    "MarketClient",
    "Mode",
    "RefusedByServer",
    "ServerError",
    "Snapshot",
    "Status",
    "SyncMarketClient",
    "Tick",
]
