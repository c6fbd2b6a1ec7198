"""uvicorn's WebSocket protocol with what a misbehaving vendor needs: raw frames, close, RST, FIN,
silence, frames in pieces.

Prices bypass ASGI: one write per client and wake-up instead of one coroutine per tick.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from .fault_values import Dribbling

EXTENSION = "simulator.socket"
"""Where an ASGI scope carries the protocol of its connection."""

_PONG = 0x8A
_MOST_BACKLOG_BYTES = 4_000_000  # of frames that wait to be dribbled


class SimulatorSocket(WebSocketsSansIOProtocol):
    """One accepted TCP connection after the upgrade request; a ``clients.Socket``.

    :ivar withhold_pong: asked at each ping; true: it stays unanswered.
    :ivar dribbling: how frames leave in pieces now; ``None``: whole.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn logs the request line at INFO, and that may hold an API key.
        self.logger = logging.getLogger(__name__)
        if self.logger.level == logging.NOTSET:
            self.logger.setLevel(logging.WARNING)
        self.withhold_pong: Callable[[], bool] = lambda: False
        self.dribbling: Callable[[], Dribbling | None] = lambda: None
        self._frozen = False
        self._finished = False
        self._backlog = bytearray()
        self._dribbler: asyncio.TimerHandle | None = None

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", None)
        if scope is not None:
            scope["extensions"][EXTENSION] = self

    def handle_ping(self) -> None:
        output = self.conn.data_to_send()
        if self.withhold_pong():
            output = [frame for frame in output if frame and frame[0] != _PONG]
        self.write(b"".join(output))

    def write(self, frames: bytes) -> None:
        if not self._open or not frames:
            return
        if self._dribbler is None and self.dribbling() is None:
            self.transport.write(frames)
            return
        self._backlog += frames
        if len(self._backlog) > _MOST_BACKLOG_BYTES:
            self.reset()
        elif self._dribbler is None:
            self._dribble()

    def start_close(self, code: int) -> None:
        if not self._open:
            return
        self.conn.send_close(code)
        self.transport.write(b"".join((self._backlog, *self.conn.data_to_send())))
        self._backlog.clear()
        self.close_sent = True
        self._leave(code)
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def reset(self) -> None:
        if self.disconnected:
            return
        raw = self.transport.get_extra_info("socket")
        if raw is not None:
            # Lingering for 0 seconds makes close() send RST instead of FIN.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def finish(self) -> None:
        if not self._open:
            return
        # Only this side ends: a close() with unread bytes would make the kernel send RST.
        self.transport.write_eof()
        self._finished = True
        self._leave(1006)
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)

    def freeze(self) -> None:
        if not self._open:
            return
        self._frozen = True
        self.transport.pause_reading()
        # Otherwise uvicorn resumes reading as soon as the application takes a queued message.
        self.read_paused = False

    def data_received(self, data: bytes) -> None:
        if self._finished or self._frozen:
            return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._dribbler is not None:
            self._dribbler.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._frozen or self._finished:
            self.reset()
        else:
            super().shutdown()

    @property
    def _open(self) -> bool:
        return (
            self.handshake_complete
            and not self.close_sent
            and not self.disconnected
            and not self._frozen
            and not self._finished
            and not self.transport.is_closing()
        )

    def _leave(self, code: int) -> None:
        """End the application's part; what the peer sends still is read, up to its end."""
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": ""})
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    def _dribble(self) -> None:
        self._dribbler = None
        if not self._open:
            self._backlog.clear()
            return
        how = self.dribbling()
        size = len(self._backlog) if how is None else how.size
        self.transport.write(bytes(self._backlog[:size]))
        del self._backlog[:size]
        if how is not None and self._backlog:
            self._dribbler = self.loop.call_later(how.ms / 1000, self._dribble)
