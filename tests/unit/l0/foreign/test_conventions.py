"""What the stamps of a file mean, by each kind of evidence alone, and when nothing tells."""

import random
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from tests.foreign_files import COT, SHIFT, UTC_DIGITS, Row, close_only, market, partial, told

from .judging import existing, judge_rows, reasons, sessions

CONVENTIONS = [UTC_DIGITS, COT]


def shapeless(days: int = 2, start: date = date(2025, 5, 6)) -> list[Row]:
    """A feed around the clock in the middle of a week, equally lively at all hours."""
    rows = market(start, days, 5, around_the_clock=True).values()
    chance = random.Random(1)
    price, made = 4000.0, []
    for row in sorted(rows, key=lambda row: row.slot):
        close = round(price + chance.gauss(0, 1), 2)
        made.append(Row(row.slot, price, max(price, close) + 0.5, min(price, close) - 0.5, close))
        price = close
    return made


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("spoil", [replace, close_only])
def test_sessions_tell_by_their_hours(tmp_path: Path, convention: str, spoil: object) -> None:
    rows = sessions()
    shown = [close_only(row) for row in rows] if spoil is close_only else rows
    judged = judge_rows(tmp_path, told(shown, convention))
    assert [run.convention for run in judged.runs] == [convention]
    assert judged.runs[0].evidence["sessions"] != 0
    assert judged.bars["slot"].to_list() == [row.slot for row in rows]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("claim", ["+00:00", "-05:00"])
def test_an_offset_that_lies_is_overruled(tmp_path: Path, convention: str, claim: str) -> None:
    rows = sessions()
    judged = judge_rows(tmp_path, told(rows, convention, claim))
    assert judged.bars["slot"].to_list() == [row.slot for row in rows]
    lies = (convention, claim) == (COT, "+00:00")
    assert judged.corrected == (len(rows) if lies else 0)


def test_a_third_zone_that_is_told_is_believed(tmp_path: Path) -> None:
    rows = [replace(row, shift=-7200, claim="+02:00") for row in sessions()]
    judged = judge_rows(tmp_path, rows)
    assert judged.bars["slot"].to_list() == [row.slot for row in rows]


def test_a_third_zone_that_is_not_told_is_noticed(tmp_path: Path) -> None:
    """Naive New York summer time: an hour off, and most labels would look valid."""
    rows = [replace(row, shift=4 * 3600) for row in sessions()]
    judged = judge_rows(tmp_path, rows)
    assert judged.thin
    assert judged.bars.is_empty()
    assert "its days begin" in str(judged.runs[0].doubt)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_feed_around_the_clock_tells_by_its_liveliness_and_its_week(
    tmp_path: Path, convention: str
) -> None:
    truth = market(date(2025, 5, 5), 12, 8, around_the_clock=True)
    rows = [truth[slot] for slot in sorted(truth)]
    judged = judge_rows(tmp_path, told(rows, convention))
    evidence = judged.runs[0].evidence
    assert abs(evidence["activity"]) > 7
    assert abs(evidence["week"]) > 7
    assert not judged.thin
    assert judged.bars["slot"].to_list() == [row.slot for row in sessions(days=12)]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_where_nothing_tells_nothing_is_guessed(tmp_path: Path, convention: str) -> None:
    rows = told(shapeless(), convention)
    judged = judge_rows(tmp_path, rows)
    assert judged.thin
    assert judged.bars.is_empty()
    assert set(reasons(judged).values()) <= {"ambiguous_time", "outside_session"}
    sure = judge_rows(tmp_path, rows, assume=convention)
    assert sure.runs[0].assumed
    assert sure.bars.height == 120


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_rows_written_live_tell_the_time(tmp_path: Path, convention: str) -> None:
    chance = random.Random(2)
    rows = shapeless()
    live = [partial(row, chance.randrange(0, 20), chance) for row in rows[::7]]
    known = {row.slot: row for row in live}
    judged = judge_rows(tmp_path, told([known.get(row.slot, row) for row in rows], convention))
    assert not judged.thin
    assert judged.bars.height == 120


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_bars_of_the_database_tell_the_time(tmp_path: Path, convention: str) -> None:
    rows = shapeless()
    judged = judge_rows(tmp_path, told(rows, convention), existing=existing(rows[::9]))
    assert not judged.thin
    assert judged.bars.height == 120


def test_nothing_is_written_before_it_happened(tmp_path: Path) -> None:
    """The whole file was written at 14:00 UTC of its last day: as local time it would be from tomorrow."""
    rows = shapeless()
    at = rows[-1].slot + 3600
    judged = judge_rows(tmp_path, [replace(row, written=at) for row in rows])
    assert judged.bars["convention"].unique().to_list() == ["utc"]
    assert judged.bars.height == 120


def test_the_same_bar_twice_tells_both_conventions(tmp_path: Path) -> None:
    """Two exports of one day, one upon the other: labels 08:00 to 17:55 without a seam."""
    day = sessions(days=1)
    rows = told(day, COT) + told(day, UTC_DIGITS)
    judged = judge_rows(tmp_path, sorted(rows, key=lambda row: row.digits))
    assert [run.convention for run in judged.runs] == ["cot", "utc"]
    assert judged.bars["slot"].to_list() == [row.slot for row in day]
    assert judged.found["colliding_slots"] == 60
    assert set(reasons(judged).values()) == {"collision"}


def test_a_flip_in_the_middle_of_a_day_loses_nothing(tmp_path: Path) -> None:
    rows = sessions()
    flipped = told(rows[:150], UTC_DIGITS) + told(rows[150:], COT)
    judged = judge_rows(tmp_path, flipped)
    assert [(run.convention, run.rows) for run in judged.runs] == [
        ("utc", 150),
        ("cot", len(rows) - 150),
    ]
    assert judged.bars["slot"].to_list() == [row.slot for row in rows]


def test_labels_that_look_valid_and_are_not(tmp_path: Path) -> None:
    """A 24-hour local feed has rows at 13:00 to 17:55 every day; none of them is of a session."""
    truth = market(date(2025, 5, 5), 12, 8, around_the_clock=True)
    rows = told([truth[slot] for slot in sorted(truth)], COT)
    judged = judge_rows(tmp_path, rows)
    tempting = {
        number for number, row in enumerate(rows, 1) if 13 * 3600 <= row.digits % 86_400 < 18 * 3600
    }
    assert len(tempting) > 500
    assert tempting.isdisjoint(judged.bars["row"].to_list())


def test_a_row_born_under_another_convention_is_not_believed(tmp_path: Path) -> None:
    """An upsert by label merged a local live row into a UTC one: its range is of two bars."""
    rows = [replace(row, written=row.slot + 86_400 * 5) for row in sessions()]
    rows[70] = replace(rows[70], written=rows[70].slot + SHIFT + 130)
    judged = judge_rows(tmp_path, rows)
    assert reasons(judged) == {71: "ambiguous_time"}


def test_two_conventions_one_upon_the_other_are_not_untangled(tmp_path: Path) -> None:
    """Sorted by digits, a flip of a 24-hour feed interleaves five hours; none of them is guessed."""
    truth = market(date(2025, 4, 21), 26, 8, around_the_clock=True)
    slots = sorted(truth)
    middle = next(i for i, slot in enumerate(slots) if slot % 86_400 == 15 * 3600 and i > 2600)
    rows = told([truth[slot] for slot in slots[:middle]], UTC_DIGITS)
    rows += told([truth[slot] for slot in slots[middle:]], COT)
    # Without every third row: most of the wrong readings would meet no rival in their slot.
    rows = sorted((row for i, row in enumerate(rows) if i % 3), key=lambda row: row.digits)
    judged = judge_rows(tmp_path, rows)
    assert not judged.thin
    assert judged.ambiguous > 20
    for slot, close in judged.bars.select("slot", "close").iter_rows():
        assert truth[slot].close == close
