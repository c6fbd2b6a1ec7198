"""The five measurements. Each alternates what it compares, and keeps every round's figures."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.fanout.running import Bench, Figures, Plan, Server

Found = dict[str, list[Figures]]
"""Rounds by name of what was run."""

DELIVERIES_A_SECOND = 50_000
LATENCY_DELIVERIES_A_SECOND = 20_000
MOST_A_SECOND = 100
BURST = 8
WARM = 50
"""Clients that come and go before memory is read, so that what is made once is not counted."""
STORM = 5_000
TRACED_CLIENTS, TRACED_TURNS, TRACED_S = 200, 10, 3


def alternate(bench: Bench, names: Sequence[str], plan: Plan, rounds: int, found: Found) -> None:
    """One run of each name a round."""
    for number in range(rounds):
        for name in names:
            figures = bench.run(name, plan)
            found.setdefault(name, []).append(figures)
            told = ", ".join(
                f"{key} {figures[key]:.2f}"
                for key in ("us", "delivered", "p50_us", "p99_us", "p999_us")
                if figures.get(key)
            )
            load = os.getloadavg()[0]
            print(f"  {name}, round {number + 1} (load {load:.1f}): {told}", flush=True)


def fan_out(bench: Bench, peers: Sequence[str], clients: int, seconds: float, rounds: int) -> Found:
    """(a) CPU time of the server for each delivered message."""
    found: Found = {}
    plan = Plan(clients, min(50, DELIVERIES_A_SECOND / clients), seconds)
    alternate(bench, ["floor", "service", "whole path", *peers], plan, rounds, found)
    return found


def latency(bench: Bench, clients: int, seconds: float, rounds: int) -> Found:
    """(b) From the vendor's frame, or the floor's first send, to the client."""
    found: Found = {}
    rate = min(MOST_A_SECOND, LATENCY_DELIVERIES_A_SECOND / clients)
    plan = Plan(clients, rate, seconds, stamps=True)
    alternate(bench, ["floor", "whole path"], plan, rounds, found)
    return found


def memory(bench: Bench, clients: int) -> Figures:
    """(c) What the process grows by for each connected client that gets nothing."""
    plan = Plan(WARM, rate=0, seconds=0)
    with bench.server("service", plan) as server:

        def connected(number: int, figures: list[dict[str, int]]) -> None:
            with bench.load(server, replace(plan, clients=number)) as load:
                assert load.stdout is not None
                assert load.stdout.readline(), "the load client gave up"
                figures.append(_settled(server, number))
            _settled(server, 0)

        readings: list[dict[str, int]] = []
        connected(WARM, readings)
        connected(WARM, readings)
        connected(clients, readings)
    _, before, after = readings
    grown = clients - WARM
    return {
        "kib": (after["pss"] - before["pss"]) / grown,
        "rss_kib": (after["rss"] - before["rss"]) / grown,
        "base_mib": before["pss"] / 1024,
    }


def _settled(server: Server, clients: int) -> dict[str, int]:
    """The memory once exactly ``clients`` are there."""
    until = time.monotonic() + 30
    while True:
        server.say("memory")
        reading: dict[str, int] = server.hear()
        if reading["clients"] == clients:
            return reading
        assert time.monotonic() < until, f"{reading['clients']} clients instead of {clients}"
        time.sleep(0.1)


def storm(bench: Bench, rounds: int) -> Found:
    """(d) Handshakes, a number of them under way at any time, as fast as they are answered."""
    found: Found = {}
    plan = Plan(STORM, rate=0, seconds=0)
    for _ in range(rounds):
        for name in ("floor", "service"):
            figures = bench.run(name, plan)
            figures["a_second"] = STORM / figures["connect_s"]
            figures["us"] = figures["connect_cpu_s"] / STORM * 1e6
            found.setdefault(name, []).append(figures)
    return found


def bursts(bench: Bench, clients: int, seconds: float, rounds: int) -> dict[str, Found]:
    """(e) Eight symbols at once against the same messages one by one: CPU and system calls a message."""
    rate = DELIVERIES_A_SECOND / clients / BURST
    found: dict[str, Found] = {"burst": {}, "singles": {}}
    together = Plan(clients, rate, seconds, burst=BURST, symbols=BURST)
    for _ in range(rounds):
        for kind, plan in (("burst", together), ("singles", replace(together, apart=True))):
            alternate(bench, ["floor", "service"], plan, 1, found[kind])
    if shutil.which("strace") is None:
        print("  no strace: system calls are not counted")
        return found
    traced = replace(together, clients=TRACED_CLIENTS, rate=TRACED_TURNS, seconds=TRACED_S + 2)
    for kind, plan in (("burst", traced), ("singles", replace(traced, apart=True))):
        for name in ("floor", "service"):
            calls = system_calls(bench, name, plan)
            for figures in found[kind][name]:
                figures |= calls
    return found


def system_calls(bench: Bench, name: str, plan: Plan) -> Figures:
    """How many a delivered message takes, and how many of them are not sending."""
    table = bench.scratch / "calls"
    with bench.server(name, plan) as server, bench.load(server, plan) as load:
        assert load.stdout is not None
        assert json.loads(load.stdout.readline())["connected"] == plan.clients
        if not server.starts_alone:
            server.say("feed")
        time.sleep(1)
        tracer = subprocess.Popen(
            ["strace", "-f", "-c", "-o", str(table), "-p", str(server.process.pid)],
            stderr=subprocess.DEVNULL,
        )
        began = time.monotonic()
        time.sleep(TRACED_S)
        tracer.send_signal(signal.SIGINT)
        tracer.wait()
        seconds = time.monotonic() - began
    calls = {
        match[2]: int(match[1])
        for line in table.read_text().splitlines()
        if (match := re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)(?:\s+\d+)?\s+(\w+)$", line))
    }
    total = calls.pop("total", 0)
    sent = sum(calls.get(call, 0) for call in ("sendto", "write", "writev", "sendmsg"))
    messages = seconds * plan.expected
    return {"calls": total / messages, "other_calls": (total - sent) / messages}
