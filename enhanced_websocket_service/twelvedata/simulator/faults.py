"""Fault switches. A fault is one entry in ``FAULTS``; later ones are added there.

A *switch* stays until it is cleared. An *action* happens once, when it is set, to the sockets that
are open then.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from enhanced_websocket_service.errors import ConfigurationError

from .model import spelled

REST_STATUSES = ("401", "403", "429_day", "429_minute", "500", "520")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that can go wrong at the vendor."""

    takes: str  # for the message about a bad value
    does: str
    parse: Callable[[Any], Any]  # raises ValueError
    action: bool = False


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError


def _between(low: int, high: int) -> Callable[[Any], int | None]:
    def parse(value: Any) -> int | None:
        if value is None or value is False:
            return None
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ValueError

    return parse


def _rest_status(value: Any) -> str | None:
    if value is None or value is False:
        return None
    text = str(value)
    if text in REST_STATUSES:
        return text
    raise ValueError


def _symbols(value: Any) -> frozenset[str]:
    if value is None or value is False:
        return frozenset()
    if isinstance(value, str):
        value = value.split(",")
    if not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
        raise ValueError
    try:
        return frozenset(spelled(one) for one in value)
    except ConfigurationError as error:
        raise ValueError from error


def _close_code(value: Any) -> int:
    # 1005 and 1006 must not be put on the wire.
    if isinstance(value, int) and (value in (1000, 1001, 1002, 1003) or 1007 <= value <= 4999):
        return value
    raise ValueError


FAULTS: Final[dict[str, Fault]] = {
    "close": Fault(
        "a close code such as 1000, 1001, 1008 or 1011",
        "closes every open socket with this code",
        _close_code,
        action=True,
    ),
    "drop": Fault("true", "resets every open socket (TCP RST)", _boolean, action=True),
    "fails": Fault("a list of symbols", "refuses these symbols in subscribe-status", _symbols),
    "garbage_frames": Fault(
        "a number of frames, 1 .. 1000",
        "sends this many frames that are no price to every open socket",
        _between(1, 1000),
        action=True,
    ),
    "mute": Fault("true or false", "sockets stay open and answer pings, no prices", _boolean),
    "no_bid_ask": Fault("true or false", "prices come without bid and ask", _boolean),
    "refuse_handshake": Fault(
        "an HTTP status 400 .. 599, or null",
        "answers the WebSocket handshake with this status",
        _between(400, 599),
    ),
    "rest_status": Fault(
        f"one of {', '.join(REST_STATUSES)}, or null",
        "answers every REST call with this error",
        _rest_status,
    ),
    "status_200_errors": Fault("true or false", "sends REST errors with HTTP status 200", _boolean),
    "string_prices": Fault("true or false", "prices are JSON strings", _boolean),
}


class BadFault(ValueError):
    """An unknown fault or a bad value; the message lists what is known."""


class FaultBoard:
    """The switches as they stand."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Everything works again."""
        self.mute = False
        self.no_bid_ask = False
        self.string_prices = False
        self.status_200_errors = False
        self.refuse_handshake: int | None = None
        self.rest_status: str | None = None
        self.fails: frozenset[str] = frozenset()

    def apply(self, wanted: object) -> list[tuple[str, Any]]:
        """Set the switches in ``wanted``; all of them or, when one is wrong, none.

        :returns: the actions to carry out now, as (name, value).
        :raises BadFault: with every fault in the request.
        """
        if not isinstance(wanted, dict):
            raise BadFault('the body must be a JSON object such as {"mute": true}.')
        wrong: list[str] = []
        parsed: dict[str, Any] = {}
        for name, value in wanted.items():
            fault = FAULTS.get(name)
            if fault is None:
                wrong.append(f"unknown fault {name!r}")
                continue
            try:
                parsed[name] = fault.parse(value)
            except ValueError:
                wrong.append(f"{name} takes {fault.takes}, not {value!r}")
        if wrong:
            raise BadFault(f"{'; '.join(wrong)}. Known faults: {', '.join(FAULTS)}.")
        actions = []
        for name, value in parsed.items():
            if FAULTS[name].action:
                if value:
                    actions.append((name, value))
            else:
                setattr(self, name, value)
        return actions

    def shown(self) -> dict[str, Any]:
        """The switches as JSON values."""
        return {
            name: _plain(getattr(self, name)) for name, fault in FAULTS.items() if not fault.action
        }


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else value


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
