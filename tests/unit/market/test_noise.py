"""Two spellings of one price, and two prices."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.market.noise import same_but_noise


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (4179.96, 4179.95996),
        (4179.96, 4179.959961),
        (3271.76, 3271.76001),
        (330.14, 330.14001),
        (148.85, 148.85001),
        (4180.0, 4180),
        (1.09, 1.09),
    ],
)
def test_float32_noise_is_no_change(one: float, other: float) -> None:
    assert same_but_noise(one, other)
    assert same_but_noise(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (4179.96, 4179.97),
        (4179.96, 4179.9602),  # the same 32-bit float, and yet not its rounding
        (4179.95996, 4179.9602),
        (3680.38804, 3680.388),
        (1.1816464, 1.1816465),
        (95_000.01, 95_000.02),
        (1e300, 4179.96),
        (1e300, 2e300),
    ],
)
def test_close_prices_are_two_prices(one: float, other: float) -> None:
    assert not same_but_noise(one, other)
    assert not same_but_noise(other, one)


@given(st.integers(300_000, 600_000), st.sampled_from([5, 6]))
def test_whatever_the_vendor_makes_of_centavos(centavos: int, decimals: int) -> None:
    price = centavos / 100
    noisy = round(struct.unpack("<f", struct.pack("<f", price))[0], decimals)
    assert same_but_noise(price, noisy)
    assert not same_but_noise(price + 0.01, noisy)
