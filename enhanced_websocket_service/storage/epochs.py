"""The epoch of this process: higher than any before it, durable before its first offset.

An epoch is real unix milliseconds, or one more than the highest known where a clock was set back. None is
2^53 or more: beyond, clients in JavaScript round it. What is read back is believed as far as it can be one.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from enhanced_websocket_service.errors import StorageError
from enhanced_websocket_service.failures import Failures
from enhanced_websocket_service.market.events import EPOCH_LIMIT

from .atomic_file import replace_file

FILE: Final = "epoch"
EPOCH_FILE: Final = "epoch file"
EPOCH_IN_JOURNAL: Final = "epochs in the journal"
EPOCH_IN_DATABASE: Final = "epochs in PostgreSQL"
EPOCH_IN_REDIS: Final = "epoch in Redis"
"""Parts of ``Failures``: where an epoch stands that none of ours can be."""
MEND: Final = "Run `db migrate` as the owner of the tables, which mends it."
JOURNAL_ALONE: Final = "Its records stay in the journal alone; see `journal inspect`."
FOREIGN_REDIS: Final = "Somebody else wrote it; protect the Redis by a password."
_DAY_MS: Final = 86_400_000
"""Anybody may write to Redis: alone, it is not believed further ahead of real time."""


@dataclass(frozen=True, slots=True)
class KnownEpochs:
    """The highest epoch that each place knows of; ``None``: it cannot be asked."""

    journal: int = 0
    database: int | None = None
    redis: int | None = None


def impossible(epoch: int, remedy: str) -> str:
    """A sentence on an epoch that none of ours can be."""
    return f"The epoch {epoch} there is none that a service begins; ignored. {remedy}"


def highest_epoch(state_dir: Path, failures: Failures | None = None) -> int:
    """The last epoch begun in ``state_dir``; 0 when there was none, or its file holds none.

    :param failures: told of a file that holds something else.
    :raises StorageError: it cannot be read.
    """
    path = state_dir / FILE
    try:
        text = path.read_text(errors="replace").strip()
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StorageError(f"The epoch in {path} cannot be read: {error}") from error
    if text.isascii() and text.isdecimal() and len(text) < 20 and int(text) < EPOCH_LIMIT:
        if failures is not None:
            failures.succeeded(EPOCH_FILE)
        return int(text)
    if failures is not None:
        failures.failed(
            EPOCH_FILE,
            f"{path} held {text[:40]!r}, which is no epoch; it was replaced by one higher than the "
            "journal, PostgreSQL and Redis know. Find out who writes into STATE_DIR.",
        )
    return 0


def begin_epoch(
    state_dir: Path,
    known: KnownEpochs,
    failures: Failures,
    # real time: epochs must grow from one process to the next, whatever clock they show
    real_time: Callable[[], float] = time.time,
) -> int:
    """Begin the next epoch and remember it in ``state_dir``.

    :param failures: told what cannot be an epoch of ours; it is ignored.
    :raises StorageError: it cannot be made durable; it must then not be used.
    """
    real_ms = int(real_time() * 1000)
    highest = highest_epoch(state_dir, failures)
    limits = (EPOCH_LIMIT, EPOCH_LIMIT, max(real_ms + _DAY_MS, highest + 1))
    values = (known.journal, known.database, known.redis)
    parts = (EPOCH_IN_JOURNAL, EPOCH_IN_DATABASE, EPOCH_IN_REDIS)
    remedies = (JOURNAL_ALONE, MEND, FOREIGN_REDIS)
    for part, value, limit, remedy in zip(parts, values, limits, remedies, strict=True):
        if value is not None and value >= limit:
            failures.failed(part, impossible(value, remedy))
        elif value is not None:
            highest = max(highest, value)
    epoch = max(real_ms, highest + 1)
    if epoch >= EPOCH_LIMIT:
        raise StorageError(f"No epoch is left after {epoch - 1} in {state_dir}: {MEND}")
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        replace_file(state_dir / FILE, f"{epoch}\n".encode())
    except OSError as error:
        raise StorageError(
            f"The epoch cannot be stored in {state_dir}: {error}. Make STATE_DIR writable."
        ) from error
    return epoch
