"""Resuming from the store, across restarts: what a client gets is everything, once, in order.

The service is a hub over a journal that a model store follows with a lag; it is restarted at will. What
the store has must be given, not skipped; what it cannot have (it is stuck) may be named instead.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.market.events import EpochStarted, Event
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.serving import stored, wire
from enhanced_websocket_service.serving.client import Client
from enhanced_websocket_service.serving.hub import Hub, Mode
from enhanced_websocket_service.serving.stored import StoredStream

from .fakes import FakeService, RecordingOutlet, bar_update, make_hub, tick, until
from .model_store import ModelStore

Key = tuple[int, int]


@dataclass
class Peer:
    """A client that resumes behind what it has read, whichever hub it finds."""

    mode: Mode
    cursor: Key
    outlet: RecordingOutlet = field(default_factory=RecordingOutlet)
    client: Client | None = None
    seen: int = 0
    account: list[Key] = field(default_factory=list)
    lost: list[Key] = field(default_factory=list)
    bars: list[int] = field(default_factory=list)
    open_ended: set[int] = field(default_factory=set)

    def read(self) -> None:
        messages = self.outlet.messages()
        for message in messages[self.seen :]:
            self.take(message)
        self.seen = len(messages)

    def take(self, message: dict[str, Any]) -> None:
        match message["type"]:
            case "skipped":
                epoch, first, last = message["epoch"], message["from"], message["to"]
                if last is None:
                    self.open_ended.add(epoch)
                    return
                assert first <= last
                keys = [(epoch, n) for n in range(first, last + 1)]
                self.account += keys
                if message["reason"] != "not_published":
                    self.lost += keys
                self.cursor = max(self.cursor, (epoch, last))
            case "market_data":
                key = (message["epoch"], message["offset"])
                if not message.get("snapshot"):
                    self.account.append(key)
                self.cursor = max(self.cursor, key)
            case "epoch":
                assert message["epoch"] >= self.cursor[0]
                self.cursor = max(self.cursor, (message["epoch"], 0))
            case "bar":
                self.bars.append(message["revision"])
                if self.mode == "bars":
                    self.cursor = max(self.cursor, (message["epoch"], message["offset"]))
            case kind:
                assert kind in ("welcome", "status"), message


@dataclass
class World:
    """One symbol's journal, and the hub of the process that writes it now."""

    history: int
    store: ModelStore = field(default_factory=ModelStore)
    epoch: int = 0
    offset: int = 0
    published: Key | None = None
    every: list[Key] = field(default_factory=list)
    bars: list[tuple[Key, int]] = field(default_factory=list)
    hub: Hub = field(init=False)

    def start(self) -> None:
        self.hub = make_hub(
            history=self.history, high_water=2000, low_water=100, stall_s=3600.0, hard=10**9
        )
        self.hub.stored = StoredStream(FakeService(store=self.store), kept=3)
        if self.published is not None:
            self.hub.seed(tick(self.published[1], epoch=self.published[0]))
        previous = self.every[-1] if self.every else (None, None)
        self.epoch, self.offset = self.epoch + 1, 0
        self.journal([EpochStarted("USDCOP", self.epoch, *previous)])

    def journal(self, events: list[Event]) -> None:
        self.store.journal(events)
        for event in events:
            if isinstance(event, Tick) and event.trading_session:
                self.published = (event.epoch, event.offset)
        self.hub.on_events([e for e in events if not isinstance(e, Tick) or e.trading_session])

    def ticks(self, count: int, *, in_session: bool = True) -> None:
        batch: list[Event] = []
        for _ in range(count):
            self.offset += 1
            self.every.append((self.epoch, self.offset))
            batch.append(tick(self.offset, epoch=self.epoch, trading_session=in_session))
        self.journal(batch)

    def bar(self) -> None:
        number = len(self.bars)
        self.bars.append(((self.epoch, self.offset), number))
        self.journal([bar_update(0, self.offset, epoch=self.epoch, revision=number)])


_actions = st.lists(
    st.one_of(
        st.tuples(st.just("ticks"), st.integers(1, 12)),
        st.tuples(st.sampled_from(["outside", "turn"]), st.integers(1, 3)),
        st.tuples(st.sampled_from(["bar", "restart", "lag", "store"]), st.just(0)),
        st.tuples(st.sampled_from(["stall", "read", "leave", "return"]), st.integers(0, 3)),
    ),
    max_size=50,
)


@settings(max_examples=200, derandomize=True)
@given(_actions, st.integers(1, 30), st.integers(2, 7), st.booleans())
def test_resumed_clients_get_everything_once_and_in_order(
    actions: list[tuple[str, int]], history: int, page: int, stuck: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "PAGE", page)
        patch.setattr(stored, "_SLICE", 3)
        asyncio.run(_play(actions, World(history), stuck))


async def _play(actions: list[tuple[str, int]], world: World, stuck: bool) -> None:
    world.start()
    modes: tuple[Mode, ...] = ("every", "every", "bars", "latest")
    peers = [Peer(mode, (1, 0)) for mode in modes]
    slowed = [0] * len(peers)

    def leave(peer: Peer) -> None:
        peer.read()
        if peer.client is not None:
            world.hub.drop(peer.client)
        peer.client = None

    def come(peer: Peer) -> None:
        leave(peer)
        peer.outlet, peer.seen = RecordingOutlet(), 0
        cursor = wire.Resume("USDCOP", *peer.cursor)
        peer.client = world.hub.connect(peer.outlet, ["USDCOP"], peer.mode, [cursor])

    for peer in peers:
        come(peer)
    for action, number in actions:
        peer = peers[number % len(peers)]
        match action:
            case "ticks":
                world.ticks(number)
            case "outside":
                world.ticks(number, in_session=False)
            case "bar":
                world.bar()
            case "lag":
                world.store.lagging = True
            case "store":
                world.store.lagging = False
                world.store.catch_up()
            case "restart":
                for one in peers:
                    leave(one)
                world.start()
                for one in peers:
                    come(one)
            case "stall":
                peer.outlet.reading = False
                slowed[number] = 1
            case "read":
                peer.outlet.reading = True
                peer.outlet.drain()
            case "leave":
                leave(peer)
            case "return":
                come(peer)
            case _:
                for _ in range(number):
                    await asyncio.sleep(0)
    world.store.stuck = stuck
    for peer in peers:
        if peer.client is None:
            come(peer)
        peer.outlet.reading = True

    async def all_live() -> None:
        for peer in peers:
            peer.outlet.drain()
        await until(lambda: all(p.client is not None and p.client.group is not None for p in peers))

    await all_live()
    newest = peers[modes.index("latest")]
    newest.read()
    assert world.published in (None, *newest.account[-1:])
    world.ticks(1)
    await all_live()
    for peer, slow in zip(peers, slowed, strict=True):
        peer.read()
        assert stuck or not peer.open_ended & {epoch for epoch, _ in world.every}
        owed = [number for key, number in world.bars]
        if not stuck and not slow:
            assert set(owed) <= set(peer.bars)
        if peer.mode == "latest":
            assert peer.account == sorted(set(peer.account))
        if peer.mode != "every":
            continue
        # Of an epoch whose end nobody who can be asked knows, and of those nobody knows of at all up to
        # the next known one, only the beginning is accounted for.
        known = {epoch for epoch, _ in peer.account}
        excused: set[int] = set()
        for epoch in peer.open_ended:
            following = min((one for one in known if one > epoch), default=world.epoch + 1)
            excused.update(range(epoch, following))
        assert peer.account == [
            key for key in world.every if key[0] not in excused or key in peer.account
        ]
        if not stuck and not slow:
            assert peer.lost == []
    world.hub.close_all()


async def test_the_store_is_asked_once_for_many_clients_that_come_back() -> None:
    world = World(history=10)
    world.start()
    world.ticks(1200)
    world.bar()
    world.start()
    peers = [Peer("every", (1, 0)) for _ in range(200)]
    for peer in peers:
        cursor = wire.Resume("USDCOP", *peer.cursor)
        peer.client = world.hub.connect(peer.outlet, ["USDCOP"], "every", [cursor])
    await until(lambda: all(p.client is not None and p.client.group is not None for p in peers))
    for peer in peers:
        peer.read()
        assert peer.account == world.every
        assert peer.bars == [0]
    assert world.store.reads <= 8
    world.hub.close_all()


async def test_a_store_that_cannot_be_asked_is_told_as_skipped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    world = World(history=10)
    service = FakeService(store=world.store, database_down=True)
    world.start()
    world.ticks(30)
    world.start()
    world.hub.stored = StoredStream(service)
    peers = [Peer("every", (1, 4)) for _ in range(3)]
    for peer in peers:
        cursor = wire.Resume("USDCOP", *peer.cursor)
        peer.client = world.hub.connect(peer.outlet, ["USDCOP"], "every", [cursor])
    world.ticks(2)
    await until(lambda: all(p.client is not None and p.client.group is not None for p in peers))
    for peer in peers:
        peer.read()
        assert peer.account == world.every[4:]
        assert peer.lost == [(1, n) for n in range(5, 30)], "the last tick was seeded"
    world.hub.close_all()
    assert capsys.readouterr().out.count("cannot be read") == 1, "not a line for each of them"
