"""What every HTTP client may take for granted (RFC 9110), byte by byte over raw sockets."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec
import pytest
import structlog
from starlette.routing import Route
from websockets.asyncio.client import connect

from enhanced_websocket_service.serving.api import create_app
from enhanced_websocket_service.serving.limits import Limits
from enhanced_websocket_service.serving.pages import assets
from enhanced_websocket_service.telemetry import Metrics
from tests.unit.serving.fakes import FakeService, Running, bar, make_hub, running, tick

STORED = ("/market/bars", "/market/ticks", "/market/continuity")
VARYING = {"date", "content-length"} | {"x-next-cursor"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> str:
        return str(msgspec.json.decode(self.body)["error"])

    @property
    def detail(self) -> str:
        return str(msgspec.json.decode(self.body)["detail"])


class Peer:
    """One connection, on which every byte is read and every byte is accounted for."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def ask(self, line: str, *headers: str, version: str = "HTTP/1.1") -> Answer:
        self.send(line, *headers, version=version)
        return await self.answer(head=line.startswith("HEAD "))

    def send(self, line: str, *headers: str, version: str = "HTTP/1.1") -> None:
        self.writer.write("\r\n".join([f"{line} {version}", "Host: x", *headers, "", ""]).encode())

    async def answer(self, *, head: bool) -> Answer:
        """The next answer; to a HEAD nothing may follow its headers, which the one after it shows."""
        async with asyncio.timeout(20):
            text = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            first, *lines = text.strip().split("\r\n")
            assert first.startswith("HTTP/1.1 "), f"bytes of a body before {first!r}"
            headers = dict(line.lower().split(": ", 1) for line in lines)
            body = b""
            if not head:
                body = await self.reader.readexactly(int(headers["content-length"]))
            return Answer(int(first.split()[1]), headers, body)

    async def rest(self) -> bytes:
        """What comes until the server closes."""
        async with asyncio.timeout(20):
            return await self.reader.read()


@pytest.fixture
async def api() -> AsyncIterator[Running]:
    service = FakeService()
    service.stored_ticks = [tick(n) for n in range(1, 4)]
    service.stored_bars = [bar(n) for n in range(3)]
    service.last["USDCOP"] = tick(3)
    async with running(service, Limits(handshake_s=30.0)) as started:
        yield started


async def dial(api: Running) -> Peer:
    return Peer(*await asyncio.open_connection("127.0.0.1", api.server.port))


@pytest.fixture
async def peer(api: Running) -> AsyncIterator[Peer]:
    made = await dial(api)
    yield made
    made.writer.close()


def paths() -> list[str]:
    """Every path that has a GET, also those that are in no description."""
    app = create_app(FakeService(), make_hub(), Metrics().registry)
    found = {one.path for one in app.routes if isinstance(one, Route) and "GET" in one.methods}
    assert len(found) >= 15
    found |= {f"/assets/{name}" for name in assets()}
    return sorted(path.replace("{symbol:path}", "USDCOP") for path in found)


async def test_head_is_get_without_its_body_everywhere(peer: Peer) -> None:
    for path in paths():
        head, get = await peer.ask(f"HEAD {path}"), await peer.ask(f"GET {path}")
        assert head.status == get.status, path
        wanted = {name: value for name, value in get.headers.items() if name not in VARYING}
        if path == "/status":  # its memory and counts move
            assert wanted.items() <= head.headers.items()
        elif path in STORED:
            assert "content-length" not in head.headers, "only reading would tell"
        elif path not in ("/health", "/metrics"):
            assert head.headers["content-length"] == get.headers["content-length"], path
        assert wanted.items() <= head.headers.items(), path
        assert "transfer-encoding" not in head.headers


async def test_an_error_has_no_body_either_and_the_connection_goes_on(
    api: Running, peer: Peer
) -> None:
    api.service.last.clear()
    with structlog.testing.capture_logs():
        for line, status in (
            ("/nothing/here", 404),
            ("/assets/secret", 404),
            ("/market/latest", 404),
            ("/market/bars?limit=0", 422),
            ("/market/ticks?symbol=EURUSD", 404),
            ("/market/continuity?date=x", 422),
            ("/market/session?date=2025-06-04", 422),
            ("/ws", 426),
        ):
            answer = await peer.ask(f"HEAD {line}")
            assert (answer.status, answer.headers["content-type"]) == (status, "application/json")
            assert int(answer.headers["content-length"]) > 0
        refused = await peer.ask("HEAD /market/bars", "Accept: image/png")
        assert refused.status == 406

        def breaks() -> None:
            raise RuntimeError("secret detail")

        api.service.broken = breaks
        assert (await peer.ask("HEAD /status")).status == 500
        api.service.state = "error"
        assert (await peer.ask("HEAD /health")).status == 503
    assert (await peer.ask("GET /health/live")).body.startswith(b"{")


async def test_head_of_stored_rows_validates_and_asks_nobody(api: Running, peer: Peer) -> None:
    api.service.database_down = True  # whoever asks gets a 503
    for path in STORED:
        assert (await peer.ask(f"HEAD {path}")).status == 200
        assert (await peer.ask(f"GET {path}")).status == 503
    csv = await peer.ask("HEAD /market/bars", "Accept: text/csv")
    assert csv.headers["content-type"] == "text/csv; charset=utf-8"
    assert (csv.headers["vary"], csv.headers["x-service-status"]) == ("accept", "active")


async def test_pipelined_heads_are_answered_in_order(peer: Peer) -> None:
    for line in ("HEAD /health", "HEAD /nothing", "GET /health/live", "HEAD /docs"):
        peer.send(line)
    answers = [await peer.answer(head=head) for head in (True, True, False, True)]
    assert [one.status for one in answers] == [200, 404, 200, 200]


async def test_http_1_0(api: Running) -> None:
    for path in ("/health/live", "/nothing", "/assets/style.css", "/market/bars"):
        peer = await dial(api)
        answer = await peer.ask(f"HEAD {path}", version="HTTP/1.0")
        assert answer.headers["connection"] == "close"
        assert await peer.rest() == b""
        peer.writer.close()


async def test_what_the_guard_refuses_has_no_body_for_head(api: Running) -> None:
    # Headers that never end; a line that is no HTTP. Before there is a method a body is right.
    for request, status, body in (
        (b"HEAD / HTTP/1.1\r\nX: " + b"x" * 40_000, 431, b""),
        (b"HEAD / HTTP/1.1\r\nbad\x00header: 1\r\n\r\n", 400, b""),
        (b"GET / HTTP/1.1\r\nbad\x00header: 1\r\n\r\n", 400, b"Invalid HTTP request received."),
        (b"\x16\x03\x01 HEAD\r\n\r\n", 400, b"Invalid HTTP request received."),
    ):
        peer = await dial(api)
        peer.writer.write(request)
        answer = await peer.answer(head=True)
        assert answer.status == status
        assert await peer.rest() == body
        peer.writer.close()
    peer = await dial(api)
    await peer.ask("HEAD /health")
    peer.writer.write(b"\x16\x03\x01\r\n\r\n")
    assert (await peer.answer(head=False)).body, "what follows a HEAD is none"
    peer.writer.close()


async def test_head_is_no_handshake(peer: Peer) -> None:
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13")
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    assert (await peer.ask("HEAD /ws", *upgrade, key)).status == 426
    assert (await peer.ask("HEAD /health", *upgrade, key)).status == 200
    assert (await peer.ask("GET /health/live")).status == 200


@pytest.mark.parametrize("path", ["/ws", "/ws/", "/ws/USDCOP", "/ws/USD/COP/", "/ws/usd%2Fcop"])
async def test_without_upgrade_websockets_are_426(peer: Peer, path: str) -> None:
    answer = await peer.ask(f"GET {path}")
    assert (answer.status, answer.error) == (426, "upgrade_required")
    assert answer.headers["upgrade"] == "websocket"
    assert answer.headers["connection"] == "upgrade"
    assert "WebSocket client" in answer.detail
    assert (await peer.ask("GET /health/live")).status == 200, "the connection goes on"


async def test_the_wrong_method_is_told_the_right_ones(peer: Peer) -> None:
    for path in [*paths(), "/health/", "/ws/"]:
        for method in ("POST", "OPTIONS"):
            answer = await peer.ask(f"{method} {path}", "Content-Length: 0")
            assert (answer.status, answer.headers["allow"]) == (405, "get, head"), path
            assert "it supports GET, HEAD." in answer.detail


async def test_a_trailing_slash_changes_nothing(peer: Peer) -> None:
    for path in paths():
        if path == "/":
            continue
        plain, slashed = await peer.ask(f"HEAD {path}"), await peer.ask(f"HEAD {path}/")
        assert (slashed.status, slashed.headers["content-type"]) == (
            plain.status,
            plain.headers["content-type"],
        )
    assert (await peer.ask("HEAD /health//")).status == 404
    assert (await peer.ask("HEAD //")).status == 404
    answer = await peer.ask("GET /market/bars/?limit=1")
    assert len(msgspec.json.decode(answer.body)["data"]) == 1, "with its query"
    assert "'lmit'" in (await peer.ask("GET /market/bars/?lmit=1")).detail


@pytest.mark.parametrize("path", ["/ws/", "/ws/USDCOP/", "/ws/USD/COP/", "/ws/?mode=latest"])
async def test_a_trailing_slash_changes_nothing_for_websockets(api: Running, path: str) -> None:
    async with connect(api.ws + path) as client:
        welcome = msgspec.json.decode(await client.recv())
        assert (welcome["type"], welcome["symbols"]) == ("welcome", ["USDCOP"])


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/market/session", "known: symbol."),
        ("/market/latest", "known: symbol."),
        ("/market/continuity", "known: symbol, date, start, end."),
        ("/market/bars", "known: symbol, start, end, limit, as_of, source, interval, cursor."),
        ("/market/ticks", "known: symbol, start, end, limit, as_of, source, cursor."),
    ],
)
async def test_unknown_parameters_are_named_beside_the_known_ones(
    peer: Peer, path: str, known: str
) -> None:
    answer = await peer.ask(f"GET {path}?dat=2025-06-02")
    assert (answer.status, answer.error) == (422, "invalid_parameter")
    assert "'dat'" in answer.detail
    assert known in answer.detail


async def test_elsewhere_unknown_parameters_are_ignored(peer: Peer) -> None:
    """Probes add one so that no cache answers them."""
    for path in paths():
        if not path.startswith("/market/"):
            plain, busted = await peer.ask(f"GET {path}"), await peer.ask(f"GET {path}?x=17")
            assert plain.status == busted.status, path
