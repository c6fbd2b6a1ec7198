"""Sessions of polling against the simulator's strict ledgers: used, evenly, to the close, never refused.

The real client, keys, planner and feed; only the wire and the clock are the test's, so that a slow machine
changes nothing. The clocks of vendor and client differ by a second, and calls take their time.
``scripts/prove_credits.py`` does it with processes.
"""

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import dataclass, field

import httpx
import pytest

from enhanced_websocket_service.feeds.polling import PollingFeed
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool
from enhanced_websocket_service.twelvedata.planner import CreditPlanner
from enhanced_websocket_service.twelvedata.rest import RestClient
from enhanced_websocket_service.twelvedata.simulator.credits import PLANS, CreditLedger

from .alone import Alone
from .clocks import IdleClock

OPENS = 1_749_042_000.0  # 2025-06-04 13:00:00 UTC


class Vendor(httpx.AsyncBaseTransport):
    """Counts credits as the simulator does, by a clock of its own."""

    def __init__(self, clock: IdleClock, skew: float, latency: tuple[float, float]) -> None:
        self._clock, self._skew, self._latency = clock, skew, latency
        self._ledger = CreditLedger(PLANS["basic"])
        self._random = random.Random(7)
        self.calls: list[tuple[float, str, int]] = []  # when, key, status
        self.broken: set[str] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        key = request.headers["authorization"].removeprefix("apikey ")
        await self._clock.sleep(self._random.uniform(*self._latency) / 2)
        now = self._clock.now()
        usage = self._ledger.charge(key, 1, now + self._skew)
        refusal = usage.refusal()
        status = 401 if key in self.broken else 200 if refusal is None else refusal.code
        self.calls.append((now, key, status))
        # Every tenth second another price, so that most answers are unchanged.
        body: dict[str, object] = {"price": f"{4000 + int(now / 10) % 50}.25"}
        if status != 200:
            body = {"code": status, "message": "refused", "status": "error"}
        await self._clock.sleep(self._random.uniform(*self._latency) / 2)
        return httpx.Response(status, json=body, headers=dict(usage.headers))


@dataclass
class Session:
    keys: int
    seconds: float
    per_day: int = 800
    skew: float = 0.0
    latency: tuple[float, float] = (0.1, 0.6)
    spacing: float = 8.0
    planned: int = 0
    quotes: list[Quote] = field(default_factory=list)

    async def run(self, *disturbances: tuple[float, str]) -> Vendor:
        """Until the close; at the given seconds the key of that name begins to be called wrong."""
        clock = IdleClock(OPENS - 1)
        closes = OPENS + self.seconds
        vendor = Vendor(clock, self.skew, self.latency)
        pool = KeyPool(
            [ApiKey(f"K{i}", f"key-{i}") for i in range(self.keys)],
            spacing_s=self.spacing,
            day_limit=self.per_day,
        )
        provider = Provider("simulator")
        rest = RestClient("http://vendor.test", pool, clock, provider, Metrics(), vendor)
        planner = CreditPlanner(pool)
        self.planned = planner.plan(OPENS, closes).poll_credits
        polling = PollingFeed(
            rest,
            ["USDCOP"],
            clock,
            provider,
            pace=lambda now: planner.poll_interval(now, closes),
            is_open=lambda now: OPENS <= now < closes,
            last_price=lambda _: self.quotes[-1].price if self.quotes else None,
        )
        feed = Alone(polling)

        async def consume() -> None:
            async for batch in feed:
                self.quotes += batch

        consumer = asyncio.create_task(consume(), name="consumer")
        for at, key in disturbances:
            await clock.run_until(OPENS + at)
            vendor.broken.add(key)
        await clock.run_until(closes + 10)
        await feed.aclose()
        await consumer
        await rest.aclose()
        return vendor


def distances(vendor: Vendor) -> list[float]:
    return [b - a for a, b in itertools.pairwise(at for at, _, _ in vendor.calls)]


@pytest.mark.parametrize("skew", [-1.0, 1.0])
async def test_sixteen_keys_use_their_credits_evenly(skew: float) -> None:
    """A tenth of a session with a tenth of the credits: the pace of a whole one."""
    session = Session(keys=16, seconds=1770, per_day=95, skew=skew, latency=(0.1, 4.0))
    vendor = await session.run()
    assert {status for _, _, status in vendor.calls} == {200}
    assert session.planned == 16 * 95 - 61 - 46 - 46
    assert session.planned - 1 <= len(vendor.calls) <= session.planned
    assert 1.2 < session.seconds / session.planned < 1.4
    assert max(distances(vendor)) < 1.4 + 2.0, "no further apart than calls may differ in latency"
    assert OPENS + session.seconds - vendor.calls[-1][0] < 4.0
    by_key = Counter(key for _, key, _ in vendor.calls)
    assert max(by_key.values()) - min(by_key.values()) <= 1
    prices = [quote.price for quote in session.quotes]
    assert len(prices) > 150
    assert all(a != b for a, b in itertools.pairwise(prices)), "only changes are ticks"


async def test_one_key_reaches_the_end_evenly() -> None:
    session = Session(keys=1, seconds=17_700)
    vendor = await session.run()
    assert len(vendor.calls) in (719, 720)
    assert {status for _, _, status in vendor.calls} == {200}
    assert min(distances(vendor)) > 24.0
    assert max(distances(vendor)) < 25.2
    assert OPENS + session.seconds - vendor.calls[-1][0] < 25.2


@pytest.mark.parametrize(
    ("keys", "spacing", "skew"), [(16, 8.0, 1.0), (16, 8.0, -1.0), (2, 0.0, 1.0), (2, 0.0, -1.0)]
)
async def test_more_credits_than_time_means_as_fast_as_the_keys_may(
    keys: int, spacing: float, skew: float
) -> None:
    session = Session(keys=keys, seconds=300, spacing=spacing, skew=skew)
    vendor = await session.run()
    assert {status for _, _, status in vendor.calls} == {200}
    most = keys * 8 * 5
    assert 0.85 * most < len(vendor.calls) <= most


async def test_when_keys_die_the_others_cover_the_session() -> None:
    session = Session(keys=4, seconds=1770, per_day=95)
    vendor = await session.run((600.0, "key-0"), (1200.0, "key-1"))
    assert {status for _, _, status in vendor.calls} == {200, 401}
    refused = [at for at, _, status in vendor.calls if status == 401]
    assert len(refused) == 2, "told once each, and left alone for an hour"
    answered = Counter(key for _, key, status in vendor.calls if status == 200)
    assert answered["key-2"] + answered["key-3"] >= 2 * 95 - 38 - 4, "all but the reserve"
    assert OPENS + session.seconds - vendor.calls[-1][0] < 30.0
