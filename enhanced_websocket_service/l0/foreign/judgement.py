"""A table of foreign rows to bars that can be stood behind, and reasons for all the others. Pure.

Invariant: every row ends in exactly one of accepted, corrected (accepted at another time than its digits
say, or with a mended range or volume) and quarantined.
"""

from dataclasses import dataclass
from typing import Final

import polars as pl

from enhanced_websocket_service.errors import DataError
from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar
from enhanced_websocket_service.market.source import is_simulated

from . import checks, evidence, grading
from .conventions import Convention, Decision, Run, decide

REASONS: Final = {
    "unparsable": "the line, its stamp or a price cannot be read",
    "other_symbol": "of a symbol that is not configured",
    "simulated": "invented prices, by their own source",
    "off_grid": "not on a whole 5 minutes",
    "other_interval": "a bar longer than 5 minutes",
    "bad_price": "no price, or far from all prices around it",
    "bad_ohlc": "open, high, low and close contradict each other",
    "ambiguous_time": "the evidence does not tell UTC from local time",
    "future": "a bar that has not ended yet",
    "outside_session": "outside the hours of the session",
    "holiday": "on a closed day",
    "weekend": "on a weekend",
    "stuck_run": "repeats the last price without a market",
    "duplicate": "the same bar again",
    "collision": "the slot has a better row, once both are at their true time",
    "conflict": "another row for the slot contradicts it",
    "refused": "the file was refused as a whole: too few of its rows can be placed in time",
    "worse_than_existing": "the database has a better bar for the slot, or one that contradicts it",
}
THIN_SHARE: Final = 0.5
"""When more than this share of the rows that could be bars cannot be placed in time, nothing is."""
REFUSED: Final = "refused"
_OFF_GRID_SHARE: Final = 0.2

EXISTING: Final = pl.Schema(
    {
        "slot": pl.Int64(),
        **dict.fromkeys(grading.PRICES, pl.Float64()),
        "grade": pl.String(),
        "rank": pl.Int32(),
    }
)
"""The best bar of other sources for each slot; ``rank``: grade times ten, plus the source's."""

BARS: Final = (
    *("row", "slot", "symbol", "open", "high", "low", "close", "volume"),
    *("grade", "convention", "corrected"),
)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of one symbol's rows of one file, or of all of them together."""

    bars: pl.DataFrame  # BARS; one row a slot, ascending
    quarantined: pl.DataFrame  # row, reason
    runs: tuple[Run, ...]
    read: int
    found: dict[str, int]  # what the file is like, whatever became of the rows
    candidates: int  # rows that are a bar under one of the readings
    ambiguous: int  # of them, those that cannot be placed

    @property
    def accepted(self) -> int:
        return self.bars.height - self.corrected

    @property
    def corrected(self) -> int:
        return int(self.bars["corrected"].sum())

    @property
    def thin(self) -> bool:
        """Too little is known about too many rows."""
        return self.ambiguous > THIN_SHARE * self.candidates


def judge(
    rows: pl.DataFrame,
    *,
    symbol: str,
    calendar: TradingCalendar,
    now: float,
    existing: pl.DataFrame,
    own: pl.DataFrame | None = None,
    assume: Convention | None = None,
    band: float = 0.05,
    allow_simulated: bool = False,
    where: str = "the file",
) -> Judgement:
    """Judge ``rows`` (``reading.SCHEMA``).

    :param symbol: the instrument; rows that name another one are quarantined.
    :param now: unix seconds UTC.
    :param existing: what the database has from other sources (``EXISTING``).
    :param own: what an earlier import of the same source left there (``EXISTING``).
    :param assume: the convention of whatever the evidence leaves open.
    :param band: how far a price may lie from its day's typical one, as a share.
    :param allow_simulated: keep rows whose own source says that they are invented.
    :raises DataError: the rows are not 5-minute bars at all.
    """
    # What a stamp in a third zone claims is its UTC; the two it may lie about keep their digits.
    clock = rows["wall"].median()
    windows = evidence.Windows.of(calendar, int(clock) if isinstance(clock, float | int) else 0)
    offset = pl.col("offset")
    rows = rows.with_columns(
        wall=pl.when(offset.is_in([0, -windows.shift]) | offset.is_null())
        .then("wall")
        .otherwise(pl.col("wall") - offset),
        offset=pl.when(offset.is_in([0, -windows.shift])).then(offset).otherwise(offset * 0),
    )
    rows = rows.with_columns(reason=_unusable(symbol, allow_simulated))
    _require_five_minutes(rows, where)
    usable = rows.drop("symbol", "on_grid", "fault").filter(pl.col("reason").is_null())
    usable = usable.drop("reason")
    copies = checks.copies(usable)
    rows = _mark(rows, copies, "duplicate")
    usable = _without(usable, copies)
    decision = _decide(usable, windows, now, existing, assume)
    placed, ambiguous, candidates = _place(usable, decision, windows, calendar, now)
    rows = _mark(rows, placed.filter(pl.col("reason").is_not_null()), None)
    stuck = _stuck(placed)
    if not placed["slot"].is_sorted():
        placed = placed.sort("slot", "row")
    bars = placed.filter(pl.col("reason").is_null())
    bars = bars.with_columns(grade=grading.grade(windows.shift))
    met = grading.against_existing(bars, existing)
    confirmed = met.filter("confirmed").select("row", "grade_there")
    bars = grading.confirmed_by(bars, confirmed)
    for reason, found in (
        ("other_interval", checks.other_interval(bars)),
        ("bad_price", checks.bad_prints(bars, band)),
        ("stuck_run", stuck.join(bars.select("row"), on="row", how="semi")),
    ):
        # What the database has, too, is no error of the file.
        found = found.join(confirmed, on="row", how="anti")
        rows = _mark(rows, found, reason)
        bars = _without(bars, found)
    lost = grading.rivals(bars)
    rows = _mark(rows, lost, None)
    bars = _without(bars, lost)
    worse = met.filter(pl.col("reason").is_not_null()).select("row", "reason")
    if own is not None and own.height:
        worse = pl.concat([worse, grading.against_own(bars, own)]).unique("row", keep="first")
    worse = worse.join(bars.select("row"), on="row", how="semi")
    rows = _mark(rows, worse, None)
    bars = _without(bars, worse)
    bars = bars.with_columns(
        corrected=(pl.col("convention") == "cot") & pl.col("offset").ne_missing(-windows.shift)
        | (checks.highest() != pl.col("high"))
        | (checks.lowest() != pl.col("low"))
        | pl.col("volume_mended"),
        high=checks.highest(),
        low=checks.lowest(),
        symbol=pl.lit(symbol),
    )
    judged = Judgement(
        bars=bars.select(BARS),
        quarantined=rows.filter(pl.col("reason").is_not_null()).select("row", "reason"),
        runs=decision.runs,
        read=rows.height,
        found=_found(rows, placed, windows),
        candidates=candidates,
        ambiguous=ambiguous,
    )
    counted = judged.accepted + judged.corrected + judged.quarantined.height
    assert counted == judged.read, f"{counted} of {judged.read} rows are accounted for"
    return judged


def _found(rows: pl.DataFrame, placed: pl.DataFrame, windows: evidence.Windows) -> dict[str, int]:
    tod = pl.col("slot") % evidence.DAY
    opens = windows.opens + windows.shift
    bar = pl.col("reason").is_null()
    bars = placed.filter(bar)
    slots = bars["slot"].n_unique()
    moved = 0
    if slots < bars.height:
        walls = bars.group_by("slot").agg(pl.col("wall").n_unique())
        moved = int((walls["wall"] > 1).sum())
    days = bars["date"].n_unique()
    sessions = days * (windows.length // BAR_SECONDS)
    counts = placed.select(
        local_time_rows=(pl.col("convention") == "cot").sum(),
        utc_rows=(pl.col("convention") == "utc").sum(),
        outside_hours=(~tod.is_between(opens, opens + windows.length - 1)).sum(),
        sunday_rows=((pl.col("wall") // evidence.DAY + 3) % 7 == 6).sum(),
        holiday_rows=(pl.col("reason") == "holiday").sum(),
    ).row(0, named=True)
    flat = (rows["high"] == rows["low"]) & (rows["open"] == rows["close"])
    return {
        "flat_rows": int(flat.sum()),
        **counts,
        "colliding_slots": moved,
        "trading_days": days,
        "missing_slots": sessions - slots,
    }


def _unusable(symbol: str, allow_simulated: bool) -> pl.Expr:
    simulated = pl.col("origin").map_batches(_simulated, return_dtype=pl.Boolean)
    return (
        pl.when(pl.col("fault").is_not_null())
        .then(pl.lit("unparsable"))
        .when(pl.col("symbol").ne_missing(symbol) & pl.col("symbol").is_not_null())
        .then(pl.lit("other_symbol"))
        .when(simulated & (not allow_simulated))
        .then(pl.lit("simulated"))
        .when(checks.impossible_price())
        .then(pl.lit("bad_price"))
        .when(~pl.col("on_grid"))
        .then(pl.lit("off_grid"))
        .when(checks.impossible_bar())
        .then(pl.lit("bad_ohlc"))
    )


def _simulated(origin: pl.Series) -> pl.Series:
    names = [name for name in origin.unique().to_list() if is_simulated(name)]
    return origin.is_in(names).fill_null(False)


def _require_five_minutes(rows: pl.DataFrame, where: str) -> None:
    """Bars of one minute that happen to lie on the grid must not pass for bars of five."""
    stamped = rows.filter(pl.col("wall").is_not_null())
    off = int((~stamped["on_grid"]).sum())
    if stamped.height and off > _OFF_GRID_SHARE * stamped.height:
        raise DataError(
            f"{where}: {off} of {stamped.height} stamps are not on a whole 5 minutes: these are no "
            "5-minute bars labelled by their open. Export 5-minute bars; nothing was imported."
        )


def _decide(
    usable: pl.DataFrame,
    windows: evidence.Windows,
    now: float,
    existing: pl.DataFrame,
    assume: Convention | None,
) -> Decision:
    if usable.is_empty():
        nothing = usable.select("row").with_columns(
            run=pl.lit(None, dtype=pl.UInt32), convention=pl.lit(None, dtype=pl.String)
        )
        return Decision(nothing, ())
    known = existing.select("slot", "close")
    return decide(evidence.weigh(usable, windows, now=now, known=known), windows, assume)


def _place(
    usable: pl.DataFrame,
    decision: Decision,
    windows: evidence.Windows,
    calendar: TradingCalendar,
    now: float,
) -> tuple[pl.DataFrame, int, int]:
    """``usable`` at its true time with the reason against it; how many candidates could not be placed
    and how many there are."""
    frame = usable.with_columns(decision.rows["convention"])  # the same rows in the same order
    cot = pl.col("convention") == "cot"
    frame = frame.with_columns(
        slot=pl.when(cot).then(pl.col("wall") + windows.shift).otherwise("wall")
    )
    frame = checks.place(frame, calendar, windows.shift)
    known = pl.col("convention").is_not_null()
    open_rows = frame.filter(~known).select(
        "row", "misplaced", other=pl.col("wall") + windows.shift
    )
    elsewhere = checks.place(
        open_rows.rename({"misplaced": "as_utc"}), calendar, windows.shift, "other"
    ).filter(pl.col("as_utc").is_null() | pl.col("misplaced").is_null())
    ambiguous = elsewhere.height
    frame = frame.join(
        elsewhere.select("row", either=pl.lit(True)), on="row", how="left", maintain_order="left"
    )
    alone = pl.len().over("created") <= evidence.LIVE_ROWS
    told_otherwise = alone & ((cot & evidence.live(0)) | (~cot & evidence.live(windows.shift)))
    too_early = pl.col("changed") < pl.col("slot") - 60
    contradicted = pl.col("created_aware") & (told_otherwise | too_early)
    frame = frame.with_columns(
        reason=pl.when(pl.col("either").fill_null(False))
        .then(pl.lit("ambiguous_time"))
        .when(pl.col("misplaced").is_not_null())
        .then("misplaced")
        .when(contradicted)
        .then(pl.lit("ambiguous_time"))
        .when(pl.col("slot") + BAR_SECONDS > now)
        .then(pl.lit("future"))
    )
    sure = int(frame.select((known & pl.col("misplaced").is_null()).sum()).item())
    return frame.drop("misplaced", "either"), ambiguous, sure + ambiguous


def _stuck(placed: pl.DataFrame) -> pl.DataFrame:
    """``row`` of what only repeats a price, in the order of the file or in that of time: a run may begin
    before the session or the day before, and other rows may lie between in either order."""
    closed = pl.col("reason").is_in(["weekend", "holiday"]).fill_null(False)
    rows = placed.select("row", "slot", "date", "high", "low", "close", "convention", bad=closed)
    rows = rows.filter(~pl.col("bad"))
    found = checks.stuck(rows)
    in_time = rows.filter(pl.col("convention").is_not_null())
    if in_time.height == rows.height and rows["slot"].is_sorted():
        return found
    return pl.concat([found, checks.stuck(in_time.sort("slot", "row"))]).unique()


def _without(rows: pl.DataFrame, found: pl.DataFrame) -> pl.DataFrame:
    if found.is_empty():
        return rows
    return rows.join(found, on="row", how="anti", maintain_order="left")


def _mark(rows: pl.DataFrame, found: pl.DataFrame, reason: str | None) -> pl.DataFrame:
    """Give ``reason``, or that in ``found``, to the rows in ``found`` that have none yet."""
    if found.is_empty():
        return rows
    marks = found.select("row", new="reason" if reason is None else pl.lit(reason))
    return (
        rows.join(marks.unique("row", keep="first"), on="row", how="left", maintain_order="left")
        .with_columns(reason=pl.coalesce("reason", "new"))
        .drop("new")
    )
