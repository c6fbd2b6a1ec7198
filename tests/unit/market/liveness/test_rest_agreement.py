"""When a REST price is one the socket brought, whatever its lag and rounding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.market.liveness.rest_agreement import (
    MOST_PRICES,
    RecentPrices,
    decimals,
    same_price,
)

from .playing import rounded

prices = st.floats(0.5, 99_999.0).map(lambda price: round(price, 6))


@given(prices, st.integers(2, 5), st.integers(2, 6), st.booleans(), st.booleans())
def test_one_price_spelled_in_two_ways_is_one_price(
    price: float, there: int, here: int, noise: bool, other_noise: bool
) -> None:
    one = rounded(price, there, noise=noise)
    other = rounded(price, here, noise=other_noise)
    assert same_price(one, other)
    assert same_price(other, one)


@given(prices)
def test_a_move_is_a_move(price: float) -> None:
    step = max(0.02, price * 1e-6)
    assert not same_price(round(price, 2), round(round(price, 2) + step, 2)) or decimals(
        round(price, 2)
    ) != decimals(round(round(price, 2) + step, 2))


@pytest.mark.parametrize(
    ("price", "places"), [(4000.0, 0), (4012.5, 1), (4012.53, 2), (4012.53003, 2), (1.08123, 5)]
)
def test_the_noise_of_32_bits_is_no_decimal(price: float, places: int) -> None:
    assert decimals(price) == places


def test_only_prices_in_effect_during_the_lag_agree() -> None:
    recent = RecentPrices()
    for at, price in ((0, 4000.11), (60, 4001.23), (70, 4002.37), (95, 4003.41)):
        recent.add(price, at)
    assert recent.agree(4003.41, 100)
    assert recent.agree(4002.37, 96), "in effect when the lag began"
    assert not recent.agree(4000.11, 100)
    assert recent.agree(4003.41, 5000), "the last price stays in effect"
    assert not recent.agree(4002.37, 5000)
    assert not recent.agree(4004.19, 100)


def test_a_burst_is_a_range_and_memory_stays_bounded() -> None:
    recent = RecentPrices()
    for number in range(20_000):
        recent.add(4000 + number / 1000, 100.0)
    assert recent.agree(4012.3456, 101)
    assert not recent.agree(4030.11, 101)
    assert recent.last == 4019.999
    assert len(recent._seconds[-1].prices) <= MOST_PRICES
    for second in range(1000):
        recent.add(4000.5, 200.0 + second)
    assert len(recent._seconds) < 60


def test_nothing_brought_agrees_with_nothing() -> None:
    recent = RecentPrices()
    assert not recent.agree(4000, 100)
    recent.add(4000, 100)
    recent.clear()
    assert (recent.agree(4000, 100), recent.last) == (False, None)
