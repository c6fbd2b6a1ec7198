"""REST faults without sockets: what a call shows under each, and that it is the same every time."""

import msgspec
import pytest

from enhanced_websocket_service.twelvedata.simulator.distortion import float32
from enhanced_websocket_service.twelvedata.simulator.fault_values import REST_STATUSES
from enhanced_websocket_service.twelvedata.simulator.model import Candle
from enhanced_websocket_service.twelvedata.simulator.time_series import Limits

from .parts import OPEN, at, candles
from .rest_calls import NOW, PAIR, Vendor

SYMBOL = {"symbol": "USD/COP"}
QUICK = Limits(latency=0.0)


def row(candle: Candle) -> dict[str, float]:
    return dict(zip(("open", "high", "low", "close"), candle[1:], strict=True))


def answered(vendor: Vendor, now: float, interval: str = "5min") -> dict[str, dict[str, float]]:
    """Label -> prices, all of a day in UTC."""
    body = vendor.json(
        "/time_series",
        {**SYMBOL, "interval": interval, "start_date": "2025-06-03", "timezone": "UTC"},
        now=now,
    )
    return {
        one["datetime"]: {name: float(one[name]) for name in ("open", "high", "low", "close")}
        for one in body.get("values", [])
    }


@pytest.mark.parametrize("status", REST_STATUSES)
def test_every_forced_error_has_its_status_and_words(status: str) -> None:
    vendor = Vendor()
    vendor.faults.apply({"rest_status": status})
    answer = vendor.get("/price", SYMBOL)
    assert answer.status == int(status[:3])
    if answer.content_type.startswith("text/plain"):
        assert answer.body == f"error code: {status}".encode()
    else:
        body = msgspec.json.decode(answer.body)
        assert (body["code"], body["status"]) == (answer.status, "error")
        assert len(body["message"]) > 10


def test_a_forced_error_for_some_paths_and_some_times() -> None:
    vendor = Vendor()
    vendor.faults.apply({"rest_status": {"status": "500", "times": 2, "paths": ["/time_series"]}})
    assert vendor.get("/price", SYMBOL).status == 200
    statuses = [vendor.get("/time_series", PAIR).status for _ in range(3)]
    assert statuses == [500, 500, 200]
    assert vendor.faults.rest_status is None


def test_a_constant_lag_shows_the_market_of_then() -> None:
    vendor = Vendor()
    then = {
        path: vendor.json(path, SYMBOL, now=OPEN + 580)
        for path in ("/price", "/quote", "/exchange_rate")
    }
    vendor.faults.apply({"rest_lag_s": 20})
    for path, body in then.items():
        assert vendor.json(path, SYMBOL, now=OPEN + 600) == body


def test_a_drawn_lag_is_that_of_its_second() -> None:
    vendor, twin = Vendor(), Vendor()
    for one in (vendor, twin):
        one.faults.apply({"rest_lag_s": [0, 20]})
    plain = Vendor()
    lags = set()
    for now in range(OPEN + 3000, OPEN + 3200):
        seen = vendor.json("/price", SYMBOL, now=now)
        assert twin.json("/price", SYMBOL, now=now + 0.7) == seen or True
        matching = [lag for lag in range(21) if plain.json("/price", SYMBOL, now=now - lag) == seen]
        assert matching
        lags.add(matching[0])
    assert len(lags) > 5


def test_decimals_and_float_noise() -> None:
    vendor = Vendor()
    price = float(vendor.json("/price", {**SYMBOL, "dp": 11})["price"])
    vendor.faults.apply({"rest_decimals": 1})
    assert vendor.json("/price", SYMBOL) == {"price": f"{price:.1f}"}
    assert vendor.json("/quote", {**SYMBOL, "dp": 5})["close"] == f"{price:.1f}"
    assert vendor.json("/exchange_rate", SYMBOL)["rate"] == round(price, 1)
    vendor.faults.clear()
    vendor.faults.apply({"rest_float32": True})
    assert float(vendor.json("/price", SYMBOL)["price"]) == float32(price)
    assert float(vendor.json("/quote", SYMBOL)["close"]) == float32(price)


def test_float_noise_is_that_of_the_vendor() -> None:
    # From captures of the real vendor.
    assert [float32(one) for one in (3271.76, 330.14, 4179.96)] == [
        3271.76001,
        330.14001,
        4179.95996,
    ]


def test_a_late_bar_is_absent_until_its_own_time() -> None:
    vendor = Vendor(limits=QUICK)
    vendor.faults.apply({"late_candles_s": [18, 180]})
    appeared = {}
    for label, end in (("13:00", 300), ("13:05", 600), ("13:10", 900)):
        label = f"2025-06-03 {label}:00"
        assert label in answered(vendor, OPEN + end - 1)  # the forming bar
        for delay in range(0, 182):
            if label in answered(vendor, OPEN + end + delay):
                appeared[label] = delay
                break
    assert len(appeared) == 3
    assert all(18 <= delay <= 181 for delay in appeared.values())
    assert len(set(appeared.values())) > 1
    # In the place of the usual latency, not on top of it.
    vendor = Vendor(limits=Limits(latency=90.0))
    vendor.faults.apply({"late_candles_s": 60})
    assert "2025-06-03 13:00:00" not in answered(vendor, OPEN + 359)
    assert "2025-06-03 13:00:00" in answered(vendor, OPEN + 360)


def test_a_revised_bar_differs_first_and_is_right_later() -> None:
    vendor = Vendor(limits=QUICK)
    vendor.faults.apply({"revised_candles": {"until_s": 240, "bp": 8}})
    right = row(candles(60)[0])
    label = "2025-06-03 13:00:00"
    first = answered(vendor, OPEN + 300)[label]
    assert first != right
    assert answered(vendor, OPEN + 539)[label] == first
    assert answered(vendor, OPEN + 540)[label] == right
    assert first["low"] <= min(first["open"], first["close"])
    assert max(first["open"], first["close"]) <= first["high"]
    assert 0 < abs(first["close"] / right["close"] - 1) <= 8e-4
    vendor.faults.apply({"revised_candles": {"until_s": 1e4, "share": 0.5}})
    rows = list(answered(vendor, OPEN + 9000).values())[::-1][:30]
    wrong = sum(one != row(c) for one, c in zip(rows, candles(30), strict=True))
    assert 5 <= wrong <= 25


def test_missing_bars_by_share_and_by_name() -> None:
    vendor = Vendor()
    everything = answered(vendor, NOW)
    vendor.faults.apply({"missing_bars": 0.25})
    some = answered(vendor, NOW)
    assert some.items() < everything.items()
    assert 5 <= 60 - len(some) <= 25
    assert answered(vendor, NOW + 60) == some
    vendor.faults.apply({"missing_bars": ["2025-06-03T13:05:00+00:00", at("2025-06-03 14:00")]})
    absent = everything.keys() - answered(vendor, NOW).keys()
    assert absent == {"2025-06-03 13:05:00", "2025-06-03 14:00:00"}
    minutes = answered(vendor, NOW, "1min")
    assert "2025-06-03 13:05:00" not in minutes


def test_other_seeds_other_bars() -> None:
    kept = []
    for seed in (1, 2):
        vendor = Vendor()
        vendor.faults.seed = seed
        vendor.faults.apply({"missing_bars": 0.5})
        kept.append(set(answered(vendor, NOW)))
    assert kept[0] != kept[1]


def test_empty_windows() -> None:
    vendor = Vendor()
    vendor.faults.apply({"empty_windows": True})
    answer = vendor.get("/time_series", PAIR)
    assert answer.status == 400
    assert b"No data is available on the specified dates" in answer.body
    assert vendor.get("/price", SYMBOL).status == 200


def test_credits_are_shown_by_key() -> None:
    vendor = Vendor(plan="basic")
    for _ in range(10):
        vendor.get("/price", SYMBOL, key="first", now=NOW)
    vendor.get("/price", SYMBOL, key="second", now=NOW)
    vendor.get("/price", SYMBOL, key="first", now=NOW + 60)
    first, second = vendor.rest.ledger.shown(NOW + 60).values()
    assert first == {
        "minute_used": 1,
        "day_used": 11,
        "used": 11,
        "calls": 11,
        "refused": 2,
        "most_in_a_minute": 10,
    }
    assert (second["minute_used"], second["used"]) == (0, 1)
