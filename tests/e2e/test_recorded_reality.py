"""A recording played through real processes is stored exactly as it was recorded.

The recordings here are generated; ``scripts/play_recording.py`` does the same with the real ones.
"""

import random
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path

import polars as pl
import pytest

from enhanced_websocket_service.market.calendar import TradingCalendar

from .playback import Playback, play

FRIDAY, TUESDAY = date(2024, 5, 10), date(2024, 5, 14)  # a weekend and Ascension between them
# A short session in the middle of the clock's slow window keeps the test short.
SESSION = {"MARKET_OPEN": "12:15", "MARKET_CLOSE": "12:45"}
NEVER_RECORDED = datetime(2024, 5, 14, 17, 25, tzinfo=UTC)


@pytest.mark.timeout(600)
async def test_recorded_bars(tmp_path: Path) -> None:
    outcome = await play(
        Playback(
            recording=make_bars(tmp_path / "bars.parquet"),
            first=FRIDAY,
            last=TUESDAY,
            speed=600,
            closed_speed=50_000,
            environ=SESSION,
        ),
        tmp_path,
    )
    assert outcome.faults == []
    assert (outcome.sessions, outcome.closed_days) == (2, 3)
    assert (outcome.live_bars, outcome.expected_bars) == (
        11,
        11,
    )  # 6 + 6, less the one never recorded
    assert outcome.complete_sessions == 1
    assert outcome.ticks_stored == outcome.ticks_sent > 11
    assert outcome.rejected == 0


@pytest.mark.timeout(600)
async def test_recorded_ticks(tmp_path: Path) -> None:
    outcome = await play(
        Playback(
            recording=_ticks(tmp_path / "ticks.parquet"),
            first=TUESDAY,
            last=TUESDAY,
            speed=600,
            closed_speed=50_000,
            ticks=True,
            scale=3000,
            environ={**SESSION, "L0_POLICY": "degraded"},
        ),
        tmp_path,
    )
    assert outcome.faults == []
    assert (outcome.live_bars, outcome.expected_bars) == (6, 6)
    assert outcome.ticks_stored == outcome.ticks_sent > 2000


def make_bars(path: Path, opens: time = time(12, 15)) -> Path:
    """Plausible bars of the session's labels for three weeks, with one slot that has none."""
    rng = random.Random(7)
    calendar = TradingCalendar(
        opens,
        datetime(2024, 1, 1, 12, 45, tzinfo=UTC).time(),
    )
    rows, price = [], 3900.0
    for day in calendar.trading_days(FRIDAY - timedelta(days=21), TUESDAY):
        for label in calendar.expected_labels(day):
            at = datetime.fromtimestamp(label, UTC)
            moves = [round(price + rng.gauss(0, 3), 4) for _ in range(4)]
            price = moves[-1]
            if at != NEVER_RECORDED:
                rows.append(
                    (at, "USDCOP", moves[0], max(moves), min(moves), price, 0, "twelvedata")
                )
    columns = ["datetime", "symbol", "open", "high", "low", "close", "volume", "source"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(path)
    return path


def _ticks(path: Path) -> Path:
    """Half an hour of quotes with sub-second stamps, several a second, some of them crossed."""
    rng = random.Random(11)
    at = datetime(2024, 5, 14, 17, 10, tzinfo=UTC)
    end = datetime(2024, 5, 14, 17, 50, tzinfo=UTC)
    rows, mid = [], 1.3
    while at < end:
        mid += rng.gauss(0, 0.00003)
        half = rng.gauss(0.00004, 0.00004)
        rows.append((at, "EURUSD", round(mid - half, 5), round(mid + half, 5), "made"))
        at += timedelta(milliseconds=int(rng.expovariate(1 / 700)) + 1)
    columns = ["datetime", "symbol", "bid", "ask", "source"]
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(path)
    return path
