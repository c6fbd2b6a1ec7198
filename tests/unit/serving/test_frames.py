"""What frames.py takes for granted about the installed uvicorn: an upgrade that moves it fails here."""

import ast
import inspect

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from enhanced_websocket_service.serving.frames import FrameProtocol

OVERRIDDEN = {
    "handle_connect",
    "pause_writing",
    "resume_writing",
    "connection_lost",
    "handle_close",
    "handle_parser_exception",
    "keepalive_timeout",
    "shutdown",
    "run_asgi",
    "send",
    "send_receive_event_to_app",
}
ATTRIBUTES = {
    "transport",
    "conn",
    "queue",
    "loop",
    "frames",
    "curr_msg_data_type",
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


def test_every_overridden_method_exists_in_uvicorn() -> None:
    ours = {name for name in vars(FrameProtocol) if callable(getattr(FrameProtocol, name))}
    assert ours >= OVERRIDDEN
    for name in OVERRIDDEN:
        base = getattr(WebSocketsSansIOProtocol, name)
        mine = getattr(FrameProtocol, name)
        assert (
            inspect.signature(base).parameters.keys() == inspect.signature(mine).parameters.keys()
        )


def test_every_attribute_is_set_by_uvicorn() -> None:
    source = inspect.getsource(WebSocketsSansIOProtocol)
    assigned = {
        target.attr
        for node in ast.walk(ast.parse(source))
        for target in (
            [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        )
        if isinstance(target, ast.Attribute)
    }
    assert assigned >= ATTRIBUTES
