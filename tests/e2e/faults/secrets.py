"""Looks for keys wherever a running service could tell them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import httpx
import psutil
import redis.asyncio

PATHS = (
    "/status",
    "/health",
    "/metrics",
    "/market/latest",
    "/market/session",
    "/market/bars?symbol=USDCOP&interval=5min",
    "/market/bars?symbol=USDCOP&interval=never",
    "/market/ticks?symbol=NOBODY",
    "/market/continuity?date=never",
    "/docs",
    "/openapi.json",
    "/",
    "/nowhere",
)


async def answers(base_url: str) -> dict[str, str]:
    """What the service answers, errors among it, with its headers."""
    async with httpx.AsyncClient(base_url=base_url, timeout=30.0) as http:
        return {path: _text(await http.get(path)) for path in PATHS}


def _text(answer: httpx.Response) -> str:
    return f"{answer.status_code} {answer.headers}\n{answer.text}"


def process_title(pid: int) -> str:
    """Name, title and arguments of a process, as ``ps`` shows them."""
    process = psutil.Process(pid)
    return f"{process.name()} {' '.join(process.cmdline())}"


def files(folder: Path) -> dict[str, str]:
    """Every file below ``folder``: logs, journal, learned state, backups."""
    return {
        str(path.relative_to(folder)): path.read_bytes().decode("latin-1")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


async def cache(url: str) -> dict[str, str]:
    """Every name and value in Valkey."""
    found = {}
    async with redis.asyncio.Redis.from_url(url) as client:
        async for name in client.scan_iter():
            kind = (await client.type(name)).decode()
            value = {
                "string": client.get,
                "hash": client.hgetall,
                "stream": client.xrange,
                "set": client.smembers,
            }.get(kind)
            told = kind if value is None else await value(name)
            found[name.decode("latin-1")] = f"{name!r} {told!r}"
    return found


def told(keys: Iterable[str], places: Mapping[str, str]) -> list[str]:
    """The places in which one of ``keys`` can be read."""
    return [
        f"{place}: {text[max(0, at - 60) : at]}..."
        for key in keys
        for place, text in places.items()
        if (at := text.find(key)) >= 0
    ]
