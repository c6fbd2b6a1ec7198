"""The bus over Redis or Valkey: latest price, pub/sub, and streams to resume from.

Delivery in this process never waits for the server. What goes there has three lanes, so that none waits
for another: prices to listeners, the newest price of every symbol under its key, and entries of streams. The
first and the last have bounded queues: when the server is away or slow the oldest are dropped and counted,
but the newest price of every symbol always gets there. What was under way when the connection broke goes
again, so pub/sub may repeat a price; the stream of ticks never does: the ID of an entry is
``epoch-offset``, and the server refuses one that is not higher than the last.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic, perf_counter
from typing import Any, Final

import msgspec
import structlog
from redis.exceptions import NoPermissionError, ResponseError

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import BusUnavailable, WrongWorld
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.events import EpochStarted, Event
from enhanced_websocket_service.market.price_view import price_data
from enhanced_websocket_service.market.tick import Tick

from .address import client_for
from .answers import is_about_a_name, refusal
from .base import Subscriber
from .lane import UNAVAILABLE, Lane, Waiting, answered
from .memory import MemoryBus
from .names import RedisNames
from .world import RedisWorld

log = structlog.get_logger(__name__)

REDIS: Final = "Redis"
EPOCH: Final = "epoch in Redis"
"""The part of ``Failures``: something else stands there."""
PUBLISHING: Final = "publishing prices in Redis"
CACHING: Final = "latest price in Redis"
STREAMING: Final = "streams in Redis"
"""The parts of ``Failures``: the connection, and what the server refuses. All on this machine goes on."""
PRICE_TTL_S: Final = 300
PROBE_TTL_S: Final = 60
CHECK_EVERY_S: Final = 5.0
CANCEL_AGAIN_S: Final = 0.25
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
        self.may_cache: Callable[[], bool] = lambda: True
        """Whether prices of a while ago belong there: while another instance collects, its own do."""
        self.on_told: Callable[[Tick], None] = lambda _tick: None
        """Told of the last tick, of each symbol, up to which all have been published there."""
        self.on_cached: Callable[[Tick], None] = lambda _tick: None
        """Told of each tick that stands under the key of its symbol."""
        self._local = MemoryBus()
        self._news: Waiting[Tick] = Waiting(queue_size)
        self._entries: Waiting[Tick | BarUpdate] = Waiting(queue_size)
        self._batch_size = batch_size
        self._stream_length = stream_length
        self._prices: dict[str, tuple[Tick, float]] = {}  # newest by symbol, when (monotonic)
        self._unwritten: set[str] = set()  # symbols whose newest price is not on the server
        self._known: set[str] = set()  # symbols whose price is none of now, and may not be there
        self._epoch = 0
        self._epoch_unwritten = False
        self._meeting = asyncio.Lock()
        self._met = False  # the server answered, and nothing has been lost since
        self._met_at = 0.0  # monotonic
        self._server_run: str | None = None  # another one means: a server that may be empty
        self._overflowing = False
        self._repeating = False
        self._refusing = False
        self._sent = self._refused = self._probes = 0
        self._last_error: str | None = None

        def lane(part: str, pending: Callable[[], bool], send: Callable[[], Any]) -> Lane:
            return Lane(
                part,
                pending=pending,
                send=send,
                meet=self._meet,
                lost=self._lost,
                says=self._refusal,
                failures=self._failures,
                longest_backoff_s=longest_backoff_s,
                every_s=CHECK_EVERY_S,
            )

        self._telling = lane(PUBLISHING, lambda: bool(self._news), self._tell)
        self._caching = lane(CACHING, self._has_to_cache, self._cache)
        self._streaming = lane(STREAMING, lambda: bool(self._entries), self._stream)
        self._lanes = (self._telling, self._caching, self._streaming)

    @property
    def connected(self) -> bool:
        """Whether the last exchange of every kind with the server succeeded."""
        return self._met and all(lane.error is None for lane in self._lanes)

    @property
    def failure(self) -> str | None:
        return self._local.failure

    @property
    def last_error(self) -> str | None:
        """Why the server is not up to date, in its own words; ``None`` while all goes well."""
        if not self._met and self._last_error is not None:
            return self._last_error  # what a lane met before is older
        return next((lane.error for lane in self._lanes if lane.error), None) or self._last_error

    def publish(self, events: Sequence[Event]) -> None:
        self._local.publish(events)
        now = monotonic()
        for event in events:
            if isinstance(event, Tick):
                if self._local.latest(event.symbol) is event:
                    self._prices[event.symbol] = (event, now)
                    self._unwritten.add(event.symbol)
                self._news.add(event)
                self._enqueue(event)
            elif isinstance(event, BarUpdate):
                self._enqueue(event)
            elif isinstance(event, EpochStarted):
                self._epoch = max(self._epoch, event.epoch)
                self._epoch_unwritten = True
        for lane in self._lanes:
            lane.wake()

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        return self._local.subscribe(callback)

    def latest(self, symbol: str) -> Tick | None:
        return self._local.latest(symbol)

    def seed(self, tick: Tick, age_s: float = 0.0) -> None:
        self._local.seed(tick)
        if self._local.latest(tick.symbol) is tick and age_s < PRICE_TTL_S:
            # A process that was killed had published it, but may not have got to write it here.
            self._prices[tick.symbol] = (tick, monotonic() - max(0.0, age_s))
            self._known.add(tick.symbol)
            self._caching.wake()

    async def ping(self) -> float:
        began = perf_counter()
        try:
            await self._client.ping()
        except UNAVAILABLE as error:
            raise BusUnavailable(self._refusal(error)) from error
        return (perf_counter() - began) * 1000

    async def highest_epoch(self) -> int | None:
        """The highest epoch the server has heard of; ``None`` when it cannot be asked."""
        try:
            value = await self._client.get(self._names.epoch)
            return int(value) if value is not None else 0
        except UNAVAILABLE:
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
        with suppress(*UNAVAILABLE):
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

    async def probe(self) -> str | None:
        """Do what is done with a price, with a key and a channel of our own.

        :returns: what was left out, as the account may use other names only; ``None``: nothing.
        :raises BusUnavailable: the server did not do it, and why.
        """
        try:
            await self._meet()
            self._probes += 1
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.set(self._names.probe, self._probes, ex=PROBE_TTL_S)
                pipe.publish(self._names.probe, str(self._probes))
                answers = await pipe.execute(raise_on_error=False)
        except WrongWorld as error:
            raise BusUnavailable(str(error)) from error
        except UNAVAILABLE as error:
            raise BusUnavailable(self._refusal(error)) from error
        failed = [one for one in answers if isinstance(one, Exception)]
        if faults := [one for one in failed if not is_about_a_name(one)]:
            raise BusUnavailable(self._refusal(faults[0])) from faults[0]
        return f"Not all was probed: {self._refusal(failed[0])}" if failed else None

    def status(self) -> dict[str, Any]:
        return {
            **self._local.status(),
            "kind": "redis",
            "connected": self.connected,
            "queued": len(self._entries),
            "sent": self._sent,
            "dropped": self._entries.dropped,
            "prices_queued": len(self._news),
            "prices_dropped": self._news.dropped,
            "refused": self._refused,
            "last_error": self.last_error,
        }

    async def run(self) -> None:
        """Bring everything to the server until cancelled; reconnects by itself."""
        tasks = {asyncio.create_task(lane.run(), name=lane.part) for lane in self._lanes}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._met = False
            while tasks:
                # Again and again: redis-py swallows a cancellation that meets it at the wrong moment.
                for task in tasks:
                    task.cancel()
                with suppress(asyncio.CancelledError):  # we are ending already
                    await asyncio.wait(tasks, timeout=CANCEL_AGAIN_S)
                tasks = {task for task in tasks if not task.done()}

    async def drain(self, timeout_s: float) -> bool:
        """Wait until everything published is on the server; ``run`` must be running.

        :returns: ``False`` when ``timeout_s`` real seconds did not suffice.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for lane in self._lanes:
                    await lane.idle()
        return all(lane.is_idle for lane in self._lanes)

    async def close(self) -> None:
        """Close the connections; end ``run`` first."""
        with suppress(*UNAVAILABLE):
            await self._client.aclose()

    def _enqueue(self, event: Tick | BarUpdate) -> None:
        if self._entries.full and not self._overflowing:
            self._overflowing = True
            log.warning(
                "Redis is too slow or away: dropping the oldest publishes",
                queued=len(self._entries),
                reason=self.last_error,
            )
        self._entries.add(event)

    def _has_to_cache(self) -> bool:
        return bool(self._epoch_unwritten or self._owed())

    def _owed(self) -> set[str]:
        return self._unwritten | self._known if self.may_cache() else self._unwritten

    async def _meet(self) -> None:
        """Ask for signs of life now and then, and whose prices are there: the server may be another one, or
        have got other company. A server that started anew gets the newest prices and the epoch.
        """
        async with self._meeting:
            if self._met and monotonic() - self._met_at <= CHECK_EVERY_S:
                return
            await self._look()
            try:
                run = str((await self._client.info("server")).get("run_id"))
            except ResponseError:  # the account may not be allowed to ask
                await self._client.ping()
                run = "unknown"
            self._met_at = monotonic()
            if not self._met or run != self._server_run:
                self._server_run = run
                self._known.update(self._prices)
                self._epoch_unwritten = self._epoch > 0
                self._caching.wake()
            if self._world is not None:
                with suppress(ResponseError):  # an account without the right; prices matter more
                    self._marks = await self._world.marks(self._client)
            if not self._met:
                self._met, self._last_error = True, None
                log.info("Redis is connected", queued=len(self._entries))
            self._failures.succeeded(REDIS)

    async def _tell(self) -> None:
        start, batch = self._news.head(self._batch_size)
        async with self._client.pipeline(transaction=False) as pipe:
            for tick in batch:
                text = _json.encode(price_data(tick))
                pipe.publish(self._names.channel, b'{"type":"price_update","data":' + text + b"}")
            answers = await pipe.execute(raise_on_error=False)
        told = answered(answers)
        self._news.did(start, told)
        for tick in {tick.symbol: tick for tick in batch[:told]}.values():
            self.on_told(tick)
        if told < len(answers):
            raise answers[told]

    async def _cache(self) -> None:
        prices = {symbol: self._prices[symbol] for symbol in self._owed()}
        epoch = self._epoch if self._epoch_unwritten else None
        marks = self._marks
        written: list[str] = []
        async with self._client.pipeline(transaction=False) as pipe:
            for symbol, (tick, published) in prices.items():
                # A price that waited for the server is not younger for it.
                left_ms = int((PRICE_TTL_S - (monotonic() - published)) * 1000)
                if left_ms > 0:
                    pipe.set(self._names.price(symbol), _json.encode(price_data(tick)), px=left_ms)
                    written.append(symbol)
            if epoch is not None:
                pipe.set(self._names.epoch, epoch)
            for name, mark in marks.items():
                pipe.set(name, mark)
            # Nothing may be left to write: every price is too old by now.
            answers = await pipe.execute(raise_on_error=False) if len(pipe) else []
        failed = dict(zip(written, answers, strict=False))
        for symbol, sent in prices.items():
            if isinstance(failed.get(symbol), Exception):
                continue
            self.on_cached(sent[0])
            if self._prices[symbol] is sent:
                self._unwritten.discard(symbol)
                self._known.discard(symbol)
        others = answers[len(written) :]
        if epoch is not None and not isinstance(others[0], Exception):
            self._epoch_unwritten = self._epoch != epoch
        of_marks = others[len(others) - len(marks) :]
        # An account without the right to mark; prices matter more.
        refused = [one for one in of_marks if isinstance(one, Exception)]
        if all(isinstance(one, NoPermissionError) for one in refused):
            self._marks = {} if self._marks is marks else self._marks
            answers = answers[: len(answers) - len(marks)]
        if (good := answered(answers)) < len(answers):
            raise answers[good]

    async def _stream(self) -> None:
        start, batch = self._entries.head(self._batch_size)
        async with self._client.pipeline(transaction=False) as pipe:
            for event in batch:
                if isinstance(event, Tick):
                    self._add_tick(pipe, event)
                else:
                    self._add_bar(pipe, event)
            try:
                answers = await pipe.execute(raise_on_error=False)
            except BaseException:
                self._repeating = True  # the server may have taken some of it
                raise
        done, refused = 0, 0
        failure: Exception | None = None
        for answer in answers:
            if isinstance(answer, ResponseError) and "equal or smaller" in str(answer):
                refused += 1
            elif isinstance(answer, Exception):
                failure = answer
                break
            done += 1
        self._entries.did(start, done)
        self._sent += done
        self._refused += refused
        if refused and not self._repeating and not self._refusing:
            log.warning("Redis has ticks of a higher epoch: does another instance publish there?")
        self._refusing = bool(refused) and not self._repeating
        self._repeating = failure is not None  # what stood behind it may have been taken
        if failure is not None:
            raise failure
        if self._overflowing and not self._entries.full:
            self._overflowing = False
            log.info("Redis has caught up", dropped_in_all=self._entries.dropped)

    def _add_tick(self, pipe: Any, tick: Tick) -> None:
        pipe.xadd(
            self._names.stream("ticks", tick.symbol),
            {"data": _json.encode(price_data(tick))},
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
        self._met = False
        self._last_error = str(error) if isinstance(error, WrongWorld) else self._refusal(error)
        self._failures.failed(REDIS, self._last_error)

    def _refusal(self, error: Exception) -> str:
        return refusal(error, self._client.connection_pool.connection_kwargs)
