"""Lines for readers and disks that may stall, fill up or go away, while whoever writes them never waits.

A line goes into a bounded queue, from which a thread of its own writes. When nobody reads the pipe, the
terminal stands still or the disk does not answer, it is that thread that waits; when the queue is full,
or the reader has left, lines are dropped and counted. Once lines are taken again, one of them tells how
many were dropped, at the place where they are missing.

The descriptors stay blocking: ``O_NONBLOCK`` would also hold for every other process that has the same
terminal or pipe.
"""

import logging
import os
import queue
import select
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, Protocol

WAITING_BYTES: Final = 1 << 20
"""Lines that may wait for their reader, together."""
CHUNK_BYTES: Final = 1 << 16
RETRY_S: Final = 2.0
"""Real seconds after which an output that failed is tried again, also when there is no new line."""
FLUSH_S: Final = 2.0
"""Real seconds that the end of the process waits for the last lines to be written."""


class Output(Protocol):
    """Where lines go; used by one thread."""

    name: str

    def write(self, data: bytes) -> None:
        """Write all of ``data``, however long that takes. Raises ``OSError``."""
        ...


class StreamOutput:
    """Standard output or standard error, past Python's buffer: a thread that is stuck in it would
    abort the end of the interpreter."""

    def __init__(self, stream: IO[str], name: str) -> None:
        self.name = name
        self._descriptor = stream.fileno()

    def write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:
                # Another process that has the same terminal or pipe made it non-blocking.
                ready = select.poll()
                ready.register(self._descriptor, select.POLLOUT)
                ready.poll(1000)


class RotatingFile:
    """``path``, begun anew at ``max_bytes``, with ``backups`` older files beside it.

    Opened when something is written: also again after a failure, and after it was moved or deleted.
    """

    def __init__(self, path: Path, name: str, *, max_bytes: int, backups: int) -> None:
        self.name = name
        self._path = path
        self._max_bytes = max_bytes
        self._backups = backups
        self._descriptor: int | None = None
        self._torn = False  # the last line in the file is not whole

    def write(self, data: bytes) -> None:
        if self._torn and data:
            data = b"\n" + data
        written = 0
        try:
            descriptor = self._opened(len(data))
            while written < len(data):
                written += os.write(descriptor, data[written:])
        except OSError:
            self._close()
            raise
        finally:
            if written:
                self._torn = data[written - 1 : written] != b"\n"

    def _opened(self, length: int) -> int:
        if self._descriptor is not None and not self._in_place(self._descriptor):
            self._close()
        if self._descriptor is None:
            self._open()
        assert self._descriptor is not None
        size = os.fstat(self._descriptor).st_size
        if size and size + length > self._max_bytes:
            self._close()
            for number in range(self._backups - 1, 0, -1):
                if self._older(number).exists():
                    self._older(number).replace(self._older(number + 1))
            self._path.replace(self._older(1))
            self._open()
        return self._descriptor

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o666)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _in_place(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self._path.stat())
        except OSError:
            return False

    def _older(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


class LineWriter:
    """Lines on their way to one output, in order.

    :param notice: the line that tells how many were dropped.
    :param waiting_bytes: how much may wait; more is dropped until all of it is written.
    """

    def __init__(
        self,
        output: Output,
        notice: Callable[[int], bytes],
        *,
        waiting_bytes: int = WAITING_BYTES,
        retry_s: float = RETRY_S,
    ) -> None:
        self.dropped = 0
        self._output = output
        self._notice = notice
        self._waiting_bytes = waiting_bytes
        self._retry_s = retry_s
        self._lines: queue.SimpleQueue[bytes | threading.Event | None] = queue.SimpleQueue()
        # Reentrant: the garbage collector may run inside, and what it ends may log.
        self._lock = threading.RLock()
        self._waiting = 0  # bytes in the queue, and those being written
        self._full = False
        self._skipped = 0  # lines dropped since the queue was full
        self._untold = 0  # lines dropped that no notice tells of yet; the thread's own
        self._error: str | None = None
        self._closed = False
        threading.Thread(target=self._work, name=f"lines to {output.name}", daemon=True).start()

    @property
    def fault(self) -> str | None:
        """Why lines are dropped at present; ``None`` while they are taken."""
        if self._error is not None:
            return f"{self._output.name} cannot be written ({self._error})"
        if self._full:
            return f"{self._output.name} takes nothing: its reader or its disk stands still"
        return None

    def put(self, line: bytes) -> None:
        """Never waits. ``line`` ends with a newline."""
        with self._lock:
            # One that is longer than all that may wait goes alone: dropped, nothing would wake the thread.
            too_much = self._waiting and self._waiting + len(line) > self._waiting_bytes
            if self._full or too_much:
                self._full = True
                self._skipped += 1
                self.dropped += 1
            else:
                self._waiting += len(line)
                self._lines.put(line)

    def flush(self, within_s: float) -> bool:
        """Whether all lines until now are through, written or dropped, within real seconds.

        Tries the output also when no line waits.
        """
        if self._closed:
            return True
        through = threading.Event()
        self._lines.put(through)
        return through.wait(within_s)

    def close(self) -> None:
        """Let the thread end after what waits; what is ``put`` afterwards goes nowhere."""
        self._closed = True
        self._lines.put(None)

    def _work(self) -> None:
        items: list[bytes | threading.Event | None] = []
        while None not in items:
            items = self._take()
            self._write([item for item in items if isinstance(item, bytes)])
            if self._caught_up():
                self._write([])
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()

    def _take(self) -> list[bytes | threading.Event | None]:
        """What waits, as far as it fits into a chunk; after a failure nothing, to try again."""
        items: list[bytes | threading.Event | None] = []
        size = 0
        retry = self._untold > 0 or self._error is not None
        try:
            while size < CHUNK_BYTES:
                item = self._lines.get(not items, self._retry_s if retry else None)
                items.append(item)
                size += len(item) if isinstance(item, bytes) else 0
        except queue.Empty:
            pass
        return items

    def _write(self, lines: list[bytes]) -> None:
        untold = self._untold
        notice = self._notice(untold) if untold else b""
        try:
            self._output.write(notice + b"".join(lines))
        except OSError as error:
            self._error = error.strerror or str(error)
            self._untold += len(lines)
        else:
            self._error = None
            self._untold -= untold
        with self._lock:
            self.dropped += len(lines) if self._error is not None else 0
            self._waiting -= sum(map(len, lines))

    def _caught_up(self) -> bool:
        """Whether the queue was full and is empty now: lines are taken again from here on."""
        with self._lock:
            if not self._full or not self._lines.empty():
                return False
            self._full = False
            self._untold += self._skipped
            self._skipped = 0
            return True


class LogWriter(logging.Handler):
    """The handler that writes log lines to ``output`` without holding up whoever logs.

    :param part: what ``/health`` and the metrics call it.
    :param wait_s: real seconds that a line may take to be written before who logged it goes on. A service
        has none; a command has some, so that its log and its results keep their order.
    """

    def __init__(
        self,
        output: Output,
        part: str,
        formatter: logging.Formatter,
        *,
        encoding: str = "utf-8",
        wait_s: float = 0.0,
    ) -> None:
        super().__init__()
        self.part = part
        self.setFormatter(formatter)
        self._encoding = encoding
        self._wait_s = wait_s
        self._lines = LineWriter(output, self._notice)

    @property
    def fault(self) -> str | None:
        """Why lines are dropped at present; ``None`` while they are taken."""
        return self._lines.fault

    @property
    def dropped(self) -> int:
        """Lines dropped since the start."""
        return self._lines.dropped

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except (
            Exception
        ) as error:  # a bug in a log call must neither stop its caller nor stay hidden
            place = f"{record.name} ({record.pathname}:{record.lineno})"
            # Not the error's words: they may quote a secret.
            line = f"A log line of {place} cannot be formatted: {type(error).__name__}"
        self._lines.put(self._encoded(line))
        if self._wait_s and not self._lines.flush(self._wait_s):
            self._wait_s = 0.0  # its reader stands still: once is enough

    def flush(self) -> None:
        """Called at the end of the process: the last lines get some time, not more."""
        self.tried(FLUSH_S)

    def tried(self, within_s: float) -> bool:
        """Whether the output took or refused what waits within real seconds."""
        return self._lines.flush(within_s)

    def close(self) -> None:
        super().close()
        self._lines.close()

    def _encoded(self, line: str) -> bytes:
        return f"{line}\n".encode(self._encoding, "backslashreplace")

    def _notice(self, count: int) -> bytes:
        text = f"{count} log lines were dropped here: {self.part} did not take them"
        record = logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, None, None)
        return self._encoded(self.format(record))


def log_writers() -> list[LogWriter]:
    """Where the log of this process goes."""
    return [one for one in logging.getLogger().handlers if isinstance(one, LogWriter)]
