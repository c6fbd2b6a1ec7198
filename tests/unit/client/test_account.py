"""The client's book-keeping: whatever reaches it, ticks and gaps together are every offset, once."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.client import (
    Bar,
    Connected,
    Cursor,
    Epoch,
    Gap,
    ServerError,
    Snapshot,
    Status,
    Tick,
)
from enhanced_websocket_service.client.account import Account
from enhanced_websocket_service.client.events import Event
from enhanced_websocket_service.market.events import StatusChanged
from enhanced_websocket_service.serving import wire
from tests.unit.serving.fakes import NOON, bar_update, tick


def accounted(events: list[Event]) -> list[tuple[int, int]]:
    keys: list[tuple[int, int]] = []
    for event in events:
        if isinstance(event, Gap):
            assert event.last is not None
            assert event.first <= event.last
            keys += [(event.epoch, n) for n in range(event.first, event.last + 1)]
        elif isinstance(event, Tick) and not isinstance(event, Snapshot):
            keys.append((event.epoch, event.offset))
    return keys


def welcome(epoch: int | None, offset: int, symbol: str = "USDCOP") -> bytes:
    return wire.welcome([symbol], epoch, {symbol: offset}, "active", NOON)


@settings(max_examples=200, derandomize=True)
@given(st.data())
def test_lost_and_repeated_messages_are_noticed(data: st.DataObject) -> None:
    """A server that drops and repeats messages at will, told ranges among them."""
    messages, every = [welcome(1, 0)], []
    epoch = offset = 1
    for _ in range(data.draw(st.integers(1, 30))):
        match data.draw(st.sampled_from(["tick", "tick", "skipped", "epoch", "bar"])):
            case "tick":
                messages.append(wire.market_data(tick(offset, epoch=epoch)))
                every.append((epoch, offset))
                offset += 1
            case "skipped":
                last = offset + data.draw(st.integers(0, 3))
                messages.append(wire.skipped("USDCOP", epoch, offset, last, "slow_client"))
                every += [(epoch, n) for n in range(offset, last + 1)]
                offset = last + 1
            case "bar":
                messages.append(wire.bar(bar_update(0, offset - 1, epoch=epoch)))
            case _:
                messages.append(wire.epoch_started("USDCOP", epoch + 1, epoch, offset - 1))
                epoch, offset = epoch + 1, 1
    account, events = Account(every=True), []
    told_epochs = True
    for message in messages:
        times = data.draw(st.integers(0, 2))
        if b'"type":"welcome"' in message:
            times = 1
        elif b'"type":"epoch"' in message and not times:
            told_epochs = False  # then nobody can know where the epoch before it ended
        for _ in range(times):
            events += account.take(message)
    if told_epochs:
        keys = accounted(events)
        assert keys == every[: len(keys)]
        cursor = account.cursors["USDCOP"]
        assert [key for key in every if key <= (cursor.epoch, cursor.offset)] == keys
    bars = [event for event in events if isinstance(event, Bar)]
    assert len(bars) <= 1, "the same bar is told once"


def test_a_hole_is_a_gap_before_the_tick() -> None:
    account = Account(every=True)
    account.take(welcome(7, 3))
    events = account.take(wire.market_data(tick(6, epoch=7)))
    assert events[0] == Gap(symbol="USDCOP", epoch=7, first=4, last=5, reason="not_received")
    assert isinstance(events[1], Tick)
    assert account.take(wire.market_data(tick(5, epoch=7))) == []


def test_an_epoch_that_began_unseen() -> None:
    account = Account(every=True, cursors={"USDCOP": Cursor(7, 3)})
    found = account.take(wire.epoch_started("USDCOP", 9, 7, 5))
    assert found[0] == Gap(symbol="USDCOP", epoch=7, first=4, last=5, reason="not_received")
    assert isinstance(found[1], Epoch)
    lost = account.take(wire.market_data(tick(2, epoch=11)))
    assert [(gap.epoch, gap.first, gap.last) for gap in lost if isinstance(gap, Gap)] == [
        (9, 1, None),
        (11, 1, 1),
    ]
    assert account.take(wire.epoch_started("USDCOP", 9, 7, 5)) == []
    account.take(wire.epoch_started("USDCOP", 12, 11, 2))
    quiet = account.take(wire.epoch_started("USDCOP", 13, 11, 2))
    assert [type(event) for event in quiet] == [Epoch], "an epoch without ticks lacks none"


def test_a_server_that_forgot() -> None:
    account = Account(every=True, cursors={"USDCOP": Cursor(7, 30)})
    connected, gap = account.take(welcome(7, 4))
    assert isinstance(connected, Connected)
    assert connected.resumed == {"USDCOP": Cursor(7, 30)}
    assert isinstance(gap, Gap)
    assert (gap.first, gap.last, gap.reason, gap.lost) == (31, None, "history_lost", True)
    assert [type(e) for e in account.take(wire.market_data(tick(5, epoch=7)))] == [Tick]


def test_an_unknown_end_is_told_once() -> None:
    account = Account(every=True, cursors={"USDCOP": Cursor(7, 3)})
    message = wire.skipped("USDCOP", 7, 4, None, "epoch_unknown")
    (gap,) = account.take(message)
    assert gap == Gap(symbol="USDCOP", epoch=7, first=4, last=None, reason="epoch_unknown")
    assert account.take(message) == []
    assert [type(e) for e in account.take(wire.epoch_started("USDCOP", 9, 8, 5))] == [Epoch]


def test_other_modes_expect_no_order_of_ticks() -> None:
    account = Account(every=False)
    account.take(welcome(7, 3))
    assert [type(e) for e in account.take(wire.market_data(tick(9, epoch=7)))] == [Tick]
    account.take(wire.bar(bar_update(0, 12, epoch=7)))
    assert account.cursors == {"USDCOP": Cursor(7, 12)}


def test_every_kind_has_its_event() -> None:
    account = Account(every=True, symbols=["USDCOP"])
    account.take(welcome(7, 3))
    status = StatusChanged("active", "open", "live", NOON, "12 ticks", {"USDCOP": "live"})
    (told,) = account.take(wire.status(status))
    assert isinstance(told, Status)
    assert (told.server_status, told.verdicts) == ("active", {"USDCOP": "live"})
    (snapshot,) = account.take(wire.market_data(tick(3, epoch=7), snapshot=True))
    assert isinstance(snapshot, Snapshot)
    (price,) = account.take(wire.market_data(tick(4, epoch=7), replayed=True))
    assert isinstance(price, Tick)
    assert (price.price, price.spread, price.replayed) == (4100.04, 0.5, True)
    assert price.timestamp.isoformat() == "2025-06-04T08:00:04-05:00"
    (bar,) = account.take(wire.bar(bar_update(0, 4, epoch=7)))
    assert isinstance(bar, Bar)
    assert (bar.close, bar.interval, bar.opens_at.isoformat()) == (
        *(4105.0, "5min"),
        "2025-06-04T08:00:00-05:00",
    )
    assert account.take(wire.error("bad_cursor", "no")) == [
        ServerError(code="bad_cursor", message="no")
    ]
    assert account.take(wire.market_data(tick(1, symbol="EURUSD"))) == []
    assert account.take(b'{"type":"news of tomorrow"}') == []
    assert account.take(wire.heartbeat_response("active", NOON)) == []


@pytest.mark.parametrize(
    "text", ["[]", "{", '{"type":"market_data"}', '{"type":"bar","data":3}', "{}"]
)
def test_what_is_not_the_protocol_is_said(text: str) -> None:
    with pytest.raises((ValueError, msgspec.DecodeError)):
        Account(every=True).take(text)
