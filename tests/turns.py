"""Who may run at the same time as whom, over all workers of a run.

Most tests wait more than they compute, so that four workers suit two cores. A few need the cores for
themselves: they play many processes against virtual time, where a second of waiting for a core is a minute.
"""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path


class Turns:
    """A lock that many hold together or one holds alone; ``folder`` is common to all workers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._gate = folder / "turns-gate"
        self._floor = folder / "turns-floor"

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Wait until nobody has or wants the machine alone."""
        with _held(self._floor, fcntl.LOCK_SH, behind=self._gate):
            yield

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until nobody else runs; who comes later waits for the end of this."""
        with _held(self._gate, fcntl.LOCK_EX), _held(self._floor, fcntl.LOCK_EX):
            yield


@contextlib.contextmanager
def _held(path: Path, how: int, behind: Path | None = None) -> Iterator[None]:
    with path.open("w") as file:
        # Through the gate, so that a row of others cannot keep the one who waits to be alone out.
        with _held(behind, fcntl.LOCK_SH) if behind else contextlib.nullcontext():
            fcntl.flock(file, how)
        yield
