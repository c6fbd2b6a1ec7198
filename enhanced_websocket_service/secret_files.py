"""Files that hold a secret: what stands in them, and whether others may read it."""

import os
import stat
from pathlib import Path
from typing import Final

_LONGEST: Final = 4096


def content_of(variable: str, path: Path) -> str:
    """The one line in the file that ``variable`` names.

    :raises ValueError: why there is none.
    """
    # The secret itself may have been put where the name of its file belongs.
    named = f"{variable}={path}" if path.is_absolute() else variable
    try:
        # Of a pipe nobody knows when something comes, and it comes once: settings are read again.
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{named} must be a file; it is a pipe or a device.")
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_LONGEST + 1).strip()
    except OSError as error:
        raise ValueError(f"{named} cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{named} cannot be read (it is not a text).") from error
    if not text or len(text.splitlines()) > 1 or len(text) > _LONGEST:
        raise ValueError(
            f"{named} must hold one line: the value of {variable.removesuffix('_FILE')}."
        )
    return text


def readable_by_others(path: Path) -> list[str]:
    """A warning when other users of this machine may read ``path``, which holds a secret.

    The group may, where the file is not ours: root gives it to us so.
    """
    try:
        status = path.stat()
    except OSError:
        return []
    mode = stat.S_IMODE(status.st_mode)
    if not mode & (0o077 if status.st_uid == os.geteuid() else 0o007):
        return []
    return [
        f"{path} holds a secret, and other users may read it (mode {mode:04o}): chmod 600 {path}"
    ]
