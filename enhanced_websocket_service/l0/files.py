"""Replacing files so that a crash leaves the old content or the new, never a part."""

import os
import secrets
from pathlib import Path


def fsync_path(path: Path) -> None:
    """Force ``path`` (a file's content, or a directory's entries) to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` and fsync it; not atomic: for staging files nobody reads yet."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Make ``data`` the content of ``path``: a reader sees the old file or the new one, whole.

    Raises ``OSError``; the old file is then untouched.
    """
    # Not mkstemp: its mode 0600 would hide the file from a service that runs as another user.
    staged = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        write_durably(staged, data)
        staged.replace(path)
    except OSError:
        staged.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)
