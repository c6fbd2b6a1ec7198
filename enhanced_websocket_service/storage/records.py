"""What the journal holds: ticks, rejections, published bars, new epochs; to bytes and back.

A payload is one byte for the kind, then the msgpack of the struct. Kinds are never renumbered, and
structs only grow at their end with defaults: old journals stay readable.
"""

import struct
from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
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
_tick_lists: Final = msgspec.msgpack.Decoder(list[Tick])
_TICK: Final = _KINDS[Tick][0]
_ARRAY_HEAD: Final = struct.Struct(">BI")
_ARRAY_32: Final = 0xDD  # how msgpack begins an array of up to 2**32 items
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


def encode_all(records: Sequence[Record]) -> list[bytes]:
    """The payloads of ``records``; raises as ``encode``."""
    kind, to_bytes = _KINDS[Tick], _encoder.encode
    try:
        return [
            kind + to_bytes(record) if type(record) is Tick else encode(record)
            for record in records
        ]
    except (OverflowError, UnicodeEncodeError):
        return [encode(record) for record in records]  # which names the one at fault


def decode(payload: bytes | memoryview) -> Record:
    """The record in ``payload``; raises ``UnreadableRecord``."""
    decoder = _DECODERS.get(payload[0])
    if decoder is None:
        raise UnreadableRecord(f"unknown record kind {payload[0]:#04x}: written by a newer version")
    try:
        return decoder.decode(payload[1:])
    except msgspec.DecodeError as error:
        raise UnreadableRecord(f"not a {chr(payload[0])} record: {error}") from error


def decode_all(payloads: Sequence[bytes]) -> list[Record]:
    """The records in ``payloads``; neighbouring ticks are decoded by one call.

    :raises UnreadableRecord: at least one of them is; ``decode`` tells which.
    """
    records: list[Record] = []
    for kind, group in groupby(payloads, key=itemgetter(0)):
        if kind != _TICK:
            records += map(decode, group)
            continue
        bodies = [payload[1:] for payload in group]
        head = _ARRAY_HEAD.pack(_ARRAY_32, len(bodies))
        try:
            records += _tick_lists.decode(head + b"".join(bodies))
        except msgspec.DecodeError as error:
            raise UnreadableRecord(f"one of {len(bodies)} ticks is none: {error}") from error
    return records


def source_of(record: Record) -> str | None:
    """Where the price in ``record`` comes from; ``None``: there is none in it."""
    if isinstance(record, BarUpdate):
        return record.bar.source
    return None if isinstance(record, EpochStarted) else record.source


def _printable(rejection: Rejection) -> Rejection:
    """The vendor may send text that is no Unicode (lone surrogates); its refusal is kept anyway."""
    raw = rejection.raw[:MAX_RAW_CHARACTERS].encode("utf-8", "backslashreplace").decode()
    return msgspec.structs.replace(rejection, raw=raw)
