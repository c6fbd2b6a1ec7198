"""Every endpoint over a real socket: the requirements' samples field by field, and every refusal."""

import io
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import httpx
import polars as pl
import pytest
import structlog

from enhanced_websocket_service.serving import models
from tests.unit.serving.fakes import EPOCH, NOON, FakeService, Running, bar, running, tick


@pytest.fixture
async def api() -> AsyncIterator[Running]:
    service = FakeService()
    service.stored_ticks = [tick(n) for n in range(1, 26)]
    service.stored_bars = [bar(n) for n in range(10)]
    service.last["USDCOP"] = tick(25)
    async with running(service) as started:
        yield started


@pytest.fixture
async def client(api: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=api.url) as opened:
        yield opened


async def get(client: httpx.AsyncClient, path: str, status: int = 200, **kwargs: Any) -> Any:
    answer = await client.get(path, **kwargs)
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert datetime.fromisoformat(body["timestamp"]).utcoffset() is not None
    assert body["service_status"]
    if status >= 400 and "error" in body:
        assert body["detail"].endswith("."), "an error is explained in a sentence"
    return body


def has_shape(answer: Any, sample: Any) -> None:
    """Every field of the requirements' sample is there, with a value of the same kind."""
    if isinstance(sample, dict):
        for name, value in sample.items():
            assert name in answer
            has_shape(answer[name], value)
    elif isinstance(sample, bool) or not isinstance(sample, int | float):
        assert type(answer) is type(sample)
    else:
        assert isinstance(answer, int | float)


async def test_health_has_every_field_of_the_sample(client: httpx.AsyncClient) -> None:
    answer = await get(client, "/health")
    has_shape(
        answer,
        {
            "status": "healthy",
            "service": "enhanced-websocket-service",
            "version": "4.0.0",
            "service_info": {
                "name": "enhanced_websocket_service",
                "status": "active",
                "uptime_seconds": 1234,
            },
            "connectivity": {
                "database": {"connected": True, "response_time_ms": 5},
                "redis": {"connected": True, "response_time_ms": 2},
            },
            "system_resources": {
                "cpu_percent": 15.2,
                "memory_percent": 45.8,
                "disk_percent": 67.3,
            },
        },
    )
    assert answer["status"] == "healthy"
    assert answer["version"] == "4.0.0"
    assert answer["service"] == "enhanced-websocket-service"
    assert answer["service_info"]["name"] == "enhanced_websocket_service"
    assert answer["service_info"]["status"] == "active"


@pytest.mark.parametrize(
    ("state", "health", "ready"),
    [
        ("initializing", 200, 503),
        ("waiting_l0", 200, 503),
        ("checking_data", 200, 503),
        ("ready", 200, 200),
        ("active", 200, 200),
        ("market_closed", 200, 200),
        ("error", 503, 503),
        ("shutdown", 503, 503),
    ],
)
async def test_every_endpoint_answers_in_every_state(
    api: Running, client: httpx.AsyncClient, state: str, health: int, ready: int
) -> None:
    api.service.state = state
    for path, status in (
        ("/health", health),
        ("/health/ready", ready),
        ("/health/live", 200),
        ("/status", 200),
        ("/market/latest", 200),
        ("/market/session", 200),
    ):
        assert (await get(client, path, status))["service_status"] == state


async def test_a_part_down_degrades_health(api: Running, client: httpx.AsyncClient) -> None:
    api.service.redis = models.PartHealth(connected=False, error="REDIS_URL is not set.")
    answer = await get(client, "/health")
    assert answer["status"] == "degraded"
    assert answer["connectivity"]["redis"]["connected"] is False
    assert answer["problems"] == ["Redis is not connected: REDIS_URL is not set."]


async def test_status_has_every_field_of_the_sample(client: httpx.AsyncClient) -> None:
    answer = await get(client, "/status")
    has_shape(
        answer,
        {
            "service_status": "active",
            "is_running": True,
            "l0_integration": {
                "ready_signal_exists": True,
                "data_freshness_hours": 2.5,
                "completeness_percentage": 98.7,
                "is_fresh": True,
                "is_complete": True,
            },
            "market_session": {
                "status": "open",
                "current_session_start": "2025-01-20T08:00:00-05:00",
                "current_session_end": "2025-01-20T12:55:00-05:00",
                "minutes_until_close": 145,
            },
            "api_key_usage": {"total_keys": 16, "current_key_index": 3, "total_calls": 127},
            "realtime_collection": {"active": True, "websocket_connected": True},
        },
    )
    assert answer["state"]["reason"]
    assert answer["clients"]["connected"] == 0
    assert answer["market_session"]["current_session_start"] == "2025-06-04T08:00:00-05:00"


async def test_latest_is_the_ticks_own_time_and_its_age(client: httpx.AsyncClient) -> None:
    answer = await get(client, "/market/latest", params={"symbol": "usd/cop"})
    assert answer == {
        "symbol": "USDCOP",
        "price": 4100.25,
        "bid": 4100.0,
        "ask": 4100.5,
        "spread": 0.5,
        "volume": 0,
        "timestamp": "2025-06-04T08:00:25-05:00",
        "source": "simulator_websocket",
        "epoch": EPOCH,
        "offset": 25,
        "server_time": "2025-06-04T10:30:15-05:00",
        "age_seconds": NOON - tick(25).timestamp,
        "service_status": "active",
    }


async def test_no_price_yet_is_explained(api: Running, client: httpx.AsyncClient) -> None:
    api.service.last.clear()
    api.service.state, api.service.reason = "waiting_l0", "The L0 flag is absent."
    answer = await get(client, "/market/latest", 404)
    assert answer["error"] == "no_price_yet"
    assert "The L0 flag is absent." in answer["detail"]


async def test_session(client: httpx.AsyncClient) -> None:
    answer = await get(client, "/market/session")
    assert answer["status"] == "open"
    assert answer["minutes_until_close"] == 145
    assert answer["next_session_start"] == "2025-06-05T08:00:00-05:00"


async def test_bars_page_by_page_are_all_of_them(client: httpx.AsyncClient) -> None:
    query = {"start": "2025-06-04T08:00", "limit": 4}
    labels: list[str] = []
    pages = 0
    while True:
        answer = await get(client, "/market/bars", params=query)
        labels += [row["datetime"] for row in answer["data"]]
        pages += 1
        if answer["next_cursor"] is None:
            break
        query["cursor"] = answer["next_cursor"]
    assert pages == 3
    assert labels == [f"2025-06-04T08:{5 * n:02}:00-05:00" for n in range(10)]
    newest = await get(client, "/market/bars", params={"limit": 2})
    assert [row["datetime"] for row in newest["data"]] == labels[-2:]
    assert newest["data"][0].keys() >= {
        "open",
        "high",
        "low",
        "close",
        "volume",
        "source",
        "revision",
    }


async def test_ticks_page_by_page_are_all_of_them(client: httpx.AsyncClient) -> None:
    query: dict[str, Any] = {"cursor": f"{EPOCH}:0", "limit": 10}
    offsets: list[int] = []
    while query["cursor"] is not None:
        answer = await get(client, "/market/ticks", params=query)
        offsets += [row["offset"] for row in answer["data"]]
        query["cursor"] = answer["next_cursor"]
    assert offsets == list(range(1, 26))
    window = {"start": "2025-06-04T08:00:05-05:00", "end": "2025-06-04T13:00:08Z"}
    answer = await get(client, "/market/ticks", params=window)
    assert [row["offset"] for row in answer["data"]] == [5, 6, 7]


async def test_tables_by_accept(client: httpx.AsyncClient) -> None:
    params = {"start": "2025-06-04", "limit": 3}
    csv = await client.get("/market/bars", params=params, headers={"accept": "text/csv"})
    assert csv.headers["content-type"].startswith("text/csv")
    assert csv.headers["x-next-cursor"] == str(bar(2).open_time)
    assert len(csv.text.splitlines()) == 4
    arrow = await client.get(
        "/market/ticks", headers={"accept": "application/vnd.apache.arrow.stream"}
    )
    assert pl.read_ipc_stream(io.BytesIO(arrow.content))["offset"].to_list() == list(range(1, 26))
    refused = await get(client, "/market/bars", 406, headers={"accept": "image/png"})
    assert refused["error"] == "not_acceptable"


async def test_continuity(client: httpx.AsyncClient) -> None:
    answer = await get(client, "/market/continuity")
    assert (answer["date"], answer["expected"], answer["covered"]) == ("2025-06-04", 60, 10)
    assert answer["slots"][0]["status"] == "live"
    assert answer["slots"][59]["datetime"] == "2025-06-04T12:55:00-05:00"
    closed = await get(client, "/market/continuity", params={"date": "2025-06-07"})
    assert (closed["expected"], closed["slots"]) == (0, [])


async def test_continuity_of_a_range(client: httpx.AsyncClient) -> None:
    window = {"start": "2025-06-03", "end": "2025-06-08"}
    answer = await get(client, "/market/continuity", params=window)
    assert [day["date"] for day in answer["days"]] == [f"2025-06-0{n}" for n in (3, 4, 5, 6)]
    assert (answer["symbol"], answer["expected"], answer["covered"]) == ("USDCOP", 240, 10)
    assert answer["days"][1]["covered"] == 10


@pytest.mark.parametrize(
    ("path", "status", "error", "said"),
    [
        ("/nothing/here", 404, "not_found", "/nothing/here"),
        ("/market/latest?symbol=EURUSD", 404, "unknown_symbol", "known: USDCOP"),
        ("/market/bars?symbol=%00", 404, "unknown_symbol", "USDCOP"),
        ("/market/bars?limit=0", 422, "invalid_parameter", "'limit'"),
        ("/market/bars?limit=10001", 422, "invalid_parameter", "'limit'"),
        ("/market/bars?limit=many", 422, "invalid_parameter", "'limit'"),
        ("/market/bars?interval=7min", 422, "invalid_parameter", "5min"),
        ("/market/bars?start=yesterday", 422, "invalid_parameter", "'start'"),
        ("/market/bars?start=2025-02-30", 422, "invalid_parameter", "'start'"),
        ("/market/bars?start=2025-02-02&end=2025-02-01", 422, "invalid_parameter", "before end"),
        ("/market/bars?strat=2025-02-02", 422, "invalid_parameter", "'strat'"),
        ("/market/bars?cursor=abc", 422, "invalid_parameter", "'cursor'"),
        ("/market/ticks?cursor=12", 422, "invalid_parameter", "EPOCH:OFFSET"),
        ("/market/ticks?source=a%20b", 422, "invalid_parameter", "'source'"),
        ("/market/continuity?date=2025-13-01", 422, "invalid_parameter", "'date'"),
        ("/market/continuity?start=2025-06-01", 422, "invalid_parameter", "belong together"),
        ("/market/continuity?start=2025-06-02&end=2025-06-01", 422, "invalid_parameter", "after"),
        (
            "/market/continuity?start=2025-06-02&end=2025-06-02&date=2025-06-02",
            *(422, "invalid_parameter", "either"),
        ),
        ("/market/continuity?start=2020-06-02&end=2025-06-02", 422, "invalid_parameter", "1100"),
        ("/assets/../api.py", 404, "not_found", ""),
        ("/assets/secret", 404, "not_found", "secret"),
    ],
)
async def test_refusals_name_what_is_wrong(
    client: httpx.AsyncClient, path: str, status: int, error: str, said: str
) -> None:
    answer = await get(client, path, status)
    assert answer["error"] == error
    assert said in answer["detail"]


async def test_methods_are_refused_with_what_is_allowed(client: httpx.AsyncClient) -> None:
    answer = await client.post("/status")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD")
    assert answer.json()["error"] == "method_not_allowed"


async def test_a_database_outage_is_a_503_without_secrets(
    api: Running, client: httpx.AsyncClient
) -> None:
    api.service.database_down = True
    answer = await client.get("/market/bars")
    assert (answer.status_code, answer.json()["error"]) == (503, "database_unavailable")
    assert answer.headers["retry-after"] == "5"
    assert "secret" not in answer.text
    await get(client, "/market/latest")


async def test_a_fault_of_ours_is_a_500_without_internals_logged_once(
    api: Running, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise ZeroDivisionError("the secret of the house")

    api.service.broken = fail
    with structlog.testing.capture_logs() as logs:
        answer = await get(client, "/status", 500)
    assert answer["error"] == "internal_error"
    assert "secret" not in answer["detail"]
    assert [line["event"] for line in logs] == ["A request failed"]
    assert not caplog.records, "uvicorn does not log it a second time"
    api.service.broken = lambda: None
    await get(client, "/status")


async def test_metrics(client: httpx.AsyncClient) -> None:
    answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "ews_clients 0.0" in answer.text


async def test_pages_contact_nobody_else(client: httpx.AsyncClient) -> None:
    for path in ("/", "/docs"):
        page = await client.get(path)
        assert page.status_code == 200
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "http" not in policy
        links = [part.split('"')[0] for part in page.text.split('src="')[1:]]
        links += [part.split('"')[0] for part in page.text.split('href="')[1:]]
        for link in links:
            assert link.startswith(("/", "data:")), link
            if link.startswith("/"):
                assert (await client.get(link)).status_code == 200
        assert "<script>" not in page.text


async def test_standard_headers(client: httpx.AsyncClient) -> None:
    for path in ("/status", "/nowhere"):
        headers = (await client.get(path)).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"


async def test_cors_is_for_the_listed_origins_only() -> None:
    async with (
        running(cors_origins=["https://a.example"]) as api,
        httpx.AsyncClient(base_url=api.url) as client,
    ):
        good = await client.get("/status", headers={"origin": "https://a.example"})
        bad = await client.get("/status", headers={"origin": "https://b.example"})
        assert good.headers["access-control-allow-origin"] == "https://a.example"
        assert "access-control-allow-origin" not in bad.headers
    async with (
        running(cors_origins=["*"]) as api,
        httpx.AsyncClient(base_url=api.url) as client,
    ):
        answer = await client.get("/status", headers={"origin": "https://c.example"})
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in answer.headers
