"""What speaks for which reading of a stamp. Pure.

A stamp's digits are UTC or Bogotá wall time (COT). Each kind of evidence is a log-likelihood ratio in
nats, positive for COT, negative for UTC; a row has the sum of its kinds. The numbers are deliberately
blunt: what matters is that a kind gives next to nothing where it has nothing to say. Kinds:

- ``sessions``: a feed of sessions fills 08:00..12:55 in COT, 13:00..17:55 in UTC, with sharp edges. Says
  nothing about days of a 24-hour feed, whose labels fill both.
- ``activity``: on days that have both stretches, the session is the livelier one.
- ``week``: a 24-hour feed pauses from Friday to Sunday 17:00 New York.
- ``written``: a row written while its bar formed, or within seconds of its end, tells the time; no row is
  written before its bar opened, nor lies in the future.
- ``known``: a bar of the database has the same close at the same slot.
- ``echo``: the file has the same bar again, once in each convention.
- ``claimed``: an explicit offset. It may be a lie, so it counts little, and once a file.
- ``batch``: the other rows written at the same moment are read this way (added by ``conventions``).
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import polars as pl

from enhanced_websocket_service.market.calendar import BAR_SECONDS, TradingCalendar

KINDS: Final = ("sessions", "activity", "week", "written", "known", "echo", "claimed", "batch")

DAY: Final = 86_400
LIVE_S: Final = 120
"""A row written at most this long after the end of its bar was written live."""
LIVE_ROWS: Final = 2
"""At most so many rows are written live at one moment; a batch meets some bar's end by chance."""

_ROW: Final = 1.0  # a session label, per row
_ROWS: Final = 40.0  # and at most, per stretch
_OPENS, _CLOSES = 4.0, 3.0  # the stretch begins or ends where the session does
_AROUND_THE_CLOCK: Final = 0.03  # share of a day's rows that no feed of sessions would have
_LIVELIER: Final = 0.25  # least difference of the mean logarithms
_DOUBLED: Final = 3  # stamps that carry two bars, in three hours
_PROFILE_ROWS: Final = 8  # in either stretch, for a comparison
_LEAST_VARIANCE: Final = 0.01
_LEAST_SHARE: Final = 0.2
_QUIET: Final = 3e-5  # activity below this share of the price is noise
_LIVE, _IMPOSSIBLE = 7.0, 12.0
_KNOWN: Final = 3.5
_ECHO: Final = 2.5
_CLAIM: Final = 3.0
_WEEK_DAY, _WEEK_EDGE = 12.0, 3.0
SAME_PRICE: Final = 2e-4
"""Exports round prices to different digits; closer than this, they are the same price."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Where sessions lie on the clock, seconds since midnight; ``shift`` is UTC minus local."""

    opens: int
    length: int  # to the end of the last bar
    shift: int

    @classmethod
    def of(cls, calendar: TradingCalendar, at: int) -> "Windows":
        """The windows of ``calendar``, with the zone's offset at ``at`` (unix seconds)."""
        offset = datetime.fromtimestamp(at, calendar.zone).utcoffset()
        shift = 0 if offset is None else -int(offset.total_seconds())
        last_bar = BAR_SECONDS * calendar.closing_label
        return cls(calendar.opens_s, calendar.closes_s + last_bar - calendar.opens_s, shift)


def weigh(rows: pl.DataFrame, windows: Windows, *, now: float, known: pl.DataFrame) -> pl.DataFrame:
    """``rows`` (readable, on the grid, in file order) with a column for each kind; with ``mixed``: whether
    the row's day could hold both conventions, ``contested``: whether it does, inseparably, and
    ``stray``: whether the row is out of its place.

    :param now: unix seconds UTC.
    :param known: ``slot`` and ``close`` of bars in the database, a row each slot.
    """
    frame = _contested(_days(rows, windows)).with_columns(stray=_stray())
    frame = _sessions(frame, windows)
    frame = _week(frame, windows)
    frame = frame.with_columns(written=_written(windows, now), claimed=_claimed(windows))
    frame = _known(frame, windows, known)
    frame = _echo(frame, windows)
    return frame.with_columns(pl.col(name).fill_null(0.0) for name in KINDS if name != "batch")


def _days(rows: pl.DataFrame, windows: Windows) -> pl.DataFrame:
    """Where in the day each row lies, what its day looks like as a whole, and ``activity``."""
    tod = pl.col("wall") % DAY
    utc_opens = windows.opens + windows.shift
    step = pl.col("wall") - pl.col("wall").shift()
    # Where the range was lost, the way from close to close tells; over a hole it is longer.
    moved = pl.when(step.is_between(BAR_SECONDS, 1800)).then(
        (pl.col("close") - pl.col("close").shift()).abs() * (BAR_SECONDS / step).sqrt()
    )
    frame = rows.with_columns(
        day=pl.col("wall") // DAY,
        in_cot=tod.is_between(windows.opens, windows.opens + windows.length - 1),
        in_utc=tod.is_between(utc_opens, utc_opens + windows.length - 1),
        elsewhere=(tod < windows.opens) | (tod >= utc_opens + windows.length + 7200),
        act=pl.max_horizontal(pl.col("high") - pl.col("low"), moved.fill_null(0.0))
        / pl.col("close"),
    )
    in_cot, in_utc = pl.col("in_cot"), pl.col("in_utc")
    days = frame.group_by("day").agg(
        day_rows=pl.len(),
        day_cot=in_cot.sum(),
        day_utc=in_utc.sum(),
        around=pl.col("elsewhere").sum(),
    )
    days = days.with_columns(
        around=pl.col("around") > _AROUND_THE_CLOCK * pl.col("day_rows"),
    ).with_columns(
        mixed=pl.col("around") | ((pl.col("day_cot") > 0) & (pl.col("day_utc") > 0)),
    )
    frame = frame.join(days, on="day", how="left", maintain_order="left")
    both = (pl.col("day_cot") >= _PROFILE_ROWS) & (pl.col("day_utc") >= _PROFILE_ROWS)
    if not days.select(both.any()).item():
        return frame.with_columns(activity=pl.lit(0.0))
    return frame.join(
        _profiles(frame.filter(both)), on="day", how="left", maintain_order="left"
    ).with_columns(
        # Only where it was measured: the rest of the day may follow another convention.
        activity=pl.when(pl.col("in_cot") | pl.col("in_utc"))
        .then(pl.col("activity") / (pl.col("day_cot") + pl.col("day_utc")))
        .otherwise(0.0)
    )


def _profiles(frame: pl.DataFrame) -> pl.DataFrame:
    """``day`` and how much its livelier stretch says."""
    # A bar that is stuck is no quiet market: none counts for less than a part of the day's usual.
    usual = pl.col("act").median().over("day")
    size = pl.max_horizontal("act", usual * _LEAST_SHARE, pl.lit(_QUIET)).log()
    share = (
        frame.with_columns(size=size)
        .group_by("day")
        .agg(
            **{
                f"{of}_{name}": getattr(pl.col("size").filter(pl.col(name)), of)()
                for name in ("in_cot", "in_utc")
                for of in ("mean", "var", "len")
            }
        )
    )
    variances = [
        pl.col(f"var_{name}").fill_null(0.0) / pl.col(f"len_{name}")
        for name in ("in_cot", "in_utc")
    ]
    error = (variances[0] + variances[1] + _LEAST_VARIANCE).sqrt()
    share = share.select(
        "day", difference=pl.col("mean_in_cot") - pl.col("mean_in_utc"), error=error
    )
    z = pl.col("difference") / pl.col("error")
    return share.select(
        "day",
        # The first two standard errors count for nothing: feeds without a profile must stay silent.
        activity=pl.when(pl.col("difference").abs() >= _LIVELIER)
        .then(z.sign() * ((z.abs() - 2).clip(0) ** 2 / 2).clip(0, 15))
        .otherwise(0.0),
    )


def _stray() -> pl.Expr:
    """A lone row out of its place: what stands around it says nothing about it, nor it about them."""
    wall = pl.col("wall")

    def follows(gap: pl.Expr) -> pl.Expr:
        return gap.is_between(1, 3600).fill_null(False)

    before, after = wall - wall.shift(), wall.shift(-1) - wall
    return ~follows(before) & ~follows(after) & follows(before + after)


def _contested(frame: pl.DataFrame) -> pl.DataFrame:
    """Marks rows of a 24-hour feed where many stamps carry two different bars: two conventions lie there
    one upon the other, as they do after a flip in a file sorted by its digits."""
    around = frame.filter("around").select("wall")
    doubled = around.filter(pl.col("wall").is_duplicated()).unique()
    hours = doubled.group_by(hour=pl.col("wall") // 3600).agg(count=pl.len())
    if hours.is_empty():
        return frame.with_columns(contested=pl.lit(False))
    near = pl.concat(hours.with_columns(hour=pl.col("hour") + n) for n in (-1, 0, 1))
    hot = near.group_by("hour").agg(pl.col("count").sum()).filter(pl.col("count") >= _DOUBLED)
    hour = pl.col("wall") // 3600
    return frame.with_columns(contested=pl.col("around") & hour.is_in(hot["hour"].implode()))


def _sessions(frame: pl.DataFrame, windows: Windows) -> pl.DataFrame:
    wall, gap = pl.col("wall"), pl.col("wall") - pl.col("wall").shift()
    starts = (
        (gap < 0)
        | (gap > 3600)
        | (pl.col("day") != pl.col("day").shift())
        | pl.col("offset").ne_missing(pl.col("offset").shift())
        | pl.col("origin").ne_missing(pl.col("origin").shift())
    ).fill_null(True)
    frame = frame.with_columns(stretch=starts.cum_sum())
    first, last = wall.first() % DAY, wall.last() % DAY
    utc_opens = windows.opens + windows.shift
    ends = windows.length - BAR_SECONDS

    def edge(at: pl.Expr, cot: int, utc: int, weight: float) -> pl.Expr:
        return pl.when(at == cot).then(weight).when(at == utc).then(-weight).otherwise(0.0)

    balance = pl.col("in_cot").sum().cast(pl.Float64) - pl.col("in_utc").sum()
    score = (
        (balance * _ROW).clip(-_ROWS, _ROWS)
        + edge(first, windows.opens, utc_opens, _OPENS)
        + edge(last, windows.opens + ends, utc_opens + ends, _CLOSES)
    )
    stretches = frame.group_by("stretch").agg(
        sessions=pl.when(pl.col("around").any()).then(0.0).otherwise(score) / pl.len()
    )
    return frame.join(stretches, on="stretch", how="left", maintain_order="left")


def _week(frame: pl.DataFrame, windows: Windows) -> pl.DataFrame:
    """Only 24-hour feeds have a week; only lively rows prove that somebody traded."""
    weekday = (pl.col("day") + 3) % 7 + 1  # 1970-01-01 was a Thursday
    rows = frame.filter(pl.col("around") & weekday.is_in([5, 7])).select(
        "row", "wall", "day", "act"
    )
    if rows.is_empty():
        return frame.with_columns(week=pl.lit(0.0))
    rows = rows.with_columns(weekday=weekday)
    for name, shift in (("utc", 0), ("cot", windows.shift)):
        local = (
            pl.from_epoch(pl.col("wall") + shift)
            .dt.replace_time_zone("UTC")
            .dt.convert_time_zone("America/New_York")
        )
        on, minute = local.dt.weekday(), local.dt.hour().cast(pl.Int32) * 60 + local.dt.minute()
        rows = rows.with_columns(
            ((on == 5) & (minute >= 1020) | (on == 6) | (on == 7) & (minute < 1020)).alias(
                f"closed_{name}"
            ),
            ((on == 7) & minute.is_between(1020, 1034)).alias(f"opening_{name}"),
            ((on == 5) & minute.is_between(1005, 1019)).alias(f"closing_{name}"),
        )
    vote = pl.when(pl.col("act") > 0).then(
        pl.col("closed_utc").cast(pl.Float64) - pl.col("closed_cot").cast(pl.Float64)
    )
    rows = rows.with_columns(vote=vote.fill_null(0.0))
    total = pl.col("vote").sum().over("day")
    cap = _WEEK_DAY / pl.max_horizontal(total.abs(), pl.lit(_WEEK_DAY))

    def edge(name: str) -> pl.Expr:
        both = pl.col(f"{name}_cot").cast(pl.Float64) - pl.col(f"{name}_utc").cast(pl.Float64)
        return both * _WEEK_EDGE

    first = pl.col("wall") == pl.col("wall").min().over("day")
    last = pl.col("wall") == pl.col("wall").max().over("day")
    sunday = pl.col("weekday") == 7
    # Each row votes for itself: the rest of its day may follow another convention.
    votes = rows.select(
        "row",
        week=pl.when(pl.len().over("day") >= 12)
        .then(
            pl.col("vote") * cap
            + pl.when(first & sunday).then(edge("opening")).otherwise(0.0)
            + pl.when(last & ~sunday).then(edge("closing")).otherwise(0.0)
        )
        .otherwise(0.0),
    )
    return frame.join(votes, on="row", how="left", maintain_order="left")


def live(shift: int) -> pl.Expr:
    """The row was first written while its bar formed or within seconds of its end."""
    end = pl.col("wall") + shift + BAR_SECONDS
    lag = pl.col("created") - end
    return pl.col("created_aware") & lag.is_between(-BAR_SECONDS, LIVE_S)


def rewritten() -> pl.Expr:
    """Somebody wrote the row again long after: its birth says nothing about what it holds now."""
    return pl.col("changed") - pl.col("created") > 2 * BAR_SECONDS


def impossible(shift: int) -> pl.Expr:
    """The row was written before its bar opened."""
    return pl.col("created_aware") & (pl.col("created") < pl.col("wall") + shift - 60)


def _written(windows: Windows, now: float) -> pl.Expr:
    alone = (pl.len().over("created") <= LIVE_ROWS) & ~rewritten()
    cot, utc = live(windows.shift) & alone, live(0) & alone
    never_cot = impossible(windows.shift) | (pl.col("wall") + windows.shift > now)
    never_utc = impossible(0) | (pl.col("wall") > now)

    def sign(condition: pl.Expr, weight: float) -> pl.Expr:
        return pl.when(condition).then(weight).otherwise(0.0)

    return (
        sign(cot & ~utc, _LIVE)
        - sign(utc & ~cot, _LIVE)
        + sign(never_utc & ~never_cot, _IMPOSSIBLE)
        - sign(never_cot & ~never_utc, _IMPOSSIBLE)
    )


def _claimed(windows: Windows) -> pl.Expr:
    offset = pl.col("offset")
    claim = (
        pl.when(offset == 0)
        .then(-_CLAIM)
        .when(offset == -windows.shift)
        .then(_CLAIM)
        .otherwise(0.0)
    )
    return pl.when(offset.is_first_distinct()).then(claim).otherwise(0.0)


def _known(frame: pl.DataFrame, windows: Windows, known: pl.DataFrame) -> pl.DataFrame:
    if known.is_empty():
        return frame.with_columns(known=pl.lit(0.0))
    votes = []
    for name, shift in (("is_utc", 0), ("is_cot", windows.shift)):
        there = known.select(at=pl.col("slot") - shift, **{name: pl.col("close")})
        frame = frame.join(there, left_on="wall", right_on="at", how="left", maintain_order="left")
        same = (pl.col(name) - pl.col("close")).abs() <= SAME_PRICE
        votes.append(pl.when(same).then(_KNOWN).otherwise(0.0))
    return frame.with_columns(known=votes[1] - votes[0]).drop("is_utc", "is_cot")


def _echo(frame: pl.DataFrame, windows: Windows) -> pl.DataFrame:
    """The same bar five hours on in the digits: this row is COT, that one UTC."""
    prices = ("open", "high", "low", "close")
    rows = frame.filter("mixed").select("wall", *prices)
    pairs = rows.unique("wall", keep="first").with_columns(later=pl.col("wall") + windows.shift)
    pairs = pairs.join(pairs, left_on="later", right_on="wall", suffix="_")
    same = [(pl.col(name) - pl.col(f"{name}_")).abs() <= SAME_PRICE for name in prices]
    moved = (pl.col("high") > pl.col("low")) | (pl.col("high_") > pl.col("low_"))
    pairs = pairs.filter(moved & (same[3] | (pl.sum_horizontal(same) >= 2)))
    if pairs.is_empty():
        return frame.with_columns(echo=pl.lit(0.0))
    votes = pl.concat(
        [
            pairs.select("wall", echo=pl.lit(_ECHO)),
            pairs.select(wall="later", echo=pl.lit(-_ECHO)),
        ]
    )
    votes = votes.group_by("wall").agg(pl.col("echo").sum())
    return frame.join(votes, on="wall", how="left", maintain_order="left")
