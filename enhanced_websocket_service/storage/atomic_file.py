"""Replacing files so that a crash leaves the old content or the new, never a part of either."""

import os
import secrets
from pathlib import Path

PRIVATE = 0o640
SHARED = 0o644
"""For files that services of other users read: the ready flag, the backup set."""


def replace_file(path: Path, content: bytes, mode: int = PRIVATE) -> None:
    """Put ``content`` at ``path``, durable before this returns.

    A reader sees the old file or the new one, whole. Raises ``OSError``; the old file is then
    untouched.

    :param mode: permissions of the new file, less the process's umask.
    """
    staged = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        write_durably(staged, content, mode)
        staged.replace(path)
    except BaseException:  # whatever it was, the staged file must not stay
        staged.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def write_durably(path: Path, content: bytes, mode: int = PRIVATE) -> None:
    """Write ``content`` to ``path`` and fsync it; not atomic: for staging files nobody reads yet."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_path(path: Path) -> None:
    """Force a file's content, or a directory's entries, to the disk. Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
