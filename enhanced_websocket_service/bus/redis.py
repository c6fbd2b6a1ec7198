"""The bus over Redis or Valkey: latest price, pub/sub, and streams to resume from.

Delivery in this process never waits for the server. What goes there passes a bounded queue: when the
server is away or slow the oldest publishes are dropped and counted, but the newest price of every symbol
always gets there. What was under way when the connection broke goes again, so pub/sub may repeat a
price; the stream of ticks never does: the ID of an entry is ``epoch-offset``, and the server refuses
one that is not higher than the last. A server whose memory is full takes nothing into its streams but
still tells its listeners: publishing goes ahead of the streams, or they would hear the same prices with
every attempt, and no new ones.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic, perf_counter
from typing import Any, Final

import msgspec
import structlog
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import BusUnavailable, WrongWorld
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.events import EpochStarted, Event
from enhanced_websocket_service.market.price_view import price_data
from enhanced_websocket_service.market.tick import Tick

from .address import client_for
from .answers import refusal
from .base import Subscriber
from .memory import MemoryBus
from .names import RedisNames
from .world import RedisWorld

log = structlog.get_logger(__name__)

REDIS: Final = "Redis"
"""The part of ``Failures``. Everything on this machine goes on without it."""
EPOCH: Final = "epoch in Redis"
"""The part of ``Failures``: something else stands there."""
PRICE_TTL_S: Final = 300
FIRST_BACKOFF_S: Final = 0.1
CHECK_EVERY_S: Final = 5.0
_UNAVAILABLE: Final = (RedisError, OSError, TimeoutError)
_json: Final = msgspec.json.Encoder()


class RedisBus:
    """Run ``run`` as one task; everything else works without it and without the server.

    :param names: what the keys are called.
    :param world: looks whether the server is one for our prices; without it any will do.
    :param queue_size: events that may wait for the server.
    :param stream_length: about how many entries each stream keeps.
    :param timeout_s: real seconds for a connection or an answer.
    :param failures: told when the server is away or refuses, and when it works again.
    """

    def __init__(
        self,
        url: str,
        *,
        names: RedisNames | None = None,
        world: RedisWorld | None = None,
        queue_size: int = 10_000,
        batch_size: int = 500,
        stream_length: int = 20_000,
        timeout_s: float = 5.0,
        longest_backoff_s: float = 5.0,
        failures: Failures | None = None,
    ) -> None:
        """:raises ConfigurationError: the URL cannot be understood."""
        self._client = client_for(url, name="enhanced-websocket-service", timeout_s=timeout_s)
        self._names = names or RedisNames()
        self._world = world
        self._marks: dict[str, str] = {}  # keys that say whose prices these are, not on the server
        self.wrong_world: WrongWorld | None = None
        """Why the server may not be written to, as of the last time that it was looked at."""
        self.on_wrong_world: Callable[[WrongWorld], None] = lambda _error: None
        """Told each time that the server turns out to be of the other world."""
        self._failures = failures or Failures(SystemClock())
        self._local = MemoryBus()
        self._queue: deque[Tick | BarUpdate] = deque()
        self._queue_size = queue_size
        self._gone = 0  # events that have left the queue at its head
        self._told = 0  # events that were published, counted from the first ever queued
        self._batch_size = batch_size
        self._stream_length = stream_length
        self._longest_backoff_s = longest_backoff_s
        self._prices: dict[str, tuple[Tick, float]] = {}  # newest by symbol, when (monotonic)
        self._unwritten: set[str] = set()  # symbols whose newest price is not on the server
        self._epoch = 0
        self._epoch_unwritten = False
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._connected = False
        self._checked_at = 0.0  # monotonic
        self._server_run: str | None = None  # another one means: a server that may be empty
        self._overflowing = False
        self._repeating = False
        self._refusing = False
        self._sent = self._dropped = self._refused = 0
        self._last_error: str | None = None

    @property
    def connected(self) -> bool:
        """Whether the last exchange with the server succeeded."""
        return self._connected

    def publish(self, events: Sequence[Event]) -> None:
        self._local.publish(events)
        now = monotonic()
        for event in events:
            if isinstance(event, Tick):
                if self._local.latest(event.symbol) is event:
                    self._prices[event.symbol] = (event, now)
                    self._unwritten.add(event.symbol)
                self._enqueue(event)
            elif isinstance(event, BarUpdate):
                self._enqueue(event)
            elif isinstance(event, EpochStarted):
                self._epoch = max(self._epoch, event.epoch)
                self._epoch_unwritten = True
        if self._has_work():
            self._idle.clear()
            self._wake.set()

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        return self._local.subscribe(callback)

    def latest(self, symbol: str) -> Tick | None:
        return self._local.latest(symbol)

    def seed(self, tick: Tick, age_s: float = 0.0) -> None:
        self._local.seed(tick)
        if self._local.latest(tick.symbol) is tick and age_s < PRICE_TTL_S:
            # A process that was killed had published it, but may not have got to write it here.
            self._prices[tick.symbol] = (tick, monotonic() - max(0.0, age_s))
            self._unwritten.add(tick.symbol)
            self._idle.clear()

    async def ping(self) -> float:
        began = perf_counter()
        try:
            await self._client.ping()
        except _UNAVAILABLE as error:
            raise BusUnavailable(self._refusal(error)) from error
        return (perf_counter() - began) * 1000

    async def highest_epoch(self) -> int | None:
        """The highest epoch the server has heard of; ``None`` when it cannot be asked."""
        try:
            value = await self._client.get(self._names.epoch)
            return int(value) if value is not None else 0
        except _UNAVAILABLE:
            return None
        except ValueError:
            self._failures.failed(
                EPOCH,
                f"Key {self._names.epoch} holds something that is no epoch; ignored, and replaced by ours. "
                "Somebody else wrote it; protect the Redis by a password.",
            )
            return None

    async def check_world(self) -> None:
        """Look whether our prices may go to the server; changes nothing there.

        :raises WrongWorld: they may not.
        """
        with suppress(*_UNAVAILABLE):
            await self._look()

    async def _look(self) -> None:
        if self._world is None:
            return
        try:
            await self._world.check(self._client)
        except WrongWorld as error:
            self.wrong_world = error
            self.on_wrong_world(error)
            raise
        self.wrong_world = None

    def status(self) -> dict[str, Any]:
        return {
            **self._local.status(),
            "kind": "redis",
            "connected": self._connected,
            "queued": len(self._queue),
            "sent": self._sent,
            "dropped": self._dropped,
            "refused": self._refused,
            "last_error": self._last_error,
        }

    async def run(self) -> None:
        """Drain the queue into the server until cancelled; reconnects by itself."""
        backoff_s = FIRST_BACKOFF_S
        try:
            while True:
                try:
                    await self._serve()
                except (WrongWorld, *_UNAVAILABLE) as error:
                    self._lost(error)
                    await asyncio.sleep(backoff_s)
                    backoff_s = min(2 * backoff_s, self._longest_backoff_s)
                else:
                    backoff_s = FIRST_BACKOFF_S
        finally:
            self._connected = False

    async def drain(self, timeout_s: float) -> bool:
        """Wait until everything published is on the server; ``run`` must be running.

        :returns: ``False`` when ``timeout_s`` real seconds did not suffice.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        return self._idle.is_set()

    async def close(self) -> None:
        """Close the connections; end ``run`` first."""
        with suppress(*_UNAVAILABLE):
            await self._client.aclose()

    def _enqueue(self, event: Tick | BarUpdate) -> None:
        if len(self._queue) >= self._queue_size:
            self._shift()
            self._dropped += 1
            if not self._overflowing:
                self._overflowing = True
                log.warning(
                    "Redis is too slow or away: dropping the oldest publishes",
                    queued=len(self._queue),
                    reason=self._last_error,
                )
        self._queue.append(event)

    def _shift(self) -> None:
        self._queue.popleft()
        self._gone += 1

    def _has_work(self) -> bool:
        return bool(self._queue or self._unwritten or self._epoch_unwritten)

    async def _serve(self) -> None:
        """One batch; without work, wait for some. A server that is away is asked until it answers."""
        if not self._connected or monotonic() - self._checked_at > CHECK_EVERY_S:
            await self._check_server()
        if self._has_work():
            await self._send_some()
        if not self._connected:
            self._connected, self._last_error = True, None
            self._failures.succeeded(REDIS)
            log.info("Redis is connected", queued=len(self._queue))
        if not self._has_work():
            self._idle.set()
            self._wake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), CHECK_EVERY_S)

    async def _check_server(self) -> None:
        """Ask for signs of life, and whose prices are there: the server may be another one, or have got
        other company. A server that started anew gets the newest prices and the epoch.
        """
        await self._look()
        try:
            run = str((await self._client.info("server")).get("run_id"))
        except ResponseError:  # the account may not be allowed to ask
            await self._client.ping()
            run = "unknown"
        self._checked_at = monotonic()
        if not self._connected or run != self._server_run:
            self._server_run = run
            self._unwritten.update(self._prices)
            self._epoch_unwritten = self._epoch > 0
        if self._world is not None:
            with suppress(ResponseError):  # an account without the right; prices matter more
                self._marks = await self._world.marks(self._client)

    async def _send_some(self) -> None:
        batch = self._from(0)
        news = self._from(max(0, self._told - self._gone))
        prices = {symbol: self._prices[symbol] for symbol in self._unwritten}
        epoch = self._epoch if self._epoch_unwritten else None
        dropped_before = self._dropped
        await self._send(batch, news, prices, epoch)
        # Only now: had it failed, the same events would have to go again. Meanwhile the queue may
        # have lost some of them at its head.
        gone = min(len(batch), self._dropped - dropped_before)
        self._dropped -= gone  # they had been sent
        for _ in range(len(batch) - gone):
            self._shift()
        for symbol, written in prices.items():
            if self._prices[symbol] is written:
                self._unwritten.discard(symbol)
        self._epoch_unwritten = self._epoch_unwritten and self._epoch != epoch
        self._marks = {}
        self._sent += len(batch)
        self._repeating = False
        if self._overflowing and len(self._queue) < self._queue_size:
            self._overflowing = False
            log.info("Redis has caught up", dropped_in_all=self._dropped)

    def _from(self, first: int) -> list[Tick | BarUpdate]:
        """A batch of the queue, from its ``first`` event on."""
        return [
            self._queue[i] for i in range(first, min(first + self._batch_size, len(self._queue)))
        ]

    async def _send(
        self,
        batch: Sequence[Tick | BarUpdate],
        news: Sequence[Tick | BarUpdate],
        prices: dict[str, tuple[Tick, float]],
        epoch: int | None,
    ) -> None:
        """Publish ``news``, add ``batch`` to the streams, and write the rest."""
        told = max(self._told, self._gone) + len(news)
        texts: dict[int, bytes] = {}  # by identity: as a rule both are the same events
        async with self._client.pipeline(transaction=False) as pipe:
            for event in news:
                if isinstance(event, Tick):
                    texts[id(event)] = text = _json.encode(price_data(event))
                    pipe.publish(
                        self._names.channel, b'{"type":"price_update","data":' + text + b"}"
                    )
            publishes = len(texts)
            for name, mark in self._marks.items():
                pipe.set(name, mark)
            if epoch is not None:
                pipe.set(self._names.epoch, epoch)
            for symbol, (tick, published) in prices.items():
                # A price that waited for the server is not younger for it.
                left_ms = int((PRICE_TTL_S - (monotonic() - published)) * 1000)
                if left_ms > 0:
                    pipe.set(self._names.price(symbol), _json.encode(price_data(tick)), px=left_ms)
            for event in batch:
                if isinstance(event, Tick):
                    text = texts.get(id(event)) or _json.encode(price_data(event))
                    self._add_tick(pipe, event, text)
                else:
                    self._add_bar(pipe, event)
            answers = await pipe.execute(raise_on_error=False)
        if not any(isinstance(answer, Exception) for answer in answers[:publishes]):
            self._told = told
        marks = slice(publishes, publishes + len(self._marks))
        if any(isinstance(answer, NoPermissionError) for answer in answers[marks]):
            del answers[marks]  # an account without the right; prices matter more
        refused = 0
        for answer in answers:
            if isinstance(answer, ResponseError) and "equal or smaller" in str(answer):
                refused += 1
            elif isinstance(answer, Exception):
                raise answer
        self._refused += refused
        if refused and not self._repeating and not self._refusing:
            log.warning("Redis has ticks of a higher epoch: does another instance publish there?")
        self._refusing = bool(refused) and not self._repeating

    def _add_tick(self, pipe: Any, tick: Tick, text: bytes) -> None:
        pipe.xadd(
            self._names.stream("ticks", tick.symbol),
            {"data": text},
            id=f"{tick.epoch}-{tick.offset}",
            maxlen=self._stream_length,
            approximate=True,
        )

    def _add_bar(self, pipe: Any, update: BarUpdate) -> None:
        pipe.xadd(
            self._names.stream("bars", update.bar.symbol),
            {"epoch": update.epoch, "offset": update.offset, "data": _json.encode(update)},
            maxlen=self._stream_length,
            approximate=True,
        )

    def _lost(self, error: Exception) -> None:
        self._connected = False
        self._repeating = True
        self._last_error = str(error) if isinstance(error, WrongWorld) else self._refusal(error)
        self._failures.failed(REDIS, self._last_error)

    def _refusal(self, error: Exception) -> str:
        return refusal(error, self._client.connection_pool.connection_kwargs)
