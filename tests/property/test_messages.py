"""Messages made at a stretch are those made one by one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.market.tick import Tick
from enhanced_websocket_service.serving.history import TickEntry, frames_of
from enhanced_websocket_service.serving.outlet import payloads, text_frame
from enhanced_websocket_service.serving.wire import market_data, market_data_of
from tests.storage_samples import OPEN, tick

prices = st.integers(1, 999_999_999_999).map(lambda millionths: millionths / 1e6)
near = st.sampled_from([OPEN, OPEN + 1, OPEN + 40_000])
instants = st.one_of(
    near.map(float),
    near,
    st.tuples(near, st.integers(0, 999_999)).map(lambda pair: pair[0] + pair[1] / 1e6),
    near.map(lambda stamp: stamp + 0.999_999_9),
    near.map(lambda stamp: stamp + 1e-7),
    st.floats(1.0, 4e9),
)
some_ticks = st.builds(
    tick,
    st.integers(1, 2**62),
    prices,
    symbol=st.sampled_from(["USDCOP", "EURUSD"]),
    bid=st.none() | prices,
    ask=st.none() | prices,
    volume=st.integers(0, 2**40),
    timestamp=near,
    received_at=instants,
    source=st.sampled_from(["simulator_websocket", "simulator_rest", "x" * 400, "ü" * 100]),
)


@settings(max_examples=200)
@given(st.lists(some_ticks, max_size=10), st.integers(0, 9))
def test_messages_made_at_a_stretch_are_those_made_one_by_one(ticks: list[Tick], made: int) -> None:
    expected = [market_data(one) for one in ticks]
    assert market_data_of(ticks) == expected
    entries = [TickEntry(one.epoch, one.offset, one) for one in ticks]
    for entry in entries[made : made + 1]:
        assert entry.frame == text_frame(market_data(ticks[made]))
    frames = frames_of(entries)
    assert frames == [entry.frame for entry in entries]
    assert payloads(b"".join(frames)) == expected
