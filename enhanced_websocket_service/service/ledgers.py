"""The key ledgers on file: what was spent today is still spent after a restart.

One process at a time: of a service and an ``l0`` command that run at once with the same keys and the
same STATE_DIR, each knows only its own spending and what was saved before it started.
"""

import asyncio
import json
from pathlib import Path

import structlog

from enhanced_websocket_service.clock import Clock
from enhanced_websocket_service.storage.atomic_file import replace_file
from enhanced_websocket_service.twelvedata.keys import KeyPool

log = structlog.get_logger(__name__)

SAVE_EVERY_S = 10.0  # real seconds


class KeyLedgers:
    """``STATE_DIR/keys.json``. A file that cannot be used is reported and costs only knowledge."""

    def __init__(self, keys: KeyPool, state_dir: Path) -> None:
        self._keys = keys
        self._path = state_dir / "keys.json"

    def load(self, now: float) -> None:
        """Take over what was saved; ``now`` in unix seconds UTC."""
        try:
            saved = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            log.warning("Saved key ledgers ignored", path=str(self._path), error=str(error))
            return
        self._keys.import_state(saved, now)

    def save(self, now: float) -> None:
        """Write the ledgers as of ``now``."""
        self._write(json.dumps(self._keys.export_state(now)).encode())

    async def keep(self, clock: Clock) -> None:
        """Save now and then, with the waiting for the disk in a thread, until cancelled."""
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            content = json.dumps(self._keys.export_state(clock.now())).encode()
            await asyncio.to_thread(self._write, content)

    def _write(self, content: bytes) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, content)
        except OSError as error:
            log.warning("Key ledgers not saved", path=str(self._path), error=str(error))
