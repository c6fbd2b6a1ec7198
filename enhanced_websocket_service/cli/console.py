"""What every command shares: the terminal, the settings, the event loop, progress, JSON."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer
import uvloop
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.redaction import Redactor
from enhanced_websocket_service.settings import FaultySettings, Loaded, load_settings
from enhanced_websocket_service.telemetry import configure_logging

log = structlog.get_logger(__name__)
out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DateOption = Annotated[str | None, typer.Option(metavar="DATE", help="COT day, YYYY-MM-DD.")]


def load(*, default_level: str = "INFO", **overrides: Any) -> Loaded:
    loaded = load_settings(os.environ, dotenv=Path(".env"), overrides=overrides)
    settings = loaded.settings
    chosen = "log_level" in settings.model_fields_set
    configure_logging(
        level=settings.log_level if chosen else default_level,
        form=settings.log_format,
        directory=settings.log_dir,
        secrets=settings.secrets(),
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
        # As Ctrl-C does: cancelled, so that what the work started (private servers) is stopped.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await work

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit(0)


def until_signalled(serve: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    """Run ``serve`` until SIGTERM or Ctrl-C asks it to stop; a second signal ends it at once."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()

        def on_signal(number: int) -> None:
            if stop.is_set():
                log.error("Second signal: stopping at once, without draining")
                os._exit(1)
            log.info("Stopping", signal=signal.Signals(number).name)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, on_signal, number)
        await serve(stop)

    run_to_end(main())


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
