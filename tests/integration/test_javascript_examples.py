"""The JavaScript examples: one is the requirements' own, the other resumes while the service restarts."""

import asyncio
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .test_market_client import Service

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
REQUIREMENTS = Path(__file__).resolve().parents[3] / "shared" / "spec" / "requirements.md"


def node() -> list[str]:
    """Node with a WebSocket of its own."""
    path = shutil.which("node")
    if path is None:
        pytest.skip("needs node, which is not on this machine")
    version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    major = int(version.lstrip("v").partition(".")[0])
    if major < 20:
        pytest.skip(f"needs node 20 or later, this is {version.strip()}")
    return [path, "--no-warnings"] + (["--experimental-websocket"] if major < 22 else [])


def test_the_first_is_the_requirements_own() -> None:
    if not REQUIREMENTS.is_file():
        pytest.skip("needs the requirements beside the repository")
    (snippet,) = re.findall(r"```javascript\n(.*?)```", REQUIREMENTS.read_text(), re.DOTALL)
    assert snippet.strip() in (EXAMPLES / "market_data.js").read_text()


async def test_the_second_gets_everything_once_across_restarts() -> None:
    service = Service()
    await service.start()
    service.ticks(20)
    program = f"""
        import {{ follow }} from {json.dumps((EXAMPLES / "resume.mjs").as_uri())};
        follow("ws://127.0.0.1:{service.port}", "USDCOP",
               (event) => console.log(JSON.stringify(event)), {{ cursor: "1:0", delayMs: 20 }});
    """
    process = await asyncio.create_subprocess_exec(
        *(*node(), "--input-type=module", "--eval", program),
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    assert process.stdout is not None
    events: list[dict[str, Any]] = []

    async def until(last: tuple[int, int]) -> None:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while True:
                line = await process.stdout.readline()
                assert line, "node ended"
                events.append(json.loads(line))
                if (events[-1].get("epoch"), events[-1].get("offset")) == last and (
                    events[-1]["type"] == "market_data" and "snapshot" not in events[-1]
                ):
                    return

    try:
        await until((1, 20))
        for _ in range(2):
            await service.stop()
            await service.start()
            service.ticks(600)
            await until(service.every[-1])
    finally:
        process.kill()
        await process.wait()
        await service.stop()
    ticks = [
        (e["epoch"], e["offset"])
        for e in events
        if e["type"] == "market_data" and "snapshot" not in e
    ]
    assert ticks == service.every
    assert not [e for e in events if e["type"] in ("gap", "error")]
    assert [e["epoch"] for e in events if e["type"] == "epoch"] == [2, 3]
    assert {e["code"] for e in events if e["type"] == "disconnected"} >= {1012}
