"""The judge of one symbol: what makes it quiet, suspect, dead and alive again."""

from datetime import date
from itertools import pairwise

import pytest

from enhanced_websocket_service.market.calendar import Session
from enhanced_websocket_service.market.liveness import HISTORY, SymbolJudge
from enhanced_websocket_service.market.silence import SilenceProfile
from enhanced_websocket_service.market.verdict import Verdict

from .judging import START, Market, play


@pytest.fixture
def judge() -> SymbolJudge:
    return SymbolJudge("USDCOP", SilenceProfile())


def steady(judge: SymbolJudge, seconds: int = 60, begin: float = START) -> float:
    """A price a second; returns the instant of the last one."""
    if not judge.listening:
        judge.connected(begin)
    for second in range(1, seconds + 1):
        judge.price(4000 + second / 10, begin + second)
    return begin + seconds


def kinds(judge: SymbolJudge) -> list[Verdict]:
    return [change.verdict for change in judge.history]


def test_it_is_closed_before_it_starts_and_after(judge: SymbolJudge) -> None:
    assert judge.look(START) == "closed"
    judge.connecting("connecting", START)
    assert (judge.look(START), judge.evidence) == ("suspect", "connecting")
    judge.connected(START)
    assert (judge.look(START), judge.evidence) == ("quiet", "connected, no price yet")
    last = steady(judge)
    assert judge.look(last) == "live"
    judge.stopped(last)
    assert judge.look(last + 999) == "closed"


def test_live_then_suspect_then_quiet_by_what_rest_says(judge: SymbolJudge) -> None:
    last = steady(judge)
    limit = judge.suspect_after(last)
    assert 8 <= limit <= 10
    assert judge.look(last + limit - 0.1) == "live"
    assert not judge.wants_sample(last + limit - 0.1)
    assert judge.next_look(last) == pytest.approx(last + limit - 0.0, abs=5)
    assert judge.look(last + limit) == "suspect"
    assert judge.wants_sample(last + limit)
    assert judge.sample(4006.0, last + limit, last + limit + 0.2) == "agrees"
    assert judge.verdict == "quiet"
    assert "4006 is one the socket brought" in judge.evidence
    assert not judge.wants_sample(last + limit + 1)
    assert judge.wants_sample(last + limit + 5)


def test_two_samples_that_moved_make_it_dead_and_a_price_alive(judge: SymbolJudge) -> None:
    last = steady(judge)
    assert judge.sample(4007.13, last + 9, last + 9.2) == "differs"
    assert judge.verdict == "suspect"
    assert judge.sample(4007.13, last + 12, last + 12.2) == "differs"
    assert judge.look(last + 13) == "suspect", "the vendor stands still: two answers, one price"
    judge.sample(4007.58, last + 15, last + 15.2)
    assert judge.look(last + 15.3) == "suspect", "what is on its way may still arrive"
    assert judge.look(last + 15.6) == "dead"
    assert "from 4007.13 to 4007.58" in judge.evidence
    assert not judge.listening
    assert judge.look(last + 900) == "dead"
    judge.price(4008, last + 901)
    assert judge.verdict == "live"
    assert kinds(judge)[-3:] == ["suspect", "dead", "live"]


def test_a_price_on_its_way_saves_it(judge: SymbolJudge) -> None:
    last = steady(judge)
    judge.sample(4007.13, last + 9, last + 9.2)
    judge.sample(4007.58, last + 12, last + 12.2)
    judge.price(4007.58, last + 12.3)
    assert judge.look(last + 13) == "live"


def test_one_strange_answer_is_not_enough(judge: SymbolJudge) -> None:
    last = steady(judge)
    judge.sample(9999.0, last + 9, last + 9.2)
    for after in (12, 16, 20, 25, 40, 60):
        judge.sample(4006.0, last + after, last + after + 0.2)
        assert judge.look(last + after + 1) == "quiet"


def test_an_answer_asked_before_the_last_price_says_nothing(judge: SymbolJudge) -> None:
    last = steady(judge)
    judge.price(4006.1, last + 9.5)
    assert judge.sample(4007.13, last + 9, last + 10) == "late"
    assert judge.look(last + 10) == "live"


def test_samples_soon_after_the_connection_prove_nothing(judge: SymbolJudge) -> None:
    """A lagging REST price may be of before it, and so may its changes."""
    judge.connected(START)
    assert judge.sample(4000.0, START + 8, START + 8.2) == "unclear"
    assert judge.sample(4001.0, START + 13, START + 13.2) == "unclear"
    assert judge.sample(4002.0, START + 20, START + 20.2) == "unclear"
    assert judge.look(START + 21) == "suspect"
    judge.sample(4003.0, START + 21.5, START + 21.7)
    judge.sample(4004.0, START + 24.5, START + 24.7)
    assert judge.look(START + 25) == "dead"


def test_a_vendor_that_stands_still_is_quiet_from_birth(judge: SymbolJudge) -> None:
    judge.connected(START)
    for after in (8, 12, 21.5, 25, 40, 90):
        judge.sample(4000.0, START + after, START + after + 0.2)
        assert judge.look(START + after + 1) == ("suspect" if after == 8 else "quiet")
    assert "stands still too" in judge.evidence


def test_a_resent_price_tells_the_price_but_proves_no_life(judge: SymbolJudge) -> None:
    last = steady(judge)
    judge.lost("the connection broke", last + 1)
    assert (judge.verdict, judge.evidence) == ("dead", "the connection broke")
    judge.connected(last + 2)
    assert judge.verdict == "suspect"
    judge.price(4006.0, last + 2.1, resent=True)
    assert judge.look(last + 3) == "suspect"
    judge.price(4006.1, last + 4)
    assert judge.verdict == "live"


def test_without_rest_silence_decides_after_a_long_time(judge: SymbolJudge) -> None:
    last = steady(judge)
    for after in range(9, 90, 5):
        judge.sample_failed("no answer", last + after)
        assert judge.look(last + after) == "suspect"
    assert judge.look(last + 91) == "dead"
    assert "(no answer)" in judge.evidence
    assert judge.samples["failed"] == 17


def test_one_failed_question_late_in_a_quiet_hour_is_no_verdict(judge: SymbolJudge) -> None:
    last = steady(judge)
    judge.sample(4006.0, last + 200, last + 200.2)
    judge.sample_failed("no answer", last + 400)
    assert judge.look(last + 401) != "dead"
    judge.sample_failed("no answer", last + 444)
    assert judge.look(last + 446) == "dead"


def test_in_a_thin_market_silence_alone_waits_much_longer(judge: SymbolJudge) -> None:
    judge.connected(START)
    for number in range(8):
        judge.price(4000 + number, START + 150 * number)
    last = START + 150 * 7
    for after in range(120, 1150, 60):
        judge.sample_failed("no credits", last + after, "refused")
        assert judge.look(last + after) == "suspect", after
    assert judge.look(last + 1210) == "dead"


def test_our_own_slowness_is_no_silence(judge: SymbolJudge) -> None:
    last = steady(judge)
    judge.sample(4007.13, last + 9, last + 9.2)
    judge.excuse(last + 10)
    judge.sample(4008.24, last + 12, last + 12.2)
    assert judge.look(last + 13) == "live"


def test_questions_follow_each_other_at_growing_distances(judge: SymbolJudge) -> None:
    ticks = [(START + second, 4000 + second / 10) for second in range(60)]
    course = play(judge, Market(ticks), START + 4000)
    asked = [round(at - ticks[-1][0], 1) for at in course.asked]
    assert 8 <= asked[0] <= 10
    assert asked[1] - asked[0] <= 5
    assert asked[7:] == sorted(asked[7:])
    steps = [b - a for a, b in pairwise(asked)]
    assert steps[-1] > 5 * steps[0]
    assert len(asked) < 20
    assert course.first("dead") is None


def test_one_key_with_its_spacing_still_answers_in_time(judge: SymbolJudge) -> None:
    """Two questions that count fit into 30 s although 8 s lie between any two."""
    judge.spacing_s = 8.0
    ticks = [(START + second, 4000.13 + second * 0.17) for second in range(200)]
    mute = START + 100.5
    course = play(judge, Market(ticks, lag=lambda _: 20.0), START + 190, mute_from=mute)
    assert all(b - a >= 8 for a, b in pairwise(course.asked))
    dead = course.first("dead")
    assert dead is not None
    assert dead - mute <= 30


def test_real_time_stretches_everything(judge: SymbolJudge) -> None:
    judge.real_second = 300.0
    last = steady(judge)
    assert judge.suspect_after(last) == 30.0
    judge.sample(4007.13, last + 30, last + 32)
    assert not judge.wants_sample(last + 47)
    assert judge.wants_sample(last + 48)
    judge.sample(4008.24, last + 48, last + 50)
    assert judge.look(last + 58) == "suspect"
    assert judge.look(last + 59) == "dead"


def test_outside_the_session_nothing_is_due_and_the_open_begins_anew() -> None:
    session = Session(date(2026, 11, 20), int(START) + 600, int(START) + 18_000)
    judge = SymbolJudge(
        "USDCOP",
        SilenceProfile(),
        lambda at: session if session.opens <= at < session.closes else None,
    )
    judge.connected(START)
    assert judge.look(START + 500) == "closed"
    assert not judge.wants_sample(START + 500)
    assert judge.look(START + 601) == "quiet"
    assert not judge.wants_sample(START + 607)
    assert judge.wants_sample(START + 610)
    assert judge.look(START + 18_000) == "closed"


def test_what_was_heard_is_learned_and_faults_are_not() -> None:
    profile = SilenceProfile()
    session = Session(date(2026, 11, 20), int(START), int(START) + 18_000)
    judge = SymbolJudge("USDCOP", profile, lambda _: session)
    judge.connected(START - 30)
    for second in range(0, 601, 2):
        judge.price(4000 + second / 10, START + second)
    judge.lost("broken", START + 620)
    judge.connected(START + 700)
    for second in range(702, 1000, 2):
        judge.price(4000 + second / 10, START + second)
    (day,) = profile.export()["symbols"]["USDCOP"]
    assert day["ticks"] == [30] * 10 + [-1, -1] + [30] * 4
    assert day["silence"] == [2] * 10 + [-1, -1] + [2] * 4
    assert profile.usual("USDCOP", "2026-11-23", 0).silence_s == 2


def test_the_history_is_bounded_and_tells_no_trifles(judge: SymbolJudge) -> None:
    at = START
    judge.connected(at)
    for number in range(200):
        at += 40
        judge.look(at - 1)  # suspect
        judge.price(4000 + number, at)
    assert len(judge.history) <= HISTORY
    assert all(a.verdict != b.verdict for a, b in pairwise(judge.history))
    shown = judge.shown(at + 1)
    assert (shown.verdict, shown.silence_s, shown.learned_days) == ("live", 1.0, 0)
    assert shown.last_price_at == at


def test_changes_are_told_at_once(judge: SymbolJudge) -> None:
    told: list[tuple[Verdict, Verdict]] = []
    judge.on_change = lambda one, before: told.append((before, one.verdict))
    last = steady(judge)
    judge.look(last + 9)
    judge.price(4010, last + 10)
    assert told == [
        ("closed", "quiet"),
        ("quiet", "live"),
        ("live", "suspect"),
        ("suspect", "live"),
    ]
