import msgspec

from enhanced_websocket_service.market.price_view import price_data
from enhanced_websocket_service.market.tick import Tick

TICK = Tick(
    symbol="USDCOP",
    epoch=1,
    offset=1,
    timestamp=1737387015,
    price=4275.45,
    bid=4275.20,
    ask=4275.70,
    volume=125000,
    source="twelvedata_websocket",
    received_at=1737387015.2,
    trading_session=True,
)


def test_it_is_the_sample_of_the_requirements() -> None:
    assert price_data(TICK) == {
        "symbol": "USDCOP",
        "price": 4275.45,
        "bid": 4275.20,
        "ask": 4275.70,
        "spread": 0.50,
        "volume": 125000,
        "timestamp": "2025-01-20T10:30:15-05:00",
        "source": "twelvedata_websocket",
    }


def test_what_the_vendor_did_not_say_is_null() -> None:
    data = price_data(msgspec.structs.replace(TICK, bid=None, volume=0))
    assert (data["bid"], data["spread"], data["volume"]) == (None, None, 0)
    assert data["ask"] == 4275.70
