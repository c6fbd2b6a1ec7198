"""The proof about slow clients: that it can fail, and a short run of it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fanout.running import bench
from tests.e2e.slow_readers import SlowMember, joined, lacking

ROOT = Path(__file__).resolve().parents[2]
EPOCH = 7


def account(*events: int | tuple[int, int]) -> list[str]:
    """The faults of a client that was welcomed at offset 10, then got ticks and ``skipped``."""
    faults: list[str] = []
    member = SlowMember("client", faults)
    member.other(json.dumps({"type": "welcome", "epoch": EPOCH, "offsets": {"A": 10}}).encode())
    for event in events:
        if isinstance(event, int):
            member.tick((EPOCH, event))
            continue
        first, last = event
        told = {"epoch": EPOCH, "from": first, "to": last, "reason": "slow_client"}
        member.other(json.dumps({"type": "skipped", **told}).encode())
    member.compare()
    return faults


def test_an_account_without_a_fault() -> None:
    assert account(11, 12, (13, 15), (16, 16), 17, 18, (19, 30)) == []


@pytest.mark.parametrize(
    "events",
    [
        pytest.param((11, 13), id="a hole"),
        pytest.param((11, 11), id="a double"),
        pytest.param((11, (12, 14), 16), id="less named than missing"),
        pytest.param((11, (12, 14), 14), id="named and got"),
        pytest.param((11, (11, 14), 15), id="got and named"),
    ],
)
def test_a_false_account_is_found(events: tuple[int | tuple[int, int], ...]) -> None:
    assert account(*events) != []


def test_ranges() -> None:
    assert lacking([], 3, 5) == [(3, 5)]
    assert lacking([(1, 5)], 1, 5) == []
    assert lacking([(2, 3), (6, 6)], 1, 9) == [(1, 1), (4, 5), (7, 9)]
    assert joined([(4, 5), (1, 2), (6, 9)]) == [(1, 2), (4, 9)]


def test_a_short_run() -> None:
    """Everything but the ratio, which says nothing on a busy machine."""
    try:
        with bench():
            pass
    except RuntimeError as error:
        pytest.skip(str(error))
    options = ["--minutes", "0.06", "--segments", "1", "--clients", "20", "--rate", "400"]
    run = subprocess.run(
        [sys.executable, ROOT / "scripts" / "prove_slow_clients.py", *options],
        capture_output=True,
        text=True,
        check=False,
    )
    result = json.loads(run.stdout)
    assert result["faults"] == []
    assert run.returncode == (0 if result["p99_good"] else 1)
