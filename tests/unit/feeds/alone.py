"""A source without its router: its quotes in the order of their arrival, and what it tells."""

from collections.abc import Collection
from typing import Any

from enhanced_websocket_service.feeds.base import BackgroundFeed
from enhanced_websocket_service.feeds.polling import PollingFeed
from enhanced_websocket_service.feeds.stream import StreamEvent, StreamFeed
from enhanced_websocket_service.market.tick import Quote


class Alone(BackgroundFeed):
    """Runs ``source`` and takes whatever it brings; everything else is asked of the source."""

    def __init__(
        self, source: StreamFeed | PollingFeed, events: list[StreamEvent] | None = None
    ) -> None:
        super().__init__("feed-alone")
        self.source = source
        self.events = [] if events is None else events
        self.granted: list[tuple[Collection[str], float]] = []
        self.proofs: list[Quote] = []
        self.answers: list[tuple[str, float]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    async def _run(self) -> None:
        await self.source.run(self)

    def on_streamed(self, quote: Quote, *, proves: bool) -> None:
        self.put(quote)
        if proves:
            self.proofs.append(quote)

    def on_granted(self, symbols: Collection[str], at: float) -> None:
        self.granted.append((symbols, at))

    def on_failure(self, event: StreamEvent) -> None:
        self.events.append(event)

    def on_polled(self, quote: Quote) -> None:
        self.put(quote)

    def on_answer(self, symbol: str, price: float, asked_at: float) -> None:
        self.answers.append((symbol, price))
