"""Plays cases against a server process, beside one healthy client, and judges what comes back."""

import asyncio
import contextlib
import json
import re
import socket
import struct
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import psutil
from websockets.asyncio.client import connect

from .cases import DEFLATE_HANDSHAKE, HANDSHAKE, Case, make_case
from .rfc6455 import ALIVE, CLOSE, PONG, TEXT, Verdict, judge, server_frames

ROOT: Final = Path(__file__).resolve().parents[3]
MAX_MESSAGE: Final = 65_536
_PROBE: Final = b"still there?"
_PATIENCE_S: Final = 12.0
_POLLS, _POLL_S = 200, 0.1
_STATUSES: Final = {101, 200, 307, 400, 403, 404, 405, 408, 413, 414, 422, 426, 431, 501, 505}
_FAULT: Final = re.compile(
    r"\[(error|critical)|Traceback|never (retrieved|awaited)|ResourceWarning"
)


class Wrong(Exception):
    """The server did something that it may not."""


@dataclass
class Server:
    """The process under test."""

    process: asyncio.subprocess.Process
    port: int
    log: Path

    def faults(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if _FAULT.search(line)]

    def usage(self) -> tuple[int, int]:
        """Open files, and resident bytes."""
        known = psutil.Process(self.process.pid)
        return known.num_fds(), known.memory_info().rss

    async def status(self) -> dict[str, Any]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}") as http:
            answer: dict[str, Any] = (await http.get("/status")).json()
            return answer

    async def has_only_the_healthy_one(self) -> None:
        """:raises Wrong: more clients or connections stay than one, and the one that asks."""
        for _ in range(_POLLS):
            status = await self.status()
            left = (status["clients"]["connected"], status["connections"]["open"])
            if left == (1, 2):
                return
            await asyncio.sleep(_POLL_S)
        raise Wrong(f"{left[0]} clients and {left[1]} connections are left, not 1 and 2")


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Server]:
    """A server process; its log is ``folder/server.log``."""
    log = folder / "server.log"
    with log.open("wb") as written:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.abuse.server"),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=written,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        if not line:
            raise Wrong(f"The server did not start:\n{log.read_text()}")
        yield Server(process, int(line), log)
    finally:
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 30)
        except TimeoutError:
            process.kill()
            await process.wait()


@dataclass
class Healthy:
    """A client that does everything right while others do not; every offset must come."""

    port: int
    received: int = 0
    faults: list[str] = field(default_factory=list)
    _started: asyncio.Event = field(default_factory=asyncio.Event)

    @contextlib.asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """Connected for as long as the context lasts."""
        task = asyncio.create_task(self._run(), name="healthy client")
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._started.wait()
            yield
            if task.done():
                self.faults.append("it was cut")
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        last: int | None = None
        async with connect(f"ws://127.0.0.1:{self.port}/ws") as client:
            async for text in client:
                message = json.loads(text)
                if message["type"] == "skipped":
                    self.faults.append(f"skipped: {text!r}")
                if message["type"] != "market_data":
                    continue
                offset = message["offset"]
                if last is not None and offset != last + 1 and not message.get("snapshot"):
                    self.faults.append(f"offset {offset} after {last}")
                last, self.received = offset, self.received + 1
                self._started.set()


@dataclass
class Played:
    """What a run came to."""

    cases: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


async def play(server: Server, seed: int, numbers: range, *, at_once: int = 32) -> Played:
    """Play cases ``numbers`` of run ``seed``, ``at_once`` at a time."""
    played = Played()
    waiting = iter(numbers)

    async def worker() -> None:
        for number in waiting:
            case = make_case(seed, number)
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    outcome = await _play_one(server.port, case)
            except TimeoutError:
                outcome = "hang"
                played.wrong.append(f"case {seed}:{number} ({case.kind}): no end in sight")
            except Wrong as wrong:
                outcome = "wrong"
                played.wrong.append(f"case {seed}:{number} ({case.kind}): {wrong}")
            played.cases += 1
            played.kinds[case.kind] += 1
            played.outcomes[outcome] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
    return played


async def _play_one(port: int, case: Case) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        if case.http:
            return await _ask(reader, writer, case)
        return await _converse(reader, writer, case)
    finally:
        writer.transport.abort()


async def _send(writer: asyncio.StreamWriter, *parts: bytes) -> None:
    """The server may end the connection at any moment: that is read, not raised."""
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, case: Case) -> str:
    """A request, or what passes for one: an answer from the list, or the end; never silence."""
    await _send(writer, *case.parts)
    with contextlib.suppress(OSError):
        writer.write_eof()
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(65536):
            data += chunk
            if b" 101 " in data[:14] and len(data) > 4096:
                break  # a WebSocket after all
    if not data:
        return "http: closed"
    match = re.match(rb"HTTP/1\.1 (\d{3}) ", data)
    if match is None or int(match[1]) not in _STATUSES:
        raise Wrong(f"{case.stream[:200]!r} was answered by {data[:120]!r}")
    return f"http {match[1].decode()}"


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, case: Case) -> str:
    parts = list(case.parts)
    first = (DEFLATE_HANDSHAKE if case.deflate else HANDSHAKE) + (
        parts.pop(0) if case.early else b""
    )
    await _send(writer, first)
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        raise Wrong(f"a good handshake was answered by {head[:120]!r}")
    if (b"permessage-deflate" in head) != case.deflate:
        raise Wrong(f"compression was not negotiated as offered: {head!r}")
    await _send(writer, *parts)
    if case.ending == "reset":
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return "reset"
    verdict = judge(case.stream, MAX_MESSAGE, deflate=case.deflate)
    asks = ALIVE in verdict.outcomes and verdict.boundary
    if asks:
        goodbye = b"\x88\x82\0\0\0\0" + (1000).to_bytes(2)
        await _send(writer, bytes((0x89, 128 | len(_PROBE), 0, 0, 0, 0)) + _PROBE)
        seen = await _read(reader, case.deflate, until_pong=_PROBE)
        if not seen.closed:
            await _send(writer, goodbye)
            seen = await _read(reader, case.deflate, seen=seen)
    elif ALIVE in verdict.outcomes:
        # In the middle of a frame: nothing can be asked; it must accept that the client leaves.
        with contextlib.suppress(OSError):
            writer.write_eof()
        seen = await _read(reader, case.deflate)
    else:
        seen = await _read(reader, case.deflate)
    return _compare(verdict, seen, asks)


@dataclass
class Seen:
    """What the server sent behind its 101."""

    deflate: bool
    rest: bytes = b""
    pongs: list[bytes] = field(default_factory=list)
    replies: int = 0
    closed: bool = False
    code: int | None = None


async def _read(
    reader: asyncio.StreamReader,
    deflate: bool,
    *,
    until_pong: bytes | None = None,
    seen: Seen | None = None,
) -> Seen:
    """Until the close frame, the end, or a certain pong."""
    seen = seen or Seen(deflate=deflate)
    while not seen.closed:
        try:
            chunk = await reader.read(65536)
        except ConnectionError:
            chunk = b""
        if not chunk:
            seen.closed = True
            break
        try:
            found, seen.rest = server_frames(seen.rest + chunk, deflate=seen.deflate)
        except ValueError as error:
            raise Wrong(str(error)) from error
        for opcode, payload in found:
            if opcode == PONG:
                seen.pongs.append(payload)
            elif opcode == CLOSE:
                seen.closed = True
                seen.code = int.from_bytes(payload[:2]) if payload else 1005
            elif opcode == TEXT:
                kind = json.loads(payload)["type"]
                seen.replies += kind in ("error", "heartbeat_response")
        if until_pong is not None and until_pong in seen.pongs:
            break
    return seen


def _compare(verdict: Verdict, seen: Seen, asked: bool) -> str:
    alive = asked and _PROBE in seen.pongs
    outcome = ALIVE if alive else seen.code
    if outcome not in verdict.outcomes:
        raise Wrong(f"ended with {seen.code}, right would be {verdict.outcomes}")
    if alive and seen.code not in {1000, *verdict.outcomes}:
        raise Wrong(f"a normal goodbye was answered with {seen.code}")
    pongs = [pong for pong in seen.pongs if pong != _PROBE]
    if pongs != verdict.pings[: len(pongs)]:
        raise Wrong(f"pings {verdict.pings} were answered by {pongs}")
    if alive and len(pongs) != len(verdict.pings):
        raise Wrong(f"{len(verdict.pings)} pings were answered by {len(pongs)} pongs")
    if seen.replies > 2 * verdict.messages:
        raise Wrong(f"{verdict.messages} messages were answered {seen.replies} times")
    return "alive" if alive else f"closed {seen.code}"
