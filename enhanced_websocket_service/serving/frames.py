"""Pre-encoded frames straight to the transport, beside uvicorn's own WebSocket protocol.

uvicorn does the handshake, pings, incoming frames and the closing handshake. This subclass adds an outlet
to the ASGI scope that writes whole frames to the same transport. It is tied to these attributes of
``WebSocketsSansIOProtocol`` (checked by tests/unit/serving/test_frames.py against the installed
version): transport, conn, queue, writable, loop, scope, request, response, frames, curr_msg_data_type,
handshake_complete, close_sent, close_timer, disconnected, read_paused.
"""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

from .direct import BorrowedSocket, SocketPool
from .outlet import OutletListener

OUTLET_EXTENSION: Final = "ews.outlet"
"""Key of the outlet in ``scope["extensions"]``."""

CLOSE_GRACE_S = 5.0
"""Real seconds a peer has to answer our close frame before its connection is cut."""


class FrameOutlet:
    """The outlet of one connection.

    While the transport holds nothing back, the hub has its socket. The transport says when it
    begins to hold something, whoever wrote it: its mark is zero. From then on everything goes through it
    until it is empty, so that no frame stands in the middle of another or before an earlier one.
    """

    __slots__ = (
        "_congested",
        "_high_water",
        "_listener",
        "_protocol",
        "_socket",
        "_sockets",
        "direct",
    )

    def __init__(self, protocol: "FrameProtocol", sockets: SocketPool) -> None:
        self._protocol = protocol
        self._sockets = sockets
        self._listener: OutletListener | None = None
        self._socket: BorrowedSocket | None = None
        self._high_water = 0
        self._congested = False
        self.direct: BorrowedSocket | None = None

    def bind(self, listener: OutletListener, high_water: int, low_water: int) -> None:
        protocol = self._protocol
        if not protocol.can_write:
            listener.on_closed()  # the peer left between the handshake and now
            return
        self._listener = listener
        transport = protocol.transport
        self._socket = self._sockets.borrow(transport)
        if self._socket is None:
            transport.set_write_buffer_limits(high=high_water, low=low_water)
            return
        self._high_water = high_water
        self.direct = self._socket
        transport.set_write_buffer_limits(high=0, low=0)  # says so at once when something waits

    def write(self, frames: bytes, /) -> None:
        transport = self._protocol.transport
        transport.write(frames)
        if (
            self._socket is not None
            and self.direct is None
            and not self._congested
            and transport.get_write_buffer_size() > self._high_water
            and self._listener is not None
        ):
            self._congested = True
            self._listener.on_congested()

    def buffered(self) -> int:
        return self._protocol.transport.get_write_buffer_size()

    def close(self, code: int, reason: str) -> None:
        self._protocol.close_from_hub(code, reason)

    def take_over(self, receive: Callable[[str | bytes], None]) -> None:
        """Give the peer's messages to ``receive`` from now on, in this very turn of the loop. The ASGI
        conversation may then end: the connection does not, and costs a third of the memory."""
        self._protocol.take_over(receive)

    def paused(self) -> None:
        """The transport holds more than its mark."""
        if self._listener is None:
            return
        if self._socket is None:
            self._listener.on_congested()
        else:
            self.direct = None
            self._listener.on_rerouted()

    def resumed(self) -> None:
        """It has given it to the operating system."""
        if self._listener is None:
            return
        if self._socket is None:
            self._listener.on_drained()
            return
        self.direct = self._socket
        self._listener.on_rerouted()
        if self._congested:
            self._congested = False
            self._listener.on_drained()

    def ended(self) -> None:
        self.direct = None
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.on_closed()
        borrowed, self._socket = self._socket, None
        if borrowed is not None:
            self._sockets.give_back(borrowed)


class _Nobody:
    """Stands for the queue and the event of a conversation that has ended."""

    def put_nowait(self, item: Any) -> None: ...

    def set(self) -> None: ...

    def clear(self) -> None: ...


_NOBODY: Final[Any] = _Nobody()


class FrameProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol plus an outlet, which is told the moment writing must stop."""

    outlet: FrameOutlet | None = None

    def __init__(self, *args: Any, sockets: SocketPool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sockets = sockets
        self._receive: Callable[[str | bytes], None] | None = None
        self._staying: asyncio.TimerHandle | None = None

    @property
    def can_write(self) -> bool:
        """Whether a data frame may follow now: the handshake is done, no close frame went out."""
        return (
            self.handshake_complete
            and not self.close_sent
            and not self.disconnected
            and not self.transport.is_closing()
        )

    def close_from_hub(self, code: int, reason: str) -> None:
        """What uvicorn does for ``websocket.close``, without waiting for a peer that reads nothing."""
        if not self.can_write:
            return
        self._end()
        self.stop_keepalive()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self.close_timer = self.loop.call_later(CLOSE_GRACE_S, self.transport.abort)

    # A conversation that goes on without its task.

    def take_over(self, receive: Callable[[str | bytes], None]) -> None:
        if not self.can_write:
            return
        self._receive = receive
        # uvicorn closes the transport when the task ends, unless a close is under way already.
        self.close_timer = self._staying = self.loop.call_later(CLOSE_GRACE_S, _NOBODY.clear)
        waiting, self.queue = self.queue, _NOBODY
        self.writable = _NOBODY
        while not waiting.empty():
            message = waiting.get_nowait()
            if message["type"] == "websocket.receive":
                text = message.get("text")
                receive(message.get("bytes") or b"" if text is None else text)
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()

    async def run_asgi(self) -> None:
        await super().run_asgi()
        staying, self._staying = self._staying, None
        if staying is not None:
            staying.cancel()
            if self.close_timer is staying:
                self.close_timer = None
            del self.scope, self.request, self.response

    # Where the outlet comes from and what it is told.

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        scope = getattr(self, "scope", None)  # absent when the handshake was refused
        if scope is not None:
            self.outlet = FrameOutlet(self, self._sockets)
            scope["extensions"][OUTLET_EXTENSION] = self.outlet

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.outlet is not None:
            self.outlet.paused()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.outlet is not None:
            self.outlet.resumed()

    # Every way a connection ends. The outlet hears it before the close frame is written: a data
    # frame behind a close frame would be a protocol error.

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)

    def handle_close(self, event: Frame) -> None:
        self._end()
        super().handle_close(event)

    def handle_parser_exception(self) -> None:
        self._end()
        super().handle_parser_exception()

    def keepalive_timeout(self) -> None:
        self._end()
        super().keepalive_timeout()

    def shutdown(self) -> None:
        self._end()
        super().shutdown()

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            self._end()
        await super().send(message)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                # uvicorn logs a traceback for this: any stranger could fill the disk with them.
                self.frames = []
                self.conn.fail(1007, "invalid UTF-8")
                self.handle_parser_exception()
                return
        if self._receive is None:
            super().send_receive_event_to_app()
            return
        data, self.frames = b"".join(self.frames), []
        if not self.close_sent:
            self._receive(data)

    def _end(self) -> None:
        if self.outlet is not None:
            self.outlet.ended()
