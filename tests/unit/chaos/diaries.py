"""A small journal and the diary of a client that got all of it."""

import json
from typing import Any

from enhanced_websocket_service.chaos.journal_account import Faults, JournalAccount, Record
from enhanced_websocket_service.market.bar import Bar, Certificate
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.tick import Tick
from tests.storage_samples import OPEN, SYMBOL, bar, tick, update

FIRST, SECOND = 1000, 2000


def begun(epoch: int, previous: tuple[int, int] | tuple[None, None] = (None, None)) -> EpochStarted:
    return EpochStarted(SYMBOL, epoch, *previous)


def live_bar(*members: Tick, **changes: Any) -> Bar:
    prices = [one.price for one in members]
    stamps = [one.timestamp for one in members]
    fields = {
        "open": prices[0],
        "high": max(prices),
        "low": min(prices),
        "close": prices[-1],
        "source": "simulator_websocket",
        "certificate": Certificate(
            {"simulator_websocket": len(members)}, stamps[0], stamps[-1], 9, False
        ),
    }
    return bar(OPEN, **{**fields, **changes})


def journal() -> list[Record]:
    """Two epochs: four ticks, of which the third is not for clients, then two more and their bar."""
    ticks = [
        tick(1, 4100.0, epoch=FIRST),
        tick(2, 4103.0, epoch=FIRST),
        tick(3, 4500.0, epoch=FIRST, flags=("future",)),
        tick(4, 4098.0, epoch=FIRST),
        tick(1, 4101.0, epoch=SECOND, timestamp=OPEN + 5),
        tick(2, 4102.0, epoch=SECOND, timestamp=OPEN + 6),
    ]
    members = [one for one in ticks if not one.flags]
    return [
        begun(FIRST),
        *ticks[:4],
        begun(SECOND, (FIRST, 4)),
        *ticks[4:],
        update(live_bar(*members), at=OPEN + 301.0, epoch=SECOND, offset=2),
    ]


def account(records: list[Record]) -> JournalAccount:
    found = JournalAccount(Faults(), "simulator")
    for record in records:
        found.see(record)
    found.close()
    return found


def ticked(one: Tick, letter: str = "T") -> str:
    fields = (one.epoch, one.offset, one.timestamp, one.price, one.bid, one.ask)
    return " ".join((letter, *map(str, fields)))


def said(kind: str, **fields: Any) -> str:
    return f"M {json.dumps({'type': kind, 'symbol': SYMBOL, **fields})}"


def skipped(epoch: int, first: int, last: int | None, reason: str = "slow_client") -> str:
    return said("skipped", epoch=epoch, **{"from": first}, to=last, reason=reason)


def diary() -> list[str]:
    ticks = [one for one in journal() if isinstance(one, Tick)]
    return [
        "C -",
        said("welcome", epoch=None, offsets={SYMBOL: 0}),
        said("epoch", epoch=FIRST, previous_epoch=None, previous_last_offset=None),
        ticked(ticks[0]),
        ticked(ticks[1]),
        skipped(FIRST, 3, 3, "not_published"),
        ticked(ticks[3]),
        "D 1006",
        f"C {SYMBOL}:{FIRST}:4",
        said("epoch", epoch=SECOND, previous_epoch=FIRST, previous_last_offset=4),
        ticked(ticks[4]),
        "L 1750000000 2 1.50 2.50 3.50",
        ticked(ticks[5]),
        "E",
    ]
