import asyncio
import json
import os
import threading
import time
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from enhanced_websocket_service.errors import L0Error
from enhanced_websocket_service.l0.readiness import MAX_BYTES, FlagState, ReadyFlag, parse_flag

from .fakes import StillClock, at

NOW = at("2025-06-03T07:00")


def flag(directory: Path, poll_s: float = 2.0) -> ReadyFlag:
    return ReadyFlag(directory, StillClock(NOW), poll_s=poll_s)


@pytest.mark.parametrize(
    "content",
    [
        b'{"ready": true}',
        b'{"ready": true, "timestamp": "2025-01-20T07:00:00-05:00"}\n',
        b'\xef\xbb\xbf{"ready": true}',  # the mark some editors put first
        b' \r\n{"ready":\ttrue, "rows": 3, "nested": {"a": [1, 2]}}\r\n',
    ],
)
def test_an_object_with_ready_true_counts_at_once(content: bytes) -> None:
    state = parse_flag(content, unchanged_s=0)
    assert state.ready
    assert state.exists
    assert state.problem is None


def test_the_requirements_sample_keeps_its_timestamp() -> None:
    sample = b'{"ready": true, "timestamp": "2025-01-20T07:00:00-05:00"}'
    assert parse_flag(sample, 0).timestamp == "2025-01-20T07:00:00-05:00"
    assert parse_flag(b'{"ready": true, "timestamp": 1737374400}', 0).timestamp is None


@pytest.mark.parametrize("content", [b"", b"\n", b" \r\n\t"])
def test_an_empty_file_counts_after_two_unchanged_seconds(content: bytes) -> None:
    young = parse_flag(content, unchanged_s=1.99)
    assert not young.ready
    assert young.settling
    assert young.problem is not None
    assert "empty" in young.problem
    assert parse_flag(content, unchanged_s=2.0) == FlagState(exists=True, ready=True, problem=None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"ready": tru', "not valid JSON"),
        (b"ready", "not valid JSON"),
        (b"{'ready': true}", "not valid JSON"),
        (b'{"ready": True}', "not valid JSON"),
        (b"\x00\x00", "not valid JSON"),
        (b"\xff\xfe{", "not valid JSON"),
        (b"[" * 60_000, "not valid JSON"),
        (b"9" * 5_000, "not valid JSON"),
        (b"true", "not an object"),
        (b"null", "not an object"),
        (b"1", "not an object"),
        (b'[{"ready": true}]', "not an object"),
        (b"{}", 'no field "ready"'),
        (b'{"Ready": true}', 'no field "ready"'),
        (b'{"ready": false}', '"ready": false'),
        (b'{"ready": "true"}', '"ready": "true"'),
        (b'{"ready": 1}', '"ready": 1'),
        (b'{"ready": null}', '"ready": null'),
        (b'{"ready": true}' + b" " * MAX_BYTES, "larger than"),
    ],
)
def test_everything_else_does_not_count_and_says_so(content: bytes, said: str) -> None:
    state = parse_flag(content, unchanged_s=3600)
    assert state.exists
    assert not state.ready
    assert not state.settling
    assert state.problem is not None
    assert said in state.problem


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    absent = flag(tmp_path).read()
    assert not absent.exists
    assert "There is no ready flag" in str(absent.problem)
    no_directory = flag(tmp_path / "gone").read()
    assert not no_directory.exists
    assert "does not exist" in str(no_directory.problem)


def test_reading_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "l0_ready.flag").mkdir()
    state = flag(tmp_path).read()
    assert (state.exists, state.ready) == (True, False)
    assert "cannot be read" in str(state.problem)


def test_a_fifo_does_not_hang_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "l0_ready.flag")
    assert "not a regular file" in str(flag(tmp_path).read().problem)


def test_a_dangling_or_circling_link_is_no_flag(tmp_path: Path) -> None:
    link = tmp_path / "l0_ready.flag"
    link.symlink_to(tmp_path / "nowhere")
    assert not flag(tmp_path).read().ready
    link.unlink()
    link.symlink_to(link)
    assert "cannot be read" in str(flag(tmp_path).read().problem)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "l0_ready.flag"
    path.write_text('{"ready": true}')
    path.chmod(0)
    state = flag(tmp_path).read()
    assert (state.exists, state.ready) == (True, False)
    assert "Permission denied" in str(state.problem)


def test_a_huge_file_is_read_in_part_only(tmp_path: Path) -> None:
    path = tmp_path / "l0_ready.flag"
    with path.open("wb") as file:
        file.truncate(10**12)  # sparse: reading it whole would exhaust the memory
    assert "larger than" in str(flag(tmp_path).read().problem)


def test_the_age_of_an_empty_file_is_its_stamp(tmp_path: Path) -> None:
    path = tmp_path / "l0_ready.flag"
    path.touch()
    subject = flag(tmp_path)
    assert subject.read().settling
    os.utime(path, (time.time() - 3, time.time() - 3))
    assert subject.read().ready


def test_write_and_withdraw(tmp_path: Path) -> None:
    subject = flag(tmp_path / "signals" / "deep")
    assert subject.withdraw() is False
    subject.write({"rows": 3})
    assert json.loads(subject.path.read_text()) == {
        "ready": True,
        "timestamp": "2025-06-03T07:00:00-05:00",
        "rows": 3,
    }
    state = subject.read()
    assert state.ready
    assert state.timestamp == "2025-06-03T07:00:00-05:00"
    assert state.details["rows"] == 3
    assert [one.name for one in subject.directory.iterdir()] == ["l0_ready.flag"]
    assert subject.withdraw() is True
    assert not subject.read().exists


def test_unusable_directories_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    subject = flag(tmp_path / "file")
    with pytest.raises(L0Error, match="READY_SIGNALS_DIR: cannot write"):
        subject.write()
    assert subject.withdraw() is False
    assert not subject.read().ready
    (tmp_path / "l0_ready.flag").mkdir()
    with pytest.raises(L0Error, match="READY_SIGNALS_DIR: cannot remove"):
        flag(tmp_path).withdraw()


class Watcher:
    """Runs ``wait`` and lets a test await what it reports."""

    def __init__(self, subject: ReadyFlag) -> None:
        self._threads = set(threading.enumerate())
        self.states: asyncio.Queue[FlagState] = asyncio.Queue()
        self.task = asyncio.create_task(subject.wait(self.states.put_nowait))

    async def next(self) -> FlagState:
        async with asyncio.timeout(20):
            return await self.states.get()

    async def watching(self) -> None:
        """Return once the thread that waits for file events runs."""
        async with asyncio.timeout(20):
            while not set(threading.enumerate()) - self._threads:
                await asyncio.sleep(0)

    async def result(self) -> FlagState:
        async with asyncio.timeout(20):
            return await self.task


async def test_waiting_returns_at_once_when_ready(tmp_path: Path) -> None:
    subject = flag(tmp_path)
    subject.write()
    with capture_logs() as logs:
        watcher = Watcher(subject)
        assert (await watcher.result()).ready
    assert (await watcher.next()).ready
    assert "L0 ready signal detected" in [entry["event"] for entry in logs]


async def test_a_flag_is_told_once_and_again_when_it_has_changed(tmp_path: Path) -> None:
    subject = flag(tmp_path)

    async def told() -> int:
        with capture_logs() as logs:
            for _ in range(3):
                assert (await Watcher(subject).result()).ready
        return [entry["event"] for entry in logs].count("L0 ready signal detected")

    subject.write()
    assert await told() == 1
    assert await told() == 0
    subject.path.write_text('{"ready": true, "writer": "somebody else"}')
    assert await told() == 1
    content = subject.path.read_bytes()
    stamp = subject.path.stat().st_mtime_ns
    subject.withdraw()
    assert not subject.read().ready
    subject.path.write_bytes(content)
    os.utime(subject.path, ns=(stamp, stamp))
    assert await told() == 1


async def test_waiting_tells_every_change_and_wakes_by_events(tmp_path: Path) -> None:
    # A poll of an hour: only file events can wake it.
    watcher = Watcher(flag(tmp_path, poll_s=3600))
    path = tmp_path / "l0_ready.flag"
    assert "There is no ready flag" in str((await watcher.next()).problem)
    await watcher.watching()
    path.write_text("{broken")
    assert "not valid JSON" in str((await watcher.next()).problem)
    path.write_text('{"ready": false}')
    while "only true counts" not in str((await watcher.next()).problem):
        pass  # the moment between truncation and writing may be seen too
    flag(tmp_path).write()
    assert (await watcher.result()).ready


async def test_waiting_copes_with_a_directory_that_comes_later(tmp_path: Path) -> None:
    watcher = Watcher(flag(tmp_path / "later", poll_s=0.02))
    assert "does not exist" in str((await watcher.next()).problem)
    (tmp_path / "later").mkdir()
    assert "There is no ready flag" in str((await watcher.next()).problem)
    flag(tmp_path / "later").write()
    assert (await watcher.result()).ready


async def test_a_touched_file_is_ready_after_two_seconds(tmp_path: Path) -> None:
    path = tmp_path / "l0_ready.flag"
    path.touch()
    stamp = path.stat().st_mtime
    watcher = Watcher(flag(tmp_path))
    assert (await watcher.next()).settling
    assert (await watcher.result()).ready
    assert time.time() - stamp >= 2.0


async def test_an_empty_file_stamped_in_the_future_is_ready_too(tmp_path: Path) -> None:
    path = tmp_path / "l0_ready.flag"
    path.touch()
    ahead = time.time() + 86_400
    os.utime(path, (ahead, ahead))
    assert (await Watcher(flag(tmp_path)).result()).ready


async def test_cancellation_leaves_no_task_and_no_busy_thread(tmp_path: Path) -> None:
    watcher = Watcher(flag(tmp_path))
    await watcher.next()
    await watcher.watching()
    began = time.monotonic()
    watcher.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watcher.task
    assert time.monotonic() - began < 4.5  # a cancelled awatch alone would take five seconds
    assert [task.get_name() for task in asyncio.all_tasks()] == [
        asyncio.current_task().get_name()  # type: ignore[union-attr]
    ]


async def test_what_the_listener_raises_reaches_the_caller(tmp_path: Path) -> None:
    def listener(_state: FlagState) -> None:
        raise ValueError("listener")

    with pytest.raises(ValueError, match="listener"):
        await flag(tmp_path).wait(listener)
    assert len(asyncio.all_tasks()) == 1
