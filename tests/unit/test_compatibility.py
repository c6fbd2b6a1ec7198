"""Libraries that do not fit end the program with a sentence, before it could start to refuse clients."""

import ast
import asyncio
import importlib
import inspect
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from enhanced_websocket_service.compatibility import (
    DEPENDENCES,
    Dependence,
    check_libraries,
    provided,
)
from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.feeds.connection import _Connect
from enhanced_websocket_service.serving import pages
from enhanced_websocket_service.serving.frames import FrameProtocol
from enhanced_websocket_service.serving.http_guard import GuardedHttp
from enhanced_websocket_service.serving.server import _Server
from enhanced_websocket_service.serving.strict import StrictProtocol
from enhanced_websocket_service.twelvedata.simulator.sockets import SimulatorSocket
from tests.unit.test_packaging import PROJECT, ROOT

SCRIPT = ROOT / "enhanced_websocket_service.py"
REMEDY = "pip install -r requirements-enhanced-websocket.txt"
OURS = (FrameProtocol, SimulatorSocket, GuardedHttp, _Server, StrictProtocol, _Connect)
"""The classes that are made of a library's."""


def start(*command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The program, with what lies in ``folder`` instead of or beside what is installed."""
    return subprocess.run(
        [sys.executable, *command],
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(folder)},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


# --- what the user sees -------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "demo", "--version"])
def test_a_library_without_a_private_attribute_is_named(command: str, tmp_path: Path) -> None:
    """As uvicorn 0.52.0, with which a service called itself healthy and refused every handshake."""
    (tmp_path / "sitecustomize.py").write_text(
        "from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol\n"
        "del WebSocketsSansIOProtocol.handle_ping\n"
        "del WebSocketsSansIOProtocol.handle_events\n"
    )
    done = start(str(SCRIPT), command, folder=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (said,) = done.stderr.splitlines()
    version = importlib.metadata.version("uvicorn")
    assert f"WebSocketsSansIOProtocol.handle_ping, which uvicorn {version} does not have" in said
    assert REMEDY in said


@pytest.mark.parametrize("start_by", [(str(SCRIPT),), ("-m", "enhanced_websocket_service")])
def test_a_library_without_a_private_module_is_named(
    start_by: tuple[str, ...], tmp_path: Path
) -> None:
    """As uvicorn 0.34, which has no such module."""
    older = tmp_path / "uvicorn"
    older.mkdir()
    (older / "__init__.py").touch()
    information = tmp_path / "uvicorn-0.34.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: uvicorn\nVersion: 0.34.0\n")
    (tmp_path / "enhanced_websocket_service").symlink_to(ROOT / "enhanced_websocket_service")
    done = start(*start_by, folder=tmp_path)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert "which uvicorn 0.34.0 does not have" in said
    assert REMEDY in said


def test_without_any_library_it_says_what_to_install(tmp_path: Path) -> None:
    """Started by a Python outside the virtual environment."""
    done = start("-S", str(SCRIPT), "demo", folder=tmp_path)
    assert done.returncode == 2
    assert [line.partition(".")[0] for line in done.stderr.splitlines()] == [
        "error: This service needs the library uvicorn, which is not installed",
        "error: This service needs the library websockets, which is not installed",
    ]
    assert REMEDY in done.stderr


# --- the list -----------------------------------------------------------------------------------


def test_the_installed_libraries_fit() -> None:
    check_libraries()


@pytest.mark.parametrize(
    ("dependence", "name"),
    [
        (Dependence("uvicorn", "uvicorn.nowhere", "Config"), "uvicorn.nowhere"),
        (Dependence("uvicorn", "uvicorn.config", "Nobody"), "uvicorn.config.Nobody"),
        (Dependence("uvicorn", "uvicorn.config", "Config", ("ssl", "x")), "needs Config.x, which"),
    ],
)
def test_what_is_missing_is_said(dependence: Dependence, name: str) -> None:
    with pytest.raises(ConfigurationError, match=name) as caught:
        check_libraries([dependence])
    assert len(caught.value.faults) == 1


def test_what_is_taken_from_inside_a_library_bounds_it() -> None:
    bounds = {one.name: one.specifier for one in map(Requirement, PROJECT["dependencies"])}
    for name in {one.distribution for one in DEPENDENCES}:
        assert {bound.operator for bound in bounds[name]} == {">=", "<"}, name


def used() -> Iterator[tuple[type, str]]:
    """Class of a library and name, for each name that one of our classes takes from inside it."""
    everything = set(dir(asyncio.Protocol))
    for ours in OURS:
        theirs = ours.__base__
        assert theirs is not None
        names = vars(ours).keys() - {"__module__", "__doc__", "__init__"}
        inside = defaultdict(set)  # of self.conn and the like
        for node in ast.walk(ast.parse(inspect.getsource(ours))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names |= {node.attr} if node.value.id == "self" else set()
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
                inside[node.value.attr].add(node.attr)
        yield from ((theirs, name) for name in names & provided(theirs) - everything)
        if "conn" in names:
            yield from ((StrictProtocol, name) for name in inside["conn"])


def test_the_list_is_complete() -> None:
    listed = defaultdict(set)
    for one in DEPENDENCES:
        listed[getattr(importlib.import_module(one.module), one.owner)] |= set(one.names)
    listed[StrictProtocol] = listed[StrictProtocol.__base__]
    assert [(owner.__name__, name) for owner, name in used() if name not in listed[owner]] == []


@pytest.mark.parametrize("ours", OURS)
def test_what_overrides_takes_the_same_parameters(ours: type) -> None:
    theirs = ours.__base__
    compared = 0
    for name, member in vars(ours).items():
        other = getattr(theirs, name, None)
        if inspect.isfunction(member) and inspect.isfunction(other) and name != "__init__":
            assert (
                inspect.signature(member).parameters.keys()
                == inspect.signature(other).parameters.keys()
            )
            compared += 1
    assert compared


def test_a_library_without_the_file_that_the_dashboard_needs_is_named() -> None:
    """Seen at the start; else the page would stay blank."""
    with pytest.raises(
        ConfigurationError, match=r"needs package_data/none\.js, which plotly [\d.]+ does"
    ):
        pages._package_file("plotly", "package_data", "none.js")
