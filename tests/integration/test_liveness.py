"""Dead told from quiet against the vendor simulator: real sockets, virtual time."""

import os

import pytest

from enhanced_websocket_service.feeds.base import FeedGap
from enhanced_websocket_service.market.liveness.status import Change, SymbolVerdict
from enhanced_websocket_service.market.tick import Quote
from enhanced_websocket_service.twelvedata.simulator import market_from_options
from tests.unit.feeds.vendor import until

from .test_feeds import OPENS, Stage, stage


def shown(it: Stage) -> SymbolVerdict:
    (verdict,) = it.feed.status().verdicts
    return verdict


def dead(it: Stage) -> list[Change]:
    return [change for change in shown(it).history if change.verdict == "dead"]


async def test_mute_in_mid_session_is_dead_within_thirty_seconds() -> None:
    async with stage(ticks_per_bar=300, speed=20.0) as it:
        await it.delivered("simulator_websocket", 30)
        it.simulator.inject({"mute": True})
        muted = it.clock.now()
        await until(lambda: dead(it))
        assert dead(it)[0].at - muted <= 30
        assert "the vendor moved from" in dead(it)[0].evidence
        assert 2 <= shown(it).samples["differs"] + shown(it).samples["agrees"] <= 8
        await it.delivered("simulator_rest", 2)
        assert it.feed.status().sources == {"USDCOP": "simulator_rest"}
        it.simulator.inject({"mute": False})
        await it.delivered("simulator_websocket", 3)
        assert shown(it).verdict == "live"
        starting, gap = it.gaps
        assert starting.cause == "connecting"
        assert gap == FeedGap("USDCOP", gap.start, gap.end, "silent")
        assert gap.start <= muted < dead(it)[0].at < gap.end
        assert it.simulator.status()["answers"].get("429", 0) == 0


async def test_mute_from_birth_is_dead_within_thirty_seconds() -> None:
    async with stage(ticks_per_bar=300, speed=10.0, faults={"mute": True}) as it:
        await until(lambda: it.feed.status().websocket_connected)
        connected = it.clock.now()
        await until(lambda: dead(it))
        assert dead(it)[0].at - connected <= 30
        await it.delivered("simulator_rest", 2)


@pytest.mark.parametrize("ticks_per_bar", [2, 8])
async def test_a_thin_market_is_left_alone(ticks_per_bar: int) -> None:
    async with stage(ticks_per_bar=ticks_per_bar, speed=300.0) as it:
        await until(lambda: it.clock.now() > OPENS + 600 + 1800)
        assert it.feed.status().reconnects == 0
        assert dead(it) == []
        assert it.sources() == {"simulator_websocket"}
        assert shown(it).samples["agrees"] > 0


async def test_a_mute_socket_while_rest_is_down_is_dead_late() -> None:
    """Silence alone decides, late, and says that it had to."""
    async with stage(ticks_per_bar=300, speed=40.0) as it:
        await it.delivered("simulator_websocket", 30)
        it.simulator.inject({"mute": True, "rest_status": "500"})
        muted = it.clock.now()
        await until(lambda: dead(it))
        assert 80 <= dead(it)[0].at - muted <= 500
        assert "no REST price to compare with" in dead(it)[0].evidence


def is_the_markets(quote: Quote) -> bool:
    """Whether it is what the vendor's market was at in the minute before it came: a busy machine is late."""
    source = market_from_options(seed=7, ticks_per_bar=300).get("USD/COP")
    assert source is not None
    received = int(quote.received_at)
    ticks = (source.last_tick(at) for at in range(received - 60, received + 2))
    return any(tick is not None and abs(tick.price - quote.price) < 1e-4 for tick in ticks)


LASTS_S = float(os.environ.get("FROZEN_S", "600"))
"""Half an hour takes a minute and a half; it is for proofs by hand."""


async def test_a_frozen_stream_is_dead_and_rest_serves_for_as_long_as_it_lasts() -> None:
    """Fresh stamps, one price: found by what REST says, and believed again with a new price only."""
    async with stage(ticks_per_bar=300, speed=20.0) as it:
        await it.delivered("simulator_websocket", 30)
        it.simulator.inject({"frozen": True})
        frozen = it.clock.now()
        await it.delivered("simulator_rest", 1)
        assert it.clock.now() - frozen <= 180
        assert "the vendor moved from" in dead(it)[-1].evidence
        (span,) = shown(it).dead_spans
        assert span.end is None
        assert frozen - 15 <= span.start <= frozen + 2
        while it.clock.now() < frozen + LASTS_S:
            seen = len(it.quotes)
            await it.delivered("simulator_rest", 3)
            assert {quote.source for quote in it.quotes[seen:]} == {"simulator_rest"}
            assert is_the_markets(it.quotes[-1])
        assert it.feed.status().sources == {"USDCOP": "simulator_rest"}
        it.simulator.inject({"frozen": None})
        await it.delivered("simulator_websocket", 3)
        assert shown(it).verdict == "live"
        (span,) = shown(it).dead_spans
        assert span.end is not None
        gap = it.gaps[-1]
        assert gap.cause == "silent"
        assert gap.start <= frozen + 2
        assert gap.end >= frozen + LASTS_S


async def test_a_stream_that_is_five_minutes_late_is_dead_and_rest_serves() -> None:
    async with stage(ticks_per_bar=300, speed=20.0) as it:
        await it.delivered("simulator_websocket", 30)
        it.simulator.inject({"delay_s": 300})
        began = it.clock.now()
        await it.delivered("simulator_rest", 1)
        assert it.clock.now() - began <= 180
        while it.clock.now() < began + 900:
            seen = len(it.quotes)
            await it.delivered("simulator_rest", 3)
            assert {quote.source for quote in it.quotes[seen:]} == {"simulator_rest"}
            assert is_the_markets(it.quotes[-1])
        assert any("stamp was 30" in change.evidence for change in dead(it))
        it.simulator.inject({"delay_s": None})
        await it.delivered("simulator_websocket", 3)
        assert it.clock.now() - it.quotes[-1].timestamp < 60
        assert it.gaps[-1].cause == "silent"
        assert it.gaps[-1].start <= began + 2


@pytest.mark.long
async def test_a_stream_of_another_unit_is_dead_and_rest_serves() -> None:
    """As the service doubts it: a change by a power of ten needs a witness of another kind."""
    async with stage(ticks_per_bar=300, speed=20.0, doubtful=lambda _, price: price < 400) as it:
        await it.delivered("simulator_websocket", 30)
        it.simulator.inject({"scale": {"factor": 0.01, "at": ["stream"]}})
        began = it.clock.now()
        await it.delivered("simulator_rest", 1)
        assert it.clock.now() - began <= 180
        while it.clock.now() < began + 900:
            seen = len(it.quotes)
            await it.delivered("simulator_rest", 3)
            assert {quote.source for quote in it.quotes[seen:]} == {"simulator_rest"}
        it.simulator.inject({"scale": None})
        await it.delivered("simulator_websocket", 3)
        assert it.quotes[-1].price > 400


async def test_old_stamps_alone_are_no_death() -> None:
    """Our clock may be fast: REST shows the prices that the stream brings."""
    async with stage(ticks_per_bar=300, speed=60.0, faults={"future_s": -300}) as it:
        await until(lambda: it.clock.now() > OPENS + 600 + 900)
        assert dead(it) == []
        assert it.feed.status().reconnects == 0
        assert shown(it).lag_s > 290
        assert shown(it).last_new_price_at is None
        assert "is one the socket brought" in shown(it).evidence
        assert sum(shown(it).samples.values()) <= 10


@pytest.mark.long
async def test_a_frozen_rest_is_no_witness_against_a_stream_that_moves() -> None:
    """A thin market asks REST again and again, and is contradicted each time by a price that is long past."""
    async with stage(ticks_per_bar=12, speed=120.0) as it:
        await it.delivered("simulator_websocket", 5)
        it.simulator.inject({"rest_frozen": True})
        await until(lambda: shown(it).rest_fault is not None)
        assert "REST repeats" in (shown(it).rest_fault or "")
        await until(lambda: it.clock.now() > OPENS + 600 + 3600)
        assert dead(it) == []
        assert it.feed.status().reconnects == 0
        it.simulator.inject({"rest_frozen": None})
        await until(lambda: shown(it).rest_fault is None)
