"""What has to be said for a price: why it is doubted, which witnesses settle it, and what when none comes."""

import pytest

from enhanced_websocket_service.market.plausibility import (
    SCALES,
    BarWitness,
    Kind,
    Why,
    is_enough,
    is_scale,
    why_doubted,
)
from enhanced_websocket_service.market.tick import OUTLIER, UNWITNESSED, Flag, Quote
from enhanced_websocket_service.market.validation import (
    HELD_LIMIT,
    HELD_MOST,
    Accepted,
    Decision,
    QuoteValidator,
)

NOW = 1_700_000_100
BAR = NOW - NOW % 300


def quote(price: float, second: int = 0, *, rest: bool = False) -> Quote:
    source = "simulator_rest" if rest else "simulator_websocket"
    return Quote("USDCOP", NOW + second, price, source, NOW + second + 0.5, stamped=not rest)


def validator(last: float | None = 4100.0) -> QuoteValidator:
    made = QuoteValidator(5.0, believe_first=False)
    if last is not None:
        made.seed(NOW - 1, last)
    return made


def prices(decided: list[Accepted]) -> list[float]:
    return [one.quote.price for one in decided]


def outcome(decision: Decision) -> tuple[list[float], list[tuple[float | None, str]]]:
    return prices(decision[0]), [(one.price, one.reason) for one in decision[1]]


@pytest.mark.parametrize("scale", SCALES)
def test_a_power_of_ten_within_tolerance_is_one_of_scale(scale: float) -> None:
    assert is_scale(scale)
    assert is_scale(scale * 1.19)
    assert is_scale(scale * 0.81)
    assert not is_scale(scale * 1.3)
    assert not is_scale(scale * 0.7)


@pytest.mark.parametrize(
    ("price", "last", "most", "why"),
    [
        (4100.0, None, 0.2, "first"),
        (41.0, 4100.0, 0.2, "scale"),
        (4_150_000 / 10, 4100.0, 0.2, "scale"),
        (4.1, 4100.0, 50.0, "scale"),  # whatever the history says
        (8200.0, 4100.0, 0.2, "leap"),
        (3000.0, 4100.0, 0.2, "leap"),
        (8200.0, 4100.0, 1.5, "move"),  # the pair did that before
        (4400.0, 4100.0, 0.2, "move"),
        (5000.0 * 1.2, 5000.0, 0.2, "move"),
        (5000.0 * 0.8, 5000.0, 0.2, "move"),
    ],
)
def test_why_a_price_is_doubted(price: float, last: float | None, most: float, why: Why) -> None:
    assert why_doubted(price, last, most) == why


@pytest.mark.parametrize(
    ("why", "distinct", "kinds", "rest", "enough"),
    [
        ("move", 3, {"stream"}, 0, True),
        ("move", 2, {"stream"}, 0, False),
        ("move", 1, {"rest"}, 2, True),
        ("move", 1, {"rest"}, 1, False),
        ("move", 1, {"stream", "rest"}, 1, True),
        ("scale", 1000, {"stream"}, 0, False),
        ("scale", 1000, {"rest"}, 1000, False),
        ("scale", 1, {"stream", "bar"}, 0, True),
        ("leap", 1000, {"stream"}, 0, False),
        ("first", 1000, {"stream"}, 0, False),
        ("first", 1, {"stream", "stored"}, 0, True),
    ],
)
def test_what_is_enough(why: Why, distinct: int, kinds: set[Kind], rest: int, enough: bool) -> None:
    assert is_enough(why, distinct, kinds, rest) is enough


def test_the_finding_three_prices_of_one_socket_do_not_change_the_scale() -> None:
    """The prices of the finding: the true one was the one that was held then."""
    checked = validator()
    accepted: list[float] = []
    for second, price in enumerate([4100.1, 4100.2, 41.001, 41.002, 41.003, 41.004, 4100.3]):
        found, refused = checked.check(quote(price, second))
        accepted += prices(found)
    assert accepted == [4100.1, 4100.2, 4100.3]
    assert [one.reason for one in refused] == [OUTLIER] * 4


@pytest.mark.parametrize(
    ("price", "last", "needs"),
    [
        (4100.0, 4000.0, False),  # within the band
        (4300.0, 4000.0, False),  # three of one source settle it
        (40.0, 4000.0, True),
        (6000.0, 4000.0, True),
        (4000.0, None, True),
    ],
)
def test_which_prices_need_a_witness_of_another_kind(
    price: float, last: float | None, needs: bool
) -> None:
    validator = QuoteValidator(believe_first=False)
    if last is not None:
        validator.seed(1, last)
    assert validator.needs_another_kind(price) is needs


def test_a_standing_move_is_believed_by_the_second_answer() -> None:
    """The finding: the first answer is held, and every later one is equal to it."""
    checked = validator(4000.0)
    assert outcome(checked.check(quote(4300.0, 1, rest=True))) == ([], [])
    assert outcome(checked.on_rest_price(4300.0, NOW + 5.0)) == ([4300.0], [])
    assert checked.last == 4300.0


def test_an_equal_answer_that_comes_as_a_quote_is_a_witness_and_no_second_tick() -> None:
    checked = validator(4000.0)
    checked.check(quote(4300.0, 1, rest=True))
    assert checked.is_unchanged(quote(4300.0, 3, rest=True))
    assert not checked.is_unchanged(quote(4301.0, 3, rest=True))
    stream = validator(4000.0)
    stream.check(quote(4300.0, 1))
    assert not stream.is_unchanged(quote(4300.0, 3, rest=True)), "another kind is a quote"


@pytest.mark.parametrize("first_is_rest", [True, False])
@pytest.mark.parametrize("price", [41.0, 8200.0])
def test_stream_and_rest_vouch_for_each_other(price: float, first_is_rest: bool) -> None:
    checked = validator()
    assert outcome(checked.check(quote(price, 1, rest=first_is_rest))) == ([], [])
    found, refused = checked.check(quote(price * 1.001, 2, rest=not first_is_rest))
    assert (prices(found), refused) == ([price, price * 1.001], [])
    assert all(Flag.HELD in one.flags for one in found)


def test_rest_alone_changes_no_scale_however_often_it_is_asked() -> None:
    checked = validator()
    checked.check(quote(410_000.0, 1, rest=True))
    for second in range(2, 100):
        assert checked.on_rest_price(410_000.0, NOW + second) == ([], [])
    assert outcome(checked.check(quote(4101.0, 100))) == ([4101.0], [(410_000.0, OUTLIER)])


def test_a_bar_of_the_vendor_confirms_and_refutes() -> None:
    checked = validator()
    checked.check(quote(41.0, 1))
    before = BarWitness(41.0, BAR - 600, BAR - 300, asked=True)
    assert checked.on_bar(before) == ([], []), "it ended before the last price was the last"
    overlapping = BarWitness(4100.0, BAR, BAR + 300, asked=True)
    assert checked.on_bar(overlapping) == ([], []), "its close may be from before the quote"
    neither = BarWitness(900.0, BAR, BAR + 300, asked=True)
    assert checked.on_bar(neither) == ([], [])
    assert outcome(checked.on_bar(BarWitness(41.1, BAR, BAR + 300, asked=True))) == ([41.0], [])
    checked.check(quote(4100.0, 400))
    later = BarWitness(41.2, BAR + 900, BAR + 1200, asked=True)
    assert outcome(checked.on_bar(later)) == ([], [(4100.0, OUTLIER)])


def test_a_stored_bar_never_refutes() -> None:
    """It may be made of the very ticks that the held quote disagrees with."""
    checked = validator()
    checked.check(quote(41.0, 1))
    assert checked.on_bar(BarWitness(4100.0, BAR + 900, BAR + 1200, asked=False)) == ([], [])


def test_the_first_price_is_measured_by_the_last_stored_bar() -> None:
    checked = validator(None)
    checked.assume(BarWitness(4000.0, NOW - 90_000, NOW - 89_700, asked=False))
    assert prices(checked.check(quote(4010.0, 1))[0]) == [4010.0]
    wrong = validator(None)
    wrong.assume(BarWitness(4000.0, NOW - 90_000, NOW - 89_700, asked=False))
    assert wrong.check(quote(0.4, 1)) == ([], [])
    assert wrong.check(quote(0.4, 2)) == ([], [])
    assert outcome(wrong.check(quote(4001.0, 3))) == ([4001.0], [(0.4, OUTLIER), (0.4, OUTLIER)])


def test_a_tick_that_is_younger_than_the_stored_bar_measures() -> None:
    checked = validator(4100.0)
    checked.assume(BarWitness(3000.0, BAR - 3000, BAR - 2700, asked=False))
    assert checked.last == 4100.0
    checked.assume(BarWitness(3000.0, NOW + 5, NOW + 305, asked=False))
    assert checked.last == 3000.0, "what was missed meanwhile has a bar"


def test_a_first_price_waits_for_a_bar_that_comes_later() -> None:
    checked = validator(None)
    assert checked.check(quote(4100.0, 1)) == ([], [])
    assert checked.doubt is not None
    assert (checked.doubt.why, checked.doubt.last) == ("first", None)
    stored = BarWitness(4090.0, NOW - 90_000, NOW - 89_700, asked=False)
    assert outcome(checked.on_bar(stored)) == ([4100.0], [])
    wrong = validator(None)
    wrong.check(quote(41.0, 1))
    assert wrong.on_bar(stored) == ([], [])
    assert wrong.doubt is not None
    assert (wrong.doubt.why, wrong.doubt.last) == ("scale", 4090.0)


def test_a_moved_first_price_is_a_move_once_the_bar_is_known() -> None:
    checked = validator(None)
    for second in (1, 2, 3):
        assert checked.check(quote(4400.0 + second, second)) == ([], [])
    stored = BarWitness(4100.0, NOW - 90_000, NOW - 89_700, asked=False)
    assert prices(checked.on_bar(stored)[0]) == [4401.0, 4402.0, 4403.0]


def test_no_scale_is_believed_because_nobody_can_be_asked() -> None:
    checked = validator()
    for second in range(1, 500):
        checked.check(quote(41.0 + second / 1000, second))
    found, refused = checked.overdue()
    assert found == []
    assert {one.reason for one in refused} == {UNWITNESSED}
    assert len(refused) == 499
    assert checked.overdue() == ([], [])


@pytest.mark.parametrize("others", [0, 1])
def test_a_leap_that_did_not_stand_is_given_up(others: int) -> None:
    checked = validator()
    for second in range(1 + others):
        checked.check(quote(6000.0 + second, second))
    assert checked.overdue()[0] == []


def test_a_leap_that_stood_is_believed_when_nobody_can_be_asked() -> None:
    checked = validator()
    for second in range(3):
        checked.check(quote(6000.0 + second, second))
    assert prices(checked.overdue()[0]) == [6000.0, 6001.0, 6002.0]
    polled = validator()
    polled.check(quote(6000.0, 1, rest=True))
    polled.on_rest_price(6000.0, NOW + 3)
    polled.on_rest_price(6000.0, NOW + 5)
    assert prices(polled.overdue()[0]) == [6000.0]


def test_a_leap_that_somebody_disputes_is_given_up() -> None:
    checked = validator()
    for second in range(5):
        checked.check(quote(6000.0 + second, second))
    assert checked.on_rest_price(9000.0, NOW + 60.0) == ([], [])
    assert {one.reason for one in checked.overdue()[1]} == {UNWITNESSED}


def test_the_first_price_of_all_is_believed_when_nobody_can_be_asked_and_none_disputes() -> None:
    checked = validator(None)
    checked.check(quote(4100.0, 1))
    assert prices(checked.overdue()[0]) == [4100.0]
    disputed = validator(None)
    disputed.check(quote(41.0, 1))
    disputed.on_rest_price(4100.0, NOW + 60)
    assert disputed.overdue()[0] == []


def test_what_waits_is_bounded_and_nothing_is_swallowed() -> None:
    checked = validator()
    given = HELD_MOST + 10
    refused = 0
    for second in range(given):
        refused += len(checked.check(quote(41.0, second))[1])
    assert (checked.held, refused) == (HELD_MOST, 10)
    doubles = validator()
    reasons = [one for _ in range(HELD_LIMIT + 1) for one in doubles.check(quote(41.0, 1))[1]]
    assert [(one.reason, bool(one.raw)) for one in reasons] == [(OUTLIER, True)]


def test_a_pair_may_move_as_far_as_it_did_before() -> None:
    checked = validator()
    checked.expect(0.5)
    for second in range(3):
        found, _ = checked.check(quote(6000.0 + second, second))
    assert prices(found) == [6000.0, 6001.0, 6002.0]
    checked.expect(0.01)
    checked.check(quote(7000.0, 10))
    assert checked.doubt is not None
    assert checked.doubt.why == "move", "less than a fifth is never beyond what pairs do"


def test_going_back_undoes_what_was_held_and_who_spoke_for_it() -> None:
    checked = validator()
    checked.check(quote(41.0, 1, rest=True))
    state = checked.state()
    checked.check(quote(41.001, 2))
    assert checked.held == 0
    checked.go_back(state)
    assert checked.held == 1
    assert checked.on_rest_price(41.0, NOW + 4) == ([], []), "still of one kind"


def test_a_move_at_the_edge_of_a_leap_is_a_move() -> None:
    """Else the wrong print that came before it would take its right to be believed."""
    checked = validator()
    assert outcome(checked.check(quote(3270.0, 1, rest=True))) == ([], [])
    assert checked.on_rest_price(3300.0, NOW + 3) == ([], [])
    found, _ = checked.check(quote(3300.0, 3, rest=True))
    assert prices(found) == [3270.0, 3300.0]
