"""The bytes of one journal segment: its header, its frames, and what is intact of them. Pure.

A segment is a header and then frames. A frame is, big-endian, one marker byte (0xEC), 3 bytes length
of the payload, 4 bytes CRC32, then the payload. The CRC starts from the journal's identity, the
segment's number and the frame's own offset and length, so a frame is only ever valid where it was
written: stale blocks of a recycled file, or a frame inside the text of another, are never taken for
records. A length of 0 is invalid, so a zero-filled tail is not a row of empty records.
"""

import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple
from zlib import crc32

from enhanced_websocket_service.errors import JournalError

MARKER: Final = 0xEC
MAX_PAYLOAD: Final = 1 << 20
_FRAME: Final = struct.Struct(">II")
FRAME_OVERHEAD: Final = _FRAME.size

_MAGIC: Final = b"EWSJ"
_VERSION: Final = 1
_HEADER: Final = struct.Struct(">4sHH16sQQQQdI")
HEADER_SIZE: Final = _HEADER.size


class Position(NamedTuple):
    """A place in the journal; positions of one journal are ordered. ``(0, 0, 0)`` is its beginning."""

    segment: int
    offset: int  # bytes from the start of the segment's file
    record: int  # records of this journal before this place


START: Final = Position(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Header:
    """The first bytes of a segment. ``previous_end`` is where the segment before really ends:
    bytes behind it were written by an append that failed, and never happened.
    """

    journal_id: uuid.UUID
    number: int
    first_record: int
    previous_number: int  # 0: there was none
    previous_end: int
    created_at: float  # real unix seconds

    def encode(self) -> bytes:
        fields = (
            *(_MAGIC, _VERSION, 0, self.journal_id.bytes, self.number, self.first_record),
            *(self.previous_number, self.previous_end, self.created_at),
        )
        return _HEADER.pack(*fields, crc32(_HEADER.pack(*fields, 0)[:-4]))


def decode_header(data: bytes) -> Header | None:
    """The header at the start of ``data``; ``None`` when it is torn or damaged.

    :raises JournalError: a newer version wrote it.
    """
    if len(data) < HEADER_SIZE:
        return None
    magic, version, _, journal, number, first, previous, end, created, checksum = (
        _HEADER.unpack_from(data)
    )
    if magic != _MAGIC or checksum != crc32(data[: HEADER_SIZE - 4]):
        return None
    if version != _VERSION:
        raise JournalError(
            f"Journal segment {number} has format version {version}, this program reads "
            f"{_VERSION}: use the newer program, or give this one another STATE_DIR."
        )
    return Header(uuid.UUID(bytes=journal), number, first, previous, end, created)


def seed(journal_id: uuid.UUID, number: int) -> int:
    """Where the checksums of this segment start; known even when its header is damaged."""
    return crc32(journal_id.bytes + number.to_bytes(8, "big"))


def frames(payloads: Sequence[bytes], offset: int, start: int) -> tuple[bytes, list[int]]:
    """The frames of ``payloads`` that will stand at ``offset``, and where each of them will end.

    :param start: the ``seed``.
    """
    pieces: list[bytes] = []
    ends: list[int] = []
    pack = _FRAME.pack
    for payload in payloads:
        size = len(payload)
        word = MARKER << 24 | size
        pieces.append(pack(word, crc32(payload, (start + offset + word) & 0xFFFFFFFF)))
        pieces.append(payload)
        offset += FRAME_OVERHEAD + size
        ends.append(offset)
    return b"".join(pieces), ends


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that hold no intact record."""

    segment: int
    offset: int
    length: int
    reason: str

    def __str__(self) -> str:
        return f"segment {self.segment}, {self.length} bytes at {self.offset}: {self.reason}"


@dataclass(slots=True)
class Scan:
    """What ``scan`` found. Offsets are relative to the scanned bytes."""

    payloads: list[bytes]
    starts: list[int]  # of the frame of each payload
    gaps: list[tuple[int, int]]
    consumed: int  # everything before is accounted for by payloads and gaps
    stuck: bool  # at ``consumed`` lies a frame that is damaged, or not all there yet


def scan(data: bytes, base: int, start: int, *, final: bool, limit: int) -> Scan:
    """Find at most ``limit`` intact frames in ``data``, which starts at ``base`` of its segment.

    Without ``final`` more bytes may follow: the scan stops before the first frame that is not intact.
    With it ``data`` is all there is: what cannot be a frame becomes a gap up to the next intact one.
    """
    found = Scan([], [], [], 0, False)
    at, size = 0, len(data)
    while at < size and len(found.payloads) < limit:
        payload = _intact(data, at, base, start)
        if payload:
            found.payloads.append(payload)
            found.starts.append(at)
            found.consumed = at = at + FRAME_OVERHEAD + len(payload)
            continue
        if not final:
            found.stuck = True
            break
        resume = _next_intact(data, at + 1, base, start)
        found.gaps.append((at, resume))
        found.consumed = at = resume
    return found


def _intact(data: bytes, at: int, base: int, start: int) -> bytes:
    """The payload of the intact frame at ``at``; empty when there is none."""
    begin = at + FRAME_OVERHEAD
    if begin > len(data):
        return b""
    word, checksum = _FRAME.unpack_from(data, at)
    length = word & 0xFFFFFF
    if word >> 24 != MARKER or not 0 < length <= MAX_PAYLOAD or begin + length > len(data):
        return b""
    payload = data[begin : begin + length]
    return payload if crc32(payload, (start + base + at + word) & 0xFFFFFFFF) == checksum else b""


def _next_intact(data: bytes, at: int, base: int, start: int) -> int:
    """Where the first intact frame at or behind ``at`` begins; the end of ``data`` without one."""
    marker = bytes([MARKER])
    while (at := data.find(marker, at)) >= 0:
        if _intact(data, at, base, start):
            return at
        at += 1
    return len(data)
