"""Keeps commands of the tests out of this machine's /data/backups, which ``BACKUP_DIR`` falls back to.

As a program, ``python elsewhere.py FALLBACK PYTHON -m MODULE ARGUMENT...`` runs the rest with that other
fallback.
"""

import runpy
import sys
from pathlib import Path

from enhanced_websocket_service.settings import usable_backup_dir


def keep_backups_in(fallback: Path) -> None:
    """For the rest of this process."""
    usable_backup_dir.__defaults__ = (fallback,)


if __name__ == "__main__":
    _, folder, _, _, module, *arguments = sys.argv
    keep_backups_in(Path(folder))
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
