"""What every bus does. One contract suite runs on all of them."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from enhanced_websocket_service.market.events import Event
from enhanced_websocket_service.market.tick import Tick

Subscriber = Callable[[Sequence[Event]], None]
"""Called at once, on the publisher's thread, with each published batch. Must not block."""


class Bus(Protocol):
    """From the one publisher to subscribers in this process, and to others where there are any."""

    @property
    def connected(self) -> bool:
        """Whether other processes get what is published."""
        ...

    @property
    def failure(self) -> str | None:
        """Why a subscriber of this process did not take the last events; ``None`` when all did."""
        ...

    def publish(self, events: Sequence[Event]) -> None:
        """Hand ``events`` to every subscriber, in order; never blocks, never fails."""
        ...

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Call ``callback`` with every later batch.

        :returns: a function that ends the subscription; calling it twice does no harm.
        """
        ...

    def latest(self, symbol: str) -> Tick | None:
        """The published tick of ``symbol`` with the newest stamp; of equal stamps the last one."""
        ...

    def seed(self, tick: Tick, age_s: float = 0.0) -> None:
        """After a restart, or when another instance has collected: ``tick`` was published last, ``age_s``
        real seconds ago; ignored where a later one is known. Subscribers are not told; a cache that other
        processes read is, while the price is young enough for it."""
        ...

    async def ping(self) -> float | None:
        """One round trip to the server, real milliseconds; ``None`` where there is no server to ask.

        :raises BusUnavailable: saying which server, and what it answered.
        """
        ...

    def status(self) -> dict[str, Any]:
        """For ``/status``: ``kind``, ``connected`` and what there is to say."""
        ...
