#!/usr/bin/env python3
"""Prove the lease: two services share one key and one Valkey, in real time.

One streams, the other waits; the first is killed with SIGKILL and the second takes over within 10 s;
the first comes back and waits. Prints what was measured; the exit code is 1 when a claim is broken:

    python scripts/prove_shared_key.py
"""

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.e2e.faults.shared_key import prove


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--watch", type=float, default=30.0, help="real seconds with both running")
    parser.add_argument("--folder", type=Path, help="keep logs and data here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="shared-key-") as scratch:
        folder = options.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        outcome = asyncio.run(prove(folder, watch_s=options.watch))
    print(json.dumps(dataclasses.asdict(outcome), indent=2))
    return 1 if outcome.faults else 0


if __name__ == "__main__":
    sys.exit(main())
