"""Runs a command of ours on a machine whose faults a test switches.

python -m tests.e2e.matrix.injected FILE PYTHON -m PACKAGE ARGUMENTS...

``FILE`` holds a JSON object, read every few milliseconds: ``journal`` (``refuse``, ``hang``, ``lie``,
``slow``), ``hub`` (``refuse``, ``lie``, ``slow``) and ``clock`` (seconds by which the machine's clock is
wrong). Where nothing is set, all is as it was. Patched before the package is imported: what it does with
``os`` and ``time`` is what it would do with a real disk and a real clock.
"""

import asyncio
import errno
import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOOK_EVERY_S = 0.005
FSYNC_S = 1.5
DELIVERY_S = 6.0

_real_time, _real_write, _real_fsync, _sleep = time.time, os.write, os.fsync, time.sleep


class Faults:
    """The switches, as the file last had them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._now: dict[str, Any] = {}
        threading.Thread(target=self._follow, name="faults", daemon=True).start()

    def of(self, part: str) -> Any:
        return self._now.get(part)

    def _follow(self) -> None:
        seen = b""
        while True:
            try:
                text = self._file.read_bytes()
                if text != seen:
                    seen, self._now = text, json.loads(text or b"{}")
            except (OSError, ValueError):
                pass  # half written: the next look sees all of it
            _sleep(LOOK_EVERY_S)


def inject(faults: Faults) -> None:
    """Put ``faults`` between the package and its machine."""

    def now() -> float:
        return _real_time() + float(faults.of("clock") or 0.0)

    def write(fd: int, data: Any) -> int:
        fault = faults.of("journal")
        if fault in ("refuse", "lie") and _is_journal(fd):
            if fault == "lie":
                return memoryview(data).nbytes
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return _real_write(fd, data)

    def fsync(fd: int) -> None:
        if _is_journal(fd):
            if faults.of("journal") == "slow":
                _sleep(FSYNC_S)
            while faults.of("journal") == "hang":
                _sleep(LOOK_EVERY_S)
        _real_fsync(fd)

    time.time, os.write, os.fsync = now, write, fsync  # type: ignore[assignment]

    from enhanced_websocket_service.serving.hub import Hub

    on_events = Hub.on_events

    def told(self: Hub, events: Any) -> None:
        fault = faults.of("hub")
        if fault == "refuse":
            raise RuntimeError("the hub refuses")
        if fault == "slow":
            asyncio.get_running_loop().call_later(DELIVERY_S, on_events, self, events)
        elif fault != "lie":
            on_events(self, events)

    Hub.on_events = told  # type: ignore[method-assign]


def _is_journal(fd: int) -> bool:
    try:
        return Path(f"/proc/self/fd/{fd}").readlink().suffix == ".journal"
    except OSError:
        return False


def main(arguments: list[str], run: Callable[..., Any] = runpy.run_module) -> None:
    file, _python, _m, module, *rest = arguments
    inject(Faults(Path(file)))
    sys.argv = [module, *rest]
    run(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
