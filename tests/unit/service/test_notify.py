"""What systemd is told, and that nothing it does or lacks can hurt."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from enhanced_websocket_service.market.events import StatusChanged
from enhanced_websocket_service.service.notify import Notifier


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        address = str(tmp_path / "notify")
        listener.bind(address)
        listener.setblocking(False)
        yield address, listener


def status(state: str, reason: str = "because") -> StatusChanged:
    return StatusChanged(state, reason, "closed", 0.0)


def heard(listener: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(listener.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_ready_once_every_state_and_the_stop(systemd: tuple[str, socket.socket]) -> None:
    address, listener = systemd
    notifier = Notifier.from_environ({"NOTIFY_SOCKET": address})
    notifier.on_events([status("initializing", "Starting."), status("waiting_l0", "a\nREADY=1")])
    notifier.on_events([status("shutdown", "Stopping.")])
    assert heard(listener) == [
        "STATUS=initializing: Starting.\nREADY=1",
        "STATUS=waiting_l0: a READY=1",
        "STATUS=shutdown: Stopping.\nSTOPPING=1",
    ]


async def test_signs_of_life_come_from_the_loop(systemd: tuple[str, socket.socket]) -> None:
    address, listener = systemd
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2000", "WATCHDOG_PID": "77"}
    task = asyncio.create_task(Notifier.from_environ(environ, pid=77).keep_alive())
    async with asyncio.timeout(20):
        messages: list[str] = []
        while len(messages) < 3:
            await asyncio.sleep(0)
            messages += heard(listener)
    assert set(messages) == {"WATCHDOG=1"}
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"WATCHDOG_USEC": "1000"},
        {"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "78"},
        {"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "soon"},
        {"NOTIFY_SOCKET": "x", "WATCHDOG_USEC": "0"},
    ],
)
async def test_without_a_socket_or_a_period_for_us_there_are_none(environ: dict[str, str]) -> None:
    await Notifier.from_environ(environ, pid=77).keep_alive()


def test_a_socket_that_is_gone_is_no_failure(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "nowhere")).on_events([status("active")])
    Notifier("@ews-test-nobody-listens").on_events([status("active")])
    Notifier(None).on_events([status("active")])
