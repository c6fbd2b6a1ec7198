"""To which world a Redis belongs: real prices or simulated ones.

A real instance is never stopped by what stands here: anybody who reaches the server could write it. It puts
its mark, and takes away what a simulated one left under the names that other services read. A simulated
instance goes nowhere near a Redis that real prices are in, marked or not.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import structlog
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from enhanced_websocket_service.addresses import redis_address
from enhanced_websocket_service.market.source import World, check_world, world_of

from .names import SIMULATED_PREFIX, RedisNames

log = structlog.get_logger(__name__)

_PLAIN: Final = RedisNames()
_REMEDY: Final = (
    "Set REDIS_URL to a Redis for simulated prices or leave it unset, or let this one count as simulated "
    "from here on by `db world --set simulated`."
)


class RedisWorld:
    """Looks at the server before anything is written to it, at every contact.

    :param ours: the world of this instance.
    :param names: what this instance calls its keys.
    :param symbols: whose prices it publishes.
    """

    def __init__(self, ours: World, names: RedisNames, symbols: Sequence[str]) -> None:
        self.ours: Final = ours
        self._names = names
        self._symbols = tuple(symbols)

    async def check(self, client: Redis) -> None:
        """Whether we may write there; changes nothing.

        :raises WrongWorld: real prices are there, and ours are simulated.
        :raises redis.RedisError: the server cannot be asked.
        """
        if self.ours == "simulated":
            place = f"The Redis at {redis_address(client.connection_pool.connection_kwargs)}"
            check_world(await self.world(client), self.ours, place, _REMEDY)

    async def world(self, client: Redis) -> World | None:
        """Whose prices stand under the names that other services read; ``None``: nobody's."""
        mark = await _text(client, _PLAIN.world)
        if mark is not None:
            return "simulated" if mark == "simulated" else "real"
        return await self._world_without_mark(client)

    async def marks(self, client: Redis) -> dict[str, str]:
        """What has to be written beside the first key; empty when it stands there already.

        A real instance removes what invented prices are under its own names. A mark of another is replaced at
        once: there may be no key to write before the next session.
        """
        mark = await _text(client, self._names.world)
        if mark == self.ours:
            return {}
        if self.ours == "real":
            await self._take_over(client, mark)
        if mark is None:
            return {self._names.world: self.ours}
        await client.set(self._names.world, self.ours)
        return {}

    async def _take_over(self, client: Redis, mark: str | None) -> None:
        simulated = RedisNames(SIMULATED_PREFIX)
        gone = [simulated.world]
        gone += [
            _PLAIN.price(symbol)
            for symbol in self._symbols
            if await self._price_world(client, symbol) == "simulated"
        ]
        removed = []
        for name in gone:
            with suppress(NoPermissionError):  # its account may have a right on its own names alone
                if await client.delete(name):
                    removed.append(name)
        if mark is not None or removed:
            log.warning(
                "Redis was marked otherwise, or had simulated prices; from here on it has real ones",
                mark=mark,
                removed=removed,
            )

    async def _world_without_mark(self, client: Redis) -> World | None:
        """A server from before there was a mark, or with prices of other programs."""
        found = set()
        for symbol in self._symbols:
            found.add(await self._price_world(client, symbol))
            found.add(await self._stream_world(client, symbol))
        found.discard(None)
        return "real" if "real" in found else "simulated" if found else None

    async def _price_world(self, client: Redis, symbol: str) -> World | None:
        return _world_of_text(await _text(client, _PLAIN.price(symbol)))

    async def _stream_world(self, client: Redis, symbol: str) -> World | None:
        try:
            newest: Any = await client.xrevrange(_PLAIN.stream("ticks", symbol), count=1)
        except ResponseError as error:
            return _world_of_text(_of_another_type(error))
        return _world_of_text(newest[0][1].get(b"data", b"")) if newest else None


async def _text(client: Redis, name: str) -> str | None:
    """The value of a key; an empty text where something that is no text has its name."""
    try:
        value = await client.get(name)
    except ResponseError as error:
        return _of_another_type(error)
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _of_another_type(error: ResponseError) -> str:
    if "WRONGTYPE" not in str(error):
        raise error
    return ""


def _world_of_text(text: str | bytes | None) -> World | None:
    """The world of a price as JSON; what cannot be read was written by another program, and is real."""
    if text is None:
        return None
    try:
        document = json.loads(text)
    except ValueError:
        return "real"
    source = document.get("source") if isinstance(document, dict) else None
    return world_of(source if isinstance(source, str) else None)
