"""Which polled prices have stood still for long: the market may be quiet, or REST frozen. Pure."""

from collections.abc import Collection
from typing import Final

from enhanced_websocket_service.market.noise import same_but_noise

FEWEST_ANSWERS: Final = 4


class StandingPrices:
    """By symbol, the price that REST repeats, since when, and in how many answers."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float, int]] = {}

    def answered(self, symbol: str, price: float, at: float) -> None:
        """REST said ``price``; ``at`` in seconds of a clock that is never set."""
        known, since, answers = self._known.get(symbol, (price, at, 0))
        if not same_but_noise(known, price):
            since, answers = at, 0
        self._known[symbol] = (price, since, answers + 1)

    def forget(self, symbol: str) -> None:
        """Nobody asks for it any more."""
        self._known.pop(symbol, None)

    def evidence(self, symbols: Collection[str], at: float, least_s: float) -> str | None:
        """Which of ``symbols`` stand still for ``least_s`` at least; ``None``: one of them does not."""
        told = []
        for symbol in symbols:
            price, since, answers = self._known.get(symbol, (0.0, at, 0))
            if at - since < least_s or answers < FEWEST_ANSWERS:
                return None
            told.append(
                f"{symbol} stands at {price:g} in {answers} answers over {at - since:.0f} s"
            )
        return ", ".join(told) or None
