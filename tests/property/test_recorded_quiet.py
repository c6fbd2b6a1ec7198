"""Recorded ticks through the detector: a market as it is, thinned and rounded, is never dead."""

from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest

from enhanced_websocket_service.market.calendar import Session
from enhanced_websocket_service.market.liveness.baseline import InactivityBaseline
from enhanced_websocket_service.market.liveness.detector import LivenessDetector
from tests.unit.market.liveness.playing import Course, Market, play

TICKS = Path("/work/shared/data/ticks")
OANDA = TICKS / "eurusd_oanda_201405_dev.parquet"
SESSION_S = 17_700
ONE_KEYS_QUIET_DAY = 40
"""Credits; the share for comparing of one key's 800."""


def sessions(
    every_s: int, decimals: int, days: int
) -> Iterator[tuple[date, list[tuple[float, float]]]]:
    """From 13:00 UTC on of each weekday: at most a tick in ``every_s`` seconds, rounded."""
    frame = pl.read_parquet(OANDA).select(
        at=pl.col("datetime").dt.epoch("us") / 1e6, price=pl.col("bid").round(decimals)
    )
    first = pl.read_parquet(OANDA, columns=["datetime"])["datetime"].dt.date().min()
    assert isinstance(first, date)
    found = 0
    for number in range(60):
        day = first + timedelta(days=number)
        if day.weekday() > 4 or found >= days:
            continue
        opens = (day - date(1970, 1, 1)).days * 86_400.0 + 13 * 3600
        rows = frame.filter(pl.col("at").is_between(opens - 900, opens + SESSION_S)).rows()
        thinned: list[tuple[float, float]] = []
        for at, price in rows:
            if not thinned or at - thinned[-1][0] >= every_s:
                thinned.append((at, price))
        if len(thinned) > 100:
            found += 1
            yield day, thinned


@pytest.mark.skipif(not OANDA.exists(), reason=f"the recorded ticks are not here: {OANDA}")
@pytest.mark.parametrize(
    ("every_s", "decimals", "lag"),
    [(0, 5, 0.0), (1, 4, 20.0), (5, 3, 10.0), (1, 3, 20.0), (60, 4, 20.0)],
    ids=[
        "as recorded",
        "a second, pips",
        "five seconds, tenths of a cent",
        "a price that stands",
        "thin",
    ],
)
def test_recorded_sessions_are_never_dead_and_cost_their_share(
    every_s: int, decimals: int, lag: float
) -> None:
    """Rounded to a tenth of a cent most ticks repeat the price before, for minutes on end."""
    baseline, told = InactivityBaseline(), []
    for day, ticks in sessions(every_s, decimals, days=2):
        opens = ticks[0][0] // 3600 * 3600 + 3600
        session = Session(day, int(opens), int(opens) + SESSION_S)
        detector = LivenessDetector(
            "EURUSD",
            baseline,
            lambda at, it=session: it if it.opens <= at < it.closes else None,
        )
        market = Market(ticks, lag=lambda _: lag, decimals=decimals)
        course: Course = play(detector, market, opens + SESSION_S, begin=opens - 30)
        told.append((str(day), len(course.asked), course.repeats_asked))
        assert course.first("dead") is None, (day, course.verdicts[-3:], detector.evidence)
        assert course.repeats_asked <= ONE_KEYS_QUIET_DAY
    assert len(told) == 2
