"""The format as docs/reference/journal.md tells it, read by a program that knows nothing else."""

import struct
import uuid
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec

from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.storage.journal import Journal
from tests.storage_samples import CERTIFICATE, OPEN, SYMBOL, bar, rejected, tick, ticks, update


def by_the_book(directory: Path) -> list[tuple[str, Any]]:
    """Every record of an undamaged journal: its letter and what MessagePack makes of it."""
    identity = uuid.UUID((directory / "journal_id").read_text().strip())
    found: list[tuple[str, Any]] = []
    for path in sorted(directory.glob("*.journal")):
        content = path.read_bytes()
        magic, version, zero, journal, number, first, before, end, _begun, checksum = struct.unpack(
            ">4sHH16sQQQQdI", content[:68]
        )
        assert (magic, version, zero, number) == (b"EWSJ", 1, 0, int(path.stem))
        assert (uuid.UUID(bytes=journal), first) == (identity, len(found))
        assert checksum == crc32(content[:64])
        if before:
            assert (directory / f"{before:020d}.journal").stat().st_size == end
        seed = crc32(identity.bytes + struct.pack(">Q", number))
        at = 68
        while at < len(content):
            word, checksum = struct.unpack_from(">II", content, at)
            assert word >> 24 == 0xEC
            payload = content[at + 8 : at + 8 + (word & 0xFFFFFF)]
            assert checksum == crc32(payload, (seed + at + word) % 2**32)
            found.append((chr(payload[0]), msgspec.msgpack.decode(payload[1:])))
            at += 8 + len(payload)
    return found


def test_a_reader_made_from_the_documentation(tmp_path: Path) -> None:
    whole = bar(certificate=CERTIFICATE)
    journal = Journal.open(tmp_path, segment_bytes=1000)
    journal.append([EpochStarted(SYMBOL, 1, None, 7)])
    for i in range(1, 40, 3):
        journal.append(ticks(3, first=i))
    journal.append(
        [tick(40, flags=("crossed",)), rejected(raw="x"), update(whole, at=OPEN + 301.0)]
    )
    journal.close()
    found = by_the_book(tmp_path)
    assert [letter for letter, _ in found] == ["E", *"T" * 40, "R", "B"]
    assert found[0][1] == {
        "symbol": SYMBOL,
        "epoch": 1,
        "previous_epoch": None,
        "previous_last_offset": 7,
    }
    one = tick(40, flags=("crossed",))
    assert found[40][1] == [
        *(one.symbol, one.epoch, one.offset, one.timestamp, one.price, one.bid, one.ask),
        *(one.volume, one.source, one.received_at, one.trading_session, ["crossed"]),
    ]
    refused = rejected(raw="x")
    assert found[41][1] == [
        *(refused.symbol, refused.timestamp, refused.price, refused.bid, refused.ask),
        *(refused.source, refused.received_at, refused.reason, refused.raw),
        *(refused.volume, refused.stamped),
    ]
    assert found[42][1]["bar"] == msgspec.to_builtins(whole)
    assert found[42][1]["published_at"] == OPEN + 301.0
