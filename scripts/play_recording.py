#!/usr/bin/env python3
"""Play a recording through simulator and service as separate processes, and compare every bar.

For example, ten calendar days with a weekend and a Colombian holiday (takes about 20 minutes):

    python scripts/play_recording.py --bars usdcop_m5.parquet --first 2024-05-08 --last 2024-05-17
"""

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.playback import Playback, play


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--bars", type=Path, help="recorded 5-minute bars (parquet)")
    what.add_argument("--ticks", type=Path, help="recorded quotes (parquet)")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the prices of --ticks")
    parser.add_argument("--first", type=date.fromisoformat, required=True, help="first COT day")
    parser.add_argument("--last", type=date.fromisoformat, required=True, help="last COT day")
    parser.add_argument("--speed", type=float, default=120.0)
    parser.add_argument("--closed-speed", type=float, default=20_000.0)
    parser.add_argument("--folder", type=Path, help="keep logs and data here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="playback-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        outcome = asyncio.run(
            play(
                Playback(
                    recording=(options.bars or options.ticks).resolve(),
                    first=options.first,
                    last=options.last,
                    speed=options.speed,
                    closed_speed=options.closed_speed,
                    ticks=options.ticks is not None,
                    scale=options.scale,
                    environ={"L0_POLICY": "degraded"} if options.ticks else {},
                ),
                folder,
            )
        )
    print(json.dumps(dataclasses.asdict(outcome), indent=2))
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
