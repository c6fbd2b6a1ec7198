"""uvicorn's HTTP protocol with limits on what a connection may cost: before it has asked anything, and
while it takes nothing of its answer.

compatibility.py lists which private names of uvicorn it is tied to.
"""

import asyncio
import logging
import sys
from typing import Any, Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .admission import Admission
from .frames import FrameProtocol
from .tcp_state import unread_and_acknowledged

MAX_HEAD_BYTES: Final = 32 * 1024
"""Request line and headers together."""

# What strangers send is counted, and told once a minute; uvicorn would write a line for each.
_errors_only = logging.getLogger("uvicorn.error.requests")
_errors_only.setLevel(logging.ERROR)

_SENTENCES: Final = {
    "too_many_connections": (503, "Too many connections; try later."),
    "too_many_connections_from_address": (429, "Too many connections from your address."),
    "slow_request": (408, "The request did not arrive in time."),
    "request_head_too_large": (431, "The request line and headers are too large."),
    "bad_http": (400, "Invalid HTTP request received."),
}
_PHRASES: Final = {
    400: "Bad Request",
    408: "Request Timeout",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class GuardedHttp(HttpToolsProtocol):
    """A place for each connection, a time for each request, a size for its head."""

    def __init__(self, *args: Any, admission: Admission, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _errors_only
        self._admission = admission
        self._place = False
        self._head_bytes: int | None = 0  # None: the head is complete
        self._is_head = False  # the request that is arriving is a HEAD
        self._upgraded = False
        self._chunk = b""
        self._deadline: asyncio.TimerHandle | None = None
        self._next_look: asyncio.TimerHandle | None = None

    # --- the connection ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        reason = self._admission.connect(self._address)
        if reason is not None:
            self._refuse(reason)
            return
        self._place = True
        self._start_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_deadline()
        if self._next_look is not None:
            self._next_look.cancel()
        self._give_back_place()
        super().connection_lost(exc)

    @property
    def _idle(self) -> bool:
        return self.cycle is not None and self.cycle.response_complete

    def _give_back_place(self) -> None:
        if self._place:
            self._place = False
            self._admission.disconnect(self._address)

    @property
    def _address(self) -> str | None:
        return self.client[0] if self.client else None

    # --- a request --------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._chunk = data
        super().data_received(data)
        self._chunk = b""
        if self._upgraded:
            # They refer to each other: nothing else would free them soon.
            self.parser = None  # type: ignore[assignment]
            return
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse("request_head_too_large")
        elif self._idle and self.timeout_keep_alive_task is None:
            self._start_deadline()  # bytes between two requests took uvicorn's own time-out away

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        self._is_head = False
        self._start_deadline()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._is_head = self.parser.get_method() == b"HEAD"

    def on_headers_complete(self) -> None:
        self._head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._stop_deadline()
        super().on_message_complete()
        self._is_head = False

    def send_400_response(self, msg: str) -> None:
        self._refuse("bad_http")

    def _should_upgrade(self) -> bool:
        # The handshake is a GET; its refusal would have a body, which an answer to HEAD must not have.
        return self.scope["method"] != "HEAD" and super()._should_upgrade()

    def handle_websocket_upgrade(self) -> None:
        self._stop_deadline()
        if self.cycle is not None and not self.cycle.response_complete:
            # Its answer would be written into the WebSocket.
            self._refuse("bad_http")
            return
        upgrade = sys.exception()  # handled by our caller, it knows where the head ended
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        self._upgraded = True
        if isinstance(protocol, FrameProtocol):
            protocol.has_place, self._place = self._place, False
            if isinstance(upgrade, httptools.HttpParserUpgrade):
                protocol.keep_early(self._chunk[upgrade.args[0] :])
        else:
            self._give_back_place()

    def _start_deadline(self) -> None:
        if self._deadline is None:
            seconds = self._admission.limits.handshake_s
            self._deadline = self.loop.call_later(seconds, self._too_slow)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self._head_bytes == 0:
            # Browsers open connections in advance: nothing is wrong with that, and an answer to no
            # question would confuse them.
            self._admission.refused("silent", self._address, "", worth_telling=False)
            self.transport.abort()
            return
        self._refuse("slow_request")

    # --- its answer -------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._next_look is None:
            self._look_later()

    def _look_later(self) -> None:
        """Closing waits until the peer has taken what was written: for ever, if it takes nothing."""
        if self.transport.get_write_buffer_size():
            seconds = self._admission.limits.stall_s
            state = unread_and_acknowledged(self.transport)
            self._next_look = self.loop.call_later(seconds, self._look_for_progress, *state)

    def _look_for_progress(self, unread: int, acknowledged: int) -> None:
        self._next_look = None
        left, taken = unread_and_acknowledged(self.transport)
        if left < unread or taken > acknowledged:
            self._look_later()
        else:
            self._admission.refused("unread_answer", self._address, "Its answer was not taken.")
            self.transport.abort()

    def _refuse(self, reason: str) -> None:
        if self.transport.is_closing():
            return
        self._stop_deadline()
        status, sentence = _SENTENCES[reason]
        self._admission.refused(reason, self._address, sentence)
        if self.cycle is None or self.cycle.response_complete:
            body = sentence.encode()
            head = (
                b"HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
                b"connection: close\r\n\r\n" % (status, _PHRASES[status].encode(), len(body))
            )
            self.transport.write(head if self._is_head else head + body)
        self.transport.close()
