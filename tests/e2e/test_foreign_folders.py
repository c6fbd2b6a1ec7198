"""Folders of somebody else: bars and ticks arrive all the same, and ``/health`` names the folder."""

import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests.postgres_proxy import Proxy
from tests.waiting import eventually

from . import elsewhere
from .rig import SESSION, Rig

WITHIN_S = 60.0
READY = '{"ready": true}'


@pytest.fixture
async def plain(rig: Rig, database_dsn: str) -> AsyncIterator[Rig]:
    """Commands that may write only where permissions say so, even if the tests run as root."""
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip(
                "root may do everything, and setpriv, which could take that away, is absent"
            )
        rig.through = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
    proxy = Proxy(database_dsn)  # the socket itself is closed to them
    await proxy.up()
    rig.environ["DATABASE_URL"] = proxy.dsn
    del rig.environ["REDIS_URL"]
    yield rig
    for process in rig.processes:
        await process.stop()
    await proxy.down()


@pytest.fixture
def close() -> Iterator[Callable[[Path], None]]:
    """Makes folders read-only, and writable again at the end, for pytest to remove them."""
    closed: list[Path] = []

    def work(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        folder.chmod(0o555)
        closed.append(folder)

    yield work
    for folder in closed:
        folder.chmod(0o755)


async def problems(rig: Rig, wanted: Callable[[list[str]], bool]) -> dict[str, Any]:
    """``/health`` once its problems are as ``wanted``."""
    seen: Any = "no answer"
    async with rig.client() as client:

        async def look() -> dict[str, Any] | None:
            nonlocal seen
            try:
                seen = (await client.get("/health")).json()
            except httpx.TransportError:
                return None
            return seen if wanted(seen["problems"]) else None

        return await eventually(
            look, WITHIN_S, lambda: f"{seen}\n{rig.processes[-1].text()[-3000:]}"
        )


def failing(part: str) -> Callable[[list[str]], bool]:
    return lambda found: any(f": {part}" in one for one in found)


def working(part: str) -> Callable[[list[str]], bool]:
    return lambda found: not failing(part)(found)


async def test_the_container_with_mounts_of_somebody_else_collects(
    plain: Rig, close: Callable[[Path], None], connection: asyncpg.Connection
) -> None:
    backups = plain.folder / "backups"
    (plain.signals / "l0_ready.flag").write_text(READY)
    close(plain.signals)
    close(backups)
    process = await plain.run()
    health = (await plain.state("active"))["/health"].json()
    assert health["status"] == "degraded"
    assert failing("backup files")(health["problems"])
    assert str(backups) in " ".join(health["problems"])
    await plain.price()
    assert await connection.fetchval("SELECT count(*) FROM market_data") > 300

    async def ticks() -> int | None:
        return await connection.fetchval("SELECT count(*) FROM realtime_market_data") or None

    await eventually(ticks, WITHIN_S, "ticks in PostgreSQL")
    assert list(backups.iterdir()) == []

    backups.chmod(0o755)
    await problems(plain, working("backup files"))
    assert {one.name for one in backups.iterdir()} >= {
        "usdcop_m5_complete_backup.parquet",
        "usdcop_m5_backup_metadata.json",
    }, "what could not be written was written when it could"

    shutil.rmtree(backups)
    backups.write_text("a file in its place")
    assert (await problems(plain, failing("backup files")))["service_info"]["status"] == "active"
    assert await process.stop() == 0, process.text()[-3000:]


async def test_a_set_that_is_owed_is_written_after_a_restart_too(
    plain: Rig, close: Callable[[Path], None], connection: asyncpg.Connection
) -> None:
    """In the session whose data is complete, so that nothing else has a reason to write it."""
    backups = plain.folder / "backups"
    (plain.signals / "l0_ready.flag").write_text(READY)
    close(backups)
    before = await plain.run()
    await plain.state("active")
    assert await connection.fetchval("SELECT count(*) FROM market_data") > 300
    assert await before.stop() == 0, before.text()[-3000:]

    await plain.run()
    await plain.state("active")
    await problems(plain, failing("backup files"))
    assert list(backups.iterdir()) == []
    backups.chmod(0o755)
    health = await problems(plain, working("backup files"))
    assert health["service_info"]["status"] == "active"
    assert {one.name for one in backups.iterdir()} >= {
        "usdcop_m5_complete_backup.parquet",
        "usdcop_m5_backup_metadata.json",
    }


@pytest.mark.parametrize("kind", ["a file in its place", "below a file"])
async def test_a_backup_folder_that_cannot_be_made_keeps_no_bar_out(
    rig: Rig, connection: asyncpg.Connection, kind: str
) -> None:
    blocked = rig.folder / "blocked"
    blocked.write_text("no folder")
    (rig.signals / "l0_ready.flag").write_text(READY)
    fallback = rig.folder / "fallback"
    rig.through = (sys.executable, str(Path(elsewhere.__file__)), str(fallback))
    await rig.run(BACKUP_DIR=str(blocked if kind == "a file in its place" else blocked / "below"))
    await rig.state("active")
    assert await connection.fetchval("SELECT count(*) FROM market_data") > 300
    assert (fallback / "usdcop_m5_complete_backup.parquet").exists()


async def test_a_signals_folder_that_cannot_be_looked_into_is_named(
    plain: Rig, close: Callable[[Path], None]
) -> None:
    locked = plain.folder / "locked"
    close(locked)
    locked.chmod(0o000)
    await plain.run(READY_SIGNALS_DIR=str(locked / "signals"))
    answers = await plain.state("waiting_l0")
    assert str(locked / "signals") in answers["/health"].json()["service_info"]["reason"]
    await problems(plain, failing("ready signals folder"))
    locked.chmod(0o755)
    (locked / "signals").mkdir()
    (locked / "signals" / "l0_ready.flag").write_text(READY)
    await plain.state("active")
    await problems(plain, working("ready signals folder"))


async def test_a_state_folder_that_cannot_be_written_is_a_fault_of_the_settings(
    plain: Rig, close: Callable[[Path], None]
) -> None:
    state = plain.folder / "state"
    close(state)
    process = await plain.run(STATE_DIR=str(state))
    assert await process.finished(WITHIN_S) == 2
    assert f"STATE_DIR={state} cannot be used" in process.text()
    assert "Traceback" not in process.text()


@pytest.mark.parametrize("closed", ["backups", "signals"])
async def test_a_command_stores_bars_first_and_says_which_folder_failed(
    plain: Rig, close: Callable[[Path], None], connection: asyncpg.Connection, closed: str
) -> None:
    flag = plain.signals / "l0_ready.flag"
    if closed == "signals":
        flag.write_text(READY)
    close(plain.folder / closed)
    plain.set_clock(f"{SESSION}T20:00:00-05:00")
    dates = ("--start", "2025-06-16", "--end", "2025-06-20")

    async def backfill() -> str:
        process = await plain.command("l0", "backfill", *dates)
        assert await process.finished(WITHIN_S) == 1, process.text()[-3000:]
        return process.text()

    text = await backfill()
    assert {"backups": "BACKUP_DIR", "signals": "READY_SIGNALS_DIR"}[closed] in text
    assert str(plain.folder / closed) in text
    assert "Traceback" not in text
    assert flag.exists() == (closed == "signals"), "a set that is not written is not ready"
    assert await connection.fetchval("SELECT count(*) FROM market_data") == 5 * 60
    calls = plain.simulator.status()["calls"]
    await backfill()
    assert plain.simulator.status()["calls"] == calls, "no credit for bars that are there"
    assert await connection.fetchval("SELECT count(*) FROM market_data") == 5 * 60
