"""Which prices the tables can hold (C12)."""

import pytest

from enhanced_websocket_service.market.scale import unfit


@pytest.mark.parametrize(
    ("prices", "fits"),
    [
        ([4100.25], True),
        ([999_999.5], True),
        ([0.0067], True),  # JPY/USD
        ([], True),
        ([4.1e8], False),  # BTC/COP
        ([1_000_000.0], False),
        ([0.00024512, 0.000246], False),  # COP/USD
        ([1.23e-05], False),  # SHIB/USD
        ([4100.0, 4101.0, 4.1e8], True),  # a misprint is no scale
    ],
)
def test_the_size_of_a_symbol_is_that_of_its_prices_as_a_whole(
    prices: list[float], fits: bool
) -> None:
    told = unfit("ABCXYZ", prices)
    assert (told is None) is fits
    if told is not None:
        assert told.startswith("ABCXYZ: its price")
        assert "DECIMAL(12,6)" in told
