"""Kills and restarts the service through recorded sessions, then compares the proof with the recording.

Used by the tests on a small generated recording and by ``scripts/prove_handover.py`` on the real one.
What the proof must say is known from outside: when this process started and killed the service.
"""

import asyncio
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import httpx

from enhanced_websocket_service.market.calendar import TradingCalendar, iso_local
from tests.waiting import eventually

from .playback import Playback, Stack, _calendar, expected_bars, stack

Prices = tuple[float, float, float, float]
SETTLED_AFTER_S = 1500
"""Virtual seconds after the close: the last bar has settled and was asked for twice."""
STOP_NAMES = {signal.SIGKILL: "kill -9", signal.SIGTERM: "SIGTERM"}


@dataclass(frozen=True)
class Life:
    """The service is started at ``start`` and ended at ``end`` (``None``: stays up) by ``number``."""

    start: float
    end: float | None
    number: signal.Signals


@dataclass
class Lived:
    """What became of a life, in virtual time; ``active`` is when it was seen collecting."""

    start: float
    active: float | None = None
    end: float | None = None
    stopped: str = ""


@dataclass
class Ledger:
    """The outcome; ``faults`` is empty when every slot of every session is proven."""

    sessions: dict[str, dict[str, Any]] = field(default_factory=dict)
    starts: int = 0
    kills: int = 0
    terms: int = 0
    slots: int = 0
    covered: int = 0
    final: int = 0
    both: int = 0
    vendor: int = 0
    whole_live: int = 0
    partial_live: int = 0
    drifted_whole: int = 0
    published_reconciled: int = 0
    vendor_calls: dict[str, int] = field(default_factory=dict)
    real_seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def lives(seed: int, days: Sequence[tuple[int, int]], starts: int) -> list[list[Life]]:
    """For each session (opens, closes) some lives at random moments, ``starts`` in all.

    The last life of a session stays up, but in every third session: there the next one catches up.
    """
    rng = random.Random(seed)
    shares = [starts // len(days) + (i < starts % len(days)) for i in range(len(days))]
    planned = []
    for number, ((opens, closes), count) in enumerate(zip(days, shares, strict=True)):
        ends_early = number % 3 == 1 and number + 1 < len(days)
        moments = sorted(
            rng.uniform(opens, closes) for _ in range(2 * count - (0 if ends_early else 1))
        )
        planned.append(
            [
                Life(
                    moments[2 * i],
                    moments[2 * i + 1] if 2 * i + 1 < len(moments) else None,
                    rng.choice([signal.SIGKILL, signal.SIGTERM]),
                )
                for i in range(count)
            ]
        )
    return planned


async def prove(
    what: Playback, folder: Path, *, days: Sequence[date], starts: int, seed: int
) -> Ledger:
    """Live through ``days``, then hold the proof against the recording."""
    calendar = _calendar(what)
    ledger = Ledger()
    began = time.monotonic()
    bounds = []
    for day in days:
        session = calendar.session(day)
        assert session is not None, day
        bounds.append((session.opens, session.closes))
    history: dict[date, list[Lived]] = {}
    async with stack(what, folder) as running, httpx.AsyncClient(timeout=30.0) as http:
        await running.service.stop()
        for day, (_, closes), planned in zip(
            days, bounds, lives(seed, bounds, starts), strict=True
        ):
            history[day] = await _session(running, http, planned, closes, ledger)
        await _eventually_proven(running, http, days)
        for day in days:
            answer = await http.get(
                f"{running.base_url}/market/continuity", params={"date": day.isoformat()}
            )
            answer.raise_for_status()
            _check_day(day, answer.json(), history[day], calendar, ledger)
        status = (await http.get(f"{running.base_url}/status")).json()
        ledger.vendor_calls = dict(status["credits"]["spent_by_purpose"])
        if await running.service.stop() != 0:
            ledger.faults.append("the service did not end cleanly")
        await _compare(what, days, running.environ["DATABASE_URL"], ledger)
    ledger.real_seconds = round(time.monotonic() - began, 1)
    return ledger


async def _session(
    running: Stack, http: httpx.AsyncClient, planned: Sequence[Life], closes: int, ledger: Ledger
) -> list[Lived]:
    lived = []
    for life in planned:
        await _until(running, life.start)
        one = Lived(running.clock.now())
        await running.service.start("run", environ=running.environ)
        ledger.starts += 1
        end = closes + SETTLED_AFTER_S if life.end is None else life.end
        one.active = await _watch(running, http, end)
        one.end = running.clock.now()
        number = signal.SIGTERM if life.end is None else life.number
        one.stopped = STOP_NAMES[number]
        await running.service.stop(number)
        ledger.kills += number is signal.SIGKILL
        ledger.terms += number is signal.SIGTERM
        lived.append(one)
    return lived


async def _watch(running: Stack, http: httpx.AsyncClient, end: float) -> float | None:
    """Wait until ``end``; when the service was first seen collecting."""
    active: float | None = None

    async def over() -> bool | None:
        nonlocal active
        if not running.service.running:
            raise AssertionError(f"the service died:\n{running.service.text()[-4000:]}")
        if active is None:
            try:
                answer = await http.get(f"{running.base_url}/health/live")
                if answer.json()["service_status"] == "active":
                    active = running.clock.now()
            except (httpx.TransportError, ValueError):
                pass  # not listening yet
        return running.clock.now() >= end or None

    await eventually(over, 3600.0, "virtual time")
    return active


async def _until(running: Stack, instant: float) -> None:
    async def reached() -> bool | None:
        if not running.simulator.running:
            raise AssertionError(f"the simulator died:\n{running.simulator.text()[-4000:]}")
        return running.clock.now() >= instant or None

    await eventually(reached, 3600.0, "virtual time")


async def _eventually_proven(running: Stack, http: httpx.AsyncClient, days: Sequence[date]) -> None:
    """The service once more, until it has caught up with everything."""
    await running.service.start("run", environ=running.environ)
    told = "no answer"

    async def proven() -> bool | None:
        nonlocal told
        window = {"start": min(days).isoformat(), "end": max(days).isoformat()}
        try:
            answer = await http.get(f"{running.base_url}/market/continuity", params=window)
        except httpx.TransportError:
            return None
        if answer.status_code != 200:
            return None
        wanted = {day.isoformat() for day in days}
        numbers = [one for one in answer.json()["days"] if one["date"] in wanted]
        told = str(numbers)
        return all(one["final"] == one["expected"] for one in numbers) or None

    await eventually(
        proven, 60.0, lambda: f"every slot final; {told}\n{running.service.text()[-3000:]}"
    )


def _check_day(
    day: date,
    answer: Mapping[str, Any],
    lived: Sequence[Lived],
    calendar: TradingCalendar,
    ledger: Ledger,
) -> None:
    faults = ledger.faults
    labels = calendar.expected_labels(day)
    slots = answer["slots"]
    ledger.slots += len(slots)
    ledger.covered += answer["covered"]
    ledger.final += answer["final"]
    ledger.both += answer["both"]
    ledger.vendor += answer["vendor"]
    ledger.sessions[day.isoformat()] = {
        "covered": f"{answer['covered']} of {answer['expected']}",
        "both": answer["both"],
        "vendor": answer["vendor"],
        "lives": [
            f"{iso_local(int(one.start))[11:19]} .. {iso_local(int(one.end or 0))[11:19]} "
            f"{one.stopped}"
            for one in lived
        ],
    }
    stamps = [datetime.fromisoformat(slot["datetime"]).timestamp() for slot in slots]
    if stamps != labels:
        faults.append(f"{day}: the slots are not the session's: {stamps}")
    if answer["covered"] != len(labels):
        faults.append(f"{day}: {answer['covered']} of {len(labels)} covered")
    for label, slot in zip(labels, slots, strict=True):
        at = f"{day} {slot['datetime'][11:16]}"
        if slot["source"] != "simulator" or not slot["final"]:
            faults.append(f"{at}: {slot}")
        # Live collection ends with the bar before the last.
        wanted = "vendor" if label == labels[-1] else _wanted(label, lived)
        if wanted is not None and slot["status"] != wanted:
            faults.append(f"{at}: {slot['status']} instead of {wanted}: {slot['reason']}")


def _wanted(label: int, lived: Sequence[Lived], margin: float = 300.0) -> str | None:
    """What the lives say about a slot; ``None`` where a start or an end touches it.

    :param margin: virtual seconds within which a process comes up or a bar is closed and written.
    """
    end = label + 300
    if all(one.start >= end or (one.end or one.start) <= label for one in lived):
        return "vendor"
    for one in lived:
        if (
            one.active is not None
            and one.end is not None
            and one.active <= label
            and end + margin <= one.end
        ):
            return "both"
    return None


async def _compare(what: Playback, days: Sequence[date], dsn: str, ledger: Ledger) -> None:
    """The tables against the recording."""
    calendar, recorded = _calendar(what), expected_bars(what)
    connection = await asyncpg.connect(dsn)
    try:
        for day in days:
            await _compare_day(connection, calendar.expected_labels(day), recorded, ledger)
        twice = await connection.fetch(
            "SELECT datetime, source, count(*) FROM market_data GROUP BY 1, 2 HAVING count(*) > 1"
        )
        ledger.faults += [f"stored twice: {dict(row)}" for row in twice]
        # What was published of a slot, in the order of its publication, must have grown.
        shrunk = await connection.fetch(
            "SELECT datetime, revision, before FROM (SELECT datetime, revision, lag(revision) OVER "
            "(PARTITION BY datetime ORDER BY published_at, revision) AS before FROM bar_revisions "
            "WHERE epoch > 0) AS versions WHERE revision <= before"
        )
        ledger.faults += [f"a revision did not grow: {dict(row)}" for row in shrunk]
        ledger.published_reconciled = await connection.fetchval(
            "SELECT count(*) FROM bar_revisions WHERE epoch > 0 AND status = 'reconciled'"
        )
        drift = await connection.fetchrow(
            "SELECT count(*) FILTER (WHERE NOT partial) AS whole, count(*) FILTER (WHERE partial) "
            "AS partial, count(*) FILTER (WHERE NOT partial AND (open, high, low, close) "
            "<> (0, 0, 0, 0)) AS drifted FROM bar_drift"
        )
    finally:
        await connection.close()
    ledger.whole_live, ledger.partial_live = drift["whole"], drift["partial"]
    ledger.drifted_whole = drift["drifted"]
    if drift["drifted"]:
        # The simulator's ticks make exactly the recorded bars, so a whole live bar equals its own.
        ledger.faults.append(f"{drift['drifted']} live bars called whole differ from the vendor's")
    if drift["whole"] + drift["partial"] != ledger.both:
        ledger.faults.append(
            f"drift of {drift['whole'] + drift['partial']} slots for {ledger.both} with both bars"
        )


async def _compare_day(
    connection: asyncpg.Connection,
    labels: Sequence[int],
    recorded: Mapping[int, Prices],
    ledger: Ledger,
) -> None:
    rows = await connection.fetch(
        "SELECT extract(epoch FROM datetime)::bigint AS slot, open, high, low, close, source, "
        "status FROM market_bars WHERE symbol = 'USDCOP' "
        "AND datetime BETWEEN to_timestamp($1::bigint) AND to_timestamp($2::bigint) "
        "ORDER BY datetime",
        labels[0],
        labels[-1],
    )
    if [row["slot"] for row in rows] != list(labels):
        ledger.faults.append(f"{iso_local(labels[0])}: market_bars has {len(rows)} rows")
    for row in rows:
        prices = tuple(float(row[name]) for name in ("open", "high", "low", "close"))
        if (row["source"], row["status"]) != ("simulator", "reconciled"):
            ledger.faults.append(f"{iso_local(row['slot'])}: {row['source']} {row['status']}")
        if prices != recorded.get(row["slot"]):
            ledger.faults.append(
                f"{iso_local(row['slot'])}: stored {prices}, recorded {recorded.get(row['slot'])}"
            )


def complete_days(what: Playback, first: date, last: date) -> list[date]:
    """The trading days of ``first .. last`` of which the recording has every slot."""
    calendar, recorded = _calendar(what), expected_bars(what)
    days = (first + timedelta(days=n) for n in range((last - first).days + 1))
    return [
        day
        for day in days
        if (labels := calendar.expected_labels(day)) and all(one in recorded for one in labels)
    ]


def run(what: Playback, folder: Path, *, days: Sequence[date], starts: int, seed: int) -> Ledger:
    """``prove`` in a loop of its own."""
    return asyncio.run(prove(what, folder, days=days, starts=starts, seed=seed))
