"""The journal against the vendor and the database: every difference has a name."""

from collections.abc import Callable

import pytest

from enhanced_websocket_service.chaos.comparison import (
    Sent,
    bars_by_polars,
    compare_bars,
    compare_rows,
    match_sent,
)
from enhanced_websocket_service.chaos.journal_account import Faults
from enhanced_websocket_service.chaos.tick_table import TickRow, TickTable
from tests.storage_samples import OPEN, tick

from .diaries import account, journal

SOURCE = "simulator_websocket"


def table(count: int = 6) -> TickTable:
    made = TickTable()
    for offset in range(1, count + 1):
        assert made.add(tick(offset, 4100.0 + offset)) is None
    return made


def compared(rows: list[TickRow]) -> set[str]:
    faults = Faults()
    compare_rows(table(), rows, faults)
    return {line.partition(" ")[0] for line in faults.shown()}


@pytest.mark.parametrize(
    ("spoil", "kind"),
    [
        (lambda rows: rows, None),
        (lambda rows: rows[1:], "not_stored"),
        (lambda rows: rows[:-1], "not_stored"),
        (lambda rows: [*rows[:2], *rows[3:]], "not_stored"),
        (lambda rows: [*rows[:3], rows[2], *rows[3:]], "stored_twice"),
        (lambda rows: [*rows, rows[-1]._replace(offset=7)], "stored_not_journaled"),
        (lambda rows: [rows[0]._replace(epoch=0), *rows], "stored_not_journaled"),
        (lambda rows: [*rows[:-1], rows[-1]._replace(price=1.0)], "stored_differs"),
        (lambda rows: [*rows[:-1], rows[-1]._replace(flags=("late",))], "stored_differs"),
        (lambda rows: [rows[0]._replace(received_us=rows[0].received_us + 1), *rows[1:]], None),
        (
            lambda rows: [rows[0]._replace(received_us=rows[0].received_us + 2), *rows[1:]],
            "stored_differs",
        ),
    ],
)
def test_each_difference_of_a_table_has_its_name(
    spoil: Callable[[list[TickRow]], list[TickRow]], kind: str | None
) -> None:
    assert compared(spoil(list(table().rows()))) == ({kind} if kind else set())


def sent(count: int = 6) -> list[Sent]:
    ticks = table(count)
    return [Sent(ticks.quote(i), False) for i in range(count)]


def matched(wire: list[Sent], excuses: list[tuple[float, float]] | None = None):  # type: ignore[no-untyped-def]
    faults = Faults()
    found = match_sent(wire, table(), SOURCE, float, excuses or [], faults)
    return found, {line.partition(" ")[0] for line in faults.shown()}


def test_what_was_sent_is_journaled() -> None:
    found, kinds = matched(sent())
    assert kinds == set()
    assert (found.sent, found.journaled, found.not_journaled) == (6, 6, 0)


def test_what_was_not_sent_is_invented() -> None:
    assert matched(sent(5))[1] == {"invented"}
    wire = sent()
    wire[2], wire[3] = wire[3], wire[2]
    assert "invented" in matched(wire)[1]
    assert matched([])[1] == {"invented"}


def test_what_is_lost_needs_an_excuse_at_its_time() -> None:
    wire = sent()
    more = [Sent((OPEN + 3, 7.0, None, None), False)] * 2
    wire[3:3] = more
    found, kinds = matched(wire)
    assert kinds == {"lost_on_the_way"}
    assert (found.not_journaled, found.gaps, found.longest_gap) == (2, 1, 2)
    assert matched(wire, [(OPEN + 2.0, OPEN + 4.0)])[1] == set()
    assert matched(wire, [(OPEN + 4.0, OPEN + 9.0)])[1] == {"lost_on_the_way"}


def test_a_price_sent_again_may_be_dropped() -> None:
    wire = sent()
    wire.insert(3, wire[2]._replace(resent=True))
    found, kinds = matched(wire)
    assert kinds == set()
    assert (found.resent, found.not_journaled) == (1, 0)


def test_polars_and_the_fold_agree() -> None:
    found = account(journal())
    assert bars_by_polars(found.ticks) == {OPEN: (4100.0, 4103.0, 4098.0, 4102.0)}
    assert bars_by_polars(TickTable()) == {}


def test_bars_are_compared_both_ways() -> None:
    one, other = (1.0, 2.0, 0.5, 1.5), (1.0, 2.0, 0.5, 1.6)
    for wanted, found, equal, broken in (
        ({300: one}, {300: one}, 1, 0),
        ({300: one}, {300: other}, 0, 1),
        ({300: one}, {}, 0, 1),
        ({}, {300: one}, 0, 1),
    ):
        faults = Faults()
        assert compare_bars("bars", wanted, found, faults) == equal
        assert len(faults) == broken
