"""Subscription events stay below the vendor's limit in any minute."""

from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.feeds.event_budget import EventBudget


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 2)), max_size=60))
def test_never_more_than_the_limit_in_any_minute(wishes: list[tuple[float, int]]) -> None:
    budget, now, sent = EventBudget(limit=5), 0.0, []
    for pause, events in wishes:
        now += pause
        now += budget.wait_s(now, events)
        assert budget.wait_s(now, events) == 0
        budget.spend(now, events)
        sent += [now] * events
    for at in sent:
        assert sum(at <= other < at + 59.999 for other in sent) <= 5


def test_nobody_waits_without_need() -> None:
    budget = EventBudget(limit=2)
    budget.spend(10)
    assert budget.wait_s(11) == 0
    budget.spend(11)
    assert budget.wait_s(20) == 50
    assert budget.wait_s(70) == 0
