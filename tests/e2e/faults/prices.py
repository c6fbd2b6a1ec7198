"""Faults of what the vendor says: strange ticks, REST that errs, bars that come late or wrong."""

from collections.abc import Mapping
from typing import Any

from .expectation import ANY, NONE, Bounds, Expectation, Stage

DOUBTED = ("suspect, live*",)


def _strange(
    name: str,
    what: str,
    sets: Mapping[str, Any],
    *,
    flags: Mapping[str, Bounds] | None = None,
    rejected: Bounds = NONE,
    live_bars: bool = True,
    lasts_s: float = 40.0,
    verdicts: tuple[str, ...] = (),
    liveness: Bounds = NONE,
) -> Expectation:
    """Ticks that are odd: they are stored, flagged or refused, and the feed is never given up."""
    return Expectation(
        name,
        what,
        sets,
        lasts_s=lasts_s,
        verdicts=verdicts,
        found_s=None,
        reconnects=NONE,
        credits={"poll": NONE, "liveness": liveness},
        rest_prices=NONE,
        flags=flags or {},
        rejected=rejected,
        live_bars=live_bars,
    )


TICKS = Stage(
    "ticks",
    title="Ticks are strange",
    speed=20,
    starts="12:55:00",
    faults=(
        _strange("double", "every fifth tick is sent twice, exactly", {"double": 0.2}),
        _strange(
            "disorder",
            "ticks leave up to 5 s late, overtaken by others",
            {"disorder": {"within_s": 5, "share": 0.3}},
            flags={"out_of_order": Bounds(1)},
        ),
        _strange(
            "future",
            "every fifth stamp lies 16 s ahead",
            {"future_s": {"seconds": 16, "share": 0.2}},
            flags={"future": Bounds(1, 60)},
            live_bars=False,
        ),
        _strange(
            "outlier",
            "bad prints, 10 % off",
            {"outlier": {"pct": 10, "share": 0.2}},
            rejected=Bounds(1, 60),
        ),
        _strange(
            "crossed",
            "bid and ask are exchanged in half of the ticks",
            {"crossed": 0.5},
            flags={"crossed": Bounds(5)},
        ),
        _strange(
            "float32_noise",
            "prices have the noise of 32-bit floats",
            {"float32_noise": True},
            live_bars=False,
        ),
        _strange("no_bid_ask", "prices without bid and ask", {"no_bid_ask": True}, lasts_s=20.0),
        _strange("string_prices", "prices are texts", {"string_prices": True}, lasts_s=20.0),
        _strange(
            "slow_frames",
            "frames leave 8 bytes at a time, a millisecond apart",
            {"slow_frames": {"ms": 1, "size": 8}},
        ),
        _strange(
            "delay",
            "ticks leave 5 s after their stamps",
            {"delay_s": 5},
            verdicts=DOUBTED,
            liveness=Bounds(0, 4),
        ),
        _strange(
            "clock_ahead",
            "the vendor's clock is 16 s ahead",
            {"clock_skew_s": 16},
            flags={"future": Bounds(5)},
            verdicts=DOUBTED,
            liveness=Bounds(0, 4),
            live_bars=False,
        ),
        _strange(
            "behind",
            "stamps lie 20 s behind",
            {"future_s": -20},
            live_bars=False,
        ),
        _strange(
            "burst",
            "10,000 ticks within a second",
            {"burst": {"seconds": 1, "rate": 10000}},
        ),
    ),
)


def _unanswered(
    name: str,
    what: str,
    sets: Mapping[str, Any],
    *,
    lasts_s: float = 40.0,
    noticed: str = "suspect",
    found_s: float = 15.0,
    verdicts: tuple[str, ...] = ("suspect", "dead?", "live"),
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
    starts="12:56:00",
    by_rest=True,
    closed_speed=1500.0,  # the day's credits come back at midnight UTC
    environ={"FEED_MODE": "rest"},
    simulate=("--plan", "basic"),
    faults=(
        Expectation(
            "rest_slow",
            "answers take half a second, and have the noise of 32-bit floats",
            {"rest_delay_ms": [300, 700], "rest_float32": True},
            lasts_s=40.0,
            verdicts=("suspect, live*",),
            found_s=None,
            reconnects=NONE,
            credits={"poll": Bounds(5, 40)},
            ticks="polled",
            live_bars=False,
        ),
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
            lasts_s=70.0,
            noticed="dead",
            found_s=95.0,
            verdicts=("suspect?", "dead", "suspect?", "live"),
            back_s=90.0,
            polls=Bounds(1, 30),
        ),
        _unanswered(
            "rest_timeout",
            "calls are never answered",
            {"rest_timeout": True},
            lasts_s=70.0,
            noticed="dead",
            found_s=110.0,
            # Several calls are under way at once: they give up one after the other.
            verdicts=("suspect?", "dead", "suspect?", "live", "suspect, live*"),
            back_s=300.0,
        ),
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


def _history(
    name: str,
    what: str,
    sets: Mapping[str, Any],
    *,
    lasts_s: float = 480.0,
    drop: bool = True,
    missing: int = 0,
) -> Expectation:
    """What the vendor's bars do to the repair of a gap, which a broken connection makes."""
    return Expectation(
        name,
        what,
        {**sets, "drop": True} if drop else sets,
        lasts_s=lasts_s,
        verdicts=("suspect?", "dead", "suspect?", "live", "suspect, live*"),
        found_s=None if not drop else 60.0,
        reconnects=Bounds(1, 2) if drop else NONE,
        repair=Bounds(1, 12),
        ticks="broken_off",
        live_bars=False,
        partial=True,
        missing=missing,
    )


HISTORY = Stage(
    "history",
    title="A thin market, and bars that are late, wrong or missing",
    about="2 to 40 ticks a bar; with each fault of the bars a connection breaks, so that there is a gap",
    speed=100,
    starts="11:52:00",
    ticks_per_bar=None,
    faults=(
        Expectation(
            "thin_market",
            "few prices, while REST lags up to 20 s and rounds",
            {"rest_lag_s": [0, 20], "rest_decimals": 2},
            lasts_s=900.0,
            verdicts=("suspect, live*", "suspect?"),
            found_s=None,
            reconnects=NONE,
            credits={"poll": NONE},
            rest_prices=NONE,
        ),
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
