"""Whether the tables can hold a symbol's prices: DECIMAL(12,6) has six digits on either side. Pure."""

from collections.abc import Sequence
from statistics import median
from typing import Final

from .tick import MAX_PRICE

LEAST_PRICE: Final = 0.001
"""Below it six decimals are less than four digits: rounding alone would move prices by more than 0.05 %."""


def unfit(symbol: str, prices: Sequence[float]) -> str | None:
    """A sentence, when ``prices`` of ``symbol`` as a whole lie where the tables cannot hold them."""
    if not prices:
        return None
    middle = median(prices)
    if LEAST_PRICE <= middle < MAX_PRICE:
        return None
    return (
        f"{symbol}: its price, {middle:g}, does not fit DECIMAL(12,6), which holds prices from "
        f"{LEAST_PRICE:g} (with four digits) to 1,000,000; take {symbol} out of SYMBOLS, or collect the "
        "pair the other way round."
    )
