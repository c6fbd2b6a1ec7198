"""``chaos`` for half a minute; that its judges can fail is shown in ``tests/unit/chaos``."""

import json
from pathlib import Path

import pytest

from .playback import Process

SEED = 10
"""Its first 24 seconds befall every part: kills of all three servers, stalls, a lock, vendor faults."""


@pytest.mark.timeout(240)
async def test_a_short_storm_breaks_no_invariant(tmp_path: Path) -> None:
    folder = tmp_path / "storm"
    process = Process("chaos", tmp_path)
    options = ("--seed", str(SEED), "--minutes", "0.4", "--ticks-per-second", "1000")
    await process.start("chaos", *options, "--json", "--folder", str(folder), environ={})
    code = await process.finished(220.0)
    assert code == 0, process.text()[-6000:]
    ledger = json.loads((folder / "ledger.json").read_text())
    assert ledger["broken"] == []
    befallen = ledger["befallen"]
    assert befallen["service kill"] >= 2
    assert befallen["postgres kill"] >= 1
    assert befallen["valkey kill"] >= 1
    assert befallen["postgres lock"] >= 1
    assert ledger["health"]["looks"] > 30
    assert ledger["service_starts"] == befallen["service kill"] + 1
    assert ledger["journal"]["ticks"] == ledger["stored"]["ticks"] > 5_000
    assert ledger["clients"]["client-every"]["received"] > 5_000
    assert ledger["bars"]["reconciled"] == ledger["bars"]["expected"] > 5
    assert ledger["schedule"] == json.loads((folder / "schedule.json").read_text())
