"""The judgement of tables, where no server is needed to know the answer."""

from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.storage.catalog import names_made
from enhanced_websocket_service.storage.column_forms import (
    Column,
    Need,
    identifier,
    type_cures,
    type_fault,
)
from enhanced_websocket_service.storage.migrate import migrations
from enhanced_websocket_service.storage.table_forms import (
    ADDED,
    BARS,
    OWN,
    REQUIRED,
    TICK_IDENTITY,
    TICKS,
    Table,
    Unique,
    identity_index,
    judge,
)

PRICE = Need("price", "DECIMAL(12,6)")
VOLUME = Need("count", "INTEGER")
NATURAL = {
    "text": "text",
    "price": "numeric",
    "count": "integer",
    "instant": "timestamp with time zone",
    "age": "timestamp with time zone",
    "day": "date",
    "truth": "boolean",
    "document": "jsonb",
    "number": "bigint",
    "ordinal": "integer",
    "place": "bigint",
    "texts": "text[]",
}


def column(name: str, kind: str, **changes: Any) -> Column:
    fields = {
        "modifier": -1,
        "not_null": False,
        "default": False,
        "identity": False,
        "generated": "",
    }
    return Column(name, kind, kind, **{**fields, **changes})


def unique(*columns: str, **changes: Any) -> Unique:
    fields = {"constraint": None, "predicate": None, "immediate": True, "valid": True}
    return Unique("one", columns=columns, shown="public.one", **{**fields, **changes})


def table(name: str, **changes: Any) -> Table:
    """A table as the migrations make it."""
    keys = {TICKS: [unique(*sorted(TICK_IDENTITY))], BARS: [unique("symbol", "datetime", "source")]}
    needs = {**REQUIRED.get(name, {}), **ADDED.get(name, {})}
    fields: dict[str, Any] = {
        "schema": "public",
        "shown": f"public.{name}",
        "kind": "r",
        "persistence": "p",
        "is_partition": False,
        "owned": True,
        "owner": "me",
        "row_security": False,
        "columns": tuple(column(one, NATURAL[need.form]) for one, need in needs.items()),
        "uniques": tuple(keys.get(name, [])),
        "triggers": (),
        "update_triggers": (),
        "rules": (),
        "partition_key": (),
    }
    return Table(name, **{**fields, **changes})


def tables(**changes: Table) -> dict[str, Table]:
    return {**{name: table(name) for name in (*REQUIRED, *OWN)}, **changes}


def said(**changes: Table) -> list[str]:
    return [str(one) for one in judge(tables(**changes), schema="public").refusals]


def test_what_the_migrations_make_is_accepted_and_written_directly() -> None:
    judgement = judge(tables(), schema="public")
    assert judgement.refusals == ()
    assert judgement.caveats == ()
    assert (judgement.form.staged, judgement.form.bars_compared) == (False, False)
    assert judgement.form.identities == {"one"}


@given(precision=st.integers(1, 40), scale=st.integers(-10, 40))
def test_a_numeric_is_accepted_when_it_holds_every_price(precision: int, scale: int) -> None:
    """Checked by arithmetic: the largest and the smallest price, as such a column would round them."""
    modifier = (precision << 16 | (scale & 0x7FF)) + 4
    fault = type_fault(column("last", "numeric", modifier=modifier), PRICE)
    prices = [Decimal("999999.999999"), Decimal("0.000001"), Decimal("4100.123457")]
    with localcontext(prec=100):
        step = Decimal(1).scaleb(-scale)
        kept = all(
            price.quantize(step, ROUND_HALF_EVEN) == price
            and price < Decimal(10) ** (precision - scale)
            for price in prices
        )
    assert (fault is None) is kept


@given(precision=st.integers(1, 40), scale=st.integers(-10, 40))
def test_a_numeric_is_accepted_when_it_holds_every_volume(precision: int, scale: int) -> None:
    modifier = (precision << 16 | (scale & 0x7FF)) + 4
    fault = type_fault(column("volume", "numeric", modifier=modifier), VOLUME)
    assert (fault is None) is (
        10 ** (precision - scale) > 2**31 - 1 and scale >= 0 and precision > scale
    )


@pytest.mark.parametrize("kind", ["real", "money", "integer", "bigint", "text", "public.price"])
def test_prices_go_into_nothing_that_loses_them(kind: str) -> None:
    one = column("last", kind)
    assert type_fault(one, PRICE) == "does not hold what DECIMAL(12,6) holds"
    assert type_cures("public.t", one, PRICE) == (
        "ALTER TABLE public.t ALTER COLUMN last TYPE NUMERIC(12,6) USING last::NUMERIC(12,6);",
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "f"}, "is a foreign table, not a table"),
        ({"kind": "m"}, "is a materialized view, not a table"),
        ({"is_partition": True}, "is a partition of another table"),
        ({"persistence": "u"}, "is UNLOGGED"),
        ({"persistence": "t"}, "is temporary"),
        ({"row_security": True}, "has row-level security"),
        ({"rules": ('"a rule"',)}, 'DROP RULE "a rule" ON public.realtime_market_data;'),
        ({"partition_key": ("(an expression)",)}, "is partitioned by an expression"),
        ({"uniques": ()}, "has no unique index over a tick's place"),
    ],
)
def test_tables_that_are_none_of_ours(changes: dict[str, Any], words: str) -> None:
    (only,) = said(realtime_market_data=table(TICKS, **changes))
    assert words in only


def test_own_tables_are_looked_at_as_a_whole() -> None:
    assert said(journal_checkpoints=table("journal_checkpoints", persistence="u")) == [
        "public.journal_checkpoints is UNLOGGED: after a crash PostgreSQL empties it, while the rows count "
        "as stored. To mend it: ALTER TABLE public.journal_checkpoints SET LOGGED;"
    ]


@pytest.mark.parametrize(
    ("one", "accepted"),
    [
        (unique("symbol", "time"), False),
        (unique("(an expression)"), False),
        (unique("symbol", "time", "source", "last"), False),
        (unique("symbol", "created_at"), False),
        (unique("id"), True),
        (unique("id", "time"), True),
        (unique("uid"), True),
        (unique("symbol", "time", "their_number"), True),
        (unique("time", "symbol", "tick_offset", "epoch"), True),
        (unique("symbol", "time", predicate="(epoch IS NULL)"), True),
        (unique("symbol", "time", predicate="(last > 0)"), False),
    ],
)
def test_unique_indexes_that_would_refuse_ticks(one: Unique, accepted: bool) -> None:
    whole = table(TICKS)
    found = said(realtime_market_data=table(TICKS, uniques=(*whole.uniques, one)))
    assert (found == []) is accepted, found


def test_a_hypertable_is_one_that_is_partitioned_by_time() -> None:
    one = table(TICKS, triggers=("ts_insert_blocker",))
    assert identity_index(one).endswith("(symbol, epoch, tick_offset, time);")
    judgement = judge(tables(realtime_market_data=one), schema="public")
    assert (judgement.refusals, judgement.caveats, judgement.form.staged) == ((), (), False)


def test_triggers_have_ticks_compared() -> None:
    judgement = judge(
        tables(realtime_market_data=table(TICKS, triggers=("audit",))), schema="public"
    )
    assert judgement.refusals == ()
    assert judgement.form.staged
    assert "triggers of its owner's (audit)" in judgement.caveats[0]


def test_names_that_need_quotes_get_them() -> None:
    assert [identifier(name) for name in ("last", "Last", 'a"b', "an_id_2")] == [
        "last",
        '"Last"',
        '"a""b"',
        "an_id_2",
    ]


def test_what_migrations_make_and_must_not_find() -> None:
    found = {name for one in migrations() for name in names_made(one.sql)}
    assert {"rejected_ticks", "market_bars", "ews_grade", "bar_revisions_published"} <= found
    assert not found & {*REQUIRED, "realtime_market_data_symbol_epoch_tick_offset_key"}
