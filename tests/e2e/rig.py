"""A place in which ``run`` and its sisters could work: folders, settings, a simulated vendor."""

import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import httpx

from enhanced_websocket_service.twelvedata.simulator import Simulator
from tests.waiting import eventually

from .playback import Process, free_port

SESSION = date(2025, 6, 25)
ENDPOINTS = ("/health", "/status", "/market/latest", "/market/session")
WITHIN_S = 30.0


@dataclass
class Rig:
    """A folder, a virtual morning and an environment in which ``run`` could work."""

    folder: Path
    environ: dict[str, str]
    simulator: Simulator
    through: tuple[str, ...] = ()
    """What runs the commands in its place; see ``Process.start``."""
    processes: list[Process] = field(default_factory=list)
    port: int = 0

    @property
    def signals(self) -> Path:
        return self.folder / "signals"

    def set_clock(self, start: str) -> None:
        """Let the commands run at real speed from ``start`` on."""
        self.environ["VIRTUAL_CLOCK"] = f"{start},1,{time.time()!r}"

    async def command(
        self, *arguments: str, stdout: int | None = None, **changes: str | None
    ) -> Process:
        environ = {
            name: value for name, value in {**self.environ, **changes}.items() if value is not None
        }
        process = Process(
            f"{arguments[0] if arguments else 'none'}-{len(self.processes)}",
            self.folder,
            stdout=stdout,
        )
        await process.start(*arguments, environ=environ, through=self.through)
        self.processes.append(process)
        return process

    async def run(self, *, stdout: int | None = None, **changes: str | None) -> Process:
        self.port = free_port()
        return await self.command("run", "--port", str(self.port), stdout=stdout, **changes)

    def client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=10)

    async def price(self) -> dict[str, Any]:
        """Wait for a price; ``/market/latest``."""
        async with self.client() as client:

            async def priced() -> dict[str, Any] | None:
                try:
                    answer = await client.get("/market/latest")
                except httpx.TransportError:
                    return None
                return answer.json() if answer.status_code == 200 else None

            return await eventually(priced, WITHIN_S, "a price")

    async def state(self, wanted: str, within_s: float = WITHIN_S) -> dict[str, httpx.Response]:
        """Wait for a state; the four endpoints as they answer in it."""
        seen = "no answer"
        async with self.client() as client:

            async def in_state() -> dict[str, httpx.Response] | None:
                nonlocal seen
                try:
                    answers = {path: await client.get(path) for path in ENDPOINTS}
                except httpx.TransportError:
                    return None
                seen = str(answers["/status"].json()["state"])
                states = {answer.json()["service_status"] for answer in answers.values()}
                return answers if states == {wanted} else None

            return await eventually(
                in_state,
                within_s,
                lambda: f"{wanted}; it is {seen}\n{self.processes[-1].text()[-3000:]}",
            )
