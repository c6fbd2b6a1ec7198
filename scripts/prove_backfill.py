#!/usr/bin/env python3
"""Backfill a recording from the simulator, whole and with kills, and account for every request.

python scripts/prove_backfill.py --bars usdcop_m5.parquet --first 2024-01-02 --last 2025-06-27
"""

import argparse
import asyncio
import dataclasses
import json
import sys
import tempfile
from datetime import date, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from enhanced_websocket_service.storage.embedded import EmbeddedServers
from tests.e2e.backfilling import Account, Backfilling, Task


async def prove(task: Task, folder: Path) -> Account:
    async with EmbeddedServers(folder / "servers", durable=False) as servers:
        return await Backfilling(task, folder, await servers.start_postgres()).run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bars", type=Path, required=True, help="recorded 5-minute bars (parquet)")
    parser.add_argument("--first", type=date.fromisoformat, required=True, help="first COT day")
    parser.add_argument("--last", type=date.fromisoformat, required=True, help="last COT day")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--row-cap", type=int, default=250, help="of the run with kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="keep logs and data here")
    options = parser.parse_args()
    whole = Task(
        recording=options.bars.resolve(),
        first=options.first,
        last=options.last,
        now=f"{options.last + timedelta(days=3)}T18:00:00-05:00",
    )
    killed = dataclasses.replace(
        whole, row_cap=options.row_cap, kills=options.kills, seed=options.seed
    )
    faults = 0
    with tempfile.TemporaryDirectory(prefix="prove-backfill-") as scratch:
        Path(scratch).chmod(0o711)
        for name, task in (("whole", whole), ("killed", killed)):
            folder = (options.folder or Path(scratch)) / name
            folder.mkdir(parents=True)
            folder.chmod(0o711)  # started as root, the servers run as a user who must get in
            account = asyncio.run(prove(task, folder))
            print(name, json.dumps(dataclasses.asdict(account), indent=2), flush=True)
            faults += len(account.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
