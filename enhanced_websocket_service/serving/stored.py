"""The stream from further back than memory reaches: read from the store for clients that are behind.

Invariants. (1) The hub is never waited for and never waits: a ``Fetch`` is a task beside it that hands
over finished messages in synchronous steps, a slice at a time, and stops while its client reads too
slowly. (2) In the step in which memory has the rest, the hub takes over: no hole, no double, no
reorder. (3) Whatever fails, the client goes on with what memory has, and is told what it did not get.
(4) The store is asked by few at a time, however many clients come back at once: pages begin at fixed
places, are shared while they are read and kept while they are recent.
"""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import structlog

from enhanced_websocket_service.errors import EwsError
from enhanced_websocket_service.storage.stream_store import Key, StoredStretch
from enhanced_websocket_service.telemetry import Rarely

from . import wire
from .catchup import announce, behind_given, from_store
from .client import Client
from .history import BAR, History, Position, Skip
from .weave import Stored, weave

if TYPE_CHECKING:
    from .hub import Hub

log = structlog.get_logger(__name__)

PAGE: Final = 500
_SLICE: Final = 64  # messages encoded or handed over before others get their turn
_FRESH_S: Final = 0.25  # real seconds for which the end of the stream may be shared
_WRITER_S: Final = 5.0  # real seconds to wait until what was published is stored
_ASK_AGAIN: Final = 3
LONG_GAP_S: Final = 1800.0
_LONG_GAP_TAKES_S: Final = 1.0


class StreamSource(Protocol):
    """The part of ``views.ServiceView`` that this module needs."""

    async def stream(self, symbol: str, after: Key, limit: int) -> StoredStretch: ...

    async def stream_start(self, symbol: str, instant: float) -> Key | None: ...

    async def stored(self, timeout_s: float) -> bool: ...


@dataclass(frozen=True, slots=True)
class Replay:
    """Time travel: from the first tick stamped at ``start`` (unix seconds UTC) on.

    ``speed``: times real pace; ``None``: as fast as the client takes it.
    """

    start: float
    speed: float | None


class Page(NamedTuple):
    """Messages behind a place. ``whole``: there is more behind them."""

    messages: list[Stored]
    whole: bool
    asked_at: float  # the loop's time


class StoredStream:
    """Pages of the stored stream, shared by all clients that read it.

    :param reads: pages read at the same time.
    :param kept: pages kept in memory.
    """

    def __init__(self, source: StreamSource, *, reads: int = 4, kept: int = 64) -> None:
        self.source = source
        self.fetching: set[asyncio.Task[None]] = set()
        """The tasks of clients that read; one that was cancelled stays until it is over."""
        self._reads = asyncio.Semaphore(reads)
        self._kept = kept
        self._pages: OrderedDict[tuple[str, Key, bool], Page] = OrderedDict()
        self._loading: dict[tuple[str, Key, bool], asyncio.Task[Page]] = {}
        self._told = Rarely()

    def tell(self, symbol: str, error: EwsError) -> None:
        """Log it, once a minute: all that come back meanwhile, as often as they do, find the same."""
        if times := self._told.due(asyncio.get_running_loop().time()):
            reason = str(error)
            log.warning(
                "The stored stream cannot be read", symbol=symbol, reason=reason, times=times
            )

    async def page(
        self, symbol: str, place: Key, *, replayed: bool = False, asked_at: float | None = None
    ) -> Page:
        """The page that has what follows ``place``, and perhaps something before it.

        :param asked_at: the loop's time at which it must not yet have been asked for; without it a
            recent one will do.
        :raises StorageError: the store cannot be asked.
        """
        epoch, offset = place
        key = (symbol, (epoch, offset - offset % PAGE), replayed)
        loop = asyncio.get_running_loop()
        not_before = loop.time() - _FRESH_S if asked_at is None else asked_at
        while True:
            page = self._pages.get(key)
            if page is not None and (page.whole or page.asked_at >= not_before):
                self._pages.move_to_end(key)
                return page
            loading = self._loading.get(key)
            if loading is None or loading.done():  # done: only its callback is still to come
                loading = loop.create_task(self._load(*key), name=f"stored page {key}")
                self._loading[key] = loading
                loading.add_done_callback(partial(self._loaded, key))
            page = await asyncio.shield(loading)
            if page.whole or page.asked_at >= not_before:
                return page

    async def _load(self, symbol: str, after: Key, replayed: bool) -> Page:
        async with self._reads:
            asked_at = asyncio.get_running_loop().time()
            rows = await self.source.stream(symbol, after, PAGE)
        messages: list[Stored] = []
        for message in weave(symbol, after, rows, replayed=replayed):
            messages.append(message)
            if len(messages) % _SLICE == 0:
                await asyncio.sleep(0)
        return Page(messages, rows.whole, asked_at)

    def _loaded(self, key: tuple[str, Key, bool], task: asyncio.Task[Page]) -> None:
        if self._loading.get(key) is task:
            del self._loading[key]
        # Asked for its error here, too: everyone who waited may have left meanwhile.
        if task.cancelled() or task.exception() is not None:
            return
        self._pages[key] = task.result()
        self._pages.move_to_end(key)
        while len(self._pages) > self._kept:
            self._pages.popitem(last=False)


class Fetch:
    """One client reading one symbol's stored stream until memory has the rest."""

    def __init__(
        self,
        hub: "Hub",
        stream: StoredStream,
        client: Client,
        history: History,
        symbol: str,
        replay: Replay | None = None,
    ) -> None:
        self.client = client
        self._history = history
        self.symbol = symbol
        self._given: set[bytes] = set()  # the bars given behind the client's present position
        self._hub = hub
        self._stream = stream
        self._replay = replay
        self._room = asyncio.Event()  # set: the client reads again
        self._pace = None if replay is None or replay.speed is None else _Pace(replay.speed)
        self.task = asyncio.get_running_loop().create_task(
            self._run(), name=f"stored stream for client {client.number}"
        )
        stream.fetching.add(self.task)
        self.task.add_done_callback(stream.fetching.discard)

    def go_on(self) -> None:
        """The client's outlet has room again."""
        self._room.set()

    async def _run(self) -> None:
        try:
            if self._replay is None or await self._travel(self._replay.start):
                await self._read()
        except EwsError as error:
            self._stream.tell(self.symbol, error)
            if self._replay is not None:
                message = "The stored stream cannot be read now; try again later."
                error_message = wire.error("unavailable", message)
                self._hub.close(self.client, 1013, "see the error", error_message)
                return
        except Exception:  # a fault of ours must not leave the client waiting for ever
            log.exception("Reading the stored stream failed", symbol=self.symbol)
        self._end()

    def _end(self) -> None:
        """Leave the rest to memory; what it does not have is gone, and is named."""
        client, symbol = self.client, self.symbol
        if client.fetches.get(symbol) is not self:
            return
        position, gone = self._locate()
        position = behind_given(self._history, position, self._given)
        stretch = announce(symbol, client.interest, position, gone)
        self._hub.hand_stored(self, stretch, last=True)

    def _locate(self) -> tuple[Position, list[Skip]]:
        """Where memory would go on, and what neither it nor the client has."""
        return self._history.locate(*self._place) or (self._history.end, [])

    async def _travel(self, start: float) -> bool:
        """Go to ``start``; False when nothing since is stored."""
        found = await self._stream.source.stream_start(self.symbol, start)
        if found is not None:
            self.client.behind[self.symbol] = Position(0, found[0], found[1] - 1)
        return found is not None

    async def _read(self) -> None:
        asked_at: float | None = None
        settled, in_vain = False, 0
        while True:
            before = self._place
            page = await self._stream.page(
                self.symbol, before, replayed=self._replay is not None, asked_at=asked_at
            )
            waited, met = await self._hand(page)
            if met:
                return
            if page.whole and self._place > before:
                continue
            asked_at = asyncio.get_running_loop().time()
            if waited:
                continue  # it took its time: more has been stored since
            if self._replay is not None and self._history.holds_from(*self._place):
                return
            in_vain = in_vain + 1 if settled and self._place == before else 0
            # Asked again when memory has moved on meanwhile: the store may have what it let go.
            if in_vain > _ASK_AGAIN or (in_vain and not self._locate()[1]):
                return
            settled = await self._stream.source.stored(_WRITER_S)
            if not settled:
                return
            asked_at = asyncio.get_running_loop().time()

    @property
    def _place(self) -> Key:
        _, epoch, offset = self.client.behind[self.symbol]
        return epoch, offset

    async def _hand(self, page: Page) -> tuple[bool, bool]:
        """Give the client what it lacks of ``page``.

        :returns: whether time was let pass for the pace, and whether memory has the rest.
        """
        waited = False
        await self._hub.turns.mine()
        messages = [one for one in page.messages if self._wanted(one)]
        at = 0
        while at < len(messages):
            stop = min(at + _SLICE, len(messages))
            if self._pace is not None:
                stop, waits = await self._pace.take(messages, at, stop)
                waited = waited or waits
            await self._until_room()
            met = self._give(messages[at:stop])
            at = stop
            if met:
                return waited, True
            await self._hub.turns.mine()
        return waited, False

    def _give(self, messages: list[Stored]) -> bool:
        """Hand over in one step; whether memory has the rest."""
        client, symbol, before = self.client, self.symbol, self._place
        stretch, used, met = from_store(
            symbol,
            self._history,
            client.behind[symbol],
            client.interest,
            messages,
            to_the_end=self._replay is not None,
        )
        place = (stretch.position.epoch, stretch.position.offset)
        if place != before:
            self._given.clear()
        for entry, _, _ in messages[:used]:
            if entry.kind == BAR and (entry.epoch, entry.offset) == place:
                self._given.add(entry.frame)
        self._hub.hand_stored(self, stretch)
        return met

    def _wanted(self, message: Stored) -> bool:
        """Leaves out what lies before the client's place: a page begins where it pleases."""
        entry, at, skip = message
        place, here = (entry.epoch, entry.offset), self._place
        if entry.kind != BAR:
            return place > here or (skip is not None and skip.last is None and place[0] == here[0])
        if self._replay is not None and at is not None and at < self._replay.start:
            return False
        return place >= here and entry.frame not in self._given

    async def _until_room(self) -> None:
        while self.client.congested:
            self._room.clear()
            await self._room.wait()


class _Pace:
    """Lets messages pass at ``speed`` times the pace at which they came."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._last: float | None = None  # when the message before came
        self._due = 0.0  # the loop's time at which it passed

    async def take(self, messages: list[Stored], first: int, stop: int) -> tuple[int, bool]:
        """Wait for ``messages[first]``; how far messages are due then, and whether it was a wait."""
        loop = asyncio.get_running_loop()
        waited = False
        self._due = max(self._due, self._advance(messages[first], loop.time()))
        if (pause := self._due - loop.time()) > 0:
            waited = True
            await asyncio.sleep(pause)
        now = loop.time()
        at = first + 1
        while at < stop:
            last, due = self._last, self._due
            self._due = self._advance(messages[at], now)
            if self._due > now:
                self._last, self._due = last, due
                break
            at += 1
        return at, waited

    def _advance(self, message: Stored, now: float) -> float:
        """When ``message`` is due; the first one at once."""
        if message.at is None:
            return self._due
        last = self._last
        if last is None:
            self._last = message.at
            return now
        self._last = max(last, message.at)  # instants may go back a little where places never do
        gap = self._last - last
        return self._due + (_LONG_GAP_TAKES_S if gap > LONG_GAP_S else gap / self._speed)
