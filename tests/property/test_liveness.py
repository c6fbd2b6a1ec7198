"""No working socket is ever dead, and no mute one of a brisk market lives for half a minute."""

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.market.liveness.baseline import InactivityBaseline
from enhanced_websocket_service.market.liveness.detector import LivenessDetector
from tests.unit.market.liveness.playing import START, Market, play

seeds = st.integers(0, 2**32)
roundings = st.tuples(st.integers(2, 5), st.booleans())


def poisson(
    rng: random.Random, rate: float, seconds: float, repeats: float = 0.1
) -> list[tuple[float, float]]:
    """Prices by a Poisson process, some of them repeated, from before the connection on."""
    at, price, ticks = START - 3 / rate, 4100.0, [(START - 1e6, 4100.0)]
    while at < START + seconds:
        at += rng.expovariate(rate)
        if rng.random() >= repeats:
            price = round(price + rng.gauss(0, 0.4), 5)
        ticks.append((at, price))
    return ticks


def brisk(rng: random.Random, seconds: float) -> list[tuple[float, float]]:
    """About a tick a second, every price another one."""
    at, price, ticks = START - 60.0, 4100.0, []
    way = rng.choice([-1, 1])
    while at < START + seconds:
        at += rng.uniform(0.7, 1.3)
        price = round(price + way * rng.uniform(0.12, 0.5), 5)
        ticks.append((at, price))
    return ticks


@settings(max_examples=60)
@given(seeds, st.floats(-2.2, 0.7), roundings, st.booleans(), st.floats(0.0, 2.0))
def test_a_random_market_is_never_dead(
    seed: int, magnitude: float, rounding: tuple[int, bool], wild: bool, latency: float
) -> None:
    """From a tick in two and a half minutes to five a second; REST lags 0 to 20 s."""
    rng = random.Random(seed)
    lag = rng.uniform(0, 20)
    market = Market(
        poisson(rng, 10**magnitude, 1500),
        lag=(lambda _: rng.uniform(0, 20)) if wild else (lambda _: lag),
        decimals=rounding[0],
        noise=rounding[1],
    )
    course = play(
        LivenessDetector("USDCOP", InactivityBaseline()), market, START + 1500, latency=latency
    )
    assert course.first("dead") is None, course.verdicts


@settings(max_examples=100)
@given(seeds, st.floats(60, 200), st.floats(0, 20), roundings, st.floats(0.0, 0.5))
def test_a_socket_that_goes_mute_is_dead_within_thirty_seconds(
    seed: int, after: float, lag: float, rounding: tuple[int, bool], latency: float
) -> None:
    rng = random.Random(seed)
    market = Market(brisk(rng, 400), lag=lambda _: lag, decimals=rounding[0], noise=rounding[1])
    mute = START + after
    course = play(
        LivenessDetector("USDCOP", InactivityBaseline()),
        market,
        START + 390,
        mute_from=mute,
        latency=latency,
    )
    dead = course.first("dead")
    assert dead is not None
    assert mute < dead <= mute + 30


@settings(max_examples=60)
@given(seeds, st.floats(0, 20), roundings, st.booleans())
def test_a_socket_mute_from_birth_is_dead_within_thirty_seconds(
    seed: int, lag: float, rounding: tuple[int, bool], resent: bool
) -> None:
    rng = random.Random(seed)
    ticks = brisk(rng, 100)
    market = Market(ticks, lag=lambda _: lag, decimals=rounding[0], noise=rounding[1])
    detector = LivenessDetector("USDCOP", InactivityBaseline())
    if resent:
        detector.connected(START)
        detector.price([price for at, price in ticks if at <= START][-1], START, resent=True)
    course = play(detector, market, START + 90, mute_from=START)
    dead = course.first("dead")
    assert dead is not None
    assert dead <= START + 30


@settings(max_examples=30)
@given(seeds, st.floats(0, 20), roundings)
def test_a_market_that_calms_down_is_quiet(
    seed: int, lag: float, rounding: tuple[int, bool]
) -> None:
    """From a tick a second to one a minute."""
    rng = random.Random(seed)
    ticks = brisk(rng, 300)
    for _ in range(20):
        at, price = ticks[-1]
        ticks.append((at + rng.uniform(50, 70), round(price + rng.gauss(0, 1), 5)))
    market = Market(ticks, lag=lambda _: lag, decimals=rounding[0], noise=rounding[1])
    course = play(LivenessDetector("USDCOP", InactivityBaseline()), market, ticks[-1][0])
    assert course.first("dead") is None
    assert course.first("quiet") is not None
    spells = [(b[0] - a[0], a[1]) for a, b in pairwise(course.verdicts) if a[0] > START + 300]
    suspect = sum(length for length, verdict in spells if verdict == "suspect")
    assert suspect < 10
    assert len(course.asked) < 45


@settings(max_examples=100)
@given(seeds, st.floats(60, 200), st.floats(0, 20), roundings, st.floats(0.0, 0.5))
def test_a_socket_that_repeats_one_price_is_dead_within_forty_seconds(
    seed: int, after: float, lag: float, rounding: tuple[int, bool], latency: float
) -> None:
    """As soon as one that says nothing, or a little later: the longest of today's lulls counts twice."""
    rng = random.Random(seed)
    market = Market(brisk(rng, 400), lag=lambda _: lag, decimals=rounding[0], noise=rounding[1])
    frozen = START + after
    course = play(
        LivenessDetector("USDCOP", InactivityBaseline()),
        market,
        START + 390,
        frozen_from=frozen,
        latency=latency,
    )
    dead = course.first("dead")
    assert dead is not None
    assert frozen < dead <= frozen + 40


@settings(max_examples=60)
@given(seeds, st.floats(125, 600), st.floats(0, 20), st.floats(0.0, 0.5))
def test_a_socket_that_tells_of_long_ago_is_dead_within_forty_seconds(
    seed: int, behind: float, lag: float, latency: float
) -> None:
    rng = random.Random(seed)
    market = Market(brisk(rng, 900), lag=lambda _: lag)
    course = play(
        LivenessDetector("USDCOP", InactivityBaseline()),
        market,
        START + 890,
        delay=behind,
        begin=START + 700,
        latency=latency,
    )
    dead = course.first("dead")
    assert dead is not None
    assert dead <= START + 740


@settings(max_examples=15)
@given(seeds, st.floats(-1.5, 0.5), st.floats(0.5, 0.98), st.floats(0, 20), roundings)
def test_a_market_that_often_repeats_its_price_is_never_dead_and_cheap(
    seed: int, magnitude: float, repeats: float, lag: float, rounding: tuple[int, bool]
) -> None:
    """Most ticks repeat the price before; an hour's questions about that are bounded."""
    rng = random.Random(seed)
    ticks = poisson(rng, 10**magnitude, 3600, repeats=repeats)
    market = Market(ticks, lag=lambda _: lag, decimals=rounding[0], noise=rounding[1])
    course = play(LivenessDetector("USDCOP", InactivityBaseline()), market, START + 3600)
    assert course.first("dead") is None, course.verdicts
    assert course.repeats_asked <= 4 + 3600 / 720 + 1
