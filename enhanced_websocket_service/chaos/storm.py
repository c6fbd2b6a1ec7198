"""A storm from its first to its last moment: stage, let happen, let recover, judge."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from .comparison import Window
from .evidence import (
    judge_clients,
    judge_database,
    judge_redis,
    judge_sent,
    read_journal,
    read_sent,
)
from .honesty import Honesty
from .journal_account import Faults
from .ledger import Ledger
from .lies import lying
from .parts import Part
from .processes import POLL_S, ChaosError, Program
from .schedule import ONCE, POSTGRES, SECOND, SERVICE, SIMULATOR, VALKEY, Action
from .watching import Watcher
from .world import DAY, Setting, World, staged

log = structlog.get_logger(__name__)

READY_WITHIN_S = 60.0
PROVEN_WITHIN_S = 150.0
RECOVERY_S = 15.0
"""How long after a disturbance the way from the vendor may still be interrupted: time-outs,
reconnects, a start of the service."""


class Storm:
    """One storm over one world.

    :param meanwhile: called every second of it with the world; for those who measure.
    """

    def __init__(
        self,
        setting: Setting,
        actions: Sequence[Action],
        folder: Path,
        *,
        meanwhile: Callable[[World], Awaitable[None]] | None = None,
    ) -> None:
        self._setting = setting
        self._actions = tuple(actions)
        self._folder = folder
        self._meanwhile = meanwhile
        self._faults = Faults()
        self._excuses: list[Window] = []
        self._befallen: Counter[str] = Counter()
        self._moments: list[tuple[str, float, float]] = []
        self._service_is_ours = True  # False: we are killing or starting it just now

    async def run(self) -> Ledger:
        """Live through it.

        :raises ChaosError: it could not be staged, or the service never recovered.
        """
        began = time.monotonic()
        setting = self._setting
        ledger = Ledger(
            setting.seed,
            setting.seconds,
            setting.ticks_per_bar * setting.effective_speed / 300,
            [action.shown() for action in self._actions],
        )
        async with staged(setting, self._folder) as world:
            await self._until_collecting(world)
            await world.start_clients()
            watcher = Watcher(world)
            beside = [
                asyncio.create_task(self._watch(world), name="chaos-watch"),
                asyncio.create_task(watcher.run(), name="chaos-health"),
            ]
            try:
                await self._happen(world)
                await self._recover(world)
            finally:
                watching = not any(one.done() for one in beside)
                for one in beside:
                    one.cancel()
                ends = await asyncio.gather(*beside, return_exceptions=True)
            if not watching:
                raise ChaosError(f"Nobody watched to the end: {ends}")
            self._judge_health(watcher.found, ledger)
            await self._judge(world, ledger)
            ledger.service_starts = world.service.starts
        ledger.befallen = dict(self._befallen)
        ledger.moments = self._moments
        ledger.settle(self._faults)
        ledger.real_seconds = round(time.monotonic() - began, 1)
        return ledger

    async def _until_collecting(self, world: World) -> None:
        async def active() -> bool:
            if not world.service.running:
                raise ChaosError(f"The service ended at its start:\n{world.service.tail()}")
            status = await world.status()
            return status is not None and status["realtime_collection"]["ticks_accepted"] > 0

        await _until_async(active, READY_WITHIN_S, lambda: f"tick:\n{world.service.tail()}")

    async def _happen(self, world: World) -> None:
        """Each target's lane by itself, all at once."""
        lanes: dict[str, list[Action]] = {}
        for action in self._actions:
            lanes.setdefault(action.target, []).append(action)
        start = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for target, actions in lanes.items():
                group.create_task(self._lane(world, actions, start), name=f"chaos-{target}")
            group.create_task(asyncio.sleep(self._setting.seconds), name="chaos-time")

    async def _lane(self, world: World, actions: Sequence[Action], start: float) -> None:
        over = start + self._setting.seconds
        for action in actions:
            if action.when == "collecting":
                await self._until_collecting(world)
            since = start if action.when == "storm" else time.monotonic()
            moment = since + action.at
            if action.when != "storm" and moment > over:
                return  # what does not fit into the storm does not happen
            await asyncio.sleep(max(0.0, moment - time.monotonic()))
            log.info("Befalls", **action.shown())
            begins = time.time()  # real time: compared with the vendor's ledger
            await self._befall(world, action)
            what = f"{action.target} {action.name or action.kind}"
            self._befallen[what] += 1
            self._moments.append((what, begins, time.time()))  # real time
            if action.target in (SERVICE, SIMULATOR):
                self._excuses.append((begins - 1.0, time.time() + RECOVERY_S))  # real time

    async def _befall(self, world: World, action: Action) -> None:
        if action.kind == "fault":
            await world.set_faults({action.name: action.value})
            await asyncio.sleep(action.lasts)
            if action.name not in ONCE:
                off = False if isinstance(action.value, bool) else None
                await world.set_faults({action.name: off})
            return
        if action.kind == "lie":
            async with lying(world, action.name):
                await asyncio.sleep(action.lasts)
            return
        target = self._target(world, action.target)
        if action.kind == "instance":
            await target.start()
            await asyncio.sleep(action.lasts)
            await target.kill()
            return
        if action.kind == "stall":
            target.stall()
            try:
                await asyncio.sleep(action.lasts)
            finally:
                target.go_on()
            return
        if target is world.service:
            self._service_is_ours = False
        try:
            if action.kind == "outage":
                assert isinstance(target, Part)
                await target.shut_down()
            else:
                await target.kill()
            await asyncio.sleep(action.lasts)
            await target.start()
        finally:
            if target is world.service:
                self._service_is_ours = True

    def _target(self, world: World, name: str) -> Part | Program:
        known: dict[str, Part | Program] = {
            SERVICE: world.service,
            SECOND: world.second,
            POSTGRES: world.postgres,
            VALKEY: world.valkey,
            SIMULATOR: world.simulator,
            **world.clients.programs,
        }
        return known[name]

    async def _watch(self, world: World) -> None:
        """Nothing may end that we did not end; called-for measurements meanwhile."""
        last = 0.0
        while True:
            await asyncio.sleep(POLL_S)
            if self._service_is_ours and not world.service.running:
                self._faults.add(
                    "service_ended",
                    f"by itself with {world.service.exit_code}: {world.service.tail(1000)}",
                )
                await world.service.start()
            if self._meanwhile is not None and time.monotonic() - last >= 1.0:
                last = time.monotonic()
                await self._meanwhile(world)

    async def _recover(self, world: World) -> None:
        """The storm is over: until the session has closed and all of it is proven and stored."""
        await world.set_faults(None)
        log.info("The storm is over; recovering")
        await asyncio.sleep(max(0.0, world.real_time(world.closes) - time.time()))  # real time
        told: Any = "no answer"

        async def proven() -> bool:
            nonlocal told
            status = await world.status()
            if status is None:
                return False
            told = (status["service_status"], status["state"], status["storage"])
            if status["service_status"] != "market_closed":
                return False
            if status["storage"]["writer_lag_records"]:
                return False
            answer = await world.http.get(
                f"{world.base_url}/market/continuity", params={"date": DAY.isoformat()}
            )
            numbers = answer.json()
            told = (told, {key: numbers.get(key) for key in ("expected", "final", "unknown")})
            return answer.status_code == 200 and numbers["final"] == numbers["expected"]

        try:
            await _until_async(proven, PROVEN_WITHIN_S, lambda: f"recovery: {told}")
        except ChaosError as error:
            self._faults.add("not_recovered", f"{error}\n{world.service.tail(2000)}")

    def _judge_health(self, found: Honesty, ledger: Ledger) -> None:
        ledger.health = {
            "looks": found.looks,
            "healthy": found.healthy,
            "longest_healthy_without_work_s": {
                hop: round(idle.lasted, 1) for hop, idle in sorted(found.longest.items())
            },
        }
        for idle in found.broken:
            self._faults.add(
                "healthy_without_work",
                f"{idle.hop}: {idle.lasted:.0f} s healthy, from {idle.begins:.1f} on, while the "
                f"vendor sent {idle.sent} prices",
            )

    async def _judge(self, world: World, ledger: Ledger) -> None:
        """Stop in order, then read every place."""
        await world.stop_clients()
        self._excuses.append((world.real_time(world.closes) - 1.0, float("inf")))  # the feed ends
        sent = await read_sent(world)
        account, last = await asyncio.to_thread(read_journal, world.journal, self._faults)
        ledger.redis = await judge_redis(world, last, account)
        code = await world.service.stop()
        self._service_is_ours = False
        if code != 0:
            self._faults.add("exit_code", f"the service ended with {code} after SIGTERM")
        ledger.journal = {
            "records": account.records,
            "ticks": len(account.ticks),
            "epochs": len(account.epochs),
            "epochs_with_ticks": len(account.ticks.epochs),
            "sources": dict(account.sources),
            "flags": dict(account.flags),
            "bars": dict(account.bar_updates),
        }
        ledger.rejected = dict(account.rejected)
        ledger.published = account.ticks.published
        await judge_database(world, account, ledger)
        await asyncio.to_thread(judge_clients, world, account, ledger)
        await asyncio.to_thread(judge_sent, world, sent, account, ledger, self._excuses)


async def run_storm(
    setting: Setting,
    actions: Sequence[Action],
    folder: Path,
    meanwhile: Callable[[World], Awaitable[None]] | None = None,
) -> Ledger:
    """A storm with its schedule and ledger kept beside what it left behind."""
    _prepare(folder, actions)
    ledger = await Storm(setting, actions, folder, meanwhile=meanwhile).run()
    _write(folder / "ledger.json", vars(ledger))
    return ledger


def _prepare(folder: Path, actions: Sequence[Action]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # servers that root starts run as another user, who must get in
    _write(folder / "schedule.json", [action.shown() for action in actions])


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, default=str))


async def _until_async(
    look: Callable[[], Awaitable[bool]], within_s: float, what: Callable[[], str]
) -> None:
    deadline = time.monotonic() + within_s
    while not await look():
        if time.monotonic() > deadline:
            raise ChaosError(f"Within {within_s:g} s there was no {what()}")
        await asyncio.sleep(10 * POLL_S)
