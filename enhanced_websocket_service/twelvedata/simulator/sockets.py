"""uvicorn's WebSocket protocol with what a misbehaving vendor needs: raw frames, close, RST.

Prices bypass ASGI: one write per client and wake-up instead of one coroutine per tick.
"""

import logging
import socket
import struct
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

EXTENSION = "simulator.socket"
"""Where an ASGI scope carries the protocol of its connection."""


class SimulatorSocket(WebSocketsSansIOProtocol):
    """One accepted TCP connection after the upgrade request; a ``stream.Socket``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # uvicorn logs the request line at INFO, and that may hold an API key.
        self.logger = logging.getLogger(__name__)
        if self.logger.level == logging.NOTSET:
            self.logger.setLevel(logging.WARNING)

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        scope: Any = getattr(self, "scope", None)
        if scope is not None:
            scope["extensions"][EXTENSION] = self

    def write(self, frames: bytes) -> None:
        if self._open:
            self.transport.write(frames)

    def start_close(self, code: int) -> None:
        if not self._open:
            return
        self.conn.send_close(code)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": ""})
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)

    def reset(self) -> None:
        if self.disconnected:
            return
        raw = self.transport.get_extra_info("socket")
        if raw is not None:
            # Lingering for 0 seconds makes close() send RST instead of FIN.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    @property
    def _open(self) -> bool:
        return (
            self.handshake_complete
            and not self.close_sent
            and not self.disconnected
            and not self.transport.is_closing()
        )
