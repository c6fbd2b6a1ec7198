"""The frame of every feed: batches, backpressure, cancelling, closing."""

import asyncio
from contextlib import aclosing

import pytest

from enhanced_websocket_service.feeds import base
from enhanced_websocket_service.feeds.base import BackgroundFeed
from enhanced_websocket_service.market.tick import Quote

from .vendor import until


def quote(number: int) -> Quote:
    return Quote("USDCOP", 1_000_000_000 + number, 4000.0, "simulator_websocket", 0.0)


class Counting(BackgroundFeed):
    """Delivers ``total`` quotes one by one as fast as it may, then fails or waits."""

    def __init__(self, total: int, limit: int = 10, error: Exception | None = None) -> None:
        super().__init__("feed-counting", batch_limit=limit)
        self.total, self.error = total, error
        self.delivered = 0
        self.released = 0

    async def _run(self) -> None:
        try:
            for number in range(self.total):
                self.put(quote(number))
                await self.room()
                self.delivered += 1
            if self.error is not None:
                raise self.error
            await asyncio.Event().wait()
        finally:
            self.released += 1


class Deaf(BackgroundFeed):
    """Swallows the first cancellation, as a task group does that fails in the same moment."""

    def __init__(self) -> None:
        super().__init__("feed-deaf")
        self.cancelled = 0

    async def _run(self) -> None:
        self.put(quote(0))
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
        await asyncio.Event().wait()


async def take(feed: BackgroundFeed, count: int) -> list[int]:
    stamps: list[int] = []
    while len(stamps) < count:
        stamps += [one.timestamp - 1_000_000_000 for one in await anext(feed)]
    return stamps


async def test_a_swallowed_cancellation_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CANCEL_AGAIN_REAL_S", 0.01)
    feed = Deaf()
    await take(feed, 1)
    async with asyncio.timeout(10):
        await feed.aclose()
    assert feed.cancelled == 1
    assert not feed.running


async def test_closing_that_is_interrupted_leaves_nothing() -> None:
    feed = Deaf()
    await take(feed, 1)
    closing = asyncio.create_task(feed.aclose())
    await until(lambda: feed.cancelled)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(10):
            await closing
    assert [task for task in asyncio.all_tasks() if task.get_name() == "feed-deaf"] == []


async def test_nothing_starts_before_the_first_pull() -> None:
    feed = Counting(1)
    await asyncio.sleep(0)
    assert (feed.delivered, feed.running) == (0, False)
    await feed.aclose()


async def test_a_slow_consumer_stops_the_feed_and_loses_nothing() -> None:
    feed = Counting(100, limit=10)
    first = await take(feed, 1)
    await until(lambda: feed._held_up)
    assert feed.delivered <= len(first) + 10
    assert first + await take(feed, 100 - len(first)) == list(range(100))
    await feed.aclose()
    assert feed.released == 1


async def test_a_cancelled_pull_loses_nothing() -> None:
    feed = Counting(0)
    pull = asyncio.create_task(anext(feed))
    await until(lambda: feed.running)
    pull.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pull
    assert feed.running
    feed.put(quote(7))
    assert await take(feed, 1) == [7]
    await feed.aclose()
    assert not feed.running


async def test_closing_ends_the_loop_of_the_consumer() -> None:
    feed = Counting(3)
    seen: list[int] = []

    async def consume() -> None:
        async for batch in feed:
            seen.extend(one.timestamp for one in batch)

    consumer = asyncio.create_task(consume())
    await until(lambda: len(seen) == 3)
    await feed.aclose()
    await consumer
    assert feed.released == 1


async def test_what_was_read_before_closing_is_still_handed_out() -> None:
    feed = Counting(5)
    first = await take(feed, 1)
    await until(lambda: feed.delivered == 5)
    await feed.aclose()
    rest = [one.timestamp - 1_000_000_000 async for batch in _rest(feed) for one in batch]
    assert first + rest == list(range(5))


async def _rest(feed: BackgroundFeed):  # type: ignore[no-untyped-def]
    while True:
        try:
            yield await anext(feed)
        except StopAsyncIteration:
            return


async def test_a_failure_reaches_the_consumer() -> None:
    feed = Counting(2, error=RuntimeError("a defect"))
    assert await take(feed, 2) == [0, 1]
    with pytest.raises(RuntimeError, match="a defect"):
        await anext(feed)
    await feed.aclose()


async def test_a_closed_feed_stays_closed() -> None:
    feed = Counting(2)
    await feed.aclose()
    assert [batch async for batch in feed] == []
    assert (feed.running, feed.released) == (False, 0)


async def test_leaving_by_cancellation_closes_too() -> None:
    feed = Counting(0)

    async def consume() -> None:
        async with aclosing(feed) as batches:
            async for _ in batches:
                pass

    consumer = asyncio.create_task(consume())
    await until(lambda: feed.running)
    consumer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await consumer
    assert (feed.released, feed.running) == (1, False)
    assert asyncio.all_tasks() == {asyncio.current_task()}
