#!/usr/bin/env python3
"""Prove that slow clients cost the others nothing, and know exactly what they did not get.

The whole path from the vendor's bytes on is one process (benchmarks/fanout). Another plays eight of ten
clients, which read as fast as they can and check every offset (load.c); a third one that reads a tenth of
what comes and one that reads nothing, of every ten (tests/e2e/slow_readers.py). Segments without and with
the slow ones alternate, so that whatever else the machine does befalls both. Claims: the quick ones get every
tick once, with a 99th percentile of at most 1.5 times that without the slow ones; what each slow one was
told it missed is exactly what it did not get; the server's memory stays bounded. The exit code is 1 when a
claim is broken, or where it cannot be measured (no C compiler, a single core).

    python scripts/prove_slow_clients.py --minutes 10 --clients 1000
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.fanout.running import Bench, Plan, Server, bench, text  # noqa: E402
from tests.e2e.slow_readers import SYMBOL  # noqa: E402

P99_RATIO = 1.5
UNSENT_KIB = 64
"""As CLIENT_BUFFER_KB, of which 256 are the default: a reader of a tenth is slow and recovers more often."""
MEMORY_PER_SLOW = (4 * UNSENT_KIB + 256) * 1024
"""Bytes that one slow client may hold in the server: the hard limit, and a piece of what is replayed."""
HISTORY_BYTES = 64 * 1024 * 1024
"""What the last 50,000 messages may take."""
END_S = 10
SETTLE = 1 / 6
"""Of a segment's length: until slow clients are slow."""
ALONE, BESIDE, BETWEEN = "without slow clients", "with slow clients", "between"
SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999}


def quantile(bins: Counter[int], share: float) -> float:
    """Milliseconds below which ``share`` of the latencies lie; bins by microseconds."""
    wanted, seen = share * bins.total(), 0
    for at in sorted(bins):
        seen += bins[at]
        if seen >= wanted:
            return at / 1000
    return 0.0


def mib(size: int) -> float:
    return round(size / 2**20, 1)


def quantiles(bins: Counter[int]) -> dict[str, float]:
    return {name: round(quantile(bins, share), 2) for name, share in SHARES.items()}


class Segment:
    """What the quick clients measured in one stretch of time."""

    def __init__(self, kind: str, figures: dict[str, Any], memory: int, clients: int) -> None:
        self.kind, self.memory, self.clients = kind, memory, clients
        self.figures = figures
        self.bins = Counter(dict(figures.pop("histogram")))

    def summary(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "seconds": round(self.figures["seconds"], 1),
            "clients_at_the_end": self.clients,
            "messages": self.figures["messages"],
            "ms": quantiles(self.bins),
            "cpu_s": {"server": self.figures["cpu_s"], "load": self.figures["client_cpu_s"]},
            "server_mib": mib(self.memory),
        }


class Proof:
    """The server, its quick clients, and what was measured so far."""

    def __init__(
        self, made: Bench, plan: Plan, server: Server, load: "subprocess.Popen[str]"
    ) -> None:
        self._made, self._plan, self._server, self._load = made, plan, server, load
        self._process = psutil.Process(server.process.pid)
        self._memory_at_start = self.memory()
        self._load_cpu_s = 0.0
        self.segments: list[Segment] = []
        self.slow: list[dict[str, Any]] = []

    def memory(self, field: str = "VmRSS") -> int:
        """Bytes of the server."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition(f"{field}:")[2].split()[0]) * 1024

    def memories(self) -> dict[str, int]:
        most = self.memory("VmHWM")
        return {"start": self._memory_at_start, "most": most, "end": self.memory()}

    def cpu(self) -> dict[str, float]:
        """Seconds that each process has spent so far."""
        server = self._process.cpu_times()
        return {
            "server": round(server.user + server.system, 1),
            "load": round(self._load_cpu_s, 1),
            "slow": round(sum(told["cpu_s"] for told in self.slow), 1),
        }

    def ask(self) -> dict[str, Any]:
        """What the quick clients counted since they were asked before."""
        assert self._load.stdin is not None
        assert self._load.stdout is not None
        self._load.stdin.write("\n")
        self._load.stdin.flush()
        answer: dict[str, Any] = json.loads(self._load.stdout.readline())
        return answer

    def closed(self) -> dict[str, int]:
        """The clients that the server closed, by code."""
        url = f"http://127.0.0.1:{self._server.port}/metrics"
        with urllib.request.urlopen(url) as answer:
            page = answer.read().decode()
        found = re.findall(r'^ews_clients_closed_total{code="(.*?)"} (\S+)$', page, re.MULTILINE)
        return {code: int(float(number)) for code, number in found}

    def counts(self) -> dict[str, Any]:
        """What the server knows of its clients."""
        self._server.say("counts")
        return self._server.hear()

    def watch(self, kind: str, seconds: float) -> None:
        """Measure for so long."""
        self._segment(BETWEEN)
        time.sleep(seconds)
        self.segments.append(self._segment(kind))

    def _segment(self, kind: str) -> Segment:
        """What was measured since the one before."""
        figures, clients = self.ask(), self.counts()["connected"]
        self._load_cpu_s += figures["client_cpu_s"]
        found = Segment(kind, figures, self.memory(), clients)
        print(json.dumps(found.summary()), file=sys.stderr, flush=True)
        return found

    @contextmanager
    def slow_ones(self, each: int) -> Iterator[None]:
        """They are connected; at the end they read to the present and tell their accounts."""

        def beside() -> None:
            # On the core of the quick clients, who must never wait for them.
            os.sched_setaffinity(0, {self._made.client_core})
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))

        bytes_per_s = self._plan.rate * (len(text()) + 4) / 10
        arguments = [self._server.port, each, bytes_per_s]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.slow_readers", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            preexec_fn=beside,
        )
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("the slow clients did not start")
            yield
            told, _ = process.communicate("\n")
            self.slow.append(json.loads(told))
            print(json.dumps(self.slow[-1]), file=sys.stderr, flush=True)
        finally:
            process.kill()
            process.wait()

    def end(self) -> tuple[int, dict[str, Any]]:
        """How many ticks there were, and what the quick ones have once all of them have arrived."""
        self._server.say("idle")
        until = time.monotonic() + END_S
        while True:
            totals = self.ask()
            published = self.counts()["head"]
            arrived = totals["head"] == published and not totals["behind"]
            if arrived or time.monotonic() > until:
                return published, totals


def judged(proof: Proof, quick: int, each: int) -> dict[str, Any]:
    """What is claimed, and what was found instead."""
    published, totals = proof.end()
    counts = proof.counts()
    faults = [fault for told in proof.slow for fault in told["faults"]]
    account = {key: totals[key] for key in ("missed", "doubled", "skipped", "lost", "behind")}
    faults += [f"quick clients: {name} {number}" for name, number in account.items() if number]
    if totals["ticks"] != published * quick:
        faults.append(f"quick clients: {totals['ticks']} ticks, of {published} for each of {quick}")
    for told in proof.slow:
        if not told["a tenth"]["ranges"]:
            faults.append("nobody who read a tenth was slow: this proves nothing")
        if not told["nothing"]["ranges"] and not told["nothing"]["closed_by_the_server"]:
            faults.append("nobody who read nothing was slow: this proves nothing")

    memory = proof.memories()
    grown = memory["most"] - memory["start"]
    allowed = 2 * each * MEMORY_PER_SLOW + HISTORY_BYTES
    if grown > allowed:
        faults.append(f"the server grew by {grown} bytes, {allowed} are allowed")

    pooled = {
        kind: sum((one.bins for one in proof.segments if one.kind == kind), Counter())
        for kind in (ALONE, BESIDE)
    }
    ratio = quantile(pooled[BESIDE], 0.99) / quantile(pooled[ALONE], 0.99)
    return {
        "clients": {"quick": quick, "a tenth": each, "nothing": each},
        "ticks": published,
        "quick": {"ticks": totals["ticks"], **account},
        "ms": {kind: quantiles(bins) for kind, bins in pooled.items()},
        "latencies": {kind: bins.total() for kind, bins in pooled.items()},
        "p99_ratio": round(ratio, 3),
        "p99_ratio_by_segment": [round(one, 3) for one in ratios(proof.segments)],
        "cpu_s": proof.cpu(),
        "server_mib": {name: mib(value) for name, value in memory.items()},
        "server_mib_by_segment": [mib(one.memory) for one in proof.segments],
        "slow": {
            kind: together([told[kind] for told in proof.slow]) for kind in ("a tenth", "nothing")
        },
        "downgraded_by_the_server": counts["slowed_total"],
        "closed_by_the_server": proof.closed(),
        "faults": faults,
        "p99_good": ratio <= P99_RATIO,
    }


def ratios(segments: list[Segment]) -> list[float]:
    """Of each 99th percentile beside slow clients to that of the two segments around it."""
    return [
        quantile(one.bins, 0.99) / quantile(before.bins + behind.bins, 0.99)
        for before, one, behind in zip(segments, segments[1:], segments[2:], strict=False)
        if one.kind == BESIDE
    ]


def together(accounts: list[dict[str, Any]]) -> dict[str, Any]:
    """The sums of numbers and of tables of numbers."""
    found: dict[str, Any] = {}
    for name, first in accounts[0].items():
        values = [account[name] for account in accounts]
        found[name] = (
            dict(sum(map(Counter, values), Counter())) if isinstance(first, dict) else sum(values)
        )
    return found


def prove(minutes: float, segments: int, clients: int, rate: float) -> dict[str, Any]:
    each = clients // 10
    quick = clients - 2 * each
    seconds = minutes * 60 / segments
    plan = Plan(
        clients=quick,
        rate=rate,
        seconds=0,  # the load client stays, and is asked
        stamps=True,
        path=f"/ws/{SYMBOL}",
        options=("--pings", "--unsent-kib", str(UNSENT_KIB)),
    )
    with (
        bench() as made,
        made.server("whole path", plan) as server,
        made.load(server, plan) as load,
    ):
        assert load.stdout is not None
        if not load.stdout.readline():
            raise RuntimeError("the quick clients did not connect")
        proof = Proof(made, plan, server, load)
        server.say("feed")
        time.sleep(seconds * SETTLE)
        proof.watch(ALONE, seconds / 2)
        for _ in range(segments):
            with proof.slow_ones(each):
                time.sleep(seconds * SETTLE)
                proof.watch(BESIDE, seconds)
            proof.watch(ALONE, seconds / 2)
        return judged(proof, quick, each)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="with slow clients, in all")
    parser.add_argument("--segments", type=int, default=10, help="that these are divided into")
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=100.0, help="ticks a second")
    options = parser.parse_args()
    try:
        result = prove(options.minutes, options.segments, options.clients, options.rate)
    except RuntimeError as error:
        print(f"Not measured: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result, indent=2))
    return 1 if result["faults"] or not result["p99_good"] else 0


if __name__ == "__main__":
    sys.exit(main())
