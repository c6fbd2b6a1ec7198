"""Key ledgers on file: after a restart, and between processes that run at once."""

import fcntl
import json
import subprocess
import sys
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.service.ledgers import KeyLedgers
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Lease, Wait
from tests.unit.feeds.clocks import ManualClock

NOON = 1_749_038_401.0


def ledgers(
    directory: Path,
    *,
    keys: int = 1,
    now: float = NOON,
    day_limit: int = 800,
    minute_limit: int = 8,
    lock_within_s: float = 60.0,
) -> tuple[KeyLedgers, KeyPool]:
    pool = KeyPool(
        [ApiKey(f"G1_{i + 1}", f"a-secret-{i}") for i in range(keys)],
        spacing_s=0,
        minute_limit=minute_limit,
        day_limit=day_limit,
    )
    clock = ManualClock(now)
    return KeyLedgers(
        pool, directory / "state", clock, Failures(clock), lock_within_s=lock_within_s
    ), pool


def call(saved: KeyLedgers, keys: KeyPool, now: float = NOON, purpose: str = "poll") -> bool:
    """As ``RestClient`` does it; whether there was a key."""
    with saved.shared():
        answer = keys.acquire(now, 1, purpose)
    if isinstance(answer, Lease):
        with saved.shared():
            keys.report(answer, "ok", now)
    return isinstance(answer, Lease)


def test_what_was_spent_is_known_after_a_restart(tmp_path: Path) -> None:
    saved, keys = ledgers(tmp_path)
    for _ in range(8):
        assert call(saved, keys)
    content = (tmp_path / "state" / "keys.json").read_bytes()
    assert b"a-secret" not in content
    again, fresh = ledgers(tmp_path, now=NOON + 1)
    again.sync()
    answer = fresh.acquire(NOON + 1)
    assert isinstance(answer, Wait)
    assert answer.until == NOON + 60
    assert fresh.budget(NOON + 1).spent == {"poll": 8}


def test_the_file_of_an_earlier_version_is_understood(tmp_path: Path) -> None:
    saved, keys = ledgers(tmp_path)
    call(saved, keys)
    path = tmp_path / "state" / "keys.json"
    old = json.loads(path.read_bytes())
    del old["spending"]
    for one in old["keys"].values():
        del one["minute_carry"], one["day_carry"]
    path.write_text(json.dumps(old))
    again, fresh = ledgers(tmp_path)
    again.sync()
    assert fresh.budget(NOON).spent == {"poll": 1}
    assert fresh.left(NOON) == 799


def test_a_service_and_a_command_share_one_set_of_credits(tmp_path: Path) -> None:
    service, its_keys = ledgers(tmp_path, keys=2)
    command, own_keys = ledgers(tmp_path, keys=1)
    spent = 0
    for turn in range(20):
        if turn % 2:
            spent += call(service, its_keys)
        else:
            spent += call(command, own_keys, purpose="backfill")
    assert spent == 16, "the command's only key has 8 credits a minute, the service one more"
    service.sync()
    command.sync()
    assert its_keys.budget(NOON).spent == own_keys.budget(NOON).spent
    assert sum(its_keys.budget(NOON).spent.values()) == spent
    assert its_keys.left(NOON) == 1600 - spent
    third, all_keys = ledgers(tmp_path, keys=2)
    third.sync()
    assert all_keys.left(NOON) == 1600 - spent, "a key the command does not have stays on file"


def test_while_the_lock_cannot_be_had_spending_is_kept_and_exchanged_later(
    tmp_path: Path,
) -> None:
    first, keys = ledgers(tmp_path, lock_within_s=0.0)
    second, others = ledgers(tmp_path)
    call(first, keys)
    with (tmp_path / "state" / "keys.lock").open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        with capture_logs() as logs:
            for _ in range(3):
                assert call(first, keys), "another process that hangs is no obstacle"
        assert len(logs) == 1
    call(second, others)
    assert others.left(NOON) == 798
    first.sync()
    second.sync()
    assert keys.left(NOON) == others.left(NOON) == 795


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff"])
def test_a_file_that_cannot_be_used_is_no_obstacle(tmp_path: Path, content: bytes) -> None:
    saved, keys = ledgers(tmp_path)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "keys.json").write_bytes(content)
    saved.sync()
    assert call(saved, keys)
    again, fresh = ledgers(tmp_path)
    again.sync()
    assert fresh.left(NOON) == 799


def test_a_directory_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    saved, keys = ledgers(tmp_path)
    with capture_logs() as logs:
        for _ in range(3):
            assert call(saved, keys)
    assert len(logs) == 1


_PROCESS = """
import sys
from pathlib import Path
from tests.unit.service.test_ledgers import NOON, call, ledgers

limit = int(sys.argv[2])
saved, keys = ledgers(Path(sys.argv[1]), keys=4, day_limit=limit, minute_limit=limit)
sys.stdin.read(1)
print(sum(call(saved, keys, purpose=sys.argv[3]) for _ in range(400)))
"""


def test_processes_at_once_neither_lose_nor_double_a_credit(tmp_path: Path) -> None:
    day_limit = 300
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(tmp_path), str(day_limit), f"purpose-{i}"],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("x")
        process.stdin.flush()
    spent = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert sum(spent) == 4 * day_limit, "1,600 calls were tried, the keys have 1,200"
    saved, keys = ledgers(tmp_path, keys=4, day_limit=day_limit)
    saved.sync()
    assert keys.left(NOON) == 0
    assert keys.budget(NOON).spent == {f"purpose-{i}": n for i, n in enumerate(spent)}
