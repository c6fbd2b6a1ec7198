"""A WebSocket client as a process: keeps a diary of everything it was given.

``python -m enhanced_websocket_service.chaos.client URL DIARY MODE [RECEIVE_BUFFER]``

It reconnects for ever, resuming behind what it has. A line of the diary is a letter and its fields:
``C`` connected (the cursor it resumed from, or ``-``), ``D`` disconnected (why), ``T`` a tick and ``S`` a
snapshot (epoch, offset, stamp, price, bid, ask), ``M`` any other message as it came, ``L`` a second's
latencies in real milliseconds (unix second, ticks, median, 99th percentile, largest), ``E`` the end.
SIGTERM ends it in order.
"""

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final, TextIO
from urllib.parse import urlsplit

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from enhanced_websocket_service.clock import VirtualClock, parse_virtual_clock
from enhanced_websocket_service.market.calendar import is_trading_day

RETRY_S: Final = 0.1
FLUSH_LINES: Final = 500


class _Data(msgspec.Struct):
    price: float
    timestamp: str
    bid: float | None = None
    ask: float | None = None


class _Message(msgspec.Struct):
    """The fields of all messages that matter for the cursor."""

    type: str
    symbol: str = ""
    epoch: int | None = None
    offset: int = 0
    timestamp: str = ""
    snapshot: bool = False
    to: int | None = None
    data: msgspec.Raw = msgspec.Raw(b"")


_message: Final = msgspec.json.Decoder(_Message)
_data: Final = msgspec.json.Decoder(_Data)


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


class Listener:
    """Who is given what a client hears; see ``follow``. This one remembers nothing."""

    cursor: tuple[str, int, int] | None = None
    """Symbol, epoch and offset to resume behind."""

    def take(self, raw: str | bytes) -> None:
        """One message."""

    def line(self, letter: str, *fields: object) -> None:
        """A connection began or ended."""

    def tell_latencies(self) -> None:
        """Nothing more comes for now."""


def live_price(raw: str | bytes) -> tuple[int, float] | None:
    """Stamp (unix seconds) and price of a tick as it happened; ``None``: the message is none."""
    message = _message.decode(raw)
    if message.type != "market_data" or message.snapshot:
        return None
    data = _data.decode(message.data)
    return int(_unix(data.timestamp)), data.price


class Diary(Listener):
    """What one client was given, in a file; ``cursor`` is what it resumes from."""

    def __init__(self, file: TextIO, clock: VirtualClock | None) -> None:
        self._file = file
        self._clock = clock
        self._lines: list[str] = []
        self._second = 0
        self._latencies: list[float] = []

    def line(self, letter: str, *fields: object) -> None:
        self._lines.append(" ".join((letter, *map(str, fields))))
        if len(self._lines) >= FLUSH_LINES:
            self.flush()

    def flush(self) -> None:
        if self._lines:
            self._file.write("\n".join(self._lines) + "\n")
            self._file.flush()
            self._lines.clear()

    def take(self, raw: str | bytes) -> None:
        """One message."""
        message = _message.decode(raw)
        if message.type != "market_data":
            if message.type == "skipped" and message.epoch is not None and message.to is not None:
                self.cursor = (message.symbol, message.epoch, message.to)
            elif message.type == "epoch" and message.epoch is not None:
                self.cursor = (message.symbol, message.epoch, 0)
            self.line("M", raw if isinstance(raw, str) else raw.decode())
            return
        data = _data.decode(message.data)
        assert message.epoch is not None
        letter = "S" if message.snapshot else "T"
        stamp = int(_unix(data.timestamp))
        self.line(letter, message.epoch, message.offset, stamp, data.price, data.bid, data.ask)
        if not message.snapshot:
            self.cursor = (message.symbol, message.epoch, message.offset)
            self._measure(message.timestamp)

    def _measure(self, received_at: str) -> None:
        if self._clock is None:
            return
        now = time.time()  # real time: latencies are the machine's, whatever the market's speed
        if int(now) != self._second:
            self.tell_latencies()
            self._second = int(now)
        behind = self._clock.now() - _unix(received_at)
        self._latencies.append(1000 * behind / self._clock.speed)

    def tell_latencies(self) -> None:
        """Sum up the second that is over."""
        found, self._latencies = sorted(self._latencies), []
        if found:
            median, high = (
                found[len(found) // 2],
                found[min(len(found) - 1, len(found) * 99 // 100)],
            )
            self.line(
                "L", self._second, len(found), f"{median:.2f}", f"{high:.2f}", f"{found[-1]:.2f}"
            )
        self.flush()


async def follow(url: str, mode: str, diary: Listener, receive_buffer: int) -> None:
    """Connect, again and again, until cancelled."""
    while True:
        since = "-" if diary.cursor is None else ":".join(map(str, diary.cursor))
        address = f"{url}?mode={mode}" + ("" if since == "-" else f"&since={since}")
        try:
            listener = await _socket(url, receive_buffer)
            async with connect(
                address, sock=listener, compression=None, ping_interval=None, proxy=None
            ) as connection:
                diary.line("C", since)
                async for raw in connection:
                    diary.take(raw)
                diary.line("D", connection.close_code)
        except (OSError, WebSocketException, TimeoutError) as error:
            if not isinstance(error, ConnectionRefusedError):
                diary.line("D", type(error).__name__)
        diary.tell_latencies()
        await asyncio.sleep(RETRY_S)


async def _socket(url: str, receive_buffer: int) -> socket.socket:
    parts = urlsplit(url)
    made = socket.socket()
    try:
        made.setblocking(False)
        if receive_buffer:  # before the handshake: the window is agreed on there
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        assert parts.hostname is not None
        await asyncio.get_running_loop().sock_connect(made, (parts.hostname, parts.port))
    except BaseException:  # cancellation, too: nobody else has the socket yet
        made.close()
        raise
    return made


async def main(url: str, path: Path, mode: str, receive_buffer: int) -> None:
    specification = os.environ.get("VIRTUAL_CLOCK")
    clock = parse_virtual_clock(specification, is_trading_day) if specification else None
    with path.open("a") as file:
        diary = Diary(file, clock)
        following = asyncio.create_task(follow(url, mode, diary, receive_buffer), name="follow")
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, following.cancel)
        with suppress(asyncio.CancelledError):
            await following
        diary.tell_latencies()
        diary.line("E")
        diary.flush()


if __name__ == "__main__":
    buffer_bytes = int(sys.argv[4]) if len(sys.argv) > 4 else 0
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], buffer_bytes))
