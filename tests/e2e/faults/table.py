"""``docs/reference/faults.md``, made of the expectations that the tests judge by.

python -m tests.e2e.faults.table            writes it
python -m tests.e2e.faults.table --check    exit code 1 when it is out of step
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from .catalogue import STAGES
from .expectation import NONE, Bounds, Expectation, Stage, path_text

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "faults.md"

_HEAD = """\
# Faults of the vendor, and what they do here

Written by `python -m tests.e2e.faults.table` from the expectations that `tests/e2e/faults` judges by: do not
edit it. Every row is a test. A simulator and the service run as processes, in virtual time, at a tick a
second and with {keys} keys unless said otherwise; each fault begins while prices come as usual.

| column | says |
|---|---|
"""
_COLUMNS = {
    "set by": "what is posted to the simulator ([faults](simulator.md#faults)), and for how many "
    "seconds of the session",
    "verdict": "the path from `live` (which `quiet` counts as); in brackets what may be left out",
    "found, back": "seconds of the session at most from the beginning of the fault to the verdict, "
    "and from its end until prices come as usual. *real*: seconds of the machine, where the network "
    "decides",
    "reconnects": "attempts to connect while it lasts",
    "credits": "spent by purpose until it is over; *bars*: calls for its bars until 15 minutes later",
    "ticks": "what must be stored of what the simulator sent: *all*, in order, offsets without a "
    "hole; *broken off*: all but what was under way when the connection died; *withheld*: those of a "
    "stream that is not to be believed may be missing; and how many prices come by REST",
    "bars": "*live*: those made of ticks equal the recording, too. *vendor's*: ticks are missing in "
    "the live ones; the final ones equal the recording. *partial*: and the live ones say so",
    "missing": "slots without a final bar when all is over",
}


def page() -> str:
    """The whole document."""
    keys = max(stage.keys for stage in STAGES)
    legend = "".join(f"| {name} | {text} |\n" for name, text in _COLUMNS.items())
    lines = [_HEAD.format(keys=keys) + legend]
    for stage in STAGES:
        lines += [f"## {stage.title}\n", *_setting(stage, keys), *_table(stage), ""]
    return "\n".join(lines)


def _setting(stage: Stage, keys: int) -> Iterator[str]:
    said = []
    if stage.keys != keys:
        said.append(f"{stage.keys} {'key' if stage.keys == 1 else 'keys'}")
    if stage.simulate:
        said.append(f"`simulate {' '.join(stage.simulate)}`")
    said += [f"`{name}={value}`" for name, value in stage.environ.items()]
    if stage.about:
        said.append(stage.about)
    if said:
        yield f"{'; '.join(said)}.\n"


def _table(stage: Stage) -> Iterator[str]:
    columns = (
        "fault",
        "set by",
        "verdict",
        "found",
        "back",
        "reconnects",
        "credits",
        "ticks",
        "bars",
        "missing",
    )
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for one in stage.faults:
        yield f"| {' | '.join(_row(one))} |"


def _row(one: Expectation) -> Iterator[str]:
    yield f"{one.what}{f' ({one.note})' if one.note else ''}"
    yield _set_by(one)
    yield path_text(one.verdicts)
    if one.found_s is None:
        yield f"never {one.noticed}"
    elif one.real_found_s is not None:
        yield f"{one.real_found_s:g} real"
    else:
        yield f"{one.found_s:g}"
    yield "not today" if one.back_s is None else f"{one.back_s:g}"
    yield str(one.reconnects)
    yield _credits(one)
    yield _ticks(one)
    yield "live" if one.live_bars else f"vendor's{', partial' if one.partial else ''}"
    yield str(one.missing)


def _set_by(one: Expectation) -> str:
    said = [f"`{json.dumps(dict(one.sets))}`"] if one.sets else []
    if one.also:
        said.append(one.also)
    if one.lasts_s:
        said.append(f"{one.lasts_s:g} s")
    return ", ".join(said)


def _credits(one: Expectation) -> str:
    said = [f"{purpose} {_text(bounds)}" for purpose, bounds in sorted(one.credits.items())]
    if one.repair != Bounds():
        said.append(f"bars {_text(one.repair)}")
    return ", ".join(said) or "any"


def _ticks(one: Expectation) -> str:
    said = [one.ticks.replace("_", " ")]
    if one.rest_prices != NONE and one.ticks != "polled":
        said.append(f"REST {_text(one.rest_prices)}")
    said += [f"`{flag}` {_text(bounds)}" for flag, bounds in one.flags.items()]
    if one.rejected != NONE:
        said.append(f"rejected {_text(one.rejected)}")
    return ", ".join(said)


def _text(bounds: Bounds) -> str:
    return str(bounds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only")
    if parser.parse_args().check:
        return int(not PAGE.exists() or PAGE.read_text() != page())
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
