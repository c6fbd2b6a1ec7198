#!/usr/bin/env python3
"""Prove that an outage of PostgreSQL, or of Redis, delays nobody, loses nothing and doubles nothing.

At 2,000 ticks a second the server is shut down for ten real minutes and comes back, while a sampler asks
the service for its backlog and the system for its memory, and clients note how late each tick came. At
the end the ledger of ``ews chaos`` compares journal, tables, cache and clients. About 15 minutes each:

    python scripts/prove_outages.py postgres
    python scripts/prove_outages.py redis
"""

import argparse
import asyncio
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from enhanced_websocket_service.chaos.processes import scratch_folder
from enhanced_websocket_service.chaos.schedule import Action
from enhanced_websocket_service.chaos.storm import run_storm
from enhanced_websocket_service.chaos.world import Setting, World

BEFORE_S = 40.0
WARM_S = 30.0
"""Until the ring of recent messages, which is bounded, is full."""
WANTED_DRAIN_RATIO = 5.0
FLAT_MB = 25.0
"""What memory may grow between the first and the last tenth of the outage: the allocator's noise."""


@dataclass
class Sample:
    """The service at one moment; ``at`` unix seconds."""

    at: float
    rss_mb: float
    journaled: int
    lag: int
    database: bool
    redis: bool


class Sampler:
    def __init__(self) -> None:
        self.samples: list[Sample] = []

    async def __call__(self, world: World) -> None:
        status = await world.status()
        if status is None:
            return
        storage = status["storage"]
        self.samples.append(
            Sample(
                time.time(),
                psutil.Process(world.service.pid).memory_info().rss / 1e6,
                storage["journal_records"],
                storage["writer_lag_records"],
                storage["database_connected"],
                storage["redis_connected"],
            )
        )

    def between(self, start: float, end: float) -> list[Sample]:
        return [one for one in self.samples if start <= one.at <= end]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=["postgres", "redis"])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--ticks-per-second", type=float, default=2000.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep logs and data here")
    options = parser.parse_args()
    folder = options.folder.resolve() if options.folder else scratch_folder("prove-outages-")
    outage_s = options.minutes * 60
    target = "postgres" if options.part == "postgres" else "valkey"
    sampler = Sampler()
    setting = Setting(
        seconds=BEFORE_S + outage_s + max(30.0, outage_s * 0.3),
        ticks_per_second=options.ticks_per_second,
        seed=options.seed,
    )
    action = Action(BEFORE_S, target, "outage", outage_s)
    ledger = asyncio.run(run_storm(setting, [action], folder, sampler))
    down, up = ledger.moments[0][1:]
    faults = list(ledger.broken)
    found: dict[str, Any] = {
        "ticks_per_second": ledger.ticks_per_second,
        "outage_s": round(up - down, 1),
        "sent": ledger.sent["sent"],
        "journaled": ledger.journal["ticks"],
        "stored": ledger.stored["ticks"],
        "published": ledger.published,
        "clients": {name: one["received"] for name, one in ledger.clients.items()},
        "skipped": sum(sum(one["skipped"].values()) for one in ledger.clients.values()),
        "redis": ledger.redis,
        "memory": memory(sampler, down, up, faults),
        "fan_out": fan_out(folder / "client-every.diary", down, up, sampler),
    }
    if options.part == "postgres":
        found["drain"] = drain(sampler, up, ledger.ticks_per_second, faults)
    found["took_s"] = ledger.real_seconds
    found["faults"] = faults
    print(json.dumps(found, indent=1))
    if not options.folder and not faults:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if faults else 0


def memory(sampler: Sampler, down: float, up: float, faults: list[str]) -> dict[str, float]:
    """Of the service's process, in megabytes; the outage's first tenth against its last."""
    tenth = (up - down) / 10
    early = _median(sampler.between(down, down + tenth))
    late = _median(sampler.between(up - tenth, up))
    if late - early > FLAT_MB:
        faults.append(f"memory grew from {early:.0f} to {late:.0f} MB during the outage")
    return {
        "before_mb": _median(sampler.between(down - 10, down)),
        "outage_first_tenth_mb": early,
        "outage_last_tenth_mb": late,
        "largest_mb": round(max(one.rss_mb for one in sampler.samples), 1),
    }


def _median(samples: Sequence[Sample]) -> float:
    return round(statistics.median(one.rss_mb for one in samples), 1)


def drain(sampler: Sampler, up: float, live: float, faults: list[str]) -> dict[str, float]:
    """From the return of the server until no more than a second of ticks was behind."""
    after = sampler.between(up, float("inf"))
    backlog = max(one.lag for one in sampler.between(up - 5, up + 15))
    begins = next((one for one in after if one.lag < backlog * 0.98), None)
    ends = next((one for one in after if one.lag < live), None)
    if begins is None or ends is None:
        faults.append(f"the backlog of {backlog} was never drained")
        return {"backlog": backlog}
    seconds = max(ends.at - begins.at, 0.5)
    stored = begins.lag - ends.lag + ends.journaled - begins.journaled
    ratio = stored / seconds / live
    if ratio < WANTED_DRAIN_RATIO:
        faults.append(f"the backlog drained at {ratio:.1f} times the live rate")
    return {
        "backlog": backlog,
        "noticed_after_s": round(begins.at - up, 1),
        "drained_in_s": round(seconds, 1),
        "stored_per_second": round(stored / seconds),
        "times_the_live_rate": round(ratio, 2),
    }


def fan_out(diary: Path, down: float, up: float, sampler: Sampler) -> dict[str, Any]:
    """How late ticks came to a client, real milliseconds from our receipt to the client's."""
    caught_up = next((one.at for one in sampler.samples if one.at > up and one.lag < 4000), up + 10)
    spans = {
        "before": (down - BEFORE_S + WARM_S / 2, down),
        "outage": (down, up),
        "drain": (up, max(caught_up, up + 1)),
        "after": (caught_up, float("inf")),
    }
    seconds = []
    with diary.open() as file:
        for line in file:
            if line.startswith("L "):
                at, count, median, high, largest = line.split()[1:]
                seconds.append((int(at), int(count), float(median), float(high), float(largest)))
    told = {}
    for name, (start, end) in spans.items():
        inside = [one for one in seconds if start <= one[0] < end]
        if inside:
            told[name] = {
                "seconds": len(inside),
                "ticks_per_second": round(statistics.mean(one[1] for one in inside)),
                "median_ms": round(statistics.median(one[2] for one in inside), 2),
                "p99_ms": round(statistics.median(one[3] for one in inside), 2),
                "worst_second_p99_ms": max(one[3] for one in inside),
                "largest_ms": max(one[4] for one in inside),
            }
    return told


if __name__ == "__main__":
    sys.exit(main())
