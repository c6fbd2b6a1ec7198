"""What a bar is worth, and which of several for one slot. Pure.

Grades, best first:

- ``whole``: open, high, low and close of the whole 5 minutes.
- ``reconstructed``: a part was derived, such as the open. Only where the file says so.
- ``partial``: taken while the bar formed or before the vendor had finished it: narrower than the truth,
  and its close may not be the last.
- ``close_only``: open, high and low were lost, all four prices are the close.

The same order stands in the database as ``ews_grade_rank``.
"""

from typing import Final

import polars as pl

from enhanced_websocket_service.market.calendar import BAR_SECONDS

from .evidence import SAME_PRICE

GRADES: Final = ("whole", "reconstructed", "partial", "close_only")
SETTLE_S: Final = 180
"""The vendor finishes a bar up to 3 minutes after its end."""
_IMPORT_RANK: Final = 1
"""The rank of imports among sources, as ``ews_source_rank`` has it."""

PRICES: Final = ("open", "high", "low", "close")


def grade(shift: int) -> pl.Expr:
    """The grade of each row; ``slot`` is its true time, ``shift`` seconds from naive UTC to local.

    A stamp of writing without an offset is in an unknown zone: the bar counts as partial when any zone
    it could be in says so.
    """
    lag = pl.col("changed") - (pl.col("slot") + BAR_SECONDS)
    fresh = lag.is_between(-BAR_SECONDS, SETTLE_S - 1)
    anywhere = fresh | pl.any_horizontal(
        (lag + other).is_between(-BAR_SECONDS, SETTLE_S - 1) for other in (shift, -shift)
    )
    partial = pl.when(pl.col("created_aware")).then(fresh).otherwise(anywhere).fill_null(False)
    flat = pl.col("high") == pl.col("low")
    declared = pl.col("declared")
    return (
        pl.when(partial | (declared == "partial"))
        .then(pl.lit("partial"))
        .when(flat | (declared == "close_only"))
        .then(pl.lit("close_only"))
        .when(declared == "reconstructed")
        .then(pl.lit("reconstructed"))
        .otherwise(pl.lit("whole"))
    )


def grade_rank(name: str = "grade") -> pl.Expr:
    ranks = list(range(len(GRADES)))
    return pl.col(name).replace_strict(list(GRADES), ranks, return_dtype=pl.Int32, default=0)


def rivals(rows: pl.DataFrame) -> pl.DataFrame:
    """``row`` and ``reason`` of those that lose their slot to another of ``rows``, sorted by slot.

    The better grade wins when the worse can be a poorer copy of the same bar: its range lies inside, or
    it has the same close. Two of the same grade are one bar when they agree; of two partial ones
    the later written wins. Where they contradict each other, none is right for certain, and all lose.
    """
    if not (rows["slot"].diff() == 0).any():
        return pl.DataFrame(schema={"row": pl.UInt32, "reason": pl.String})
    doubled = rows.filter(pl.col("slot").is_duplicated())
    doubled = doubled.with_columns(rank=grade_rank()).sort(
        "slot", "rank", -pl.col("changed").fill_null(0), "row"
    )

    def best(name: str) -> pl.Expr:
        return pl.col(name).first().over("slot")

    tolerance = SAME_PRICE
    same = pl.all_horizontal((pl.col(p) - best(p)).abs() <= tolerance for p in PRICES)
    same_close = (pl.col("close") - best("close")).abs() <= tolerance
    inside = (pl.col("high") <= best("high") + tolerance) & (
        pl.col("low") >= best("low") - tolerance
    )
    written_later = pl.col("changed").fill_null(0) < best("changed").fill_null(0)
    agrees = (
        pl.when(same)
        .then(True)
        .when(pl.col("rank") == best("rank"))
        .then((pl.col("grade") == "partial") & written_later & inside)
        .when(pl.col("grade") == "close_only")
        .then(same_close)
        .otherwise(inside)
    )
    first = pl.col("row") == best("row")
    peace = agrees.all().over("slot")
    moved = pl.col("wall").n_unique().over("slot") > 1
    return doubled.select(
        "row",
        reason=pl.when(~peace)
        .then(pl.lit("conflict"))
        .when(first)
        .then(None)
        .when(moved)
        .then(pl.lit("collision"))
        .otherwise(pl.lit("duplicate")),
    ).filter(pl.col("reason").is_not_null())


def against_existing(rows: pl.DataFrame, existing: pl.DataFrame) -> pl.DataFrame:
    """``rows`` that have bars of other sources at their slot: ``row``, ``confirmed``, ``reason``.

    Equal to what is there: confirmed, and worth as much. Better, by grade and then source: taken.
    Anything else would replace better data, or contradict it, and is ``worse_than_existing``.
    """
    met = rows.join(existing, on="slot", suffix="_there")
    same = pl.all_horizontal((pl.col(p) - pl.col(f"{p}_there")).abs() <= SAME_PRICE for p in PRICES)
    better = grade_rank() * 10 + _IMPORT_RANK < pl.col("rank")
    return met.select(
        "row",
        confirmed=same,
        grade_there="grade_there",
        reason=pl.when(~same & ~better).then(pl.lit("worse_than_existing")),
    )


def confirmed_by(rows: pl.DataFrame, confirmed: pl.DataFrame) -> pl.DataFrame:
    """``rows`` with the better grade of the equal bar that the database has (``row``, ``grade_there``)."""
    if confirmed.is_empty():
        return rows
    rows = rows.join(confirmed, on="row", how="left", maintain_order="left")
    better = grade_rank("grade_there") < grade_rank()
    there = pl.col("grade_there").is_not_null() & better
    return rows.with_columns(grade=pl.when(there).then("grade_there").otherwise("grade")).drop(
        "grade_there"
    )


def against_own(rows: pl.DataFrame, own: pl.DataFrame) -> pl.DataFrame:
    """``row`` and ``reason`` of those that an earlier import of the same source has better."""
    met = rows.join(own.select("slot", there="grade"), on="slot")
    return met.filter(grade_rank("there") < grade_rank()).select(
        "row", reason=pl.lit("worse_than_existing")
    )
