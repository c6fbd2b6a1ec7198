#!/usr/bin/env python3
"""Prove that slow clients cost the others nothing, and know exactly what they did not get.

The real hub and server in one process, a swarm of clients on real sockets in another: of every ten clients
eight read as fast as they can, one reads a tenth of what comes, one reads nothing at all. Before and after,
the same eight hundred are measured without the slow ones. Claims: the quick ones miss nothing, with a 99th
percentile of at most 1.5 times that without the slow ones; what each slow one was told it missed is exactly
what it did not get (checked to the end, once they read again); the server's memory stays bounded. The exit
code is 1 when a claim is broken.

    python scripts/prove_slow_clients.py --minutes 10 --clients 1000
"""

import argparse
import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from enhanced_websocket_service.market.events import EpochStarted
from tests.e2e.swarm import Latencies, Member, keep_visiting, quantile, visit
from tests.unit.serving.fakes import running, tick

SYMBOL = "USDCOP"
EPOCH = 1_750_000_000_000
FRAME_BYTES = 330
SMALL_BUFFER = 4096
SETTLE_S = 5.0
POLL_S = 0.2
P99_RATIO = 1.5
MEMORY_PER_SLOW = 1024 * 1024 + 256 * 1024
"""Bytes that one slow client may hold in the server at most: the hard limit, and a share of slack."""
HISTORY_BYTES = 64 * 1024 * 1024


async def serve(rate: float) -> None:
    """The server process: ticks until SIGTERM, then says how many there were."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    quiet = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, quiet.set)
    async with running() as api:
        api.hub.on_events([EpochStarted(SYMBOL, EPOCH, None, None)])
        print(f"PORT {api.server.port}", flush=True)
        offset, due = 0, loop.time()
        while not quiet.is_set() and not stop.is_set():
            offset += 1
            # Real time: the latency is measured from here.
            api.hub.on_events([tick(offset, epoch=EPOCH, received_at=time.time())])
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
        counts = {"head": offset, **api.hub.counts().model_dump(mode="json")}
        print(f"COUNTS {json.dumps(counts)}", flush=True)
        await stop.wait()


class Phase:
    """Quick clients that are watched for a while."""

    def __init__(self, name: str, count: int, faults: list[str]) -> None:
        self.latencies = Latencies()
        self.members = [Member(f"{name} {n}", faults) for n in range(count)]

    async def measure(self, port: int, seconds: float) -> Counter[int]:
        """Latencies of ``seconds``, a start-up left out; every member stays connected throughout."""
        tasks = [
            asyncio.create_task(visit(m, port, SYMBOL, latencies=self.latencies))
            for m in self.members
        ]
        await asyncio.sleep(SETTLE_S)
        self.latencies.take()
        await asyncio.sleep(seconds)
        bins = self.latencies.take()
        for member in self.members:
            if member.connection is None or member.connections != 1:
                member.fault(f"a quick client was disconnected: {dict(member.closes)}")
            else:
                member.connection.abort()
        await asyncio.gather(*tasks)
        return bins


def start_server(rate: float) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, __file__, "--serve", "--rate", str(rate)], stdout=subprocess.PIPE
    )


def told_by(server: "subprocess.Popen[bytes]", word: str) -> str:
    """The rest of the server's next line that begins with ``word``; its log goes there, too."""
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith(word.encode()):
            return line.decode().removeprefix(word).strip()
    raise SystemExit(f"The server ended with {server.wait()} before it said {word}.")


async def prove(minutes: float, clients: int, rate: float) -> dict[str, Any]:
    faults: list[str] = []
    server = start_server(rate)
    try:
        port = int(told_by(server, "PORT"))
        process = psutil.Process(server.pid)
        quick, few = clients * 8 // 10, clients // 10
        baseline_s = max(20.0, minutes * 60 / 8)
        before = await Phase("before", quick, faults).measure(port, baseline_s)
        memory_before = process.memory_info().rss

        chance, stop = random.Random(1), asyncio.Event()
        slow = [Member(f"reads a tenth {n}", faults) for n in range(few)]
        mute = [Member(f"reads nothing {n}", faults) for n in range(few)]
        cpu_before = process.cpu_times()
        tasks = [
            asyncio.create_task(
                keep_visiting(
                    *(member, stop, chance, 1.0),
                    port=port,
                    symbol=SYMBOL,
                    bytes_per_s=speed,
                    receive_buffer=SMALL_BUFFER,
                )
            )
            for members, speed in ((slow, rate * FRAME_BYTES / 10), (mute, 0.0))
            for member in members
        ]
        most_memory = memory_before
        watched = Phase("quick", quick, faults)
        measuring = asyncio.create_task(watched.measure(port, minutes * 60 - SETTLE_S))
        while not measuring.done():
            most_memory = max(most_memory, process.memory_info().rss)
            await asyncio.wait({measuring}, timeout=1.0)
        during = measuring.result()
        cpu = process.cpu_times()
        load = psutil.Process().cpu_times()

        # Now the slow ones read: what they get and what they are told must be everything.
        stop.set()
        for member in (*slow, *mute):
            if member.connection is not None:
                member.connection.hurry()
        head = max(m.cursor for m in watched.members if m.cursor is not None)
        await finish([*slow, *mute], port, head, faults)
        for member in (*slow, *mute):
            if member.connection is not None:
                member.connection.abort()
        await asyncio.gather(*tasks)
        after = await Phase("after", quick, faults).measure(port, baseline_s)
        server.send_signal(signal.SIGUSR1)
        told = json.loads(await asyncio.to_thread(told_by, server, "COUNTS"))
    finally:
        server.terminate()
        server.wait()

    for member in (*slow, *mute):
        named = sum(last - first + 1 for _, first, last, _ in member.skips)
        if member.began_at is None or member.cursor is None:
            member.fault("it was never welcomed")
        elif member.received + named != (owed := member.cursor[1] - member.began_at[1]):
            member.fault(f"{member.received} received and {named} named of {owed}")
    p99 = {"before": quantile(before, 0.99), "during": quantile(during, 0.99)}
    p99["after"] = quantile(after, 0.99)
    alone = quantile(before + after, 0.99)
    ratio = p99["during"] / alone
    if ratio > P99_RATIO:
        faults.append(f"p99 of the quick ones is {ratio:.2f} times that without the slow ones")
    allowed = 2 * few * MEMORY_PER_SLOW + HISTORY_BYTES
    if most_memory - memory_before > allowed:
        faults.append(f"the server grew by {most_memory - memory_before} bytes, allowed {allowed}")
    return {
        "minutes": minutes,
        "clients": {"quick": quick, "a tenth": few, "nothing": few},
        "ticks_per_second": rate,
        "ticks": told["head"],
        "quick_ticks_measured": during.total(),
        "p99_ms": {name: round(value, 3) for name, value in p99.items()},
        "p99_ratio": round(ratio, 3),
        "server_cpu_us_per_message": round(
            1e6 * (cpu.user + cpu.system - cpu_before.user - cpu_before.system) / during.total(), 2
        ),
        "load_cpu_s": round(load.user + load.system, 1),
        "server_memory_mib": {
            "before": round(memory_before / 2**20, 1),
            "most": round(most_memory / 2**20, 1),
        },
        "slow": summed(slow),
        "mute": summed(mute),
        "hub": {k: v for k, v in told.items() if k != "by_symbol"},
        "faults": faults,
    }


async def finish(
    members: list[Member], port: int, head: tuple[int, int], faults: list[str]
) -> None:
    """Let every slow member read to the end, over a new connection where it has none."""

    async def to_the_end(member: Member) -> None:
        while member.cursor is None or member.cursor < head:
            if member.connection is None:
                await visit(member, port, SYMBOL, leave=lambda: 5.0)
            else:
                await asyncio.sleep(POLL_S)

    try:
        async with asyncio.timeout(120):
            await asyncio.gather(*map(to_the_end, members))
    except TimeoutError:
        behind = [m for m in members if m.cursor is None or m.cursor < head]
        faults.extend(f"{m.name} ended at {m.cursor}, not {head}" for m in behind[:5])


def summed(members: list[Member]) -> dict[str, Any]:
    return {
        "received": sum(m.received for m in members),
        "skipped": dict(sum((m.skipped for m in members), Counter())),
        "connections": sum(m.connections for m in members),
        "closes": {str(k): v for k, v in sum((m.closes for m in members), Counter()).items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=25.0, help="ticks a second")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if options.serve:
            runner.run(serve(options.rate))
            return 0
        result = runner.run(prove(options.minutes, options.clients, options.rate))
    print(json.dumps(result, indent=2))
    return 1 if result["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
