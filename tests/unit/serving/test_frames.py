"""What frames.py takes for granted about the installed uvicorn: an upgrade that moves it fails here."""

import ast
import inspect

import httptools
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.server import ServerProtocol

from enhanced_websocket_service.serving.frames import FrameProtocol
from enhanced_websocket_service.serving.http_guard import GuardedHttp
from enhanced_websocket_service.serving.strict import StrictProtocol, make_strict

OVERRIDDEN = {
    "data_received",
    "handle_events",
    "handle_connect",
    "pause_writing",
    "resume_writing",
    "connection_lost",
    "eof_received",
    "handle_close",
    "handle_ping",
    "handle_parser_exception",
    "send_keepalive_ping",
    "keepalive_timeout",
    "shutdown",
    "run_asgi",
    "send",
}
ATTRIBUTES = {
    "transport",
    "conn",
    "queue",
    "loop",
    "client",
    "close_timeout",
    "handshake_initiated",
    "ping_timeout",
    "pong_timer",
    "handshake_complete",
    "close_sent",
    "close_timer",
    "disconnected",
    "read_paused",
    "request",
    "response",
    "scope",
    "writable",
}


HTTP_OVERRIDDEN = {
    "connection_made",
    "connection_lost",
    "data_received",
    "on_message_begin",
    "on_url",
    "on_headers_complete",
    "on_message_complete",
    "on_response_complete",
    "send_400_response",
    "handle_websocket_upgrade",
    "_should_upgrade",
}
HTTP_ATTRIBUTES = {"client", "cycle", "logger", "loop", "transport", "timeout_keep_alive_task"}


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [
        (FrameProtocol, WebSocketsSansIOProtocol, OVERRIDDEN),
        (GuardedHttp, HttpToolsProtocol, HTTP_OVERRIDDEN),
    ],
)
def test_every_overridden_method_exists_in_uvicorn(
    ours: type, theirs: type, names: set[str]
) -> None:
    assert vars(ours).keys() >= names
    for name in names:
        expected = inspect.signature(getattr(theirs, name)).parameters.keys()
        assert inspect.signature(getattr(ours, name)).parameters.keys() == expected


@pytest.mark.parametrize(
    ("theirs", "names"),
    [(WebSocketsSansIOProtocol, ATTRIBUTES), (HttpToolsProtocol, HTTP_ATTRIBUTES)],
)
def test_every_attribute_is_set_by_uvicorn(theirs: type, names: set[str]) -> None:
    assigned = {
        target.attr
        for node in ast.walk(ast.parse(inspect.getsource(theirs)))
        for target in (
            [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        )
        if isinstance(target, ast.Attribute)
    }
    assert assigned >= names


def test_an_upgrade_tells_where_the_head_ends() -> None:
    """http_guard.py keeps what stands behind it."""
    head = b"GET / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with pytest.raises(httptools.HttpParserUpgrade) as upgrade:
        httptools.HttpRequestParser(object()).feed_data(head + b"frame")
    assert upgrade.value.args == (len(head),)


def test_a_parser_can_be_made_strict_where_it_is() -> None:
    """And still takes its extensions and its limit from these attributes."""
    parser = ServerProtocol(max_size=10)
    before = vars(parser).copy()
    make_strict(parser)
    assert isinstance(parser, StrictProtocol)
    assert vars(parser) == before
    assert "available_extensions" in before
    assert parser.max_message_size == 10
    assert parser.current_size is None
