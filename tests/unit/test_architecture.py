"""Who imports whom, read from the syntax trees: downward only, and the pure rooms stay pure."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "enhanced_websocket_service"

BELOW: dict[str, set[str]] = {
    # room -> rooms it may import from, beside itself
    "errors": set(),
    "clock": {"errors"},
    "compatibility": {"errors"},
    "secret_files": set(),
    "log_writer": set(),
    "redaction": set(),
    "telemetry": {"log_writer", "redaction"},
    "failures": {"clock", "telemetry"},
    "watermarks": set(),
    "addresses": {"errors"},
    "market": {"errors"},
    "setting_values": {"clock", "errors", "market"},
    "settings": {
        *("addresses", "clock", "errors", "market", "redaction", "secret_files", "setting_values"),
        "twelvedata",
    },
    "twelvedata": {"clock", "errors", "failures", "market", "redaction", "telemetry"},
    "feeds": {"clock", "errors", "failures", "market", "redaction", "telemetry", "twelvedata"},
    "storage": {
        *("addresses", "clock", "errors", "failures", "market", "redaction", "telemetry"),
        *("twelvedata", "watermarks"),
    },
    "bus": {"addresses", "clock", "errors", "failures", "market", "telemetry", "twelvedata"},
    "l0": {"clock", "errors", "failures", "market", "telemetry", "twelvedata", "storage"},
    "serving": {
        *("clock", "compatibility", "errors", "market", "telemetry", "twelvedata"),
        *("bus", "storage"),
    },
    "service": {
        *("addresses", "clock", "errors", "log_writer", "market", "telemetry", "twelvedata"),
        *("failures", "feeds", "storage", "bus", "l0", "redaction", "secret_files", "serving"),
        "watermarks",
    },
    "client": set(),  # for other programs: it knows the protocol, nothing of the server
    # It watches the others from outside, as processes; storage and bus tell it what they left.
    "chaos": {"clock", "errors", "market", "telemetry", "storage", "bus"},
}
ABOVE_ALL = {"cli", "__main__", "__init__"}
"""Entry points: they may import every room."""
SETTINGS_READERS = {
    "cli",
    "cli.config",
    "cli.console",
    "cli.history",
    "cli.journal",
    "service.awaited",
    "service.build",
    "service.connections",
    "service.demo",
    "service.preflight",
    "service.worlds",
}
"""Where objects are wired (the demo wires more of them); constructors take plain values."""

PURE = (
    *(
        "watermarks.py",
        "market",
        "service/states.py",
        "twelvedata/protocol.py",
        "twelvedata/keys.py",
    ),
    *("twelvedata/ledger.py", "twelvedata/spending.py", "twelvedata/planner.py"),
    *("chaos/tick_table.py", "chaos/journal_account.py", "chaos/following.py"),
    *("chaos/comparison.py", "chaos/ledger.py", "client/account.py", "client/events.py"),
    *("storage/table_forms.py", "storage/column_forms.py"),
    *("serving/weave.py", "serving/catchup.py", "serving/history.py", "serving/travel.py"),
)
"""Decide without I/O, without a loop and without a clock of their own."""
IMPURE_MODULES = {
    *("asyncio", "concurrent", "http", "io", "logging", "multiprocessing", "os", "pathlib"),
    *("queue", "random", "select", "shutil", "signal", "socket", "sqlite3", "ssl", "subprocess"),
    *("tempfile", "threading", "time", "urllib"),
    *("anyio", "asyncpg", "httpx", "psutil", "redis", "structlog", "uvicorn", "watchfiles"),
    *("websockets", "prometheus_client", "fastapi", "starlette"),
}
MACHINE_CLOCK = {
    *("time.time", "time.time_ns", "time.localtime", "time.gmtime"),
    *("datetime.now", "datetime.utcnow", "datetime.today", "date.today"),
    *("datetime.datetime.now", "datetime.datetime.utcnow", "datetime.date.today"),
}

IMPORT_NAMES = {"python_dotenv": "dotenv"}
"""Distributions whose module is called otherwise."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts)


def modules() -> list[Path]:
    return sorted((ROOT / PACKAGE).rglob("*.py"))


def imports(path: Path, *, when_run: bool = False) -> Iterator[tuple[str, int]]:
    """Absolute names of what ``path`` imports, with the line; ``from x import y`` yields ``x.y``.

    :param when_run: leave out what only type checkers import.
    """
    package = [PACKAGE, *path.relative_to(ROOT / PACKAGE).parts[:-1]]
    tree = ast.parse(path.read_text(), str(path))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if when_run and id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                yield f"{stem}.{alias.name}", node.lineno


def test_imports_point_downward() -> None:
    faults = []
    for path in modules():
        module = module_name(path)
        room = module.split(".")[0]
        if room in ABOVE_ALL:
            continue
        assert room in BELOW, f"{module}: a room that the map in this test does not know"
        allowed = BELOW[room] | {room, "__version__"}
        if module in SETTINGS_READERS:
            allowed = allowed | {"settings"}
        for name, line in imports(path):
            top, _, rest = name.partition(".")
            if top == PACKAGE and rest and rest.split(".")[0] not in allowed:
                faults.append(f"{module}:{line} imports {name}")
    assert faults == []


def test_modules_do_not_import_each_other_in_circles() -> None:
    known = {module_name(path).removesuffix(".__init__"): path for path in modules()}
    graph: dict[str, set[str]] = {module: set() for module in known}
    for module, path in known.items():
        for name, _ in imports(path, when_run=True):
            target = name.removeprefix(f"{PACKAGE}.")
            # "from .tick import Tick" names the module, "from . import tick" one level more.
            for candidate in (target, target.rpartition(".")[0]):
                if name.startswith(f"{PACKAGE}.") and candidate in known and candidate != module:
                    graph[module].add(candidate)
                    break
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in graph[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_pure_rooms_do_no_io() -> None:
    faults = []
    for place in PURE:
        path = ROOT / PACKAGE / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            faults += [
                f"{module_name(file)}:{line} imports {name}"
                for name, line in imports(file)
                if name.split(".")[0] in IMPURE_MODULES
            ]
            faults += [
                f"{module_name(file)}:{node.lineno} is a coroutine"
                for node in ast.walk(ast.parse(file.read_text()))
                if isinstance(node, ast.AsyncFunctionDef | ast.Await)
            ]
    assert faults == []


def test_hot_path_is_synchronous() -> None:
    """``on_ticks`` and ``on_time`` cannot interleave because neither can be suspended."""
    tree = ast.parse((ROOT / PACKAGE / "service" / "pipeline.py").read_text())
    suspended = [
        node.lineno for node in ast.walk(tree) if isinstance(node, ast.AsyncFunctionDef | ast.Await)
    ]
    assert suspended == []


def test_business_time_comes_from_the_injected_clock() -> None:
    """The machine's clock is read in clock.py; elsewhere only beside a comment "real time"."""
    faults = []
    for path in modules():
        if module_name(path) == "clock":
            continue
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call | ast.Attribute):
                continue
            target = node.func if isinstance(node, ast.Call) else node
            if ast.unparse(target) in MACHINE_CLOCK:
                around = " ".join(lines[max(0, node.lineno - 3) : node.lineno]).lower()
                if "real time" not in around.replace("_", " "):
                    faults.append(f"{module_name(path)}:{node.lineno} {ast.unparse(target)}")
    assert sorted(set(faults)) == [], "use the Clock, or tell in a comment why it must be real time"


def test_third_party_imports_are_declared_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {
        re.split(r"[<>=!;\[ ]", entry)[0].replace("-", "_").lower()
        for entry in project["dependencies"]
    }
    allowed = {IMPORT_NAMES.get(name, name) for name in declared} | {PACKAGE}
    faults = [
        f"{module_name(path)}:{line} imports {name}"
        for path in modules()
        for name, line in imports(path)
        if (top := name.split(".")[0]) not in sys.stdlib_module_names and top not in allowed
    ]
    assert faults == []


def test_every_declared_dependency_is_used() -> None:
    used_by_uvicorn_or_the_system = {"httptools", "tzdata"}
    source = "\n".join(path.read_text() for path in modules())
    unused = [
        entry
        for entry in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        if (name := re.split(r"[><=;\[ ]", entry)[0].replace("-", "_"))
        not in used_by_uvicorn_or_the_system
        and not re.search(rf"\b{IMPORT_NAMES.get(name, name)}\b", source)
    ]
    assert unused == []


@pytest.mark.parametrize("name", ["utils", "helpers", "common", "core", "managers", "misc"])
def test_no_room_is_a_drawer(name: str) -> None:
    """Code lives where its subject does; a drawer for leftovers has no subject."""
    found = [path for path in (ROOT / PACKAGE).rglob(f"{name}*") if path.suffix in ("", ".py")]
    assert found == []
