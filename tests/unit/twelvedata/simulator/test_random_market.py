"""The invented market: plausible, seeded, and the same from wherever it is looked at."""

import itertools
import statistics
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from enhanced_websocket_service.errors import ConfigurationError, DataError
from enhanced_websocket_service.market.calendar import BOGOTA, is_trading_day
from enhanced_websocket_service.twelvedata.simulator.options import market_from_options
from enhanced_websocket_service.twelvedata.simulator.random_market import RandomCandles, Regime

from .parts import at


def book(regime: Regime = "onshore", seed: int = 7) -> RandomCandles:
    return RandomCandles("USD/COP", seed=seed, base_price=4100, regime=regime)


def test_onshore_slots_are_the_session_on_trading_days_alone() -> None:
    # Two weeks with Corpus Christi (2025-06-23) in them.
    opens = [one.open_time for one in book().candles(at("2025-06-16"), at("2025-06-30"))]
    days: dict[date, list[str]] = {}
    for stamp in opens:
        local = datetime.fromtimestamp(stamp, BOGOTA)
        days.setdefault(local.date(), []).append(local.strftime("%H:%M"))
    fortnight = [date(2025, 6, 16) + timedelta(days=i) for i in range(14)]
    assert list(days) == [day for day in fortnight if is_trading_day(day)]
    for times in days.values():
        assert (len(times), times[0], times[-1]) == (60, "08:00", "12:55")


def test_24x5_runs_from_sunday_to_friday_evening_in_new_york() -> None:
    # A week in which New York changes to summer time (2025-03-09).
    opens = [one.open_time for one in book("24x5").candles(at("2025-03-08"), at("2025-03-16"))]
    assert datetime.fromtimestamp(opens[0], UTC) == datetime(2025, 3, 9, 21, tzinfo=UTC)
    assert datetime.fromtimestamp(opens[-1], UTC) == datetime(2025, 3, 14, 20, 55, tzinfo=UTC)
    assert len(opens) == 5 * 288


def test_a_bar_does_not_depend_on_where_one_starts_looking() -> None:
    whole = book().candles(at("2025-06-01"), at("2025-07-01"))
    part = book().candles(at("2025-06-17 15:00"), at("2025-06-17 16:00"))
    assert len(part) == 12
    assert [one for one in whole if one in part] == part
    assert book(seed=8).candles(at("2025-06-17 15:00"), at("2025-06-17 16:00")) != part


def test_prices_are_plausible() -> None:
    candles = book().candles(at("2024-01-01"), at("2026-01-01"))
    closes = [one.close for one in candles]
    assert min(closes) > 3000
    assert max(closes) < 6000
    assert max(closes) - min(closes) > 400
    moves = [
        later.close / earlier.close - 1
        for earlier, later in itertools.pairwise(candles)
        if later.open_time - earlier.open_time == 300
    ]
    assert 4e-4 < statistics.stdev(moves) < 9e-4
    ranges = [(one.high - one.low) / one.low for one in candles]
    assert 4e-4 < statistics.median(ranges) < 2e-3
    for one in candles:
        assert one.low <= min(one.open, one.close) <= max(one.open, one.close) <= one.high


def test_neighbouring_days_meet() -> None:
    candles = book("24x7").candles(at("2025-06-01"), at("2025-06-20"))
    jumps = [abs(later.open / earlier.close - 1) for earlier, later in itertools.pairwise(candles)]
    assert max(jumps) < 2e-4


def test_next_and_previous_open_cross_weekends_and_holidays() -> None:
    friday, tuesday = at("2025-06-20 17:55"), at("2025-06-24 13:00")  # Monday is a holiday
    assert book().next_open(friday + 1) == tuesday
    assert book().previous_open(tuesday) == friday
    assert book().first_open() == at("2020-01-02 13:00")
    assert book().previous_open(at("2020-01-02 13:00")) is None


def test_the_default_market_has_trial_symbols_too() -> None:
    market = market_from_options(seed=1)
    assert market.symbols == ("USD/COP", "EUR/USD", "BTC/USD")
    btc = market.get("btc/usd")
    assert btc is not None
    assert len(btc.candles(at("2025-06-14"), at("2025-06-15"))) == 288  # a Saturday


def test_options_report_all_faults_at_once() -> None:
    with pytest.raises(ConfigurationError) as refused:
        market_from_options(scale=-1, ticks_per_bar=1, regime="always", spread_bp=-1)
    assert len(refused.value.faults) == 4


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(ConfigurationError, match="exclude each other"):
        market_from_options(Path("a.csv"), Path("b.csv"))
    with pytest.raises(ConfigurationError, match="--scale works with --ticks only"):
        market_from_options(Path("a.csv"), scale=2)
    with pytest.raises(ConfigurationError, match="not a currency pair"):
        market_from_options(symbol="dollars")
    with pytest.raises(DataError, match="no such file"):
        market_from_options(Path("absent.csv"))
