"""What every command shares: the terminal, the settings, the event loop, progress, JSON."""

import asyncio
import contextlib
import io
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from datetime import date
from pathlib import Path
from typing import IO, Annotated, Any, Final, Literal, TextIO, cast

import structlog
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.log_writer import FLUSH_S, LineWriter, StreamOutput
from enhanced_websocket_service.redaction import Redactor
from enhanced_websocket_service.settings import FaultySettings, Loaded, load_settings
from enhanced_websocket_service.telemetry import configure_logging

log = structlog.get_logger(__name__)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

COMMAND_LOG_WAIT_S: Final = 1.0
"""How long the log of a command that prints results waits for its reader, so that both keep their order."""
_OF_TERMINALS: Final = (signal.SIGHUP, signal.SIGQUIT)
"""Signals that a terminal sends; they would end the process and leave its private servers running."""

JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DateOption = Annotated[str | None, typer.Option(metavar="DATE", help="COT day, YYYY-MM-DD.")]


def load(
    *,
    default_level: str = "INFO",
    stream: Literal["stdout", "stderr"] = "stderr",
    log_wait_s: float = COMMAND_LOG_WAIT_S,
    ignored: Collection[str] = (),
    **overrides: Any,
) -> Loaded:
    """The settings, and the log as they want it, in ``stream``.

    :param log_wait_s: see ``LogWriter``; 0 for what runs until it is stopped.
    :param ignored: variables that are not looked at.
    """
    loaded = load_settings(os.environ, dotenv=Path(".env"), overrides=overrides, ignored=ignored)
    settings = loaded.settings
    chosen = "log_level" in settings.model_fields_set
    configure_logging(
        level=settings.log_level if chosen else default_level,
        form=settings.log_format,
        directory=settings.log_dir,
        secrets=settings.secrets(),
        stream=stream,
        wait_s=log_wait_s,
    )
    for warning in loaded.warnings:
        log.warning(warning)
    return loaded


def day_option(text: str | None, option: str) -> date | None:
    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"{option} {text!r} is not a date like 2025-06-27.") from None


def run_to_end(work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        task = asyncio.current_task()
        assert task is not None

        def on_signal(number: int) -> None:
            # A terminal that is closed may say so twice: by the kernel and by the shell.
            if number != signal.SIGHUP or not task.cancelling():
                # As Ctrl-C does: cancelled, so that what the work started (private servers) is stopped.
                task.cancel()

        _handle((signal.SIGTERM, *_OF_TERMINALS), on_signal)
        return await work

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(0)


def until_signalled(
    serve: Callable[[asyncio.Event], Awaitable[None]], *, ends_with_terminal: bool = True
) -> None:
    """Run ``serve`` until SIGTERM, SIGHUP or Ctrl-C asks it to stop; a second signal ends it at once.

    :param ends_with_terminal: whether SIGHUP does so; else it is logged.
    """

    async def main() -> None:
        stop = asyncio.Event()

        def on_signal(number: int) -> None:
            if number == signal.SIGHUP and not ends_with_terminal:
                log.info("SIGHUP: nothing to read again yet")
                return
            if stop.is_set():
                if number == signal.SIGHUP:
                    return  # a terminal that is closed may say so twice: by the kernel and by the shell
                log.error("Second signal: stopping at once, without draining")
                logging.shutdown()
                os._exit(1)
            log.info("Stopping", signal=signal.Signals(number).name)
            stop.set()

        _handle((signal.SIGTERM, signal.SIGINT, *_OF_TERMINALS), on_signal)
        # In the background of a terminal with "stty tostop" the first line would suspend the service.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        await serve(stop)

    run_to_end(main())


def has_terminal() -> bool:
    """Whether this process has a controlling terminal."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _handle(numbers: Iterable[signal.Signals], on_signal: Callable[[int], None]) -> None:
    """Call ``on_signal`` for each signal, but for those that ``nohup`` or a shell made us ignore."""
    # None: closed when we started; what has its number by now is another file.
    streams = [one for one in (sys.__stdout__, sys.__stderr__) if one is not None and one.isatty()]

    def handler(number: signal.Signals) -> None:
        for stream in streams:
            # A terminal that is closed is none any more, and each line for it would fail. Asked without
            # writing: one that only stands still would hold us up.
            if not stream.isatty():
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)
        on_signal(number)

    loop = asyncio.get_running_loop()
    for number in numbers:
        if number not in _OF_TERMINALS or signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, handler, number)


@contextlib.contextmanager
def narration() -> Iterator[Console]:
    """Standard output for what runs until it is stopped: like its log, it never waits for a reader."""
    stream = sys.stdout
    if stream is None:  # closed when we started
        yield out
        return
    writer = LineWriter(StreamOutput(stream, "Standard output"), _lines_lost)
    try:
        yield Console(file=cast("IO[str]", _Narration(writer, stream)), highlight=False)
    finally:
        writer.flush(FLUSH_S)
        writer.close()


def _lines_lost(count: int) -> bytes:
    return f"({count} lines were dropped here: nobody read them)\n".encode()


class _Narration(io.TextIOBase):
    """A text file in front of a ``LineWriter``."""

    def __init__(self, writer: LineWriter, stream: TextIO) -> None:
        self._writer = writer
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        self._writer.put(text.encode(self.encoding, "backslashreplace"))
        return len(text)


def with_progress(
    title: str, work: Callable[[Callable[[str, int, int], None]], Awaitable[Any]]
) -> Any:
    """A progress bar on a terminal, plain log lines elsewhere."""
    if not err.is_terminal:
        return run_to_end(
            work(lambda symbol, done, total: log.info(title, symbol=symbol, done=done, days=total))
        )
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("days"),
        TimeElapsedColumn(),
        console=err,
    ) as bars:
        rows: dict[str, Any] = {}

        def tell(symbol: str, done: int, total: int) -> None:
            if symbol not in rows:
                rows[symbol] = bars.add_task(f"{title} {symbol}", total=total)
            bars.update(rows[symbol], completed=done, total=total)

        return run_to_end(work(tell))


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, default=str) + "\n")


def print_failure(*faults: str, as_json: bool) -> None:
    """Tell on standard error why a command failed, and as JSON where its output would have been."""
    redact = _redactor()
    shown = [redact(fault) for fault in faults]
    for fault in shown:
        err.print(f"error: {fault}", style="red", markup=False, soft_wrap=True)
    if as_json:
        print_json({"error": "\n".join(shown)})


def _redactor() -> Redactor:
    """What other programs said may be part of an error, and repeat what they were given."""
    try:
        return Redactor(load_settings(os.environ, dotenv=Path(".env")).settings.secrets())
    except FaultySettings as error:
        return Redactor(error.usable.secrets())
    except ConfigurationError:
        return Redactor(())
