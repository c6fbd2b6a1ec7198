"""The ring against a plain list that forgets nothing."""

from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.serving.history import BAR, EPOCH, GAP, TICK, Entry, History


def _ticks(history: History, epoch: int, first: int, last: int) -> None:
    for offset in range(first, last + 1):
        history.append(Entry(TICK, epoch, offset, offset, b"t%d" % offset))


def test_a_cursor_inside_finds_what_follows() -> None:
    history = History(100)
    _ticks(history, 7, 1, 10)
    found = history.locate(7, 4)
    assert found is not None
    position, skips = found
    assert skips == []
    assert [history.at(seq).offset for seq in range(position.seq, history.next_seq)][1:] == [
        5, 6, 7, 8, 9, 10,
    ]  # fmt: skip


def test_what_the_ring_forgot_is_named() -> None:
    history = History(5)
    _ticks(history, 7, 1, 20)
    found = history.locate(7, 3)
    assert found is not None
    assert [(s.epoch, s.first, s.last, s.reason) for s in found[1]] == [
        (7, 4, 15, "no_longer_held")
    ]
    assert history.at(found[0].seq).offset == 16


def test_a_cursor_ahead_is_refused() -> None:
    history = History(5)
    _ticks(history, 7, 1, 3)
    assert history.locate(7, 4) is None
    assert history.locate(8, 0) is None
    assert history.locate(7, 3) is not None


def test_an_epoch_nobody_knows_ends_nobody_knows_where() -> None:
    history = History(50)
    history.close_epoch(6, 30)
    history.append(Entry(EPOCH, 7, 0, 1, b"e"))
    _ticks(history, 7, 1, 3)
    found = history.locate(5, 10)
    assert found is not None
    assert [tuple(skip) for skip in found[1]] == [
        (5, 11, None, "epoch_unknown"),
        (6, 1, 30, "no_longer_held"),
    ]
    known = history.locate(6, 28)
    assert known is not None
    assert [tuple(skip) for skip in known[1]] == [(6, 29, 30, "no_longer_held")]


def test_bars_at_the_cursor_are_found_again() -> None:
    history = History(50)
    _ticks(history, 7, 1, 3)
    history.append(Entry(BAR, 7, 3, 4, b"bar"))
    found = history.locate(7, 3)
    assert found is not None
    kinds = [history.at(seq).kind for seq in range(found[0].seq, history.next_seq)]
    assert kinds == [TICK, BAR]


_steps = st.lists(st.sampled_from(["tick", "gap", "bar", "epoch"]), max_size=80)


@given(_steps, st.integers(1, 20), st.data())
def test_held_and_skipped_together_are_everything(
    steps: list[str], capacity: int, data: st.DataObject
) -> None:
    history = History(capacity)
    epoch, offset = 1, 0
    every: list[tuple[int, int]] = []
    history.append(Entry(EPOCH, epoch, 0, 1, b""))
    for step in steps:
        if step == "tick":
            offset += 1
            every.append((epoch, offset))
            history.append(Entry(TICK, epoch, offset, offset, b""))
        elif step == "gap":
            every += [(epoch, offset + 1), (epoch, offset + 2)]
            history.append(Entry(GAP, epoch, offset + 2, offset + 1, b""))
            offset += 2
        elif step == "bar":
            history.append(Entry(BAR, epoch, offset, offset + 1, b""))
        else:
            history.close_epoch(epoch, offset)
            epoch, offset = epoch + 1, 0
            history.append(Entry(EPOCH, epoch, 0, 1, b""))
    cursor = data.draw(st.sampled_from([(1, 0), *every]))
    found = history.locate(*cursor)
    assert found is not None
    position, skips = found
    got = [(skip.epoch, n) for skip in skips for n in range(skip.first, (skip.last or 0) + 1)]
    for seq in range(position.seq, history.next_seq):
        entry = history.at(seq)
        if entry.kind in (TICK, GAP) and (entry.epoch, entry.offset) > cursor:
            first = max(entry.first, cursor[1] + 1) if entry.epoch == cursor[0] else entry.first
            got += [(entry.epoch, n) for n in range(first, entry.offset + 1)]
    assert got == [item for item in every if item > cursor]
