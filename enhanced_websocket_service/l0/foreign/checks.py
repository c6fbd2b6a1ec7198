"""What is wrong with a row. Pure expressions and joins; ``judgement`` decides their order."""

from datetime import date, timedelta
from typing import Final

import holidays
import polars as pl

from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar
from enhanced_websocket_service.market.tick import MAX_PRICE

from .grading import PRICES

WIDENABLE: Final = 1e-5
"""An open or close this far outside [low, high], relative to the price, is rounding: the range is
widened to hold it. Beyond that the row is wrong."""
SPIKE: Final = 0.015
"""A high or low that stands out this far from the two bars before and after is a bad print."""
STUCK, STUCK_WHEN_THIN = 2, 6
"""So many repetitions of one flat bar in a row are no market. Where New York is closed the session is
thin, and flat bars are ordinary."""


def impossible_price() -> pl.Expr:
    """Not a number, not positive, or too large for the table."""
    return pl.any_horizontal(
        ~(pl.col(name).is_finite() & (pl.col(name) > 0) & (pl.col(name) < MAX_PRICE))
        for name in PRICES
    )


def highest() -> pl.Expr:
    return pl.max_horizontal(PRICES)


def lowest() -> pl.Expr:
    return pl.min_horizontal(PRICES)


def impossible_bar() -> pl.Expr:
    """High below low, or open or close outside them by more than rounding."""
    excess = pl.max_horizontal(highest() - pl.col("high"), pl.col("low") - lowest())
    return (pl.col("high") < pl.col("low")) | (excess > WIDENABLE * pl.col("close"))


def sessions(calendar: TradingCalendar, first: int, last: int) -> pl.DataFrame:
    """The local days around ``first .. last`` (unix seconds UTC): ``date``, ``opens`` and ``closes`` of
    the session (the first and last slot; null when closed) and ``closure``, why it is closed."""
    start = calendar.local_date(first) - timedelta(days=1)
    count = (calendar.local_date(last) - start).days + 2
    days: list[date] = [start + timedelta(days=i) for i in range(count)]
    return calendar_frame(calendar, days)


def calendar_frame(calendar: TradingCalendar, days: list[date]) -> pl.DataFrame:
    found = [calendar.session(day) for day in days]
    reasons = [
        None
        if session is not None
        else "weekend"
        if calendar.closure(day) == "Weekend"
        else "holiday"
        for day, session in zip(days, found, strict=True)
    ]
    return pl.DataFrame(
        {
            "date": days,
            "opens": [None if one is None else one.opens for one in found],
            "closes": [None if one is None else one.closes for one in found],
            "closure": reasons,
        },
        schema={"date": pl.Date, "opens": pl.Int64, "closes": pl.Int64, "closure": pl.String},
    )


def place(rows: pl.DataFrame, calendar: TradingCalendar, slot: str = "slot") -> pl.DataFrame:
    """``rows`` with ``misplaced``: why ``slot`` is no expected label; null when it is one."""
    slots = rows[slot]
    first, last = slots.min(), slots.max()
    if not isinstance(first, int) or not isinstance(last, int):
        return rows.with_columns(misplaced=pl.lit(None, dtype=pl.String))
    local = (
        pl.from_epoch(pl.col(slot))
        .dt.replace_time_zone("UTC")
        .dt.convert_time_zone(calendar.zone.key)
        .dt.date()
    )
    at = pl.col(slot)
    inside = at.is_between(pl.col("opens"), pl.col("closes")) & (
        (at - pl.col("opens")) % BAR_SECONDS == 0
    )
    return (
        rows.with_columns(date=local)
        .join(sessions(calendar, first, last), on="date", how="left", maintain_order="left")
        .with_columns(
            misplaced=pl.when(pl.col("closure").is_not_null())
            .then("closure")
            .when(~inside)
            .then(pl.lit("outside_session"))
        )
        .drop("opens", "closes", "closure")
    )


def bad_prints(rows: pl.DataFrame, band: float) -> pl.DataFrame:
    """``row`` of the bars whose prices cannot be: sessions' bars of one instrument, sorted by slot.

    :param band: how far from the day's typical price a price may lie, as a share.
    """
    days = rows.group_by("date").agg(typical=pl.col("close").median()).sort("date")
    around = pl.col("typical").rolling_median(11, center=True, min_samples=1)
    # Weeks may move a market by much, but not one day of it.
    days = days.with_columns(lost=(pl.col("typical") / around - 1).abs() > 3 * band)
    rows = rows.join(days, on="date", how="left", maintain_order="left")

    def usual(name: str) -> pl.Expr:
        return pl.col(name).rolling_median(5, center=True, min_samples=3)

    typical = pl.col("typical")
    wrong = (
        pl.col("lost")
        | (pl.col("high") > typical * (1 + band))
        | (pl.col("low") < typical * (1 - band))
        | (pl.col("high") > usual("high") * (1 + SPIKE)).fill_null(False)
        | (pl.col("low") < usual("low") * (1 - SPIKE)).fill_null(False)
    )
    return rows.filter(wrong).select("row")


def stuck(rows: pl.DataFrame) -> pl.DataFrame:
    """``row`` of the bars that only repeat a price: session bars sorted by slot, with ``date``."""
    flat = pl.col("high") == pl.col("low")
    follows = (pl.col("slot") - pl.col("slot").shift()).is_between(1, BAR_SECONDS)
    repeats = (flat & follows & (pl.col("close") == pl.col("close").shift())).fill_null(False)
    if not rows.select(repeats.any()).item():
        return rows.clear().select("row")
    rows = rows.with_columns(repeats=repeats, flat=flat, chain=(~repeats).cum_sum())
    rows = rows.with_columns(length=pl.col("repeats").sum().over("chain"))
    thin = pl.col("date").is_in(_thin_days(rows["date"]))
    enough = pl.when(thin).then(STUCK_WHEN_THIN).otherwise(STUCK)
    # The bar that is repeated is one of them when it has no range either.
    return rows.filter((pl.col("repeats") | pl.col("flat")) & (pl.col("length") >= enough)).select(
        "row"
    )


def _thin_days(dates: pl.Series) -> list[date]:
    years = dates.dt.year().unique().to_list()
    return list(holidays.country_holidays("US", years=years))


def other_interval(rows: pl.DataFrame) -> pl.DataFrame:
    """``row`` of the session days whose bars lie further apart than 5 minutes: longer bars."""
    step = pl.col("slot").sort().diff()
    days = rows.group_by("date").agg(
        "row", longer=(pl.len() >= 4) & (step.filter(step > 0).min() > BAR_SECONDS)
    )
    return days.filter("longer").select("row").explode("row")
