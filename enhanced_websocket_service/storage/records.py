"""What the journal holds: ticks, rejections, published bars, new epochs; to bytes and back.

A payload is one byte for the kind, then the msgpack of the struct. Kinds are never renumbered, and
structs only grow at their end with defaults: old journals stay readable.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.tick import Rejection, Tick

Record = Tick | Rejection | BarUpdate | EpochStarted

MAX_RAW_CHARACTERS: Final = 4096
"""A vendor frame that was refused is evidence, not cargo: more of it is cut off."""

_KINDS: Final[dict[type[Record], bytes]] = {
    Tick: b"T",
    Rejection: b"R",
    BarUpdate: b"B",
    EpochStarted: b"E",
}
_DECODERS: Final[dict[int, msgspec.msgpack.Decoder[Record]]] = {
    kind[0]: msgspec.msgpack.Decoder(type_) for type_, kind in _KINDS.items()
}
_encoder: Final = msgspec.msgpack.Encoder()


class UnreadableRecord(ValueError):
    """A payload whose checksum is right but whose content this version does not understand."""


def encode(record: Record) -> bytes:
    """The payload of ``record``.

    :raises JournalError: a number beyond 64 bits or text that is not Unicode, naming the record.
    """
    if isinstance(record, Rejection) and record.raw:
        record = _printable(record)
    try:
        return _KINDS[type(record)] + _encoder.encode(record)
    except (OverflowError, UnicodeEncodeError) as error:
        raise JournalError(f"A record cannot be encoded ({error}): {record!r:.300}") from error


def decode(payload: bytes | memoryview) -> Record:
    """The record in ``payload``; raises ``UnreadableRecord``."""
    decoder = _DECODERS.get(payload[0])
    if decoder is None:
        raise UnreadableRecord(f"unknown record kind {payload[0]:#04x}: written by a newer version")
    try:
        return decoder.decode(payload[1:])
    except msgspec.DecodeError as error:
        raise UnreadableRecord(f"not a {chr(payload[0])} record: {error}") from error


def describe(records: Sequence[Record]) -> str:
    """How many of which kind, for logs: ``12 Tick, 1 BarUpdate``."""
    counts: dict[str, int] = {}
    for record in records:
        name = type(record).__name__
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _printable(rejection: Rejection) -> Rejection:
    """The vendor may send text that is no Unicode (lone surrogates); its refusal is kept anyway."""
    raw = rejection.raw[:MAX_RAW_CHARACTERS].encode("utf-8", "backslashreplace").decode()
    return msgspec.structs.replace(rejection, raw=raw)
