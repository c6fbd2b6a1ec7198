"""The account of the journal notices what a journal must never say."""

import msgspec
import pytest

from enhanced_websocket_service.chaos.journal_account import Faults, Record
from enhanced_websocket_service.market.bar import BarUpdate
from enhanced_websocket_service.market.tick import Tick
from tests.storage_samples import OPEN, bar, rejected, tick, update

from .diaries import FIRST, SECOND, account, begun, journal


def kinds(records: list[Record]) -> set[str]:
    return {line.partition(" ")[0] for line in account(records).faults.shown()}


def changed(records: list[Record], index: int, **changes: object) -> list[Record]:
    copy = list(records)
    copy[index] = msgspec.structs.replace(copy[index], **changes)
    return copy


def test_a_sound_journal_has_no_faults() -> None:
    found = account([*journal(), rejected("outlier"), rejected("unparsable")])
    assert found.faults.shown() == []
    assert (len(found.ticks), found.ticks.published) == (6, 5)
    assert found.epochs == found.ticks.epochs == [FIRST, SECOND]
    assert found.rejected == {"outlier": 1, "unparsable": 1}
    assert (found.ticks.last(FIRST), found.ticks.last_published(SECOND)) == (4, 2)
    row = found.ticks.row(2)
    assert (row.epoch, row.offset, row.price, row.flags) == (FIRST, 3, 4500.0, ("future",))
    assert found.ticks.find(FIRST, 3) == 2
    assert found.ticks.find(FIRST, 5) is None
    assert found.ticks.find(3000, 1) is None


def test_a_hole_a_double_or_a_step_back_of_offsets_is_noticed() -> None:
    sound = journal()
    assert "offsets" in kinds([*sound[:2], *sound[3:]])
    assert "offsets" in kinds([*sound[:2], sound[1], *sound[2:]])
    assert "offsets" in kinds([*sound, tick(5, epoch=FIRST)])


def test_an_epoch_that_repeats_or_was_not_begun_is_noticed() -> None:
    sound = journal()
    assert "epoch_repeated" in kinds([*sound, begun(SECOND, (SECOND, 2))])
    assert "epoch_repeated" in kinds([*sound, begun(FIRST, (SECOND, 2))])
    assert "epoch_not_begun" in kinds([*sound, tick(1, epoch=3000)])
    assert "epoch_previous" in kinds([*sound, begun(3000, (SECOND, 1))])


@pytest.mark.parametrize("field", ["open", "high", "low", "close"])
def test_a_bar_that_its_ticks_do_not_give_is_noticed(field: str) -> None:
    sound = journal()
    last = sound[-1]
    assert isinstance(last, BarUpdate)
    wrong = msgspec.structs.replace(last.bar, **{field: getattr(last.bar, field) + 0.5})
    assert kinds([*sound[:-1], update(wrong, at=OPEN + 301.0)]) == {"bar_differs"}


def test_a_bar_of_other_ticks_than_it_says_is_noticed() -> None:
    sound = journal()
    quiet = tick(3, 4101.0, epoch=SECOND, timestamp=OPEN + 5)  # changes no price of the bar
    assert kinds([*sound[:-1], quiet, sound[-1]]) == {"bar_differs"}
    assert kinds([*sound, quiet]) == {"bar_lacks_ticks"}
    assert kinds([*sound, update(bar(OPEN + 300, source="simulator_rest"), at=OPEN + 601.0)]) == {
        "bar_of_nothing"
    }


def test_ticks_that_count_for_no_bar_change_none() -> None:
    sound = journal()
    later = {"epoch": SECOND, "timestamp": OPEN + 7}
    others: list[Tick] = [
        tick(3, 1.0, flags=("late",), **later),
        tick(4, 1.0, flags=("future",), **later),
        tick(5, 1.0, trading_session=False, **later),
    ]
    assert kinds([*sound, *others]) == set()


def test_a_vendor_bar_is_not_measured_by_our_ticks() -> None:
    found = account([*journal(), update(bar(OPEN, close=4242.0), at=OPEN + 900.0)])
    assert found.faults.shown() == []
    assert found.live_bars[OPEN].source == "simulator_websocket"


def test_examples_are_few_but_all_are_counted() -> None:
    faults = Faults()
    for i in range(100):
        faults.add("kind", str(i))
    assert (len(faults), faults.count("kind")) == (100, 100)
    assert len(faults.shown()) == 5
