"""Dead told from quiet against the vendor simulator: real sockets, virtual time."""

import pytest

from enhanced_websocket_service.feeds.base import FeedGap
from enhanced_websocket_service.market.liveness.status import Change, SymbolVerdict
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
