"""The journal against the vendor, PostgreSQL and Redis. Pure: rows come in as they were read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import polars as pl

from .journal_account import MOST_EXAMPLES, SLOT_S, Faults, Prices
from .tick_table import TickRow, TickTable

Quote = tuple[int, float, float | None, float | None]
Window = tuple[float, float]


class Sent(NamedTuple):
    """One price that left the vendor for at least one socket: stamp, price, bid and ask, resent."""

    quote: Quote
    resent: bool


@dataclass
class SentAccount:
    """What became of what the vendor sent."""

    sent: int = 0
    resent: int = 0
    journaled: int = 0
    not_journaled: int = 0
    gaps: int = 0
    longest_gap: int = 0
    unexplained: list[str] = field(default_factory=list)


def match_sent(
    sent: Sequence[Sent],
    ticks: TickTable,
    stream_source: str,
    real_time: Callable[[float], float],
    excuses: Sequence[Window],
    faults: Faults,
) -> SentAccount:
    """Journaled stream ticks must be a subsequence of what was sent: nothing invented, doubled or
    reordered. What was sent and is not journaled must lie inside one of ``excuses``, real seconds in
    which the way from the vendor was disturbed.

    :param real_time: the real instant of a vendor's stamp.
    """
    account = SentAccount(len(sent), sum(one.resent for one in sent))
    lost: list[int] = []
    at = 0
    for row in range(len(ticks)):
        if ticks.source(row) != stream_source:
            continue
        quote = ticks.quote(row)
        found = at
        while found < len(sent) and sent[found].quote != quote:
            found += 1
        if found == len(sent):
            faults.add("invented", f"{ticks.row(row)} is not what the vendor sent next")
            if faults.count("invented") >= MOST_EXAMPLES:
                return account  # each costs a look at all that was sent
            continue
        lost += range(at, found)
        at = found + 1
        account.journaled += 1
    lost += range(at, len(sent))
    # A price sent again after a subscription is dropped when it is the last one journaled.
    lost = [i for i in lost if not sent[i].resent]
    account.not_journaled = len(lost)
    for first, last in _runs(lost):
        account.gaps += 1
        account.longest_gap = max(account.longest_gap, last - first + 1)
        begins, ends = real_time(sent[first].quote[0]), real_time(sent[last].quote[0])
        if not any(start <= ends and begins <= stop for start, stop in excuses):
            faults.add(
                "lost_on_the_way",
                f"{last - first + 1} prices sent from {sent[first].quote[0]} (real {begins:.1f} to "
                f"{ends:.1f}) were neither journaled nor rejected, and nothing disturbed them",
            )
    return account


def _runs(numbers: Sequence[int]) -> Iterable[tuple[int, int]]:
    if not numbers:
        return
    start = numbers[0]
    for one, following in pairwise(numbers):
        if following != one + 1:
            yield start, one
            start = following
    yield start, numbers[-1]


def compare_rows(ticks: TickTable, rows: Iterable[TickRow], faults: Faults) -> int:
    """Every journaled tick exactly once in the table, and nothing else.

    :param rows: in order of epoch and offset.
    :returns: how many rows there were.
    """
    count = 0
    wanted = ticks.rows()
    next_wanted = next(wanted, None)
    before: TickRow | None = None
    for row in rows:
        count += 1
        if before is not None and before[:2] == row[:2]:
            faults.add("stored_twice", f"epoch {row.epoch} offset {row.offset}")
            continue
        before = row
        while next_wanted is not None and next_wanted[:2] < row[:2]:
            faults.add("not_stored", f"epoch {next_wanted.epoch} offset {next_wanted.offset}")
            next_wanted = next(wanted, None)
        if next_wanted is None or next_wanted[:2] != row[:2]:
            faults.add("stored_not_journaled", f"epoch {row.epoch} offset {row.offset}")
            continue
        if not _same(next_wanted, row):
            faults.add("stored_differs", f"journaled {next_wanted}, stored {row}")
        next_wanted = next(wanted, None)
    while next_wanted is not None:
        faults.add("not_stored", f"epoch {next_wanted.epoch} offset {next_wanted.offset}")
        next_wanted = next(wanted, None)
    return count


def _same(journaled: TickRow, stored: TickRow) -> bool:
    # A float of unix seconds has no exact microsecond: the last digit may be rounded either way.
    return (
        abs(journaled.received_us - stored.received_us) <= 1
        and journaled._replace(received_us=stored.received_us) == stored
    )


def compare_counts(what: str, journaled: object, stored: object, faults: Faults) -> None:
    if journaled != stored:
        faults.add("counts_differ", f"{what}: journaled {journaled}, stored {stored}")


def bars_by_polars(ticks: TickTable) -> dict[int, Prices]:
    """The bars of all ticks that count, computed by another library, in columns."""
    rows = [i for i in range(len(ticks)) if ticks.in_bar(i)]
    frame = (
        pl.DataFrame(
            {
                "stamp": [ticks.stamps[i] for i in rows],
                "price": [ticks.prices[i] for i in rows],
            },
            schema={"stamp": pl.Int64, "price": pl.Float64},
        )
        .sort("stamp", maintain_order=True)
        .group_by(pl.col("stamp") // SLOT_S * SLOT_S, maintain_order=True)
        .agg(
            pl.col("price").first().alias("open"),
            pl.col("price").max().alias("high"),
            pl.col("price").min().alias("low"),
            pl.col("price").last().alias("close"),
        )
    )
    return {row[0]: (row[1], row[2], row[3], row[4]) for row in frame.iter_rows()}


def compare_bars(
    what: str, wanted: Mapping[int, Prices], found: Mapping[int, Prices], faults: Faults
) -> int:
    """Both must have the same slots and prices.

    :returns: how many agree.
    """
    for slot in sorted(wanted.keys() | found.keys()):
        if wanted.get(slot) != found.get(slot):
            faults.add(what, f"slot {slot}: expected {wanted.get(slot)}, found {found.get(slot)}")
    return sum(found.get(slot) == prices for slot, prices in wanted.items())
