"""The parameters ``from`` and ``speed``: time travel on ``/ws/{symbol}``. Pure."""

import math
from collections.abc import Mapping
from typing import Final

from .params import parse_instant
from .stored import Replay
from .wire import Fault

MAX_SPEED: Final = 1e6


def parse_travel(
    query: Mapping[str, str], now: float, *, one_symbol: bool
) -> Replay | Fault | None:
    """Where and how fast the client wants to travel; ``None``: not at all.

    :param now: unix seconds UTC.
    """
    if "from" not in query:
        if "speed" in query:
            return Fault("bad_speed", "speed belongs to from: it is the pace of what is replayed.")
        return None
    if not one_symbol:
        return Fault("bad_from", "from replays one symbol: use the address /ws/SYMBOL.")
    if "since" in query:
        return Fault("bad_from", "from and since both say where to begin: send one of them.")
    if query.get("mode") == "latest":
        return Fault("bad_from", "mode=latest leaves out the past that from asks for.")
    try:
        start = parse_instant(query["from"])
    except ValueError as error:
        return Fault("bad_from", f"from={query['from'][:40]!r} {error}.")
    assert start is not None
    if start > now:
        return Fault("bad_from", f"from={query['from'][:40]!r} lies in the future.")
    text = query.get("speed", "0")
    try:
        speed = float(text)
    except ValueError:
        speed = math.nan
    if not 0 <= speed <= MAX_SPEED:
        return Fault(
            "bad_speed",
            f"speed={text[:40]!r} must be a number from 0 (as fast as you take it) to {MAX_SPEED:.0f} "
            "(times real pace).",
        )
    return Replay(start, speed or None)
