"""Which process is ours, and what its log said since it started."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from enhanced_websocket_service.storage.embedded.process import (
    LogFile,
    ServerProcess,
    find_process,
)


@pytest.fixture
def bystander(tmp_path: Path) -> Iterator[psutil.Process]:
    with subprocess.Popen(
        [sys.executable, "-c", "print('up', flush=True); input()"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout
        process.stdout.readline()
        yield psutil.Process(process.pid)
        process.communicate(b"\n")


def test_a_process_is_ours_only_if_name_folder_and_user_fit(
    bystander: psutil.Process, tmp_path: Path
) -> None:
    pid, name, uid = bystander.pid, bystander.name(), os.geteuid()
    assert find_process(pid, name, tmp_path, uid) == bystander
    assert find_process(pid, "postgres", tmp_path, uid) is None
    assert find_process(pid, name, tmp_path.parent, uid) is None
    assert find_process(pid, name, tmp_path, uid + 1) is None
    for absent in (0, -1, 2**31 - 1, 2**70):
        assert find_process(absent, name, tmp_path, uid) is None


def test_a_zombie_is_no_process(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""], cwd=tmp_path)
    name = psutil.Process(child.pid).name()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, not reaped
    assert find_process(child.pid, name, tmp_path, os.geteuid()) is None
    child.wait()


def test_the_tail_shows_only_what_came_after_the_start(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "server.log")
    log.path.write_text("an old complaint\n")
    descriptor = log.open()
    os.write(descriptor, b"one\ntwo\nthree\xff\n")
    os.close(descriptor)
    assert log.tail(2) == "two\nthree\N{REPLACEMENT CHARACTER}"
    assert "old" not in log.tail()


def test_a_log_is_never_followed_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "server.log").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match=r"server\.log"):
        LogFile(tmp_path / "server.log").open()
    assert not (tmp_path / "target").exists()


def test_a_grown_log_starts_anew_and_the_old_one_is_kept(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "server.log")
    with log.path.open("wb") as file:
        file.truncate(10_000_001)
    os.close(log.open())
    assert log.path.stat().st_size == 0
    assert (tmp_path / "server.log.1").stat().st_size == 10_000_001


FORKS = """
i=0; while [ $i -lt 500 ]; do i=$((i+1)); (echo x >> file; exec sleep 60) & done; wait
"""


async def test_no_descendant_outlives_the_kill_of_one_that_forks_all_the_time(
    tmp_path: Path,
) -> None:
    """As initdb does; a descendant left over would write into the folder that is deleted next."""
    work = tmp_path / "work"
    work.mkdir()
    for _ in range(10):
        server = ServerProcess(
            "sh",
            cwd=work,
            record=tmp_path / "record.json",
            log_path=tmp_path / "log",
            account=None,
            stop_signal=signal.SIGKILL,
        )
        server.spawn(["/bin/sh", "-c", FORKS])
        while not (work / "file").exists():
            assert server.is_alive()
        await server.kill()
        left = [p for p in psutil.process_iter() if _works_in(p, work)]
        assert left == []
        (work / "file").unlink()


def _works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(folder)
    except psutil.Error:
        return False
