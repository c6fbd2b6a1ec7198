"""What RFC 6455 lets a server answer to a stream of bytes: a reading of its own, without the server's code.

With ``deflate`` also RFC 7692: a data message whose first frame has the bit RSV1 is inflated.

``judge`` reads what a client sent behind its handshake and tells the close codes that are right. ``ALIVE``
stands for "no reason to close".
"""

import codecs
import zlib
from dataclasses import dataclass, field
from typing import Final

ALIVE: Final = None
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

BURST: Final = 100
"""Frames a client may send at once: a limit of this service (1008), not of the RFC."""
FLOOD: Final = 400
"""So many that no pause between them excuses it."""


@dataclass
class Verdict:
    """``outcomes``: the close codes a server may answer with, 1005 for an empty close frame."""

    outcomes: set[int | None] = field(default_factory=set)
    pings: list[bytes] = field(default_factory=list)
    messages: int = 0
    boundary: bool = True  # the stream ends between two frames


def judge(stream: bytes, max_message: int, *, deflate: bool = False) -> Verdict:
    """Read ``stream``; ``max_message`` is the largest message the server takes, in bytes."""
    verdict = Verdict()
    maybe = verdict.outcomes  # what a server may do, but need not
    at = frames = 0
    message: bytearray | None = None
    kind = TEXT
    inflater: Inflater | None = None

    def over(*codes: int | None) -> Verdict:
        maybe.update(codes)
        return verdict

    while True:
        if frames > BURST:
            maybe.add(1008)
        if frames > FLOOD:
            return over(1008)
        if at == len(stream):
            return over(ALIVE)
        verdict.boundary = False
        first = stream[at]
        fin, reserved, opcode = first >> 7, first & 0x70, first & 15
        packed = deflate and reserved == 0x40 and opcode in (TEXT, BINARY)
        wrong = (bool(reserved) and not packed) or opcode not in (
            CONT,
            TEXT,
            BINARY,
            CLOSE,
            PING,
            PONG,
        )
        if len(stream) - at < 2:
            return over(ALIVE, *([1002] if wrong else []))
        masked, size = stream[at + 1] >> 7, stream[at + 1] & 127
        wrong = wrong or not masked or (opcode >= CLOSE and not fin)
        if opcode == CONT and message is None:
            wrong = True
        if opcode in (TEXT, BINARY) and message is not None:
            wrong = True
        extended = {126: 2, 127: 8}.get(size, 0)
        at += 2
        if len(stream) - at < extended:
            return over(ALIVE, *([1002] if wrong else []))
        if extended:
            size = int.from_bytes(stream[at : at + extended])
            at += extended
            if size < (126 if extended == 2 else 65536):
                maybe.add(
                    1002
                )  # "the minimal number of bytes MUST be used": no word on the receiver
            wrong = wrong or (opcode >= CLOSE and size > 125)
            if size >> 63:
                return over(1002, 1009)
        have = len(message) if message is not None and opcode == CONT else 0
        large = have + size > max_message
        complete = len(stream) - at >= (4 if masked else 0) + size
        if wrong or large:
            # Seen in the header, or only once the frame is whole.
            codes = ([1002] if wrong else []) + ([1009] if large else [])
            if large or len(stream) - at >= 4 + size:
                return over(*codes, *([] if len(stream) - at >= 4 else [ALIVE]))
            return over(*codes, ALIVE)
        if not complete:
            return over(ALIVE)
        mask = stream[at : at + 4]
        payload = bytes(b ^ mask[i & 3] for i, b in enumerate(stream[at + 4 : at + 4 + size]))
        at += 4 + size
        frames += 1
        verdict.boundary = True
        if opcode == PING:
            verdict.pings.append(payload)
        elif opcode == CLOSE:
            codes = _after_close(payload)
            return over(*codes)
        elif opcode != PONG:
            if message is None:
                message, kind = bytearray(), opcode
                inflater = Inflater() if packed else None
            if inflater is not None:
                try:
                    payload = inflater.take(payload, max_message - len(message), last=bool(fin))
                except InflateError as error:
                    return over(error.code, *([] if fin else [ALIVE]))
            message += payload
            if kind == TEXT and not _is_utf8(bytes(message), final=bool(fin)):
                if fin:
                    return over(1007)
                maybe.add(1007)  # may be told as soon as it is seen
            if fin:
                verdict.messages += 1
                message = None


class InflateError(Exception):
    """``code``: how the connection ends."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Inflater:
    """One compressed message, frame by frame."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(-15)

    def take(self, data: bytes, room: int, *, last: bool) -> bytes:
        """What ``data`` adds to the message, of which ``room`` bytes are left; :raises InflateError:."""
        try:
            found = self._zlib.decompress(data + (b"\0\0\xff\xff" if last else b""), room + 1)
        except zlib.error as error:
            raise InflateError(1002) from error
        if len(found) > room:
            raise InflateError(1009)
        return found


def _after_close(payload: bytes) -> list[int]:
    if not payload:
        return [1005, 1000]
    if len(payload) == 1:
        return [1002]
    code = int.from_bytes(payload[:2])
    faults = []
    if code not in (1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)):
        faults.append(1002)
    if not _is_utf8(payload[2:], final=True):
        faults.append(1007)
    return faults or [code, 1000]


def _is_utf8(text: bytes, *, final: bool) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(text, final)
    except UnicodeDecodeError:
        return False
    return True


def server_frames(data: bytes, *, deflate: bool = False) -> tuple[list[tuple[int, bytes]], bytes]:
    """The whole frames in ``data`` and what is left; :raises ValueError: the server broke a rule."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while len(data) - at >= 2:
        first, size, head = data[at], data[at + 1], 2
        opcode = first & 15
        packed = deflate and first == 0xC1
        if (
            (first & 0x70 and not packed)
            or size & 128
            or opcode not in (TEXT, BINARY, CLOSE, PING, PONG)
        ):
            raise ValueError(f"the server sent a frame that begins with {data[at : at + 2].hex()}")
        if not first & 128:
            raise ValueError("the server sent a fragment")
        extended = {126: 2, 127: 8}.get(size, 0)
        if len(data) - at < 2 + extended:
            break
        if extended:
            size, head = int.from_bytes(data[at + 2 : at + 2 + extended]), 2 + extended
            if size < (126 if extended == 2 else 65536) or opcode >= CLOSE:
                raise ValueError("the server sent a length in the wrong form")
        if len(data) - at < head + size:
            break
        if found and found[-1][0] == CLOSE:
            raise ValueError("the server sent a frame after its close frame")
        payload = data[at + head : at + head + size]
        if packed:
            payload = Inflater().take(payload, 1 << 24, last=True)
        found.append((opcode, payload))
        at += head + size
    return found, data[at:]
