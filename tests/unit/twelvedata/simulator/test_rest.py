"""REST endpoints, keys, credits, batches and error envelopes, without sockets."""

import msgspec
import pytest

from enhanced_websocket_service.twelvedata.simulator.answers import Request

from .parts import OPEN, at
from .rest_calls import NOW, PAIR, Vendor, market


@pytest.mark.parametrize("symbol", ["XYZ/USD", "USDCOP", ""])
def test_unknown_symbol(symbol: str) -> None:
    answer = Vendor().get("/time_series", {"symbol": symbol, "interval": "5min"})
    assert answer.status == 404
    assert b"**symbol** or **figi** parameter is missing or invalid" in answer.body


def test_unknown_paths_and_methods() -> None:
    vendor = Vendor()
    for answer in (
        vendor.get("/nothing", key=None),
        vendor.rest.answer(Request("POST", "/price", {"symbol": "USD/COP"}, "k"), NOW),
        vendor.rest.answer(Request("GET", "/batch", {}, "k"), NOW),
    ):
        assert answer.status == 404
        assert msgspec.json.decode(answer.body) == {"message": "404 page not found", "code": 404}


@pytest.mark.parametrize("key", [None, "", "invalid-1"])
def test_wrong_keys(key: str | None) -> None:
    answer = Vendor().get("/price", {"symbol": "USD/COP"}, key=key)
    assert answer.status == 401
    assert b"**apikey** parameter is incorrect or not specified" in answer.body


def test_only_configured_keys() -> None:
    vendor = Vendor(keys=frozenset({"mine"}))
    assert vendor.get("/price", {"symbol": "USD/COP"}, key="mine").status == 200
    assert vendor.get("/price", {"symbol": "USD/COP"}, key="yours").status == 401


def test_price_is_that_of_the_last_tick() -> None:
    source = market().get("USD/COP")
    assert source is not None
    for now in (OPEN + 299, OPEN + 1000, NOW):
        tick = source.last_tick(now)
        assert tick is not None
        assert Vendor().json("/price", {"symbol": "usd/cop"}, now=now) == {
            "price": f"{tick.price:.5f}"
        }
    assert Vendor().json("/price", {"symbol": "USD/COP", "dp": 0}) == {"price": "4160"}
    assert Vendor().get("/price", {"symbol": "USD/COP"}, now=OPEN - 1).status == 400


def test_quote() -> None:
    quote = Vendor().json("/quote", {"symbol": "USD/COP"})
    assert quote["symbol"] == "USD/COP"
    assert quote["name"] == "US Dollar / Colombian Peso"
    assert "volume" not in quote
    assert quote["datetime"] == "2025-06-04"
    assert quote["timestamp"] == at("2025-06-03 14:00")
    assert quote["close"] == "4160.00000"
    assert quote["open"] == "4112.00000"
    assert quote["previous_close"] == "4112.00000"
    assert quote["change"] == "48.00000"
    assert quote["is_market_open"] is False
    assert quote["fifty_two_week"]["low"] == "4099.25000"
    assert quote["fifty_two_week"]["high"] == "4161.50000"
    assert quote["last_quote_at"] % 60 == 0
    assert Vendor().json("/quote", {"symbol": "USD/COP"}, now=OPEN + 500)["is_market_open"]


def test_exchange_rate_is_a_number_on_the_minute() -> None:
    body = Vendor().json("/exchange_rate", {"symbol": "USD/COP"})
    assert body["symbol"] == "USD/COP"
    assert body["rate"] == 4160.0
    assert body["timestamp"] % 60 == 0


def test_earliest_timestamp() -> None:
    vendor = Vendor()
    intraday = vendor.json("/earliest_timestamp", {**PAIR, "timezone": "UTC"})
    assert intraday == {"datetime": "2025-06-03 13:00:00", "unix_time": OPEN}
    daily = vendor.json("/earliest_timestamp", {**PAIR, "interval": "1day"})
    assert daily == {"datetime": "2025-06-03", "unix_time": at("2025-06-02 14:00")}


def test_small_endpoints() -> None:
    vendor = Vendor("basic")
    assert vendor.json("/technical_indicators") == {"data": {}, "status": "ok"}
    assert vendor.json("/api_usage") == {
        "timestamp": "2025-06-03 18:33:20",
        "current_usage": 2,
        "plan_limit": 8,
        "daily_usage": 2,
        "plan_daily_limit": 800,
        "plan_category": "basic",
    }
    assert "plan_daily_limit" not in Vendor("pro").json("/api_usage")
    pairs = vendor.json("/forex_pairs", {"currency_quote": "COP"})
    assert pairs == {
        "data": [
            {
                "symbol": "USD/COP",
                "currency_group": "Exotic",
                "currency_base": "US Dollar",
                "currency_quote": "Colombian Peso",
            }
        ],
        "count": 1,
        "status": "ok",
    }


def test_minute_credits_run_out_and_return_with_the_next_minute() -> None:
    vendor = Vendor("basic")
    minute = NOW - NOW % 60
    for used in range(1, 9):
        answer = vendor.get("/price", {"symbol": "USD/COP"}, now=minute + used)
        assert answer.headers == (
            ("api-credits-used", str(used)),
            ("api-credits-left", str(8 - used)),
            ("api-credits-request", "1"),
        )
    refused = vendor.get("/price", {"symbol": "USD/COP"}, now=minute + 59.9)
    assert refused.status == 429
    assert dict(refused.headers)["api-credits-left"] == "0"
    assert msgspec.json.decode(refused.body)["message"] == (
        "You have run out of API credits for the current minute. 9 API credits were used, with "
        "the current limit being 8. Wait for the next minute or consider switching to a higher "
        "tier plan at https://twelvedata.com/pricing"
    )
    # Refused calls go on counting; another key has a ledger of its own.
    assert b"10 API credits" in vendor.get("/quote", {"symbol": "USD/COP"}, now=minute + 59).body
    assert vendor.get("/price", {"symbol": "USD/COP"}, key="other", now=minute).status == 200
    assert vendor.get("/price", {"symbol": "USD/COP"}, now=minute + 60).status == 200


def test_errors_cost_credits_too() -> None:
    vendor = Vendor("basic")
    for _ in range(8):
        assert vendor.get("/time_series", {**PAIR, "date": "2025-01-01"}).status == 400
    assert vendor.get("/time_series", PAIR).status == 429


def test_day_credits_run_out_until_midnight_utc() -> None:
    vendor = Vendor("basic")
    midnight = at("2025-06-04")
    for i in range(800):
        answer = vendor.get("/price", {"symbol": "USD/COP"}, now=midnight + 8 * i)
        assert answer.status == 200
    refused = vendor.json("/price", {"symbol": "USD/COP"}, now=midnight + 80_000)
    assert refused["code"] == 429
    assert refused["message"].startswith(
        "You have run out of API credits for the day. 801 API credits were used, with the "
        "current limit being 800. Wait for the next day"
    )
    assert vendor.get("/price", {"symbol": "USD/COP"}, now=midnight + 86_400).status == 200


def test_a_comma_list_is_a_batch() -> None:
    answer = Vendor().get("/time_series", {**PAIR, "symbol": "EUR/USD,USD/COP,NO/SUCH"})
    assert answer.status == 200
    assert ("Is_batch", "true") in answer.headers
    assert ("api-credits-request", "3") in answer.headers
    body = msgspec.json.decode(answer.body)
    assert list(body) == ["EUR/USD", "USD/COP", "NO/SUCH"]
    assert body["USD/COP"] == Vendor().series()
    assert body["NO/SUCH"]["code"] == 404
    prices = Vendor().json("/price", {"symbol": "EUR/USD,USD/COP"})
    assert set(prices) == {"EUR/USD", "USD/COP"}


def test_a_list_of_one_is_flat() -> None:
    answer = Vendor().get("/price", {"symbol": "USD/COP,"})
    assert list(msgspec.json.decode(answer.body)) == ["price"]
    assert "Is_batch" not in dict(answer.headers)


def test_a_batch_beyond_the_credits_is_one_error() -> None:
    symbols = ",".join(f"AB{c}/USD" for c in "ABCDEFGHI")
    answer = Vendor("basic").get("/price", {"symbol": symbols})
    assert answer.status == 429
    assert msgspec.json.decode(answer.body)["code"] == 429


def test_a_batch_that_is_too_long() -> None:
    answer = Vendor(batch_limit=2).get("/price", {"symbol": "A/B,C/D,E/F"})
    assert answer.status == 414


def test_post_batch() -> None:
    body = Vendor("basic").post(
        {
            "a": {"url": "/time_series?symbol=USD/COP&interval=5min&outputsize=1&apikey=k"},
            "b": {"url": "/price?symbol=NO/SUCH&apikey=k"},
            "c": {"url": "/price?symbol=EUR/USD"},
            "d": {"url": "/price?symbol=A/B,C/D,E/F,G/H,I/J,K/L,M/N&apikey=k"},
            "e": {"nothing": 1},
        }
    )
    assert (body["code"], body["status"]) == (200, "success")
    data = body["data"]
    assert data["a"]["status"] == "success"
    assert data["a"]["response"]["values"][0]["close"] == "4160.00000"
    assert {name: data[name]["status"] for name in "bcd"} == dict.fromkeys("bcd", "error")
    assert data["b"]["response"]["code"] == 404
    assert data["c"]["response"]["code"] == 401
    assert data["d"]["response"]["code"] == 429
    assert data["e"]["response"] == {"message": "404 page not found", "code": 404}
    assert Vendor().post({"c": {"url": "/price?symbol=EUR/USD"}}, key="k")["data"]["c"][
        "response"
    ] == {"price": "4160.00000"}


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"a": 1}', b"\xff", b"nonsense"])
def test_a_bad_post_batch_is_a_400(body: bytes) -> None:
    answer = Vendor().rest.answer(Request("POST", "/batch", {}, "k", body), NOW)
    assert answer.status == 400
    assert msgspec.json.decode(answer.body)["status"] == "error"


@pytest.mark.parametrize(
    ("fault", "status", "text"),
    [
        ("500", 500, b"Internal server error"),
        ("429_minute", 429, b"for the current minute"),
        ("429_day", 429, b"for the day"),
        ("401", 401, b"**apikey**"),
        ("403", 403, b"exclusively"),
    ],
)
def test_forced_errors(fault: str, status: int, text: bytes) -> None:
    vendor = Vendor()
    vendor.faults.apply({"rest_status": fault})
    answer = vendor.get("/price", {"symbol": "USD/COP"})
    assert answer.status == status
    assert text in answer.body
    assert msgspec.json.decode(answer.body)["code"] == status


def test_a_gateway_failure_is_not_json() -> None:
    vendor = Vendor()
    vendor.faults.apply({"rest_status": 520})
    answer = vendor.get("/price", {"symbol": "USD/COP"})
    assert (answer.status, answer.body) == (520, b"error code: 520")
    vendor.faults.clear()
    assert vendor.get("/price", {"symbol": "USD/COP"}).status == 200


def test_errors_with_status_200() -> None:
    vendor = Vendor(error_status_200=True)
    answer = vendor.get("/price", {"symbol": "NO/SUCH"})
    assert answer.status == 200
    assert msgspec.json.decode(answer.body)["code"] == 404
    switched = Vendor()
    switched.faults.apply({"status_200_errors": True})
    assert switched.get("/price", {"symbol": "NO/SUCH"}).status == 200


def test_parameter_names_are_case_insensitive() -> None:
    answer = Vendor().get("/time_series", {"Symbol": "USD/COP", "INTERVAL": "5min"})
    assert answer.status == 200
