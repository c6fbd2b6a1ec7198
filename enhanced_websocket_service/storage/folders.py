"""Whether folders can be used, asked without leaving a trace."""

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

from .atomic_file import write_durably

_PAGE = 4096
"""Bytes: a full disk still takes a file of a few, which lie beside its name."""


def fault_of(folder: Path) -> OSError | None:
    """What keeps files from being made in ``folder``, which is made if need be.

    Tried and undone: permissions alone tell nothing of a read-only or foreign file system, of root, or of
    a full disk.
    """
    made: list[Path] = []
    staged = folder / f".{secrets.token_hex(6)}.tmp"
    try:
        for missing in reversed([one for one in (folder, *folder.parents) if not one.exists()]):
            with suppress(FileExistsError):  # somebody else makes it, too
                missing.mkdir()
                made.append(missing)
        write_durably(staged, bytes(_PAGE))
    except OSError as error:
        if error.filename == str(staged):
            error.filename = str(folder)
        return error
    finally:
        with suppress(OSError):
            staged.unlink()
        for one in reversed(made):
            with suppress(OSError):  # somebody uses it already
                one.rmdir()
    return None


def holder(lock_file: Path) -> str | None:
    """What the process that holds ``lock_file`` wrote into it; ``None`` when none does, or none that
    this user may know of.
    """
    try:
        fd = os.open(lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 256, 0).decode(errors="replace").strip() or "unknown"
    finally:
        os.close(fd)
    return None
