"""The websockets library's parser, stricter about the order in which things are judged."""

import codecs

from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol


class StrictProtocol(ServerProtocol):
    """The parser, which judges each frame before it looks at the next one."""

    _text: codecs.IncrementalDecoder | None = None  # of a text message in fragments

    def recv_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            self.current_size = None  # it may stand between two fragments (RFC 6455, 5.4)
        super().recv_frame(frame)
        # Here and not where the message is complete: what follows in the same read must not be
        # answered first. UnicodeDecodeError fails the connection with 1007.
        if frame.opcode is Opcode.TEXT:
            if frame.fin:
                str(frame.data, "utf-8")
            else:
                self._text = codecs.getincrementaldecoder("utf-8")()
                self._text.decode(frame.data)
        elif frame.opcode is Opcode.CONT and self._text is not None:
            self._text.decode(frame.data, frame.fin)
            if frame.fin:
                self._text = None


def make_strict(parser: ServerProtocol) -> None:
    """Make a parser a strict one where it is. A second one would leave the first, which refers to itself,
    to the garbage collector, for every connection."""
    parser.__class__ = StrictProtocol
