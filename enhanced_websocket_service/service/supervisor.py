"""Keeps named components running, and stops them in order.

A component is an endless ``run()`` coroutine. One that raises or returns is restarted after a
back-off, with the failure logged and counted: a bug in the cache must not end the collection of
ticks. Components stop in the reverse order of their start, each awaited before the next.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.telemetry import Metrics

log = structlog.get_logger(__name__)

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
HEALTHY_AFTER_S = 60.0
CANCEL_AGAIN_S = 0.25


def being_cancelled() -> bool:
    """Whether somebody asked the current task to end. A cancellation that nobody asked for has leaked
    out of something awaited: a failure like any other, that would otherwise end a task without a word.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@dataclass(slots=True)
class Component:
    """What became of a component so far."""

    name: str
    running: bool = True
    restarts: int = 0
    failure: str | None = None


class Supervisor:
    """Owns one task per component.

    :param failures: told of a component that crashed, until it has run for twice its last back-off.
    """

    def __init__(self, metrics: Metrics, failures: Failures | None = None) -> None:
        self._metrics = metrics
        self._failures = failures or Failures(SystemClock())
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._components: dict[str, Component] = {}

    @property
    def components(self) -> Sequence[Component]:
        return tuple(self._components.values())

    def start(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run ``run()`` for ever under ``name``."""
        component = self._components[name] = Component(name)
        self._tasks[name] = asyncio.create_task(self._keep(component, run), name=name)

    async def stop(self, name: str, timeout_s: float = 10.0) -> None:
        """Cancel ``name`` and wait, at most ``timeout_s`` real seconds, until it has ended."""
        task = self._tasks.pop(name, None)
        if task is None:
            return
        self._components[name].running = False
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not task.done() and asyncio.get_running_loop().time() < deadline:
            # Again and again: some libraries swallow a cancellation that meets them at the wrong
            # moment (redis-py does, in one ping of six), and the component would run on.
            task.cancel()
            await asyncio.wait({task}, timeout=min(CANCEL_AGAIN_S, timeout_s))
        if not task.done():
            log.error("Component did not stop in time", component=name, timeout_s=timeout_s)

    async def stop_all(self, timeout_s: float = 10.0) -> None:
        """Stop what is left, last started first, waiting ``timeout_s`` real seconds in all."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        for name in reversed(list(self._tasks)):
            left = deadline - asyncio.get_running_loop().time()
            await self.stop(name, max(CANCEL_AGAIN_S, left))

    async def _keep(self, component: Component, run: Callable[[], Awaitable[None]]) -> None:
        loop = asyncio.get_running_loop()
        backoff = FIRST_BACKOFF_S
        part = f"component {component.name}"
        while True:
            started = loop.time()
            well = loop.call_later(2 * backoff, self._failures.succeeded, part)
            try:
                await run()
                failure = "ended without being asked to"
            except asyncio.CancelledError:
                if being_cancelled():
                    raise
                failure = "was cancelled from within"
                log.exception("Component failed; it will be restarted", component=component.name)
            except Exception as error:  # the border where any bug of a component is contained
                failure = f"{type(error).__name__}: {error}"
                log.exception("Component failed; it will be restarted", component=component.name)
            else:
                log.error("Component ended; it will be restarted", component=component.name)
            finally:
                well.cancel()
            self._failures.failed(part, failure)
            component.failure = failure
            component.restarts += 1
            self._metrics.component_restarts.labels(component.name).inc()
            if loop.time() - started > HEALTHY_AFTER_S:
                backoff = FIRST_BACKOFF_S
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, LONGEST_BACKOFF_S)
