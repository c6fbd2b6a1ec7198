"""Plays one stage: a simulator and a service as processes, and one fault after the other.

Nothing is judged here; what happened is collected for ``judge``. A fault begins only when the service is
calm, so that each one is seen alone.
"""

import asyncio
import contextlib
import hashlib
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from enhanced_websocket_service.clock import VirtualClock

from . import secrets
from .consumer import Consumer, consuming
from .expectation import Expectation, Stage
from .running import (
    DAY,
    PREPARATION_S,
    SYMBOL,
    TAUGHT_DAY,
    VENDOR_SYMBOL,
    Place,
    Running,
    at,
    closing,
    judged,
    keys_of,
    started,
    verdict_history,
)

TEACHING_SPEED = 40.0
TAUGHT_FROM, TAUGHT_UNTIL = "12:55:30", "13:02:30"
"""Slow enough that a busy machine's pauses are no silences; only the minutes that matter."""
TEACHING_PREPARATION_S = 12.0
TOLD_WITHIN_REAL_S = 0.5
"""Consumers are told a verdict when it is next looked at."""
SETTLED_WITHIN_S = 60.0


@dataclass
class Seen:
    """One fault as it happened; instants of the session."""

    expectation: Expectation
    began: float
    cleared: float = 0.0
    back: float | None = None
    path: list[tuple[float, str]] = field(default_factory=list)
    reconnects: int = 0
    credits: dict[str, int] = field(default_factory=dict)
    sent: tuple[int, int] = (0, 0)  # the entries of the simulator's ledger that are its own
    evidence: str = ""
    trouble: str = ""


@dataclass
class Report:
    """Everything that is known of a stage afterwards."""

    stage: Stage
    place: Place
    keys: tuple[str, ...]
    clock: VirtualClock | None = None
    seen: dict[str, Seen] = field(default_factory=dict)
    consumer: Consumer = field(default_factory=Consumer)
    sent: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    simulator: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    spent: int = 0  # at the close, as the service accounts for it
    calls: int = 0  # at the close, as the simulator got them
    continuity: dict[str, Any] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    command_line: str = ""
    log: str = ""
    exit_code: int | None = None
    failure: str = ""
    real_seconds: float = 0.0


async def play(stage: Stage, place: Place, taught: asyncio.Event) -> Report:
    """Live through ``stage``; a failure of the harness is told in the report, never raised.

    :param taught: the stage that needs a lesson sets it when that runs; the others wait for it.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    report = Report(stage, place, keys_of(stage))
    began = time.monotonic()
    try:
        if stage.taught:
            report.place = replace(place, taught=await _teach(stage, place, taught))
        await taught.wait()
        await _play(stage, report.place, report)
    except Exception as error:  # one stage must not take the others with it
        report.failure = "".join(traceback.format_exception(error)[-3:])
    report.real_seconds = time.monotonic() - began
    return report


async def _play(stage: Stage, place: Place, report: Report) -> None:
    # What is taught first starts when the others are up.
    preparation_s = PREPARATION_S / 2 if stage.taught else PREPARATION_S
    async with started(stage, place, report.keys, preparation_s=preparation_s) as running:
        report.clock = running.clock
        try:
            async with consuming(f"ws{running.base[4:]}/ws/{SYMBOL}") as consumer:
                running.consumer = report.consumer = consumer
                for number, one in enumerate(stage.faults):
                    at_start = stage.set_before_start and number == 0
                    if not at_start:
                        await running.reach(running.clock.start)
                    report.seen[one.name] = await _fault(running, stage, one, at_start=at_start)
                await _settle(running, report)
                await _collect(running, report)
                report.exit_code = await running.service.stop()
        finally:
            report.log = running.service.text()


def _delivers(status: Mapping[str, Any], stage: Stage) -> bool:
    """Whether prices come from where they should and the verdict says so."""
    feed = status["realtime_collection"]
    told = {feed["verdict"], judged(status)["verdict"]}
    if not told <= {"live", "quiet"} or feed["last_tick_at"] is None:
        return False
    if stage.by_rest:
        return str(feed["source"]).endswith("_rest")
    return feed["websocket_connected"] and str(feed["source"]).endswith("_websocket")


async def _calm(
    running: Running, stage: Stage, within_s: float, since: float = 0.0
) -> dict[str, Any]:
    """Wait until the service delivers again; its status then."""
    told: dict[str, Any] = {}

    async def calm() -> dict[str, Any] | None:
        nonlocal told
        status = await running.status()
        if status is None:
            return None
        told = status["realtime_collection"]
        return status if _delivers(status, stage) else None

    # Real time for the looks themselves, on a busy machine.
    real_s = within_s / stage.speed + 5.0
    try:
        return await running.until(calm, real_s, "prices as usual")
    except AssertionError as error:
        raise AssertionError(f"{error}; it said {told}") from error


async def _fault(
    running: Running, stage: Stage, one: Expectation, *, at_start: bool = False
) -> Seen:
    """Let ``one`` happen and wait until it is over."""
    clock = running.clock
    if not at_start:
        before = await _calm(running, stage, 120.0)
        await running.reach(clock.now() + stage.calm_s)
    before = await running.status() or {}
    sent = (await running.simulated("status"))["sent"].get(VENDOR_SYMBOL, {})
    began = clock.now()
    if at_start:  # since the first socket, which opened before anybody could look
        sent, before = {}, {}
        began = await running.until(lambda: _first_socket(running), 30.0, "a socket")
    seen = Seen(one, began)
    async with contextlib.AsyncExitStack() as intruders:
        if not at_start:
            await running.set_faults(one.sets)
            if one.also:
                await _intrude(running, intruders, stage)
        try:
            await _endure(running, one, seen)
        finally:
            await running.clear_faults()
            seen.cleared = clock.now()
    try:
        if one.back_s is None:
            status = await running.status() or before
        else:
            status = await _calm(running, stage, one.back_s)
            seen.back = clock.now()
    except AssertionError as error:
        seen.trouble = str(error)
        status = await running.status() or before
    await running.reach(clock.now() + TOLD_WITHIN_REAL_S * stage.speed)
    after = (await running.simulated("status"))["sent"].get(VENDOR_SYMBOL, {})
    seen.sent = (_entries(sent), _entries(after))
    history = verdict_history(status) or running.consumer.verdicts(began, clock.now())
    seen.path = [(at, verdict) for at, verdict in history if at >= began]
    was = 0 if at_start else before["realtime_collection"]["reconnects"]
    seen.reconnects = status["realtime_collection"]["reconnects"] - was
    seen.credits = _spent_between(before, status)
    return seen


async def _first_socket(running: Running) -> float | None:
    tries = (await running.simulated("status"))["handshakes"]["newest"]
    return float(tries[0]["at"]) if tries else None


async def _endure(running: Running, one: Expectation, seen: Seen) -> None:
    """Wait until the fault has lasted and, where it must be noticed, was noticed or overdue."""
    clock = running.clock
    await running.reach(seen.began + one.lasts_s)
    limit = one.found_s
    if one.real_found_s is not None:
        limit = one.real_found_s * clock.speed
    if limit is None:
        return
    real_s = max(0.0, (seen.began + limit - clock.now()) / clock.speed) + 2.0

    async def noticed() -> bool | None:
        status = await running.status()
        if status is None:
            return None
        told_now = judged(status)
        seen.evidence = str(told_now["evidence"])
        changes = verdict_history(status) or running.consumer.verdicts(seen.began, clock.now())
        told = {verdict for at, verdict in changes if at >= seen.began}
        return (told_now["verdict"] == one.noticed or one.noticed in told) or None

    with contextlib.suppress(AssertionError):  # the judge says it
        await running.until(noticed, real_s, "the fault was noticed")


async def _intrude(running: Running, stack: contextlib.AsyncExitStack, stage: Stage) -> None:
    """Other connections with the service's keys, as another process of the same owner would open."""
    url = f"ws{running.vendor[4:]}/v1/quotes/price"
    shown = (await running.simulated("status"))["clients"]
    in_use = {one["key"] for one in shown}
    sockets: list[ClientConnection] = []
    for secret in keys_of(stage):
        if hashlib.sha256(secret.encode()).hexdigest()[:8] in in_use:
            for _ in range(3):
                headers = {"X-TD-APIKEY": secret}
                socket = await stack.enter_async_context(connect(url, additional_headers=headers))
                sockets.append(socket)


def _entries(counts: Mapping[str, int]) -> int:
    return counts.get("ticks", 0) + counts.get("resent", 0)


def _spent_between(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, int]:
    earlier = before["credits"]["spent_by_purpose"] if before else {}
    later = after["credits"]["spent_by_purpose"]
    return {purpose: count - earlier.get(purpose, 0) for purpose, count in later.items()}


async def _settle(running: Running, report: Report) -> None:
    """Wait for the end of the session and for the last final bar."""
    await running.reach(closing(DAY))
    spent = ((await running.status()) or {})["credits"]["spent_by_purpose"]
    report.spent = sum(count for purpose, count in spent.items() if purpose != "elsewhere")
    report.calls = len((await running.simulated("requests"))["requests"])
    told: dict[str, Any] = {}

    async def final() -> bool | None:
        nonlocal told
        answer = await running.http.get(
            f"{running.base}/market/continuity", params={"date": str(DAY)}
        )
        if answer.status_code != 200:
            return None
        told = report.continuity = answer.json()
        return told["final"] == told["expected"] or None

    with contextlib.suppress(AssertionError):  # the judge says which slots
        await running.until(final, SETTLED_WITHIN_S, "every slot final")


async def _collect(running: Running, report: Report) -> None:
    report.sent = await running.simulated("sent", symbol=VENDOR_SYMBOL)
    report.simulator = await running.simulated("status")
    report.requests = (await running.simulated("requests"))["requests"]
    report.status = await running.status() or {}
    report.pages = await secrets.answers(running.base)
    report.command_line = secrets.process_title(running.service.pid)


async def _teach(stage: Stage, place: Place, begun: asyncio.Event) -> Path:
    """Let the service see minutes of the day before at a tick a second; its STATE_DIR then.

    :param begun: set when everything runs, so that others can start while this one waits.
    """
    taught = Place(
        place.folder.with_name(f"{place.folder.name}-taught"),
        place.recording,
        place.database_dsn,
        place.redis_url,
    )
    taught.folder.mkdir(parents=True)
    lesson = Stage(
        f"{stage.name}-lesson",
        TEACHING_SPEED,
        TAUGHT_FROM,
        (),
        closed_speed=TEACHING_SPEED,
        environ=stage.environ,
    )
    try:
        async with started(
            lesson, taught, keys_of(lesson), day=TAUGHT_DAY, preparation_s=TEACHING_PREPARATION_S
        ) as running:
            begun.set()
            await running.reach(at(TAUGHT_DAY, TAUGHT_UNTIL))
            assert await running.service.stop() == 0, running.service.text()[-2000:]
    finally:
        begun.set()
    return taught.folder / "state"
