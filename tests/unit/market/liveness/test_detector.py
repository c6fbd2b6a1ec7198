"""The detector of one symbol: what makes it quiet, suspect, dead and alive again."""

from datetime import date
from itertools import pairwise

import pytest

from enhanced_websocket_service.market.calendar import Session
from enhanced_websocket_service.market.liveness.baseline import InactivityBaseline
from enhanced_websocket_service.market.liveness.detector import HISTORY, LivenessDetector, Timing
from enhanced_websocket_service.market.liveness.status import Verdict

from .playing import START, Market, play


@pytest.fixture
def detector() -> LivenessDetector:
    return LivenessDetector("USDCOP", InactivityBaseline())


def steady(detector: LivenessDetector, seconds: int = 60, begin: float = START) -> float:
    """A price a second; returns the instant of the last one."""
    if not detector.listening:
        detector.connected(begin)
    for second in range(1, seconds + 1):
        detector.price(4000 + second / 10, begin + second)
    return begin + seconds


def kinds(detector: LivenessDetector) -> list[Verdict]:
    return [change.verdict for change in detector.history]


def test_it_is_closed_before_it_starts_and_after(detector: LivenessDetector) -> None:
    assert detector.look(START) == "closed"
    detector.connecting("connecting", START)
    assert (detector.look(START), detector.evidence) == ("suspect", "connecting")
    detector.connected(START)
    assert (detector.look(START), detector.evidence) == ("quiet", "connected, no price yet")
    last = steady(detector)
    assert detector.look(last) == "live"
    detector.stopped(last)
    assert detector.look(last + 999) == "closed"


def test_live_then_suspect_then_quiet_by_what_rest_says(detector: LivenessDetector) -> None:
    last = steady(detector)
    limit = detector.suspect_after(last)
    assert 8 <= limit <= 10
    assert detector.look(last + limit - 0.1) == "live"
    assert not detector.wants_sample(last + limit - 0.1)
    assert detector.next_look(last) == pytest.approx(last + limit - 0.0, abs=5)
    assert detector.look(last + limit) == "suspect"
    assert detector.wants_sample(last + limit)
    assert detector.sample(4006.0, last + limit, last + limit + 0.2) == "agrees"
    assert detector.verdict == "quiet"
    assert "4006 is one the socket brought" in detector.evidence
    assert not detector.wants_sample(last + limit + 1)
    assert detector.wants_sample(last + limit + 5)


def test_two_samples_that_moved_make_it_dead_and_a_price_alive(detector: LivenessDetector) -> None:
    last = steady(detector)
    assert detector.sample(4007.13, last + 9, last + 9.2) == "differs"
    assert detector.verdict == "suspect"
    assert detector.sample(4007.13, last + 12, last + 12.2) == "differs"
    assert detector.look(last + 13) == "suspect", "the vendor stands still: two answers, one price"
    detector.sample(4007.58, last + 15, last + 15.2)
    assert detector.look(last + 15.3) == "suspect", "what is on its way may still arrive"
    assert detector.look(last + 15.6) == "dead"
    assert "from 4007.13 to 4007.58" in detector.evidence
    assert not detector.listening
    assert detector.look(last + 900) == "dead"
    detector.price(4008, last + 901)
    assert detector.verdict == "live"
    assert kinds(detector)[-3:] == ["suspect", "dead", "live"]


def test_a_price_on_its_way_saves_it(detector: LivenessDetector) -> None:
    last = steady(detector)
    detector.sample(4007.13, last + 9, last + 9.2)
    detector.sample(4007.58, last + 12, last + 12.2)
    detector.price(4007.58, last + 12.3)
    assert detector.look(last + 13) == "live"


def test_one_strange_answer_is_not_enough(detector: LivenessDetector) -> None:
    last = steady(detector)
    detector.sample(9999.0, last + 9, last + 9.2)
    for after in (12, 16, 20, 25, 40, 60):
        detector.sample(4006.0, last + after, last + after + 0.2)
        assert detector.look(last + after + 1) == "quiet"


def test_an_answer_asked_before_the_last_price_says_nothing(detector: LivenessDetector) -> None:
    last = steady(detector)
    detector.price(4006.1, last + 9.5)
    assert detector.sample(4007.13, last + 9, last + 10) == "late"
    assert detector.look(last + 10) == "live"


def test_samples_soon_after_the_connection_prove_nothing(detector: LivenessDetector) -> None:
    """A lagging REST price may be of before it, and so may its changes."""
    detector.connected(START)
    assert detector.sample(4000.0, START + 8, START + 8.2) == "unclear"
    assert detector.sample(4001.0, START + 13, START + 13.2) == "unclear"
    assert detector.sample(4002.0, START + 20, START + 20.2) == "unclear"
    assert detector.look(START + 21) == "suspect"
    detector.sample(4003.0, START + 21.5, START + 21.7)
    detector.sample(4004.0, START + 24.5, START + 24.7)
    assert detector.look(START + 25) == "dead"


def test_a_vendor_that_stands_still_is_quiet_from_birth(detector: LivenessDetector) -> None:
    detector.connected(START)
    for after in (8, 12, 21.5, 25, 40, 90):
        detector.sample(4000.0, START + after, START + after + 0.2)
        assert detector.look(START + after + 1) == ("suspect" if after == 8 else "quiet")
    assert "stands still too" in detector.evidence


def test_a_resent_price_tells_the_price_but_proves_no_life(detector: LivenessDetector) -> None:
    last = steady(detector)
    detector.lost("the connection broke", last + 1)
    assert (detector.verdict, detector.evidence) == ("dead", "the connection broke")
    detector.connected(last + 2)
    assert detector.verdict == "suspect"
    detector.price(4006.0, last + 2.1, resent=True)
    assert detector.look(last + 3) == "suspect"
    detector.price(4006.1, last + 4)
    assert detector.verdict == "live"


def test_without_rest_silence_decides_after_a_long_time(detector: LivenessDetector) -> None:
    last = steady(detector)
    for after in range(9, 90, 5):
        detector.sample_failed("no answer", last + after)
        assert detector.look(last + after) == "suspect"
    assert detector.look(last + 91) == "dead"
    assert "(no answer)" in detector.evidence
    assert detector.samples["failed"] == 17


def test_one_failed_question_late_in_a_quiet_hour_is_no_verdict(detector: LivenessDetector) -> None:
    last = steady(detector)
    detector.sample(4006.0, last + 200, last + 200.2)
    detector.sample_failed("no answer", last + 400)
    assert detector.look(last + 401) != "dead"
    detector.sample_failed("no answer", last + 444)
    assert detector.look(last + 446) == "dead"


def test_in_a_thin_market_silence_alone_waits_much_longer(detector: LivenessDetector) -> None:
    detector.connected(START)
    for number in range(8):
        detector.price(4000 + number, START + 150 * number)
    last = START + 150 * 7
    for after in range(120, 1150, 60):
        detector.sample_failed("no credits", last + after, "refused")
        assert detector.look(last + after) == "suspect", after
    assert detector.look(last + 1210) == "dead"


def test_our_own_slowness_is_no_silence(detector: LivenessDetector) -> None:
    last = steady(detector)
    detector.sample(4007.13, last + 9, last + 9.2)
    detector.excuse(last + 10)
    detector.sample(4008.24, last + 12, last + 12.2)
    assert detector.look(last + 13) == "live"


def test_questions_follow_each_other_at_growing_distances(detector: LivenessDetector) -> None:
    ticks = [(START + second, 4000 + second / 10) for second in range(60)]
    course = play(detector, Market(ticks), START + 4000)
    asked = [round(at - ticks[-1][0], 1) for at in course.asked]
    assert 8 <= asked[0] <= 10
    assert asked[1] - asked[0] <= 5
    assert asked[7:] == sorted(asked[7:])
    steps = [b - a for a, b in pairwise(asked)]
    assert steps[-1] > 5 * steps[0]
    assert len(asked) < 20
    assert course.first("dead") is None


def test_one_key_with_its_spacing_still_answers_in_time() -> None:
    """Two questions that count fit into 30 s although 8 s lie between any two."""
    spaced = Timing(spacing_s=8.0)
    detector = LivenessDetector("USDCOP", InactivityBaseline(), timing=lambda _: spaced)
    ticks = [(START + second, 4000.13 + second * 0.17) for second in range(200)]
    mute = START + 100.5
    course = play(detector, Market(ticks, lag=lambda _: 20.0), START + 190, mute_from=mute)
    assert all(b - a >= 8 for a, b in pairwise(course.asked))
    dead = course.first("dead")
    assert dead is not None
    assert dead - mute <= 30


def test_real_time_stretches_everything() -> None:
    fast = Timing(real_second=300.0)
    detector = LivenessDetector("USDCOP", InactivityBaseline(), timing=lambda _: fast)
    last = steady(detector)
    assert detector.suspect_after(last) == 30.0
    detector.sample(4007.13, last + 30, last + 32)
    assert not detector.wants_sample(last + 47)
    assert detector.wants_sample(last + 48)
    detector.sample(4008.24, last + 48, last + 50)
    assert detector.look(last + 58) == "suspect"
    assert detector.look(last + 59) == "dead"


def test_outside_the_session_nothing_is_due_and_the_open_begins_anew() -> None:
    session = Session(date(2026, 11, 20), int(START) + 600, int(START) + 18_000)
    detector = LivenessDetector(
        "USDCOP",
        InactivityBaseline(),
        lambda at: session if session.opens <= at < session.closes else None,
    )
    detector.connected(START)
    assert detector.look(START + 500) == "closed"
    assert not detector.wants_sample(START + 500)
    assert detector.look(START + 601) == "quiet"
    assert not detector.wants_sample(START + 607)
    assert detector.wants_sample(START + 610)
    assert detector.look(START + 18_000) == "closed"


def test_what_was_heard_is_learned_and_faults_are_not() -> None:
    profile = InactivityBaseline()
    session = Session(date(2026, 11, 20), int(START), int(START) + 18_000)
    detector = LivenessDetector("USDCOP", profile, lambda _: session)
    detector.connected(START - 30)
    for second in range(0, 601, 2):
        detector.price(4000 + second / 10, START + second)
    detector.lost("broken", START + 620)
    detector.connected(START + 700)
    for second in range(702, 1000, 2):
        detector.price(4000 + second / 10, START + second)
    (day,) = profile.export()["symbols"]["USDCOP"]
    assert day["ticks"] == [30] * 10 + [-1, -1] + [30] * 4
    assert day["silence"] == [2] * 10 + [-1, -1] + [2] * 4
    assert profile.usual("USDCOP", "2026-11-23", 0).silence_s == 2


def test_the_history_is_bounded_and_tells_no_trifles(detector: LivenessDetector) -> None:
    at = START
    detector.connected(at)
    for number in range(200):
        at += 40
        detector.look(at - 1)  # suspect
        detector.price(4000 + number, at)
    assert len(detector.history) <= HISTORY
    assert all(a.verdict != b.verdict for a, b in pairwise(detector.history))
    shown = detector.shown(at + 1)
    assert (shown.verdict, shown.silence_s, shown.learned_days) == ("live", 1.0, 0)
    assert shown.last_price_at == at


def test_changes_are_told_at_once() -> None:
    told: list[tuple[Verdict, Verdict]] = []
    detector = LivenessDetector(
        "USDCOP",
        InactivityBaseline(),
        on_change=lambda one, before: told.append((before, one.verdict)),
    )
    last = steady(detector)
    detector.look(last + 9)
    detector.price(4010, last + 10)
    assert told == [
        ("closed", "quiet"),
        ("quiet", "live"),
        ("live", "suspect"),
        ("suspect", "live"),
    ]
