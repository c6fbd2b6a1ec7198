"""``config``: the settings as ``run`` would have them, and whether it would start with them."""

import asyncio
import os
from pathlib import Path
from typing import Annotated
from urllib.parse import parse_qs, urlsplit

import typer

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.service.awaited import awaited
from enhanced_websocket_service.service.preflight import Findings, preflight
from enhanced_websocket_service.settings import FaultySettings, Loaded, Settings, load_settings
from enhanced_websocket_service.telemetry import configure_logging

from .console import JsonOption, err, out, print_json, run_to_end

config = typer.Typer(help="The configuration.", no_args_is_help=True)


@config.command("check")
def check(
    offline: Annotated[
        bool, typer.Option("--offline", help="Reach nothing: no server, no vendor, no name server.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """The settings, secrets redacted, and whether ``run`` would start; exit code 2 when not."""
    try:
        settings, unknown, found = _read()
    except ConfigurationError as error:  # a .env that cannot be read at all
        settings, unknown, found = None, frozenset(), Findings(error.faults)
    shown: dict[str, object] = {}
    if settings is not None:
        configure_logging(level="ERROR", secrets=settings.secrets())
        found += run_to_end(_judge(settings, unknown, offline=offline))
        shown = {
            name: value
            for name, value in settings.redacted().items()
            if name.lower() not in unknown
        }
    count = len(found.faults)
    verdict = f"not ready: {count} {'fault' if count == 1 else 'faults'}"
    if settings is not None and not found.faults:
        verdict = f"ready to run: {_summary(settings)}"
    if as_json:
        print_json(
            {
                "ready": not found.faults,
                "verdict": verdict,
                "faults": found.faults,
                "warnings": found.warnings,
                "settings": shown,
            }
        )
    else:
        for name, value in shown.items():
            out.print(f"{name}={'' if value is None else value}", markup=False, soft_wrap=True)
        for warning in found.warnings:
            out.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    for fault in found.faults:
        err.print(f"error: {fault}", style="red", markup=False, soft_wrap=True)
    if not as_json:
        out.print(verdict, style="red" if found.faults else "green", markup=False, soft_wrap=True)
    raise typer.Exit(2 if found.faults else 0)


def judged_with(error: FaultySettings) -> ConfigurationError:
    """``error`` with all else that would keep ``run`` from starting."""
    rest = run_to_end(preflight(error.usable, unknown=error.fields))
    return ConfigurationError(*error.faults, *rest.faults)


def _read() -> tuple[Settings, frozenset[str], Findings]:
    try:
        loaded: Loaded = load_settings(os.environ, dotenv=Path(".env"))
    except FaultySettings as error:
        return error.usable, error.fields, Findings(error.faults, error.warnings)
    return loaded.settings, frozenset(), Findings((), loaded.warnings)


async def _judge(settings: Settings, unknown: frozenset[str], *, offline: bool) -> Findings:
    found, waiting = await asyncio.gather(
        preflight(settings, unknown=unknown, offline=offline), _awaited(settings, offline=offline)
    )
    return found + waiting


async def _awaited(settings: Settings, *, offline: bool) -> Findings:
    try:
        return await awaited(settings, offline=offline)
    except ConfigurationError:
        return Findings()  # an address that cannot be understood: preflight tells


def _summary(settings: Settings) -> str:
    keys, groups = len(settings.keys), len({key.group for key in settings.keys})
    scheme = "http" if settings.ssl_cert_path is None else "https"
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return ", ".join(
        (
            f"{keys} {'key' if keys == 1 else 'keys'} in {groups} "
            f"{'group' if groups == 1 else 'groups'}",
            f"PostgreSQL {_at(settings.database_url)}",
            f"Redis {_at(settings.redis_url)}"
            if settings.redis_url is not None or settings.embedded
            else "no Redis",
            f"listening on {scheme}://{host}:{settings.port}",
        )
    )


def _at(url: str | None) -> str:
    if url is None:
        return "of its own (EMBEDDED=1)"
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2] or parse_qs(parts.query).get("host", [""])[0]
    return f"at {place}{parts.path}"
