"""What faults can be set to: JSON in, typed values out. Pure.

A parser raises ``ValueError`` on anything else; whoever calls it names the fault and what it takes.
``null``, ``false`` and ``[]`` never get here: they switch a fault off. Each value shows itself as the JSON
that would set it again.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, ClassVar, Final, TypeVar

from enhanced_websocket_service.errors import ConfigurationError

from .model import spelled

REST_STATUSES: Final = (
    *("401", "403", "404_plan", "429_day", "429_minute"),
    *("500", "502", "503", "504", "520"),
)
_MOST_TIMES = 1_000_000

Parser = Callable[[Any], Any]


def draw(*parts: object) -> float:
    """A number in [0, 1) that depends on ``parts`` alone: the same in every process, at any time."""
    digest = blake2b("|".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


@dataclass(frozen=True, slots=True)
class Which:
    """Some symbols (vendor's spelling), or every one."""

    names: frozenset[str] = frozenset()
    every: bool = False

    def __contains__(self, symbol: object) -> bool:
        return self.every or symbol in self.names

    def __bool__(self) -> bool:
        return self.every or bool(self.names)

    def __or__(self, other: "Which") -> "Which":
        return Which(self.names | other.names, self.every or other.every)

    def shown(self) -> bool | list[str]:
        return True if self.every else sorted(self.names) or False


NOBODY: Final = Which()


@dataclass(frozen=True, slots=True)
class Range:
    """A number, or all between two: then each thing draws its own."""

    low: float
    high: float

    def drawn(self, *parts: object) -> float:
        """The number of the thing that ``parts`` name."""
        if self.low == self.high:
            return self.low
        return self.low + (self.high - self.low) * draw(*parts)

    def shown(self) -> float | list[float]:
        return self.low if self.low == self.high else [self.low, self.high]


class Record:
    """A value of several fields, of which ``SHORT`` may be given alone."""

    __slots__ = ()
    SHORT: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def shown(self) -> Any:
        given = {
            one.name: plain(getattr(self, one.name))
            for one in fields(self)
            if one.default is MISSING or getattr(self, one.name) != one.default
        }
        return given[self.SHORT] if given.keys() == {self.SHORT} else given


@dataclass(frozen=True, slots=True)
class Refusing(Record):
    """A handshake's refusal; ``times`` is how often it happens still, ``None`` for ever."""

    SHORT: ClassVar[str] = "status"
    status: int | str
    times: int | None = None


@dataclass(frozen=True, slots=True)
class RestRefusing(Record):
    """An error for REST calls, of some paths or of all."""

    SHORT: ClassVar[str] = "status"
    status: str
    times: int | None = None
    paths: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Hanging(Record):
    """REST calls that are never answered."""

    SHORT: ClassVar[str] = "on"
    on: bool = True
    times: int | None = None
    paths: frozenset[str] | None = None

    def shown(self) -> Any:
        return Record.shown(self) or True


@dataclass(frozen=True, slots=True)
class Some(Record):
    """A share of the ticks."""

    SHORT: ClassVar[str] = "share"
    share: float
    times: int | None = None


@dataclass(frozen=True, slots=True)
class Ahead(Record):
    """Stamps that lie ``seconds`` ahead (behind, when negative), of a share of the ticks."""

    SHORT: ClassVar[str] = "seconds"
    seconds: int
    share: float = 1.0
    times: int | None = None


@dataclass(frozen=True, slots=True)
class BadPrint(Record):
    """A wrong price, ``pct`` per cent off, after a share of the ticks."""

    SHORT: ClassVar[str] = "pct"
    pct: float
    share: float = 0.02
    times: int | None = None


SCALABLE: Final = ("stream", "price", "bars")


@dataclass(frozen=True, slots=True)
class Scaling(Record):
    """All prices times ``factor``, wherever ``at`` names."""

    SHORT: ClassVar[str] = "factor"
    factor: float
    at: frozenset[str] = frozenset(SCALABLE)


@dataclass(frozen=True, slots=True)
class Shuffling(Record):
    """A share of the ticks leaves up to ``within_s`` seconds late; 0: order within a second only."""

    SHORT: ClassVar[str] = "within_s"
    within_s: int
    share: float = 0.3


@dataclass(frozen=True, slots=True)
class Dribbling(Record):
    """Frames cut into pieces of ``size`` bytes, ``ms`` real milliseconds between two."""

    SHORT: ClassVar[str] = "ms"
    ms: float
    size: int = 1


@dataclass(frozen=True, slots=True)
class Revising(Record):
    """Finished bars differ by up to ``bp`` basis points until ``until_s`` after their end."""

    SHORT: ClassVar[str] = "until_s"
    until_s: float
    bp: float = 5.0
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Lacking(Record):
    """Bars that the vendor does not have: a share of all, or those that open at ``opens``."""

    SHORT: ClassVar[str] = "share"
    share: float = 0.0
    opens: frozenset[int] = frozenset()

    def shown(self) -> Any:
        if not self.opens:
            return self.share
        return [datetime.fromtimestamp(at, UTC).isoformat() for at in sorted(self.opens)]


@dataclass(frozen=True, slots=True)
class Bursting(Record):
    """``rate`` extra ticks a second for ``seconds`` seconds."""

    SHORT: ClassVar[str] = "seconds"
    seconds: int
    rate: int = 10_000
    symbols: Which = Which(every=True)


def plain(value: Any) -> Any:
    """``value`` as JSON."""
    if isinstance(value, (Which, Range, Record)):
        return value.shown()
    return sorted(value) if isinstance(value, frozenset) else value


def boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ValueError


def whole(low: int, high: int) -> Parser:
    def parse(value: Any) -> int:
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        raise ValueError

    return parse


def real(low: float, high: float) -> Parser:
    def parse(value: Any) -> float:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high:
            return float(value) if math.isfinite(value) else _wrong()
        raise ValueError

    return parse


def between(low: float, high: float) -> Parser:
    """A number, or a list of the lowest and the highest."""
    one = real(low, high)

    def parse(value: Any) -> Range:
        ends = [one(end) for end in value] if isinstance(value, list) else [one(value)] * 2
        if len(ends) != 2 or ends[0] > ends[1]:
            raise ValueError
        return Range(*ends)

    return parse


def symbols(value: Any) -> frozenset[str]:
    try:
        return frozenset(spelled(one) for one in _texts(value))
    except ConfigurationError as error:
        raise ValueError from error


def which(value: Any) -> Which:
    return Which(every=True) if value is True else Which(symbols(value))


def close_code(value: Any) -> int:
    # 1005 and 1006 must not be put on the wire.
    if isinstance(value, int) and (value in (1000, 1001, 1002, 1003) or 1007 <= value <= 4999):
        return value
    raise ValueError


def share(value: Any) -> float:
    """More than 0, at most 1; ``true`` is 1."""
    found: float = 1.0 if value is True else real(0, 1)(value)
    return found or _wrong()


def lacking(value: Any) -> Lacking:
    if isinstance(value, list) and value:
        return Lacking(opens=frozenset(_instant(one) for one in value))
    return Lacking(share(value))


def places(value: Any) -> frozenset[str]:
    found = frozenset(_texts(value))
    return found if found <= set(SCALABLE) else _wrong()


def handshake_status(value: Any) -> int | str:
    if value == "404_plan":
        return "404_plan"
    found: int = whole(400, 599)(value)
    return found


def rest_status(value: Any) -> str:
    text = str(value)
    return text if text in REST_STATUSES and not isinstance(value, bool) else _wrong()


def paths(value: Any) -> frozenset[str]:
    found = frozenset(_texts(value))
    return found if all(one.startswith("/") for one in found) else _wrong()


times: Final = whole(1, _MOST_TIMES)

R = TypeVar("R", bound=Record)


def record(kind: type[R], parsers: Mapping[str, Parser]) -> Callable[[Any], R]:
    """A parser of objects with the fields of ``kind``, and of its short form."""

    def parse(value: Any) -> R:
        given = value if isinstance(value, dict) else {kind.SHORT: value}
        if not given.keys() <= parsers.keys():
            raise ValueError
        try:
            # ``null`` in a field is the same as to leave it out.
            return kind(**{n: parsers[n](one) for n, one in given.items() if one is not None})
        except TypeError as error:  # a field that must be there is not
            raise ValueError from error

    return parse


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if isinstance(value, list) and value and all(isinstance(one, str) and one for one in value):
        return value
    raise ValueError


def _instant(value: Any) -> int:
    if isinstance(value, str):
        parsed = datetime.fromisoformat(value)
        return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())
    found: int = whole(0, 7_258_118_400)(value)
    return found


def _wrong() -> Any:
    raise ValueError
