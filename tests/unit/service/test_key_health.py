"""When keys are a problem of the service: by what it does now, not by what they lack."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from enhanced_websocket_service.feeds.base import FeedStatus
from enhanced_websocket_service.feeds.router import FeedMode
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.service.key_health import KeyHealth
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Lease
from enhanced_websocket_service.twelvedata.rest import RestClient
from tests.unit.feeds.clocks import IdleClock

NOON = 1_749_038_460.0
BAD = {"code": 401, "message": "**apikey** parameter is incorrect", "status": "error"}
USAGE = {"timestamp": "x", "current_usage": 1, "plan_limit": 8, "daily_usage": 3}


@dataclass
class Stage:
    """``KeyHealth`` over a vendor that answers as told; every request is kept."""

    mode: FeedMode = "auto"
    keys: int = 2
    day_limit: int = 800
    accepted: bool = True
    status: FeedStatus | None = None
    is_open: bool = True
    owed: bool = False
    clock: IdleClock = field(default_factory=lambda: IdleClock(NOON))
    requests: list[tuple[float, str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        pool = KeyPool(
            [ApiKey(f"G1_{i}", f"secret-{i}") for i in range(self.keys)], day_limit=self.day_limit
        )
        provider = Provider("simulator")
        self.rest = RestClient(
            "http://vendor.test",
            pool,
            self.clock,
            provider,
            Metrics(),
            transport=httpx.MockTransport(self._answer),
        )
        self.health = KeyHealth(
            self.rest,
            self.clock,
            provider,
            ["USDCOP"],
            self.mode,
            feed=lambda: self.status,
            is_open=lambda _: self.is_open,
            owed=lambda _: self.owed,
        )

    def _answer(self, request: httpx.Request) -> httpx.Response:
        key = request.headers["authorization"].removeprefix("apikey ")
        self.requests.append((self.clock.now(), request.url.path, key))
        return httpx.Response(200, json=USAGE) if self.accepted else httpx.Response(401, json=BAD)

    def use(self, outcome: Any) -> None:
        """Each key once."""
        for _ in range(self.keys):
            answer = self.rest.keys.acquire(self.clock.now())
            assert isinstance(answer, Lease)
            self.rest.keys.report(answer, outcome, self.clock.now(), detail="said")


def fed_by(source: str, subscribed: tuple[str, ...] = ()) -> FeedStatus:
    return FeedStatus(source, False, "live", "", 0, None, None, subscribed, ())


STREAMED = fed_by("simulator_websocket", ("USDCOP",))
POLLED = fed_by("simulator_rest")


@pytest.mark.parametrize("mode", ["auto", "websocket", "rest"])
def test_keys_that_are_all_disabled_are_a_problem_at_any_hour(mode: FeedMode) -> None:
    it = Stage(mode, is_open=False)
    assert it.health.problems() == []
    it.use("invalid_key")
    assert it.health.problems()[0].startswith("No usable API key: 2 refused by the vendor (401)")
    it.status = STREAMED
    assert len(it.health.problems()) == 1, "what streams goes on"


def test_one_key_that_is_left_is_enough() -> None:
    it = Stage(keys=1)
    it.use("invalid_key")
    other = Stage(keys=2)
    answer = other.rest.keys.acquire(NOON)
    assert isinstance(answer, Lease)
    other.rest.keys.report(answer, "invalid_key", NOON)
    assert (len(it.health.problems()), other.health.problems()) == (1, [])


def test_spent_credits_are_a_problem_while_something_needs_them() -> None:
    it = Stage(day_limit=1, status=STREAMED)
    it.use("ok")
    assert it.health.problems() == [], "the stream brings everything"
    it.owed = True
    assert "2 out of credits for the day" in it.health.problems()[0]
    it.owed, it.status = False, POLLED
    assert len(it.health.problems()) == 1
    it.is_open = False
    assert it.health.problems() == []
    it.is_open, it.status = True, None
    assert it.health.problems() == [], "outside the session there is no feed"


@pytest.mark.parametrize(
    ("mode", "streamed", "problem"),
    [
        ("auto", False, False),
        ("auto", True, True),
        ("websocket", False, True),
        ("rest", True, False),
    ],
)
def test_keys_that_do_not_stream(mode: FeedMode, streamed: bool, problem: bool) -> None:
    it = Stage(mode, status=POLLED)
    keys = it.rest.keys
    if streamed:
        keys.accept_stream(keys.keys[1], NOON - 60)
    for key in keys.keys:
        assert it.health.problems() == []
        keys.refuse_stream(key, "not permitted: USD/COP", NOON)
    assert [one.partition(":")[0] for one in it.health.problems()] == (
        ["No API key may stream USD/COP"] if problem else []
    )
    assert (it.health.not_streamed() is not None) == (mode != "rest")
    it.status = STREAMED
    assert it.health.problems() == []


async def test_in_a_quiet_night_a_disabled_key_is_tried_once_an_hour_until_it_is_accepted() -> None:
    it = Stage(accepted=False, is_open=False)
    it.use("invalid_key")
    with capture_logs() as logs:
        task = asyncio.create_task(it.health.run())
        await it.clock.run_until(NOON + 3 * 3600)
        it.accepted = True
        await it.clock.run_until(NOON + 6 * 3600)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await it.rest.aclose()
    for secret in ("secret-0", "secret-1"):
        hours = [(at - NOON) / 3600 for at, _, key in it.requests if key == secret]
        assert len(hours) == 3, "tried in the first two hours in vain, then accepted and left alone"
        assert all(b - a >= 1 for a, b in zip([0.0, *hours], hours, strict=False))
        assert hours[-1] < 3.1
    assert {path for _, path, _ in it.requests} == {"/api_usage"}
    assert it.health.problems() == []
    told = [one["event"] for one in logs if one["event"].startswith("API keys")]
    assert told == ["API keys do not suffice", "API keys suffice again"]
