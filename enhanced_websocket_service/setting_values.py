"""How the text of a variable becomes the value of a setting, or what is wrong with it."""

import math
import re
from datetime import date, time
from typing import Annotated

from pydantic import BeforeValidator

from .clock import SystemClock, parse_virtual_clock
from .errors import ConfigurationError
from .market.calendar import MIDNIGHT

_YEAR_9000 = 221_845_392_000.0
"""Unix seconds UTC. Python's calendar ends a thousand years later."""


def split_symbols(value: object) -> tuple[tuple[str, ...], dict[str, str]] | None:
    """The symbols of ``USDCOP,EURUSD@fx``, and by symbol the name of its calendar, where one is named.

    ``None``: it is no list of texts.
    """
    listed = value.split(",") if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
        return None
    parts = [one.strip().partition("@") for one in listed if one.strip()]
    return tuple(symbol for symbol, _, _ in parts), {
        symbol: name for symbol, at, name in parts if at
    }


def faults_in_clock(text: str) -> list[str]:
    """What is wrong with ``VIRTUAL_CLOCK``, one sentence each."""
    try:
        clock = parse_virtual_clock(text, lambda _day: True)
        # Not asked for its time: from an anchor far away it would count for ever.
        fastest = max(clock.speed, clock.closed_speed)
        shown = clock.start + (SystemClock().now() - clock.anchor) * fastest
    except ConfigurationError as error:
        return list(error.faults)
    except ValueError:  # a start at the end of the calendar
        shown = math.inf
    if 0 <= shown < _YEAR_9000:
        return []
    return [
        f"VIRTUAL_CLOCK={text!r} shows no time of the years 1970 to 9000; its start, its anchor or a "
        "speed is wrong."
    ]


def _comma_list(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


def _clock_time(value: object) -> object:
    if isinstance(value, str):
        match = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", value)
        if match is None:
            raise ValueError("a time of day looks like 08:00")
        return time(int(match[1]), int(match[2]))
    return value


def _close(value: object) -> object:
    """As ``_clock_time``; the end of the day is 24:00, never the 00:00 with which it begins."""
    if value == "24:00":
        return MIDNIGHT
    read = _clock_time(value)
    if isinstance(value, str) and read == MIDNIGHT:
        raise ValueError("the end of the day is written 24:00")
    return read


Names = Annotated[tuple[str, ...], BeforeValidator(_comma_list)]
Dates = Annotated[tuple[date, ...], BeforeValidator(_comma_list)]
TimeOfDay = Annotated[time, BeforeValidator(_clock_time)]
Close = Annotated[time, BeforeValidator(_close)]
"""A time of day; ``MIDNIGHT`` is its end, 24:00."""
