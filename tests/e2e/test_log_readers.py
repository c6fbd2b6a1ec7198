"""The log of ``run`` on standard output: what its readers see, and what they cannot do to the service."""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.requirements import facts
from tests.waiting import eventually

from .conftest import start_demo
from .rig import WITHIN_S, Rig

MEBIBYTE = 1 << 20


@dataclass
class Pipe:
    """``writer`` is for the service; whether anybody reads is the test's business."""

    reader: int
    writer: int

    def close_reader(self) -> None:
        with suppress(OSError):
            os.close(self.reader)

    async def read_until(self, text: str) -> str:
        """What the service wrote until a line had ``text``."""
        os.set_blocking(self.reader, False)
        seen = b""

        async def found() -> bool | None:
            nonlocal seen
            with suppress(BlockingIOError):
                while more := os.read(self.reader, MEBIBYTE):
                    seen += more
            return text.encode() in seen or None

        await eventually(found, WITHIN_S, lambda: f"{text!r} in {seen[-3000:]!r}")
        return seen.decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    """As small as a pipe can be, so that few lines fill it."""
    made = Pipe(*os.pipe())
    fcntl.fcntl(made.writer, fcntl.F_SETPIPE_SZ, 4096)
    yield made
    made.close_reader()
    os.close(made.writer)


async def stored_ticks(rig: Rig) -> int:
    connection = await asyncpg.connect(rig.environ["DATABASE_URL"])
    try:
        return int(await connection.fetchval("SELECT count(*) FROM realtime_market_data"))
    finally:
        await connection.close()


async def problems(rig: Rig) -> list[str]:
    async with rig.client() as http:
        return list((await http.get("/health")).json()["problems"])


@pytest.mark.parametrize("name", ["run", ""], ids=["run", "no command"])
async def test_the_two_streams_apart(rig: Rig, pipe: Pipe, name: str) -> None:
    """``docker logs NAME | grep PHRASE`` sees standard output alone."""
    rig.environ["PORT"] = "0"
    process = await rig.command(*([name] if name else []), stdout=pipe.writer)
    await pipe.read_until("waiting_l0")
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    await pipe.read_until(facts.LOG_PHRASE)
    os.kill(process.pid, signal.SIGTERM)
    await pipe.read_until("Stopped")
    assert await process.finished(WITHIN_S) == 0
    assert process.text() == ""  # its standard error


async def test_a_failed_start_is_told_on_standard_error(rig: Rig, pipe: Pipe) -> None:
    process = await rig.run(stdout=pipe.writer, TWELVEDATA_API_KEY_G1_1=None)
    assert await process.finished(WITHIN_S) == 2
    assert process.text().startswith("error: No TwelveData API key is set.")


async def test_logs_of_other_commands_stay_on_standard_error(rig: Rig, pipe: Pipe) -> None:
    rig.set_clock("2025-06-24T20:00:00-05:00")
    process = await rig.command(
        *("l0", "backfill", "--start", "2025-06-23", "--end", "2025-06-24"), stdout=pipe.writer
    )
    assert await process.finished(WITHIN_S) == 0
    assert "ready flag written" in process.text()
    assert "ready flag written" not in await pipe.read_until("slots present")


@pytest.mark.parametrize("goes_on", [True, False], ids=["goes on", "never goes on"])
async def test_a_reader_who_stalls_holds_nothing_up(rig: Rig, pipe: Pipe, goes_on: bool) -> None:
    """What happens when more waits than may: ``tests/unit/test_log_writer.py``."""
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    os.write(pipe.writer, b"x" * 4095 + b"\n")  # not one line of the service fits
    process = await rig.run(stdout=pipe.writer, LOG_LEVEL="DEBUG")
    await rig.state("active")
    before = await stored_ticks(rig)

    async def more() -> bool | None:
        return await stored_ticks(rig) > before or None

    await eventually(more, WITHIN_S, "more ticks in the database")
    if goes_on:
        seen = await pipe.read_until("Collecting until")
        first, second = seen.index("Serving clients"), seen.index(facts.LOG_PHRASE)
        assert first < second < seen.index("Collecting until")
        assert "log lines were dropped" not in seen
    assert await process.stop() == 0
    if goes_on:
        await pipe.read_until("Stopped")
    assert process.text() == ""


async def test_a_reader_who_leaves_ends_nothing(rig: Rig, pipe: Pipe) -> None:
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    process = await rig.run(stdout=pipe.writer)
    await pipe.read_until("Service state")
    pipe.close_reader()
    await rig.state("active")
    await rig.price()

    async def named() -> str | None:
        return next((one for one in await problems(rig) if "log output" in one), None)

    assert "Broken pipe" in await eventually(named, WITHIN_S, "the log output")
    async with rig.client() as http:
        metrics = (await http.get("/metrics")).text
        status = (await http.get("/status")).json()
    assert 'ews_log_lines_dropped_total{output="log output"} ' in metrics
    assert 'ews_log_lines_dropped_total{output="log output"} 0.0' not in metrics
    assert "log output" in [one["part"] for one in status["failures"]]
    assert await process.stop() == 0
    assert process.text() == ""


async def test_a_log_folder_that_cannot_be_written_is_named_until_it_can(rig: Rig) -> None:
    folder = rig.folder / "logs"
    folder.write_text("not a folder")
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    process = await rig.run(LOG_DIR=str(folder))
    await process.said(f"LOG_DIR={folder} cannot be written (File exists)")
    await rig.state("active")
    assert any(f"LOG_DIR={folder}" in one for one in await problems(rig))
    folder.unlink()

    async def works() -> bool | None:
        return await problems(rig) == [] or None

    await eventually(works, WITHIN_S, "no problem")
    log = folder / "enhanced_websocket_service.log"
    assert "log lines were dropped here" in log.read_text().splitlines()[0]
    assert await process.stop() == 0
    assert "Stopped" in log.read_text()
    assert "Traceback" not in process.text()


async def test_the_story_of_the_demo_needs_no_reader(tmp_path: Path, pipe: Pipe) -> None:
    process, port = await start_demo(tmp_path, "--speed", "400", stdout=pipe.writer)
    pipe.close_reader()
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:

            async def active() -> bool | None:
                with suppress(httpx.TransportError):
                    return (await http.get("/status")).json()["service_status"] == "active" or None
                return None

            await eventually(active, 2 * WITHIN_S, process.text)
    finally:
        code = await process.stop(signal.SIGINT)
    assert code == 0
    assert "Traceback" not in process.text()
