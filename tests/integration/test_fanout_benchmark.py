"""The fan-out benchmark itself: its C programs and the service agree on what a message is."""

from collections.abc import Iterator

import pytest

from benchmarks.fanout.running import Bench, Plan, bench


@pytest.fixture(scope="module")
def made() -> Iterator[Bench]:
    try:
        with bench() as ready:
            yield ready
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["floor", "service", "whole path"])
def test_what_is_sent_is_counted_and_timed(made: Bench, name: str) -> None:
    plan = Plan(clients=5, rate=40, seconds=2.0, settle=1.0, burst=2, stamps=True)
    figures = made.run(name, plan)
    assert figures["connected"] == 5
    assert figures["lost"] == 0
    assert figures["messages"] >= 5
    assert figures["latencies"] > 0
    assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["max_us"]
