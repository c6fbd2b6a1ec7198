"""permessage-deflate (RFC 7692) of which one result serves every client that negotiated it.

Without context takeover a compressed frame depends on nothing sent before it, so it is made once per message
and shared like any other; and no client costs a compressor (a usual one takes 256 KiB of memory).
"""

import zlib
from typing import Final

from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory

from .outlet import payloads

WINDOW_BITS: Final = 9
"""512 bytes: messages are smaller or little larger, and every client that asks for a window has this one."""

_LEVEL, _MEMORY = 6, 5
_TAIL: Final = b"\x00\x00\xff\xff"

NEGOTIATION: Final = ServerPerMessageDeflateFactory(
    server_no_context_takeover=True, client_no_context_takeover=True
)
"""Accepts an offer of ``permessage-deflate``, with any window, without context takeover either way."""


def deflated(frame: bytes) -> bytes:
    """An unmasked text frame of one message, compressed; as it is when that makes it no shorter."""
    (payload,) = payloads(frame)
    compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -WINDOW_BITS, _MEMORY)
    body = compressor.compress(payload) + compressor.flush(zlib.Z_SYNC_FLUSH)
    body = body.removesuffix(_TAIL)  # RFC 7692, 7.2.1
    size = len(body)
    if size >= len(payload):
        return frame
    if size < 126:
        return bytes((0xC1, size)) + body
    if size < 65536:
        return b"\xc1\x7e" + size.to_bytes(2) + body
    return b"\xc1\x7f" + size.to_bytes(8) + body
