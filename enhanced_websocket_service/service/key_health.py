"""Whether the API keys suffice for what the service does: for ``/health``, and for the log once.

A service without a usable key looks well as long as the stream lives, and then has neither fallback nor
repair. Also sees to it that a disabled key is tried again where no call would: see ``run``.
"""

from collections.abc import Callable, Sequence

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.errors import VendorError
from enhanced_websocket_service.feeds.base import FeedStatus
from enhanced_websocket_service.feeds.router import FeedMode
from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.twelvedata.protocol import vendor_symbol
from enhanced_websocket_service.twelvedata.rest import RestClient, topic_of
from enhanced_websocket_service.twelvedata.standing import (
    Shortage,
    has_streamed,
    no_key_to_poll,
    no_key_to_stream,
)

log = structlog.get_logger(__name__)

LOOK_S, LOOK_AT_LEAST_REAL_S = 10.0, 0.5
OVERDUE_S = 60.0
"""How long the calls of the day have to try a disabled key whose hour is over: they buy something."""


class KeyHealth:
    """Judges on demand; ``run`` as one task.

    :param feed: the feed of the session; ``None``: there is none now.
    :param is_open: whether the market is open at an instant.
    :param owed: whether bars of the vendor are due at an instant.
    """

    def __init__(
        self,
        rest: RestClient,
        clock: Clock,
        provider: Provider,
        symbols: Sequence[str],
        mode: FeedMode,
        *,
        feed: Callable[[], FeedStatus | None],
        is_open: Callable[[float], bool],
        owed: Callable[[float], bool],
    ) -> None:
        self._rest = rest
        self._clock = clock
        self._rest_source = provider.rest
        self._symbols = tuple(vendor_symbol(symbol) for symbol in symbols)
        self._mode = mode
        self._feed = feed
        self._is_open = is_open
        self._owed = owed
        # What the service asks for with keys, in the terms in which a plan may exclude it.
        paths = ("/time_series",) if mode == "websocket" else ("/price", "/time_series")
        self._topics = [topic_of(path, symbol) for path in paths for symbol in self._symbols]

    def problems(self) -> list[str]:
        """A sentence for each thing that no key is left for and that is needed."""
        return [one.sentence for one in self._shortages().values()]

    def not_streamed(self) -> str | None:
        """Why no key streams, a fault or not; ``None``: one may, or it is not asked for."""
        lacking = self._no_stream()
        return None if lacking is None else lacking.sentence

    async def run(self) -> None:
        """Log when the keys begin and cease to suffice; try disabled keys again, until cancelled.

        Any call tries a disabled key once its hour is over. In a quiet night there is none, and the
        first one to need the key would be the one that fails.
        """
        told: dict[str, Shortage] = {}
        clock = self._clock
        while True:
            present = self._shortages()
            for name in present.keys() - told.keys():
                log.warning("API keys do not suffice", why=present[name].sentence)
            for name in told.keys() - present.keys():
                log.info("API keys suffice again", what=name)
            told = present
            self._rest.failing.look()
            try:
                await self._rest.try_disabled(OVERDUE_S)
            except VendorError as error:
                log.info("Usage of an API key not learned", error=str(error))
            await clock.sleep(clock.span(LOOK_S, LOOK_AT_LEAST_REAL_S))

    def _shortages(self) -> dict[str, Shortage]:
        now = self._clock.now()
        accounts = self._rest.keys.accounts(now)
        found: dict[str, Shortage] = {}
        poll = no_key_to_poll(accounts, self._topics)
        if poll is not None and (poll.lasting or self._polls(now) or self._owed(now)):
            found["REST"] = poll
        stream = self._no_stream()
        if stream is not None and (self._mode == "websocket" or has_streamed(accounts)):
            found["stream"] = stream
        return found

    def _no_stream(self) -> Shortage | None:
        status = self._feed()
        if self._mode == "rest" or (status is not None and status.subscribed):
            return None  # a key called wrong may go on streaming as long as the connection lives
        accounts = self._rest.keys.accounts(self._clock.now())
        return no_key_to_stream(accounts, self._symbols, polled=self._mode == "auto")

    def _polls(self, now: float) -> bool:
        """Whether prices are to come by REST at ``now``."""
        status = self._feed()
        if status is None or not self._is_open(now):
            return False
        return self._rest_source in (status.source, *status.sources.values())
