"""A client inside: what the hub hands to clients comes here, too, and is counted.

It proves that what was published went through the hub's histories, groups and encoding, as bytes to a
writer. It is in no count of clients, has no socket, and takes of each batch the newest tick of a symbol.
"""

import re
from collections.abc import Callable
from typing import Final

from .outlet import text_frame

_TICK: Final = re.compile(rb'"symbol":"([^"]+)","epoch":(\d+),"offset":(\d+)')
_PROBE: Final = re.compile(rb'"type":"probe","number":(\d+)')


def probe_frame(number: int) -> bytes:
    """The frame of a probe; no other client gets it."""
    return text_frame(b'{"type":"probe","number":%d}' % number)


class Loopback:
    """Give ``write`` to the hub.

    :param reached: told of symbol, epoch and offset of each newest tick that came.
    """

    def __init__(self, reached: Callable[[str, int, int], None]) -> None:
        self._reached = reached
        self.probe = 0
        """The number of the last probe that came."""

    def write(self, frames: bytes) -> None:
        """Take whole frames, as any client's outlet does."""
        for symbol, epoch, offset in _TICK.findall(frames):
            self._reached(symbol.decode(), int(epoch), int(offset))
        if found := _PROBE.findall(frames):
            self.probe = int(found[-1])
