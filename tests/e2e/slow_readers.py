"""Clients that read too slowly, as a process of their own, and what each of them did not get.

    python -m tests.e2e.slow_readers PORT EACH BYTES_PER_S

``EACH`` clients read ``BYTES_PER_S``, as many read nothing: half of those from beginning to end, the others
15 to 60 s at a time, then everything up to the present, and so on. Who is cut comes back with ``?since=``
once it notices. Says ``ready`` when all are connected. A line of input ends their slowness: each reads to the
present, and compares what it did not get with what it was told in ``skipped``. Prints one line of JSON.
"""

import asyncio
import json
import math
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Final

import uvloop

from tests.e2e.swarm import Member, visit

SYMBOL: Final = "USDCOP"
RECEIVE_BUFFER: Final = 4096
READ_TO_THE_PRESENT_S: Final = 300
MUTE_S: Final = (15.0, 60.0)
POLL_S: Final = 0.1

Place = tuple[int, int]
Range = tuple[int, int]


def lacking(received: Iterable[Range], first: int, last: int) -> list[Range]:
    """The ranges of ``first .. last`` that are not in ``received``, which is in order."""
    found: list[Range] = []
    for begin, end in received:
        if begin > first:
            found.append((first, begin - 1))
        first = max(first, end + 1)
    return [*found, (first, last)] if first <= last else found


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The same in order, those that meet as one. Overlapping ones stay as they are."""
    found: list[Range] = []
    for begin, end in sorted(ranges):
        if found and found[-1][1] + 1 == begin:
            begin = found.pop()[0]
        found.append((begin, end))
    return found


class SlowMember(Member):
    """A client of one epoch that also keeps which ticks it received."""

    def __init__(self, name: str, faults: list[str]) -> None:
        super().__init__(name, faults)
        self.runs: list[Range] = []
        self.received_slowly = 0

    def tick(self, place: Place) -> None:
        super().tick(place)
        begin = offset = place[1]
        if self.runs and self.runs[-1][1] + 1 == offset:
            begin = self.runs.pop()[0]
        self.runs.append((begin, offset))

    def compare(self) -> None:
        """What it did not get must be what it was told, range by range."""
        if self.began_at is None or self.cursor is None:
            self.fault("it was never welcomed")
            return
        told = joined((first, last) for _, first, last, _ in self.skips)
        lacks = lacking(self.runs, self.began_at[1] + 1, self.cursor[1])
        if told != lacks:
            one = next(iter(set(told) ^ set(lacks)))
            self.fault(f"told of {len(told)} ranges, lacks {len(lacks)}; among them {one}")


class Slow:
    """One of them: connected at ``bytes_per_s`` until it is told to read on, again and again."""

    def __init__(
        self, member: SlowMember, port: int, bytes_per_s: float, slow_s: Callable[[], float]
    ) -> None:
        self.member = member
        self._port = port
        self._bytes_per_s = bytes_per_s
        self._slow_s = slow_s
        self._visiting = self._connect(bytes_per_s)

    def _connect(self, bytes_per_s: float | None) -> "asyncio.Task[None]":
        return asyncio.create_task(
            visit(
                *(self.member, self._port, SYMBOL),
                bytes_per_s=bytes_per_s,
                receive_buffer=RECEIVE_BUFFER,
            )
        )

    async def live(self, stop: "asyncio.Task[Any]") -> None:
        """Be slow until ``stop`` is done."""
        while not stop.done():
            seconds = self._slow_s()
            await asyncio.wait(
                {stop, self._visiting},
                timeout=None if math.isinf(seconds) else seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if stop.done():
                return
            if self._visiting.done():
                await asyncio.sleep(POLL_S)
                self._visiting = self._connect(self._bytes_per_s)
                continue
            await self.read_to(await present(self._port))
            if self.member.connection is not None:
                self.member.connection.read_at(self._bytes_per_s)

    async def read_to(self, place: Place) -> None:
        """Read as fast as possible until it has, or was told of, everything up to ``place``."""
        member = self.member
        if member.connection is not None:
            member.connection.read_at(None)
        while member.cursor is None or member.cursor < place:
            if self._visiting.done():
                self._visiting = self._connect(None)
            await asyncio.sleep(POLL_S)

    async def leave(self) -> None:
        if self.member.connection is not None:
            self.member.connection.abort()
        self._visiting.cancel()
        await asyncio.gather(self._visiting, return_exceptions=True)


async def present(port: int) -> Place:
    """The last tick that was published, from the ``welcome`` of a client of its own."""
    probe = Member("probe", [])
    visiting = asyncio.create_task(visit(probe, port, SYMBOL))
    while probe.cursor is None:
        await asyncio.sleep(POLL_S)
    visiting.cancel()
    await asyncio.gather(visiting, return_exceptions=True)
    return probe.cursor


def tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def line_of_input() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    await reader.readline()


def summed(members: list[SlowMember]) -> dict[str, Any]:
    return {
        "ticks_received": sum(m.received for m in members),
        "ticks_received_slowly": sum(m.received_slowly for m in members),
        "ticks_skipped": dict(sum((m.skipped for m in members), Counter())),
        "ranges": sum(len(m.skips) for m in members),
        "without_a_range": sum(not m.skips for m in members),
        "connections": sum(m.connections for m in members),
        "closed_by_the_server": {
            str(code): n for code, n in sum((m.closes for m in members), Counter()).items()
        },
    }


async def be_slow(port: int, each: int, bytes_per_s: float, seed: int = 1) -> dict[str, Any]:
    faults: list[str] = []
    chance = random.Random(seed)
    kinds = {
        "a tenth": [SlowMember(f"reads a tenth {n}", faults) for n in range(each)],
        "nothing": [SlowMember(f"reads nothing {n}", faults) for n in range(each)],
    }

    def to_the_end() -> float:
        return math.inf

    def for_a_while() -> float:
        return chance.uniform(*MUTE_S)

    slow = [Slow(member, port, bytes_per_s, to_the_end) for member in kinds["a tenth"]]
    slow += [
        Slow(member, port, 0.0, for_a_while if number % 2 else to_the_end)
        for number, member in enumerate(kinds["nothing"])
    ]
    while not all(one.member.connections for one in slow):
        await asyncio.sleep(POLL_S)
    tell("ready")
    stop = asyncio.create_task(line_of_input())
    await asyncio.gather(*(one.live(stop) for one in slow))
    for one in slow:
        one.member.received_slowly = one.member.received
    place = await present(port)
    try:
        async with asyncio.timeout(READ_TO_THE_PRESENT_S):
            await asyncio.gather(*(one.read_to(place) for one in slow))
    except TimeoutError:
        for one in slow:
            if one.member.cursor is None or one.member.cursor < place:
                one.member.fault(f"ended at {one.member.cursor}, {place} was published")
    for one in slow:
        await one.leave()
        one.member.compare()
    cpu_s = round(time.process_time(), 2)
    return {**{kind: summed(kinds[kind]) for kind in kinds}, "cpu_s": cpu_s, "faults": faults}


def main() -> None:
    port, each, bytes_per_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        tell(json.dumps(runner.run(be_slow(port, each, bytes_per_s))))


if __name__ == "__main__":
    main()
