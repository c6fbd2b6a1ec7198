"""A vendor that refuses the stream again and again: how the service comes back.

First act: fifty refused handshakes, then one that is accepted. Second act: every connection is closed as
soon as it has brought a price. Used by ``scripts/prove_reconnect_storm.py``.
"""

import itertools
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import secrets
from .expectation import Stage
from .recording import make_recording, new_database, own_servers
from .running import DAY, Place, Running, started
from .stored import read_stored

BASE_S, CAP_S = 1.0, 60.0
"""The documented back-off: 1 s, doubled up to 60 s, each shortened by up to a half."""
REAL_SLACK_S = 0.4
"""For a handshake and two schedulers on a busy machine."""
EVENTS_PER_MINUTE = 100
KEY = "storm-0123456789abcdef"


@dataclass
class Outcome:
    """What is claimed is right when ``faults`` is empty. Seconds are those of the session."""

    speed: float
    refused: int = 0
    distances_s: list[float] = field(default_factory=list)
    storm_s: float = 0.0
    streaming_after_s: float | None = None
    log_lines: int = 0
    log_lines_a_second: float = 0.0
    log_lines_by_event: dict[str, int] = field(default_factory=dict)
    most_events_a_minute: int = 0
    flapping_s: float = 0.0
    flapping_reconnects: int = 0
    flapping_events_a_minute: int = 0
    flapping_log_lines_a_second: float = 0.0
    rest_ticks_meanwhile: int = 0
    real_seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


async def prove(folder: Path, *, refusals: int, speed: float, flapping_s: float) -> Outcome:
    """Both acts, one after the other, on one service."""
    outcome, began = Outcome(speed), time.monotonic()
    environ = {"MARKET_OPEN": "08:00", "LOG_FORMAT": "json"}
    stage = Stage("storm", speed, "09:00:00", (), keys=1, environ=environ)
    async with own_servers(folder) as (dsn, cache):
        recording = make_recording(folder / "bars.parquet")
        place = Place(folder / "storm", recording, await new_database(dsn, "storm"), cache)
        place.folder.mkdir()
        async with started(stage, place, (KEY,)) as running:
            await _streams(running, 60.0)
            await _refusals(running, outcome, refusals)
            await _flapping(running, outcome, flapping_s)
            places = await secrets.answers(running.base)
            places["the process title"] = secrets.process_title(running.service.pid)
            if await running.service.stop() != 0:
                outcome.faults.append("the service did not end cleanly")
        places |= secrets.files(place.folder) | await secrets.cache(cache)
        places["the database"] = (await read_stored(place.database_dsn, DAY)).text
        outcome.faults += secrets.told([KEY], places)
    outcome.real_seconds = round(time.monotonic() - began, 1)
    return outcome


async def _streams(running: Running, real_s: float) -> dict[str, Any]:
    async def streams() -> dict[str, Any] | None:
        status = await running.status()
        feed = None if status is None else status["realtime_collection"]
        by_stream = feed and feed["websocket_connected"] and feed["source"].endswith("_websocket")
        return status if by_stream and feed["verdict"] in ("live", "quiet") else None

    return await running.until(streams, real_s, "prices by the stream")


async def _refusals(running: Running, outcome: Outcome, refusals: int) -> None:
    clock, speed = running.clock, outcome.speed
    lines = len(_lines(running))
    ticks = (await running.status() or {})["realtime_collection"]["ticks_accepted"]
    began = clock.now()
    fault = {"status": 503, "times": refusals}
    await running.set_faults({"refuse_handshake": fault, "drop": True})
    longest = sum(min(CAP_S, BASE_S * 2.0**n) for n in range(refusals + 1))
    door: dict[str, Any] = {}

    async def over() -> bool | None:
        nonlocal door
        door = (await running.simulated("status"))["handshakes"]
        tries = [one for one in door["newest"] if one["at"] >= began]
        return bool(tries and tries[-1]["status"] == 101) or None

    try:
        await running.until(over, longest / speed + 60.0, "an accepted handshake")
    except AssertionError as error:
        outcome.faults.append(str(error))
    tries = [one for one in door["newest"] if one["at"] >= began]
    outcome.refused = sum(one["status"] != 101 for one in tries)
    if outcome.refused != refusals:
        outcome.faults.append(f"{outcome.refused} refusals instead of {refusals}")
    outcome.storm_s = round(clock.now() - began, 1)
    _distances(outcome, [began, *(one["at"] for one in tries)])
    status = await _streams(running, 30.0)
    outcome.streaming_after_s = round(clock.now() - tries[-1]["at"], 1)
    outcome.rest_ticks_meanwhile = status["realtime_collection"]["ticks_accepted"] - ticks
    if not outcome.rest_ticks_meanwhile:
        outcome.faults.append("no tick came by REST during the storm")
    said = _lines(running)[lines:]
    outcome.log_lines = len(said)
    outcome.log_lines_a_second = round(len(said) / outcome.storm_s, 3)
    outcome.log_lines_by_event = dict(Counter(said).most_common(12))
    if outcome.log_lines_a_second > 0.2:
        outcome.faults.append(f"{outcome.log_lines_a_second} log lines a second in the storm")
    outcome.most_events_a_minute = await _most_events(running)
    if outcome.most_events_a_minute >= EVENTS_PER_MINUTE:
        outcome.faults.append(f"{outcome.most_events_a_minute} client events in a minute")


def _distances(outcome: Outcome, instants: list[float]) -> None:
    slack = REAL_SLACK_S * outcome.speed
    for number, (before, after) in enumerate(itertools.pairwise(instants)):
        distance = after - before
        outcome.distances_s.append(round(distance, 1))
        whole = min(CAP_S, BASE_S * 2.0**number)
        if not whole / 2 - 0.05 <= distance <= whole + slack:
            outcome.faults.append(
                f"attempt {number + 1} after {distance:.1f} s, documented {whole / 2:g} to {whole:g}"
            )


async def _flapping(running: Running, outcome: Outcome, seconds: float) -> None:
    """Close each connection as soon as it has brought a price."""
    clock = running.clock
    lines, began = len(_lines(running)), clock.now()
    before = (await running.simulated("status"))["handshakes"]["accepted"]

    async def flapped() -> bool | None:
        shown = await running.simulated("status")
        if any(one["frames_sent"] > 1 for one in shown["clients"]):
            await running.set_faults({"close": 1011})
        return clock.now() >= began + seconds or None

    await running.until(flapped, seconds / outcome.speed + 30.0, "the end of the second act")
    outcome.flapping_s = round(clock.now() - began, 1)
    shown = await running.simulated("status")
    outcome.flapping_reconnects = shown["handshakes"]["accepted"] - before
    outcome.flapping_events_a_minute = await _most_events(running)
    said = len(_lines(running)) - lines
    outcome.flapping_log_lines_a_second = round(said / outcome.flapping_s, 3)
    if outcome.flapping_events_a_minute >= EVENTS_PER_MINUTE:
        outcome.faults.append(
            f"{outcome.flapping_events_a_minute} client events in a minute of flapping"
        )
    await _streams(running, 30.0)


async def _most_events(running: Running) -> int:
    counts = (await running.simulated("status"))["client_events"]
    return max((one["events"] for one in counts), default=0)


def _lines(running: Running) -> list[str]:
    said = []
    for line in running.service.text().splitlines():
        try:
            said.append(str(json.loads(line)["event"]))
        except (ValueError, KeyError):
            said.append(line[:60])
    return said
