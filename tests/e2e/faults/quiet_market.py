"""The thinnest recorded sessions, and a rate that falls: quiet is not dead.

Used by ``scripts/prove_quiet_market.py``. Reconnects are counted in the simulator's book of connections,
verdicts where a consumer is told of them; what the service stored is compared with what was sent.
"""

import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import holidays
import httpx
import polars as pl

from enhanced_websocket_service.market.calendar import TradingCalendar, iso_local
from tests.e2e.playback import Outcome as Compared
from tests.e2e.playback import Playback, Stack, compare, stack
from tests.waiting import eventually

from . import secrets
from .consumer import Consumer, consuming

LAGGING_REST = {"rest_lag_s": [0, 20], "rest_decimals": 2}
"""What REST shows is up to 20 s old, drawn anew every second, and rounded as the stream is not."""
POISSON = ("--arrivals", "poisson", "--ticks-per-bar", "2-40")
FALLS_AT = 5400
"""Seconds after the open at which a tick a second becomes a tick a minute."""


@dataclass
class Told:
    """One session."""

    day: str
    bars: int = 0
    mean_range_bp: float = 0.0
    us_holiday: str | None = None
    connections: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    liveness_credits: int = 0
    quiet_share: float | None = None
    verdict_at_close: str = ""


@dataclass
class Outcome:
    """What is claimed is right when ``faults`` is empty."""

    name: str
    speed: float
    sessions: list[Told] = field(default_factory=list)
    needless_reconnects: int = 0
    false_dead: int = 0
    suspicions: int = 0
    liveness_credits: int = 0
    ticks_sent: int = 0
    ticks_stored: int = 0
    real_seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


def thin_sessions(recording: Path, year: int, count: int) -> list[Told]:
    """The ``count`` sessions whose bars are lowest from high to low on average, and every session on
    a holiday of the United States besides."""
    calendar = TradingCalendar()
    american = holidays.country_holidays("US", years=year)
    frame = pl.read_parquet(recording).with_columns(
        day=pl.col("datetime").dt.convert_time_zone("America/Bogota").dt.date(),
        range=(pl.col("high") - pl.col("low")) / pl.col("close") * 1e4,
    )
    days = (
        frame.filter(pl.col("day").dt.year() == year)
        .group_by("day")
        .agg(bars=pl.len(), range=pl.col("range").mean())
        .sort("range", "day")
    )
    found = [
        Told(str(day), bars, round(mean, 2), american.get(day))
        for day, bars, mean in days.iter_rows()
        if calendar.is_trading_day(day)
    ]
    return sorted(
        [*found[:count], *(one for one in found[count:] if one.us_holiday)],
        key=lambda one: one.day,
    )


def closures(days: Sequence[date], calendar: TradingCalendar) -> str:
    """Every other trading day between them, so that the clock passes over it."""
    others = [one for one in calendar.trading_days(min(days), max(days)) if one not in days]
    return ",".join(map(str, others))


async def prove(
    name: str,
    folder: Path,
    recording: Path,
    sessions: Sequence[Told],
    *,
    speed: float,
    seed: int = 0,
    closed_speed: float = 100_000.0,
    ticks: bool = False,
) -> Outcome:
    """Play ``sessions`` in full, one after the other, through one service."""
    outcome, began = Outcome(name, speed), time.monotonic()
    calendar = TradingCalendar()
    days = [date.fromisoformat(one.day) for one in sessions]
    keys = {f"TWELVEDATA_API_KEY_G1_{i}": f"quiet-{i}-0123456789" for i in range(1, 5)}
    what = Playback(
        recording=recording,
        first=days[0],
        last=days[-1],
        speed=speed,
        closed_speed=closed_speed,
        ticks=ticks,
        scale=3000.0 if ticks else 1.0,
        preparation_s=40.0,  # at this speed a start in the first session would cost its first bars
        simulate=() if ticks else ("--seed", str(seed), *POISSON),
        environ={
            "EXTRA_CLOSURES": closures(days, calendar),
            "L0_POLICY": "degraded",
            **keys,
        },
    )
    async with stack(what, folder) as running, httpx.AsyncClient(timeout=60.0) as http:
        (await http.post(f"{running.rest_url}/_sim/faults", json=LAGGING_REST)).raise_for_status()
        await _listening(running, http)
        async with consuming(f"ws{running.base_url[4:]}/ws/USDCOP?mode=bars") as consumer:
            for told, day in zip(sessions, days, strict=True):
                session = calendar.session(day)
                assert session is not None
                await _session(running, http, told, session.opens, session.closes, outcome)
                sent = await http.get(
                    f"{running.rest_url}/_sim/sent",
                    params={"symbol": "USD/COP", "start": session.opens, "end": session.closes},
                )
                (folder / f"sent-{day}.json").write_bytes(sent.content)
            places = await secrets.answers(running.base_url)
            places["the process title"] = secrets.process_title(running.service.pid)
            outcome.faults += secrets.told(keys.values(), places)
            if await running.service.stop() != 0:
                outcome.faults.append("the service did not end cleanly")
        for told, day in zip(sessions, days, strict=True):
            session = calendar.session(day)
            assert session is not None
            _verdicts(consumer, told, session.opens, session.closes, outcome)
        await _compare(what, folder, running, days, outcome)
        files = {
            name: text for name, text in secrets.files(folder).items() if "servers" not in name
        }
        outcome.faults += secrets.told(keys.values(), files)
    outcome.sessions = list(sessions)
    outcome.real_seconds = round(time.monotonic() - began, 1)
    return outcome


async def _compare(
    what: Playback, folder: Path, running: Stack, days: Sequence[date], outcome: Outcome
) -> None:
    for day in days:
        compared = Compared()
        one = Playback(what.recording, day, day, ticks=what.ticks, scale=what.scale)
        await compare(one, folder, running.environ["DATABASE_URL"], compared)
        outcome.ticks_sent += compared.ticks_sent
        outcome.ticks_stored += compared.ticks_stored
        outcome.faults += compared.faults


async def _listening(running: Stack, http: httpx.AsyncClient) -> None:
    async def up() -> bool | None:
        try:
            return (await http.get(f"{running.base_url}/health/live")).status_code == 200 or None
        except httpx.TransportError:
            return None

    await eventually(up, 60.0, lambda: running.service.text()[-2000:])


async def _session(
    running: Stack,
    http: httpx.AsyncClient,
    told: Told,
    opens: float,
    closes: float,
    outcome: Outcome,
) -> None:
    """Wait for the end of one session, looking at the verdict now and then."""
    before = await _accepted(running, http)
    seen: Counter[str] = Counter()
    last = ""
    clock = running.clock
    look = opens + 60.0

    async def over() -> bool | None:
        nonlocal look, last
        for process in (running.simulator, running.service):
            if not process.running:
                raise AssertionError(f"{process.name} died:\n{process.text()[-4000:]}")
        now = clock.now()
        if look <= now < closes - 30.0:
            look = now + 120.0
            with contextlib.suppress(httpx.TransportError):
                status = (await http.get(f"{running.base_url}/status")).json()
                last = status["realtime_collection"]["verdict"]
                seen[last if now < opens + FALLS_AT + 900 else f"{last} later"] += 1
        return now >= closes + 60 + 2 * outcome.speed or None

    await eventually(over, 3600.0, "the end of the session")
    told.connections = await _accepted(running, http) - before
    told.liveness_credits = await _liveness(running, http)  # of the UTC day: this session's
    told.verdict_at_close = last
    late = {name: count for name, count in seen.items() if name.endswith(" later")}
    if late:
        told.quiet_share = round(late.get("quiet later", 0) / sum(late.values()), 2)
    outcome.liveness_credits += told.liveness_credits
    outcome.needless_reconnects += max(0, told.connections - 1)
    if told.connections != 1:
        outcome.faults.append(f"{told.day}: {told.connections} connections for one session")


async def _accepted(running: Stack, http: httpx.AsyncClient) -> int:
    shown = (await http.get(f"{running.rest_url}/_sim/status")).json()
    return int(shown["handshakes"]["accepted"] + shown["handshakes"]["refused"])


async def _liveness(running: Stack, http: httpx.AsyncClient) -> int:
    status = (await http.get(f"{running.base_url}/status")).json()
    return int(status["credits"]["spent_by_purpose"].get("liveness", 0))


def _verdicts(
    consumer: Consumer, told: Told, opens: float, closes: float, outcome: Outcome
) -> None:
    changes = consumer.verdicts(opens, closes)
    told.verdicts = dict(Counter(verdict for _, verdict in changes))
    outcome.suspicions += told.verdicts.get("suspect", 0)
    outcome.false_dead += told.verdicts.get("dead", 0)
    for at, verdict in changes:
        if verdict == "dead":
            outcome.faults.append(f"called dead at {iso_local(at)}")


def falling_rate(path: Path, days: Sequence[date]) -> Path:
    """A tick a second, but from ``FALLS_AT`` of the last session on a tick a minute; Poisson."""
    rng = random.Random(23)
    calendar = TradingCalendar()
    rows, mid = [], 1.3
    for day in days:
        session = calendar.session(day)
        assert session is not None
        at = session.opens - 600.0
        while at < session.closes + 600:
            falls = day == days[-1] and at >= session.opens + FALLS_AT
            mid += rng.gauss(0, 0.00001)
            half = rng.uniform(0.00001, 0.00004)
            stamp = datetime.fromtimestamp(at, UTC)
            rows.append((stamp, "EURUSD", round(mid - half, 6), round(mid + half, 6), "made"))
            at += rng.expovariate(1 / 60 if falls else 1.0)
    columns = ["datetime", "symbol", "bid", "ask", "source"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(path)
    return path


async def prove_falling(folder: Path, *, speed: float, days: int = 3) -> Outcome:
    """Some sessions at a tick a second, the last one falling to a tick a minute."""
    first = date(2024, 5, 14)
    chosen = TradingCalendar().trading_days(first, first + timedelta(days=14))[:days]
    recording = falling_rate(folder / "ticks.parquet", chosen)
    sessions = [Told(str(day)) for day in chosen]
    outcome = await prove(
        "falling rate", folder, recording, sessions, speed=speed, closed_speed=20_000, ticks=True
    )
    last = outcome.sessions[-1]
    # Within 15 s of a price it is live: a quarter of the looks.
    if (last.quiet_share or 0.0) < 0.6 or last.verdict_at_close not in ("quiet", "live"):
        outcome.faults.append(f"after the fall it was called quiet in {last.quiet_share} of looks")
    return outcome


def shown(outcomes: Sequence[Outcome]) -> str:
    """All figures as JSON."""

    def plain(value: Any) -> Any:
        return value.__dict__

    return json.dumps([plain(one) for one in outcomes], default=plain, indent=2)
