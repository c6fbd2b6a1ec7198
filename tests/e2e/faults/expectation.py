"""What a fault must do to the service, declared once: tests judge by it, the reference is made of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Ticks = Literal["all", "broken_off", "polled", "withheld"]
"""``all``: every tick the simulator sent is stored, in order, and no other. ``broken_off``: the same, but
what was under way when the connection died may be missing. ``polled``: only REST prices are due.
``withheld``: while REST serves, nothing is due of a stream that is not to be believed."""


@dataclass(frozen=True)
class Bounds:
    """An inclusive range of a number."""

    least: float = 0
    most: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        if self.least == self.most:
            return f"{self.least:g}"
        if math.isinf(self.most):
            return f"{self.least:g} or more" if self.least else "any"
        return f"{self.least:g} to {self.most:g}"


NONE = Bounds(0, 0)
ANY = Bounds()


@dataclass(frozen=True)
class Expectation:
    """One fault and everything it may do.

    Seconds are those of the session but for ``real_found_s``. The fault begins when it is set; what the
    simulator does at once and once needs no ``lasts_s``.
    """

    name: str
    what: str
    sets: Mapping[str, Any]
    lasts_s: float = 0.0
    also: str = ""
    """What the harness does beside setting the switch, in words for the table."""
    verdicts: tuple[str, ...] = ("dead", "live")
    """The path from ``live`` on, ``quiet`` counted as ``live``. What ends with ``?`` may be left
    out, with ``*`` also be repeated."""
    noticed: str = "dead"
    found_s: float | None = 5.0
    """From the beginning of the fault to ``noticed``; ``None``: it must never be reached."""
    real_found_s: float | None = None
    """Instead, where the fault is the network's: real seconds."""
    back_s: float | None = 90.0
    """From the end of the fault until the stream (or the poll) delivers again; ``None``: not today."""
    reconnects: Bounds = Bounds(1, 1)
    credits: Mapping[str, Bounds] = field(default_factory=dict)
    """By purpose, from the beginning of the fault until it is over; others: any."""
    repair: Bounds = ANY
    """Calls of ``/time_series`` that ask for a slot of the fault, until 15 minutes after it."""
    rest_prices: Bounds = ANY
    """Ticks by REST while it lasts."""
    ticks: Ticks = "all"
    flags: Mapping[str, Bounds] = field(default_factory=dict)
    rejected: Bounds = NONE
    live_bars: bool = True
    """Whether the live bars of its slots, too, must equal the recording."""
    partial: bool = False
    """Whether a live bar of its slots must say that ticks are missing."""
    missing: int = 0
    """Slots without a final bar in the end."""
    note: str = ""


@dataclass(frozen=True)
class Stage:
    """One simulator and one service that live through several faults, one after the other.

    :ivar starts: COT time at which the first fault may happen; the session ends at 13:10.
    :ivar by_rest: prices come by REST, as usual.
    :ivar calm_s: seconds of undisturbed prices before each fault.
    :ivar taught: the service has seen the same minutes of the day before.
    :ivar set_before_start: the first fault is set before the service starts.
    """

    name: str
    speed: float
    starts: str
    faults: tuple[Expectation, ...]
    title: str = ""
    about: str = ""
    by_rest: bool = False
    taught: bool = False
    calm_s: float = 5.0
    set_before_start: bool = False
    keys: int = 4
    ticks_per_bar: int | None = 300
    closed_speed: float = 600.0
    environ: Mapping[str, str] = field(default_factory=dict)
    simulate: tuple[str, ...] = ()


def accepts(pattern: tuple[str, ...], path: tuple[str, ...]) -> bool:
    """Whether ``path`` is one of those that ``pattern`` allows."""
    if not pattern:
        return not path
    first, rest = pattern[0], pattern[1:]
    if first.endswith("*"):
        group = tuple(first[:-1].split(", "))
        again = path[: len(group)] == group and accepts(pattern, path[len(group) :])
        return again or accepts(rest, path)
    name = first.removesuffix("?")
    if path and path[0] == name and accepts(rest, path[1:]):
        return True
    return first.endswith("?") and accepts(rest, path)


def path_text(pattern: tuple[str, ...]) -> str:
    """The path for people."""
    shown = []
    for one in pattern:
        name = one.rstrip("?*")
        shown.append(f"({name})*" if one.endswith("*") else f"({name})" if name != one else one)
    return ", ".join(shown) or "stays"
