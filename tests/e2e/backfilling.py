"""Backfills a recording as processes, kills them, and accounts for every request.

Used by the tests on a small generated recording and by ``scripts/prove_backfill.py`` on the real one.
Simulator and commands share virtual time; the database is real.
"""

import asyncio
import json
import math
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import polars as pl

from enhanced_websocket_service.market.calendar import TradingCalendar
from tests.waiting import eventually

from .playback import Process

CALENDAR = TradingCalendar()
OHLC = ("open", "high", "low", "close")
WITHIN_S = 120.0
ANCHORS = 2
"""Slots at the ends of a page that its neighbours may have brought too: proof that nothing was cut."""


@dataclass(frozen=True)
class Task:
    """What to backfill. ``first .. last`` are COT days; ``now`` is an ISO time, when it is done."""

    recording: Path
    first: date
    last: date
    now: str
    row_cap: int = 5000
    keys: int = 8
    speed: float = 20.0
    kills: int = 0
    most_requests: int = 6
    seed: int = 1


@dataclass
class Account:
    """What happened; ``faults`` is empty when all is as it should be."""

    bars: int = 0
    differences_in_database: int = 0
    differences_in_parquet: int = 0
    calls: int = 0
    minimum: int = 0
    refused_429: int = 0
    keys_used: int = 0
    kills: int = 0
    killed_with_pages_under_way: int = 0
    pages_fetched_twice: int = 0
    committed_days_asked_again: int = 0
    calls_of_a_second_run: int = 0
    real_seconds: float = 0.0
    faults: list[str] = field(default_factory=list)


class Backfilling:
    """One task in ``folder``, with a database of its own at ``dsn``."""

    def __init__(self, task: Task, folder: Path, dsn: str) -> None:
        self._task, self._folder, self._dsn = task, folder, dsn
        self._account = Account()
        self._random = random.Random(task.seed)
        self._clock = f"{task.now},{task.speed:g},{time.time()!r}"
        self._rest_url = ""
        table = pl.read_parquet(task.recording).sort("datetime")
        days = CALENDAR.trading_days(task.first, task.last)
        self._labels = {day: CALENDAR.expected_labels(day) for day in days}
        wanted = {slot for labels in self._labels.values() for slot in labels}
        self._recorded = {
            int(row[0].timestamp()): tuple(round(price, 6) for price in row[1:])
            for row in table.select("datetime", *OHLC).iter_rows()
            if int(row[0].timestamp()) in wanted
        }

    async def run(self) -> Account:
        """Do it all and compare. The processes are gone afterwards."""
        begun = time.monotonic()
        account, task = self._account, self._task
        account.minimum = math.ceil(len(self._recorded) / task.row_cap)
        simulator = Process("simulator", self._folder)
        await simulator.start(
            *("simulate", "--port", "0", "--bars", str(task.recording), "--plan", "basic"),
            *("--row-cap", str(task.row_cap)),
            environ={"VIRTUAL_CLOCK": self._clock},
        )
        try:
            line = await simulator.said("TWELVEDATA_REST_URL=")
            self._rest_url = line.partition("=")[2].strip()
            async with httpx.AsyncClient(base_url=self._rest_url, timeout=30) as client:
                for number in range(task.kills):
                    await self._killed(client, number)
                await self._finished(client)
        finally:
            await simulator.stop()
        account.real_seconds = round(time.monotonic() - begun, 1)
        return account

    async def _killed(self, client: httpx.AsyncClient, number: int) -> None:
        """One run that is killed at a random moment after a random number of its requests."""
        before = await self._requests(client)
        complete = await self._complete_days()
        patience = self._random.randint(0, self._task.most_requests)
        delay = self._random.uniform(0.0, 0.05)
        process = await self._backfill(f"killed-{number}")

        async def far_enough() -> bool | None:
            if not process.running:
                raise AssertionError(f"it ended before kill {number}:\n{process.text()[-3000:]}")
            return len(await self._requests(client)) >= len(before) + patience or None

        await eventually(far_enough, WITHIN_S, f"{patience} requests of run {number}")
        await asyncio.sleep(delay)
        await process.stop(signal.SIGKILL)
        self._account.kills += 1
        asked = await self._judge(client, len(before), complete)
        stored = await self._stored()
        if any(not self._slots_of(one) <= stored.keys() for one in asked if one["rows"]):
            self._account.killed_with_pages_under_way += 1

    async def _finished(self, client: httpx.AsyncClient) -> None:
        account = self._account
        before, complete = len(await self._requests(client)), await self._complete_days()
        last = await self._backfill("last", "--json")
        if await last.finished(WITHIN_S):
            account.faults.append(f"the last run failed:\n{last.text()[-3000:]}")
            return
        await self._judge(client, before, complete)
        requests = await self._requests(client)
        account.calls = len(requests)
        account.refused_429 = sum(one["status"] == 429 for one in requests)
        account.keys_used = len({one["key"] for one in requests})
        again = await self._backfill("again")
        if await again.finished(WITHIN_S):
            account.faults.append(f"a second run failed:\n{again.text()[-3000:]}")
        account.calls_of_a_second_run = len(await self._requests(client)) - account.calls
        verify = Process("verify", self._folder)
        await verify.start("l0", "verify", environ=self._environ())
        if await verify.finished(WITHIN_S):
            account.faults.append(f"`l0 verify` finds:\n{verify.text()[-3000:]}")

        stored = await self._stored()
        account.bars = len(stored)
        account.differences_in_database = _differences(self._recorded, stored)
        frame = pl.read_parquet(self._folder / "backups" / "usdcop_m5_complete_backup.parquet")
        file = {
            int(row[0].timestamp()): row[1:] for row in frame.select("datetime", *OHLC).iter_rows()
        }
        account.differences_in_parquet = _differences(self._recorded, file)
        for what in (
            *("differences_in_database", "differences_in_parquet", "refused_429"),
            *("committed_days_asked_again", "calls_of_a_second_run"),
        ):
            if count := getattr(account, what):
                account.faults.append(f"{what}: {count}")
        if not all(one["timezone"] == "UTC" for one in requests):
            account.faults.append("a question was asked without timezone=UTC")
        if not account.kills and account.calls > account.minimum + 2:
            account.faults.append(f"{account.calls} calls, the minimum is {account.minimum}")

    async def _judge(
        self, client: httpx.AsyncClient, since: int, complete: Sequence[date]
    ) -> list[dict[str, Any]]:
        """Account for the requests of one run; they are returned."""
        requests = await self._requests(client)
        account = self._account
        served: set[int] = set()
        for one in requests[:since]:
            served |= self._slots_of(one)
        for one in requests[since:]:
            start, end = _instant(one["start_date"]), _instant(one["end_date"])
            account.committed_days_asked_again += sum(
                start <= self._labels[day][-1] and self._labels[day][0] <= end for day in complete
            )
            slots = self._slots_of(one)
            account.pages_fetched_twice += len(slots & served) > ANCHORS
            served |= slots
        # A page lost to a kill may be fetched again much later: what counts is the sum so far.
        allowed = account.kills * self._task.keys
        if account.pages_fetched_twice > allowed:
            account.faults.append(
                f"{account.pages_fetched_twice} pages fetched twice after {account.kills} kills"
            )
        return requests[since:]

    def _slots_of(self, request: dict[str, Any]) -> set[int]:
        """What the answer to a request brought."""
        if not request["rows"]:
            return set()
        first, last = _instant(request["first"]), _instant(request["last"])
        return {slot for slot in self._recorded if first <= slot <= last}

    async def _complete_days(self) -> list[date]:
        """The days of which every slot is stored, or on record as absent."""
        known: set[int] = set()
        record = self._folder / "backups" / "usdcop_m5_vendor_gaps.json"
        if record.exists():
            for day, times in json.loads(record.read_text())["absent"].items():
                for at in times:
                    local = datetime.fromisoformat(f"{day}T{at}").replace(tzinfo=CALENDAR.zone)
                    known.add(int(local.timestamp()))
        known |= (await self._stored()).keys()
        return [day for day, labels in self._labels.items() if known.issuperset(labels)]

    async def _stored(self) -> dict[int, tuple[float, ...]]:
        connection = await asyncpg.connect(self._dsn)
        try:
            if await connection.fetchval("SELECT to_regclass('market_data')") is None:
                return {}
            rows = await connection.fetch(
                "SELECT extract(epoch FROM datetime)::bigint AS slot, open::float8, high::float8, "
                "low::float8, close::float8 FROM market_data WHERE source = 'simulator'"
            )
        finally:
            await connection.close()
        assert len(rows) == len({row["slot"] for row in rows}), "a slot is stored twice"
        return {row["slot"]: tuple(row[name] for name in OHLC) for row in rows}

    async def _requests(self, client: httpx.AsyncClient) -> list[dict[str, Any]]:
        answer = await client.get("/_sim/requests")
        found: list[dict[str, Any]] = answer.json()["requests"]
        return found

    async def _backfill(self, name: str, *options: str) -> Process:
        process = Process(name, self._folder)
        dates = ("--start", str(self._task.first), "--end", str(self._task.last))
        await process.start("l0", "backfill", *dates, *options, environ=self._environ())
        return process

    def _environ(self) -> dict[str, str]:
        keys = {
            f"TWELVEDATA_API_KEY_G{1 + i // 8}_{1 + i % 8}": f"key-number-{i}"
            for i in range(self._task.keys)
        }
        return {
            **keys,
            "DATABASE_URL": self._dsn,
            "TWELVEDATA_REST_URL": self._rest_url,
            "TWELVEDATA_WS_URL": self._rest_url.replace("http", "ws", 1),
            "VIRTUAL_CLOCK": self._clock,
            "STATE_DIR": str(self._folder / "state"),
            "READY_SIGNALS_DIR": str(self._folder / "signals"),
            "BACKUP_DIR": str(self._folder / "backups"),
        }


def _differences(
    expected: dict[int, tuple[float, ...]], found: dict[int, tuple[float, ...]]
) -> int:
    return sum(expected.get(slot) != found.get(slot) for slot in expected.keys() | found.keys())


def _instant(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp())
