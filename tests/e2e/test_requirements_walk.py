"""Every endpoint, field, message and row of the requester's document, asked of a running service.

``running_service`` is a service in the middle of a session that has collected ticks, with all its
parts up: ``base_url`` (http://host:port), ``ws_url`` (ws://host:port), ``database_dsn``, ``redis_url``.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from typing import Any, Protocol

import asyncpg
import httpx
import pytest
from redis.asyncio import Redis
from websockets.asyncio.client import ClientConnection, connect

from tests.requirements import facts

# One service for all of them: they run in one process, one after another.
pytestmark = pytest.mark.xdist_group("running-service")

PATIENCE_S = 30.0
BOGOTA_OFFSET = timedelta(hours=-5)

NULL_ALLOWED = {
    # field -> why it may be null although the sample shows a value (decisions, section 10)
    "/market/latest.bid": "the vendor sent none",
    "/market/latest.ask": "the vendor sent none",
    "/market/latest.spread": "the vendor sent no bid or no ask",
}
SESSION_FIELDS: dict[str, type | tuple[type, ...]] = {
    "status": str,
    "is_trading_day": bool,
    "holiday": (str, type(None)),
    "current_session_start": (str, type(None)),
    "current_session_end": (str, type(None)),
    "minutes_until_close": (int, type(None)),
    "next_session_start": str,
    "next_session_end": str,
    "minutes_until_open": (int, type(None)),
}


class Service(Protocol):
    """What the fixture ``running_service`` gives."""

    base_url: str
    ws_url: str
    database_dsn: str
    redis_url: str


@pytest.fixture
async def client(running_service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running_service.base_url, timeout=10) as client:
        yield client


def faults(sample: Any, answer: Any, path: str) -> Iterator[str]:
    """Where ``answer`` lacks a field of ``sample`` or has another type there. More is allowed."""
    if isinstance(sample, dict):
        if not isinstance(answer, dict):
            yield f"{path} is {answer!r}, not an object"
            return
        for name, value in sample.items():
            if name in answer:
                yield from faults(value, answer[name], f"{path}.{name}")
            else:
                yield f"{path}.{name} is missing"
    elif answer is None:
        if path not in NULL_ALLOWED:
            yield f"{path} is null"
    elif isinstance(sample, float):
        if isinstance(answer, bool) or not isinstance(answer, int | float):
            yield f"{path} is {answer!r}, not a number"
    elif type(answer) is not type(sample):
        yield f"{path} is {answer!r}, sample {sample!r}"
    elif isinstance(sample, str) and sample.startswith("2025-"):
        yield from not_a_local_time(answer, path)


def not_a_local_time(text: str, path: str) -> Iterator[str]:
    """Times leave the service as ISO 8601 with the offset of Bogota."""
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        yield f"{path} is {text!r}, not ISO 8601"
        return
    if instant.utcoffset() != BOGOTA_OFFSET or "T" not in text:
        yield f"{path} is {text!r}, not a time with the offset of America/Bogota"


@pytest.mark.parametrize("path", facts.SAMPLES)
async def test_answers_have_every_field_of_the_samples(
    client: httpx.AsyncClient, path: str
) -> None:
    response = await client.get(path)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("application/json")
    answer = response.json()
    assert list(faults(facts.SAMPLES[path], answer, path)) == []


async def test_health_says_what_the_sample_says(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/health")).json()
    sample = facts.SAMPLES["/health"]
    for name in ("status", "service", "version"):
        assert answer[name] == sample[name]
    assert answer["service_info"]["name"] == sample["service_info"]["name"]
    assert answer["service_info"]["status"] == "active"
    assert answer["connectivity"]["database"]["connected"] is True
    assert answer["connectivity"]["redis"]["connected"] is True
    for part in answer["system_resources"].values():
        assert 0 <= part <= 100


async def test_status_is_consistent(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/status")).json()
    assert answer["service_status"] == "active"
    assert answer["is_running"] is True
    session = answer["market_session"]
    start = datetime.fromisoformat(session["current_session_start"])
    end = datetime.fromisoformat(session["current_session_end"])
    assert (start.time().isoformat(), end.time().isoformat()) == ("08:00:00", "12:55:00")
    assert session["status"] == "open"
    assert 0 < session["minutes_until_close"] <= 295
    keys = answer["api_key_usage"]
    assert 0 <= keys["current_key_index"] < keys["total_keys"] <= 16
    assert answer["realtime_collection"]["active"] is True


async def test_latest_price_is_consistent(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/market/latest")).json()
    assert answer["symbol"] == "USDCOP"
    assert answer["price"] > 0
    if answer["bid"] is not None and answer["ask"] is not None:
        assert answer["spread"] == pytest.approx(answer["ask"] - answer["bid"], abs=1e-6)
    else:
        assert answer["spread"] is None
    assert list(not_a_local_time(answer["server_time"], "server_time")) == []
    age = datetime.fromisoformat(answer["server_time"]) - datetime.fromisoformat(
        answer["timestamp"]
    )
    assert answer["age_seconds"] == pytest.approx(age.total_seconds(), abs=0.001)
    # The market of this test is simulated, and says so.
    assert answer["source"] in ("simulator_websocket", "simulator_rest")


async def test_session_has_its_fields(client: httpx.AsyncClient) -> None:
    response = await client.get("/market/session")
    assert response.status_code == 200
    answer = response.json()
    for name, kind in SESSION_FIELDS.items():
        assert name in answer
        assert isinstance(answer[name], kind), f"{name} is {answer[name]!r}"
    assert answer["status"] == "open"
    assert answer["is_trading_day"] is True
    for name in SESSION_FIELDS:
        if name.endswith(("_start", "_end")):
            assert list(not_a_local_time(answer[name], name)) == []


@pytest.mark.parametrize("path", facts.REST_ENDPOINTS)
async def test_every_answer_has_a_time_and_the_state(client: httpx.AsyncClient, path: str) -> None:
    answer = (await client.get(path)).json()
    assert list(not_a_local_time(answer["timestamp"], f"{path}.timestamp")) == []
    assert answer["service_status"].upper() in facts.STATES


async def test_errors_are_explained(client: httpx.AsyncClient) -> None:
    response = await client.get("/no/such/page")
    assert response.status_code == 404
    answer = response.json()
    assert answer["error"]
    assert answer["detail"]
    assert list(not_a_local_time(answer["timestamp"], "timestamp")) == []
    assert answer["service_status"].upper() in facts.STATES


@pytest.mark.parametrize("path", facts.REST_ENDPOINTS)
async def test_endpoints_answer_get_only(client: httpx.AsyncClient, path: str) -> None:
    assert (await client.post(path)).status_code == 405


# --- WebSocket ----------------------------------------------------------------------------------


async def next_of(socket: ClientConnection, kind: str) -> dict[str, Any]:
    """The next message of ``kind``; others may come before it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            message: dict[str, Any] = json.loads(await socket.recv())
            if message["type"] == kind:
                return message


@pytest.mark.parametrize("path", ["/ws", "/ws/USDCOP"])
async def test_the_client_of_the_document_works(running_service: Service, path: str) -> None:
    async with connect(f"{running_service.ws_url}{path}") as socket:
        await socket.send(json.dumps(facts.CLIENT_SENDS))
        answer = await next_of(socket, "heartbeat_response")
        assert answer["server_status"] == "active"
        assert list(not_a_local_time(answer["timestamp"], "timestamp")) == []
        update = await next_of(socket, "market_data")
        sample = facts.SAMPLES["/market/latest"]
        assert list(faults(sample, update["data"], "/market/latest")) == []
        assert update["symbol"] == update["data"]["symbol"] == "USDCOP"
        assert update["data"].keys() == sample.keys()


async def test_welcome_comes_first(running_service: Service) -> None:
    async with connect(f"{running_service.ws_url}/ws") as socket:
        async with asyncio.timeout(PATIENCE_S):
            welcome = json.loads(await socket.recv())
        assert welcome["type"] == "welcome"
        assert "USDCOP" in welcome["symbols"]
        assert welcome["offsets"]["USDCOP"] >= 0
        assert welcome["epoch"] > 0


async def test_unknown_symbol_is_refused_with_a_reason(running_service: Service) -> None:
    async with connect(f"{running_service.ws_url}/ws/NOSUCH") as socket:
        error = await next_of(socket, "error")
        assert "NOSUCH" in error["message"]
        async with asyncio.timeout(PATIENCE_S):
            await socket.wait_closed()
        assert socket.close_code == 4404


async def test_bad_json_is_answered_and_survived(running_service: Service) -> None:
    async with connect(f"{running_service.ws_url}/ws") as socket:
        await socket.send("{not json")
        assert (await next_of(socket, "error"))["message"]
        await socket.send(json.dumps(facts.CLIENT_SENDS))
        await next_of(socket, "heartbeat_response")


# --- what is stored and cached ------------------------------------------------------------------


@pytest.fixture
async def database(running_service: Service) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(running_service.database_dsn)
    try:
        yield connection
    finally:
        await connection.close()


async def test_ticks_are_stored(running_service: Service, database: asyncpg.Connection) -> None:
    async with connect(f"{running_service.ws_url}/ws") as socket:
        seen = await next_of(socket, "market_data")
    query = """
        SELECT symbol, time, bid, ask, last, volume, spread, session_date, trading_session, source
        FROM realtime_market_data WHERE symbol = $1 AND epoch = $2 AND tick_offset = $3
    """
    async with asyncio.timeout(PATIENCE_S):  # the writer commits batches behind the publisher
        while (
            row := await database.fetchrow(query, seen["symbol"], seen["epoch"], seen["offset"])
        ) is None:
            await asyncio.sleep(0)
    data = seen["data"]
    assert float(row["last"]) == data["price"]
    for name in ("bid", "ask", "spread"):
        assert (None if row[name] is None else float(row[name])) == data[name]
    assert row["volume"] == data["volume"]
    assert row["source"] == data["source"]
    stamp = datetime.fromisoformat(data["timestamp"])
    assert row["time"] == stamp
    assert row["session_date"] == stamp.date()
    assert row["trading_session"] is True


async def test_history_and_health_are_stored(database: asyncpg.Connection) -> None:
    bars = await database.fetchrow(
        "SELECT count(*) AS n, count(*) FILTER (WHERE source IS NULL) AS anonymous,"
        " count(*) FILTER (WHERE low > least(open, close) OR high < greatest(open, close)) AS wrong"
        " FROM market_data WHERE symbol = 'USDCOP'"
    )
    assert bars["n"] > 0
    assert (bars["anonymous"], bars["wrong"]) == (0, 0)
    states = {row["status"] for row in await database.fetch("SELECT status FROM system_health")}
    # WAITING_L0 may be too short to be seen: the flag is there when the service looks.
    assert {"checking_data", "ready", "active"} <= states
    assert not {"error"} & states


async def test_latest_price_is_cached_under_the_known_key(running_service: Service) -> None:
    async with Redis.from_url(running_service.redis_url) as redis:
        cached = json.loads(await redis.get("usdcop:latest_price"))
        assert cached.keys() == facts.SAMPLES["/market/latest"].keys()
        assert 0 < await redis.ttl("usdcop:latest_price") <= 300
        async with redis.pubsub() as channel, asyncio.timeout(PATIENCE_S):
            await channel.subscribe("market_data:realtime")
            async for message in channel.listen():
                if message["type"] == "message":
                    update = json.loads(message["data"])
                    break
    assert update["type"] == "price_update"
    assert update["data"].keys() == cached.keys()


# --- the rules above can fail -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"symbol": "USDCOP"}, "/market/latest.price is missing"),
        ({"price": "4275.45"}, "/market/latest.price is '4275.45', not a number"),
        ({"price": None}, "/market/latest.price is null"),
        ({"volume": 1.5}, "/market/latest.volume is 1.5, sample 125000"),
        ({"timestamp": "2025-01-20T15:30:15+00:00"}, "not a time with the offset"),
    ],
)
def test_a_wrong_answer_is_noticed(answer: dict[str, Any], expected: str) -> None:
    found = list(faults(facts.SAMPLES["/market/latest"], answer, "/market/latest"))
    assert any(expected in fault for fault in found)
