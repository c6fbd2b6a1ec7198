"""Starting what is measured on one core and the load client on another, and reading what they say."""

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.fanout.candidate import SLOTS, SYMBOLS
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.serving import wire

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
START_S = 30
FLIGHT = 64
"""Handshakes under way at a time."""
Figures = dict[str, float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def text(offset: int = 1_000_000_000) -> str:
    """A message as the service sends it, so that everybody sends equally many bytes."""
    stamp = 1_748_955_600
    tick = Tick(
        symbol=SYMBOLS[0],
        epoch=1_748_955_600_000,
        offset=offset,
        timestamp=stamp,
        price=4100.12345,
        bid=4099.92345,
        ask=4100.32345,
        volume=0,
        source="simulator_websocket",
        received_at=stamp + 0.123,
        trading_session=True,
    )
    return wire.market_data(tick).decode()


@dataclass
class Plan:
    """One run: what is fed to how many clients, and for how long it is watched."""

    clients: int
    rate: float  # turns a second
    seconds: float
    settle: float = 1.0
    burst: int = 1  # messages in a turn
    apart: bool = False  # each message by itself
    symbols: int = 1
    stamps: bool = False  # latencies are wanted
    path: str = "/ws"
    options: tuple[str, ...] = ()  # of the service

    @property
    def expected(self) -> float:
        """Messages a second, all clients together."""
        return self.clients * self.rate * self.burst


@dataclass
class Server:
    """A process that is being measured."""

    process: "subprocess.Popen[str]"
    port: int
    pid: int  # of what serves: the process, or one it started
    starts_alone: bool = False

    def say(self, command: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@dataclass
class Bench:
    """The scratch folder, the compiled programs and the two cores."""

    scratch: Path
    server_core: int
    client_core: int
    node: Path | None = None
    peer_js: Path | None = None
    extra_path: list[str] = field(default_factory=list)

    @property
    def stamps(self) -> Path:
        return self.scratch / "stamps"

    def command(self, name: str, plan: Plan, port: int) -> list[str]:
        if name == "floor":
            head, tail = text().split("1000000000", 1)
            numbers = [port, plan.clients, plan.rate, plan.burst, int(plan.apart)]
            stamps = str(self.stamps) if plan.stamps else "-"
            return [str(self.scratch / "floor"), *map(str, numbers), stamps, head, tail]
        if name in ("service", "whole path"):
            command = [sys.executable, "-m", "benchmarks.fanout.candidate"]
            command += ["--directory", tempfile.mkdtemp(prefix="journal-", dir=self.scratch)]
            command += ["--rate", str(plan.rate), "--burst", str(plan.burst)]
            command += ["--symbols", str(plan.symbols)]
            command += ["--apart"] if plan.apart else []
            command += ["--frames"] if name == "whole path" else []
            command += plan.options
            return command + (["--stamps", str(self.stamps)] if plan.stamps else [])
        options = [str(port), str(plan.rate), text()]
        if name == "node ws":
            assert self.node is not None
            return [str(self.node), str(self.peer_js), *options]
        return [sys.executable, "-m", "benchmarks.fanout.peers", name, *options]

    @contextmanager
    def server(self, name: str, plan: Plan) -> Iterator[Server]:
        """``name`` listening on its core."""
        if plan.stamps:
            self.stamps.write_bytes(bytes(SLOTS * 8))
        process = subprocess.Popen(
            self.command(name, plan, free_port()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(ROOT), *self.extra_path]),
                "TMPDIR": str(self.scratch),  # it is killed: what it leaves goes with ours
            },
            preexec_fn=lambda: os.sched_setaffinity(0, {self.server_core}),
        )
        try:
            assert process.stdout is not None
            ready = process.stdout.readline().split()
            if ready[:1] != ["ready"]:
                raise RuntimeError(f"{name} did not start")
            pid = int(ready[2]) if len(ready) > 2 else process.pid
            yield Server(process, int(ready[1]), pid, starts_alone=name == "floor")
        finally:
            process.kill()
            process.communicate()

    @contextmanager
    def load(self, server: Server, plan: Plan) -> Iterator["subprocess.Popen[str]"]:
        """The load client, once all its clients are connected; its figures so far in the first line."""
        options = [server.port, plan.path, plan.clients, plan.settle, plan.seconds, FLIGHT]
        stamps = self.stamps if plan.stamps else "-"
        process = subprocess.Popen(
            [str(self.scratch / "load"), *map(str, [*options, server.pid, stamps])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {self.client_core}),
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def run(self, name: str, plan: Plan) -> Figures:
        """One run of ``name``: the figures of the load client, and CPU microseconds a message."""
        with self.server(name, plan) as server, self.load(server, plan) as load:
            assert load.stdout is not None
            figures: Figures = json.loads(load.stdout.readline() or "{}")
            if not figures:
                raise RuntimeError(f"{name}: the load client gave up")
            if plan.rate > 0 and not server.starts_alone:
                server.say("feed")
            if plan.seconds > 0:
                figures |= json.loads(load.stdout.readline())
                figures["us"] = figures["cpu_s"] / max(1, figures["messages"]) * 1e6
                figures["delivered"] = (
                    figures["messages"] / figures["seconds"] / max(1, plan.expected)
                )
        return figures


@contextmanager
def bench() -> Iterator[Bench]:
    """:raises RuntimeError: no compiler, or a single core."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise RuntimeError("no C compiler (gcc or cc): the floor and the load client need one")
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise RuntimeError("one core: server and load client need one each")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    scratch = Path(tempfile.mkdtemp(prefix="ews-fanout-"))
    try:
        for name in ("floor", "load"):
            subprocess.run(
                [compiler, "-O2", "-o", str(scratch / name), str(HERE / f"{name}.c")], check=True
            )
        yield Bench(scratch, cores[0], cores[1])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
