"""Rules of the repository that no linter knows. Each failure names the file and the line."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[2]
SKIPPED_FOLDERS = {".git", ".venv", "__pycache__", "build", "dist", "htmlcov", "logs"}

# Written in pieces, so that this file does not break the rules it checks.
REGISTRY_HOSTS = [
    *("py" + "pi.org", "python" + "hosted.org", "registry.npm" + "js"),
    *("deb.debian" + ".org", "security.debian" + ".org"),
]
MACHINE_PATHS = re.compile(
    r"(?<![\w.~}-])/(?:ro" + r"ot|wo" + r"rk)/|shared/ho" + r"oks|fa" + r"rm-\w+"
)
UNFINISHED = re.compile("TO" + "DO|FIX" + "ME|NotImple" + "mented")
SLEEP = re.compile(r"\b(?:time|asyncio|anyio)\.sl" + r"eep\((?:0?\.\d|[1-9])")


@cache
def files() -> tuple[Path, ...]:
    """What is tracked, or would be; every file where the repository's history is absent."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        paths = [
            path
            for path in ROOT.rglob("*")
            if not SKIPPED_FOLDERS & set(path.relative_to(ROOT).parts)
            and not any(part.endswith("_cache") for part in path.relative_to(ROOT).parts)
        ]
    return tuple(sorted(path for path in paths if path.is_file()))


def python_files() -> list[Path]:
    return [path for path in files() if path.suffix == ".py"]


def hits(pattern: re.Pattern[str], paths: list[Path] | tuple[Path, ...]) -> list[str]:
    found = []
    for path in paths:
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        name = path.relative_to(ROOT)
        found += [f"{name}:{i}" for i, line in enumerate(lines, 1) if pattern.search(line)]
    return found


def test_no_file_names_a_package_registry() -> None:
    """Whoever installs decides where from."""
    assert hits(re.compile("|".join(map(re.escape, REGISTRY_HOSTS))), files()) == []


def test_no_file_names_a_path_of_the_machine_it_was_written_on() -> None:
    assert hits(MACHINE_PATHS, files()) == []


def test_nothing_is_unfinished() -> None:
    assert hits(UNFINISHED, python_files()) == []


def test_files_stay_small() -> None:
    large = [str(path) for path in files() if path.stat().st_size > 1024 * 1024]
    assert large == [], "data belongs elsewhere"
    long = {
        str(path.relative_to(ROOT)): count
        for path in python_files()
        if (count := len(path.read_text().splitlines())) > 600
    }
    assert long == {}, "is there a second room in each?"


def test_tests_do_not_sleep() -> None:
    """A test waits for a condition; a pause is either too short or too long.

    Where another process must be asked again and again, the interval of that poll has a name.
    """
    assert hits(SLEEP, [path for path in python_files() if "tests" in path.parts]) == []


def broad_excepts(source: str) -> list[int]:
    """Lines of handlers that catch everything, neither re-raise it nor say why beside it."""
    lines = source.splitlines()
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler) or isinstance(node.body[-1], ast.Raise):
            continue
        caught = "BaseException" if node.type is None else ast.unparse(node.type)
        nearby = lines[max(0, node.lineno - 2) : node.body[0].lineno]
        if re.search(r"\b(Base)?Exception\b", caught) and not any("#" in line for line in nearby):
            found.append(node.lineno)
    return found


def test_broad_excepts_give_their_reason() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in python_files()
        for line in broad_excepts(path.read_text())
    ]
    assert faults == []


def test_test_folders_are_packages() -> None:
    """Two files of one name in two folders would otherwise shadow each other."""
    folders = {path.parent for path in python_files() if "tests" in path.relative_to(ROOT).parts}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_secrets_and_no_vendor_data_are_tracked() -> None:
    names = [path.relative_to(ROOT) for path in files()]
    assert Path(".env") not in names
    data = [str(name) for name in names if name.suffix in (".parquet", ".gz", ".enc", ".pem")]
    assert data == []


@pytest.mark.parametrize(
    ("pattern", "bad", "good"),
    [
        (MACHINE_PATHS, "cd /wo" + "rk/main", "/var/lib/network/x homework/a"),
        (SLEEP, "await asyncio.sl" + "eep(0.1)", "await asyncio.sl" + "eep(POLL_S)"),
    ],
)
def test_the_rules_can_fail(pattern: re.Pattern[str], bad: str, good: str) -> None:
    assert pattern.search(bad)
    assert not pattern.search(good)


def test_the_rule_on_broad_excepts_can_fail() -> None:
    assert broad_excepts("try: f()\nexcept Exception as e:\n    log(e)") == [2]
    assert broad_excepts("try: f()\nexcept:\n    pass") == [2]
    assert broad_excepts("try: f()\nexcept (OSError, Exception):\n    pass") == [2]
    assert broad_excepts("try: f()\nexcept Exception:  # the border of the process\n    pass") == []
    assert broad_excepts("try: f()\nexcept BaseException:\n    undo()\n    raise") == []
    assert broad_excepts("try: f()\nexcept OSError:\n    pass") == []


def test_no_property_test_fails_because_the_machine_is_busy() -> None:
    """conftest.py loads the one profile; a deadline beside it would bring the fault back."""
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check
    others = [*(ROOT / "tests").rglob("*.py")]
    others.remove(ROOT / "tests" / "conftest.py")
    assert hits(re.compile(r"\bdeadline[=]"), others) == []
