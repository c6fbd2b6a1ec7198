"""Leases of API keys in a real Valkey: one holder, takeover when it vanishes, nobody without a server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import redis.asyncio
from structlog.testing import capture_logs

from enhanced_websocket_service.bus.leases import RedisKeyLeases
from enhanced_websocket_service.bus.names import RedisNames
from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.feeds.base import KeyLeases

from .test_redis_bus import Gate, gate

__all__ = ["gate"]

KEY = "0123456789ab"
OTHER = "00000009-0000-4000-8000-000000000000"
TTL_S, RENEW_S = 0.9, 0.1


@pytest.fixture
async def client(valkey_url: str) -> AsyncIterator[Any]:
    client = redis.asyncio.Redis.from_url(valkey_url, decode_responses=True)
    yield client
    await client.aclose()


@asynccontextmanager
async def process(url: str, **options: Any) -> AsyncIterator[RedisKeyLeases]:
    leases = RedisKeyLeases(url, **{"ttl_s": TTL_S, "renew_s": RENEW_S, **options})
    task = asyncio.create_task(leases.run(), name="key-leases")
    try:
        yield leases
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await leases.close()


async def eventually_acquires(leases: RedisKeyLeases, within_s: float = 40.0) -> float:
    """Seconds until the lease was had."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(within_s):
        while not await leases.acquire(KEY):
            await asyncio.sleep(0)
    return loop.time() - began


async def test_one_process_holds_a_key_until_it_gives_it_back(valkey_url: str, client: Any) -> None:
    async with process(valkey_url) as first, process(valkey_url) as second:
        kept: KeyLeases = first  # the interface that the stream knows
        assert await kept.acquire(KEY)
        assert await kept.acquire(KEY), "again is no harm"
        assert not await second.acquire(KEY)
        assert await second.acquire("another-key0"), "leases are per key"
        assert await client.get(RedisNames().lease(KEY)) == first.owner
        assert 0 < await client.pttl(RedisNames().lease(KEY)) <= TTL_S * 1000
        await kept.release(KEY)
        await kept.release(KEY)
        assert await second.acquire(KEY)
        assert (first.held, second.held) == (frozenset(), frozenset({KEY, "another-key0"}))
    assert await client.keys("ews:lease:*") == [], "an orderly end leaves nothing"


async def test_a_lease_is_renewed_for_as_long_as_it_is_held(valkey_url: str, client: Any) -> None:
    async with process(valkey_url) as first, process(valkey_url) as second:
        assert await first.acquire(KEY)
        began = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < began + 2 * TTL_S:
            assert not await second.acquire(KEY)
        assert await client.get(RedisNames().lease(KEY)) == first.owner


async def test_the_lease_of_a_holder_that_vanished_is_taken_over(valkey_url: str) -> None:
    vanished = RedisKeyLeases(valkey_url, ttl_s=TTL_S)  # nobody renews: killed
    assert await vanished.acquire(KEY)
    async with process(valkey_url) as second:
        assert await eventually_acquires(second) <= TTL_S + 1.0
        # It comes back from a long stop and finds out.
        task = asyncio.create_task(vanished.run())
        vanished._renew_s = RENEW_S
        await asyncio.wait_for(vanished.lost(KEY), 40)
        assert vanished.held == frozenset()
        assert not await vanished.acquire(KEY)
        task.cancel()
        await asyncio.wait({task})
    await vanished.close()


async def test_renewing_ends_when_cancelled_whatever_the_redis_library_does(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = RedisKeyLeases(valkey_url, ttl_s=TTL_S, renew_s=0.0)
    assert await leases.acquire(KEY)
    asked, answer = asyncio.Event(), asyncio.Event()

    async def swallows(**_: Any) -> int:
        asked.set()
        with suppress(asyncio.CancelledError):
            await answer.wait()
        return 1

    monkeypatch.setattr(leases, "_take", swallows)
    task = asyncio.create_task(leases.run())
    await asked.wait()
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    cancelled = task.cancelled()
    answer.set()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0)
    await leases.close()
    assert cancelled


async def test_a_process_that_starts_again_under_its_name_need_not_wait(valkey_url: str) -> None:
    killed = RedisKeyLeases(valkey_url, owner="00000001-0000-4000-8000-000000000000", ttl_s=50.0)
    assert await killed.acquire(KEY)
    await killed._client.aclose()  # no goodbye
    async with (
        process(valkey_url, owner="00000002-0000-4000-8000-000000000000") as other,
        process(valkey_url, owner="00000001-0000-4000-8000-000000000000") as restarted,
    ):
        assert not await other.acquire(KEY)
        assert await restarted.acquire(KEY)


async def test_what_another_holds_is_not_deleted(valkey_url: str, client: Any) -> None:
    async with process(valkey_url, renew_s=60.0) as first:
        assert await first.acquire(KEY)
        await client.set(RedisNames().lease(KEY), OTHER, px=30_000)
        await first.release(KEY)
        assert await client.get(RedisNames().lease(KEY)) == OTHER
        await client.delete(RedisNames().lease(KEY))


async def test_a_taken_lease_is_reported_and_one_never_held_too(
    valkey_url: str, client: Any
) -> None:
    async with process(valkey_url) as first:
        await asyncio.wait_for(first.lost(KEY), 20)
        assert await first.acquire(KEY)
        waiter = asyncio.create_task(first.lost(KEY))
        await client.set(RedisNames().lease(KEY), OTHER, px=30_000)
        await asyncio.wait_for(waiter, 40)
        await client.delete(RedisNames().lease(KEY))


FOREIGN = [
    ("SET", "attacker"),
    ("SET", OTHER),
    ("SET", OTHER, "EX", "86400"),
    ("SET", "attacker", "EX", "5"),
    ("RPUSH", OTHER),
]


@pytest.mark.parametrize("command", FOREIGN, ids=str)
async def test_what_no_process_writes_is_no_lease_and_is_named(
    valkey_url: str, client: Any, command: tuple[str, ...]
) -> None:
    """S16: one SET without expiry took the vendor's stream away for as long as it stood."""
    failures = Failures(SystemClock())
    async with process(valkey_url, failures=failures) as first:
        assert await first.acquire(KEY)
        name = RedisNames().lease(KEY)
        await client.delete(name)
        await client.execute_command(command[0], name, *command[1:])
        async with asyncio.timeout(40):
            while not failures.present:
                await asyncio.sleep(0)
        assert first.held == {KEY}
        assert await client.get(name) == first.owner
        assert 0 < await client.pttl(name) <= TTL_S * 1000
        (told,) = failures.present
        assert name in told.reason
    async with process(valkey_url) as second:
        await client.execute_command(command[0], name, *command[1:])
        assert await second.acquire(KEY)


async def test_a_server_that_lost_its_memory_is_told_again(valkey_url: str, client: Any) -> None:
    async with process(valkey_url) as first, process(valkey_url) as second:
        assert await first.acquire(KEY)
        await client.delete(RedisNames().lease(KEY))
        async with asyncio.timeout(40):
            while await client.get(RedisNames().lease(KEY)) != first.owner:
                await asyncio.sleep(0)
        assert not await second.acquire(KEY)


async def test_without_a_server_everybody_may_stream_and_the_first_one_back_keeps_the_key(
    gate: Gate, client: Any
) -> None:
    await gate.down()
    async with process(gate.url) as first, process(gate.url, renew_s=0.3) as second:
        with capture_logs() as logs:
            assert await first.acquire(KEY)
            assert await first.acquire(KEY)
        assert len(logs) == 1, "said once"
        assert await second.acquire(KEY)
        lost = {asyncio.create_task(one.lost(KEY)): one for one in (first, second)}
        await gate.up()
        done, pending = await asyncio.wait(lost, timeout=40, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(pending)) == (1, 1)
        (keeper,) = pending
        assert await client.get(RedisNames().lease(KEY)) == lost[keeper].owner
        keeper.cancel()


async def test_a_silent_server_delays_for_the_time_out_only(gate: Gate) -> None:
    async with process(gate.url, timeout_s=0.2) as first:
        assert await first.acquire("warm-up-key0")
        gate.freeze()
        async with asyncio.timeout(40):
            assert await first.acquire(KEY)
        gate.thaw()


async def test_whoever_stops_asking_holds_nothing(gate: Gate, client: Any) -> None:
    async with process(gate.url, timeout_s=20.0, renew_s=60.0) as first:
        assert await first.acquire("warm-up-key0")
        gate.freeze()
        asking = asyncio.create_task(first.acquire(KEY))
        await asyncio.wait_for(gate.holding.wait(), 40)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        gate.thaw()
        async with asyncio.timeout(40):
            while first._asking:
                await asyncio.sleep(0)
        assert await client.get(RedisNames().lease(KEY)) is None
        assert KEY not in first.held


def test_a_url_that_makes_no_sense() -> None:
    with pytest.raises(ConfigurationError, match="REDIS_URL cannot be understood") as caught:
        RedisKeyLeases("http://:s3cr3t@host")
    assert "s3cr3t" not in str(caught.value)
