"""One connection to the vendor's stream: how it is opened, and in which ways it is lost."""

from typing import Literal

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from enhanced_websocket_service.errors import NotEntitled
from enhanced_websocket_service.twelvedata.answers import classify_error
from enhanced_websocket_service.twelvedata.keys import ApiKey
from enhanced_websocket_service.twelvedata.rest import is_loopback_url

# Real seconds: what networks, this machine's scheduler and a busy event loop need.
OPEN_TIMEOUT_REAL_S = 10.0
CLOSE_TIMEOUT_REAL_S = 1.0
PING_INTERVAL_REAL_S = 15.0
PING_TIMEOUT_REAL_S = 10.0

MAX_FRAME_BYTES = 1_048_576
QUEUED_FRAMES = (4096, 1024)
"""Frames read ahead before the socket is paused, and how few before it goes on."""

EVICTION_CODES = frozenset({1000, 1008})
"""Closed on purpose: another process uses the key, or a policy forbids it. Try the next key."""

Failure = Literal["refused", "unentitled", "disconnected", "silent", "leased"]


class Lost(Exception):
    """The connection is over, or there is none."""

    def __init__(self, kind: Failure, message: str, *, rotate: bool = False) -> None:
        self.kind: Failure = kind
        self.rotate = rotate  # the fault may be the key's: try the next one
        super().__init__(message)


class _Connect(connect):
    """Redirects are refused: the key must not travel to wherever they point."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


def open_stream(url: str, key: ApiKey) -> connect:
    """The handshake, as a context manager; the key travels in a header."""
    return _Connect(
        url,
        additional_headers={"X-TD-APIKEY": key.secret},
        compression=None,
        proxy=None if is_loopback_url(url) else True,
        open_timeout=OPEN_TIMEOUT_REAL_S,
        close_timeout=CLOSE_TIMEOUT_REAL_S,
        ping_interval=PING_INTERVAL_REAL_S,
        ping_timeout=PING_TIMEOUT_REAL_S,
        max_size=MAX_FRAME_BYTES,
        max_queue=QUEUED_FRAMES,
    )


def refused_handshake(error: InvalidStatus) -> Lost:
    """What an HTTP status instead of a WebSocket means."""
    status = error.response.status_code
    said = classify_error(status, bytes(error.response.body or b""))
    message = f"handshake refused: {said}"
    if status in (401, 403) or isinstance(said, NotEntitled):
        return Lost("unentitled", message, rotate=True)
    if status >= 500:
        return Lost("disconnected", message)
    return Lost("refused", message, rotate=status == 429)


def broken(error: ConnectionClosed) -> Lost:
    """What the end of an open connection means."""
    frame = error.rcvd
    if frame is None:
        if error.sent is not None and "ping" in error.sent.reason:
            return Lost("disconnected", f"no pong within {PING_TIMEOUT_REAL_S:g} s")
        return Lost("disconnected", f"the connection broke: {error}")
    rotate = frame.code in EVICTION_CODES or frame.code >= 3000
    said = f"{frame.code} {frame.reason}".strip()
    return Lost("disconnected", f"the vendor closed the connection: {said}", rotate=rotate)


__all__ = ["ClientConnection", "Failure", "Lost", "broken", "open_stream", "refused_handshake"]
