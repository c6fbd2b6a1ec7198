"""Whatever clients and the network do: what a client got plus what it was told it missed is everything."""

import asyncio
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.market.events import EpochStarted, Event
from enhanced_websocket_service.serving import wire
from enhanced_websocket_service.serving.client import Client

from .fakes import RecordingOutlet, bar_update, make_hub, tick

Key = tuple[int, int]


@dataclass
class Peer:
    """A client that reconnects with the cursor of the last message it has read."""

    cursor: Key | None = None
    outlet: RecordingOutlet = field(default_factory=RecordingOutlet)
    client: Client | None = None
    seen: int = 0
    account: list[Key] = field(default_factory=list)
    started_at: Key = (1, 0)

    def read(self) -> None:
        """Take note of everything written so far, in order."""
        messages = self.outlet.messages()
        for message in messages[self.seen :]:
            if message["type"] == "skipped":
                first, last = message["from"], message["to"]
                assert last is not None, "every epoch is known in this test"
                self.account += [(message["epoch"], n) for n in range(first, last + 1)]
                self.cursor = (message["epoch"], last)
            elif message["type"] == "market_data":
                key = (message["epoch"], message["offset"])
                if message.get("snapshot"):
                    self.started_at = key
                else:
                    self.account.append(key)
                self.cursor = key
            elif message["type"] == "epoch":
                self.cursor = (message["epoch"], 0)
        self.seen = len(messages)


_actions = st.lists(
    st.one_of(
        st.tuples(st.just("ticks"), st.integers(1, 12)),
        st.tuples(st.just("gap"), st.integers(1, 3)),
        st.tuples(st.just("bar"), st.just(0)),
        st.tuples(st.just("epoch"), st.just(0)),
        st.tuples(
            st.sampled_from(["stall", "read", "drain", "reconnect", "turn"]), st.integers(0, 2)
        ),
    ),
    max_size=60,
)


@settings(max_examples=500, derandomize=True)
@given(_actions, st.integers(1, 40), st.integers(200, 4000))
def test_nothing_is_missed_silently(
    actions: list[tuple[str, int]], history: int, high_water: int
) -> None:
    asyncio.run(_play(actions, history, high_water))


async def _play(actions: list[tuple[str, int]], history: int, high_water: int) -> None:
    hub = make_hub(
        history=history, high_water=high_water, low_water=100, stall_s=3600.0, hard=10**9
    )
    epoch, offset = 1, 0
    every: list[Key] = []
    hub.on_events([EpochStarted("USDCOP", epoch, None, None)])
    peers = [Peer() for _ in range(3)]

    def connect(peer: Peer) -> None:
        since = [wire.Resume("USDCOP", *peer.cursor)] if peer.cursor else []
        peer.outlet, peer.seen = RecordingOutlet(), 0
        peer.client = hub.connect(peer.outlet, ["USDCOP"], since=since)

    for peer in peers:
        connect(peer)
    for action, number in actions:
        batch: list[Event] = []
        peer = peers[number % len(peers)]
        if action == "ticks":
            for _ in range(number):
                offset += 1
                every.append((epoch, offset))
                batch.append(tick(offset, epoch=epoch))
        elif action == "gap":
            every += [(epoch, offset + n) for n in range(1, number + 2)]
            offset += number + 1
            batch.append(tick(offset, epoch=epoch))
        elif action == "bar":
            batch.append(bar_update(0, offset, epoch=epoch))
        elif action == "epoch":
            batch.append(EpochStarted("USDCOP", epoch + 1, epoch, offset))
            epoch, offset = epoch + 1, 0
        elif action == "stall":
            peer.outlet.reading = False
        elif action == "read":
            peer.outlet.reading = True
            peer.outlet.drain()
        elif action == "drain":
            peer.outlet.drain()
        elif action == "reconnect":
            peer.read()
            assert peer.client is not None
            hub.drop(peer.client)
            connect(peer)
        else:
            await asyncio.sleep(0)
        hub.on_events(batch)
    for peer in peers:
        assert peer.client is not None
        while peer.client.group is None:
            peer.outlet.drain()
            await asyncio.sleep(0)
        peer.read()
        assert peer.account == [key for key in every if key > peer.started_at]
    hub.close_all()
