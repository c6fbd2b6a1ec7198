"""Looks at ``/health`` all along, and at the work that is done where others see it."""

import asyncio
import time
from contextlib import suppress
from typing import Any, Final

import asyncpg
import httpx
from redis.asyncio import Redis
from redis.exceptions import RedisError

from enhanced_websocket_service.bus.names import SIMULATED_PREFIX, RedisNames

from .client import Listener, follow, live_price
from .honesty import Honesty, Seen
from .world import SYMBOL, World

EVERY_S: Final = 0.5
PATIENCE_S: Final = 1.0
YOUNG_S: Final = 240.0
"""Seconds of the session. The late vendor is later; a second of the machine is two minutes of a storm."""
# The last one: a connection whose server froze in the middle of a cancelled question.
_UNSEEN: Final = (
    *(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError),
    asyncpg.InternalClientError,
)
_NEWEST: Final = """
    SELECT epoch, tick_offset FROM realtime_market_data WHERE symbol = $1 AND epoch IS NOT NULL
    ORDER BY epoch DESC, tick_offset DESC LIMIT 1
"""


class Watcher:
    """``run`` as a task; ``found`` tells what came of it."""

    def __init__(self, world: World) -> None:
        self.found = Honesty()
        self._world = world
        self._heard = _Heard(world)
        self._redis: Any = Redis.from_url(world.valkey.url, socket_timeout=PATIENCE_S)
        self._database: Any = None
        self._key = RedisNames(SIMULATED_PREFIX).price(SYMBOL)
        self._told: dict[str, Any] = {}  # the last answer of /health

    async def run(self) -> None:
        """Until cancelled."""
        url = f"{self._world.base_url.replace('http', 'ws', 1)}/ws"
        listening = asyncio.create_task(follow(url, "latest", self._heard, 0), name="chaos-heard")
        try:
            while True:
                began = time.monotonic()
                look = await self._look()
                self.found.see(look)
                self._note(look)
                await asyncio.sleep(max(0.0, EVERY_S - (time.monotonic() - began)))
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await self._redis.aclose()
            self._forget_database()

    async def _look(self) -> Seen:
        healthy, sent, committed, cached = await asyncio.gather(
            self._healthy(), self._sent(), self._committed(), self._cached()
        )
        heard = self._heard
        done = {
            "clients": heard.frames,
            "new prices": heard.new,
            "young prices": heard.young,
            "PostgreSQL": committed,
            "Redis": cached,
        }
        return Seen(time.time(), healthy, sent, done)  # real time: the machine's work

    def _note(self, look: Seen) -> None:
        """Keep it, for whoever asks why."""
        fields = (str(self._told.get(name)) for name in ("status", "service_status", "problems"))
        line = f"{look.at:.2f} {look.sent} {dict(look.done)} {' '.join(fields)}\n"
        with (self._world.folder / "health.log").open("a") as file:
            file.write(line)

    async def _healthy(self) -> bool:
        world, self._told = self._world, {}
        with suppress(httpx.HTTPError, ValueError, KeyError):
            answer = await world.http.get(f"{world.base_url}/health", timeout=PATIENCE_S)
            told = self._told = answer.json()
            open_now = world.opens <= world.clock.now() < world.closes
            return bool(
                told["status"] == "healthy" and told["service_status"] == "active" and open_now
            )
        return False

    async def _sent(self) -> int | None:
        with suppress(httpx.HTTPError, ValueError, KeyError):
            answer = await self._world.http.get(
                f"{self._world.rest_url}/_sim/status", timeout=PATIENCE_S
            )
            sent = answer.json()["sent"].values()
            return sum(int(one["ticks"] + one["forgotten"]) for one in sent)
        return None

    async def _committed(self) -> object:
        try:
            async with asyncio.timeout(PATIENCE_S):
                if self._database is None:
                    self._database = await asyncpg.connect(self._world.postgres.url)
                row = await self._database.fetchrow(_NEWEST, SYMBOL)
                return None if row is None else tuple(row)
        except _UNSEEN:
            self._forget_database()
            return None

    def _forget_database(self) -> None:
        connection, self._database = self._database, None
        if connection is not None:
            connection.terminate()

    async def _cached(self) -> object:
        with suppress(RedisError, OSError, TimeoutError):
            return await self._redis.get(self._key)
        return None


class _Heard(Listener):
    """A client that counts."""

    def __init__(self, world: World) -> None:
        self.frames = self.new = self.young = 0
        self._clock = world.clock
        self._last: float | None = None

    def take(self, raw: str | bytes) -> None:
        tick = live_price(raw)
        if tick is None:
            return
        stamp, price = tick
        self.frames += 1
        self.new += price != self._last
        self._last = price
        self.young += self._clock.now() - stamp <= YOUNG_S
