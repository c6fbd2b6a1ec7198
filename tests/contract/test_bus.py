"""One contract for every bus; what only Redis does is in ``test_redis_bus.py``."""

from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from enhanced_websocket_service.bus.base import Bus
from enhanced_websocket_service.bus.memory import MemoryBus
from enhanced_websocket_service.bus.redis import RedisBus
from enhanced_websocket_service.market.events import EpochStarted, Event, StatusChanged
from tests.storage_samples import OPEN, SYMBOL, bar, tick, update

EVENTS: list[Event] = [
    EpochStarted(SYMBOL, 1, None, None),
    tick(1),
    update(bar(), at=OPEN + 301.0),
    StatusChanged("active", "the session is open", "live", OPEN + 0.0),
    tick(2, 4101.0),
]


@pytest.fixture(params=["memory", "redis", "redis without a server"])
async def bus(request: pytest.FixtureRequest) -> AsyncIterator[Bus]:
    if request.param == "memory":
        yield MemoryBus()
        return
    url = "redis://127.0.0.1:1/0"
    if request.param == "redis":
        url = request.getfixturevalue("valkey_url")
    bus = RedisBus(url, timeout_s=1)
    yield bus
    await bus.close()


def collector(seen: list[Event]) -> Callable[[Sequence[Event]], None]:
    return seen.extend


async def test_subscribers_get_every_event_in_order_at_once(bus: Bus) -> None:
    first: list[Event] = []
    second: list[Event] = []
    bus.subscribe(collector(first))
    bus.subscribe(collector(second))
    bus.publish(EVENTS[:2])
    bus.publish([])
    bus.publish(EVENTS[2:])
    assert first == EVENTS
    assert second == EVENTS


async def test_a_batch_is_one_call(bus: Bus) -> None:
    batches: list[Sequence[Event]] = []
    bus.subscribe(batches.append)
    bus.publish(EVENTS)
    assert [list(batch) for batch in batches] == [EVENTS]


async def test_unsubscribing_ends_it_and_may_be_repeated(bus: Bus) -> None:
    seen: list[Event] = []
    callback = collector(seen)
    leave = bus.subscribe(callback)
    stay = bus.subscribe(callback)
    bus.publish(EVENTS[:1])
    leave()
    leave()
    bus.publish(EVENTS[1:2])
    assert seen == [EVENTS[0], EVENTS[0], EVENTS[1]]
    stay()
    bus.publish(EVENTS)
    assert len(seen) == 3


async def test_leaving_and_joining_during_a_delivery_is_safe(bus: Bus) -> None:
    seen: list[Event] = []
    leaves: list[Callable[[], None]] = []

    def once(events: Sequence[Event]) -> None:
        leaves.pop()()
        bus.subscribe(collector(seen))

    leaves.append(bus.subscribe(once))
    bus.publish(EVENTS[:1])
    assert seen == [], "who joins during a batch gets the next one"
    bus.publish(EVENTS[1:2])
    assert seen == EVENTS[1:2]


async def test_a_broken_subscriber_does_not_keep_the_tick_from_the_others(bus: Bus) -> None:
    def broken(_: Sequence[Event]) -> None:
        raise RuntimeError("a bug")

    seen: list[Event] = []
    bus.subscribe(broken)
    bus.subscribe(collector(seen))
    bus.publish(EVENTS)
    assert seen == EVENTS
    assert bus.status()["subscriber_failures"] == 1


async def test_latest_is_the_tick_published_last(bus: Bus) -> None:
    assert bus.latest(SYMBOL) is None
    bus.publish(EVENTS)
    bus.publish([tick(1, symbol="EURUSD")])
    assert bus.latest(SYMBOL) == tick(2, 4101.0)
    assert bus.latest("EURUSD") == tick(1, symbol="EURUSD")


async def test_a_subscriber_sees_the_latest_it_is_told_of(bus: Bus) -> None:
    seen = []
    bus.subscribe(lambda events: seen.append(bus.latest(SYMBOL) == events[-1]))
    bus.publish([tick(1)])
    assert seen == [True]


async def test_a_seed_is_the_latest_until_something_is_published(bus: Bus) -> None:
    seen: list[Event] = []
    bus.subscribe(collector(seen))
    bus.seed(tick(7))
    assert bus.latest(SYMBOL) == tick(7)
    assert seen == []
    bus.publish([tick(8)])
    bus.seed(tick(7))
    assert bus.latest(SYMBOL) == tick(8)


async def test_status_has_the_common_fields(bus: Bus) -> None:
    status = bus.status()
    assert status["kind"] in ("memory", "redis")
    assert status["connected"] is bus.connected is False
