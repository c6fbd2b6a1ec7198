"""Lines reach readers in order; readers that stall or leave, and disks that are full, hold nobody up."""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from enhanced_websocket_service.log_writer import LineWriter, LogWriter, RotatingFile, StreamOutput
from tests.waiting import eventually

WITHIN_S = 10.0
ROOT = Path(__file__).parents[2]
NAME = "The output"


class Pipe:
    """A pipe whose reading end is ours."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        self.stream = os.fdopen(self._writer, "w")

    def read(self) -> bytes:
        return os.read(self.reader, 1 << 20)

    def read_until(self, end: bytes) -> bytes:
        seen = b""
        while end not in seen:
            more = self.read()
            assert more, seen[-2000:]
            seen += more
        return seen


@contextmanager
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    try:
        yield made
    finally:
        made.stream.close()
        with suppress(OSError):  # a test may have closed it
            os.close(made.reader)


def notice(count: int) -> bytes:
    return b"<%d dropped>\n" % count


def stuck(writer: LineWriter) -> bool:
    return not writer.flush(0.05)


def test_who_writes_never_waits_and_the_gap_is_told_where_it_is() -> None:
    with pipe() as made:
        writer = LineWriter(StreamOutput(made.stream, NAME), notice, waiting_bytes=200_000)
        lines = [b"%06d %s\n" % (number, b"x" * 992) for number in range(1000)]
        for line in lines:
            writer.put(line)
        assert writer.fault == f"{NAME} takes nothing: its reader or its disk stands still"
        assert 700 < writer.dropped < 1000  # what waits, and what the pipe itself holds
        seen = made.read_until(b"dropped>\n")
        assert seen == b"".join(lines[: 1000 - writer.dropped]) + notice(writer.dropped)
        assert writer.flush(WITHIN_S)
        writer.put(b"after\n")
        assert made.read() == b"after\n"
        assert writer.fault is None
        writer.close()


def test_a_line_longer_than_all_that_may_wait_is_written_and_holds_up_none() -> None:
    with pipe() as made:
        writer = LineWriter(StreamOutput(made.stream, NAME), notice, waiting_bytes=1000)
        assert writer.flush(WITHIN_S)  # the thread waits for a line
        long = b"x" * 2000 + b"\n"
        for line in (long, b"after\n"):
            writer.put(line)
            assert made.read_until(b"\n") == line
            assert writer.flush(WITHIN_S)
        assert (writer.dropped, writer.fault) == (0, None)
        writer.close()


async def test_a_reader_who_left_costs_nothing_but_lines() -> None:
    with pipe() as made:
        writer = LineWriter(StreamOutput(made.stream, NAME), notice)
        writer.put(b"read\n")
        assert made.read() == b"read\n"
        os.close(made.reader)
        for _ in range(3):
            writer.put(b"nobody reads this\n")
        assert writer.flush(WITHIN_S)
        assert writer.dropped == 3
        assert writer.fault == f"{NAME} cannot be written (Broken pipe)"
        writer.close()


async def test_a_reader_who_comes_back_to_a_named_pipe_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    first = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with path.open("w") as stream:
        writer = LineWriter(StreamOutput(stream, NAME), notice, retry_s=0.01)
        os.close(first)
        writer.put(b"lost\n")
        assert writer.flush(WITHIN_S)
        second = os.open(path, os.O_RDONLY)
        # No line is written meanwhile: the writer tries by itself.
        assert os.read(second, 100) == b"<1 dropped>\n"
        writer.flush(WITHIN_S)
        assert writer.fault is None
        writer.close()
        os.close(second)


def test_a_pipe_that_somebody_else_made_non_blocking_loses_nothing() -> None:
    with pipe() as made:
        os.set_blocking(made.stream.fileno(), False)
        writer = LineWriter(StreamOutput(made.stream, NAME), notice)
        lines = [b"%06d %s\n" % (number, b"x" * 992) for number in range(500)]
        for line in lines:
            writer.put(line)
        assert stuck(writer)
        assert made.read_until(lines[-1]) == b"".join(lines)
        assert writer.dropped == 0
        writer.close()


def test_a_full_disk_is_named_and_its_end_noticed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    output = RotatingFile(path, NAME, max_bytes=1000, backups=2)
    writer = LineWriter(output, notice, retry_s=0.01)
    writer.put(b"lost\n")
    assert writer.flush(WITHIN_S)
    assert writer.fault == f"{NAME} cannot be written (No space left on device)"
    path.unlink()
    while writer.fault is not None:  # it tries again by itself; the test's time-out bounds it
        writer.flush(WITHIN_S)
    writer.put(b"kept\n")
    assert writer.flush(WITHIN_S)
    assert path.read_bytes() == b"<1 dropped>\nkept\n"
    writer.close()


def test_files_rotate_and_a_folder_that_vanished_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "log"
    output = RotatingFile(path, NAME, max_bytes=100, backups=2)
    for number in range(5):
        output.write(b"%d%s\n" % (number, b"x" * 58))
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["log", "log.1", "log.2"]
    assert [file.read_bytes()[:1] for file in files] == [b"4", b"3", b"2"]
    for file in files:
        file.unlink()
    path.parent.rmdir()
    output.write(b"again\n")
    assert path.read_bytes() == b"again\n"


def test_a_line_that_cannot_be_formatted_stops_nobody_and_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pipe() as made:
        handler = LogWriter(StreamOutput(made.stream, NAME), "log", logging.Formatter())
        record = logging.makeLogRecord(
            {"name": "part", "msg": "%d", "args": ("x",), "pathname": "part.py", "lineno": 7}
        )
        handler.handle(record)
        assert b"A log line of part (part.py:7) cannot be formatted: TypeError" in made.read()
        handler.handle(logging.makeLogRecord({"msg": "surrogate \ud800"}))
        assert made.read() == b"surrogate \\ud800\n"
        handler.close()
    assert capsys.readouterr().err == ""


def program(text: str) -> list[str]:
    begin = (
        "import logging, sys, warnings\n"
        "from enhanced_websocket_service.telemetry import configure_logging\n"
    )
    return [sys.executable, "-c", begin + text]


def test_the_last_lines_before_the_end_are_read() -> None:
    text = (
        "configure_logging(stream='stdout')\n"
        "for n in range(3000): logging.getLogger('x').info('line %d', n)\n"
        "warnings.warn('a warning of Python')\n"
    )
    done = subprocess.run(
        program(text), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line for line in done.stdout.splitlines() if " line " in line]
    assert [line.split(" line ")[1].split()[0] for line in lines] == [str(n) for n in range(3000)]
    assert "a warning of Python" in done.stdout


def test_a_reader_who_stalls_does_not_keep_the_process_from_its_end() -> None:
    text = (
        "configure_logging(stream='stdout')\n"
        "for n in range(30000): logging.getLogger('x').info('line %d', n)\n"
        "sys.exit(7)\n"
    )
    with pipe() as made:
        done = subprocess.run(
            program(text),
            cwd=ROOT,
            stdout=made.stream,
            stderr=subprocess.PIPE,
            timeout=120,
            check=False,
        )
    assert (done.returncode, done.stderr) == (7, b"")


def test_a_stream_closed_at_the_start_is_no_other_file(tmp_path: Path) -> None:
    text = (
        "file = open('data', 'wb')\n"
        "configure_logging(stream='stdout')\n"
        "logging.getLogger('x').error('no data')\n"
        "logging.shutdown()\n"
        "assert file.fileno() == 1, file.fileno()\n"
    )
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *program(text)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "data").read_bytes() == b""


@pytest.mark.parametrize("place", ["below a file", "a folder"])
def test_a_log_folder_that_cannot_be_used_is_told_in_the_other_log(
    tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    folder = tmp_path / "file" / "below" if place == "below a file" else tmp_path / "logs"
    text = (
        "from pathlib import Path\n"
        f"configure_logging(directory=Path({str(folder)!r}))\n"
        "logging.getLogger('x').error('an error')\n"
    )
    done = subprocess.run(
        program(text), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0
    assert "an error" in done.stderr
    assert "Traceback" not in done.stderr
    told = f"LOG_DIR={folder} cannot be written (Not a directory)" in done.stderr
    assert told is (place == "below a file")
    if not told:
        assert "an error" in (folder / "enhanced_websocket_service.log").read_text()


async def test_the_thread_ends_with_its_writer() -> None:
    with pipe() as made:
        writer = LineWriter(StreamOutput(made.stream, "one of its own"), notice)
        writer.put(b"last\n")
        writer.close()
        assert made.read() == b"last\n"

        async def ended() -> bool | None:
            names = [thread.name for thread in threading.enumerate()]
            return "lines to one of its own" not in names or None

        await eventually(ended, WITHIN_S, "end of the thread")
        assert writer.flush(WITHIN_S)  # at once
