"""When two spellings are one price. Pure.

The vendor keeps some prices as 32-bit floats and shows the same one with different decimals: 4179.96,
``4179.95996``, ``4179.959961``.
"""

import struct
from typing import Final

_FLOAT32: Final = struct.Struct("<f")
_DECIMALS: Final = range(7)
_SPACING: Final = 2.0**-22
"""Twice the distance of neighbouring 32-bit floats, as a part of them."""


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
    off = price * 100.0 % 1.0
    if _SPACING * price * 100.0 < min(off, 1.0 - off):
        return False  # too far from 2 decimals for one 32-bit float to hold both
    clean = round(price, 2)
    return clean != price and same_but_noise(clean, price)
