"""What every feed is: batches of quotes for one session, and a status that can be asked at any time.

``BackgroundFeed`` is the one buffer between sources and consumer: a task of its own runs the sources, which
put quotes into it synchronously; the consumer takes all there is. When the consumer is slow the buffer
fills and the sources stop reading, so that the vendor's socket is paused instead of memory growing.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from typing import Protocol, Self

import msgspec
import structlog

from enhanced_websocket_service.market.liveness.status import SymbolVerdict
from enhanced_websocket_service.market.liveness.status import Verdict as Verdict
from enhanced_websocket_service.market.tick import Quote

log = structlog.get_logger(__name__)

BATCH_LIMIT = 20_000
"""Quotes waiting for the consumer before the feed stops reading: some seconds of the worst burst."""

CANCEL_AGAIN_REAL_S = 5.0
"""Longer than a feed needs to say goodbye to the vendor."""


class FeedStatus(msgspec.Struct, frozen=True):
    """What a feed says of itself; instants in unix seconds UTC."""

    source: str  # the source name of the quotes it delivers now
    websocket_connected: bool
    verdict: Verdict
    detail: str  # the verdict's evidence, one sentence
    reconnects: int
    last_error: str | None
    last_quote_at: float | None  # receipt of the last quote, or of the last unchanged poll
    subscribed: tuple[str, ...]
    refused: tuple[str, ...]  # symbols the vendor does not stream to us
    verdicts: tuple[SymbolVerdict, ...] = ()  # on the stream of each symbol, where there is one
    sources: Mapping[str, str] = {}  # by symbol, the source name of its quotes now
    condemned: Mapping[str, str] = {}  # symbols that REST brings because the stream failed, and why

    def dead(self, symbols: Iterable[str]) -> dict[str, str]:
        """Those of ``symbols`` that nothing brings prices of, neither stream nor REST, and the evidence."""
        if self.verdict != "dead":
            return {}
        alive = {one.symbol for one in self.verdicts if one.verdict != "dead"}
        return {symbol: self.detail for symbol in symbols if symbol not in alive}

    def on_fallback(self) -> dict[str, str]:
        """The symbols whose stream is dead and whose prices REST brings, and what condemned the stream.

        A new connection is not the end of it: only a price that proves the stream is.
        """
        if self.verdict == "dead":
            return {}
        dead = {
            one.symbol: one.evidence
            for one in self.verdicts
            if one.verdict == "dead" and self.sources.get(one.symbol) is not None
        }
        found = {**self.condemned, **dead}
        return {symbol: why for symbol, why in found.items() if symbol not in self.refused}


class FeedGap(msgspec.Struct, frozen=True):
    """Prices of ``symbol`` that the stream did not bring: the vendor's bars must repair them.

    From the last price that proved the stream, or from when its collection began, to the hand-back; unix
    seconds UTC.
    """

    symbol: str
    start: float
    end: float
    cause: str  # connecting, disconnected, silent, refused, unentitled, leased


class KeyLeases(Protocol):
    """One process per API key streams: the vendor closes the older socket of two."""

    async def acquire(self, fingerprint: str) -> bool:
        """Take the lease; ``False``: another process streams with this key.

        A store that cannot be reached answers ``True``: availability first.
        """
        ...

    async def lost(self, fingerprint: str) -> None:
        """Return once another process has taken a lease we held."""
        ...

    async def release(self, fingerprint: str) -> None:
        """Give the lease back; nothing when we do not hold it."""
        ...


class Batches(Protocol):
    """An iterator over non-empty batches that must be closed, e.g. by ``contextlib.aclosing``."""

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> list[Quote]: ...

    async def aclose(self) -> None:
        """Stop: no task and no socket is left when this returns."""
        ...


class Feed(Protocol):
    """Quotes in the order of their arrival, for ever, until closed. One consumer at a time."""

    def __aiter__(self) -> Batches: ...

    def set_symbols(self, symbols: Collection[str]) -> None:
        """Collect exactly these from now on."""
        ...

    def status(self) -> FeedStatus:
        """A snapshot; cheap, never blocks."""
        ...

    async def aclose(self) -> None:
        """Stop: no task and no socket is left when this returns."""
        ...


class Intake(Protocol):
    """Where a source puts quotes, and how it learns that the consumer is behind."""

    @property
    def held_up(self) -> bool:
        """Whether a source waits for the consumer: what it does not read meanwhile is no silence."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the consumer has closed the feed."""
        ...

    async def room(self) -> None:
        """Return once the consumer is not too far behind; a source calls it before it reads on."""
        ...

    async def taken(self) -> None:
        """Return once the consumer has taken everything."""
        ...


class BackgroundFeed(ABC):
    """A feed whose ``_run`` puts quotes from a task of its own.

    The task starts with the first ``__anext__`` and ends with ``aclose``. Cancelling the consumer
    loses nothing: the next ``__anext__`` continues. After ``aclose`` what was already read is still
    handed out, then the iteration ends for good: make a new feed for each session. A failure of
    ``_run`` is raised to the consumer.
    """

    def __init__(self, name: str, batch_limit: int = BATCH_LIMIT) -> None:
        self._name = name
        self._batch_limit = batch_limit
        self._batch: list[Quote] = []
        self._changed = asyncio.Event()  # for the consumer: quotes, or the end
        self._space = asyncio.Event()  # for the sources
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._held_up = 0  # sources that wait for the consumer

    @abstractmethod
    async def _run(self) -> None:
        """Put quotes until cancelled; release everything on the way out."""

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def closed(self) -> bool:
        return self._closed

    @property
    def held_up(self) -> bool:
        return self._held_up > 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Quote]:
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._run(), name=self._name)
            self._task.add_done_callback(lambda _: self._changed.set())
        while not self._batch:
            if self._task is None:
                raise StopAsyncIteration
            if self._task.done():
                self._task.result()  # raises what made it fail
                raise StopAsyncIteration
            self._changed.clear()
            await self._changed.wait()
        batch, self._batch = self._batch, []
        self._space.set()
        return batch

    async def aclose(self) -> None:
        self._closed = True
        task, self._task = self._task, None
        if task is None:
            return
        interrupted: asyncio.CancelledError | None = None
        while not task.done():
            # Again and again: a task group of 3.11 that fails in the same moment swallows it.
            task.cancel()
            try:
                await asyncio.wait({task}, timeout=CANCEL_AGAIN_REAL_S)
            except asyncio.CancelledError as cancelled:
                interrupted = cancelled  # by whoever closes us: all the more must nothing be left
        self._changed.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("Feed failed before it was closed", feed=self._name, error=repr(error))
        if interrupted is not None:
            raise interrupted

    def put(self, quote: Quote) -> None:
        """Hand a quote to the consumer. Never waits: a source asks for ``room`` before it reads on."""
        self._batch.append(quote)
        self._changed.set()

    async def room(self) -> None:
        if len(self._batch) < self._batch_limit:
            return
        self._held_up += 1
        try:
            while len(self._batch) >= self._batch_limit:
                self._space.clear()
                await self._space.wait()
        finally:
            self._held_up -= 1

    async def taken(self) -> None:
        while self._batch:
            self._space.clear()
            await self._space.wait()
