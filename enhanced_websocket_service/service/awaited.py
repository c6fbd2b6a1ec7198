"""What ``run`` waits for or can do without: asked once by ``config check``, which tells it as warnings.

Nothing that is written stays, nothing is written on another machine; no key is sent, no credit spent.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx

from enhanced_websocket_service.bus import address as redis
from enhanced_websocket_service.bus.names import RedisNames
from enhanced_websocket_service.bus.world import RedisWorld
from enhanced_websocket_service.errors import StorageError, UnfitTables, WrongWorld
from enhanced_websocket_service.l0.readiness import ReadyFlag
from enhanced_websocket_service.settings import Settings
from enhanced_websocket_service.storage import address as postgres
from enhanced_websocket_service.storage.folders import fault_of
from enhanced_websocket_service.twelvedata.rest import is_loopback_url

from .preflight import Findings

TIMEOUT_S: Final = 5.0  # real seconds
_WITHOUT: Final = {
    "log_dir": "no log file is written",
    "backup_dir": "the backup set is written to /data/backups, or not at all",
    "ready_signals_dir": "the ready flag can only be put there by another program",
}
"""Folders that ``run`` can do without, and what follows."""


async def awaited(settings: Settings, *, offline: bool = False) -> Findings:
    """What is not there yet. What ``run`` refuses to work with at a place is a fault.

    :param offline: look at this machine only.
    """
    found = _flag(settings) + Findings((), tuple(_folders(settings)))
    if not offline:
        for one in await asyncio.gather(
            _database(settings),
            _redis(settings),
            _vendor("TWELVEDATA_REST_URL", settings.twelvedata_rest_url),
            _vendor("TWELVEDATA_WS_URL", settings.twelvedata_ws_url),
        ):
            found += one
    return found


def _flag(settings: Settings) -> Findings:
    flag = ReadyFlag(settings.ready_signals_dir, settings.clock()).read()
    return Findings((), () if flag.ready else (f"Not ready yet: {flag.problem}",))


def _folders(settings: Settings) -> Iterator[str]:
    for name, consequence in _WITHOUT.items():
        folder: Path | None = getattr(settings, name)
        if folder is not None and (error := fault_of(folder)) is not None:
            yield f"{name.upper()}={folder} cannot be written ({error.strerror}): {consequence}."


async def _database(settings: Settings) -> Findings:
    if settings.database_url is None:
        return Findings()
    try:
        world = settings.data_provider.world
        caveats = await postgres.answer_of(settings.database_url, TIMEOUT_S, world)
    except WrongWorld as error:
        return Findings((str(error),))
    except UnfitTables as error:
        return Findings((f"DATABASE_URL: {error}",))
    except StorageError as error:
        return Findings((), (f"DATABASE_URL: {error} `run` waits for it.",))
    return Findings((), tuple(f"DATABASE_URL: {one}" for one in caveats))


async def _redis(settings: Settings) -> Findings:
    if settings.redis_url is None:
        return Findings()
    world = RedisWorld(settings.data_provider.world, RedisNames(), settings.symbols)
    try:
        why = await redis.answer_of(settings.redis_url, TIMEOUT_S, world)
    except WrongWorld as error:
        return Findings((str(error),))
    if why is not None:
        return Findings((), (f"REDIS_URL: {why} Until it answers prices are kept in memory.",))
    return Findings()


async def _vendor(name: str, url: str) -> Findings:
    """Whether anything answers there: no key is sent, so it will be a refusal."""
    asked = url.replace("ws", "http", 1) if url.startswith("ws") else url
    try:
        async with httpx.AsyncClient(
            timeout=TIMEOUT_S, trust_env=not is_loopback_url(url), follow_redirects=False
        ) as client:
            await client.get(asked)
    except (ValueError, ImportError):
        return Findings()  # a proxy of the environment that cannot be used: preflight tells
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        why = str(error) or type(error).__name__
        return Findings((), (f"{name}: the vendor cannot be reached ({why}).",))
    return Findings()
