#!/usr/bin/env python3
"""Prove the handover: start and kill the service at random moments of recorded sessions.

After reconciliation every slot of a session that was recorded whole must be covered, by the right
source, once, and equal to the recording. Prints a ledger; the exit code is 1 when it has faults.
Thirty starts over six sessions at 120 times real speed take about 20 minutes:

    python scripts/prove_handover.py --bars usdcop_m5.parquet --first 2024-05-20 --last 2024-05-31
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.handover import complete_days, run
from tests.e2e.playback import Playback


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bars", type=Path, required=True, help="recorded 5-minute bars (parquet)")
    parser.add_argument("--first", type=date.fromisoformat, required=True, help="first COT day")
    parser.add_argument("--last", type=date.fromisoformat, required=True, help="last COT day")
    parser.add_argument("--sessions", type=int, default=6, help="complete sessions to live through")
    parser.add_argument("--starts", type=int, default=30, help="starts of the service in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--speed", type=float, default=120.0)
    parser.add_argument("--closed-speed", type=float, default=4000.0)
    parser.add_argument("--folder", type=Path, help="keep logs and data here")
    options = parser.parse_args()
    what = Playback(
        recording=options.bars.resolve(),
        first=options.first,
        last=options.last,
        speed=options.speed,
        closed_speed=options.closed_speed,
    )
    days = complete_days(what, options.first, options.last)[: options.sessions]
    if not days:
        parser.error("the recording has no complete session in this range")
    what = dataclasses.replace(what, first=days[0], last=days[-1])
    with tempfile.TemporaryDirectory(prefix="handover-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        ledger = run(what, folder, days=days, starts=options.starts, seed=options.seed)
    print(json.dumps(dataclasses.asdict(ledger), indent=2))
    return 1 if ledger.faults else 0


if __name__ == "__main__":
    sys.exit(main())
