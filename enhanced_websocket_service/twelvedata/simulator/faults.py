"""Fault switches as they stand.

A *switch* stays until it is cleared. An *action* happens once, when it is set, to the sockets that
are open then. Everything random about a fault is a function of the seed and of what it happens to
(a symbol and a second, the open of a bar), never of the moment at which somebody asked.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from .fault_table import FAULTS
from .fault_values import (
    Ahead,
    BadPrint,
    Dribbling,
    Hanging,
    Lacking,
    Range,
    Refusing,
    RestRefusing,
    Revising,
    Scaling,
    Shuffling,
    Some,
    Which,
    plain,
)


class BadFault(ValueError):
    """Unknown faults or bad values; the message lists them and what is known.

    :ivar wrong: one sentence for each.
    """

    def __init__(self, *wrong: str) -> None:
        self.wrong = wrong
        super().__init__(f"{'; '.join(wrong)}. Known faults: {', '.join(FAULTS)}.")


def parsed(wanted: object) -> dict[str, Any]:
    """``wanted`` (fault -> JSON value) as typed values.

    :raises BadFault: with everything that is wrong in it.
    """
    if not isinstance(wanted, dict):
        raise BadFault('faults are a JSON object such as {"mute": true}')
    wrong: list[str] = []
    found: dict[str, Any] = {}
    for name, value in wanted.items():
        fault = FAULTS.get(name)
        if fault is None:
            wrong.append(f"unknown fault {name!r}")
        elif value is None or value is False or value == []:
            found[name] = fault.off
        else:
            try:
                found[name] = fault.parse(value)
            except ValueError:
                rest = "" if fault.action else ", or null"
                wrong.append(f"{name} takes {fault.takes}{rest}, not {value!r}")
    if wrong:
        raise BadFault(*wrong)
    return found


class FaultBoard:
    """The switches as they stand.

    :ivar seed: of everything random about the faults.
    """

    mute: Which
    mute_from_birth: Which
    no_pong: bool
    refuse_handshake: Refusing | None
    hang_handshake: bool
    fails: frozenset[str]
    frozen: Which
    no_bid_ask: bool
    string_prices: bool
    double: Some | None
    disorder: Shuffling | None
    delay_s: Range | None
    future_s: Ahead | None
    outlier: BadPrint | None
    scale: Scaling | None
    crossed: Some | None
    float32_noise: bool
    slow_frames: Dribbling | None
    max_connections: int | None
    clock_skew_s: float
    rest_status: RestRefusing | None
    status_200_errors: bool
    rest_timeout: Hanging | None
    rest_delay_ms: Range | None
    rest_lag_s: Range | None
    rest_frozen: bool
    rest_decimals: int | None
    rest_float32: bool
    late_candles_s: Range | None
    revised_candles: Revising | None
    missing_bars: Lacking | None
    empty_windows: bool

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.clear()

    def clear(self, names: Iterable[str] = FAULTS) -> None:
        """These work again."""
        for name in names:
            if not FAULTS[name].action:
                setattr(self, name, FAULTS[name].off)

    def apply(self, wanted: object) -> list[tuple[str, Any]]:
        """Set the switches in ``wanted``; all of them or, when one is wrong, none.

        :returns: the actions to carry out now, as (name, value).
        :raises BadFault: with every fault in the request.
        """
        actions = []
        for name, value in parsed(wanted).items():
            if not FAULTS[name].action:
                setattr(self, name, value)
            elif value:
                actions.append((name, value))
        return actions

    def spend(self, name: str) -> None:
        """Count one use of a fault that happens a limited number of times."""
        value = getattr(self, name)
        if value is not None and getattr(value, "times", None) is not None:
            left = value.times - 1
            setattr(self, name, replace(value, times=left) if left else FAULTS[name].off)

    def shown(self) -> dict[str, Any]:
        """The switches as JSON values."""
        return {
            name: plain(getattr(self, name)) for name, fault in FAULTS.items() if not fault.action
        }


def described(names: Iterable[str] = FAULTS) -> dict[str, dict[str, str]]:
    """What each fault takes and does, for ``GET /_sim/faults``."""
    return {
        name: {
            "kind": FAULTS[name].kind,
            "takes": FAULTS[name].takes,
            "does": FAULTS[name].does,
        }
        for name in names
    }
