"""The bus inside this process: a real one, and the local half of the others."""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import structlog

from enhanced_websocket_service.market.events import Event
from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.telemetry import Rarely

from .base import Subscriber

log = structlog.get_logger(__name__)


class MemoryBus:
    """Delivers to subscribers of this process, in the order in which they subscribed."""

    def __init__(self) -> None:
        self._subscribers: tuple[Subscriber, ...] = ()  # replaced, never changed: see publish
        self._latest: dict[str, Tick] = {}
        self._failures = 0
        self._rarely = Rarely()
        self.failure: str | None = None
        """Why a subscriber did not take the last events; ``None`` once all do."""

    @property
    def connected(self) -> bool:
        return False

    def publish(self, events: Sequence[Event]) -> None:
        if not events:
            return
        for event in events:
            if isinstance(event, Tick):
                known = self._latest.get(event.symbol)
                # A late tick is published, but it does not replace a newer price.
                if known is None or event.timestamp >= known.timestamp:
                    self._latest[event.symbol] = event
        failure = None
        for subscriber in self._subscribers:
            try:
                subscriber(events)
            except (
                Exception
            ) as error:  # one broken subscriber must not keep the tick from the others
                failure = f"{subscriber!r} failed: {type(error).__name__}: {error}"
                self._failures += 1
                # Not each time: one that fails with every price would fill the log.
                if times := self._rarely.due(monotonic(), repr(subscriber)):
                    log.exception("A subscriber failed", subscriber=repr(subscriber), times=times)
        self.failure = failure

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        entry = _Entry(callback)
        self._subscribers = (*self._subscribers, entry)

        def unsubscribe() -> None:
            self._subscribers = tuple(one for one in self._subscribers if one is not entry)

        return unsubscribe

    def latest(self, symbol: str) -> Tick | None:
        return self._latest.get(symbol)

    def seed(self, tick: Tick, age_s: float = 0.0) -> None:
        known = self._latest.get(tick.symbol)
        if known is None or (tick.epoch, tick.offset) > (known.epoch, known.offset):
            self._latest[tick.symbol] = tick

    async def ping(self) -> float | None:
        return None

    def status(self) -> dict[str, Any]:
        return {
            "kind": "memory",
            "connected": False,
            "subscribers": len(self._subscribers),
            "subscriber_failures": self._failures,
        }


class _Entry:
    """One subscription: the same callback may subscribe twice and leave once."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Subscriber) -> None:
        self._callback = callback

    def __call__(self, events: Sequence[Event]) -> None:
        self._callback(events)

    def __repr__(self) -> str:
        return repr(self._callback)
