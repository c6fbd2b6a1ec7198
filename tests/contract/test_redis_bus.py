"""What other programs see of the bus in a real Valkey, and what its absence costs: nothing here."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis.asyncio

from enhanced_websocket_service.bus.names import RedisNames
from enhanced_websocket_service.bus.redis import CACHING, PUBLISHING, STREAMING, RedisBus
from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import BusUnavailable, ConfigurationError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.price_view import price_data
from tests.storage_samples import OPEN, SYMBOL, bar, tick, ticks, update

KEY = "usdcop:latest_price"
STREAM = "ews:ticks:USDCOP"


@asynccontextmanager
async def running(bus: RedisBus) -> AsyncIterator[RedisBus]:
    task = asyncio.create_task(bus.run(), name="redis-bus")
    try:
        yield bus
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await bus.close()


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Any]:
    client = redis.asyncio.Redis.from_url(valkey_url, decode_responses=True)
    yield client
    await client.aclose()


@asynccontextmanager
async def listening(client: Any) -> AsyncIterator[Any]:
    async with client.pubsub() as channel:
        await channel.subscribe(RedisNames().channel)
        assert (await channel.get_message(timeout=20))["type"] == "subscribe"
        yield channel


class Gate:
    """A TCP door to the server that can be shut, opened again, or lead to silence."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._unix = parts.path if parts.scheme == "unix" else None
        self._address = (parts.hostname, parts.port)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self.holding = asyncio.Event()  # something waits for the thaw
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        assert self._server is not None
        self._server.close()
        self._open.set()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def freeze(self) -> None:
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        if self._unix:
            back, forth = await asyncio.open_unix_connection(self._unix)
        else:
            back, forth = await asyncio.open_connection(*self._address)
        self._writers |= {writer, forth}

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await source.read(65536):
                    if not self._open.is_set():
                        self.holding.set()
                        await self._open.wait()
                    target.write(data)
                    await target.drain()

        pumps = [asyncio.create_task(pump(reader, forth)), asyncio.create_task(pump(back, writer))]
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        for one in (writer, forth):
            one.transport.abort()
        for one in pumps:
            one.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        self._writers -= {writer, forth}
        self._tasks.discard(task)


@pytest.fixture
async def gate(valkey_url: str) -> AsyncIterator[Gate]:
    gate = Gate(valkey_url)
    await gate.up()
    yield gate
    await gate.down()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(40):
        while not condition():
            await asyncio.sleep(0)


async def test_the_latest_price_is_cached_for_five_minutes(valkey_url: str, client: Any) -> None:
    async with running(RedisBus(valkey_url)) as bus:
        bus.publish(ticks(3))
        assert await bus.drain(10)
        assert bus.connected
    cached = json.loads(await client.get(KEY))
    assert cached == price_data(ticks(3)[-1])
    assert list(cached) == [
        *("symbol", "price", "bid", "ask", "spread", "volume", "timestamp", "source")
    ]
    assert cached["timestamp"] == "2025-06-03T08:00:03-05:00"
    assert 290_000 < await client.pttl(KEY) <= 300_000


async def test_every_tick_is_published(valkey_url: str, client: Any) -> None:
    sent = ticks(1200)
    async with listening(client) as channel, running(RedisBus(valkey_url)) as bus:
        bus.publish([EpochStarted(SYMBOL, 1, None, None), *sent[:5]])
        bus.publish([update(bar(), at=OPEN + 301.0)])
        for i in range(5, 1200, 100):
            bus.publish(sent[i : i + 100])
        received = [
            json.loads((await channel.get_message(timeout=20))["data"]) for _ in range(1200)
        ]
    assert received == [{"type": "price_update", "data": price_data(one)} for one in sent]


async def test_streams_are_positions_to_resume_from(valkey_url: str, client: Any) -> None:
    live = update(bar(source="simulator_websocket"), at=OPEN + 301.0, offset=5)
    async with running(RedisBus(valkey_url)) as bus:
        bus.publish([*ticks(5), live, *ticks(2, epoch=2)])
        assert await bus.drain(10)
    entries = await client.xrange(STREAM)
    assert [entry_id for entry_id, _ in entries] == [
        "1-1",
        "1-2",
        "1-3",
        "1-4",
        "1-5",
        "2-1",
        "2-2",
    ]
    assert json.loads(entries[0][1]["data"]) == price_data(ticks(1)[0])
    after = await client.xrange(STREAM, min="(1-4", count=1)
    assert after[0][0] == "1-5"
    ((_, fields),) = await client.xrange("ews:bars:USDCOP")
    assert (fields["epoch"], fields["offset"]) == ("1", "5")
    assert json.loads(fields["data"])["bar"]["close"] == live.bar.close


@pytest.mark.parametrize("command", ["set", "publish"])
async def test_an_account_of_other_names_is_no_fault_of_the_server(
    valkey_url: str, client: Any, command: str
) -> None:
    async with running(RedisBus(valkey_url)) as bus:
        assert await bus.probe() is None
        names = ("~usdcop:*", "~ews:*", "&market_data:realtime")
        await client.execute_command(
            "ACL", "SETUSER", "default", "resetkeys", "resetchannels", *names
        )
        try:
            told = await bus.probe()
            assert told is not None
            assert "channel" in told
            bus.publish(ticks(2))
            assert await bus.drain(10)
            await client.execute_command("ACL", "SETUSER", "default", f"-{command}")
            with pytest.raises(BusUnavailable, match=f"'{command}' command"):
                await bus.probe()
        finally:
            all_again = ("~*", "&*", "+@all")
            await client.execute_command("ACL", "SETUSER", "default", *all_again)


async def test_streams_are_trimmed(valkey_url: str, client: Any) -> None:
    async with running(RedisBus(valkey_url, stream_length=100)) as bus:
        bus.publish(ticks(2000))
        assert await bus.drain(10)
    assert await client.xlen(STREAM) < 400


async def test_the_epoch_is_remembered(valkey_url: str, client: Any) -> None:
    async with running(RedisBus(valkey_url)) as bus:
        assert await bus.highest_epoch() == 0
        bus.publish([EpochStarted(SYMBOL, 1_750_000_000_000, None, None)])
        assert await bus.drain(10)
        assert await bus.highest_epoch() == 1_750_000_000_000
        await client.set(RedisNames().epoch, "not a number")
        assert await bus.highest_epoch() is None


async def test_without_a_server_everything_here_goes_on(client: Any) -> None:
    async with running(RedisBus("redis://127.0.0.1:1/0", queue_size=50)) as bus:
        bus.publish(ticks(500))
        assert bus.latest(SYMBOL) == ticks(500)[-1]
        with pytest.raises(BusUnavailable):
            await bus.ping()
        assert await bus.highest_epoch() is None
        await until(lambda: bus.status()["last_error"] is not None)
        status = bus.status()
        assert (status["connected"], status["queued"], status["dropped"]) == (False, 50, 450)
        assert not await bus.drain(0.05)
    assert await client.get(KEY) is None


async def test_when_the_server_comes_back_the_newest_price_is_there(
    gate: Gate, client: Any
) -> None:
    await gate.down()
    async with running(RedisBus(gate.url, queue_size=10, longest_backoff_s=0.1)) as bus:
        bus.publish([tick(1, symbol="EURUSD")])
        bus.publish(ticks(100))
        await until(lambda: bus.status()["last_error"] is not None)
        await gate.up()
        assert await bus.drain(10)
        assert json.loads(await client.get(KEY)) == price_data(ticks(100)[-1])
        # Pushed out of the queue by the others, but a latest price is never dropped.
        assert json.loads(await client.get("eurusd:latest_price"))["symbol"] == "EURUSD"
        assert [i for i, _ in await client.xrange(STREAM)] == [f"1-{i}" for i in range(91, 101)]
        assert bus.status()["dropped"] == 91
        assert bus.status()["last_error"] is None
        assert 0 < (await bus.ping() or 0) < 5000


async def test_after_a_reconnect_prices_are_written_again(gate: Gate, client: Any) -> None:
    async with running(RedisBus(gate.url, longest_backoff_s=0.1)) as bus:
        bus.publish([EpochStarted(SYMBOL, 7, None, None), tick(1), tick(1, symbol="EURUSD")])
        assert await bus.drain(10)
        await gate.down()
        await client.flushall()
        bus.publish([tick(2)])
        await until(lambda: not bus.connected)
        await gate.up()
        assert await bus.drain(10)
        assert json.loads(await client.get(KEY)) == price_data(tick(2))
        assert await client.exists("eurusd:latest_price") == 1
        assert await client.get(RedisNames().epoch) == "7"


async def test_a_silent_server_delays_nobody_and_repeats_nothing_in_the_stream(
    gate: Gate, client: Any
) -> None:
    bus = RedisBus(gate.url, timeout_s=0.2, longest_backoff_s=0.1, queue_size=1000)
    async with running(bus):
        bus.publish(ticks(10))
        assert await bus.drain(10)
        gate.freeze()
        seen: list[Any] = []
        bus.subscribe(seen.extend)
        bus.publish(ticks(100, first=11))
        assert len(seen) == 100
        await until(lambda: not bus.connected)
        gate.thaw()
        assert await bus.drain(20)
    assert [i for i, _ in await client.xrange(STREAM)] == [f"1-{i}" for i in range(1, 111)]


async def test_overflow_during_a_send_drops_only_what_was_not_sent(gate: Gate, client: Any) -> None:
    async with running(RedisBus(gate.url, timeout_s=20, queue_size=10)) as bus:
        bus.publish(ticks(1))
        assert await bus.drain(10)
        gate.freeze()
        bus.publish(ticks(5, first=2))
        await asyncio.wait_for(gate.holding.wait(), 40)
        bus.publish(ticks(20, first=7))
        gate.thaw()
        assert await bus.drain(10)
        assert bus.status()["dropped"] == 10
    kept = [*range(1, 7), *range(17, 27)]
    assert [i for i, _ in await client.xrange(STREAM)] == [f"1-{i}" for i in kept]


async def test_a_server_that_refuses_writes_is_reported(valkey_url: str, client: Any) -> None:
    async with running(RedisBus(valkey_url, longest_backoff_s=0.1)) as bus:
        await client.config_set("maxmemory", "1")
        try:
            bus.publish(ticks(5))
            await until(lambda: bus.status()["last_error"] is not None)
            assert "maxmemory" in bus.status()["last_error"]
            assert not bus.connected
        finally:
            await client.config_set("maxmemory", "0")
        assert await bus.drain(10)
        assert bus.connected
    assert json.loads(await client.get(KEY)) == price_data(ticks(5)[-1])


async def test_a_full_server_tells_every_price_once_and_the_stream_gets_them_all_later(
    valkey_url: str, client: Any
) -> None:
    failures = Failures(SystemClock())
    bus = RedisBus(valkey_url, longest_backoff_s=0.1, batch_size=2, failures=failures)
    async with listening(client) as channel, running(bus):
        await client.config_set("maxmemory", "1")
        try:
            bus.publish(ticks(5))
            heard = [json.loads((await channel.get_message(timeout=20))["data"]) for _ in range(5)]
            await until(lambda: len(failures.present) == 2)
            bus.publish(ticks(1, first=6))
            heard.append(json.loads((await channel.get_message(timeout=20))["data"]))
            assert {one.part for one in failures.present} == {CACHING, STREAMING}
            assert all("OOM" in one.reason or "maxmemory" in one.reason for one in failures.present)
        finally:
            await client.config_set("maxmemory", "0")
        assert await bus.drain(10)
        assert failures.present == ()
        bus.publish(ticks(1, first=7))
        heard.append(json.loads((await channel.get_message(timeout=20))["data"]))
        assert await bus.drain(10)
    assert [one["data"] for one in heard] == [price_data(one) for one in ticks(7)]
    assert [i for i, _ in await client.xrange(STREAM)] == [f"1-{i}" for i in range(1, 8)]
    assert json.loads(await client.get(KEY)) == price_data(ticks(7)[-1])


@pytest.mark.parametrize(
    ("denied", "part"), [("xadd", STREAMING), ("set", CACHING), ("publish", PUBLISHING)]
)
async def test_what_one_command_is_refused_delays_none_of_the_others(
    valkey_url: str, client: Any, denied: str, part: str
) -> None:
    """An account without a right: three fates, and recovery at once when the right is given."""
    await client.acl_setuser(
        "ews",
        enabled=True,
        passwords=["+secret"],
        keys=["*"],
        channels=["*"],
        commands=["+@all", f"-{denied}"],
    )
    failures = Failures(SystemClock())
    bus = RedisBus(valkey_url.replace("unix://", "unix://ews:secret@"), failures=failures)
    told: list[int] = []
    cached: list[int] = []
    bus.on_told = lambda tick: told.append(tick.offset)
    bus.on_cached = lambda tick: cached.append(tick.offset)
    try:
        async with running(bus):
            for n in range(1, 21):
                bus.publish(ticks(1, first=n))
                if part is not PUBLISHING:
                    await until(lambda n=n: bool(told) and told[-1] == n)  # type: ignore[misc] # bound
                if part is not CACHING:
                    await until(lambda n=n: bool(cached) and cached[-1] == n)  # type: ignore[misc] # bound
            await until(lambda: failures.of(part) is not None)
            assert [one.part for one in failures.present] == [part]
            assert denied in failures.present[0].reason
            await client.acl_setuser("ews", commands=[f"+{denied}"])
            assert await bus.drain(5)
            assert failures.present == ()
            assert told[-1] == cached[-1] == 20
    finally:
        await client.acl_deluser("ews")
    assert [i for i, _ in await client.xrange(STREAM)] == [f"1-{i}" for i in range(1, 21)]
    assert json.loads(await client.get(KEY)) == price_data(ticks(1, first=20)[0])


async def test_a_probe_uses_names_of_our_own_and_says_why_it_fails(
    valkey_url: str, client: Any
) -> None:
    async with running(RedisBus(valkey_url)) as bus:
        await bus.probe()
        assert await client.keys("*") == [RedisNames().probe]
        assert 0 < await client.ttl(RedisNames().probe) <= 60
        await client.config_set("maxmemory", "1")
        try:
            with pytest.raises(BusUnavailable, match="maxmemory"):
                await bus.probe()
        finally:
            await client.config_set("maxmemory", "0")


async def test_an_old_price_does_not_look_young_after_an_outage(
    valkey_url: str, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bus = RedisBus(valkey_url)
    now = 1000.0
    monkeypatch.setattr("enhanced_websocket_service.bus.redis.monotonic", lambda: now)
    bus.publish([tick(1)])
    now += 200
    bus.publish([tick(1, symbol="EURUSD")])
    now += 200
    async with running(bus):
        assert await bus.drain(10)
    assert await client.get(KEY) is None
    assert 90_000 < await client.pttl("eurusd:latest_price") <= 100_000


async def test_ticks_of_a_higher_epoch_are_not_overtaken(valkey_url: str, client: Any) -> None:
    await client.xadd(STREAM, {"data": "{}"}, id="99-1")
    async with running(RedisBus(valkey_url)) as bus:
        bus.publish(ticks(3))
        assert await bus.drain(10)
        assert bus.status()["refused"] == 3
    assert [i for i, _ in await client.xrange(STREAM)] == ["99-1"]


@pytest.mark.parametrize("url", ["http://:s3cr3t@host", "redis://:s3cr3t@host:notaport/0", ""])
def test_a_url_that_makes_no_sense(url: str) -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL cannot be understood") as caught:
        RedisBus(url)
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_the_last_price_of_a_killed_process_reaches_the_cache(
    valkey_url: str, client: Any
) -> None:
    """It was published to clients, and the process died before it was written here."""
    await client.set(KEY, json.dumps(price_data(tick(6))), px=300_000)
    bus = RedisBus(valkey_url)
    bus.seed(tick(7), age_s=100.0)
    async with running(bus):
        assert await bus.drain(10)
        assert json.loads(await client.get(KEY)) == price_data(tick(7))
        assert 100_000 < await client.pttl(KEY) <= 200_000
        assert await client.exists(STREAM) == 0


async def test_a_price_too_old_for_the_cache_is_not_written_after_a_restart(
    valkey_url: str, client: Any
) -> None:
    bus = RedisBus(valkey_url)
    bus.seed(tick(7), age_s=300.0)
    bus.publish([EpochStarted(SYMBOL, 5, None, None)])
    async with running(bus):
        assert await bus.drain(10)
        assert await client.get(RedisNames().epoch) == "5"
        assert await client.exists(KEY) == 0


async def test_an_instance_that_waits_leaves_the_price_of_the_one_that_collects(
    valkey_url: str, client: Any
) -> None:
    theirs = json.dumps(price_data(tick(9)))
    await client.set(KEY, theirs, px=300_000)
    bus = RedisBus(valkey_url)
    waits = True
    bus.may_cache = lambda: not waits
    bus.seed(tick(7), age_s=100.0)
    bus.publish([EpochStarted(SYMBOL, 5, None, None)])
    async with running(bus):
        assert await bus.drain(10)
        assert await client.get(RedisNames().epoch) == "5"
        assert await client.get(KEY) == theirs
        # It takes over: what it is told of the other's last price is newer than what it had.
        waits = False
        bus.seed(tick(9), age_s=10.0)
        bus.seed(tick(8), age_s=0.0)
        assert await bus.drain(10)
        assert json.loads(await client.get(KEY)) == price_data(tick(9))
        latest = bus.latest(SYMBOL)
        assert latest is not None
        assert latest.offset == 9
