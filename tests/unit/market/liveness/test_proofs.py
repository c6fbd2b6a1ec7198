"""What proves a stream: a new price with a young stamp. And what proves something against REST."""

from itertools import pairwise

import pytest

from enhanced_websocket_service.market.liveness.baseline import InactivityBaseline
from enhanced_websocket_service.market.liveness.detector import LivenessDetector
from enhanced_websocket_service.market.liveness.rest_witness import RestWitness
from enhanced_websocket_service.market.liveness.samples import REPEATS_AT_ONCE
from enhanced_websocket_service.market.liveness.stamp_age import StampAge

from .playing import START


@pytest.fixture
def detector() -> LivenessDetector:
    return LivenessDetector("USDCOP", InactivityBaseline())


def brisk(detector: LivenessDetector, seconds: int = 60) -> float:
    """A new price a second; the instant and the price of the last are ``START + seconds`` and 4006."""
    detector.connected(START)
    for second in range(1, seconds + 1):
        detector.price(4000 + second / 10, START + second)
    return START + seconds


def repeat(detector: LivenessDetector, since: float, until: float, price: float = 4006.0) -> None:
    """The same price each second in ``(since, until]``, with fresh stamps."""
    at = since + 1
    while at <= until:
        assert not detector.price(price, at, stamp=int(at))
        detector.look(at)
        at += 1


def test_repeated_prices_are_silence_and_cost_a_question(detector: LivenessDetector) -> None:
    last = brisk(detector)
    repeat(detector, last, last + 7)
    assert detector.look(last + 7.5) == "live"
    assert not detector.wants_sample(last + 7.5)
    repeat(detector, last + 7, last + 10)
    assert detector.wants_sample(last + 10)
    assert detector.verdict == "suspect"
    assert "prices come, no new one for 10 s" in detector.evidence
    assert detector.shown(last + 10).silence_s == 0, "it is not mute"


def test_a_frame_with_the_old_price_does_not_end_the_matter(detector: LivenessDetector) -> None:
    last = brisk(detector)
    repeat(detector, last, last + 10)
    assert detector.sample(4007.13, last + 10, last + 10.2) == "differs"
    repeat(detector, last + 10, last + 13)
    assert detector.verdict == "suspect"
    assert detector.wants_sample(last + 13.1)
    detector.sample(4007.58, last + 13.1, last + 13.3)
    repeat(detector, last + 13, last + 14)
    assert detector.look(last + 14) == "dead"
    (span,) = detector.shown(last + 14).dead_spans
    assert (span.start, span.end) == (last, None)
    repeat(detector, last + 14, last + 60)
    assert detector.verdict == "dead"
    assert detector.price(4009.0, last + 61)
    assert detector.verdict == "live"
    (span,) = detector.shown(last + 61).dead_spans
    assert span.end == last + 61


def test_prices_that_nobody_believes_prove_nothing(detector: LivenessDetector) -> None:
    """A wrong unit moves as the market does: REST condemns it, and only a true price ends that."""
    last = brisk(detector)

    def wrong(since: float, until: float) -> None:
        for at in range(int(since) + 1, int(until) + 1):
            assert not detector.price(40.06 + (at - last) / 1000, at, stamp=at, doubtful=True)
            detector.look(at)

    wrong(last, last + 10)
    assert detector.verdict == "suspect"
    assert "prices come, none for 10 s that can be believed" in detector.evidence
    assert detector.wants_sample(last + 10)
    assert detector.sample(4007.13, last + 10, last + 10.2) == "differs"
    wrong(last + 10, last + 13)
    assert detector.sample(4007.58, last + 13.1, last + 13.3) == "differs"
    wrong(last + 13, last + 30)
    assert detector.verdict == "dead"
    assert detector.price(4009.0, last + 31)
    assert detector.verdict == "live"


def test_the_stretch_of_a_dead_stream_ends_with_its_proof_and_not_with_rest(
    detector: LivenessDetector,
) -> None:
    """A reconnect, and a REST price that the new connection has brought: quiet, and still unproved."""
    last = brisk(detector)
    repeat(detector, last, last + 10)
    detector.sample(4007.13, last + 10, last + 10.2)
    detector.sample(4007.58, last + 13.1, last + 13.3)
    assert detector.look(last + 14) == "dead"
    detector.lost("replaced", last + 15)
    detector.connected(last + 16)
    detector.price(4007.58, last + 16, resent=True)
    repeat(detector, last + 16, last + 50, price=4007.58)
    detector.sample(4007.58, last + 50, last + 50.2)
    assert detector.look(last + 50.2) == "quiet"
    (span,) = detector.shown(last + 51).dead_spans
    assert span.end is None
    assert detector.price(4009.0, last + 61)
    (span,) = detector.shown(last + 61).dead_spans
    assert (span.start, span.end) == (last, last + 61)


def test_in_a_quiet_market_the_distance_of_the_questions_doubles(
    detector: LivenessDetector,
) -> None:
    last = brisk(detector)
    asked: list[float] = []
    for second in range(1, 3600):
        repeat(detector, last + second - 1, last + second)
        if detector.wants_sample(last + second):
            detector.asked(last + second)
            asked.append(second)
            detector.sample(4006.0, last + second, last + second + 0.2)
            assert detector.verdict == "quiet"
    assert "prices come, no new one for" in detector.evidence
    assert "4006 is one the socket brought" in detector.evidence
    assert len(asked) <= 10
    assert all(later >= 1.9 * earlier for earlier, later in pairwise(asked))


def test_lulls_cost_no_more_than_their_share(detector: LivenessDetector) -> None:
    """A session of a lull of repeated prices every minute: the share of one key's credits holds."""
    at = brisk(detector)
    price, asked, end = 4006.0, 0, at + 17_700
    while at < end:
        for _ in range(20):
            at += 1
            price = round(price + 0.1, 2)
            detector.price(price, at)
        lull = at + 40
        while at < lull:
            at += 1
            detector.price(price, at)
            if detector.wants_sample(at):
                detector.asked(at)
                asked += 1
                assert detector.sample(price, at, at + 0.2) == "agrees"
    assert asked <= REPEATS_AT_ONCE + 25
    assert detector.dead_spans == type(detector.dead_spans)(maxlen=50)


def test_old_stamps_prove_nothing(detector: LivenessDetector) -> None:
    """Five minutes late: new prices all the time, each of which was true five minutes ago."""
    last = brisk(detector)
    for second in range(1, 15):
        at = last + second
        fresh = detector.price(4100 + second, at, stamp=int(at) - 300, age=300.0)
        assert not fresh
        detector.look(at)
    assert detector.verdict == "suspect"
    detector.sample(4007.13, last + 14, last + 14.2)
    detector.sample(4007.58, last + 17, last + 17.2)
    assert detector.look(last + 18) == "dead"
    assert not detector.price(4120, last + 19, stamp=int(last + 19) - 300, age=300.0)
    assert detector.verdict == "dead"
    assert detector.price(4121, last + 20, stamp=int(last + 19), age=1.0)
    assert detector.verdict == "live"


def test_the_evidence_names_the_delay(detector: LivenessDetector) -> None:
    detector.connected(START)
    for second in range(1, 40):
        at = START + second
        detector.price(4100 + second, at, stamp=int(at) - 301, age=301.0)
    detector.sample(4007.13, START + 30, START + 40)
    detector.sample(4007.58, START + 33, START + 40)
    detector.look(START + 41)
    assert "the stream's youngest stamp was 301 s old" in detector.evidence
    assert detector.shown(START + 41).lag_s == 301


def test_stamps_of_whole_minutes_are_no_lateness() -> None:
    ages = StampAge()
    for second in range(0, 600, 3):
        stamp = second - second % 60
        ages.add(stamp, float(second - stamp), float(second))
    assert ages.lag_s == 0
    for second in range(600, 1200, 3):
        stamp = second - second % 60 - 120
        ages.add(stamp, float(second - stamp), float(second))
    assert ages.lag_s == 60, "aligned to minutes, and two minutes late besides"


def test_one_late_tick_among_others_is_no_lateness() -> None:
    ages = StampAge()
    for second in range(100):
        ages.add(second, 200.0 if second % 7 else 1.5, float(second))
    assert ages.lag_s == 1.5
    thin = StampAge()
    for minute in range(20):
        thin.add(minute * 180 + 1, 90.0 if minute % 3 else 0.5, minute * 180.0)
    assert thin.lag_s == 0.5


def test_a_vendor_ahead_of_us_is_not_late() -> None:
    ages = StampAge()
    ages.add(17, -16.0, 1.0)
    assert ages.lag_s == 0


class TestRestItself:
    def test_one_price_while_the_stream_moves_by_itself_refutes_rest(self) -> None:
        witness = RestWitness()
        for number in range(3):
            assert witness.fault is None
            witness.answered(3999.5, 100.0 + 60 * number, agrees=False, counts=True)
            witness.silence_over(by_itself=True)
        assert (
            witness.fault == "REST repeats 3999.5 in 3 answers over 120 s, while the stream moves"
        )
        witness.answered(4001.0, 400.0, agrees=True, counts=True)
        assert witness.fault is None

    def test_a_late_rest_is_refuted_too(self) -> None:
        witness = RestWitness()
        for number in range(3):
            witness.answered(3999.5 + number, 100.0 + 60 * number, agrees=False, counts=True)
            witness.silence_over(by_itself=True)
        assert witness.fault is not None
        assert "none of the stream's" in witness.fault

    def test_who_had_to_reconnect_refutes_nobody(self) -> None:
        witness = RestWitness()
        for number in range(20):
            witness.answered(3999.5, 100.0 + 60 * number, agrees=False, counts=True)
            witness.silence_over(by_itself=False)
        assert witness.fault is None

    def test_a_refuted_rest_accuses_nobody_and_silence_decides(
        self, detector: LivenessDetector
    ) -> None:
        at = brisk(detector)
        for _ in range(3):
            at += 40
            assert detector.sample(3000.0, at - 5, at) == "differs"
            assert detector.price(4006 + at % 1000, at)
        assert detector.rest_fault is not None
        for after in range(9, 80, 3):
            detector.sample(3000.0 + after, at + after, at + after + 0.2)
            assert detector.look(at + after + 1) == "suspect"
        assert "and is no witness" in detector.evidence
        detector.sample(3100.0, at + 95, at + 95.2)
        assert detector.look(at + 96) == "dead"
        assert "no REST price to compare with" in detector.evidence
