"""The simulator on a real port: HTTP, WebSocket and control paths as clients see them."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.twelvedata.simulator import (
    BadFault,
    Simulator,
    SimulatorConfig,
)

from .parts import OPEN, ManualClock, bar_market, candles

SUBSCRIBE = json.dumps({"action": "subscribe", "params": {"symbols": "USD/COP"}})
MARKET = bar_market(candles(60))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(OPEN - 1)


@pytest.fixture
async def simulator(clock: ManualClock) -> AsyncIterator[Simulator]:
    made = Simulator(SimulatorConfig(MARKET), clock)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def http(simulator: Simulator) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=simulator.rest_url) as client:
        yield client


def dial(simulator: Simulator, key: str = "k", **options: Any) -> connect:
    return connect(f"{simulator.ws_url}?apikey={key}", proxy=None, **options)


async def received(ws: ClientConnection, count: int) -> list[Any]:
    return [json.loads(await ws.recv()) for _ in range(count)]


async def test_every_tick_reaches_every_client_once_and_stands_in_the_ledger(
    simulator: Simulator, clock: ManualClock, http: httpx.AsyncClient
) -> None:
    source = MARKET.get("USD/COP")
    assert source is not None
    expected = source.ticks(OPEN, OPEN + 18_000)
    async with dial(simulator) as first, dial(simulator, "other") as second:
        for ws in (first, second):
            await ws.send(SUBSCRIBE)
            assert (await received(ws, 1))[0]["status"] == "ok"
        await clock.move_to(OPEN + 3000)
        await clock.move_to(OPEN + 18_000)
        for ws in (first, second):
            prices = await received(ws, len(expected))
            got = [(p["timestamp"], p["price"], p.get("bid"), p.get("ask")) for p in prices]
            assert got == expected
    answer = await http.get("/_sim/sent", params={"symbol": "USDCOP"})
    assert [tuple(entry.values())[:4] for entry in answer.json()] == expected
    window: dict[str, str | int] = {
        "start": OPEN + 300,
        "end": "2025-06-03T13:10:00+00:00",
        "format": "ndjson",
    }
    lines = (await http.get("/_sim/sent", params=window)).text.splitlines()
    inside = source.ticks(OPEN + 300, OPEN + 600)
    assert [json.loads(line)["timestamp"] for line in lines] == [t.timestamp for t in inside]
    status = (await http.get("/_sim/status")).json()
    assert status["sent"]["USD/COP"]["ticks"] == len(expected)
    assert status["now"] == OPEN + 18_000


async def test_key_by_query_or_header(simulator: Simulator) -> None:
    async with dial(simulator):
        pass
    headers = {"X-TD-APIKEY": "k"}
    async with connect(simulator.ws_url, additional_headers=headers, proxy=None) as ws:
        await ws.send('{"action":"heartbeat"}')
        assert await received(ws, 1) == [{"event": "heartbeat", "status": "ok"}]


@pytest.mark.parametrize("query", ["", "?apikey=", "?apikey=invalid"])
async def test_a_bad_key_is_refused_at_the_handshake(simulator: Simulator, query: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(simulator.ws_url + query, proxy=None)
    response = refused.value.response
    assert response.status_code == 401
    assert response.headers["content-type"] == "application/json; charset=utf-8"
    assert json.loads(response.body)["code"] == 401


async def test_a_wrong_websocket_path_is_a_404(simulator: Simulator) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(simulator.ws_url.removesuffix("/price") + "?apikey=k", proxy=None)
    assert refused.value.response.status_code == 404


async def test_pings_are_answered_even_when_mute(simulator: Simulator, clock: ManualClock) -> None:
    simulator.inject({"mute": True})
    async with dial(simulator) as ws:
        await ws.send(SUBSCRIBE)
        assert (await received(ws, 1))[0]["status"] == "ok"
        await clock.move_to(OPEN + 600)
        await (await ws.ping("ping"))
        await ws.send('{"action":"heartbeat"}')
        assert (await received(ws, 1))[0]["event"] == "heartbeat"


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011])
async def test_closing_with_a_code(simulator: Simulator, code: int) -> None:
    async with dial(simulator) as ws:
        await ws.send(SUBSCRIBE)
        await ws.recv()
        simulator.inject({"close": code})
        with pytest.raises(ConnectionClosed) as closed:
            await ws.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == code
    assert simulator.status()["clients"] == []


async def test_dropping_resets_the_connection(simulator: Simulator) -> None:
    async with dial(simulator) as ws:
        await ws.send(SUBSCRIBE)
        await ws.recv()
        simulator.inject({"drop": True})
        with pytest.raises(ConnectionClosed) as closed:
            await ws.recv()
        assert closed.value.rcvd is None
        assert isinstance(closed.value.__cause__, ConnectionResetError)


async def test_refusing_the_handshake_until_it_is_cleared(
    simulator: Simulator, http: httpx.AsyncClient
) -> None:
    answer = await http.post("/_sim/faults", json={"refuse_handshake": 503})
    assert answer.json()["faults"]["refuse_handshake"] == 503
    with pytest.raises(InvalidStatus) as refused:
        await dial(simulator)
    assert refused.value.response.status_code == 503
    await http.delete("/_sim/faults")
    async with dial(simulator):
        pass


async def test_garbage_frames_arrive_as_text(simulator: Simulator) -> None:
    async with dial(simulator) as ws:
        await ws.send("not json")
        assert (await received(ws, 1))[0]["messages"] == ["Cant parse message"]
        simulator.inject({"garbage_frames": 6})
        frames = [await ws.recv() for _ in range(6)]
        assert all(isinstance(frame, str) for frame in frames)


async def test_the_oldest_connection_gives_way(simulator: Simulator) -> None:
    async with dial(simulator) as oldest, dial(simulator), dial(simulator), dial(simulator):
        with pytest.raises(ConnectionClosed) as closed:
            await oldest.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


async def test_rest_key_by_header_or_query(http: httpx.AsyncClient, clock: ManualClock) -> None:
    await clock.move_to(OPEN + 600)
    for url, headers in (
        ("/price?symbol=USD/COP&apikey=k", {}),
        ("/price?symbol=USD%2FCOP", {"Authorization": "apikey k"}),
        ("/price?symbol=USD/COP&apikey=invalid", {"authorization": "ApiKey k"}),
    ):
        answer = await http.get(url, headers=headers)
        assert answer.status_code == 200
        assert answer.headers["api-credits-request"] == "1"
        assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert (await http.get("/price?symbol=USD/COP")).status_code == 401
    answer = await http.get("/time_series?symbol=USD/COP&interval=5min&format=CSV&apikey=k")
    assert answer.headers["content-type"] == "text/csv"
    body = {"a": {"url": "/price?symbol=USD/COP&apikey=k"}}
    answer = await http.post("/batch", json=body)
    assert answer.json()["data"]["a"]["status"] == "success"


async def test_control_says_what_it_knows(http: httpx.AsyncClient) -> None:
    known = (await http.get("/_sim/faults")).json()["known"]
    refused = await http.post("/_sim/faults", json={"explode": True})
    assert refused.status_code == 400
    assert "explode" in refused.json()["detail"]
    assert all(name in refused.json()["detail"] for name in known)
    assert (await http.post("/_sim/faults", content=b"{")).status_code == 400
    assert (await http.post("/_sim/faults", content=b"\xff")).status_code == 400
    assert (await http.get("/_sim/nothing")).status_code == 404
    assert (await http.get("/_sim/sent?symbol=EUR/USD")).status_code == 404
    assert (await http.get("/_sim/sent?symbol=dollars")).status_code == 400
    assert (await http.get("/_sim/sent?start=noon")).status_code == 400


async def test_calls_and_answers_are_counted(http: httpx.AsyncClient, simulator: Simulator) -> None:
    await http.get("/price?symbol=NO/SUCH&apikey=k")
    await http.get("/wp-login.php")
    status = simulator.status()
    assert status["calls"] == {"/price": 1, "unknown": 1}
    assert status["answers"] == {"404": 2}


async def test_a_body_that_is_too_large(http: httpx.AsyncClient) -> None:
    assert (await http.post("/batch", content=b"x" * 1_000_001)).status_code == 413


async def test_a_taken_port_is_a_clear_error(simulator: Simulator, clock: ManualClock) -> None:
    port = int(simulator.rest_url.rpartition(":")[2])
    another = Simulator(SimulatorConfig(MARKET), clock)
    with pytest.raises(ConfigurationError, match=f"cannot listen on 127.0.0.1:{port}"):
        await another.start(port=port)
    await another.stop()


async def test_stop_says_goodbye_and_frees_the_port(clock: ManualClock) -> None:
    simulator = Simulator(SimulatorConfig(MARKET), clock)
    port = await simulator.start()
    waiting = asyncio.create_task(simulator.wait(), name="waiting")
    async with dial(simulator) as ws:
        await ws.send(SUBSCRIBE)
        await ws.recv()
        await simulator.stop()
        with pytest.raises(ConnectionClosed) as closed:
            await ws.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    await waiting
    await simulator.stop()
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_the_process_can_run_several_at_once(clock: ManualClock) -> None:
    several = [Simulator(SimulatorConfig(MARKET, plan=plan), clock) for plan in ("basic", "pro")]
    ports = [await one.start() for one in several]
    assert len(set(ports)) == 2
    for one in several:
        async with dial(one) as ws:
            await ws.send(SUBSCRIBE)
            status = json.loads(await ws.recv())
            assert status["status"] == ("error" if one is several[0] else "ok")
    for one in several:
        await one.stop()


async def test_configuration_errors(simulator: Simulator) -> None:
    with pytest.raises(ConfigurationError, match="plan 'gold' is unknown"):
        Simulator(SimulatorConfig(MARKET, plan="gold"), ManualClock())
    with pytest.raises(BadFault, match="unknown fault 'explode'"):
        simulator.inject({"explode": True})


async def test_every_request_is_on_record_without_its_key(
    simulator: Simulator, clock: ManualClock, http: httpx.AsyncClient
) -> None:
    await clock.move_to(OPEN + 3000)
    question = {
        "symbol": "USD/COP",
        "interval": "5min",
        "start_date": "2025-06-03T13:00:00",
        "end_date": "2025-06-03T13:20:00",
        "timezone": "UTC",
    }
    headers = {"Authorization": "apikey a-secret-key"}
    answer = await http.get("/time_series", params=question, headers=headers)
    await http.get("/time_series", params={**question, "format": "CSV"}, headers=headers)
    await http.get("/price", params={"symbol": "USD/COP", "apikey": "invalid"})
    requests = (await http.get("/_sim/requests")).json()["requests"]
    assert [(one["path"], one["status"], one["rows"]) for one in requests] == [
        ("/time_series", 200, len(answer.json()["values"])),
        ("/time_series", 200, 0),
        ("/price", 401, 0),
    ]
    first = requests[0]
    assert (first["first"], first["last"]) == ("2025-06-03 13:00:00", "2025-06-03 13:20:00")
    assert (first["start_date"], first["timezone"]) == ("2025-06-03T13:00:00", "UTC")
    assert "secret" not in json.dumps(requests)
    assert first["key"] == requests[1]["key"] != requests[2]["key"]
