"""A slice of the abuse that scripts/fuzz_websocket.py plays in full, and the judge judged."""

import json
from pathlib import Path

import pytest

from .abuse.cases import make_case
from .abuse.driver import Healthy, play, serving
from .abuse.rfc6455 import ALIVE, judge, server_frames

CASES = 1500


async def test_abuse_is_answered_by_the_rules(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        healthy = Healthy(server.port)
        async with healthy.beside():
            files, _ = server.usage()
            played = await play(server, 6455, range(CASES))
            assert played.wrong == []
            await server.has_only_the_healthy_one()
            now, _ = server.usage()
            assert now <= files + 3
        assert healthy.received > 0
        assert healthy.faults == []
        assert server.faults() == []
    assert played.cases == CASES


def test_a_case_is_determined_by_seed_and_number() -> None:
    assert make_case(1, 7) == make_case(1, 7)
    assert make_case(1, 7) != make_case(2, 7)


ZERO = b"\0\0\0\0"
JUDGED = [
    # Examples from RFC 6455 (5.7) and what its sections 5 to 8 say of others.
    ("818537fa213d7f9f4d5158", {ALIVE}, 1, []),  # "Hello", masked
    ("898537fa213d7f9f4d5158", {ALIVE}, 0, [b"Hello"]),
    ("810548656c6c6f", {1002, ALIVE}, 0, []),  # unmasked: known at the header
    ("8180" + "00000000" + "88820000000003e8", {1000}, 1, []),
    ("888000000000", {1000, 1005}, 0, []),
    ("88820000000003ed", {1002}, 0, []),  # 1005 is never on the wire
    ("8882000000000bb8" + "ffff", {3000, 1000}, 0, []),  # what follows a close is nothing
    ("88810000000003", {1002}, 0, []),
    ("8882" + "00000000" + "c328", {1002}, 0, []),
    ("8184" + "00000000" + "f0288cbc", {1007}, 0, []),
    ("0183" + "00000000" + "616263" + "8080" + "00000000", {ALIVE}, 1, []),
    ("0182" + "00000000" + "ce62", {ALIVE, 1007}, 0, []),
    ("8080" + "00000000", {1002}, 0, []),  # a continuation of nothing
    ("0181" + "00000000" + "61" + "8181" + "00000000" + "62", {1002}, 0, []),
    ("0980" + "00000000", {1002}, 0, []),  # a ping in fragments
    ("c180" + "00000000", {1002}, 0, []),  # a reserved bit
    ("8380" + "00000000", {1002}, 0, []),  # a reserved opcode
    ("81fe0001" + "00000000" + "61", {ALIVE, 1002}, 1, []),  # a length longer than it must be
    ("82ff0000000000010001" + "00000000", {1009}, 0, []),
    ("82ff8000000000000000", {1002, 1009}, 0, []),
    ("81", {ALIVE}, 0, []),
]


@pytest.mark.parametrize(("stream", "outcomes", "messages", "pings"), JUDGED)
def test_the_judge(
    stream: str, outcomes: set[int | None], messages: int, pings: list[bytes]
) -> None:
    verdict = judge(bytes.fromhex(stream), 65_536)
    assert verdict.outcomes == outcomes
    assert (verdict.messages, verdict.pings) == (messages, pings)


@pytest.mark.parametrize(
    "sent", ["8180" + "00000000", "c100", "0100", "8300", "817e0001" + "61", "8800" + "8100"]
)
def test_the_judge_sees_a_server_that_breaks_the_rules(sent: str) -> None:
    with pytest.raises(ValueError, match="the server sent"):
        server_frames(bytes.fromhex(sent))


def test_the_judge_reads_a_server() -> None:
    text = json.dumps({"type": "welcome"}).encode()
    stream = bytes((0x81, len(text))) + text + bytes.fromhex("8a00" + "8802" + "03e8" + "88")
    with pytest.raises(ValueError, match="after its close"):
        server_frames(stream + b"\0")
    found, rest = server_frames(stream)
    assert found == [(1, text), (10, b""), (8, b"\x03\xe8")]
    assert rest == b"\x88"
