"""Whatever mixture of defects a file has: an accepted bar is right, all others are accounted for."""

import random
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import holidays
import polars as pl
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from enhanced_websocket_service.errors import DataError
from enhanced_websocket_service.l0.foreign.judgement import EXISTING, REASONS, Judgement, judge
from enhanced_websocket_service.l0.foreign.reading import read_table
from tests.foreign_files import (
    CALENDAR,
    COT,
    UTC_DIGITS,
    Row,
    close_only,
    filler,
    line,
    market,
    partial,
    told,
    write,
)

NOW = 1.9e9
NOTHING_THERE = pl.DataFrame(schema=EXISTING)
PRICES = ("open", "high", "low", "close")

NEW_YORK_CLOSED = holidays.country_holidays("US", years=(2024, 2025))

RUN = st.fixed_dictionaries(
    {
        "rows": st.integers(1, 400),
        "convention": st.sampled_from([UTC_DIGITS, COT]),
        "claim": st.sampled_from(["", "", "+00:00"]),
        "quality": st.sampled_from(["whole", "whole", "close_only", "live", "late"]),
    }
)
DEFECTS = st.fixed_dictionaries(
    {
        "duplicates": st.integers(0, 20),
        "bad": st.integers(0, 20),
        "missing": st.sampled_from([0.0, 0.02, 0.2]),
        "stuck": st.integers(0, 12),
        "filled": st.booleans(),
        "in_order_of_digits": st.booleans(),
    }
)


def bad_lines(row: Row, chance: random.Random) -> str:
    """``row`` spoilt in one of the ways a file can be."""
    o, h, l, c = row.prices  # noqa: E741
    spoilt = chance.choice(
        [
            replace(row, high=l, low=h),
            replace(row, close=h + 20),
            replace(row, low=-l),
            replace(row, open=0.0, high=h, low=0.0),
            replace(row, open=o * 100, high=h * 100, low=l * 100, close=c * 100),
            replace(row, high=h * 1.08),
            replace(row, close=float("nan")),
            replace(row, slot=row.slot + chance.choice([7, 60, 140])),
            None,
            "",
        ]
    )
    if spoilt is None:
        return line(row)[: chance.randrange(5, 40)]
    return "what is this" if spoilt == "" else line(spoilt)


def make_lines(
    truth: dict[int, Row], runs: list[dict[str, Any]], defects: dict[str, Any], seed: int
) -> list[str]:
    chance = random.Random(seed)
    slots = sorted(truth)
    rows: list[Row] = []
    frozen: set[int] = set()
    begin = 0
    for run in runs:
        chosen = slots[begin : begin + run["rows"]]
        begin += run["rows"]
        bars = [truth[slot] for slot in chosen if chance.random() >= defects["missing"]]
        if run["quality"] == "close_only":
            bars = [close_only(bar) for bar in bars]
        elif run["quality"] == "live":
            bars = [partial(bar, chance.randrange(-200, 60), chance) for bar in bars]
        elif run["quality"] == "late":
            bars = [replace(bar, written=bar.slot + 90 * 86_400) for bar in bars]
        rows += told(bars, run["convention"], run["claim"])
    if defects["stuck"] and len(rows) > 40:
        at = chance.randrange(len(rows) - 20)
        last = rows[at].close
        stuck = range(at + 1, at + 1 + defects["stuck"])
        # Three or more: one flat bar at the last price may well be one.
        if defects["stuck"] >= 3:
            for i in stuck:
                rows[i] = replace(rows[i], open=last, high=last, low=last, close=last, written=None)
                frozen.add(rows[i].slot)
    if defects["filled"] and rows:
        day = CALENDAR.local_date(rows[0].slot)
        closed = [day + timedelta(days=n) for n in range(14)]
        last = rows[-1]
        for one in closed:
            if not CALENDAR.is_trading_day(one):
                convention = COT if last.shift else UTC_DIGITS
                rows += told(filler(one, last.close), convention, last.claim)
    if defects["in_order_of_digits"]:
        rows.sort(key=lambda row: row.digits)
    lines = [line(row) for row in rows]
    for _ in range(defects["duplicates"] if rows else 0):
        lines.insert(chance.randrange(len(lines)), line(chance.choice(rows)))
    untouched = list(range(len(rows)))
    chance.shuffle(untouched)
    for i in untouched[: defects["bad"]]:
        # One bar left of a stuck run is, among bars that are all flat, as good as any other.
        if rows[i].slot not in frozen:
            lines[lines.index(line(rows[i]))] = bad_lines(rows[i], chance)
    return lines


def judged(lines: list[str]) -> Judgement:
    with TemporaryDirectory() as directory:
        table = read_table(write(Path(directory) / "export.csv", lines, ending="\r\n"))
    assert table.rows.height == len(lines)
    return judge(table.rows, symbol="USDCOP", calendar=CALENDAR, now=NOW, existing=NOTHING_THERE)


def require_right(judgement: Judgement, truth: dict[int, Row]) -> None:
    """Every bar is at its true time and as good as its grade says."""
    assert judgement.bars["slot"].is_unique().all()
    for bar in judgement.bars.iter_rows(named=True):
        slot = bar["slot"]
        assert slot in CALENDAR.expected_labels(CALENDAR.local_date(slot)), bar
        real = truth.get(slot)
        assert real is not None, f"there is no such bar: {bar}"
        if bar["grade"] in ("whole", "reconstructed"):
            assert tuple(bar[name] for name in PRICES) == real.prices, (bar, real)
        elif bar["grade"] == "close_only":
            # While New York is closed, a few flat bars are let pass: the recorded sessions have them.
            thin = CALENDAR.local_date(slot) in NEW_YORK_CLOSED
            assert bar["close"] == real.close or thin, (bar, real)
        else:
            assert bar["high"] <= real.high, (bar, real)
            assert bar["low"] >= real.low, (bar, real)


def require_accounts(judgement: Judgement, lines: list[str]) -> None:
    gone = judgement.quarantined
    assert judgement.read == len(lines)
    assert judgement.accepted + judgement.corrected + gone.height == len(lines)
    kept = set(judgement.bars["row"].to_list())
    assert gone["row"].is_unique().all()
    assert kept.isdisjoint(gone["row"].to_list())
    assert kept | set(gone["row"].to_list()) == set(range(1, len(lines) + 1))
    assert set(gone["reason"].to_list()) <= REASONS.keys()


@settings(
    max_examples=80,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(
    start=st.dates(date(2024, 1, 8), date(2025, 5, 1)),
    seed=st.integers(0, 2**32),
    around_the_clock=st.booleans(),
    runs=st.lists(RUN, min_size=1, max_size=5),
    defects=DEFECTS,
)
def test_accepted_bars_are_right_and_every_row_is_accounted_for(
    start: date,
    seed: int,
    around_the_clock: bool,
    runs: list[dict[str, Any]],
    defects: dict[str, Any],
) -> None:
    truth = market(start, 14, seed, around_the_clock=around_the_clock)
    if around_the_clock:
        runs = [{**run, "rows": run["rows"] * 4} for run in runs]
    lines = make_lines(truth, runs, defects, seed)
    if not lines or all(not one for one in lines):
        return
    try:
        judgement = judged(lines)
    except DataError as error:
        assert "whole 5 minutes" in str(error) or "no rows" in str(error)  # noqa: PT017
        event("refused as no 5-minute bars")
        return
    event("thin" if judgement.thin else "decided")
    require_right(judgement, truth)
    require_accounts(judgement, lines)


@settings(max_examples=20, derandomize=True)
@given(
    start=st.dates(date(2024, 1, 8), date(2025, 5, 1)),
    seed=st.integers(0, 2**32),
    days=st.lists(st.sampled_from([UTC_DIGITS, COT]), min_size=2, max_size=8),
    flat=st.booleans(),
)
def test_whole_sessions_are_accepted_whatever_convention_each_day_follows(
    start: date, seed: int, days: list[str], flat: bool
) -> None:
    """Nothing that can be known is thrown away: a flip at every midnight loses no bar."""
    truth = market(start, 14, seed)
    sessions: dict[date, list[Row]] = {}
    for slot in sorted(truth):
        sessions.setdefault(CALENDAR.local_date(slot), []).append(truth[slot])
    rows: list[Row] = []
    for convention, bars in zip(days, sessions.values(), strict=False):
        rows += told([close_only(bar) for bar in bars] if flat else bars, convention)
    judgement = judged([line(row) for row in rows])
    require_right(judgement, truth)
    assert not judgement.thin
    assert judgement.bars["slot"].to_list() == sorted(row.slot for row in rows)
    assert judgement.corrected == sum(row.shift != 0 for row in rows)
