"""A client's diary: what was told is no hole, what was not told is one."""

import pytest

from enhanced_websocket_service.chaos.following import Follower
from enhanced_websocket_service.market.tick import Tick
from tests.storage_samples import OPEN, SYMBOL

from .diaries import FIRST, SECOND, account, begun, diary, journal, said, skipped, ticked

TICKS = [one for one in journal() if isinstance(one, Tick)]


def judged(lines: list[str], mode: str = "every", records: list | None = None):  # type: ignore[no-untyped-def, type-arg]
    found = account(journal() if records is None else records)
    follower = Follower("client", mode, found.ticks, found.published_bars, found.faults)
    return follower.read(lines), {line.partition(" ")[0] for line in found.faults.shown()}


def test_a_client_that_got_everything_has_no_faults() -> None:
    one, kinds = judged(diary())
    assert kinds == set()
    assert (one.received, one.connections, dict(one.skipped)) == (5, 2, {"not_published": 1})
    assert one.latencies == [(1750000000, 2, 1.5, 2.5, 3.5)]


@pytest.mark.parametrize(
    ("line", "kind"),
    [*((line, "client_hole") for line in (3, 4, 5, 6, 10, 12)), (13, "client_ended")],
)
def test_whatever_is_left_out_is_noticed(line: int, kind: str) -> None:
    """Also the last tick of an epoch, and the last one of all."""
    lines = diary()
    del lines[line]
    assert judged(lines)[1] == {kind}


@pytest.mark.parametrize("line", [3, 4, 6, 10, 12])
def test_a_tick_that_comes_twice_is_noticed(line: int) -> None:
    lines = diary()
    lines.insert(line, lines[line])
    assert "client_double" in judged(lines)[1]


def test_a_tick_out_of_order_is_noticed() -> None:
    lines = diary()
    lines[3], lines[4] = lines[4], lines[3]
    assert {"client_hole", "client_double"} <= judged(lines)[1]
    lines = diary()
    lines.insert(11, ticked(TICKS[3]))
    assert judged(lines)[1] == {"client_order"}


def test_what_was_told_is_no_hole() -> None:
    lines = diary()
    lines[4:7] = [skipped(FIRST, 2, 4)]
    one, kinds = judged(lines)
    assert kinds == set()
    assert dict(one.skipped) == {"slow_client": 3}
    lines[4] = skipped(FIRST, 3, 4)
    assert judged(lines)[1] == {"client_hole"}


def test_an_end_nobody_knows_covers_what_follows() -> None:
    third = 3000
    more = [
        begun(third, (SECOND, 2)),
        *(
            Tick(
                SYMBOL,
                third,
                1,
                OPEN + 8,
                4100.0,
                None,
                None,
                0,
                "simulator_websocket",
                OPEN + 8.1,
                True,
            ),
        ),
    ]
    records = [*journal(), *more]
    last = next(one for one in more if isinstance(one, Tick))
    lines = [
        *diary()[:7],
        f"C {SYMBOL}:{FIRST}:4",
        said("epoch", epoch=third, previous_epoch=SECOND, previous_last_offset=2),
        ticked(last),
        "E",
    ]
    _, kinds = judged(lines, records=records)
    assert kinds >= {"client_hole"}  # epoch SECOND was never mentioned
    lines.insert(8, skipped(FIRST, 5, None, "epoch_unknown"))
    one, kinds = judged(lines, records=records)
    assert one.unknown_ends == 1
    assert not any(kind.startswith("client") for kind in kinds)


def test_what_was_never_journaled_or_differs_is_noticed() -> None:
    lines = diary()
    lines[3] = lines[3].replace("4100.0 ", "4100.1 ", 1)
    assert judged(lines)[1] == {"published_differs"}
    lines = diary()
    lines.insert(13, ticked(TICKS[5]).replace(f"{SECOND} 2", f"{SECOND} 3"))
    assert judged(lines)[1] == {"published_not_journaled"}
    lines = diary()
    lines.insert(2, ticked(TICKS[1], "S").replace("4103.0", "4103.5"))
    assert judged(lines)[1] == {"published_differs"}


def test_a_wrong_word_about_the_epoch_before_is_noticed() -> None:
    lines = diary()
    lines[9] = said("epoch", epoch=SECOND, previous_epoch=FIRST, previous_last_offset=3)
    assert judged(lines)[1] == {"epoch_message"}


def test_an_error_to_a_client_that_did_nothing_wrong_is_noticed() -> None:
    lines = diary()
    lines.insert(9, said("error", code="bad_cursor", message="ahead of what was published"))
    assert judged(lines)[1] == {"client_error"}


def test_a_bar_that_was_not_journaled_is_noticed() -> None:
    data = {
        "datetime": "2025-06-03T08:00:00-05:00",
        **{"open": 4100.0, "high": 4103.0, "low": 4098.0, "close": 4102.0},
        **{"revision": 0, "status": "closed", "source": "simulator_websocket"},
    }
    lines = diary()
    lines.insert(13, said("bar", data=data))
    one, kinds = judged(lines)
    assert (one.bars, kinds) == (1, set())
    lines[13] = said("bar", data={**data, "high": 4103.5})
    assert judged(lines)[1] == {"bar_not_journaled"}


def test_latest_may_leave_out_but_never_go_back_or_end_early() -> None:
    assert judged(["C -", ticked(TICKS[1]), ticked(TICKS[5]), "E"], "latest")[1] == set()
    lines = ["C -", ticked(TICKS[5]), ticked(TICKS[1]), "E"]
    assert "client_order" in judged(lines, "latest")[1]
    assert judged(["C -", ticked(TICKS[4]), "E"], "latest")[1] == {"client_hole"}


def test_modes_get_nothing_they_did_not_ask_for() -> None:
    assert judged(["C -", ticked(TICKS[5]), "E"], "bars")[1] == {"client_unwanted"}
    assert judged(["C -", ticked(TICKS[5]), skipped(SECOND, 1, 1), "E"], "latest")[1] == {
        "client_unwanted"
    }


def test_a_client_that_connects_anew_is_owed_what_follows_its_welcome() -> None:
    lines = ["C -", said("welcome", epoch=FIRST, offsets={SYMBOL: 2}), *diary()[5:]]
    assert judged(lines)[1] == set()
    lines[1] = said("welcome", epoch=FIRST, offsets={SYMBOL: 1})
    assert judged(lines)[1] == {"client_hole"}
