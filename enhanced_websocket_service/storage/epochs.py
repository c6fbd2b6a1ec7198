"""The epoch of this process: higher than any before it, durable before its first offset.

An epoch is real unix milliseconds, or one more than the highest known where a clock was set back.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from enhanced_websocket_service.errors import StorageError

from .atomic_file import replace_file

log = structlog.get_logger(__name__)

FILE: Final = "epoch"
_IMPOSSIBLE: Final = 1 << 62
"""No clock gets here; a number beyond would not leave room in a BIGINT."""


def highest_epoch(state_dir: Path) -> int:
    """The last epoch begun in ``state_dir``; 0 when there was none or its file is damaged."""
    path = state_dir / FILE
    try:
        text = path.read_text().strip()
    except FileNotFoundError:
        return 0
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"The epoch in {path} cannot be read: {error}") from error
    if text.isascii() and text.isdecimal() and int(text) < _IMPOSSIBLE:
        return int(text)
    log.warning("The epoch file is damaged; the other places that know are used", path=str(path))
    return 0


def begin_epoch(
    state_dir: Path,
    *known: int | None,
    # real time: epochs must grow from one process to the next, whatever clock they show
    real_time: Callable[[], float] = time.time,
) -> int:
    """Begin the next epoch and remember it in ``state_dir``.

    :param known: the highest epochs that the journal, PostgreSQL and Redis know of, where they do. An
        impossible one, which anybody may have written to Redis, counts as not known.
    :raises StorageError: it cannot be made durable; it must then not be used.
    """
    possible = (value for value in known if value is not None and value < _IMPOSSIBLE)
    highest = max([highest_epoch(state_dir), *possible])
    epoch = max(int(real_time() * 1000), highest + 1)
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        replace_file(state_dir / FILE, f"{epoch}\n".encode())
    except OSError as error:
        raise StorageError(
            f"The epoch cannot be stored in {state_dir}: {error}. Make STATE_DIR writable."
        ) from error
    return epoch
