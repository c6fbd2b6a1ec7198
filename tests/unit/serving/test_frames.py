"""What this package takes for granted about libraries, beside the names in compatibility.py."""

import httptools
import pytest
from websockets.server import ServerProtocol

from enhanced_websocket_service.serving.strict import StrictProtocol, make_strict


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
