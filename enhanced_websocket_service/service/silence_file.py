"""The learned silences on file: what was usual yesterday is known after a restart."""

import asyncio
import json
from datetime import date
from pathlib import Path

from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.liveness.baseline import InactivityBaseline
from enhanced_websocket_service.storage.atomic_file import replace_file

SAVE_EVERY_S = 60.0  # real seconds
PART = "silence profile"
"""As ``Failures`` calls it."""


class SilenceFile:
    """``STATE_DIR/silence.json``. A file that cannot be used is reported and costs only knowledge.

    :param simulated: the pace of invented prices has a file of its own, and teaches nothing about
        the real ones.
    """

    def __init__(
        self, profile: InactivityBaseline, state_dir: Path, failures: Failures, *, simulated: bool
    ) -> None:
        self._profile = profile
        self._failures = failures
        self._path = state_dir / ("silence-simulated.json" if simulated else "silence.json")
        self._saved: bytes | None = None

    def load(self, today: date) -> None:
        """Take over what was saved; ``today`` is the local day of the market."""
        try:
            self._profile.restore(json.loads(self._path.read_bytes()), today.isoformat())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self._failures.failed(
                PART,
                f"{self._path} was not used ({error}); the usual silences are learned anew, and it is "
                "replaced by them.",
            )

    def save(self) -> None:
        """Write the profile if there is anything new in it."""
        if (content := self._news()) is not None:
            self._tell(content, self._write(content))

    async def keep(self) -> None:
        """Save now and then, with the waiting for the disk in a thread, until cancelled."""
        while True:
            await asyncio.sleep(SAVE_EVERY_S)
            if (content := self._news()) is not None:
                self._tell(content, await asyncio.to_thread(self._write, content))

    def _news(self) -> bytes | None:
        content = json.dumps(self._profile.export(), separators=(",", ":")).encode()
        return None if content == self._saved else content

    def _write(self, content: bytes) -> OSError | None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, content)
        except OSError as error:
            return error
        return None

    def _tell(self, content: bytes, error: OSError | None) -> None:
        if error is None:
            self._saved = content
            self._failures.succeeded(PART)
        else:
            self._failures.failed(
                PART,
                f"{self._path} cannot be written: {error.strerror or error}. A restart learns the usual "
                "silences anew. Make the files in STATE_DIR writable.",
            )
