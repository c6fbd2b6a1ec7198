"""A vendor that fails or hangs, and a clock that is wrong: named within three minutes of the session."""

from pathlib import Path

import pytest

from .catalogue import CLOCK, REST, STREAM, VENDOR_WITHIN_S, Cell
from .stage import installation

pytestmark = pytest.mark.long

SPEED = 20.0
MODES = {"stream": ("auto", STREAM), "rest": ("rest", REST), "clock": ("auto", CLOCK)}


@pytest.mark.timeout(540)
@pytest.mark.parametrize("part", MODES)
async def test_a_vendor_or_clock_that_lies_is_named(part: str, tmp_path: Path) -> None:
    mode, cells = MODES[part]
    async with installation(tmp_path, speed=SPEED, FEED_MODE=mode) as stage:
        instance = await stage.begin()
        await instance.well()
        for cell in cells:
            assert isinstance(cell, Cell)
            await cell.begin(stage, instance)
            begun = instance.samples[-1].at
            await instance.until(
                f"{cell.name}: named as {cell.names}",
                lambda one, cell=cell, begun=begun: (
                    one.at > begun  # type: ignore[misc]
                    and one.status != "healthy"
                    and one.names(cell.names)
                ),
                VENDOR_WITHIN_S / SPEED,
            )
            await cell.end(stage, instance)
            await instance.well(60.0)
