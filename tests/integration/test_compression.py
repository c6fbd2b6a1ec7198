"""permessage-deflate on real sockets: what is negotiated, what is sent, and what a client may send."""

import asyncio
import contextlib
import logging
import random
import zlib
from collections.abc import AsyncIterator

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory

from enhanced_websocket_service.serving.limits import Limits
from tests.unit.serving.fakes import Running, bar_update, running, tick, until

from .abuse.cases import frame
from .abuse.rfc6455 import CONT, PING, TEXT

OURS = "server_no_context_takeover; client_no_context_takeover"


@contextlib.asynccontextmanager
async def handshake(
    api: Running, offer: str
) -> AsyncIterator[tuple[str, asyncio.StreamReader, asyncio.StreamWriter]]:
    """The extensions that the server chose for ``offer``, and the open connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Extensions: %s\r\n\r\n" % offer.encode()
    )
    async with asyncio.timeout(40):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    assert head.startswith("HTTP/1.1 101 ")
    chosen = [line for line in head.splitlines() if line.startswith("Sec-WebSocket-Extensions")]
    try:
        yield (chosen[0].partition(": ")[2] if chosen else ""), reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.parametrize(
    ("offer", "chosen"),
    [
        ("permessage-deflate", f"permessage-deflate; {OURS}"),
        ("permessage-deflate; client_max_window_bits", f"permessage-deflate; {OURS}"),
        (
            "permessage-deflate; server_max_window_bits=9",
            f"permessage-deflate; {OURS}; server_max_window_bits=9",
        ),
        ("permessage-deflate; server_max_window_bits=8", ""),
        ("permessage-deflate; nonsense, permessage-deflate", f"permessage-deflate; {OURS}"),
        ("x-webkit-deflate-frame", ""),
    ],
)
async def test_what_is_negotiated(offer: str, chosen: str) -> None:
    async with running() as api, handshake(api, offer) as (found, reader, _):
        assert found == chosen
        await until(lambda: api.hub.counts().connected == 1)
        api.hub.on_events([tick(1)])
        data = b""
        async with asyncio.timeout(40):
            while b"\xc1\x7e" not in data and b'"market_data"' not in data:
                data += await reader.read(65536)
        assert (b"\xc1\x7e" in data) == bool(chosen)


async def test_it_can_be_turned_off() -> None:
    async with running(compression=False) as api, handshake(api, "permessage-deflate") as found:
        assert found[0] == ""


async def test_both_kinds_of_client_get_the_same() -> None:
    async with (
        running() as api,
        connect(f"{api.ws}/ws") as short,
        connect(f"{api.ws}/ws", compression=None) as plain,
    ):
        assert short.response is not None
        assert "permessage-deflate" in short.response.headers["Sec-WebSocket-Extensions"]
        assert api.hub.counts().connected <= 2
        await until(lambda: api.hub.counts().connected == 2)
        api.hub.on_events([tick(1), tick(2), bar_update(0, 2)])
        await short.send('{"type":"heartbeat"}')
        await plain.send('{"type":"heartbeat"}')
        async with asyncio.timeout(40):
            got = [[await client.recv() for _ in range(5)] for client in (short, plain)]
        assert got[0] == got[1]
        assert got[0][3].startswith('{"type":"bar"')


async def code_after(api: Running, *frames: bytes) -> int | None:
    """The code a client is closed with that has negotiated compression and sends these frames."""
    async with handshake(api, "permessage-deflate") as (_, reader, writer):
        writer.write(b"".join(frames))
        data = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(40):
                data = await reader.read()
    at = data.rindex(b"\x88")
    return int.from_bytes(data[at + 2 : at + 4])


def compressed(payload: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    return (compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def sent(opcode: int, payload: bytes, *, reserved: int = 4, fin: bool = True) -> bytes:
    return frame(random.Random(1), opcode, payload, reserved=reserved, fin=fin)


BOMB = compressed(bytes(50_000_000))


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([sent(TEXT, BOMB)], 1009),
        ([sent(TEXT, BOMB[:200], fin=False), sent(CONT, BOMB[200:], reserved=0)], 1009),
        ([sent(TEXT, b"\xff\xff\xff\xff")], 1002),
        ([sent(TEXT, compressed(b"\xff\xfe"))], 1007),
        ([sent(TEXT, b"{}", reserved=6)], 1002),
        ([sent(TEXT, b"", fin=False), sent(CONT, b"x")], 1002),
        ([sent(PING, b"x")], 1002),
    ],
    ids=["bomb", "bomb in pieces", "garbage", "utf-8", "rsv2", "rsv1 in the middle", "ping"],
)
async def test_what_may_not_be_sent(
    frames: list[bytes], code: int, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(BOMB) < Limits().message_bytes
    async with running() as api:
        assert await code_after(api, *frames) == code
        await until(lambda: api.server.admission.connections == 0)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_compressed_messages_of_clients_are_read() -> None:
    everything = ClientPerMessageDeflateFactory(compress_settings={"level": 9})
    async with running() as api:
        async with connect(f"{api.ws}/ws", extensions=[everything]) as client:
            await client.send(['{"type":"hea', 'rtbeat"', " " * 5000 + "}"])
            async with asyncio.timeout(40):
                while '"heartbeat_response"' not in str(await client.recv()):
                    pass
        async with connect(f"{api.ws}/ws") as client:
            with contextlib.suppress(ConnectionClosed):
                await client.send(" " * (Limits().message_bytes + 1))
                async with asyncio.timeout(40):
                    while True:
                        await client.recv()
            assert client.close_code == 1009
