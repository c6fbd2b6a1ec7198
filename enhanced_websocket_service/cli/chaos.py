"""``ews chaos``: the service under a seeded storm, ending in a ledger."""

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from enhanced_websocket_service.chaos import schedule, storm
from enhanced_websocket_service.chaos.ledger import Ledger
from enhanced_websocket_service.chaos.processes import scratch_folder
from enhanced_websocket_service.chaos.world import Setting
from enhanced_websocket_service.telemetry import configure_logging

from .console import COMMAND_LOG_WAIT_S, JsonOption, err, out, print_json, run_to_end


def chaos(
    seed: Annotated[int, typer.Option(help="Which storm: the same seed is the same schedule.")],
    minutes: Annotated[
        float, typer.Option(min=0.1, max=240, help="Length of the storm, real minutes.")
    ] = 3.0,
    ticks_per_second: Annotated[
        float, typer.Option(min=1, max=10_000, help="What the simulated vendor sends.")
    ] = 2000.0,
    folder: Annotated[
        Path | None, typer.Option(help="Keep logs, diaries and data here; else only when it fails.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only show the schedule.")] = False,
    as_json: JsonOption = False,
) -> None:
    """The service under a seeded storm of faults, ending in a ledger of invariants."""
    configure_logging(wait_s=COMMAND_LOG_WAIT_S)
    seconds = minutes * 60
    actions = schedule.storm(seed, seconds)
    if plan:
        for action in actions:
            out.print(json.dumps(action.shown()), markup=False, soft_wrap=True)
        return
    place = scratch_folder("ews-chaos-") if folder is None else folder.expanduser().resolve()
    setting = Setting(seconds=seconds, ticks_per_second=ticks_per_second, seed=seed)
    holds = False
    try:
        ledger: Ledger = run_to_end(storm.run_storm(setting, actions, place))
        holds = ledger.holds
    finally:
        if folder is None and holds:
            shutil.rmtree(place, ignore_errors=True)
        else:
            err.print(f"Logs, diaries and data of seed {seed} are in {place}", soft_wrap=True)
    if as_json:
        print_json(vars(ledger))
    else:
        for line in ledger.lines():
            out.print(line, markup=False, soft_wrap=True)
    if not holds:
        err.print(f"Broken. Replay: ews chaos --seed {seed} --minutes {minutes:g}", soft_wrap=True)
        raise typer.Exit(1)
