"""How old the oldest work not done is, hop by hop: against a plain list of every piece of work."""

from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.watermarks import (
    GRAIN_S,
    MOST_ENTRIES,
    Hop,
    Trail,
    Undone,
    Watermarks,
    judge,
)

SYMBOL = "USDCOP"


class Span:
    """Seconds that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 5)), max_size=60),
    st.integers(0, 320),
)
def test_a_trail_knows_what_a_list_of_all_work_knows(
    batches: list[tuple[float, int]], position: int
) -> None:
    trail, pieces, now = Trail(), [], 0.0
    for wait, count in batches:
        now += wait
        pieces += [now] * count  # the piece at position n came at pieces[n - 1]
        trail.add(len(pieces), count, now)
    waiting = pieces[position:]
    found = trail.behind(position)
    if not waiting:
        assert found is None
        return
    assert found is not None
    assert found[1] == len(waiting)
    assert waiting[0] - GRAIN_S <= found[0] <= waiting[0]
    trail.forget(position)
    assert trail.behind(position) == found


def test_a_long_outage_takes_bounded_memory_and_its_age_stays_right() -> None:
    trail = Trail()
    for n in range(1, 40 * MOST_ENTRIES):
        trail.add(n, 1, float(n))
    assert len(trail._ends) <= MOST_ENTRIES
    assert trail.behind(0) == (1.0, 40 * MOST_ENTRIES - 1)
    middle = 20 * MOST_ENTRIES
    found = trail.behind(middle)
    assert found is not None
    assert found[1] == 40 * MOST_ENTRIES - 1 - middle
    assert middle - 128 <= found[0] <= middle + 1  # within a 256th of all


def test_after_an_outage_ages_are_right_again_though_something_always_waits() -> None:
    """A busy feed: the writer is half a second behind and never has nothing to do."""
    trail = Trail()
    end = 0
    for n in range(3600 * 10):  # an hour without PostgreSQL
        end += 1
        trail.add(end, 1, n / 10)
    trail.forget(end - 5)
    for n in range(3600 * 10, 3630 * 10):
        end += 1
        trail.add(end, 1, n / 10)
        found = trail.behind(end - 5)
        assert found is not None
        trail.forget(end - 5)
    assert n / 10 - found[0] <= 0.5 + GRAIN_S


def marks(span: Span, *, cached: bool = True) -> Watermarks:
    return Watermarks([SYMBOL, "EURUSD"], span, cached=cached)


def take(it: Watermarks, symbol: str, offset: int, end: int) -> None:
    it.appended(1, end)
    it.accepted(symbol, 1, offset)
    it.owed(symbol, 1, offset)


def ages(it: Watermarks) -> dict[Hop, tuple[float, int]]:
    return {one.hop: (one.age_s, one.count) for one in it.undone()}


def test_each_hop_is_done_by_itself() -> None:
    span = Span()
    it = marks(span)
    assert it.undone() == []
    take(it, SYMBOL, 1, 1)
    span.now += 2
    take(it, "EURUSD", 1, 2)
    span.now += 3
    waiting = (5.0, 2)
    assert ages(it) == dict.fromkeys(
        [Hop.JOURNALED, Hop.COMMITTED, Hop.PUBLISHED, Hop.CACHED], waiting
    )
    it.done(Hop.JOURNALED, 2)
    it.reached(SYMBOL, Hop.PUBLISHED, 1)
    it.done(Hop.COMMITTED, 1)
    assert ages(it) == {Hop.COMMITTED: (3.0, 1), Hop.PUBLISHED: (3.0, 1), Hop.CACHED: waiting}
    assert it.of_symbol(SYMBOL, Hop.COMMITTED) is None
    assert it.of_symbol("EURUSD", Hop.COMMITTED) == (3.0, 1)
    assert it.of_symbol(SYMBOL, Hop.CACHED) == (5.0, 1)
    (committed,) = [one for one in it.undone() if one.hop is Hop.COMMITTED]
    assert committed.symbols == {"EURUSD": 1}
    last = it.last(Hop.JOURNALED)
    assert last is not None
    assert (last.position, last.at) == (2, 1005.0)


def test_without_redis_nothing_waits_for_it() -> None:
    it = marks(Span(), cached=False)
    take(it, SYMBOL, 1, 1)
    assert Hop.CACHED not in ages(it)


def test_work_that_was_refused_waits_until_the_next_that_is_done() -> None:
    span = Span()
    it = marks(span)
    it.refused(SYMBOL, Hop.COMMITTED, 3, "a trigger raised")
    span.now += 6
    it.refused(SYMBOL, Hop.COMMITTED, 1, "it raised again")
    (one,) = it.undone()
    assert (one.hop, one.age_s, one.count, one.symbols, one.why) == (
        Hop.COMMITTED,
        6.0,
        4,
        {SYMBOL: 4},
        "it raised again",
    )
    assert it.of_symbol(SYMBOL, Hop.COMMITTED) == (6.0, 4)
    it.worked("EURUSD", Hop.COMMITTED)
    assert it.undone() != []
    it.worked(SYMBOL, Hop.COMMITTED)
    assert it.undone() == []


def test_what_a_session_refused_is_not_told_all_night() -> None:
    it = marks(Span())
    for hop in (Hop.ACCEPTED, Hop.PUBLISHED, Hop.COMMITTED):
        it.refused(SYMBOL, hop, 3, "rejected as outlier")
    it.refused("EURUSD", Hop.ACCEPTED, 3, "rejected as outlier")
    it.rest(SYMBOL)
    left = {(one.hop, *one.symbols) for one in it.undone()}
    assert left == {(Hop.COMMITTED, SYMBOL), (Hop.ACCEPTED, "EURUSD")}


def test_symbols_that_are_not_ours_are_nobodys_work() -> None:
    it = marks(Span())
    it.received("XAUUSD", 1)
    it.accepted("XAUUSD", 1, 1)
    it.owed("XAUUSD", 1, 1)
    it.refused("XAUUSD", Hop.ACCEPTED, 1, "unknown")
    it.reached("XAUUSD", Hop.CACHED, 1)
    assert it.undone() == []


def test_who_may_not_work_yet_is_excused_and_what_waited_waits_from_then_on() -> None:
    span = Span()
    it = marks(span)
    it.excuse(Hop.COMMITTED)
    take(it, SYMBOL, 1, 1)
    span.now += 3600
    assert Hop.COMMITTED not in ages(it)
    assert it.of_symbol(SYMBOL, Hop.COMMITTED) is None
    assert Hop.JOURNALED in ages(it), "others are not"
    it.expect(Hop.COMMITTED)
    span.now += 2
    assert ages(it)[Hop.COMMITTED] == (2.0, 1)
    assert it.of_symbol(SYMBOL, Hop.COMMITTED) == (2.0, 1)
    it.done(Hop.COMMITTED, 1)
    take(it, SYMBOL, 2, 2)
    it.expect(Hop.COMMITTED)  # it was not excused: nothing begins anew
    span.now += 1
    assert ages(it)[Hop.COMMITTED] == (1.0, 1)


def test_a_probe_is_the_last_work_and_moves_no_position() -> None:
    span = Span()
    it = marks(span)
    take(it, SYMBOL, 1, 1)
    it.done(Hop.COMMITTED, 1)
    span.now += 60
    it.alive(Hop.COMMITTED)
    last = it.last(Hop.COMMITTED)
    assert last is not None
    assert (last.position, last.at) == (1, 1060.0)


@given(st.lists(st.tuples(st.sampled_from("pjcr"), st.floats(0, 2)), max_size=80))
def test_ages_never_shrink_but_by_work(steps: list[tuple[str, float]]) -> None:
    """Work or none, an age is the time since the oldest piece that is not done, and 0 work is no age."""
    span = Span()
    it = marks(span)
    made: list[float] = []
    done = {Hop.JOURNALED: 0, Hop.COMMITTED: 0, Hop.CACHED: 0}
    for kind, wait in steps:
        span.now += wait
        if kind == "p":
            made.append(span.now)
            take(it, SYMBOL, len(made), len(made))
        elif kind == "j":
            done[Hop.JOURNALED] = len(made)
            it.done(Hop.JOURNALED, len(made))
        elif kind == "c":
            done[Hop.COMMITTED] = len(made)
            it.done(Hop.COMMITTED, len(made))
        elif made:
            done[Hop.CACHED] = len(made)
            it.reached(SYMBOL, Hop.CACHED, len(made))
        found = ages(it)
        for hop, position in done.items():
            if position == len(made):
                assert hop not in found
            else:
                age, count = found[hop]
                assert count == len(made) - position
                true = span.now - made[position]
                assert true - 1e-9 <= age <= true + GRAIN_S + 1e-9


def test_a_problem_names_hop_age_count_symbol_and_cause() -> None:
    undone = [
        Undone(Hop.COMMITTED, 7.4, 37, {SYMBOL: 35}),
        Undone(Hop.CACHED, 4.9, 1, {SYMBOL: 1}),
        Undone(Hop.JOURNALED, 5.0, 1, {SYMBOL: 1}),
        Undone(Hop.ACCEPTED, 60.0, 2, {SYMBOL: 2}, "2 rejected: outlier"),
        Undone(Hop.RECEIVED, 1e6, 1),
    ]
    limits = {hop: 5.0 for hop in Hop if hop is not Hop.RECEIVED}
    causes = {Hop.COMMITTED: "PostgreSQL refused: cannot execute COPY in a read-only transaction."}
    assert judge(undone, limits, causes.get) == [
        "committed: 37 records (USDCOP 35) are not committed in their table in PostgreSQL, the oldest "
        "for 7 s: PostgreSQL refused: cannot execute COPY in a read-only transaction.",
        "journaled: 1 record (USDCOP 1) is not on the journal's disk, the oldest for 5 s: no answer to "
        "it yet, and no refusal",
        "accepted: 2 quotes (USDCOP 2) were received and not accepted, the oldest for 60 s: "
        "2 rejected: outlier",
    ]
