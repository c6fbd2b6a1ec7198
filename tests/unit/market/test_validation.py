"""Which quotes become ticks, and why others do not."""

import math

import pytest

from enhanced_websocket_service.market.tick import Flag, Quote
from enhanced_websocket_service.market.validation import QuoteValidator


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
