"""Faults of what the vendor says: strange ticks, REST that errs, bars that come late or wrong."""

from collections.abc import Mapping
from typing import Any

from .expectation import ANY, NONE, Bounds, Expectation, Stage

POLLED = "_rest"
NO_CREDITS = {"poll": NONE, "liveness": NONE}


def _strange(
    name: str,
    what: str,
    sets: Mapping[str, Any],
    *,
    flags: Mapping[str, Bounds] | None = None,
    rejected: Bounds = NONE,
    live_bars: bool = True,
    lasts_s: float = 60.0,
) -> Expectation:
    """Ticks that are odd: they are stored, flagged or refused, and the feed is not doubted."""
    return Expectation(
        name,
        what,
        sets,
        lasts_s=lasts_s,
        verdicts=(),
        found_s=None,
        reconnects=NONE,
        credits=NO_CREDITS,
        rest_prices=NONE,
        flags=flags or {},
        rejected=rejected,
        live_bars=live_bars,
    )


TICKS = Stage(
    "ticks",
    title="Ticks are strange",
    speed=20,
    starts="13:00:00",
    faults=(),
)


def _unanswered(
    name: str,
    what: str,
    sets: Mapping[str, Any],
    *,
    lasts_s: float = 40.0,
    noticed: str = "suspect",
    found_s: float = 15.0,
    verdicts: tuple[str, ...] = ("suspect", "live"),
    back_s: float | None = 70.0,
    polls: Bounds = ANY,
) -> Expectation:
    return Expectation(
        name,
        what,
        sets,
        lasts_s=lasts_s,
        verdicts=verdicts,
        noticed=noticed,
        found_s=found_s,
        back_s=back_s,
        reconnects=NONE,
        credits={"poll": polls},
        ticks="polled",
        live_bars=False,
    )


POLLING = Stage(
    "polling",
    title="REST fails while prices come by REST",
    speed=20,
    starts="12:57:00",
    by_rest=True,
    environ={"FEED_MODE": "rest"},
    faults=(
        _unanswered(
            "rest_200_error",
            "errors with HTTP status 200",
            {"rest_status": "500", "status_200_errors": True},
        ),
        _unanswered("rest_500", "500, internal server error", {"rest_status": "500"}),
        _unanswered("rest_520", "520, plain text of a gateway", {"rest_status": "520"}),
        _unanswered(
            "rest_429_minute",
            "429, out of credits for the minute",
            {"rest_status": "429_minute"},
            back_s=90.0,
            polls=Bounds(1, 10),
        ),
        _unanswered(
            "rest_timeout",
            "calls are never answered",
            {"rest_timeout": True},
            lasts_s=70.0,
            noticed="dead",
            found_s=110.0,
            verdicts=("suspect?", "dead", "suspect?", "live"),
            back_s=300.0,
        ),
    ),
)

SPENT_DAY = Stage(
    "spent_day",
    title="The day's credits are spent",
    speed=20,
    starts="13:06:00",
    by_rest=True,
    environ={"FEED_MODE": "rest"},
    faults=(
        _unanswered(
            "rest_429_day",
            "429, out of credits for the day, on every key",
            {"rest_status": "429_day"},
            noticed="dead",
            found_s=90.0,
            verdicts=("suspect?", "dead"),
            back_s=None,
            polls=Bounds(1, 8),
        ),
    ),
)

THIN = Stage(
    "thin",
    title="Nothing is wrong",
    about="2 to 40 ticks a bar",
    speed=60,
    starts="12:30:00",
    ticks_per_bar=None,
    faults=(
        Expectation(
            "thin_market",
            "few prices, while REST lags up to 20 s and rounds",
            {"rest_lag_s": [0, 20], "rest_decimals": 2},
            lasts_s=1800.0,
            verdicts=("suspect, live*", "suspect?"),
            found_s=None,
            reconnects=NONE,
            credits={"poll": NONE},
            rest_prices=NONE,
        ),
    ),
)


def _history(
    name: str,
    what: str,
    sets: Mapping[str, Any],
    *,
    lasts_s: float = 600.0,
    drop: bool = True,
    missing: int = 0,
) -> Expectation:
    """What the vendor's bars do to the repair of a gap, which a broken connection makes."""
    return Expectation(
        name,
        what,
        {**sets, "drop": True} if drop else sets,
        lasts_s=lasts_s,
        verdicts=("suspect?", "dead", "suspect?", "live"),
        found_s=None if not drop else 60.0,
        reconnects=Bounds(1, 2) if drop else NONE,
        repair=Bounds(1, 12),
        ticks="broken_off",
        live_bars=False,
        missing=missing,
    )


HISTORY = Stage(
    "history",
    title="The vendor's bars are late, wrong or missing",
    about="Each is set together with a broken connection, so that there is a gap to repair",
    speed=60,
    starts="12:20:00",
    faults=(
        _history("late_candles", "bars appear 180 s after their end", {"late_candles_s": 180}),
        _history(
            "revised_candles",
            "bars have other prices until 4 minutes after their end",
            {"revised_candles": {"until_s": 240, "bp": 5}},
        ),
        _history("missing_bars", "every bar is absent from the answers", {"missing_bars": 1.0}),
        _history(
            "empty_windows",
            "the vendor answers that there is no data on these dates",
            {"empty_windows": True},
        ),
    ),
)
