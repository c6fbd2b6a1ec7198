"""The service is killed in mid-session and the proof of continuity still names every slot's source.

The recording here is generated; ``scripts/prove_handover.py`` does the same with real sessions.
"""

from datetime import time
from pathlib import Path

import pytest

from .handover import prove
from .playback import Playback
from .test_recorded_reality import FRIDAY, SESSION, make_bars


@pytest.mark.timeout(600)
async def test_every_slot_is_proven_whatever_was_killed(tmp_path: Path) -> None:
    ledger = await prove(
        Playback(
            recording=make_bars(tmp_path / "bars.parquet", time(11, 45)),
            first=FRIDAY,
            last=FRIDAY,
            speed=300,
            closed_speed=4000,
            # Longer than there: a life must be able to see a whole slot.
            environ={**SESSION, "MARKET_OPEN": "11:45"},
        ),
        tmp_path,
        days=[FRIDAY],
        starts=2,
        seed=5,
    )
    assert ledger.faults == []
    assert ledger.slots == ledger.covered == ledger.final == 13
    assert ledger.starts == 2
    assert ledger.both + ledger.vendor == 13
    assert ledger.published_reconciled >= 13
