#!/usr/bin/env python3
"""Prove the credit plan: whole sessions by REST alone, on free keys, against strict ledgers.

The real service and the real simulator run as processes; the calls are measured where they reach the
simulator. No answer may be a 429, and at least 95 % of the credits planned for polling must be used by
the close, evenly. Prints a ledger for each set of keys; the exit code is 1 when one has faults. A
session at 60 times real speed takes about six minutes:

    python scripts/prove_credits.py --keys 8+8 1 4+4
"""

import argparse
import dataclasses
import json
import sys
import tempfile
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.crediting import run


def groups(text: str) -> list[int]:
    """``8+8``: so many keys in each group."""
    counts = [int(part) for part in text.split("+")]
    if not 1 <= len(counts) <= 2 or not all(1 <= count <= 8 for count in counts):
        raise argparse.ArgumentTypeError("one or two groups of 1 to 8 keys, like 8+8")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--keys", type=groups, nargs="+", default=[[8, 8], [1], [4, 4]])
    parser.add_argument("--day", type=date.fromisoformat, default=date(2025, 6, 25))
    parser.add_argument(
        "--speed",
        type=float,
        default=60.0,
        help="virtual seconds per real second; so slow that a call takes less than its share",
    )
    parser.add_argument(
        "--disturbed",
        action="store_true",
        help="run an l0 command beside the service, and kill the service once",
    )
    parser.add_argument("--folder", type=Path, help="keep logs and data here")
    options = parser.parse_args()
    faulty = False
    for layout in options.keys:
        with tempfile.TemporaryDirectory(prefix="credits-") as scratch:
            folder = Path(scratch)
            if options.folder is not None:
                folder = options.folder / "-".join(map(str, layout))
                folder.mkdir(parents=True, exist_ok=True)
            ledger = run(
                folder,
                day=options.day,
                groups=layout,
                speed=options.speed,
                disturbed=options.disturbed,
            )
        print(json.dumps(dataclasses.asdict(ledger), indent=2), flush=True)
        faulty = faulty or bool(ledger.faults)
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
