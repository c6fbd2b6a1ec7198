"""Which quotes become ticks, and why others do not."""

import math

import pytest

from enhanced_websocket_service.market.noise import is_float32_noise
from enhanced_websocket_service.market.tick import Flag, Quote
from enhanced_websocket_service.market.validation import (
    HELD_LIMIT,
    REST_LAG_S,
    Accepted,
    QuoteValidator,
)


def quote(price: float, **fields: object) -> Quote:
    return Quote(
        **{  # type: ignore[arg-type]
            "symbol": "USDCOP",
            "timestamp": 1_700_000_000,
            "price": price,
            "source": "simulator_websocket",
            "received_at": 1_700_000_000.5,
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (quote(math.nan), "not_a_number"),
        (quote(math.inf), "not_a_number"),
        (quote(0.0), "not_positive"),
        (quote(0.0000001), "not_positive"),
        (quote(-4100.0), "not_positive"),
        (quote(1_000_000.0), "out_of_range"),
        (quote(999_999.9999996), "out_of_range"),  # a million, once it is rounded
        (quote(4100.0, bid=math.nan), "not_a_number"),
        (quote(4100.0, ask=-1.0), "not_positive"),
        (quote(math.nan, raw='{"price":"abc"}'), "unparsable"),
    ],
)
def test_unusable_numbers_are_rejected_with_a_reason(bad: Quote, reason: str) -> None:
    accepted, refused = QuoteValidator().check(bad)
    assert accepted == []
    assert [one.reason for one in refused] == [reason]
    assert refused[0].price is None or math.isfinite(refused[0].price)


def test_crossed_quotes_count_and_are_flagged() -> None:
    accepted, refused = QuoteValidator().check(quote(4100.0, bid=4100.5, ask=4099.5))
    assert refused == []
    assert accepted[0].flags == (Flag.CROSSED,)


def test_receipt_stamps_are_flagged() -> None:
    accepted, _ = QuoteValidator().check(quote(4100.0, stamped=False))
    assert accepted[0].flags == (Flag.RECEIVED,)


def test_a_lone_outlier_is_rejected_once_the_price_returns() -> None:
    validator = QuoteValidator(5.0)
    assert validator.check(quote(4100.0))[0]
    assert validator.check(quote(8200.0)) == ([], [])
    assert validator.held == 1
    accepted, refused = validator.check(quote(4101.0))
    assert [one.quote.price for one in accepted] == [4101.0]
    assert [(one.price, one.reason) for one in refused] == [(8200.0, "outlier")]


def test_a_real_jump_is_accepted_in_order_once_two_more_agree() -> None:
    validator = QuoteValidator(5.0)
    validator.check(quote(4100.0))
    assert validator.check(quote(4400.0)) == ([], [])
    assert validator.check(quote(4401.0)) == ([], [])
    accepted, refused = validator.check(quote(4402.0))
    assert refused == []
    assert [one.quote.price for one in accepted] == [4400.0, 4401.0, 4402.0]
    assert all(Flag.HELD in one.flags for one in accepted)
    assert validator.check(quote(4403.0))[0]


def test_one_rest_price_confirms_a_jump() -> None:
    validator = QuoteValidator(5.0)
    validator.check(quote(4100.0))
    validator.check(quote(4400.0))
    accepted, _ = validator.check(quote(4399.0, source="simulator_rest"))
    assert [one.quote.price for one in accepted] == [4400.0, 4399.0]


def test_outliers_that_disagree_with_each_other_replace_each_other() -> None:
    validator = QuoteValidator(5.0)
    validator.check(quote(4100.0))
    validator.check(quote(8200.0))
    accepted, refused = validator.check(quote(2000.0))
    assert accepted == []
    assert [one.price for one in refused] == [8200.0]
    assert [one.price for one in validator.flush()] == [2000.0]
    assert validator.held == 0


def test_only_the_first_frame_after_a_subscription_can_be_a_resend() -> None:
    validator = QuoteValidator()
    validator.check(quote(4100.0, bid=4099.0, ask=4101.0))
    same = quote(4100.0, bid=4099.0, ask=4101.0)
    assert not validator.is_resent(same)
    first = quote(4100.0, bid=4099.0, ask=4101.0, first_after_subscribe=True)
    assert validator.is_resent(first)
    assert not validator.is_resent(
        quote(4100.01, bid=4099.0, ask=4101.0, first_after_subscribe=True)
    )
    assert not QuoteValidator().is_resent(first)


def test_seed_restores_the_reference_after_a_restart() -> None:
    validator = QuoteValidator(5.0)
    validator.seed(1_700_000_000, 4100.0, None, None)
    assert validator.is_resent(quote(4100.0, first_after_subscribe=True))
    assert validator.check(quote(8000.0)) == ([], [])


NOW = 1_700_000_000


def prices(decided: list[Accepted]) -> list[float]:
    return [one.quote.price for one in decided]


def test_a_future_tick_is_taken_whatever_its_price_and_nothing_is_measured_by_it() -> None:
    validator = QuoteValidator(5.0)
    validator.check(quote(4100.0))
    accepted, refused = validator.check(quote(8200.0, timestamp=NOW + 60), timely=False)
    assert (prices(accepted), refused) == ([8200.0], [])
    assert validator.check(quote(4101.0))[0]
    assert validator.check(quote(8200.0)) == ([], [])  # an outlier all the same
    # It is the last journaled tick all the same: sent again, it is known.
    validator.check(quote(4102.0, timestamp=NOW + 60), timely=False)
    again = quote(4102.0, timestamp=NOW + 60, first_after_subscribe=True)
    assert validator.is_resent(again)


def test_a_future_tick_is_not_the_first_price_either() -> None:
    validator = QuoteValidator(5.0)
    validator.check(quote(1.0, timestamp=NOW + 60), timely=False)
    assert prices(validator.check(quote(4100.0))[0]) == [4100.0]
    validator.seed(NOW + 60, 1.0, timely=False)
    assert prices(validator.check(quote(4101.0))[0]) == [4101.0]


def test_an_old_tick_is_flagged_and_nothing_is_measured_by_it() -> None:
    validator = QuoteValidator(5.0)
    validator.check(quote(4100.0))
    accepted, _ = validator.check(quote(3900.0, timestamp=NOW - 3600))
    assert accepted[0].flags == (Flag.OUT_OF_ORDER,)
    # 6 % above the old one, 0.8 % above the last.
    assert prices(validator.check(quote(4134.0))[0]) == [4134.0]
    # A restart must not make it the reference either.
    validator.remember(NOW - 3600, 3900.0)
    assert prices(validator.check(quote(4135.0))[0]) == [4135.0]


def test_an_outlier_delivered_many_times_is_no_witness_of_itself() -> None:
    validator = QuoteValidator(5.0)
    validator.check(quote(4100.0))
    refused = 0
    for _ in range(1000):
        accepted, rejected = validator.check(quote(8200.0))
        assert accepted == []
        refused += len(rejected)
    assert validator.held == HELD_LIMIT
    assert refused == 1000 - HELD_LIMIT
    _, rejected = validator.check(quote(4101.0, timestamp=NOW + 1))
    assert len(rejected) == HELD_LIMIT


def test_doubles_of_a_real_jump_are_accepted_with_it() -> None:
    validator = QuoteValidator(5.0)
    validator.check(quote(4100.0))
    for _ in range(2):
        validator.check(quote(4400.0))
    validator.check(quote(4401.0))
    accepted, _ = validator.check(quote(4402.0))
    assert prices(accepted) == [4400.0, 4400.0, 4401.0, 4402.0]
    assert [one.repeated for one in accepted] == [False, True, False, False]


def test_an_outlier_sent_again_after_each_subscription_confirms_nothing() -> None:
    validator = QuoteValidator(5.0)
    validator.check(quote(4100.0))
    validator.check(quote(8200.0))
    assert validator.is_resent(quote(8200.0, first_after_subscribe=True))


def test_a_tick_from_before_a_jump_does_not_refute_it() -> None:
    validator = QuoteValidator(5.0)
    validator.check(quote(4100.0, timestamp=NOW))
    validator.check(quote(4400.0, timestamp=NOW + 2))
    accepted, refused = validator.check(quote(4101.0, timestamp=NOW + 1))
    assert (prices(accepted), refused) == ([4101.0], [])
    validator.check(quote(4401.0, timestamp=NOW + 2))
    accepted, _ = validator.check(quote(4402.0, timestamp=NOW + 3))
    assert prices(accepted) == [4400.0, 4401.0, 4402.0]


def test_a_rest_price_that_may_lag_does_not_refute_a_jump() -> None:
    validator = QuoteValidator(5.0)
    validator.check(quote(4100.0))
    validator.check(quote(4400.0, timestamp=NOW + 1, received_at=NOW + 1.0))
    polled = {"source": "simulator_rest", "stamped": False}
    lagging = quote(4100.5, timestamp=NOW + 15, received_at=NOW + 15.0, **polled)
    assert validator.check(lagging)[1] == []
    assert validator.on_rest_price(4100.0, NOW + 1 + REST_LAG_S - 0.1) == ([], [])
    late = quote(4100.7, timestamp=NOW + 27, received_at=NOW + 27.0, **polled)
    assert [one.price for one in validator.check(late)[1]] == [4400.0]


def test_polled_prices_refute_each_other_at_once() -> None:
    validator = QuoteValidator(5.0)
    refused = []
    for second, price in enumerate([4100.0, 8200.0, 4101.0, 8201.0, 4102.0]):
        polled = quote(price, received_at=NOW + second, source="simulator_rest", stamped=False)
        refused += [one.price for one in validator.check(polled)[1]]
    assert refused == [8200.0, 8201.0]


@pytest.mark.parametrize(
    ("sample", "accepted", "refused"),
    [
        (4390.0, [4400.0], []),
        (4100.0, [], [4400.0]),
        (4260.0, [4400.0], []),  # nearer to the held one
        (9000.0, [], []),  # agrees with neither
        (math.nan, [], []),
        (0.0, [], []),
    ],
)
def test_a_sampled_rest_price_decides_about_a_held_one(
    sample: float, accepted: list[float], refused: list[float]
) -> None:
    validator = QuoteValidator(5.0)
    assert validator.on_rest_price(sample, NOW) == ([], [])
    validator.check(quote(4100.0))
    validator.check(quote(4400.0, received_at=NOW + 0.0))
    found = validator.on_rest_price(sample, NOW + REST_LAG_S)
    assert (prices(found[0]), [one.price for one in found[1]]) == (accepted, refused)
    reference = 4400.0 if accepted else 4100.0
    assert prices(validator.check(quote(reference * 1.01))[0]) == [reference * 1.01]


def test_a_price_through_a_32_bit_float_is_no_other_price() -> None:
    validator = QuoteValidator()
    validator.check(quote(4179.96, bid=4179.5))
    resent = quote(4179.95996, bid=4179.5, first_after_subscribe=True)
    assert validator.is_resent(resent)
    assert validator.is_unchanged(quote(4179.95996, stamped=False))
    assert not validator.is_unchanged(quote(4179.9595, stamped=False))
    assert not validator.is_unchanged(quote(4179.96))
    assert not validator.is_unchanged(quote(math.nan, stamped=False, raw="x"))


@pytest.mark.parametrize(
    ("price", "noise"),
    [
        *[(4179.95996, True), (3271.76001, True), (330.14001, True), (4179.96, False)],
        *[(3680.38804, False), (4179.9599, False), (1.18165, False), (148.85001, True)],
    ],
)
def test_noise_is_told_from_decimals(price: float, noise: bool) -> None:
    assert is_float32_noise(price) is noise


def test_repeated_ticks_are_accepted_and_told() -> None:
    validator = QuoteValidator()
    found = [validator.check(quote(4100.0, bid=4099.0))[0][0] for _ in range(3)]
    assert [one.repeated for one in found] == [False, True, True]
    assert all(one.flags == () for one in found)
