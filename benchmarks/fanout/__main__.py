"""What one message to one client costs, beside a bare ``send()`` loop in C and beside others.

    python benchmarks/fanout [--parts abcde] [--clients N,N] [--seconds S] [--rounds N] [--no-peers]

(a) CPU time of the server for each delivered message; (b) latency from the vendor's frame to the client's,
with processors that are kept awake and with such that sleep between two prices;
(c) memory of an idle client; (d) handshakes a second; (e) bursts of eight symbols. The server has one core,
the load client (C, built here like the floor) another. "service" is fed with events on its bus; "whole path"
with bytes of the vendor, parsed, validated, journaled and fsynced before. Figures are medians of rounds in
which everything takes its turn; only those of one run can be compared.
"""

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.fanout import parts, peers  # noqa: E402
from benchmarks.fanout.parts import Found  # noqa: E402
from benchmarks.fanout.running import HERE, Bench, bench  # noqa: E402
from enhanced_websocket_service.service.cpu_latency import DEVICE, CpuLatency  # noqa: E402

CPU_RATIO, LATENCY_MS, LATENCY_RATIO, MEMORY_KIB, BURST_RATIO = 1.35, 1.0, 2.0, 16.0, 0.5
LATENCY_CLIENTS = (1, 100, 1000)


def middle(found: Found, name: str, key: str) -> float:
    return statistics.median(figures[key] for figures in found[name])


def spread(found: Found, name: str, key: str, form: str = ".2f") -> str:
    values = [figures[key] for figures in found[name]]
    return f"{min(values):{form}}-{max(values):{form}}"


class Verdict:
    def __init__(self) -> None:
        self.good = True

    def __call__(self, figure: float, limit: float) -> str:
        if figure <= limit:
            return f"({limit:g} allowed)"
        self.good = False
        return f"(TOO MUCH: {limit:g} allowed)"


def available(made: Bench) -> list[str]:
    """The peers that can run here; says which cannot."""
    names = ["websockets.broadcast", "fastapi send_text"]
    path = os.environ.get("FANOUT_PEERS")
    if path:
        made.extra_path.append(path)
        sys.path.append(path)
    if importlib.util.find_spec("picows") is not None:
        names.append("picows")
    else:
        print("picows: absent (not installed)")
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        print("node ws: absent (no node or no npm)")
    else:
        # A folder that stays, so that the package is fetched once.
        folder = Path(tempfile.gettempdir()) / "ews-fanout-node"
        folder.mkdir(exist_ok=True)
        shutil.copy(HERE / "peer.js", folder / "peer.js")
        command = [npm, "install", "--silent", "--no-audit", "--no-fund", "ws@8"]
        if (folder / "node_modules" / "ws").exists() or (
            subprocess.run(command, cwd=folder, capture_output=True).returncode == 0
        ):
            made.node, made.peer_js = Path(node), folder / "peer.js"
            names.append("node ws")
        else:
            print("node ws: absent (npm could not install it)")
    if peers.nchan_module() is not None:
        names.append("nginx nchan")
    else:
        print("nginx nchan: absent (no nginx with that module)")
    return names


def part_a(made: Bench, options: argparse.Namespace, verdict: Verdict) -> None:
    others = [] if options.no_peers else available(made)
    for clients in options.clients:
        print(f"(a) fan-out to {clients:,} clients")
        found = parts.fan_out(made, others, clients, options.seconds, options.rounds)
        floor = middle(found, "floor", "us")
        for name in found:
            us = middle(found, name, "us")
            limit = verdict(us / floor, CPU_RATIO) if name == "service" else ""
            print(
                f"    {name:22} {us:6.2f} us a message ({spread(found, name, 'us')}), "
                f"{us / floor:.2f} times the floor {limit}"
            )


def part_b(made: Bench, options: argparse.Namespace, verdict: Verdict) -> None:
    limit = CpuLatency(0)
    limit.hold()
    may_be_held = limit.held
    try:
        if may_be_held:
            _latencies(made, options, verdict, "processors awake (CPU_LATENCY_US=0)", LATENCY_MS)
        else:
            print(f"processors awake: not measured, {DEVICE} cannot be written")
    finally:
        limit.release()
    wanted = None if may_be_held else LATENCY_MS
    _latencies(made, options, verdict, "processors sleep as the machine likes", wanted)


def _latencies(
    made: Bench, options: argparse.Namespace, verdict: Verdict, how: str, wanted_ms: float | None
) -> None:
    """:param wanted_ms: of one client; ``None``: it is only told."""
    for clients in LATENCY_CLIENTS:
        print(f"(b) latency with {clients:,} clients, milliseconds; {how}")
        found = parts.latency(made, clients, options.seconds * 2, options.rounds)
        for name in found:
            told = (
                f"{label} {middle(found, name, key) / 1000:.3f} "
                f"({spread(found, name, key, '.0f')} us)"
                for label, key in (("p50", "p50_us"), ("p99", "p99_us"), ("p99.9", "p999_us"))
            )
            print(f"    {name:22} {', '.join(told)}")
        p99, floor = (middle(found, name, "p99_us") for name in ("whole path", "floor"))
        limit = verdict(p99 / floor, LATENCY_RATIO) if clients == max(LATENCY_CLIENTS) else ""
        print(f"    p99 is {p99 / floor:.2f} times the floor's {limit}")
        if clients == 1 and wanted_ms is not None:
            print(f"    p99 {p99 / 1000:.3f} ms {verdict(p99 / 1000, wanted_ms)}")


def part_c(made: Bench, options: argparse.Namespace, verdict: Verdict) -> None:
    print("(c) memory of an idle client, KiB beyond the base")
    for clients in options.clients:
        figures = parts.memory(made, clients)
        print(
            f"    {clients:6,} clients: {figures['kib']:.1f} (resident {figures['rss_kib']:.1f}), "
            f"base {figures['base_mib']:.0f} MiB {verdict(figures['kib'], MEMORY_KIB)}"
        )


def part_d(made: Bench, options: argparse.Namespace, _: Verdict) -> None:
    print(f"(d) connect storm of {parts.STORM:,}")
    found = parts.storm(made, options.rounds)
    for name in found:
        print(
            f"    {name:22} {middle(found, name, 'a_second'):,.0f} handshakes a second "
            f"({spread(found, name, 'a_second', ',.0f')}), {middle(found, name, 'us'):.0f} us of CPU each"
        )


def part_e(made: Bench, options: argparse.Namespace, verdict: Verdict) -> None:
    clients = options.clients[0]
    print(f"(e) bursts of {parts.BURST} symbols to {clients:,} clients")
    found = parts.bursts(made, clients, options.seconds, options.rounds)
    for name in ("floor", "service"):
        together, singly = (middle(found[kind], name, "us") for kind in ("burst", "singles"))
        limit = verdict(together / singly, BURST_RATIO) if name == "service" else ""
        print(
            f"    {name:22} {together:.2f} us a message ({spread(found['burst'], name, 'us')}), singly "
            f"{singly:.2f} ({spread(found['singles'], name, 'us')}): {together / singly:.2f} {limit}"
        )
        for kind in ("burst", "singles"):
            if "calls" in found[kind][name][0]:
                calls, others = (middle(found[kind], name, key) for key in ("calls", "other_calls"))
                print(f"        {kind}: {calls:.3f} system calls a message, {others:.3f} not sends")


PARTS: dict[str, Callable[[Bench, argparse.Namespace, Verdict], None]] = {
    "a": part_a,
    "b": part_b,
    "c": part_c,
    "d": part_d,
    "e": part_e,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default="abcde")
    parser.add_argument(
        "--clients", type=lambda text: [int(one) for one in text.split(",")], default=[1000, 10000]
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="that each run is watched")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peers", action="store_true")
    options = parser.parse_args()
    verdict = Verdict()
    try:
        with bench() as made:
            for letter in options.parts:
                PARTS[letter](made, options, verdict)
    except RuntimeError as error:
        print(f"Not measured: {error}", file=sys.stderr)
        return 1
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main())
