"""Which types of a column hold what the service writes, and what cures the others. Pure.

A form is what the service needs of a column: what it puts there comes back as it was. The type of the
requirements is named first; others that hold the same values, or more, are as good.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

import msgspec

Form = Literal[
    "text",
    "price",
    "count",
    "instant",
    "age",
    "day",
    "truth",
    "document",
    "number",
    "ordinal",
    "place",
    "texts",
]

PRICE_DIGITS: Final = 6
"""Before the point and behind it, as in DECIMAL(12,6)."""
_COUNT_DIGITS: Final = 10  # 2,147,483,647

_NATURAL: Final[dict[Form, str]] = {
    "text": "text",
    "price": "numeric",
    "count": "integer",
    "instant": "timestamp with time zone",
    "age": "timestamp with time zone",
    "day": "date",
    "truth": "boolean",
    "document": "jsonb",
    "number": "integer",
    "ordinal": "integer",
    "place": "bigint",
    "texts": "text[]",
}
"""What binary COPY sends for each form: a column of another type needs a cast on the way."""
_AS_SENT: Final[dict[Form, frozenset[str]]] = {
    **{form: frozenset({name}) for form, name in _NATURAL.items()},
    "text": frozenset({"text", "character varying"}),
}
_BY_CAST: Final[dict[Form, frozenset[str]]] = {
    "price": frozenset({"double precision"}),
    "count": frozenset({"bigint", "numeric", "double precision"}),
    "document": frozenset({"json"}),
    # Only compared and counted up by PostgreSQL itself.
    "number": frozenset({"bigint", "numeric", "uuid", "text", "character varying"}),
    "ordinal": frozenset({"bigint"}),
    "age": frozenset({"timestamp without time zone"}),
}
_CURE: Final[dict[Form, str]] = {
    "price": "NUMERIC(12,6)",
    "count": "BIGINT",
    "instant": "TIMESTAMPTZ",
    "age": "TIMESTAMPTZ",
    "day": "DATE",
    "truth": "BOOLEAN",
    "document": "JSONB",
    "number": "BIGINT",
    "ordinal": "INTEGER",
    "place": "BIGINT",
    "texts": "TEXT[]",
}
ZONES: Final = ("UTC", "America/Bogota")
"""In which people store times without one; which of them, no column tells."""


class Column(msgspec.Struct, frozen=True):
    """A column as the catalog has it. ``modifier`` is PostgreSQL's, -1 without one."""

    name: str
    type: str  # without modifier: numeric, character varying, timestamp with time zone, ...
    shown: str  # with it
    modifier: int
    not_null: bool
    default: bool
    identity: bool
    generated: str  # '', 's' for stored, 'v' for virtual


@dataclass(frozen=True, slots=True)
class Need:
    """What the service needs of one column.

    :param ddl: its type in the requirements or in our migrations.
    :param written: the service writes it; else its default does.
    :param may_be_null: NULL is written where nothing is known.
    :param length: characters of the longest text that is written.
    """

    form: Form
    ddl: str
    written: bool = True
    may_be_null: bool = False
    length: int = 0


def identifier(name: str) -> str:
    """``name`` as SQL wants it."""
    plain = re.fullmatch(r"[a-z_][a-z0-9_]*", name)
    return name if plain else '"' + name.replace('"', '""') + '"'


def goes_as_sent(column: Column, need: Need) -> bool:
    """Whether binary COPY may write ``column`` without a cast; of an accepted column."""
    return column.type in _AS_SENT[need.form]


def type_fault(column: Column, need: Need) -> str | None:
    """Why ``column`` cannot hold all that is written there; completes "... is TYPE, which ..."."""
    form, kind = need.form, column.type
    if kind not in _AS_SENT[form] | _BY_CAST.get(form, frozenset()):
        if form in ("instant", "age") and kind == "timestamp without time zone":
            return "does not say in which time zone its times are, and no column of it can tell"
        return f"does not hold what {need.ddl} holds"
    if kind == "character varying" and column.modifier >= 0:
        room = column.modifier - 4
        if room < need.length:
            return f"is too short for the {need.length} characters that may be written there"
    if kind == "numeric" and form in ("price", "count") and column.modifier >= 0:
        before, behind = _digits(column.modifier)
        if form == "price" and (behind < PRICE_DIGITS or before < PRICE_DIGITS):
            return "does not hold 6 digits before the point and 6 behind it"
        if form == "count" and (before < _COUNT_DIGITS or behind < 0):
            return "does not hold whole numbers of 10 digits"
    return None


def type_cures(table: str, column: Column, need: Need) -> tuple[str, ...]:
    """Statements that each mend what ``type_fault`` tells; where there are several, people choose."""
    name = identifier(column.name)
    change = f"ALTER TABLE {table} ALTER COLUMN {name} TYPE"
    if column.type == "timestamp without time zone" and need.form in ("instant", "age"):
        return tuple(f"{change} TIMESTAMPTZ USING {name} AT TIME ZONE '{zone}';" for zone in ZONES)
    target = need.ddl if need.form == "text" else _CURE[need.form]
    return (f"{change} {target} USING {name}::{target};",)


def _digits(modifier: int) -> tuple[int, int]:
    """How many digits a NUMERIC has before and behind its point."""
    precision = (modifier - 4) >> 16 & 0xFFFF
    scale = ((modifier - 4) & 0x7FF ^ 0x400) - 0x400
    return precision - scale, scale
