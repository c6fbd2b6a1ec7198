"""Which convention each stretch of a file follows, and how sure that is. Pure.

Rows are put together to cells that hardly can hold a flip. Over the cells runs a two-state
chain (UTC, COT): forward and backward, so that the verdict on a cell weighs the evidence of
the whole file, and a flip costs the more the less there is to see of it at that place. A cell that
stays undecided is ambiguous: its rows are never guessed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import polars as pl

from enhanced_websocket_service.market.calendar import BAR_SECONDS

from .evidence import DAY, KINDS, Windows

Convention = Literal["utc", "cot"]

SURE: Final = 7.0
"""Nats: odds of a thousand to one."""

_MOST: Final = 60.0
# What a flip costs between two cells, by what can be seen there.
_NOWHERE, _HOLE, _SOMEWHERE, _AT_A_SEAM, _BACKWARDS = 14.0, 13.0, 7.0, 5.0, 3.0
# Sessions here, around the clock there; two conventions that overlap; a row out of its place: what
# stands on one side says little about the other.
_OTHER_FEED: Final = 1.5
_JUMP, _JUMP_FORTH = 0.05, 1.0  # the digits jump by the shift
_SEAM_IN_STEP: Final = 8.0  # another batch that goes on exactly where the last one ended
_BATCH, _BATCH_ROWS = 4.0, 20  # what a batch of so many rows says about each cell of its own
_ONE_BATCH: Final = 9.0  # more, inside what was written at one moment


@dataclass(frozen=True, slots=True)
class Run:
    """Successive rows read the same way. Instants are the digits as unix seconds."""

    convention: Convention | None  # None: ambiguous
    assumed: bool
    doubt: str | None  # why a decided run is not believed after all
    rows: int
    first_row: int
    last_row: int
    first_wall: int
    last_wall: int
    evidence: dict[str, float]  # nats by kind, positive for COT
    certainty: float  # the least of its cells, nats


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict on a whole file."""

    rows: pl.DataFrame  # row, convention (null: ambiguous), run
    runs: tuple[Run, ...]


def decide(weighed: pl.DataFrame, windows: Windows, assume: Convention | None) -> Decision:
    """Decide every row of ``weighed`` (of ``evidence.weigh``, in file order).

    :param assume: the convention of whatever the evidence leaves open.
    """
    frame = weighed.with_columns(cell=_cells(windows).cum_sum().set_sorted())
    # Most kinds are silent in most files; what is nowhere need not be added up.
    voiced = [kind for kind in KINDS if kind != "batch" and (frame[kind] != 0).any()]
    cells = frame.group_by("cell", maintain_order=True).agg(
        *(pl.col(kind).sum() for kind in voiced),
        rows=pl.len(),
        first_row=pl.col("row").first(),
        last_row=pl.col("row").last(),
        first_wall=pl.col("wall").first(),
        last_wall=pl.col("wall").last(),
        created=pl.col("created").first(),
        offset=pl.col("offset").first(),
        origin=pl.col("origin").first(),
        around=pl.col("around").first(),
        day=pl.col("day").first(),
        day_rows=pl.col("day_rows").first(),
        contested=(pl.col("contested") | pl.col("stray")).first(),
    )
    silent = {kind: pl.lit(0.0) for kind in KINDS if kind not in voiced}
    cells = _read(cells.with_columns(**silent, **_costs(windows)))
    cells = _read(_ask_batches(cells))
    cells = cells.with_columns(
        run=pl.col("convention").ne_missing(pl.col("convention").shift(fill_value="-")).cum_sum()
    )
    doubts = _doubts(cells, windows)
    runs = cells.group_by("run", maintain_order=True).agg(
        pl.col("convention").first(),
        *(pl.col(kind).sum() for kind in KINDS),
        pl.col("rows").sum(),
        pl.col("first_row").first(),
        pl.col("last_row").last(),
        pl.col("first_wall").min(),
        pl.col("last_wall").max(),
        odds=pl.col("odds").abs().min(),
    )
    settled: dict[int, Convention | None] = {}
    told = []
    for one in runs.iter_rows(named=True):
        doubt = doubts.get(one["run"])
        convention: Convention | None = None if doubt else one["convention"]
        assumed = convention is None and assume is not None
        settled[one["run"]] = assume if assumed else convention
        told.append(
            Run(
                convention=settled[one["run"]],
                assumed=assumed,
                doubt=doubt,
                rows=one["rows"],
                first_row=one["first_row"],
                last_row=one["last_row"],
                first_wall=one["first_wall"],
                last_wall=one["last_wall"],
                evidence={kind: round(one[kind], 1) for kind in KINDS},
                certainty=round(one["odds"], 1),
            )
        )
    cells = cells.with_columns(
        convention=pl.col("run").replace_strict(
            list(settled), list(settled.values()), return_dtype=pl.String
        )
    )
    place = frame["cell"] - 1  # cells are numbered from 1, in order
    rows = frame.select("row", "contested", "written").with_columns(
        cells["convention"].gather(place), cells["run"].gather(place)
    )
    # What lies among rows of the other convention must tell its own time.
    lost = pl.col("contested") & (pl.col("written") == 0)
    rows = rows.select("row", "run", convention=pl.when(lost).then(None).otherwise("convention"))
    return Decision(rows, tuple(told))


def _read(cells: pl.DataFrame) -> pl.DataFrame:
    """``cells`` with ``odds`` and ``convention`` by what each weighs and a flip into it costs."""
    cells = cells.with_columns(weight=pl.sum_horizontal(KINDS).clip(-_MOST, _MOST))
    odds = pl.Series(
        "odds", _posterior(*(cells[name].to_list() for name in ("weight", "uc", "cu")))
    )
    return cells.with_columns(
        odds,
        convention=pl.when(odds > SURE).then(pl.lit("cot")).when(odds < -SURE).then(pl.lit("utc")),
    )


def _ask_batches(cells: pl.DataFrame) -> pl.DataFrame:
    """Let a batch that is read one way throughout speak for its odd rows elsewhere in the file."""
    rows = pl.col("rows")
    share = (
        rows.filter(pl.col("convention") == "cot").sum()
        / rows.filter(pl.col("convention").is_not_null()).sum()
    )
    known = (rows.sum() >= _BATCH_ROWS) & pl.col("created").first().is_not_null()
    votes = cells.group_by("created", "offset", "origin").agg(
        batch=pl.when(known & (share == 1))
        .then(_BATCH)
        .when(known & (share == 0))
        .then(-_BATCH)
        .otherwise(0.0)
    )
    cells = cells.drop("batch").join(
        votes,
        on=["created", "offset", "origin"],
        how="left",
        maintain_order="left",
        nulls_equal=True,
    )
    odd = pl.col("convention").is_null()
    return cells.with_columns(batch=pl.when(odd).then("batch").otherwise(0.0))


def _cells(windows: Windows) -> pl.Expr:
    """Where a new cell begins: wherever the file shows a seam, if only a small one."""
    wall = pl.col("wall")
    gap = wall - wall.shift()
    seam = (
        (pl.col("day") != pl.col("day").shift())
        | (gap < 0)
        | pl.col("created").ne_missing(pl.col("created").shift())
        | pl.col("offset").ne_missing(pl.col("offset").shift())
        | pl.col("origin").ne_missing(pl.col("origin").shift())
        | (pl.col("contested") != pl.col("contested").shift())
        | pl.col("stray")
        | pl.col("stray").shift()
        | (pl.col("mixed") & ((gap != BAR_SECONDS) | (wall // 3600 != wall.shift() // 3600)))
    )
    return seam.fill_null(True)


def _costs(windows: Windows) -> dict[str, pl.Expr]:
    """The price of a flip into each cell, from UTC to COT and back, nats."""
    gap = pl.col("first_wall") - pl.col("last_wall").shift()
    seam = (
        pl.col("created").ne_missing(pl.col("created").shift())
        | pl.col("offset").ne_missing(pl.col("offset").shift())
        | pl.col("origin").ne_missing(pl.col("origin").shift())
    )
    batch = pl.when(seam | pl.col("created").is_null()).then(0.0).otherwise(_ONE_BATCH)
    usual = (
        pl.when(pl.col("contested") | pl.col("contested").shift())
        .then(_OTHER_FEED)
        .when(seam)
        .then(pl.when(gap == BAR_SECONDS).then(_SEAM_IN_STEP).otherwise(_AT_A_SEAM))
        .when(gap < 0)
        .then(_BACKWARDS)
        .when(pl.col("around") != pl.col("around").shift())
        .then(_OTHER_FEED + batch)
        .when(gap <= BAR_SECONDS)
        .then(_NOWHERE + batch)
        .when(gap < abs(windows.shift) - 3600)
        .then(_HOLE + batch)
        .otherwise(_SOMEWHERE + batch)
    )
    # In the order of time the digits jump by the shift where the convention flips; a few bars may be
    # missing there.
    near = 3600
    back = (gap + windows.shift).is_between(BAR_SECONDS, near)
    forth = (gap - windows.shift).is_between(BAR_SECONDS, near) & pl.col("around")
    back = pl.when(back).then(_JUMP).otherwise(usual)
    forth = pl.when(forth).then(pl.min_horizontal(usual, _JUMP_FORTH)).otherwise(usual)
    return {"uc": back.fill_null(_SOMEWHERE), "cu": forth.fill_null(_SOMEWHERE)}


def _posterior(
    weights: Sequence[float], to_cot: Sequence[float], to_utc: Sequence[float]
) -> list[float]:
    """The log odds of COT for each cell, given all cells."""
    count = len(weights)
    likely = [math.exp(weight) for weight in weights]
    up = [math.exp(-cost) for cost in to_cot]
    down = [math.exp(-cost) for cost in to_utc]
    forward = [1.0] * count  # odds before the cell's own evidence
    for i in range(1, count):
        odds = forward[i - 1] * likely[i - 1]
        forward[i] = (odds * (1 - down[i]) + up[i]) / ((1 - up[i]) + odds * down[i])
    backward = 1.0
    found = [0.0] * count
    for i in range(count - 1, -1, -1):
        found[i] = math.log(forward[i]) + weights[i] + math.log(backward)
        odds = likely[i] * backward
        backward = ((1 - down[i]) * odds + down[i]) / ((1 - up[i]) + up[i] * odds)
    return found


def _doubts(cells: pl.DataFrame, windows: Windows) -> dict[int, str]:
    """Decided runs whose days do not fit either convention: digits of a third zone."""
    shift = pl.when(pl.col("convention") == "cot").then(windows.shift).otherwise(0)
    opens = windows.opens + windows.shift
    days = (
        cells.filter(pl.col("convention").is_not_null() & ~pl.col("around"))
        .with_columns(first=(pl.col("first_wall") + shift) % DAY)
        .with_columns(last=pl.col("first") + pl.col("last_wall") - pl.col("first_wall"))
        .group_by("run", "day")
        .agg(
            early=pl.col("first").min() - opens,
            late=pl.col("last").max() - (opens + windows.length - BAR_SECONDS),
            rows=pl.col("rows").sum(),
            day_rows=pl.col("day_rows").first(),
        )
        # A day that is cut in two begins and ends anywhere.
        .filter((pl.col("rows") >= 45) & (pl.col("rows") == pl.col("day_rows")))
        .group_by("run")
        .agg(pl.col("early").median(), pl.col("late").median())
    )
    doubts = {}
    for run, early, late in days.select("run", "early", "late").iter_rows():
        if min(early, late) >= 1800 or max(early, late) <= -1800:
            doubts[run] = (
                f"its days begin {early / 3600:+.1f} h and end {late / 3600:+.1f} h from where a "
                "session does"
            )
    return doubts
