"""``/health`` says ``healthy`` only while work is done at each hop, and names who does not do it.

Real processes: the parts are killed, stopped and lied about. Each hop has an installation of its own, and
goes through its ways one after the other, as an operator would see them in a bad hour.
"""

import time
from pathlib import Path

import pytest

from .catalogue import BACK_OFF_S, PARTS, WITHIN_S, Cell
from .stage import Installation, Instance, installation

pytestmark = pytest.mark.long

HOLD_S = 2.0
"""For so long a fault goes on once it was named: it must stay named."""
SILENT_S = 8.0
"""For so long one that hinders nobody goes on: longer than work may wait (``HEALTH_UNDONE_S``)."""


@pytest.mark.timeout(540)
@pytest.mark.parametrize("part", PARTS)
async def test_a_part_that_does_not_do_its_work_is_named(part: str, tmp_path: Path) -> None:
    faults: list[str] = []
    async with installation(tmp_path, speed=20.0) as stage:
        instance = await stage.begin()
        await instance.well()
        for cell in PARTS[part]:
            faults += await _go_through(cell, stage, instance)
        faults += await stage.ledger(instance)
    assert faults == []


async def _go_through(cell: Cell, stage: Installation, instance: Instance) -> list[str]:
    faults = []
    begun = time.monotonic()
    await cell.begin(stage, instance)
    if cell.silent:
        await instance.until("time to pass", lambda one: one.at > begun + SILENT_S)
        named = [one for one in instance.samples if one.at > begun and one.status != "healthy"]
        if named:
            faults.append(f"{cell.name}: {len(named)} times not healthy: {named[0]}")
    else:
        found = await instance.until(
            f"{cell.name}: named as {cell.names}",
            lambda one: one.at > begun and one.status != "healthy" and one.names(cell.names),
            WITHIN_S,
        )

        await instance.until("time to pass", lambda one: one.at > found.at + HOLD_S)
        well_again = [
            one for one in instance.samples if one.at > found.at and one.status == "healthy"
        ]
        if well_again:
            faults.append(f"{cell.name}: healthy while it lasts: {well_again[0]}")
    ended = time.monotonic()
    await cell.end(stage, instance)
    await instance.until(
        f"{cell.name}: healthy again",
        lambda one: one.at > ended and one.status == "healthy" and one.state == "active",
        BACK_OFF_S + WITHIN_S,
    )

    if any(one.code == 503 and one.state not in ("error", "shutdown") for one in instance.samples):
        faults.append(f"{cell.name}: /health answered 503 outside ERROR and SHUTDOWN")
    return faults
