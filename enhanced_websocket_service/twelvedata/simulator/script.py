"""Fault scripts: a file that says which faults begin and end when, checked whole before it runs.

Either one JSON object a line (empty lines and lines that begin with ``#`` count for nothing), or, in
a file called ``.toml``, one ``[[step]]`` table each. The keys of a step:

``at``
    A number: seconds from the start. ``"open+600"``, ``"close-60"``, ``"start+90"``: from the open
    or close of the session that runs at the start or comes next. ``"+30"``: after the step before.
    ``"2025-06-25T09:00:00-05:00"``: that instant, America/Bogota where it has no offset. For a
    number of seconds ``H:MM:SS`` may be written.
``set``
    The faults and their values, as in ``POST /_sim/faults``.
``for``
    Seconds after which the switches that this step set are off again.
``clear``
    A list of faults that end, or ``"all"``; before ``set``.
"""

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.market.calendar import BOGOTA, Session

from .agenda import Step
from .fault_table import FAULTS
from .faults import BadFault, parsed

_KEYS = ("at", "set", "for", "clear")
_AT = 'a number of seconds, "open+600", "close-60", "start+90", "+30" or an ISO 8601 time'
_OFFSET = re.compile(r"(start|open|close)?\s*(?:([+-])\s*([\d:.]+))?")
_LONGEST_S = 10 * 365 * 86_400


def load_script(path: Path, start: float, session: Session) -> list[Step]:
    """The steps in ``path``, in the order of the file.

    :param start: unix seconds at which the script begins.
    :param session: what ``open`` and ``close`` mean.
    :raises ConfigurationError: with everything that is wrong, each with its place in the file.
    """
    steps: list[Step] = []
    wrong: list[str] = []
    previous = start
    bases = {"start": start, "open": float(session.opens), "close": float(session.closes)}
    for where, entry in _entries(path, wrong):
        place = f"{path}, {where}"
        found: list[str] = []
        at = _instant(entry.get("at"), {**bases, "": previous}, found)
        steps += _steps(entry, at, found)
        wrong += [f"{place}: {text}" for text in found]
        previous = at
    if not steps and not wrong:
        wrong.append(f"{path}: holds no steps.")
    if wrong:
        raise ConfigurationError(*wrong)
    return steps


def _entries(path: Path, wrong: list[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        wrong.append(f"{path}: cannot be read: {error}")
        return
    if path.suffix == ".toml":
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            wrong.append(f"{path}: is not TOML: {error}")
            return
        wrong += [f"{path}: {key} is unknown; write [[step]]." for key in tables if key != "step"]
        found = tables.get("step", [])
        pairs = [(f"step {i}", one) for i, one in enumerate(found, 1)]
    else:
        pairs = []
        for i, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            try:
                pairs.append((f"line {i}", json.loads(line)))
            except ValueError as error:
                wrong.append(f"{path}, line {i}: is not JSON: {error}")
    for where, entry in pairs:
        if isinstance(entry, dict):
            yield where, entry
        else:
            wrong.append(f'{path}, {where}: is no object such as {{"at": 60, "set": {{}}}}.')


def _steps(entry: Mapping[str, Any], at: float, wrong: list[str]) -> list[Step]:
    wrong += [
        f"{key} is unknown; there are {', '.join(_KEYS)}." for key in entry if key not in _KEYS
    ]
    chosen = entry.get("set", {})
    try:
        parsed(chosen)
    except BadFault as error:
        wrong += error.wrong
        chosen = {}
    cleared = entry.get("clear", [])
    names = list(FAULTS) if cleared == "all" else cleared
    if not isinstance(names, list) or not all(name in FAULTS for name in names):
        wrong.append(f'clear takes "all" or a list of faults, not {cleared!r}.')
        names = []
    if not chosen and not names and not wrong:
        wrong.append("neither sets nor clears a fault.")
    steps = [Step(at, chosen, tuple(names))]
    if "for" in entry:
        lasts = _seconds(entry["for"])
        switches = tuple(name for name in chosen if not FAULTS[name].action)
        if lasts is None or lasts <= 0:
            wrong.append(f"for takes seconds or H:MM:SS, not {entry['for']!r}.")
        elif not switches and not wrong:
            wrong.append("for has no meaning here: what is set happens once.")
        else:
            steps.append(Step(at + lasts, clear=switches))
    return steps


def _instant(at: Any, bases: Mapping[str, float], wrong: list[str]) -> float:
    """:param bases: what offsets count from; without a name: from the step before."""
    seconds = None if isinstance(at, str) else _seconds(at)
    if seconds is not None:
        return bases["start"] + seconds
    if isinstance(at, datetime):  # TOML knows times
        at = at.isoformat()
    if isinstance(at, str) and at.strip():
        match = _OFFSET.fullmatch(at.strip())
        if match is not None:
            base, sign, text = match.groups(default="")
            seconds = _seconds(text) if text else 0.0
            if seconds is not None:
                return bases[base] + (-seconds if sign == "-" else seconds)
        try:
            found = datetime.fromisoformat(at.strip())
        except ValueError:
            pass
        else:
            return (found if found.tzinfo else found.replace(tzinfo=BOGOTA)).timestamp()
    wrong.append(f"at is missing: {_AT}." if at is None else f"at takes {_AT}, not {at!r}.")
    return bases[""]


def _seconds(value: Any) -> float | None:
    """A number, or ``H:MM:SS``, as seconds; ``None``: neither."""
    if isinstance(value, str):
        try:
            parts = [float(part) for part in value.split(":")]
        except ValueError:
            return None
        if len(parts) not in (1, 3):
            return None
        value = sum(part * 60**i for i, part in enumerate(reversed(parts)))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) and abs(value) <= _LONGEST_S else None
