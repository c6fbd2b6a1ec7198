"""Terminals that are closed, and their signals: an orderly end, and no private server left running."""

import asyncio
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest

from tests.waiting import PATIENCE, eventually

from .conftest import start_demo
from .playback import ROOT, Process, free_port
from .rig import WITHIN_S, Rig
from .test_demo import healthy, leftovers

EVENING = "2025-06-24T20:00:00-05:00"


class Terminal:
    """A terminal with one command in it, which leads its session as a login shell does."""

    def __init__(self, *arguments: str) -> None:
        self.ours, theirs = pty.openpty()
        os.set_blocking(self.ours, False)
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "enhanced_websocket_service", *arguments],
            cwd=ROOT,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    async def said(self, text: str) -> None:
        async def line() -> bool | None:
            with suppress(BlockingIOError):
                while more := os.read(self.ours, 1 << 16):
                    self.seen += more.decode(errors="replace")
            assert self.process.poll() is None, self.seen
            return text in self.seen or None

        await eventually(line, WITHIN_S, lambda: f"{text!r} in {self.seen}")

    def close(self) -> None:
        os.close(self.ours)

    async def exit_code(self) -> int:
        return await asyncio.to_thread(self.process.wait, PATIENCE * WITHIN_S)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    left = leftovers(tmp_path)
    for process in psutil.process_iter():  # after a failure: the next test must not meet them
        with suppress(psutil.Error):
            if str(tmp_path) in " ".join([*process.cmdline(), process.cwd()]):
                process.kill()
    assert left == []


async def servers_run(folder: Path) -> None:
    """Wait until PostgreSQL of some state folder below ``folder`` has been started."""
    records = partial(folder.rglob, "embedded/postgres.json")

    async def started() -> bool | None:
        return any(records()) or None

    await eventually(started, WITHIN_S, "PostgreSQL")


async def test_a_demo_whose_terminal_is_closed_ends_in_order(folder: Path) -> None:
    terminal = Terminal("demo", "--port", str(free_port()), "--state-dir", str(folder / "state"))
    await terminal.said("All prices are invented")
    terminal.close()
    assert await terminal.exit_code() == 0


async def test_a_run_in_a_terminal_ends_with_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in rig.environ.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal("run", "--port", str(free_port()))
    await terminal.said("Serving clients")
    terminal.close()
    assert await terminal.exit_code() == 0


async def test_a_terminal_that_stands_still_holds_neither_the_service_nor_its_end_up(
    folder: Path,
) -> None:
    port = free_port()
    terminal = Terminal("demo", "--port", str(port), "--state-dir", str(folder / "state"))
    await terminal.said("All prices are invented")
    os.write(terminal.ours, b"\x13")  # Ctrl-S
    await healthy(port, WITHIN_S)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:

        async def active() -> bool | None:
            return (await http.get("/status")).json()["service_status"] == "active" or None

        await eventually(active, WITHIN_S, "state active")
    terminal.process.send_signal(signal.SIGHUP)
    assert await terminal.exit_code() == 0
    terminal.close()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT], ids=lambda one: one.name)
async def test_a_demo_takes_the_signals_of_a_terminal_for_ctrl_c(
    folder: Path, number: signal.Signals
) -> None:
    process, _ = await start_demo(folder)
    await process.said("All prices are invented")
    assert await process.stop(number) == 0
    assert f'"signal": "{number.name}"' in process.text()
    assert "Nothing is left running." in process.text()


async def test_a_terminal_that_says_twice_that_it_is_closed_still_gets_an_orderly_end(
    folder: Path,
) -> None:
    process, _ = await start_demo(folder)
    await process.said("All prices are invented")
    os.kill(process.pid, signal.SIGHUP)
    await process.said("Stopping: draining")
    assert await process.stop(signal.SIGHUP) == 0
    assert "Second signal" not in process.text()
    assert "Nothing is left running." in process.text()


async def test_a_run_with_private_servers_ends_on_sighup(rig: Rig) -> None:
    process = await rig.run(DATABASE_URL=None, REDIS_URL=None, EMBEDDED="1")
    await process.said("Serving clients")
    assert await process.stop(signal.SIGHUP) == 0
    assert leftovers(rig.folder) == []


async def test_a_run_with_servers_of_others_and_no_terminal_outlives_sighup(rig: Rig) -> None:
    process = await rig.run()
    await process.said("Serving clients")
    for _ in range(2):
        os.kill(process.pid, signal.SIGHUP)
    await process.said("SIGHUP: nothing to read again yet")
    await rig.state("waiting_l0")
    assert await process.stop() == 0


async def test_nohup_stays_in_force(rig: Rig) -> None:
    process = Process("nohup", rig.folder)
    environ = rig.environ | {"EMBEDDED": "1"}
    del environ["DATABASE_URL"]
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        await process.start("run", "--port", "0", environ=environ)
    finally:
        signal.signal(signal.SIGHUP, old)
    rig.processes.append(process)
    await process.said("Serving clients")
    os.kill(process.pid, signal.SIGHUP)
    assert await process.stop() == 0
    assert "SIGHUP" not in process.text()
    assert "signal=SIGTERM" in process.text()
    assert leftovers(rig.folder) == []


async def test_commands_with_private_servers_stop_them_on_sighup(rig: Rig) -> None:
    rig.set_clock(EVENING)
    process = await rig.command(
        *("l0", "backfill", "--start", "2024-01-02", "--end", "2025-06-24"),
        DATABASE_URL=None,
        EMBEDDED="1",
    )
    await servers_run(rig.folder)
    assert await process.stop(signal.SIGHUP) == 0
    assert "Traceback" not in process.text()
    assert leftovers(rig.folder) == []


async def test_a_command_that_draws_its_progress_in_a_closed_terminal_stops_its_servers(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.set_clock(EVENING)
    del rig.environ["DATABASE_URL"]
    for name, value in (rig.environ | {"EMBEDDED": "1"}).items():
        monkeypatch.setenv(name, value)
    terminal = Terminal("l0", "backfill", "--start", "2024-01-02", "--end", "2025-06-24")
    await servers_run(rig.folder)
    terminal.close()
    assert await terminal.exit_code() == 0
    assert leftovers(rig.folder) == []


async def test_a_simulator_ends_on_sighup(rig: Rig) -> None:
    process = await rig.command("simulate", "--port", "0")
    await process.said("TWELVEDATA_WS_URL=")
    assert await process.stop(signal.SIGHUP) == 0


async def test_a_storm_whose_terminal_is_closed_leaves_nothing(folder: Path) -> None:
    terminal = Terminal("chaos", "--seed", "1", "--folder", str(folder / "storm"))
    await servers_run(folder)
    terminal.close()
    assert await terminal.exit_code() == 0
