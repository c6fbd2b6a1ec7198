"""Two services with one key and one Valkey, in real time: one streams, the other waits its turn.

Used by ``scripts/prove_shared_key.py``. What happened is read from the simulator's own book of
connections; what the services say of themselves is only compared with it.
"""

import contextlib
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.playback import Process, free_port
from tests.waiting import eventually

from . import secrets
from .expectation import Stage
from .recording import make_recording, new_database, own_servers
from .running import DAY, Place, Running, started
from .stored import read_stored

KEY = "shared-0123456789abcdef"
TAKEOVER_WITHIN_S = 10.0


@dataclass
class Outcome:
    """What is claimed is right when ``faults`` is empty. All seconds are real."""

    watched_s: float = 0.0
    connections_while_both_run: int = 0
    waiting_verdict: str = ""
    waiting_evidence: str = ""
    waiting_rest_calls: int = 0
    takeover_s: float | None = None
    takeover_tick_s: float | None = None
    connections_after_return: int = 0
    evicted: int = 0
    real_seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


async def prove(folder: Path, *, watch_s: float) -> Outcome:
    """One streams, the other waits; the first is killed; it comes back and waits in turn."""
    outcome, began = Outcome(), time.monotonic()
    environ = {"MARKET_OPEN": "08:00"}
    stage = Stage("first", 1.0, "09:00:00", (), keys=1, environ=environ)
    async with own_servers(folder) as (dsn, cache):
        recording = make_recording(folder / "bars.parquet")
        place = Place(folder / "first", recording, await new_database(dsn, "first"), cache)
        place.folder.mkdir()
        async with started(stage, place, (KEY,)) as first:
            await _streaming(first, 60.0)
            other = await new_database(dsn, "second")
            async with _second(first, folder / "second", other) as second:
                await _both(first, second, outcome, watch_s)
                await _killed(first, second, outcome)
                await _returned(first, second, outcome, watch_s)
                for one in (first, second):
                    found = await secrets.answers(one.base)
                    found["the process title"] = secrets.process_title(one.service.pid)
                    outcome.faults += secrets.told([KEY], found)
        found = secrets.files(folder / "first") | secrets.files(folder / "second")
        found |= await secrets.cache(cache)
        for database in (place.database_dsn, other):
            found[database] = (await read_stored(database, DAY)).text
        outcome.faults += secrets.told([KEY], found)
    outcome.real_seconds = round(time.monotonic() - began, 1)
    return outcome


@contextlib.asynccontextmanager
async def _second(first: Running, folder: Path, database: str) -> AsyncIterator[Running]:
    (folder / "signals").mkdir(parents=True)
    (folder / "signals" / "l0_ready.flag").write_text('{"ready": true}')
    environ = {
        **first.environ,
        "DATABASE_URL": database,
        "PORT": str(free_port()),
        "STATE_DIR": str(folder / "state"),
        "READY_SIGNALS_DIR": str(folder / "signals"),
        "BACKUP_DIR": str(folder / "backups"),
    }
    service = Process("service-second", folder)
    await service.start("run", environ=environ)
    second = Running(first.clock, service, first.simulator, environ)
    try:
        yield second
    finally:
        if service.running:
            await service.stop()
        await second.http.aclose()


async def _feed(running: Running) -> dict[str, Any] | None:
    try:
        answer = await running.http.get(f"{running.base}/status")
    except httpx.TransportError:
        return None
    status = answer.json()
    active = status["service_status"] == "active"
    return {**status["realtime_collection"], "credits": status["credits"]} if active else None


async def _streaming(running: Running, real_s: float) -> None:
    async def streams() -> bool | None:
        feed = await _feed(running)
        return (
            feed is not None and feed["websocket_connected"] and bool(feed["last_tick_at"])
        ) or None

    await eventually(streams, real_s, lambda: f"a stream:\n{running.service.text()[-2000:]}")


async def _accepted(running: Running) -> int:
    return int((await running.simulated("status"))["handshakes"]["accepted"])


async def _both(first: Running, second: Running, outcome: Outcome, watch_s: float) -> None:
    before = await _accepted(first)

    async def active() -> dict[str, Any] | None:
        return await _feed(second)

    await eventually(active, 60.0, lambda: f"state active:\n{second.service.text()[-2000:]}")
    began = time.monotonic()
    wrong: set[str] = set()

    async def watched() -> bool | None:
        shown = (await first.simulated("status"))["clients"]
        one, other = await _feed(first), await _feed(second)
        if len(shown) != 1:
            wrong.add(f"{len(shown)} connections at once")
        if one is None or not one["websocket_connected"]:
            wrong.add("the first does not stream")
        if other is None or other["websocket_connected"]:
            wrong.add("the second streams, too")
        elif not outcome.waiting_evidence or time.monotonic() - began > watch_s / 2:
            outcome.waiting_verdict = str(other["verdict"])
            outcome.waiting_evidence = str(other["evidence"])
        return time.monotonic() - began >= watch_s or None

    await eventually(watched, watch_s + 10.0, "the end of the watch")
    outcome.watched_s = round(time.monotonic() - began, 1)
    outcome.connections_while_both_run = await _accepted(first) - before
    if outcome.connections_while_both_run:
        wrong.add(f"{outcome.connections_while_both_run} new connections: ping-pong")
    feed = await _feed(second)
    outcome.waiting_rest_calls = 0 if feed is None else _polls(feed)
    outcome.faults += sorted(wrong)


async def _killed(first: Running, second: Running, outcome: Outcome) -> None:
    ticks = (await _feed(second) or {}).get("ticks_accepted", 0)
    killed = time.monotonic()
    await first.service.stop(signal.SIGKILL)

    async def taken() -> bool | None:
        feed = await _feed(second)
        return (feed is not None and feed["websocket_connected"]) or None

    async def priced() -> bool | None:
        feed = await _feed(second)
        streams = feed is not None and str(feed["source"]).endswith("_websocket")
        return (streams and feed is not None and feed["ticks_accepted"] > ticks) or None

    try:
        await eventually(taken, 60.0, lambda: second.service.text()[-2000:])
        outcome.takeover_s = round(time.monotonic() - killed, 2)
        await eventually(priced, 30.0, lambda: second.service.text()[-2000:])
        outcome.takeover_tick_s = round(time.monotonic() - killed, 2)
    except AssertionError as error:
        outcome.faults.append(f"the second never took over: {error}")
    if outcome.takeover_s is not None and outcome.takeover_s > TAKEOVER_WITHIN_S:
        outcome.faults.append(f"taken over after {outcome.takeover_s} s")


async def _returned(first: Running, second: Running, outcome: Outcome, watch_s: float) -> None:
    """The first is started again: now it waits, and nobody is evicted."""
    before = await _accepted(first)
    await first.service.start("run", environ=first.environ)

    async def active() -> dict[str, Any] | None:
        return await _feed(first)

    await eventually(active, 60.0, lambda: f"state active:\n{first.service.text()[-2000:]}")
    began = time.monotonic()

    async def watched() -> bool | None:
        feed = await _feed(second)
        if feed is None or not feed["websocket_connected"]:
            return False
        return time.monotonic() - began >= watch_s / 2 or None

    if not await eventually(watched, watch_s + 10.0, "the end of the watch"):
        outcome.faults.append("the second lost its stream when the first came back")
    outcome.connections_after_return = await _accepted(first) - before
    if outcome.connections_after_return:
        outcome.faults.append(f"{outcome.connections_after_return} connections after the return")
    outcome.evicted = (await first.simulated("status"))["handshakes"]["evicted"]
    if outcome.evicted:
        outcome.faults.append(f"{outcome.evicted} evictions")


def _polls(feed: dict[str, Any]) -> int:
    return int(feed["credits"]["spent_by_purpose"].get("poll", 0))
