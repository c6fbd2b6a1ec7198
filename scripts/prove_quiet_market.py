#!/usr/bin/env python3
"""Prove that a quiet market is left alone: no needless reconnect, no false DEAD.

Plays the sessions of a year whose bars are thinnest (and those on holidays of the United States) in full,
while REST lags and rounds; then a rate that falls from a tick a second to a tick a minute. Prints what
was measured; the exit code is 1 when a claim is broken. Two stacks at 300 times real speed take about
25 minutes:

    python scripts/prove_quiet_market.py --bars usdcop_m5.parquet
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.faults.quiet_market import Outcome, prove, prove_falling, shown, thin_sessions


async def _prove(options: argparse.Namespace, folder: Path) -> list[Outcome]:
    sessions = thin_sessions(options.bars, options.year, options.sessions)
    half = len(sessions) // 2 if options.stacks > 1 else len(sessions)
    jobs = [
        prove(
            f"sessions {number}",
            folder / f"part-{number}",
            options.bars.resolve(),
            part,
            speed=options.speed,
            seed=options.seed,
        )
        for number, part in enumerate((sessions[:half], sessions[half:]), 1)
        if part
    ]
    outcomes = list(await asyncio.gather(*jobs))
    outcomes.append(await prove_falling(folder / "falling", speed=options.speed))
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bars", type=Path, required=True, help="recorded 5-minute bars (parquet)")
    parser.add_argument("--year", type=int, default=2024)
    parser.add_argument("--sessions", type=int, default=20, help="how many of the thinnest")
    parser.add_argument("--speed", type=float, default=300.0)
    parser.add_argument("--stacks", type=int, choices=(1, 2), default=2, help="at the same time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep logs and data here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quiet-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("part-1", "part-2", "falling"):
            (folder / name).mkdir(exist_ok=True)
        folder.chmod(0o755)
        outcomes = asyncio.run(_prove(options, folder))
    print(shown(outcomes))
    return 1 if any(one.faults for one in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
