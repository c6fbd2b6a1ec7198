"""One feed for all symbols whose sessions are open: the vendor allows one stream per key.

The feed lives from the first symbol that is to be collected to the last that is not any more, and hears of
every change between. Owns the feed and the task that hands its quotes to the pipeline; does not own when a
symbol is collected, which its lifecycle decides.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import EwsError
from enhanced_websocket_service.feeds.base import Feed

from .pipeline import Pipeline

log = structlog.get_logger(__name__)


class Collector:
    """Collects the symbols it is told to; one at a time begins or ends.

    :param make_feed: a fresh feed; it is told its symbols before it is iterated.
    :param collected_until: by symbol, until when it was collected before; unix seconds UTC.
    """

    def __init__(
        self,
        clock: Clock,
        pipeline: Pipeline,
        make_feed: Callable[[], Feed],
        collected_until: Mapping[str, float],
    ) -> None:
        self.feed: Feed | None = None
        self._clock = clock
        self._pipeline = pipeline
        self._make_feed = make_feed
        self._collected_until = dict(collected_until)
        self._symbols: set[str] = set()
        self._pump: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    def missed(self, symbol: str, until: float) -> None:
        """Nothing was, or will have been, collected of ``symbol`` since it was last, until then."""
        start = self._collected_until.get(symbol, 0.0)
        self._pipeline.interrupted(start, until, symbol, afterwards=False)

    async def collect(self, symbol: str, session: Coroutine[Any, Any, None]) -> None:
        """Collect ``symbol`` until ``session`` returns.

        :raises EwsError: the feed, or the pipeline, failed; so does ``session``.
        """
        timer: asyncio.Task[None] | None = None
        pump: asyncio.Task[None] | None = None
        try:
            pump = await self._begin(symbol)
            timer = asyncio.create_task(session, name=f"session-clock-{symbol}")
            await asyncio.wait({pump, timer}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                raise _why_ended(pump)
            timer.result()
        finally:
            if timer is None:
                session.close()
            else:
                timer.cancel()
                await asyncio.gather(timer, return_exceptions=True)
            if pump is not None:
                await self._end(symbol, pump)

    async def _begin(self, symbol: str) -> asyncio.Task[None]:
        async with self._changing:
            if self._pump is not None and self._pump.done():
                # It failed, and those who were collected have not all noticed yet.
                await self._close()
            self.missed(symbol, self._clock.now())
            self._symbols.add(symbol)
            if self._pump is None:
                feed = self.feed = self._make_feed()
                feed.set_symbols(frozenset(self._symbols))
                self._pump = asyncio.create_task(self._pump_from(feed), name="feed")
            elif self.feed is not None:
                self.feed.set_symbols(frozenset(self._symbols))
            return self._pump

    async def _end(self, symbol: str, pump: asyncio.Task[None]) -> None:
        told = pump.done()
        async with self._changing:
            self._symbols.discard(symbol)
            if self._pump is pump and (told or not self._symbols):
                await self._close(told=told)
            elif self.feed is not None:  # perhaps another one by now, that somebody else has begun
                self.feed.set_symbols(frozenset(self._symbols))
            self._collected_until[symbol] = self._clock.now()
            try:
                self._pipeline.flush_held(symbol)
            except EwsError as error:
                # An error here would replace the cancellation: the task group would take it for a
                # failure, and the session would begin again in the middle of a shutdown.
                log.error("Held quotes could not be journaled", error=str(error))

    async def _close(self, *, told: bool = True) -> None:
        pump, self._pump = self._pump, None
        if pump is None:
            return
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)
        if not told and not pump.cancelled() and (error := pump.exception()) is not None:
            log.error("The last quotes of the feed could not be taken", error=repr(error))
        self.feed = None

    async def _pump_from(self, feed: Feed) -> None:
        batches = feed.__aiter__()
        try:
            async for batch in batches:
                self._pipeline.on_quotes(batch, self._clock.now())
        finally:
            await batches.aclose()
            # What was read from the socket, but not taken when the feed was closed.
            with contextlib.suppress(StopAsyncIteration):
                while True:
                    self._pipeline.on_quotes(await anext(batches), self._clock.now())


def _why_ended(pump: asyncio.Task[None]) -> BaseException:
    """What ended a feed that should not end."""
    if pump.cancelled():
        return EwsError("The feed ended without being asked to.")
    return pump.exception() or EwsError("The feed ended in mid-session.")
