"""When two spellings are one price. Pure.

The vendor keeps some prices as 32-bit floats and shows the same one with different decimals: 4179.96,
``4179.95996``, ``4179.959961``.
"""

import struct
from collections.abc import Iterable
from typing import Final

_FLOAT32: Final = struct.Struct("<f")
_DECIMALS: Final = range(7)
_SPACING: Final = 1.001 * 2.0**-23 * 100
"""In hundredths: how far apart neighbouring 32-bit floats are at most, as a part of them."""


def same_but_noise(one: float, other: float) -> bool:
    """Whether both are the same 32-bit float, each rounded to some number of decimals up to 6.

    Prices that merely lie close together are two prices.
    """
    if one == other:
        return True
    try:
        stored, also = (_FLOAT32.unpack(_FLOAT32.pack(price))[0] for price in (one, other))
    except OverflowError:
        return False
    if stored != also:
        return False
    spellings = {round(stored, decimals) for decimals in _DECIMALS}
    return one in spellings and other in spellings


def is_float32_noise(price: float) -> bool:
    """Whether ``price`` is a number of 2 decimals that a 32-bit float has blurred."""
    clean = round(price, 2)
    return clean != price and same_but_noise(clean, price)


def count_float32_noise(prices: Iterable[float]) -> int:
    """Of how many ``prices`` that is so; in a third of the time, since most of them have either 2 decimals
    or are too far from that for one 32-bit float to hold both."""
    near = [
        price
        for price in prices
        if not (spacing := price * _SPACING) < price * 100.0 % 1.0 < 1.0 - spacing
    ]
    return sum(map(is_float32_noise, near))
