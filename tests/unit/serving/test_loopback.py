"""The client inside gets what clients get, and is in none of their counts."""

from enhanced_websocket_service.market.events import EpochStarted, Probe
from enhanced_websocket_service.serving.hub import Hub
from enhanced_websocket_service.serving.loopback import Loopback

from .fakes import EPOCH, RecordingOutlet, bar_update, make_hub, tick, until


def listening(hub: Hub) -> tuple[Loopback, list[tuple[str, int, int]]]:
    reached: list[tuple[str, int, int]] = []
    loopback = Loopback(lambda *place: reached.append(place))
    hub.listen_inside(loopback.write)
    return loopback, reached


async def test_the_newest_tick_of_each_symbol_comes_without_any_client() -> None:
    hub = make_hub()
    _, reached = listening(hub)
    hub.on_events([EpochStarted("USDCOP", EPOCH, None, None), tick(1), tick(2)])
    hub.on_events([tick(3), bar_update(0, 3)])
    await until(lambda: bool(reached))
    assert reached == [("USDCOP", EPOCH, 3)]
    hub.on_events([tick(4)])
    await until(lambda: len(reached) == 2)
    assert reached[-1] == ("USDCOP", EPOCH, 4)
    counts = hub.counts()
    assert (counts.connected, counts.connections_total, counts.messages_sent_total) == (0, 0, 0)


async def test_a_probe_comes_at_once_and_to_nobody_else() -> None:
    hub = make_hub()
    loopback, reached = listening(hub)
    outlet = RecordingOutlet()
    hub.connect(outlet, hub.symbols)
    written = outlet.writes
    hub.on_events([Probe(7)])
    assert loopback.probe == 7
    assert (outlet.writes, reached) == (written, [])
    hub.on_events([tick(1)])
    assert [message["type"] for message in outlet.messages()] == ["welcome", "market_data"]
