"""Components are restarted, counted, and stopped in reverse order."""

import asyncio

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.failures import Failure, Failures
from enhanced_websocket_service.service.supervisor import Supervisor
from enhanced_websocket_service.telemetry import Metrics
from tests.waiting import eventually


async def test_a_failing_component_is_restarted_and_its_failure_is_told() -> None:
    supervisor, metrics, healthy, starts = Supervisor(m := Metrics()), m, asyncio.Event(), 0

    async def component() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise RuntimeError("the first time fails")
        healthy.set()
        await asyncio.Event().wait()

    supervisor.start("part", component)
    async with asyncio.timeout(40):
        await healthy.wait()
    (part,) = supervisor.components
    assert (part.restarts, part.running) == (1, True)
    assert part.failure == "RuntimeError: the first time fails"
    assert (
        metrics.registry.get_sample_value("ews_component_restarts_total", {"component": "part"})
        == 1
    )
    await supervisor.stop_all()
    assert not supervisor.components[0].running


async def test_a_component_that_crashes_is_a_problem_until_it_has_run_for_a_while() -> None:
    failures = Failures(SystemClock())
    supervisor, repaired = Supervisor(Metrics(), failures), False

    async def component() -> None:
        if not repaired:
            raise RuntimeError("out of order")
        await asyncio.Event().wait()

    async def told() -> Failure | None:
        return failures.of("component part")

    async def well() -> bool | None:
        return failures.present == () or None

    supervisor.start("part", component)
    assert (await eventually(told, 10, "the crash")).reason == "RuntimeError: out of order"
    repaired = True
    await eventually(well, 20, "that it runs")
    await supervisor.stop_all()


async def test_a_component_that_a_leaked_cancellation_ends_is_restarted() -> None:
    supervisor, healthy, starts = Supervisor(Metrics()), asyncio.Event(), 0

    async def component() -> None:
        nonlocal starts
        starts += 1
        if starts == 1:
            raise asyncio.CancelledError
        healthy.set()
        await asyncio.Event().wait()

    supervisor.start("part", component)
    async with asyncio.timeout(40):
        await healthy.wait()
    (part,) = supervisor.components
    assert (part.restarts, part.failure) == (1, "was cancelled from within")
    await supervisor.stop_all()


async def test_components_stop_in_reverse_order_each_awaited() -> None:
    supervisor, ended, started = Supervisor(Metrics()), [], asyncio.Semaphore(0)

    def component(name: str):  # type: ignore[no-untyped-def]
        async def run() -> None:
            started.release()
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                ended.append(name)

        return run

    for name in ("first", "second", "third"):
        supervisor.start(name, component(name))
    for _ in range(3):
        await started.acquire()
    await supervisor.stop("second")
    await supervisor.stop_all()
    assert ended == ["second", "third", "first"]


async def test_one_that_does_not_end_is_not_waited_for_for_ever() -> None:
    supervisor, started, release = Supervisor(Metrics()), asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()

    supervisor.start("stubborn", stubborn)
    await started.wait()
    async with asyncio.timeout(40):
        await supervisor.stop("stubborn", timeout_s=0.01)
    release.set()
