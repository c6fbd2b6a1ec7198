"""Who is probed when, and what becomes of a probe that fails or is not answered."""

import asyncio
from collections.abc import Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.errors import BusUnavailable
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.service import canary as module
from enhanced_websocket_service.service.canary import PARTS, Canary
from enhanced_websocket_service.watermarks import Hop, Watermarks
from tests.waiting import eventually

PART = PARTS[Hop.CACHED]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.01)
    monkeypatch.setattr(module, "WITHIN_S", 0.05)
    monkeypatch.setattr(module, "SOON_S", 0.0)


class Stage:
    def __init__(self, every_s: float = 0.02) -> None:
        self.marks = Watermarks(["USDCOP"], monotonic)
        self.failures = Failures(SystemClock())
        self.asked = 0
        self.may = self.expecting = True
        self.answer: Callable[[], Any] = lambda: None
        self.open = asyncio.Event()
        self.open.set()
        self.canary = Canary(
            self.marks,
            {Hop.CACHED: self.probe},
            every_s=every_s,
            expecting=lambda: self.expecting,
            may_probe=lambda: self.may,
            failures=self.failures,
            explain={Hop.CACHED: self.explain},
        )

    async def probe(self) -> str | None:
        self.asked += 1
        await self.open.wait()
        said: str | None = self.answer()
        return said

    async def explain(self) -> str | None:
        return "somebody is in the way"

    @asynccontextmanager
    async def running(self):  # type: ignore[no-untyped-def] # a generator of nothing
        task = asyncio.create_task(self.canary.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        async def true() -> bool | None:
            return condition() or None

        await eventually(true, 10, what)


def refuse() -> None:
    raise BusUnavailable("OOM command not allowed")


async def test_a_hop_without_work_is_probed_again_and_again() -> None:
    it = Stage()
    it.answer = lambda: "No COPY was made."
    async with it.running():
        await it.until(lambda: it.asked >= 3, "three probes")
    assert it.canary.told == {Hop.CACHED: "No COPY was made."}
    assert it.canary.latencies[Hop.CACHED] >= 0
    assert it.failures.present == ()
    assert it.marks.last(Hop.CACHED) is not None


async def test_a_refused_probe_is_a_problem_until_one_succeeds() -> None:
    it = Stage()
    it.answer = refuse
    async with it.running():
        await it.until(lambda: it.failures.of(PART) is not None, "the refusal")
        assert "OOM" in it.failures.present[0].reason
        it.answer = lambda: None
        await it.until(lambda: it.failures.of(PART) is None, "the recovery")


async def test_work_that_is_done_ends_the_problem_of_a_probe() -> None:
    it = Stage(every_s=3600)
    it.canary._states[Hop.CACHED].began -= 7200
    it.answer = refuse
    async with it.running():
        await it.until(lambda: it.failures.of(PART) is not None, "the refusal")
        it.marks.reached("USDCOP", Hop.CACHED, 1)
        await it.until(lambda: it.failures.of(PART) is None, "that the work was seen")
    assert it.asked == 1


async def test_a_probe_that_is_not_answered_is_told_and_not_asked_twice() -> None:
    it = Stage()
    it.open.clear()
    async with it.running():
        await it.until(lambda: it.failures.of(PART) is not None, "the silence")
        assert "has not answered" in it.failures.present[0].reason
        assert it.asked == 1
        it.open.set()
        await it.until(lambda: it.failures.of(PART) is None, "the answer")


async def test_who_does_not_collect_or_has_work_waiting_asks_nothing() -> None:
    it = Stage()
    it.may = False
    async with it.running():
        await it.until(lambda: it.canary.reasons == {Hop.CACHED: None}, "a look")
        assert it.asked == 0
        it.marks.owed("USDCOP", 1, 1)
        it.may = True
        await it.until(
            lambda: it.canary.reasons[Hop.CACHED] == "somebody is in the way", "an explanation"
        )
        assert it.asked == 0, "real work is the better witness"


@pytest.mark.parametrize("every_s", [0.0, 0.02])
async def test_off_and_out_of_hours(every_s: float) -> None:
    it = Stage(every_s)
    it.expecting = False
    looks = 0

    def look() -> bool:
        nonlocal looks
        looks += 1
        return True

    it.canary._may_probe = look
    async with it.running():
        await it.until(lambda: looks > 5 or (not every_s and bool(it.canary.reasons)), "looks")
    assert it.asked == 0
