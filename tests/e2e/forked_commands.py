"""Many short-lived commands as processes of their own, at the price of one start of the interpreter.

Run as a program it imports the command line once, then forks for each command that stands as a JSON
line on its standard input, and answers with a line of JSON: ``{"code": 2, "stdout": "", "stderr": ""}``.
The code is ``null`` where the command went on until it had said ``until``; it is killed then.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 100.0
SERVING = "Serving clients"
"""What ``run`` says once nothing of the settings keeps it from running any more."""


class Forker:
    """Runs commands one after the other; made by ``forker``."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(
        self, *arguments: str, environ: Mapping[str, str], folder: Path, until: str = SERVING
    ) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        request = {
            "arguments": arguments,
            "environ": dict(environ),
            "folder": str(folder),
            "until": until,
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


@contextmanager
def forker() -> Iterator[Forker]:
    process = subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Forker(process)
    finally:
        assert process.stdin
        process.stdin.close()
        process.wait()
        assert process.stdout
        process.stdout.close()


def _answer(request: Mapping[str, Any]) -> dict[str, Any]:
    pipes = {"stdout": os.pipe(), "stderr": os.pipe()}
    child = os.fork()
    if child == 0:
        _become(request["arguments"], request["environ"], request["folder"], pipes)
    said = dict.fromkeys(pipes, b"")
    reading = {}
    for name, (read, write) in pipes.items():
        os.close(write)
        reading[read] = name
    went_on = False
    while reading:
        ready, _, _ = select.select(list(reading), [], [], PATIENCE_S)
        for read in ready or list(reading):
            part = os.read(read, 65536) if ready else b""
            said[reading[read]] += part
            if not part:
                os.close(read)
                del reading[read]
        if not went_on and any(request["until"].encode() in text for text in said.values()):
            went_on = True
            os.kill(child, signal.SIGKILL)
        elif not ready:
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    code = None if went_on else os.waitstatus_to_exitcode(status)
    return {"code": code, **{name: text.decode() for name, text in said.items()}}


def _become(
    arguments: Sequence[str],
    environ: Mapping[str, str],
    folder: str,
    pipes: Mapping[str, tuple[int, int]],
) -> None:
    """Turn this fork into the command; never returns."""
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(pipes["stdout"][1], 1)
    os.dup2(pipes["stderr"][1], 2)
    os.closerange(3, 100)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    sys.argv = ["ews", *arguments]
    keep_backups_in(Path(folder) / "fallback")
    code: Any = 70
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:  # as the interpreter would: a traceback, and 1
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    from enhanced_websocket_service.cli import main

    from .elsewhere import keep_backups_in

    for line in sys.stdin:
        sys.stdout.write(json.dumps(_answer(json.loads(line))) + "\n")
        sys.stdout.flush()
