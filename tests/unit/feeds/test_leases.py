"""One process per key streams: the feed takes the lease, waits for it, and gives it back."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from enhanced_websocket_service.feeds.liveness_monitor import LivenessMonitor
from enhanced_websocket_service.feeds.stream import StreamFeed
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool

from .alone import Alone
from .test_stream import Bench
from .vendor import Vendor, price, running_vendor, until


class Leases:
    """A store in memory; ``taken`` are held by another process."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.held: set[str] = set()
        self.asked: list[str] = []
        self.robbed = asyncio.Event()

    async def acquire(self, fingerprint: str) -> bool:
        self.asked.append(fingerprint)
        if fingerprint in self.taken:
            return False
        self.held.add(fingerprint)
        return True

    async def lost(self, fingerprint: str) -> None:
        await self.robbed.wait()
        self.held.discard(fingerprint)

    async def release(self, fingerprint: str) -> None:
        self.held.discard(fingerprint)


@pytest.fixture
async def vendor() -> AsyncIterator[Vendor]:
    async with running_vendor() as one:
        yield one


def leased(vendor: Vendor, leases: Leases, keys: int) -> Bench:
    bench = Bench(vendor, keys)
    metrics = Metrics()
    stream = StreamFeed(
        vendor.url,
        KeyPool([ApiKey(f"G1_{i + 1}", f"s3cret-lease-{i}") for i in range(keys)]),
        ("USDCOP",),
        bench.clock,
        Provider("simulator"),
        metrics,
        liveness=LivenessMonitor(("USDCOP",), bench.clock, metrics),
        leases=leases,
        jitter=lambda: 1.0,
    )
    bench.feed = Alone(stream, bench.events)
    return bench


async def test_it_waits_without_connecting_and_takes_over(vendor: Vendor) -> None:
    leases = Leases()
    bench = leased(vendor, leases, 1)
    fingerprint = ApiKey("G1_1", "s3cret-lease-0").fingerprint
    leases.taken = {fingerprint}
    consumer = asyncio.create_task(anext(bench.feed))
    await until(lambda: leases.asked)
    await bench.clock.pass_time(20)
    assert (vendor.keys, bench.events) == ([], [])
    assert 10 <= len(leases.asked) <= 12, "about every two seconds"
    status = bench.feed.status()
    assert status.verdict == "suspect"
    assert status.detail == "another process streams with key G1_1; waiting for its lease"
    leases.taken.clear()
    await bench.clock.pass_time(3)
    await until(lambda: bench.feed.status().subscribed)
    assert leases.held == {fingerprint}
    await vendor.send(price(4000))
    await consumer
    await bench.stop()
    assert leases.held == set()


async def test_a_lost_lease_ends_the_connection_and_another_key_serves(vendor: Vendor) -> None:
    leases = Leases()
    bench = leased(vendor, leases, 2)
    await bench.start()
    await until(lambda: bench.feed.status().subscribed)
    leases.taken = {ApiKey("G1_1", "s3cret-lease-0").fingerprint}
    leases.robbed.set()
    await until(lambda: bench.events)
    leases.robbed.clear()
    assert bench.events[0].kind == "leased"
    await bench.passing(lambda: bench.feed.status().subscribed)
    assert vendor.keys == ["s3cret-lease-0", "s3cret-lease-1"]
    await bench.stop()


async def test_a_refused_connection_gives_the_lease_back(vendor: Vendor) -> None:
    leases = Leases()
    vendor.handshake = lambda _: 500
    bench = leased(vendor, leases, 1)
    await bench.start()
    await until(lambda: not leases.held)
    await bench.stop()
