"""Pre-encoded frames straight to the transport, beside uvicorn's own WebSocket protocol.

uvicorn does the handshake, pings, incoming frames and the closing handshake. This subclass adds an outlet
to the ASGI scope that writes whole frames to the same transport, and a limit on everything a peer may send.
compatibility.py lists which private names of uvicorn and websockets it is tied to.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.protocol import State

from .admission import Admission
from .deflate import NEGOTIATION
from .direct import SocketPool
from .frame_outlet import FrameOutlet
from .limits import Budget
from .outlet import CLOSE_GRACE_S
from .strict import make_strict
from .tcp_state import limit_send_buffer, unread_and_acknowledged

OUTLET_EXTENSION: Final = "ews.outlet"
"""Key of the outlet in ``scope["extensions"]``."""

SEND_BUFFER_BYTES: Final = 128 * 1024
"""The operating system's, per client. By itself it would take 4 MB for one that reads nothing."""

_SLICE_BYTES: Final = 1024
"""Parsed at once: a read of 256 KiB can hold 40,000 frames, and the limit must stop the first hundreds."""

_QUIET_S: Final = 0.1
_DISCARDED_BYTES_MAX: Final = 16 * 1024 * 1024


class _Nobody:
    """Stands for the queue and the event of a conversation that has ended."""

    def put_nowait(self, item: Any) -> None: ...

    def set(self) -> None: ...

    def clear(self) -> None: ...


_NOBODY: Final[Any] = _Nobody()


class FrameProtocol(WebSocketsSansIOProtocol):
    """uvicorn's protocol plus an outlet, which is told the moment writing must stop."""

    # Beside uvicorn's 38 attributes these would make its dict twice as large, for every client.
    __slots__ = (
        "_acknowledged",
        "_admission",
        "_budget",
        "_discarding",
        "_early",
        "_receive",
        "_sockets",
        "_staying",
        "_unread",
        "_when_lost",
        "has_place",
        "outlet",
    )

    def __init__(
        self, *args: Any, sockets: SocketPool, admission: Admission, deflate: bool, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        make_strict(self.conn)
        if deflate:
            self.conn.available_extensions = [NEGOTIATION]
        limits = admission.limits
        self.outlet: FrameOutlet | None = None
        self._sockets = sockets
        self._receive: Callable[[str | bytes], None] | None = None
        self._when_lost: Callable[[], None] | None = None
        self._staying: asyncio.TimerHandle | None = None
        self._admission = admission
        self._budget = Budget(limits.messages_per_s, limits.message_burst, self.loop.time)
        self._early = b""
        self._discarding: int | None = None  # bytes still read and thrown away, once it has failed
        self._unread = self._acknowledged = 0  # when the last ping was sent
        self.has_place = False  # whether it gives one back to ``admission`` when it ends
        self.close_timeout = CLOSE_GRACE_S

    @property
    def _address(self) -> str | None:
        return self.client[0] if self.client else None

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
        self._admission.closed(code)
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

    def take_over(
        self, receive: Callable[[str | bytes], None], when_lost: Callable[[], None]
    ) -> None:
        if self.disconnected:
            when_lost()
            return
        self._when_lost = when_lost
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
        if scope is None:
            self._refuse_handshake()
            return
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

    # What the peer sends, and how much of it.

    def data_received(self, data: bytes) -> None:
        if self._discarding is not None:
            self._discarding -= len(data)
            if self._discarding < 0:
                self.transport.abort()
            return
        if self.handshake_initiated and not self.handshake_complete:
            self.keep_early(data)
            return
        for at in range(0, len(data), _SLICE_BYTES):
            super().data_received(
                data[at : at + _SLICE_BYTES] if at or len(data) > _SLICE_BYTES else data
            )
            if self._discarding is not None or self.transport.is_closing():
                return
        if not self.handshake_initiated and self.conn.handshake_exc is not None:
            self._refuse_handshake()

    def keep_early(self, data: bytes) -> None:
        """Frames before our answer: kept for after it, or a pong would stand before the 101."""
        self._early += data
        if len(self._early) > self._admission.limits.message_bytes and not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def handle_events(self) -> None:
        for event in self.conn.events:
            if isinstance(event, Frame) and not self._budget.take():
                # Also pings and empty fragments, which no application ever sees.
                self.conn.events.clear()
                self._fail(1008, "too many frames")
                return
        super().handle_events()

    def _refuse_handshake(self) -> None:
        self._admission.refused("bad_handshake", self._address, "Not a WebSocket handshake.")
        if not self.handshake_initiated:  # the parser gave up before uvicorn saw a request
            answer = b"".join(self.conn.data_to_send()) or b"HTTP/1.1 400 Bad Request\r\n\r\n"
            self.handshake_initiated = self.handshake_complete = self.close_sent = True
            self.transport.write(answer)
            self.transport.close()

    # Every way a connection ends. The outlet hears it before the close frame is written: a data
    # frame behind a close frame would be a protocol error.

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        super().connection_lost(exc)
        if self.has_place:
            self.has_place = False
            self._admission.disconnect(self._address)
        when_lost, self._when_lost = self._when_lost, None
        if when_lost is not None:
            when_lost()

    def eof_received(self) -> None:
        """The transport closes now; but not while the peer leaves lying what waits for it."""
        self._end()
        self._cut_later()

    def handle_close(self, event: Frame) -> None:
        if self.close_sent:  # theirs answers ours
            super().handle_close(event)
            self._cut_later()
        else:
            self._say_last_word(0.0)

    def handle_parser_exception(self) -> None:
        if not self.close_sent:
            assert self.conn.close_sent is not None
            self._admission.closed(self.conn.close_sent.code)
        self._say_last_word(_QUIET_S)

    def _fail(self, code: int, reason: str) -> None:
        self.conn.fail(code, reason)
        self.handle_parser_exception()

    def _say_last_word(self, quiet_s: float) -> None:
        """Send our close frame, then read on until the peer ends its side too.

        Closing a socket with unread bytes resets it, and the reset overtakes the close frame: the peer
        would never learn why. ``quiet_s``: for how long it must have sent nothing before it sees an end.
        """
        self._end()
        self.stop_keepalive()
        output = b"".join(self.conn.data_to_send())
        if not self.close_sent:
            word = self.conn.close_sent
            assert word is not None
            self.queue.put_nowait(
                {"type": "websocket.disconnect", "code": word.code, "reason": word.reason}
            )
            if not self.transport.is_closing():
                self.transport.write(output)
            self.close_sent = True
        self._discarding = _DISCARDED_BYTES_MAX
        if self.read_paused:
            self.read_paused = False
            self.transport.resume_reading()
        self._cut_later()
        if quiet_s:
            self.loop.call_later(quiet_s, self._end_when_quiet, self._discarding)
        else:
            self._end_when_quiet(self._discarding)

    def send_keepalive_ping(self) -> None:
        super().send_keepalive_ping()
        self._unread, self._acknowledged = unread_and_acknowledged(self.transport)

    def keepalive_timeout(self) -> None:
        unread, acknowledged = unread_and_acknowledged(self.transport)
        if (unread or self._unread) and acknowledged > self._acknowledged and self.can_write:
            # It reads, slowly: the ping stands in the queue behind data. That is the hub's affair,
            # which gives such a client less; silence would be ours.
            assert self.ping_timeout is not None
            self._unread, self._acknowledged = unread, acknowledged
            self.pong_timer = self.loop.call_later(self.ping_timeout, self.keepalive_timeout)
            return
        self.pong_timer = None
        if self.can_write:
            self._fail(1011, "keepalive ping timeout")

    def shutdown(self) -> None:
        self._end()
        super().shutdown()

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            self._end()
            if self.can_write:
                self._admission.closed(message.get("code", 1000))
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True  # with a refusal; uvicorn would log an ERROR
        if message["type"] != "websocket.accept":
            return
        if not self.handshake_complete:
            raise ClientDisconnected  # it left meanwhile; without this an ERROR in the log
        if self.can_write:
            limit_send_buffer(self.transport, SEND_BUFFER_BYTES)
            if self.read_paused:
                self.read_paused = False
                self.transport.resume_reading()
            early, self._early = self._early, b""
            if early:
                self.data_received(early)

    def _end_when_quiet(self, left: int | None) -> None:
        """End our direction once the peer has sent nothing for a moment; it then ends its own."""
        if self.disconnected or self.transport.is_closing():
            return
        if self._discarding != left:
            self.loop.call_later(_QUIET_S, self._end_when_quiet, self._discarding)
        elif not self.transport.can_write_eof():  # TLS
            self.transport.close()
        else:
            with contextlib.suppress(OSError):  # the peer has reset the connection meanwhile
                self.transport.write_eof()

    def _cut_later(self) -> None:
        """End the connection even when the peer never takes what is still to be written."""
        if self.close_timer in (None, self._staying) and not self.disconnected:
            self.close_timer = self.loop.call_later(CLOSE_GRACE_S, self.transport.abort)

    def handle_ping(self) -> None:
        # Else the close frame of the same read has been answered already, and that answer would be
        # written with the pong, before what the messages between the two are answered.
        if self.conn.state is State.OPEN:
            super().handle_ping()

    def send_receive_event_to_app(self) -> None:
        if self._receive is None:
            super().send_receive_event_to_app()
            return
        data, self.frames = b"".join(self.frames), []
        if not self.close_sent:
            self._receive(data)

    def _end(self) -> None:
        if self.outlet is not None:
            self.outlet.ended()
