#!/usr/bin/env python3
"""Prove resuming: clients are cut and come back at random while the service is restarted twice.

The real service with PostgreSQL, Valkey and the simulator, and a swarm of clients on real sockets, each of
which reconnects with ``?since=``. One third through the service is killed (-9), two thirds through it is
stopped in order. Claims: what each client got has no hole but the ranges named in ``skipped``, and no
double; all of it is in the database, and nothing that is there was lost to a client. The exit code is 1
when a claim is broken.

    python scripts/prove_resume.py --minutes 10 --clients 500
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import asyncpg
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from enhanced_websocket_service.chaos.world import SYMBOL, Setting, World, staged
from tests.e2e.swarm import Member, keep_visiting

POLL_S = 0.2


async def head(world: World) -> tuple[int, int] | None:
    """What the service published last."""
    status = await world.status()
    position = None if status is None else status["positions"].get(SYMBOL)
    return (
        None if not position or not position["epoch"] else (position["epoch"], position["offset"])
    )


async def until_ticking(world: World) -> None:
    while (at := await head(world)) is None or not at[1]:
        if not world.service.running:
            raise SystemExit(f"The service ended:\n{world.service.tail()}")
        await asyncio.sleep(POLL_S)


async def stored(world: World) -> Counter[int]:
    """By epoch, the ticks in the database: their offsets must be 1, 2, 3 ... without a hole."""
    connection = await asyncpg.connect(world.postgres.url)
    try:
        rows = await connection.fetch(
            "SELECT epoch, count(*) AS n, max(tick_offset) AS last, min(tick_offset) AS first "
            "FROM realtime_market_data WHERE epoch IS NOT NULL GROUP BY epoch"
        )
    finally:
        await connection.close()
    assert all(row["first"] == 1 and row["n"] == row["last"] for row in rows), rows
    return Counter({row["epoch"]: row["last"] for row in rows})


async def prove(
    minutes: float, clients: int, rate: float, seed: int, folder: Path
) -> dict[str, Any]:
    faults: list[str] = []
    chance = random.Random(seed)
    members = [Member(f"client {n}", faults) for n in range(clients)]
    seconds = minutes * 60
    setting = Setting(seconds, ticks_per_second=rate, seed=seed)
    async with staged(setting, folder) as world:
        await until_ticking(world)
        began, stop = time.monotonic(), asyncio.Event()
        port = int(world.base_url.rpartition(":")[2])

        def life() -> float:
            return 0.0 if stop.is_set() else chance.expovariate(1 / 8)

        async with asyncio.TaskGroup() as group:
            for number, member in enumerate(members):
                pause_s = 20.0 if number % 10 == 0 else 2.0  # some stay away long
                group.create_task(
                    keep_visiting(
                        *(member, stop, chance, pause_s), port=port, symbol=SYMBOL, leave=life
                    )
                )
            await asyncio.sleep(seconds / 3)
            await world.service.kill()
            await world.service.start()
            await asyncio.sleep(seconds / 3)
            await world.service.stop()
            await world.service.start()
            await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
            await until_ticking(world)
            target = await head(world)
            assert target is not None
            behind = members
            deadline = time.monotonic() + 60
            while behind and time.monotonic() < deadline:
                behind = [m for m in members if m.cursor is None or m.cursor < target]
                await asyncio.sleep(POLL_S)
            stop.set()
            for member in members:
                if member.connection is not None:
                    member.connection.abort()
        faults += [f"{m.name} ended at {m.cursor}, {target} was published" for m in behind[:5]]
        await world.service.stop()
        account = await stored(world)
        epochs = sorted(account)
        faults += [] if len(epochs) == 3 else [f"three epochs were expected, there are {epochs}"]
        skipped: Counter[str] = Counter()
        for member in members:
            skipped += member.skipped
    return {
        "minutes": minutes,
        "clients": clients,
        "service_starts": world.service.starts,
        "ticks_journaled": dict(account),
        "connections": sum(member.connections for member in members),
        "ticks_received": sum(member.received for member in members),
        "skipped": dict(skipped),
        "closes": {str(k): v for k, v in sum((m.closes for m in members), Counter()).items()},
        "faults": faults,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=500)
    parser.add_argument("--rate", type=float, default=40.0, help="ticks a real second")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep logs and data here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="resume-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            result = runner.run(
                prove(options.minutes, options.clients, options.rate, options.seed, folder)
            )
    print(json.dumps(result, indent=2))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
