#!/usr/bin/env python3
"""Abuse the WebSocket endpoint with seeded cases and judge every answer by RFC 6455.

    python scripts/fuzz_websocket.py --cases 100000 --seed 1

A server process, a healthy client beside the others. Right means: the close codes that an independent reading
of the RFC allows, nothing at ERROR in the log, no client, file or memory left over, and the healthy
client missing nothing. Exit code 1 otherwise. ``--only N`` plays one case and shows it.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.integration.abuse.cases import make_case
from tests.integration.abuse.driver import Healthy, Played, Wrong, play, serving
from tests.integration.abuse.rfc6455 import judge

_BLOCK = 5000
_GROWTH_MAX = 24 * 1024 * 1024
"""Bytes the server may grow after the first block: allocators keep what they once needed."""


async def _run(cases: int, seed: int, at_once: int, folder: Path) -> int:
    faults: list[str] = []
    total = Played()
    started = time.monotonic()
    async with serving(folder) as server:
        healthy = Healthy(server.port)
        async with healthy.beside():
            files = memory = 0
            for first in range(0, cases, _BLOCK):
                numbers = range(first, min(first + _BLOCK, cases))
                played = await play(server, seed, numbers, at_once=at_once)
                total.cases += played.cases
                total.kinds += played.kinds
                total.outcomes += played.outcomes
                total.wrong += played.wrong
                try:
                    await server.has_only_the_healthy_one()
                except Wrong as wrong:
                    faults.append(str(wrong))
                now_files, now_memory = server.usage()
                if first == 0:
                    files, memory = now_files, now_memory
                spent = time.monotonic() - started
                print(
                    f"{total.cases} cases in {spent:.0f} s, {len(total.wrong)} wrong, "
                    f"{now_files} files, {now_memory / 1e6:.1f} MB",
                    flush=True,
                )
            if now_files > files + 2:
                faults.append(f"open files grew from {files} to {now_files}")
            if now_memory > memory + _GROWTH_MAX:
                faults.append(f"memory grew from {memory} to {now_memory} bytes")
            refused = (await server.status())["connections"]["refused_total"]
        faults += healthy.faults
        print(f"healthy client: {healthy.received} messages, {len(healthy.faults)} faults")
    faults += server.faults()
    print("kinds:", dict(total.kinds.most_common()))
    print("outcomes:", dict(total.outcomes.most_common()))
    print("refused:", refused)
    for line in (total.wrong + faults)[:30]:
        print("WRONG", line)
    print(f"{total.cases} cases, {len(total.wrong) + len(faults)} faults")
    return 1 if total.wrong or faults else 0


async def _show(seed: int, number: int, folder: Path) -> int:
    case = make_case(seed, number)
    print(case, judge(case.stream, 65_536, deflate=case.deflate), sep="\n")
    async with serving(folder) as server:
        played = await play(server, seed, range(number, number + 1))
    print(played, *server.faults(), sep="\n")
    return 1 if played.wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=32, help="cases in flight")
    parser.add_argument("--only", type=int, help="play this one case and show it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.only is not None:
            return asyncio.run(_show(given.seed, given.only, Path(folder)))
        return asyncio.run(_run(given.cases, given.seed, given.at_once, Path(folder)))


if __name__ == "__main__":
    raise SystemExit(main())
