"""What a row is refused for, what a bar is worth, and which of two wins."""

import random
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from enhanced_websocket_service.errors import DataError
from tests.foreign_files import HEADER, SHIFT, Row, close_only, filler, line, partial

from .judging import existing, judge_lines, judge_rows, reasons, sessions

NAN = float("nan")


def spoilt(row: Row, **fields: Any) -> Row:
    return replace(row, **fields)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"high": NAN}, "bad_price"),
        ({"low": -1.0}, "bad_price"),
        ({"open": 0.0}, "bad_price"),
        ({"close": 1e9, "high": 1e9}, "bad_price"),
        ({"close": float("inf"), "high": float("inf")}, "bad_price"),
        ({"high": 1.0}, "bad_ohlc"),
        ({"close": 9000.0}, "bad_ohlc"),
        ({"high": 4600.0}, "bad_price"),
        ({"low": 3300.0}, "bad_price"),
    ],
)
def test_bad_rows(tmp_path: Path, fields: dict[str, float], reason: str) -> None:
    rows = sessions(seed=4)
    rows[77] = spoilt(rows[77], **fields)
    judged = judge_rows(tmp_path, rows)
    assert reasons(judged) == {78: reason}
    assert judged.accepted == len(rows) - 1


def test_a_bad_print_stands_out_by_less_than_the_band(tmp_path: Path) -> None:
    rows = sessions()
    rows[60] = spoilt(rows[60], high=round(rows[60].high * 1.023, 4))  # the first bar of a day
    rows[100] = spoilt(rows[100], low=round(rows[100].low * 0.98, 4))
    assert reasons(judge_rows(tmp_path, rows)) == {61: "bad_price", 101: "bad_price"}


def test_a_day_of_another_scale(tmp_path: Path) -> None:
    rows = sessions(days=21)
    for i in range(120, 180):
        rows[i] = replace(
            rows[i], **{p: getattr(rows[i], p) / 10 for p in ("open", "high", "low", "close")}
        )
    assert set(reasons(judge_rows(tmp_path, rows))) == set(range(121, 181))


def test_rounding_is_mended(tmp_path: Path) -> None:
    rows = sessions()
    rows[10] = replace(rows[10], close=round(rows[10].high + 0.01, 4))
    judged = judge_rows(tmp_path, rows)
    assert (judged.accepted, judged.corrected) == (len(rows) - 1, 1)
    bar = judged.bars.row(10, named=True)
    assert bar["high"] == bar["close"] == rows[10].close


def test_closed_days_and_hours(tmp_path: Path) -> None:
    rows = sessions()
    last = rows[-1]
    tail = [replace(last, slot=last.slot + n * 300) for n in (1, 2)]
    closed = [*filler(date(2025, 5, 10), 4000.0), *filler(date(2025, 6, 2), 4000.0)]
    found = list(reasons(judge_rows(tmp_path, [*rows, *tail, *closed])).values())
    assert found == ["outside_session"] * 2 + ["weekend"] * 60 + ["holiday"] * 60


def test_a_bar_that_has_not_ended(tmp_path: Path) -> None:
    rows = sessions()
    judged = judge_rows(tmp_path, rows, now=float(rows[-1].slot + 299))
    assert reasons(judged) == {len(rows): "future"}
    assert not reasons(judge_rows(tmp_path, rows, now=float(rows[-1].slot + 300)))


def test_rows_of_others(tmp_path: Path) -> None:
    lines = [line(row) for row in sessions()]
    lines[3] = lines[3].replace("USD/COP", "EUR/USD")
    lines[4] = lines[4].replace("vendor", "simulator_rest")
    assert reasons(judge_lines(tmp_path, lines)) == {4: "other_symbol", 5: "simulated"}
    assert reasons(judge_lines(tmp_path, lines, allow_simulated=True)) == {4: "other_symbol"}


def test_off_the_grid(tmp_path: Path) -> None:
    rows = sessions()
    rows[5] = replace(rows[5], slot=rows[5].slot + 7)
    assert reasons(judge_rows(tmp_path, rows)) == {6: "off_grid"}


def test_bars_of_a_minute_do_not_pass_for_bars_of_five(tmp_path: Path) -> None:
    first = sessions()[0]
    rows = [replace(first, slot=first.slot + n * 60) for n in range(300)]
    with pytest.raises(DataError, match="240 of 300 stamps are not on a whole 5 minutes"):
        judge_rows(tmp_path, rows)


def test_bars_of_an_hour_neither(tmp_path: Path) -> None:
    judged = judge_rows(tmp_path, sessions()[::12])
    assert judged.bars.is_empty()
    assert set(reasons(judged).values()) == {"other_interval"}


def test_stuck_runs(tmp_path: Path) -> None:
    rows = sessions()
    price = rows[80].close
    for i in range(81, 84):
        rows[i] = replace(rows[i], open=price, high=price, low=price, close=price)
    lone = rows[150].close
    rows[151] = replace(rows[151], open=lone, high=lone, low=lone, close=lone)
    found = reasons(judge_rows(tmp_path, rows))
    assert found == {82: "stuck_run", 83: "stuck_run", 84: "stuck_run", 152: "stuck_run"}
    # What the database has, too, is what the market did.
    assert not reasons(judge_rows(tmp_path, rows, existing=existing(rows)))


def test_a_thin_session_may_be_flat(tmp_path: Path) -> None:
    """4 July 2025: New York is closed, Bogotá is not."""
    rows = sessions(start=date(2025, 7, 3), days=2)
    price = rows[80].close
    for i in range(81, 85):
        rows[i] = replace(rows[i], open=price, high=price, low=price, close=price)
    judged = judge_rows(tmp_path, rows)
    assert not reasons(judged)
    assert judged.bars["grade"].to_list().count("close_only") == 4


def test_grades(tmp_path: Path) -> None:
    chance = random.Random(1)
    rows = sessions()
    rows[20] = close_only(rows[20])
    rows[30] = partial(rows[30], 0, chance)
    rows[31] = partial(rows[31], -100, chance)
    rows[32] = partial(rows[32], 179, chance)
    rows[33] = replace(rows[33], written=rows[33].slot + 300 + 180)
    rows[34] = close_only(partial(rows[34], 1, chance))
    judged = judge_rows(tmp_path, rows)
    grades = dict(zip(judged.bars["row"].to_list(), judged.bars["grade"].to_list(), strict=True))
    odd = {row: grade for row, grade in grades.items() if grade != "whole"}
    assert odd == {21: "close_only", 31: "partial", 32: "partial", 33: "partial", 35: "partial"}


def test_grades_that_the_file_declares(tmp_path: Path) -> None:
    lines = [f"{line(row)},{'true' if i < 5 else 'false'}" for i, row in enumerate(sessions())]
    judged = judge_lines(tmp_path, lines, header=f"{HEADER},open_reconstructed")
    assert judged.bars["grade"].to_list()[:6] == ["reconstructed"] * 5 + ["whole"]


def test_a_naive_stamp_of_writing_may_be_in_either_zone(tmp_path: Path) -> None:
    rows = sessions()
    lines = [line(replace(row, written=row.slot + 300 + 60 - SHIFT)) for row in rows]
    judged = judge_lines(tmp_path, [one.removesuffix("+00") for one in lines])
    assert judged.bars["grade"].unique().to_list() == ["partial"]


def test_duplicates_and_contradictions(tmp_path: Path) -> None:
    chance = random.Random(1)
    rows = sessions()
    extra = [
        rows[5],  # the same again: row 541
        close_only(rows[6]),  # the close of a whole one
        partial(rows[7], 10, chance),  # inside the whole one
        replace(rows[8], close=round((rows[8].high + rows[8].low) / 2, 4)),  # contradicts
        close_only(replace(rows[9], close=rows[9].close + 5)),  # contradicts
    ]
    count = len(rows)
    found = reasons(judge_rows(tmp_path, [*rows, *extra]))
    assert found == {
        count + 1: "duplicate",
        count + 2: "duplicate",
        count + 3: "duplicate",
        9: "conflict",
        count + 4: "conflict",
        10: "conflict",
        count + 5: "conflict",
    }


def test_of_two_partial_bars_the_later_written_wins(tmp_path: Path) -> None:
    chance = random.Random(1)
    rows = sessions()
    early = replace(partial(rows[7], 5, chance), high=rows[7].open + 0.02, low=rows[7].open - 0.02)
    early = replace(early, close=rows[7].open)
    late = replace(rows[7], written=rows[7].slot + 300 + 100)
    rows[7] = late
    judged = judge_rows(tmp_path, [*rows, early])
    assert reasons(judged) == {len(rows) + 1: "duplicate"}


def test_better_data_is_never_replaced_by_worse(tmp_path: Path) -> None:
    chance = random.Random(1)
    truth = sessions()
    rows = list(truth)
    rows[3] = close_only(rows[3])
    rows[4] = partial(rows[4], 5, chance)
    rows[5] = replace(rows[5], high=rows[5].high + 1)
    judged = judge_rows(tmp_path, rows, existing=existing(truth))
    assert reasons(judged) == dict.fromkeys((4, 5, 6), "worse_than_existing")
    # Over poorer bars of others, the better ones are taken.
    poorer = existing([close_only(row) for row in truth], "close_only", 31)
    judged = judge_rows(tmp_path, rows, existing=poorer)
    assert not reasons(judged)
    # A whole import comes before a whole live bar; two that differ contradict each other.
    moved = [replace(row, high=row.high + 0.5) for row in truth]
    assert not reasons(judge_rows(tmp_path, truth, existing=existing(moved, rank=2)))
    judged = judge_rows(tmp_path, truth, existing=existing(moved, rank=1))
    assert set(reasons(judged).values()) == {"worse_than_existing"}


def test_what_the_database_confirms_is_worth_as_much(tmp_path: Path) -> None:
    rows = sessions()
    rows[3] = close_only(rows[3])
    judged = judge_rows(tmp_path, rows, existing=existing(rows))
    assert judged.bars["grade"].unique().to_list() == ["whole"]


def test_an_earlier_import_of_the_same_file_is_not_spoilt(tmp_path: Path) -> None:
    rows = sessions()
    worse = [close_only(row) for row in rows]
    judged = judge_rows(tmp_path, worse, own=existing(rows))
    assert set(reasons(judged).values()) == {"worse_than_existing"}
    assert not reasons(judge_rows(tmp_path, rows, own=existing(rows)))


def test_a_file_of_nothing_but_rubbish_is_accounted_for(tmp_path: Path) -> None:
    judged = judge_lines(tmp_path, ["what", "is,this", "?"])
    assert (judged.read, judged.accepted, judged.corrected) == (3, 0, 0)
    assert list(reasons(judged).values()) == ["unparsable"] * 3
