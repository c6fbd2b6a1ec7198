"""Fault switches. A fault is one entry in ``FAULTS``; later ones are added there.

A *switch* stays until it is cleared. An *action* happens once, when it is set, to the sockets that
are open then. Everything random about a fault is a function of the seed and of what it happens to
(a symbol and a second, the open of a bar), never of the moment at which somebody asked.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from . import fault_values as values
from .fault_values import (
    NOBODY,
    REST_STATUSES,
    Hanging,
    Lacking,
    Range,
    Refusing,
    RestRefusing,
    Revising,
    Which,
    plain,
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that can go wrong at the vendor."""

    takes: str  # for the message about a bad value
    does: str
    parse: Callable[[Any], Any]  # raises ValueError; null and false are not given to it
    action: bool = False
    off: Any = None


_LIMITED = {"times": values.times}
_CALLS = {**_LIMITED, "paths": values.paths}
_SYMBOLS = "true, or a list of symbols"
_TIMES = "times (how often)"

FAULTS: Final[dict[str, Fault]] = {
    "mute": Fault(
        _SYMBOLS,
        "sockets stay open and answer pings, no prices",
        values.which,
        off=NOBODY,
    ),
    "mute_from_birth": Fault(
        _SYMBOLS,
        "a socket opened meanwhile is like that for life, without even the last price",
        values.which,
        off=NOBODY,
    ),
    "stall": Fault(
        _SYMBOLS,
        "once: every open socket goes mute for life (pings are answered); new ones work",
        values.which,
        action=True,
    ),
    "no_pong": Fault("true", "pings are not answered", values.boolean, off=False),
    "half_open": Fault(
        "true",
        "once: from every open socket nothing is read, to it nothing is written, pongs included, "
        "and it is not closed; clearing the faults resets it",
        values.boolean,
        action=True,
    ),
    "close": Fault(
        "a close code such as 1000, 1001, 1008 or 1011",
        "once: closes every open socket with this code",
        values.close_code,
        action=True,
    ),
    "drop": Fault("true", "once: resets every open socket (TCP RST)", values.boolean, action=True),
    "fin": Fault(
        "true",
        "once: ends every open socket's TCP connection (FIN) without a close frame",
        values.boolean,
        action=True,
    ),
    "refuse_handshake": Fault(
        f'a status 400 .. 599 or "404_plan"; or an object with status, {_TIMES}',
        "answers the WebSocket handshake with this status and the vendor's words",
        values.record(Refusing, {"status": values.handshake_status, **_LIMITED}),
    ),
    "hang_handshake": Fault(
        "true", "the WebSocket handshake is never answered", values.boolean, off=False
    ),
    "fails": Fault(
        "a list of symbols",
        "refuses these symbols in subscribe-status",
        values.symbols,
        off=frozenset(),
    ),
    "garbage_frames": Fault(
        "a number of frames, 1 .. 1000",
        "once: sends this many frames that are no price to every open socket",
        values.whole(1, 1000),
        action=True,
    ),
    "no_bid_ask": Fault("true", "prices come without bid and ask", values.boolean, off=False),
    "string_prices": Fault("true", "prices are JSON strings", values.boolean, off=False),
    "rest_status": Fault(
        f"one of {', '.join(REST_STATUSES)}; or an object with status, {_TIMES}, paths (a list)",
        "answers REST calls with this error",
        values.record(RestRefusing, {"status": values.rest_status, **_CALLS}),
    ),
    "status_200_errors": Fault(
        "true", "sends REST errors with HTTP status 200", values.boolean, off=False
    ),
    "rest_timeout": Fault(
        f"true; or an object with {_TIMES}, paths (a list)",
        "REST calls cost their credits and are never answered",
        values.record(Hanging, {"on": values.boolean, **_CALLS}),
    ),
    "rest_delay_ms": Fault(
        "real milliseconds 0 .. 60000, or a list of lowest and highest",
        "REST answers come so much later",
        values.between(0, 60_000),
    ),
    "rest_lag_s": Fault(
        "seconds 0 .. 3600, or a list of lowest and highest (drawn anew every second)",
        "/price, /quote and /exchange_rate show the market as it was so long ago",
        values.between(0, 3600),
    ),
    "rest_decimals": Fault(
        "a number 0 .. 11",
        "/price, /quote and /exchange_rate are rounded to so many decimals, whatever is asked for",
        values.whole(0, 11),
    ),
    "rest_float32": Fault(
        "true",
        "/price, /quote and /exchange_rate have the noise of 32-bit floats (3271.76001)",
        values.boolean,
        off=False,
    ),
    "late_candles_s": Fault(
        "seconds 0 .. 3600, or a list of lowest and highest (each bar draws its own)",
        "a finished bar appears so long after its end; the vendor's own habit is 18 .. 180",
        values.between(0, 3600),
    ),
    "revised_candles": Fault(
        "seconds after a bar's end; or an object with until_s, bp (by how much), share (of bars)",
        "until then a finished bar has other prices than later",
        values.record(
            Revising,
            {
                "until_s": values.real(0, 86_400),
                "bp": values.real(0.01, 1000),
                "share": values.share,
            },
        ),
    ),
    "missing_bars": Fault(
        "a share of all bars, 0 .. 1; or a list of opens (ISO 8601, UTC, or unix seconds)",
        "these rows are absent from /time_series, of whatever interval",
        values.lacking,
    ),
    "empty_windows": Fault(
        "true",
        "/time_series answers 400, no data on the specified dates",
        values.boolean,
        off=False,
    ),
}


class BadFault(ValueError):
    """Unknown faults or bad values; the message lists them and what is known."""

    def __init__(self, *wrong: str) -> None:
        self.wrong = wrong
        super().__init__("; ".join(wrong))


def parsed(wanted: object) -> dict[str, Any]:
    """``wanted`` (fault -> JSON value) as typed values.

    :raises BadFault: with everything that is wrong in it.
    """
    if not isinstance(wanted, dict):
        raise BadFault('the body must be a JSON object such as {"mute": true}.')
    wrong: list[str] = []
    found: dict[str, Any] = {}
    for name, value in wanted.items():
        fault = FAULTS.get(name)
        if fault is None:
            wrong.append(f"unknown fault {name!r}")
        elif value is None or value is False:
            found[name] = fault.off
        else:
            try:
                found[name] = fault.parse(value)
            except ValueError:
                rest = "" if fault.action else ", or null"
                wrong.append(f"{name} takes {fault.takes}{rest}, not {value!r}")
    if wrong:
        raise BadFault(*wrong, f"known faults: {', '.join(FAULTS)}.")
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
    no_bid_ask: bool
    string_prices: bool
    rest_status: RestRefusing | None
    status_200_errors: bool
    rest_timeout: Hanging | None
    rest_delay_ms: Range | None
    rest_lag_s: Range | None
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
        if value is not None and value.times is not None:
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
            "kind": "action" if FAULTS[name].action else "switch",
            "takes": FAULTS[name].takes,
            "does": FAULTS[name].does,
        }
        for name in names
    }
