import msgspec
import pytest

from enhanced_websocket_service.errors import JournalError
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.storage.records import (
    MAX_RAW_CHARACTERS,
    Record,
    UnreadableRecord,
    decode,
    encode,
)
from tests.storage_samples import CERTIFICATE, OPEN, bar, rejected, tick, update


@pytest.mark.parametrize(
    "record",
    [
        tick(1, flags=("crossed", "received")),
        tick(2, bid=None, ask=None),
        rejected("unparsable", price=None, raw='{"price": "abc"}'),
        update(bar(certificate=CERTIFICATE), at=OPEN + 301.0, offset=7),
        EpochStarted("USDCOP", 5, 4, 100),
        EpochStarted("USDCOP", 1, None, None),
    ],
)
def test_every_kind_survives_the_round_trip(record: Record) -> None:
    assert decode(encode(record)) == record
    assert decode(memoryview(encode(record))) == record


def test_a_kind_of_a_newer_version_is_named() -> None:
    with pytest.raises(UnreadableRecord, match="unknown record kind 0x5a"):
        decode(b"Z" + encode(tick(1))[1:])


def test_content_that_does_not_fit_its_kind_is_refused() -> None:
    with pytest.raises(UnreadableRecord, match="not a T record"):
        decode(b"T" + msgspec.msgpack.encode(["USDCOP"]))


def test_what_the_vendor_sent_is_kept_even_when_it_is_no_unicode() -> None:
    raw = '{"symbol": "\ud800"}' + "x" * 10_000
    kept = decode(encode(rejected("unparsable", raw=raw)))
    assert kept.raw.startswith('{"symbol": "\\ud800"}x')  # type: ignore[union-attr]
    assert len(kept.raw) <= MAX_RAW_CHARACTERS + 10  # type: ignore[union-attr]


def test_a_number_beyond_64_bits_is_an_error_that_names_the_record() -> None:
    with pytest.raises(JournalError, match="volume=36893488147419103232"):
        encode(tick(1, volume=2**65))
