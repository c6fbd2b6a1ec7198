"""Polling against the simulator's strict ledgers: the credits are used, evenly, and never refused.

The clocks of vendor and client differ by a second. ``scripts/prove_credits.py`` does whole sessions with
real processes.
"""

import asyncio
import itertools
from collections import Counter
from contextlib import aclosing
from datetime import date

import pytest

from enhanced_websocket_service.clock import VirtualClock
from enhanced_websocket_service.feeds.polling import PollingFeed
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool
from enhanced_websocket_service.twelvedata.planner import CreditPlanner
from enhanced_websocket_service.twelvedata.rest import RestClient
from enhanced_websocket_service.twelvedata.simulator import (
    Simulator,
    SimulatorConfig,
    market_from_options,
)

CALENDAR = TradingCalendar()
SESSION = CALENDAR.session(date(2025, 6, 4))
assert SESSION is not None
MINUTES = 6


@pytest.mark.parametrize(
    ("keys", "skew", "per_day", "spacing", "speed"),
    [
        (16, -1.0, 18, 8.0, 40.0),  # as sixteen free keys over a whole session: 1.4 s
        (16, 1.0, 800, 8.0, 60.0),  # more credits than the keys can spend: as fast as they may
        (2, 1.0, 800, 0.0, 60.0),  # no spacing: the minute's limit alone
        (1, 0.0, 30, 8.0, 60.0),
    ],
)
async def test_the_credits_of_a_session_are_used_and_never_refused(
    keys: int, skew: float, per_day: int, spacing: float, speed: float
) -> None:
    opens = SESSION.opens  # type: ignore[union-attr]
    closes = opens + 60 * MINUTES
    ours = VirtualClock(opens - 1, speed, is_trading_day=CALENDAR.is_trading_day)
    theirs = VirtualClock(
        opens - 1 + skew, speed, is_trading_day=CALENDAR.is_trading_day, anchor=ours.anchor
    )
    simulator = Simulator(SimulatorConfig(market_from_options(seed=7), plan="basic"), theirs)
    await simulator.start("127.0.0.1", 0)
    pool = KeyPool(
        [ApiKey(f"G1_{i}", f"free-key-{i:04}") for i in range(keys)],
        spacing_s=spacing,
        day_limit=per_day,
    )
    metrics, provider = Metrics(), Provider("simulator")
    rest = RestClient(simulator.rest_url, pool, ours, provider, metrics)
    planner = CreditPlanner(pool)
    planned = planner.plan(opens, closes).poll_credits
    feed = PollingFeed(
        rest,
        ["USDCOP"],
        ours,
        provider,
        pace=lambda now: planner.poll_interval(now, closes),
        is_open=lambda now: opens <= now < closes,
        metrics=metrics,
    )
    quotes: list[Quote] = []

    async def consume() -> None:
        async with aclosing(feed) as batches:
            async for batch in batches:
                quotes.extend(batch)

    consumer = asyncio.create_task(consume(), name="consumer")
    await ours.sleep_until(closes + 1)
    await feed.aclose()
    await consumer
    await rest.aclose()
    requests = simulator._control.requests.entries()
    await simulator.stop()
    assert {one["status"] for one in requests} == {200}
    moments = [one["at"] - skew for one in requests]
    # A second of real time: a busy machine stands still for that long.
    assert closes - moments[-1] <= max(3 * (closes - opens) / planned, speed)
    if per_day < 800:
        assert 0.85 * planned <= len(requests) <= planned, (
            "95 % where the machine is not overloaded"
        )
        by_key = Counter(one["key"] for one in requests)
        assert max(by_key.values()) - min(by_key.values()) <= 0.2 * per_day
        # On a busy machine some answers are late, but nothing is left to the end.
        half = sum(at < (opens + closes) / 2 for at in moments)
        assert 0.4 * len(moments) < half < 0.6 * len(moments)
    else:
        # Spacing counts from the answer, and this machine takes its time.
        assert len(requests) > 0.3 * planned
    prices = [quote.price for quote in quotes]
    assert all(a != b for a, b in itertools.pairwise(prices)), "only changes are ticks"
