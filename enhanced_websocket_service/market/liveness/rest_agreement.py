"""Whether a price asked by REST is one that the socket brought. Pure; instants in unix seconds UTC.

The REST price lags behind by some seconds and may be rounded differently: fewer decimals, or the
noise of a number that passed through 32 bits. So it agrees when it equals, within rounding, any price
that was in effect during the lag.
"""

import math
from collections import deque
from typing import Final

from enhanced_websocket_service.market.tick import PRICE_DECIMALS, quantise

WINDOW_S: Final = 25.0
"""The longest lag of REST behind the socket that is believed, with a margin over the 20 s seen."""

MOST_PRICES: Final = 50
"""Prices of one second that are kept one by one."""

_FLOAT32_ULP: Final = 2.0**-23


def decimals(price: float) -> int:
    """The decimals ``price`` really has: the noise of a 32-bit number is none."""
    noise = abs(price) * _FLOAT32_ULP
    for places in range(PRICE_DECIMALS):
        if abs(round(price, places) - price) <= noise:
            return places
    return PRICE_DECIMALS


def tolerance(one: float, other: float) -> float:
    """How far two spellings of one price may lie apart."""
    # Twice: either may be a 32-bit number, and rounding finer than the noise is not recognised.
    noise = 2 * max(abs(one), abs(other)) * _FLOAT32_ULP
    places = decimals(one), decimals(other)
    if places[0] == places[1]:
        return noise
    return 0.5 * math.pow(10.0, -min(places)) + noise


def same_price(one: float, other: float) -> bool:
    """Whether both may be the same price, rounded differently."""
    return abs(one - other) <= tolerance(one, other) + 1e-9


class _Second:
    """The prices of one second: each of them or, in a burst, the range they span."""

    __slots__ = ("last", "prices", "second", "spanned")

    def __init__(self, second: int, price: float) -> None:
        self.second = second
        self.last = price
        self.prices = [price]
        self.spanned = False

    def add(self, price: float) -> None:
        self.last = price
        if self.spanned:
            self.prices = [min(self.prices[0], price), max(self.prices[1], price)]
            return
        self.prices.append(price)
        if len(self.prices) > MOST_PRICES:
            self.prices, self.spanned = [min(self.prices), max(self.prices)], True

    def agrees(self, price: float) -> bool:
        if self.spanned and self.prices[0] <= price <= self.prices[1]:
            return True
        return any(same_price(price, one) for one in self.prices)


class RecentPrices:
    """What the socket brought lately; bounded, however many prices come."""

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque()  # oldest first; twice the window and one before it

    @property
    def last(self) -> float | None:
        return self._seconds[-1].last if self._seconds else None

    def clear(self) -> None:
        self._seconds.clear()

    def add(self, price: float, at: float) -> None:
        """Note a price received at ``at``; instants never go back."""
        price, second = quantise(price), math.floor(at)
        if self._seconds and self._seconds[-1].second >= second:
            self._seconds[-1].add(price)
            return
        self._seconds.append(_Second(second, price))
        while len(self._seconds) > 1 and self._seconds[1].second < second - 2 * WINDOW_S:
            self._seconds.popleft()

    def agree(self, price: float, asked_at: float) -> bool:
        """Whether ``price``, asked by REST at ``asked_at``, is one that was in effect since
        ``asked_at - WINDOW_S``.
        """
        oldest = math.floor(asked_at - WINDOW_S)
        in_effect: float | None = None
        for one in self._seconds:
            if one.second < oldest:
                in_effect = one.last
            elif one.agrees(price):
                return True
        return in_effect is not None and same_price(price, in_effect)
