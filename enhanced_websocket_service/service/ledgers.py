"""The key ledgers on file: what was spent today is still spent after a restart or by a command."""

import json
from pathlib import Path

import structlog

from enhanced_websocket_service.storage.atomic_file import replace_file
from enhanced_websocket_service.twelvedata.keys import KeyPool

log = structlog.get_logger(__name__)


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
        state = self._keys.export_state(now)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, json.dumps(state).encode())
        except OSError as error:
            log.warning("Key ledgers not saved", path=str(self._path), error=str(error))
