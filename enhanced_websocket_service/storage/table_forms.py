"""Whether the tables of a database hold what the service writes: one judgement of what the catalog says.

Pure. A table works as it is, or it is refused with the column and a cure: never accepted and then unable
to hold what is written. What no catalog can tell (what a CHECK or a trigger of the owner does with a row) is
seen when the row is written; see ``record_store``.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from .binary_copy import TICK_COLUMNS
from .column_forms import Column, Need, goes_as_sent, identifier, type_cures, type_fault

TICKS: Final = "realtime_market_data"
BARS: Final = "market_data"
HEALTH: Final = "system_health"

_ID: Final = Need("number", "BIGSERIAL", written=False)
_AGE: Final = Need("age", "TIMESTAMPTZ DEFAULT now()", written=False)
_PRICE: Final = Need("price", "DECIMAL(12,6)", may_be_null=True)
_SURE_PRICE: Final = Need("price", "DECIMAL(12,6)")
_SYMBOL: Final = Need("text", "VARCHAR(10)", length=10)
_SOURCE: Final = Need("text", "VARCHAR(50)", length=40)  # PROVIDER has 30 characters at most
_TIME: Final = Need("instant", "TIMESTAMPTZ")
_VOLUME: Final = Need("count", "INTEGER")

REQUIRED: Final[dict[str, dict[str, Need]]] = {
    BARS: {
        "id": _ID,
        "symbol": _SYMBOL,
        "datetime": _TIME,
        **dict.fromkeys(("open", "high", "low", "close"), _SURE_PRICE),
        "volume": _VOLUME,
        "source": _SOURCE,
        "created_at": _AGE,
        "updated_at": _AGE,
    },
    TICKS: {
        "id": _ID,
        "symbol": _SYMBOL,
        "time": _TIME,
        "bid": _PRICE,
        "ask": _PRICE,
        "last": _SURE_PRICE,
        "volume": _VOLUME,
        "spread": _PRICE,
        "session_date": Need("day", "DATE"),
        "trading_session": Need("truth", "BOOLEAN DEFAULT true"),
        "source": _SOURCE,
        "created_at": _AGE,
    },
    HEALTH: {
        "id": _ID,
        "service_name": Need("text", "VARCHAR(100)", length=26),
        "status": Need("text", "VARCHAR(50)", length=20),
        "details": Need("document", "JSONB"),
        "response_time_ms": Need("count", "INTEGER", may_be_null=True),
        "error_message": Need("text", "TEXT", may_be_null=True, length=10_000),
        "created_at": _AGE,
    },
}
"""The columns of the requirements."""
ADDED: Final[dict[str, dict[str, Need]]] = {
    BARS: {
        "bar_epoch": Need("place", "BIGINT", may_be_null=True),
        "bar_revision": Need("ordinal", "INTEGER", may_be_null=True),
        "bar_status": Need("text", "TEXT", may_be_null=True, length=10),
        "certificate": Need("document", "JSONB", may_be_null=True),
        "published_at": Need("instant", "TIMESTAMPTZ", may_be_null=True),
        "grade": Need("text", "TEXT", may_be_null=True, length=13),
    },
    TICKS: {
        "epoch": Need("place", "BIGINT"),
        "tick_offset": Need("place", "BIGINT"),
        "received_at": Need("instant", "TIMESTAMPTZ"),
        "flags": Need("texts", "TEXT[]"),
    },
    HEALTH: {},
}
"""The columns that migrations add to them."""
OWN: Final = (
    *("rejected_ticks", "bar_revisions", "journal_checkpoints", "epoch_fence", "tick_epochs"),
    *("vendor_gaps", "bar_drift", "ews_world", "health_probes"),
)
"""Tables of ours that are written to."""
NAMES: Final = (*REQUIRED, *OWN)

TICK_IDENTITY: Final = frozenset({"symbol", "epoch", "tick_offset"})
BAR_KEY: Final = frozenset({"symbol", "datetime", "source"})
TICK_INDEX: Final = "realtime_market_data_symbol_epoch_tick_offset_key"
_IDENTITY: Final = {TICKS: TICK_IDENTITY, BARS: BAR_KEY}
_HYPERTABLE: Final = "ts_insert_blocker"  # the trigger by which TimescaleDB keeps its tables
_OURS_ONLY: Final = re.compile(
    r"\b(epoch|tick_offset|received_at|published_at|bar_revision) IS NULL"
)
"""A condition that no row of ours meets: what is unique under it concerns other programs alone."""

KINDS: Final = {
    "r": "TABLE",
    "p": "TABLE",
    "v": "VIEW",
    "m": "MATERIALIZED VIEW",
    "f": "FOREIGN TABLE",
    "S": "SEQUENCE",
    "i": "INDEX",
    "I": "INDEX",
    "c": "TYPE",
    "type": "TYPE",
    "function": "FUNCTION",
}
"""As statements call them, by the letter of the catalog."""


_TABLES: Final = ("r", "p")


class Unique(msgspec.Struct, frozen=True):
    """A unique index, or one of an exclusion constraint; ``constraint`` is the constraint it belongs to."""

    name: str
    constraint: str | None
    columns: tuple[str, ...]
    predicate: str | None
    immediate: bool
    valid: bool
    shown: str


class Table(msgspec.Struct, frozen=True):
    """A relation as the catalog has it; ``shown`` is its name with the schema, as SQL wants it."""

    name: str
    schema: str
    shown: str
    kind: str
    persistence: str
    is_partition: bool
    owned: bool
    owner: str
    row_security: bool
    columns: tuple[Column, ...]
    uniques: tuple[Unique, ...]
    triggers: tuple[str, ...]  # that fire when a row is inserted
    update_triggers: tuple[str, ...]
    rules: tuple[str, ...]  # on INSERT and UPDATE
    partition_key: tuple[str, ...]

    @property
    def key(self) -> tuple[str, ...]:
        """The columns by which rows find their partition."""
        return ("time",) if _HYPERTABLE in self.triggers else self.partition_key

    @property
    def others_triggers(self) -> tuple[str, ...]:
        return tuple(one for one in self.triggers if one != _HYPERTABLE)


@dataclass(frozen=True, slots=True)
class Taken:
    """Something that has a name which a migration needs."""

    name: str
    kind: str
    shown: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """What cannot be worked with. ``cures`` are statements, any one of which mends it; ``lost``: something
    of ours was dropped, and ``db migrate`` makes it anew.
    """

    table: str
    column: str | None
    why: str
    cures: tuple[str, ...] = ()
    lost: bool = False

    def __str__(self) -> str:
        where = self.table if self.column is None else f"{self.table}.{identifier(self.column)}"
        cure = " or ".join(self.cures)
        return f"{where} {self.why}. To mend it: {cure}" if cure else f"{where} {self.why}."


@dataclass(frozen=True, slots=True)
class WritingForm:
    """How rows are written into tables that were accepted.

    :param staged: ticks go over a temporary table of our own types, with casts, and what arrived is
        compared; else straight into theirs, by binary COPY.
    :param bars_compared: the same comparison for bars.
    :param identities: unique indexes that say that a tick was stored before.
    """

    staged: bool = False
    bars_compared: bool = False
    identities: frozenset[str] = frozenset()
    tick_triggers: tuple[str, ...] = ()
    bar_triggers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of looking at all tables."""

    refusals: tuple[Refusal, ...]
    caveats: tuple[str, ...]
    form: WritingForm


def judge(
    tables: Mapping[str, Table],
    *,
    schema: str | None,
    to_come: Collection[int] = (),
    taken: Sequence[Taken] = (),
) -> Judgement:
    """Judge ``tables``, the relations that our names mean.

    :param schema: where new tables are made; ``None``: nowhere.
    :param to_come: migrations that have not been applied: what they add may be absent.
    :param taken: what has the name of something that they make.
    """
    refusals = [_taken(one) for one in taken]
    caveats: list[str] = []
    for name in NAMES:
        table = tables.get(name)
        if table is None:
            if not to_come:
                refusals.append(
                    Refusal(
                        name,
                        None,
                        "is not there, although the migration that makes it was applied; restore it, or "
                        "let `db migrate` make an empty one",
                        lost=True,
                    )
                )
            continue
        if name in REQUIRED:
            refusals += _misplaced(table, schema) if 1 in to_come else ()
        elif to_come and any(one.name == name for one in taken):
            continue
        found = list(_as_a_whole(table))
        if table.kind in _TABLES:
            found += _columns(table, bool(to_come))
            found += _uniques(table)
            found += _partitions(table)
            found += () if to_come else _without_key(table)
        refusals += found
        caveats += _caveats(table)
    return Judgement(tuple(refusals), tuple(caveats), _form(tables))


def lacks_identity(table: Table) -> bool:
    """Whether the table of ticks has yet to get its unique index."""
    return not any(_is_identity(one, TICK_IDENTITY) for one in table.uniques)


def lacks_arbiter(table: Table) -> bool:
    """Whether ``ON CONFLICT (symbol, datetime, source)`` finds no index of the table of bars."""
    return not any(
        set(one.columns) == BAR_KEY
        and one.valid
        and one.immediate
        and one.predicate in (None, "(published_at IS NOT NULL)")
        for one in table.uniques
    )


def _taken(one: Taken) -> Refusal:
    kind = KINDS.get(one.kind, "TABLE")
    article = "an" if kind == "INDEX" else "a"
    return Refusal(
        one.shown,
        None,
        f"is {article} {kind.lower()} of somebody else's, and the service has to make something of that "
        "name",
        (f"ALTER {kind} {one.shown} RENAME TO {identifier(one.name + '_before_ews')};",),
    )


def _misplaced(table: Table, schema: str | None) -> Iterator[Refusal]:
    if schema is not None and table.schema != schema:
        yield Refusal(
            table.shown,
            None,
            f"is in schema {table.schema}, but new tables are made in schema {schema}, where they would "
            f"hide it: end DATABASE_URL with ?search_path={table.schema}",
        )


def _as_a_whole(table: Table) -> Iterator[Refusal]:
    shown = table.shown
    if table.kind not in _TABLES:
        kind = KINDS.get(table.kind, "relation")
        yield Refusal(
            shown,
            None,
            f"is a {kind.lower()}, not a table: rows cannot be stored there exactly once",
            (f"ALTER {kind} {shown} RENAME TO {identifier(table.name + '_before_ews')};",),
        )
        return
    if table.is_partition:
        yield Refusal(
            shown,
            None,
            "is a partition of another table, and gets neither columns nor all of the rows: name the "
            f"whole table {table.name}, and the partition otherwise",
        )
    if table.persistence == "u":
        yield Refusal(
            shown,
            None,
            "is UNLOGGED: after a crash PostgreSQL empties it, while the rows count as stored",
            (f"ALTER TABLE {shown} SET LOGGED;",),
        )
    elif table.persistence == "t":
        yield Refusal(shown, None, "is temporary", (f"DROP TABLE {shown};",))
    if table.row_security:
        yield Refusal(
            shown,
            None,
            "has row-level security that applies to this role: it would hide rows, and COPY is refused",
            (f"ALTER TABLE {shown} DISABLE ROW LEVEL SECURITY;",),
        )
    for rule in table.rules:
        yield Refusal(
            shown,
            None,
            f"has the rule {rule}: COPY passes it by, and ON CONFLICT is refused beside it; a trigger "
            "can do the same",
            (f"DROP RULE {rule} ON {shown};",),
        )


def _columns(table: Table, more_to_come: bool) -> Iterator[Refusal]:
    if table.name not in REQUIRED:
        return
    present = {one.name: one for one in table.columns}
    required = REQUIRED[table.name]
    needs = {**required, **ADDED[table.name]}
    missing: dict[str, Need] = {}
    for name, need in needs.items():
        column = present.get(name)
        if column is not None:
            yield from _column(table, column, need)
        elif name in required or not more_to_come:
            missing[name] = need
    yield from _missing(table, missing)
    for column in table.columns:
        if column.name not in needs and not table.others_triggers:
            yield from _without_a_value(table, column)


def _missing(table: Table, needs: Mapping[str, Need]) -> Iterator[Refusal]:
    cased = {column.name.lower(): column.name for column in table.columns}
    absent = [name for name in needs if name not in cased]
    for name in (one for one in needs if one in cased):
        renamed = f"RENAME COLUMN {identifier(cased[name])} TO {name};"
        yield Refusal(
            table.shown,
            cased[name],
            f"is needed as {name}, in lower case",
            (f"ALTER TABLE {table.shown} {renamed}",),
        )
    if absent:
        added = ", ".join(f"ADD COLUMN {name} {needs[name].ddl}" for name in absent)
        yield Refusal(
            table.shown,
            None,
            f"lacks {', '.join(absent)}",
            (f"ALTER TABLE {table.shown} {added};",),
        )


def _column(table: Table, column: Column, need: Need) -> Iterator[Refusal]:
    change = f"ALTER TABLE {table.shown} ALTER COLUMN {identifier(column.name)}"
    if (why := type_fault(column, need)) is not None:
        kind = column.shown.upper()
        cures = type_cures(table.shown, column, need)
        yield Refusal(table.shown, column.name, f"is {kind}, which {why}", cures)
    elif need.written and column.generated:
        cure = f"{change} DROP EXPRESSION;" if column.generated == "s" else _remade(table, column)
        yield Refusal(
            table.shown, column.name, "is GENERATED, but the service writes it itself", (cure,)
        )
    elif need.written and column.identity:
        yield Refusal(
            table.shown,
            column.name,
            "is an IDENTITY, but the service writes it itself",
            (f"{change} DROP IDENTITY;",),
        )
    elif need.may_be_null and column.not_null:
        yield Refusal(
            table.shown,
            column.name,
            "is NOT NULL, but NULL is written there when nothing is known",
            (f"{change} DROP NOT NULL;",),
        )
    elif not need.written and column.not_null:
        yield from _without_a_value(table, column, need)


def _remade(table: Table, column: Column) -> str:
    name = identifier(column.name)
    return (
        f"ALTER TABLE {table.shown} DROP COLUMN {name}, ADD COLUMN {name} {column.shown.upper()};"
    )


def _without_a_value(table: Table, column: Column, need: Need | None = None) -> Iterator[Refusal]:
    if not column.not_null or column.default or column.identity or column.generated:
        return
    change = f"ALTER TABLE {table.shown} ALTER COLUMN {identifier(column.name)}"
    cures: tuple[str, ...] = (f"{change} DROP NOT NULL;",)
    if need is not None and need.form == "number":
        if column.type not in ("integer", "bigint"):
            cures = ()
        else:
            cures = (f"{change} ADD GENERATED BY DEFAULT AS IDENTITY; {_continued(table)}",)
    elif need is not None:
        cures = (f"{change} SET DEFAULT now();",)
    yield Refusal(
        table.shown,
        column.name,
        "is NOT NULL and has no default, and the service does not write it",
        cures,
    )


def _continued(table: Table) -> str:
    sequence = f"pg_get_serial_sequence('{table.shown}', 'id')"
    start = "coalesce(max(id), 0) + 1, false"
    return f"SELECT setval({sequence}, {start}) FROM {table.shown};"  # noqa: S608 the catalog's name


def _is_identity(one: Unique, identity: frozenset[str]) -> bool:
    return one.valid and one.predicate is None and identity <= set(one.columns)


def _uniques(table: Table) -> Iterator[Refusal]:
    """Indexes that refuse rows which are all to be stored."""
    identity = _IDENTITY.get(table.name)
    if identity is None:
        return
    needs = {**REQUIRED[table.name], **ADDED[table.name]}
    for one in table.uniques:
        columns = set(one.columns)
        if columns == BAR_KEY and not one.immediate and one.predicate is None:
            key = ", ".join(one.columns)
            yield Refusal(
                table.shown,
                None,
                f"has its key ({key}) DEFERRABLE, which INSERT ... ON CONFLICT cannot use",
                (
                    f"ALTER TABLE {table.shown} DROP CONSTRAINT "
                    f"{identifier(one.constraint or one.name)}, ADD UNIQUE ({key});",
                ),
            )
        if columns >= identity or "id" in columns:
            continue
        if any(name not in needs and name != "(an expression)" for name in columns):
            continue  # with a column of theirs, which may well tell rows apart
        if one.predicate is not None and _OURS_ONLY.search(one.predicate):
            continue
        of = "ticks" if table.name == TICKS else "bars"
        reason = (
            "several ticks of one second, and equal ticks, are all to be stored"
            if table.name == TICKS
            else "live bars stand beside the vendor's, each under its source"
        )
        yield Refusal(
            table.shown,
            None,
            f"has the unique index {one.name} on ({', '.join(one.columns)}), which would refuse {of}: "
            f"{reason}",
            (
                f"ALTER TABLE {table.shown} DROP CONSTRAINT {identifier(one.constraint)};"
                if one.constraint
                else f"DROP INDEX {one.shown};",
            ),
        )


def identity_index(table: Table) -> str:
    """The statement that makes the unique index over a tick's place, and its partition's key."""
    columns = ["symbol", "epoch", "tick_offset"]
    columns += [identifier(one) for one in table.key if one not in columns]
    return (
        f"CREATE UNIQUE INDEX IF NOT EXISTS {TICK_INDEX} ON {table.shown} ({', '.join(columns)});"
    )


def arbiter_index(table: Table) -> str:
    """The statement that makes the unique index by which a bar replaces its earlier version."""
    return (
        f"CREATE UNIQUE INDEX IF NOT EXISTS ews_market_data_key ON {table.shown} "
        "(symbol, datetime, source) WHERE published_at IS NOT NULL;"
    )


def _without_key(table: Table) -> Iterator[Refusal]:
    """What the migrations made, and somebody has dropped; or whose name was taken."""
    for one in table.uniques:
        if one.name in (TICK_INDEX, "ews_market_data_key") and not one.valid:
            why = f"has the index {one.name}, which is not valid"
            yield Refusal(table.shown, None, why, (f"DROP INDEX {one.shown};",))
            return
    if table.name == TICKS and lacks_identity(table):
        yield Refusal(
            table.shown,
            None,
            "has no unique index over a tick's place (symbol, epoch, tick_offset)",
            (identity_index(table),),
            lost=True,
        )
    if table.name == BARS and lacks_arbiter(table):
        yield Refusal(
            table.shown,
            None,
            "has no unique index on (symbol, datetime, source) that INSERT ... ON CONFLICT can use",
            (arbiter_index(table),),
            lost=True,
        )


def _partitions(table: Table) -> Iterator[Refusal]:
    identity = _IDENTITY.get(table.name)
    if identity is None or not table.key:
        return
    if "(an expression)" in table.key:
        yield Refusal(
            table.shown,
            None,
            "is partitioned by an expression, over which PostgreSQL keeps nothing unique: partition it by "
            "the column itself",
        )
    elif table.name == BARS and not set(table.key) <= BAR_KEY:
        yield Refusal(
            table.shown,
            None,
            f"is partitioned by ({', '.join(table.key)}), so that (symbol, datetime, source) cannot be "
            "unique: partition it by datetime",
        )


def _caveats(table: Table) -> Iterator[str]:
    for column in table.columns:
        if column.type == "timestamp without time zone" and column.name in (
            "created_at",
            "updated_at",
        ):
            yield (
                f"{table.shown}.{column.name} has no time zone: it is taken for UTC, which is what the "
                "service writes there."
            )
    if table.name in REQUIRED and table.others_triggers:
        names = ", ".join(table.others_triggers)
        yield (
            f"{table.shown} has triggers of its owner's ({names}): each row is compared after it was "
            "written, and what they change or keep out is told."
        )


def _form(tables: Mapping[str, Table]) -> WritingForm:
    ticks, bars = tables.get(TICKS), tables.get(BARS)
    staged, identities = False, frozenset[str]()
    triggers: tuple[str, ...] = ()
    if ticks is not None:
        needs = {**REQUIRED[TICKS], **ADDED[TICKS]}
        present = {one.name: one for one in ticks.columns}
        triggers = ticks.others_triggers
        staged = bool(triggers) or not all(
            name in present and goes_as_sent(present[name], needs[name]) for name in TICK_COLUMNS
        )
        identities = frozenset(
            one.name for one in ticks.uniques if _is_identity(one, TICK_IDENTITY)
        )
    bar_triggers = () if bars is None else tuple({*bars.others_triggers, *bars.update_triggers})
    return WritingForm(
        staged=staged,
        bars_compared=bool(bar_triggers),
        identities=identities,
        tick_triggers=triggers,
        bar_triggers=tuple(sorted(bar_triggers)),
    )
