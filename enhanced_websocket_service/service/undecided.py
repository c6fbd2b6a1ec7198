"""Which of the quotes that a journal says were held got no fate before it ended. Pure.

A quote is held by a rejection that says ``held``; its fate is a tick with flag ``held`` or another
rejection of the same quote, which stand behind it in the same journal. A rejection with ``raw`` is that
of a quote that was never held.
"""

from collections import defaultdict
from collections.abc import Iterable

from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.events import EpochStarted
from enhanced_websocket_service.market.tick import (
    HELD,
    Flag,
    Quote,
    Rejection,
    Tick,
    quantise,
    rejection,
)
from enhanced_websocket_service.market.validation import QuoteValidator, ValidatorState

_Key = tuple[int, float, float, str]


def newly_held(before: Iterable[tuple[QuoteValidator, ValidatorState]]) -> list[Rejection]:
    """The records of the quotes that are held since ``before``: they are to be on disk before anybody
    waits for their witness.
    """
    found: list[Rejection] = []
    for validator, state in before:
        if not validator.held:
            continue
        held, known = validator.held_quotes, () if state.held is None else state.held.quotes
        # The list only grows, unless another level has taken its place.
        new = held[len(known) :] if known and held[0] is known[0] else held
        found += [rejection(quote, HELD) for quote in new]
    return found


class Undecided:
    """Reads records, oldest first."""

    def __init__(self) -> None:
        self._held: defaultdict[str, defaultdict[_Key, list[Quote]]] = defaultdict(
            lambda: defaultdict(list)
        )

    def see(self, record: Tick | Rejection | BarUpdate | EpochStarted) -> None:
        if isinstance(record, Tick):
            if Flag.HELD in record.flags:
                self._decided(record.symbol, _key(record, record.price))
        elif isinstance(record, Rejection) and record.price is not None and not record.raw:
            key = _key(record, record.price)
            if record.reason == HELD:
                self._held[record.symbol][key].append(record.quote())
            else:
                self._decided(record.symbol, key)

    def quotes(self) -> dict[str, list[Quote]]:
        """By symbol, in order of their arrival."""
        left = {
            symbol: sorted(
                (quote for same in by_key.values() for quote in same),
                key=lambda quote: quote.received_at,
            )
            for symbol, by_key in self._held.items()
        }
        return {symbol: quotes for symbol, quotes in left.items() if quotes}

    def _decided(self, symbol: str, key: _Key) -> None:
        waiting = self._held[symbol].get(key)
        if waiting:
            waiting.pop(0)


def _key(record: Tick | Rejection, price: float) -> _Key:
    return (record.timestamp, quantise(price), record.received_at, record.source)
