"""The hub with peers that read only when told. Every message is checked as the client gets it."""

import asyncio
from typing import Any

import pytest

from enhanced_websocket_service.market.events import EpochStarted, StatusChanged
from enhanced_websocket_service.serving import wire
from enhanced_websocket_service.serving.hub import Hub

from .fakes import EPOCH, NOON, RecordingOutlet, bar_update, make_hub, tick, until

STATUS = StatusChanged(state="ready", reason="soon", feed_verdict="closed", at=NOON)


def offsets(outlet: RecordingOutlet) -> list[int]:
    return [m["offset"] for m in outlet.messages("market_data") if "snapshot" not in m]


def ranges(outlet: RecordingOutlet) -> list[tuple[int, int, str]]:
    return [(m["from"], m["to"], m["reason"]) for m in outlet.messages("skipped")]


def connect(hub: Hub, *args: Any, **kwargs: Any) -> RecordingOutlet:
    outlet = RecordingOutlet()
    outlet.client = hub.connect(outlet, *(args or (hub.symbols,)), **kwargs)  # type: ignore[attr-defined]
    return outlet


def client_of(outlet: RecordingOutlet) -> Any:
    return outlet.client  # type: ignore[attr-defined]


async def test_welcome_then_the_last_known_price_then_live() -> None:
    hub = make_hub()
    hub.on_events([EpochStarted("USDCOP", EPOCH, None, None), tick(1), tick(2)])
    outlet = connect(hub)
    hub.on_events([tick(3)])
    welcome, snapshot, live = outlet.messages()
    assert welcome["symbols"] == ["USDCOP"]
    assert (welcome["epoch"], welcome["offsets"]) == (EPOCH, {"USDCOP": 2})
    assert welcome["server_status"] == "active"
    assert (snapshot["type"], snapshot["offset"], snapshot["snapshot"]) == ("market_data", 2, True)
    assert (live["offset"], "snapshot" in live) == (3, False)


async def test_clients_of_one_interest_get_the_same_bytes_in_one_write() -> None:
    hub = make_hub()
    first, second = connect(hub), connect(hub)
    before = first.writes
    hub.on_events([tick(1), tick(2), bar_update(0, 2)])
    assert first.writes == before + 1
    assert first.frames[-1] is second.frames[-1], "encoded once, joined once"
    assert [m["type"] for m in first.messages()[-3:]] == ["market_data", "market_data", "bar"]


async def test_modes() -> None:
    hub = make_hub()
    every, latest, bars = (connect(hub, mode=m) for m in ("every", "latest", "bars"))
    hub.on_events([tick(1), tick(2), bar_update(0, 2), tick(3), STATUS])
    assert offsets(every) == [1, 2, 3]
    assert offsets(latest) == [3], "of a batch only the newest"
    assert offsets(bars) == []
    for outlet in (every, latest, bars):
        assert len(outlet.messages("bar")) == len(outlet.messages("status")) == 1


async def test_symbols_and_channels() -> None:
    hub = make_hub(("USDCOP", "EURUSD"))
    one, both = connect(hub, ["USDCOP"]), connect(hub)
    hub.on_events([tick(1), tick(1, symbol="EURUSD"), tick(1, symbol="GBPUSD")])
    assert [m["symbol"] for m in one.messages("market_data")] == ["USDCOP"]
    assert [m["symbol"] for m in both.messages("market_data")] == ["USDCOP", "EURUSD"]
    hub.on_message(client_of(one), '{"type":"subscribe","symbols":["eur/usd"]}')
    assert one.messages("market_data")[-1]["snapshot"] is True
    hub.on_message(client_of(one), '{"type":"unsubscribe","symbols":["USDCOP"]}')
    hub.on_message(client_of(both), '{"type":"unsubscribe","channels":["ticks"]}')
    one.clear()
    both.clear()
    hub.on_events(
        [tick(2), tick(2, symbol="EURUSD"), bar_update(0, 2), bar_update(0, 2, symbol="EURUSD")]
    )
    assert [m["symbol"] for m in one.messages()] == ["EURUSD", "EURUSD"]
    assert [m["type"] for m in both.messages()] == ["bar", "bar"]


async def test_unknown_symbols_in_a_request_are_named_and_the_client_lives() -> None:
    hub = make_hub()
    outlet = connect(hub)
    hub.on_message(client_of(outlet), '{"type":"subscribe","symbols":["XXX","usdcop","AAA"]}')
    hub.on_message(client_of(outlet), '{"type":"resume","symbol":"XXX","epoch":1,"offset":1}')
    hub.on_message(client_of(outlet), "not json")
    hub.on_message(client_of(outlet), '{"type":"dance"}')
    assert [m["code"] for m in outlet.messages("error")] == [
        "unknown_symbol",
        "unknown_symbol",
        "bad_json",
        "unknown_type",
    ]
    assert "'AAA, XXX'" in outlet.messages("error")[0]["message"], "one answer names them all"
    hub.on_message(client_of(outlet), '{"type":"heartbeat"}')
    assert outlet.messages()[-1]["type"] == "heartbeat_response"
    assert outlet.messages()[-1]["server_status"] == "active"
    hub.on_events([tick(1)])
    assert offsets(outlet) == [1]


async def test_repeated_ticks_are_dropped_and_jumps_are_told() -> None:
    hub = make_hub()
    outlet = connect(hub)
    hub.on_events([tick(1), tick(1), tick(2), tick(1), tick(5)])
    assert offsets(outlet) == [1, 2, 5]
    assert ranges(outlet) == [(3, 4, "not_published")]


async def test_a_new_epoch_is_announced_once() -> None:
    hub = make_hub()
    outlet = connect(hub)
    hub.on_events([tick(1), tick(2)])
    hub.on_events([EpochStarted("USDCOP", EPOCH + 1, EPOCH, 2), tick(1, epoch=EPOCH + 1)])
    hub.on_events([tick(1, epoch=EPOCH + 5)])  # without announcement: the hub makes it itself
    assert [
        (m["epoch"], m["previous_epoch"], m["previous_last_offset"])
        for m in outlet.messages("epoch")
    ] == [(EPOCH + 1, EPOCH, 2), (EPOCH + 5, EPOCH + 1, 1)]
    assert offsets(outlet) == [1, 2, 1, 1]


async def test_what_was_not_published_is_told_before_a_bar_and_before_an_epoch() -> None:
    """A bar's offset is a cursor, and an epoch says where the one before it ended."""
    hub = make_hub()
    outlet = connect(hub)
    hub.on_events([tick(1), bar_update(0, 3)])
    assert ranges(outlet) == [(2, 3, "not_published")]
    hub.on_events([EpochStarted("USDCOP", EPOCH + 1, EPOCH, 5), tick(1, epoch=EPOCH + 1)])
    assert ranges(outlet) == [(2, 3, "not_published"), (4, 5, "not_published")]
    kinds = [m["type"] for m in outlet.messages() if m["type"] != "welcome"]
    assert kinds == ["market_data", "skipped", "bar", "skipped", "epoch", "market_data"]
    again = connect(hub, since=[wire.Resume("USDCOP", EPOCH, 3)])
    assert not again.messages("error"), "the place of a bar is a cursor"


async def test_an_epoch_without_ticks_is_not_an_unknown_one() -> None:
    hub = make_hub()
    hub.seed(tick(7))
    hub.on_events([EpochStarted("USDCOP", EPOCH + 2, EPOCH, 7)])
    outlet = connect(hub, since=[wire.Resume("USDCOP", EPOCH + 1, 0)])
    assert ranges(outlet) == []
    stranger = connect(hub, since=[wire.Resume("USDCOP", EPOCH + 1, 4)])
    assert ranges(stranger) == [(5, None, "epoch_unknown")]


# --- slow clients ----------------------------------------------------------------------------


async def test_a_slow_client_is_moved_to_latest_and_back_with_exact_ranges() -> None:
    hub = make_hub(high_water=1000, low_water=100)
    slow, quick = connect(hub), connect(hub)
    slow.reading = False
    for offset in range(1, 21):
        hub.on_events([tick(offset)])
    got = offsets(slow)
    assert slow.paused
    assert len(got) < 20
    hub.on_events([bar_update(0, 20), STATUS])
    for offset in range(21, 31):
        hub.on_events([tick(offset)])
    assert offsets(slow) == got, "nothing is written to a congested client"
    assert hub.counts().slow == 1
    slow.reading = True
    slow.drain()
    tail = slow.messages()[-5:]
    assert [m["type"] for m in tail] == ["skipped", "bar", "skipped", "market_data", "status"]
    assert ranges(slow) == [(got[-1] + 1, 20, "slow_client"), (21, 29, "slow_client")]
    assert tail[3]["offset"] == 30
    hub.on_events([tick(31)])
    assert offsets(slow)[-2:] == [30, 31]
    assert offsets(quick) == list(range(1, 32)), "the others noticed nothing"
    assert hub.counts().slow == 0


async def test_a_slow_client_learns_of_an_epoch_it_slept_through() -> None:
    hub = make_hub(high_water=300, low_water=100)
    outlet = connect(hub)
    outlet.reading = False
    hub.on_events([tick(1)])
    hub.on_events([tick(2)])
    assert outlet.paused
    hub.on_events([tick(3), EpochStarted("USDCOP", EPOCH + 1, EPOCH, 3)])
    hub.on_events([tick(n, epoch=EPOCH + 1) for n in (1, 2, 3)])
    outlet.clear()
    outlet.drain()
    told = [(m["type"], m["epoch"], m.get("from"), m.get("to")) for m in outlet.messages()]
    assert told == [
        ("skipped", EPOCH, 3, 3),
        ("epoch", EPOCH + 1, None, None),
        ("skipped", EPOCH + 1, 1, 2),
        ("market_data", EPOCH + 1, None, None),
    ]


async def test_a_client_that_chose_latest_gets_no_skipped() -> None:
    hub = make_hub(high_water=300, low_water=100)
    outlet = connect(hub, mode="latest")
    outlet.reading = False
    for offset in range(1, 12):
        hub.on_events([tick(offset)])
    hub.on_events([tick(20)])
    outlet.drain()
    assert outlet.messages("skipped") == []
    assert offsets(outlet)[-1] == 20


async def test_a_stalled_client_is_closed_with_4008() -> None:
    hub = make_hub(high_water=300, low_water=100, stall_s=0.0)
    outlet = connect(hub)
    outlet.reading = False
    hub.on_events([tick(1)])
    hub.on_events([tick(2)])
    await until(lambda: outlet.closed is not None)
    assert outlet.closed == (4008, "reading too slowly")
    hub.on_events([tick(3)])
    assert hub.counts().connected == 0
    assert hub.counts().closed_slow_total == 1


async def test_the_log_hears_of_many_stalled_clients_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub = make_hub(high_water=300, low_water=100, stall_s=0.0)
    outlets = [connect(hub) for _ in range(20)]
    for outlet in outlets:
        outlet.reading = False
    hub.on_events([tick(1)])
    hub.on_events([tick(2)])
    await until(lambda: hub.counts().closed_slow_total == 20)
    assert capsys.readouterr().out.count("reads too slowly") == 1


async def test_a_client_that_asks_without_reading_is_closed_with_4008() -> None:
    hub = make_hub(high_water=300, low_water=100, hard=2000, message_burst=1000)
    outlet = connect(hub)
    outlet.reading = False
    for _ in range(100):
        hub.on_message(client_of(outlet), '{"type":"heartbeat"}')
    assert outlet.closed == (4008, "reading too slowly")
    assert outlet.unread < 3000


async def test_a_flood_is_closed_with_1008() -> None:
    hub = make_hub(message_burst=5, messages_per_s=0.001)
    outlet = connect(hub)
    for _ in range(6):
        hub.on_message(client_of(outlet), "{}")
    assert outlet.closed == (1008, "too many messages")
    assert len(outlet.messages("error")) == 5
    hub.on_message(client_of(outlet), "{}")


async def test_a_broken_transport_costs_the_others_nothing() -> None:
    hub = make_hub()
    first, broken, last = connect(hub), connect(hub), connect(hub)
    broken.broken = True
    hub.on_events([tick(1)])
    hub.on_events([tick(2)])
    assert offsets(first) == offsets(last) == [1, 2]
    assert hub.counts().connected == 2
    hub.drop(client_of(broken))


async def test_goodbye_to_everyone() -> None:
    hub = make_hub()
    outlets = [connect(hub) for _ in range(3)]
    hub.close_all()
    assert {o.closed for o in outlets} == {(1012, "the service is restarting")}
    hub.on_events([tick(1)])
    assert hub.counts().connected == 0


# --- resume ------------------------------------------------------------------------------------


def since(offset: int, epoch: int = EPOCH) -> list[wire.Resume]:
    return [wire.Resume("USDCOP", epoch, offset)]


async def test_resume_joins_live_without_hole_or_double() -> None:
    hub = make_hub()
    hub.on_events([tick(n) for n in range(1, 11)] + [bar_update(0, 10)])
    outlet = connect(hub, since=since(4))
    hub.on_events([tick(11)])
    assert offsets(outlet) == list(range(5, 12))
    assert outlet.messages("skipped") == []
    assert [m["type"] for m in outlet.messages()][-2:] == ["bar", "market_data"]
    assert not any("snapshot" in m for m in outlet.messages())


async def test_a_bar_published_at_the_cursor_is_given_again() -> None:
    hub = make_hub()
    hub.on_events([tick(1), bar_update(0, 1), tick(2), bar_update(1, 2)])
    outlet = connect(hub, since=since(1))
    assert [m["type"] for m in outlet.messages()] == ["welcome", "bar", "market_data", "bar"]


async def test_a_long_replay_lets_live_ticks_and_other_clients_through() -> None:
    hub = make_hub()
    hub.on_events([tick(n) for n in range(1, 2001)])
    outlet = connect(hub, since=since(0))
    assert 0 < len(offsets(outlet)) < 2000, "one stretch, then the others' turn"
    quick = connect(hub)
    hub.on_events([tick(2001)])
    assert offsets(quick) == [2001]
    await until(lambda: len(offsets(outlet)) == 2001)
    hub.on_events([tick(2002)])
    assert offsets(outlet) == list(range(1, 2003))


async def test_a_slow_client_gets_its_whole_replay_in_stretches() -> None:
    hub = make_hub(high_water=20_000, low_water=1000)
    hub.on_events([tick(n) for n in range(1, 3001)])
    outlet = RecordingOutlet()
    outlet.reading = False
    client = hub.connect(outlet, ["USDCOP"], since=since(0))
    hub.on_events([tick(3001)])
    while client.group is None:
        outlet.drain()
        await asyncio.sleep(0)
    assert offsets(outlet) == list(range(1, 3002))
    assert outlet.messages("skipped") == []


async def test_what_the_history_lost_during_a_replay_is_named() -> None:
    hub = make_hub(history=600)
    hub.on_events([tick(n) for n in range(1, 601)])
    outlet = connect(hub, since=since(0))
    got = len(offsets(outlet))
    hub.on_events([tick(n) for n in range(601, 1201)])
    await until(lambda: offsets(outlet)[-1] == 1200)
    assert ranges(outlet) == [(got + 1, 600, "no_longer_held")]
    assert offsets(outlet) == [*range(1, got + 1), *range(601, 1201)]


async def test_resume_across_a_restart_is_honest() -> None:
    hub = make_hub()
    hub.on_events([EpochStarted("USDCOP", EPOCH + 1, EPOCH, 9)])
    hub.on_events([tick(1, epoch=EPOCH + 1)])
    outlet = connect(hub, since=since(4))
    assert [(m["type"], m.get("from"), m.get("to")) for m in outlet.messages()[1:]] == [
        ("skipped", 5, 9),
        ("epoch", None, None),
        ("market_data", None, None),
    ]
    ancient = connect(hub, since=since(4, EPOCH - 1))
    assert [(m["epoch"], m["from"], m["to"]) for m in ancient.messages("skipped")] == [
        (EPOCH - 1, 5, None),
        (EPOCH, 1, 9),
    ]


async def test_a_cursor_from_the_future_is_an_error_and_the_client_lives() -> None:
    hub = make_hub()
    hub.on_events([tick(1)])
    outlet = connect(hub, since=since(99))
    assert outlet.messages("error")[0]["code"] == "bad_cursor"
    assert outlet.messages("market_data")[0]["snapshot"] is True
    hub.on_events([tick(2)])
    assert offsets(outlet) == [2]


async def test_resume_on_a_live_connection() -> None:
    hub = make_hub()
    outlet = connect(hub)
    hub.on_events([tick(n) for n in range(1, 6)])
    hub.on_message(
        client_of(outlet),
        f'{{"type":"resume","symbol":"usd/cop","epoch":{EPOCH},"offset":3}}',
    )
    hub.on_events([tick(6)])
    assert offsets(outlet) == [1, 2, 3, 4, 5, 4, 5, 6]


async def test_resume_in_latest_mode_gives_bars_and_the_last_price() -> None:
    hub = make_hub()
    hub.on_events([tick(1), tick(2), bar_update(0, 2), tick(3), tick(4)])
    outlet = connect(hub, mode="latest", since=since(1))
    assert [m["type"] for m in outlet.messages()] == ["welcome", "bar", "market_data"]
    assert offsets(outlet) == [4]


async def test_resume_in_latest_mode_across_a_restart_gives_the_last_price() -> None:
    """The new process has no tick yet: the last one before it is still the price."""
    hub = make_hub()
    hub.on_events([tick(9)])  # as the start does with what the journal has
    hub.on_events([EpochStarted("USDCOP", EPOCH + 1, EPOCH, 9)])
    outlet = connect(hub, mode="latest", since=since(5))
    assert [m["type"] for m in outlet.messages()] == ["welcome", "market_data", "epoch"]
    assert offsets(outlet) == [9]
    known = connect(hub, mode="latest", since=since(9))
    assert [m["type"] for m in known.messages()] == ["welcome", "epoch"]
    bars = connect(hub, mode="bars", since=since(5))
    assert [m["type"] for m in bars.messages()] == ["welcome", "epoch"]


async def test_resume_of_bars_gives_bars_only() -> None:
    hub = make_hub()
    hub.on_events([tick(1), bar_update(0, 1), tick(2), bar_update(1, 2)])
    outlet = connect(hub, mode="bars", since=since(1))
    assert [m["type"] for m in outlet.messages()] == ["welcome", "bar", "bar"]


@pytest.mark.parametrize("mode", ["every", "latest", "bars"])
async def test_counts(mode: Any) -> None:
    hub = make_hub()
    outlet = connect(hub, mode=mode)
    counts = hub.counts()
    assert counts.connected == counts.by_mode[mode] == counts.by_symbol["USDCOP"] == 1
    hub.drop(client_of(outlet))
    assert hub.counts().connected == 0
    assert hub.counts().connections_total == 1
    assert hub.positions()["USDCOP"].offset == 0
