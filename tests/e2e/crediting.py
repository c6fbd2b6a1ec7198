"""A whole session by REST alone against the simulator's strict ledgers: what the credits bought.

Used by ``scripts/prove_credits.py``. Everything is measured where the vendor stands: the calls as they
reached the simulator, and its answers.
"""

import asyncio
import itertools
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx

from enhanced_websocket_service.market.calendar import Session
from tests.waiting import eventually

from .playback import Playback, Process, Stack, _calendar, stack

BEFORE_OPEN_S = 60
"""Virtual seconds before the open at which the plan is read."""
LATENCY_REAL_S = 0.2
"""Real seconds that a call may take to reach the simulator on a busy machine."""


@dataclass
class Ledger:
    """The outcome; seconds are virtual. ``faults`` is empty when the credits were spent well."""

    keys: str = ""
    speed: float = 0.0
    forecast: str = ""
    planned: int = 0  # polls that the plan had credits for at the open
    polls: int = 0  # that reached the vendor in the session
    share: float = 0.0
    refused_429: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    mean_s: float = 0.0
    largest_s: float = 0.0
    first_after_open_s: float = 0.0
    last_before_close_s: float = 0.0
    thirds: list[int] = field(default_factory=list)  # polls in each third of the session
    polls_by_key: list[int] = field(default_factory=list)
    latency_ms: float = 0.0  # real, mean of the keys
    ticks: int = 0
    spent: dict[str, int] = field(default_factory=dict)
    left_at_close: int = 0
    real_seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def key_settings(groups: Sequence[int]) -> dict[str, str]:
    """The environment of so many free keys in each group."""
    return {
        f"TWELVEDATA_API_KEY_G{group}_{number}": f"free-key-of-group-{group}-number-{number}"
        for group, count in enumerate(groups, 1)
        for number in range(1, count + 1)
    }


async def prove(
    folder: Path,
    *,
    day: date,
    groups: Sequence[int],
    speed: float,
    disturbed: bool = False,
    environ: Mapping[str, str] | None = None,
    largest_s: float | None = None,
) -> Ledger:
    """Live through the session of ``day``.

    :param disturbed: an ``l0`` command runs in the first third, and the service is killed in the second.
    :param largest_s: the largest distance of two polls that is no fault.
    """
    began = time.monotonic()
    what = Playback(
        recording=None,
        first=day,
        last=day,
        speed=speed,
        closed_speed=speed,
        simulate=("--plan", "basic", "--seed", "5"),
        environ={"FEED_MODE": "rest", **key_settings(groups), **(environ or {})},
    )
    session = _calendar(what).session(day)
    assert session is not None, day
    ledger = Ledger(keys="+".join(map(str, groups)), speed=speed)
    async with stack(what, folder) as running, httpx.AsyncClient(timeout=30.0) as http:
        await _until(running, session.opens - BEFORE_OPEN_S)
        told = await _credits(running, http)
        ledger.planned, ledger.forecast = told["plan"]["poll_credits"], told["forecast"]
        third = (session.closes - session.opens) / 3
        if disturbed:
            await _until(running, session.opens + third / 2)
            command = Process("incremental", folder)
            await command.start("l0", "incremental", environ=running.environ)
            if await command.finished(60.0):
                ledger.faults.append(f"l0 incremental failed:\n{command.text()[-2000:]}")
            await _until(running, session.opens + 1.5 * third)
            await running.service.stop(signal.SIGKILL)
            await running.service.start("run", environ=running.environ)
        await _until(running, session.closes - 2)
        status = (await http.get(f"{running.base_url}/status")).json()
        await _until(running, session.closes + 15)
        ledger.spent = status["credits"]["spent_by_purpose"]
        ledger.left_at_close = status["credits"]["left_today"]
        ledger.ticks = status["realtime_collection"]["ticks_accepted"]
        shown = [one["latency_ms"] for one in status["api_key_usage"]["keys"]]
        latencies = [one for one in shown if one is not None]
        ledger.latency_ms = round(sum(latencies) / max(1, len(latencies)), 1)
        answer = await http.get(f"{running.rest_url}/_sim/requests")
        answer.raise_for_status()
        _measure(answer.json()["requests"], session, ledger)
    ledger.real_seconds = round(time.monotonic() - began, 1)
    if largest_s is not None and ledger.largest_s > largest_s:
        ledger.faults.append(f"{ledger.largest_s} s without a poll; {largest_s} s were allowed")
    return ledger


def _measure(requests: Sequence[Mapping[str, Any]], session: Session, ledger: Ledger) -> None:
    statuses = Counter(str(one["status"]) for one in requests)
    ledger.statuses = dict(statuses)
    ledger.refused_429 = statuses["429"]
    if ledger.refused_429:
        ledger.faults.append(f"{ledger.refused_429} answers of 429")
    polls = [one for one in requests if one["path"] == "/price"]
    late = session.closes + 2 + ledger.speed * LATENCY_REAL_S
    outside = [one for one in polls if not session.opens <= one["at"] < late]
    if outside:
        ledger.faults.append(f"{len(outside)} polls outside the session")
    moments = sorted(one["at"] for one in polls)
    ledger.polls = len(moments)
    ledger.share = round(ledger.polls / ledger.planned, 4)
    if not 0.95 <= ledger.share <= 1.0:
        ledger.faults.append(f"{ledger.share:.1%} of the planned credits were used")
    if len(moments) < 2:
        return
    distances = [b - a for a, b in itertools.pairwise(moments)]
    ledger.mean_s = round(sum(distances) / len(distances), 3)
    ledger.largest_s = round(max(distances), 3)
    ledger.first_after_open_s = round(moments[0] - session.opens, 3)
    ledger.last_before_close_s = round(session.closes - moments[-1], 3)
    length = (session.closes - session.opens) / 3
    count = Counter(min(2, int((at - session.opens) / length)) for at in moments)
    ledger.thirds = [count[i] for i in range(3)]
    if min(ledger.thirds) < 0.9 * max(ledger.thirds):
        ledger.faults.append(f"not even: {ledger.thirds} polls in the thirds of the session")
    by_key = Counter(one["key"] for one in polls)
    ledger.polls_by_key = sorted(by_key.values())


async def _credits(running: Stack, http: httpx.AsyncClient) -> dict[str, Any]:
    async def told() -> dict[str, Any] | None:
        try:
            answer = await http.get(f"{running.base_url}/status")
        except httpx.TransportError:
            return None
        found: dict[str, Any] = answer.json()["credits"]
        return found

    return await eventually(told, 30.0, "/status")


async def _until(running: Stack, instant: float) -> None:
    async def reached() -> bool | None:
        for process in (running.simulator, running.service):
            if not process.running:
                raise AssertionError(f"{process.name} died:\n{process.text()[-4000:]}")
        return running.clock.now() >= instant or None

    await eventually(reached, 3600.0, "virtual time")


def run(folder: Path, **options: Any) -> Ledger:
    return asyncio.run(prove(folder, **options))
