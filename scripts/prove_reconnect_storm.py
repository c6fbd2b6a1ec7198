#!/usr/bin/env python3
"""Prove the back-off: the vendor refuses the stream fifty times, then accepts; then it flaps.

Prints what was measured; the exit code is 1 when a claim is broken: attempts follow the documented
back-off, the log stays readable, fewer than 100 client events a minute. Takes about three minutes:

    python scripts/prove_reconnect_storm.py
"""

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.faults.storm import prove


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--refusals", type=int, default=50)
    parser.add_argument("--speed", type=float, default=20.0)
    parser.add_argument("--flapping", type=float, default=300.0, help="session seconds of act two")
    parser.add_argument("--folder", type=Path, help="keep logs and data here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="storm-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        outcome = asyncio.run(
            prove(
                folder,
                refusals=options.refusals,
                speed=options.speed,
                flapping_s=options.flapping,
            )
        )
    print(json.dumps(dataclasses.asdict(outcome), indent=2))
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
