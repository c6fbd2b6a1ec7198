"""The limit on how long processors take to wake: held in the session, let go after it, never in the way."""

import os
import struct
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from enhanced_websocket_service.service.cpu_latency import DEVICE, CpuLatency


def opened(path: Path) -> int:
    """How often this process has ``path`` open."""
    return [link.resolve() for link in Path("/proc/self/fd").iterdir()].count(path)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "cpu_dma_latency"
    path.touch()
    return path


def test_the_limit_is_written_and_the_file_stays_open_until_it_is_let_go(device: Path) -> None:
    limit = CpuLatency(70, device)
    assert not limit.held
    limit.hold()
    limit.hold()  # the state became active again: still one
    assert limit.held
    assert opened(device) == 1
    # The kernel's documentation: a binary 32-bit number, for as long as the file is open.
    assert struct.unpack("=i", device.read_bytes()) == (70,)
    limit.release()
    limit.release()
    assert not limit.held
    assert opened(device) == 0


def test_it_can_be_held_again_the_next_day(device: Path) -> None:
    limit = CpuLatency(0, device)
    for _ in range(2):
        limit.hold()
        assert opened(device) == 1
        limit.release()
    assert opened(device) == 0


def test_unset_nothing_is_asked_for(tmp_path: Path) -> None:
    limit = CpuLatency(None, tmp_path / "absent")
    with capture_logs() as logs:
        limit.hold()
        limit.release()
    assert not limit.held
    assert logs == []


@pytest.mark.parametrize("device", ["absent", "a folder"])
def test_where_it_cannot_be_set_the_log_says_so_and_nothing_fails(
    tmp_path: Path, device: str
) -> None:
    path = tmp_path / device
    if device == "a folder":
        path.mkdir()
    limit = CpuLatency(0, path)
    with capture_logs() as logs:
        limit.hold()
        limit.release()
    assert not limit.held
    (told,) = logs
    assert told["log_level"] == "warning"
    assert "CPU_LATENCY_US" in told["event"]
    assert told["device"] == str(path)


def test_a_device_that_refuses_the_number_is_closed_again() -> None:
    full = Path("/dev/full")  # every write fails with ENOSPC
    limit = CpuLatency(0, full)
    with capture_logs() as logs:
        limit.hold()
    assert not limit.held
    assert opened(full) == 0
    assert [told["log_level"] for told in logs] == ["warning"]


@pytest.mark.skipif(
    not os.access(DEVICE, os.W_OK), reason=f"{DEVICE} is absent or not writable for this user"
)
def test_the_real_device_takes_it() -> None:
    limit = CpuLatency(100)
    limit.hold()
    try:
        assert limit.held
        assert opened(DEVICE) == 1
    finally:
        limit.release()
    assert opened(DEVICE) == 0
