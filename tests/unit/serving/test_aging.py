"""Clients for which something waits too long: found by looking, not by counting messages."""

import asyncio
from typing import Any

from enhanced_websocket_service.serving.aging import AgeWatch
from enhanced_websocket_service.serving.client import Client
from enhanced_websocket_service.serving.hub import Hub

from .fakes import RecordingOutlet, make_hub, tick, until

SOON = 0.02
"""Real seconds; a slow machine only takes longer, it does not decide otherwise."""


def connect(hub: Hub) -> RecordingOutlet:
    outlet = RecordingOutlet()
    hub.connect(outlet, hub.symbols)
    return outlet


def account(outlet: RecordingOutlet) -> list[int]:
    """Every offset that the client got, or was told that it did not."""
    found: list[int] = []
    for message in outlet.messages("market_data", "skipped"):
        if message["type"] == "skipped":
            found += range(message["from"], message["to"] + 1)
        elif not message.get("snapshot"):
            found.append(message["offset"])
    return found


async def test_few_bytes_that_wait_long_make_a_client_slow() -> None:
    hub = make_hub(age_s=SOON)
    slow, quick = connect(hub), connect(hub)
    slow.reading = False
    hub.on_events([tick(1)])
    await until(lambda: hub.counts().slow == 1)
    assert slow.unread < 1000
    hub.on_events([tick(2), tick(3)])
    hub.on_events([tick(4)])
    assert account(slow) == [1]
    slow.drain()  # below every mark all the time: the outlet has nothing to say
    await until(lambda: hub.counts().slow == 0)
    assert account(slow) == [1, 2, 3, 4]
    slow.reading = True
    hub.on_events([tick(5)])
    assert account(slow) == account(quick) == [1, 2, 3, 4, 5]
    assert len(slow.messages("market_data")) == 3
    slowed = hub.metrics.registry.get_sample_value("ews_clients_slowed_total", {"cause": "age"})
    assert slowed == 1


async def test_one_that_never_takes_it_is_closed_with_4008() -> None:
    hub = make_hub(age_s=SOON, stall_s=SOON)
    outlet = connect(hub)
    outlet.reading = False
    hub.on_events([tick(1)])
    await until(lambda: outlet.closed is not None)
    assert outlet.closed == (4008, "reading too slowly")


async def test_progress_saves_a_slow_client_from_being_closed() -> None:
    hub = make_hub(high_water=300, low_water=10, stall_s=SOON)
    outlet = connect(hub)
    outlet.reading = False
    hub.on_events([tick(1), tick(2)])
    assert hub.counts().slow == 1
    (client,) = hub._clients
    for _ in range(3):
        before = client.taken
        outlet.unread -= 1  # a byte between two looks
        await until(lambda before=before: client.taken != before)
    assert outlet.closed is None
    await until(lambda: outlet.closed is not None)


class _Pipe:
    """What an outlet holds back, set by hand."""

    direct = None

    def __init__(self) -> None:
        self.unsent = 0

    def buffered(self) -> int:
        return self.unsent


async def test_always_something_unsent_is_no_fault_while_it_moves() -> None:
    hub: Any = make_hub()
    pipe: Any = _Pipe()
    client = Client(1, hub, pipe, hub.connect(RecordingOutlet(), hub.symbols).interest, 1, 1)
    found: list[Client] = []
    taken: list[Client] = []
    watch = AgeWatch(5.0, lambda: (), found.append, taken.append)
    pipe.unsent, client.written = 900, 1000
    for second in range(100):
        watch._look(client, float(second))
        client.written += 1000  # of which 900 are unsent at every look, but never the same ones
    assert found == []
    for second in range(100, 105):
        watch._look(client, float(second))
    assert found == [], "the last look at which it had moved was at 100"
    watch._look(client, 105.0)
    assert found == [client]
    pipe.unsent = 0
    watch._look(client, 106.0)
    assert taken == [client]


async def test_it_ends_with_the_last_client() -> None:
    hub = make_hub(age_s=SOON)
    outlet = connect(hub)
    assert hub._ages._timer is not None
    hub.close_all()
    assert outlet.closed is not None
    await until(lambda: hub._ages._timer is None)
    connect(hub)
    assert hub._ages._timer is not None
    hub.close_all()
    await asyncio.sleep(0)
