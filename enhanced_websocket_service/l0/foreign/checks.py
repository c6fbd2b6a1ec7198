"""What is wrong with a row. Pure expressions and joins; ``judgement`` decides their order."""

from datetime import date
from typing import Final

import holidays
import polars as pl

from enhanced_websocket_service.market.calendar import BAR_SECONDS, MIDNIGHT, TradingCalendar
from enhanced_websocket_service.market.tick import MAX_PRICE

from .grading import PRICES

WIDENABLE: Final = 1e-5
"""An open or close this far outside [low, high], relative to the price, is rounding: the range is
widened to hold it. Beyond that the row is wrong."""
SPIKE: Final = 0.015
"""A high or low that stands out this far from the two bars before and after is a bad print."""
STUCK_OVER_S: Final = 5 * 86_400
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


def sessions(calendar: TradingCalendar, days: list[date]) -> pl.DataFrame:
    """``days`` (local ones): ``date``, ``opens`` and ``closes`` of the session (the first and last slot;
    null when closed) and ``closure``, why it is closed."""
    reasons = [calendar.closure(day) for day in days]
    kinds = [
        None if reason is None else "weekend" if reason == "Weekend" else "holiday"
        for reason in reasons
    ]
    frame = pl.DataFrame(
        {"date": days, "closure": kinds}, schema={"date": pl.Date, "closure": pl.String}
    )

    def instant(seconds: int) -> pl.Expr:
        midnight = pl.col("date").dt.combine(MIDNIGHT).dt.replace_time_zone(calendar.zone.key)
        return pl.when(pl.col("closure").is_null()).then(midnight.dt.epoch("s") + seconds)

    last = calendar.closes_s - BAR_SECONDS * (not calendar.closing_label)
    return frame.with_columns(opens=instant(calendar.opens_s), closes=instant(last))


def place(
    rows: pl.DataFrame, calendar: TradingCalendar, shift: int, slot: str = "slot"
) -> pl.DataFrame:
    """``rows`` with the local ``date`` of ``slot`` and ``misplaced``: why it is no expected label; null when
    it is one.

    :param shift: UTC minus local time, seconds.
    """
    at = pl.col(slot)
    rows = rows.with_columns(date=((at - shift) // 86_400).cast(pl.Int32).cast(pl.Date))
    days: list[date] = rows["date"].unique().sort().to_list()
    inside = at.is_between(pl.col("opens"), pl.col("closes")) & (
        (at - pl.col("opens")) % BAR_SECONDS == 0
    )
    return (
        rows.join(sessions(calendar, days), on="date", how="left", maintain_order="left")
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

    typical = pl.col("typical")
    wrong = rows.select(
        "row",
        bad=pl.col("lost")
        | (pl.col("high") > typical * (1 + band))
        | (pl.col("low") < typical * (1 - band)),
    ).filter("bad")
    return pl.concat([wrong.select("row"), _spikes(rows)]).unique()


def _spikes(rows: pl.DataFrame) -> pl.DataFrame:
    """Highs and lows that stand out from the median of themselves and their two neighbours on
    either side."""
    around = [-2, -1, 1, 2]
    lower = pl.min_horizontal(pl.col("high").shift(n) for n in around)
    upper = pl.max_horizontal(pl.col("low").shift(n) for n in around)
    suspects = rows.select("row", "high", "low", lower=lower, upper=upper).with_columns(
        suspect=(pl.col("high") > pl.col("lower") * (1 + SPIKE))
        | (pl.col("low") < pl.col("upper") * (1 - SPIKE))
    )
    if not suspects["suspect"].any():
        return rows.clear().select("row")

    def usual(name: str) -> pl.Expr:
        return pl.col(name).rolling_median(5, center=True, min_samples=3)

    # Only where there are suspects: the median of a million rows is dear.
    near = pl.any_horizontal(pl.col("suspect").shift(n, fill_value=False) for n in range(-4, 5))
    return (
        suspects.filter(near)
        .filter(
            pl.col("suspect")
            & (
                (pl.col("high") > usual("high") * (1 + SPIKE))
                | (pl.col("low") < usual("low") * (1 - SPIKE))
            )
        )
        .select("row")
    )


def stuck(rows: pl.DataFrame) -> pl.DataFrame:
    """``row`` of the bars that only repeat the price of the row before, with ``slot`` and ``date``.

    A lone repetition may be a market that did not move, where the day has other flat bars; where all
    others have a range, it is how exports fill a hole.
    """
    flat = pl.col("high") == pl.col("low")
    # Whatever lies between was lost, or the market was closed: no hole makes a stuck run a market.
    follows = pl.col("slot") - pl.col("slot").shift() < STUCK_OVER_S
    repeats = (flat & follows & (pl.col("close") == pl.col("close").shift())).fill_null(False)
    if not rows.select(repeats.any()).item():
        return rows.clear().select("row")
    rows = rows.with_columns(repeats=repeats, flat=flat, chain=(~repeats).cum_sum())
    rows = rows.with_columns(length=pl.col("repeats").sum().over("chain"))
    rows = rows.with_columns(
        flat_market=(pl.col("flat") & (pl.col("length") == 0)).any().over("date")
    )
    thin = pl.col("date").is_in(_thin_days(rows["date"]))
    enough = (
        pl.when(thin).then(STUCK_WHEN_THIN).when(pl.col("flat_market")).then(STUCK).otherwise(1)
    )
    # The bar that is repeated is one of them when it has no range either.
    return rows.filter((pl.col("repeats") | pl.col("flat")) & (pl.col("length") >= enough)).select(
        "row"
    )


def _thin_days(dates: pl.Series) -> list[date]:
    years = dates.dt.year().unique().to_list()
    return list(holidays.country_holidays("US", years=years))


def copies(rows: pl.DataFrame) -> pl.DataFrame:
    """``row`` of those that say what another row says, word for word. The one that stays is the one that
    continues the row before it: a copy out of its place must not speak for its new neighbours."""
    same = ("wall", "offset", *PRICES)
    if rows["wall"].n_unique() == rows.height:
        return rows.clear().select("row")
    doubled = rows.select(pl.struct(same).is_duplicated()).to_series()
    gap = pl.col("wall") - pl.col("wall").shift()
    rows = rows.with_columns(strays=~gap.is_between(1, 3600).fill_null(False)).filter(doubled)
    kept = rows.sort("strays", "row").unique(same, keep="first", maintain_order=True)
    return rows.join(kept, on="row", how="anti").select("row")


def other_interval(rows: pl.DataFrame) -> pl.DataFrame:
    """``row`` of the session days whose bars lie further apart than 5 minutes: longer bars. Rows are
    sorted by slot."""
    step = pl.col("slot") - pl.col("slot").shift()
    days = (
        rows.select("date", step=pl.when(step > 0).then(step))
        .group_by("date")
        .agg(longer=(pl.len() >= 4) & (pl.col("step").min() > BAR_SECONDS))
        .filter("longer")
    )
    return rows.join(days, on="date", how="semi").select("row")
