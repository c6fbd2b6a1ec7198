"""Files and commands of the document that need neither a database nor a running service."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from enhanced_websocket_service.clock import SystemClock
from enhanced_websocket_service.l0 import readiness
from enhanced_websocket_service.l0.backup import BackupSet
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.service.states import ServiceState
from enhanced_websocket_service.settings import load_settings

from . import facts

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / ".env.enhanced-websocket"
TESTS = ROOT / "tests"


def plain_environment() -> dict[str, str]:
    """This process's environment without anything that configures the service or the test run."""
    ours = re.compile(
        r"^(DATABASE_URL|REDIS_URL|EMBEDDED|PROVIDER|VIRTUAL_CLOCK|.*_DIR|TWELVEDATA|API_KEY|PYTEST|COV)"
    )
    return {name: value for name, value in os.environ.items() if not ours.match(name)}


@pytest.mark.parametrize("name", facts.FILES)
def test_file_exists(name: str) -> None:
    path = ROOT / name
    assert path.is_dir() if name.endswith("/") else path.stat().st_size > 0


def test_template_has_every_variable() -> None:
    names = set(re.findall(r"^#?([A-Z0-9_]+)=", TEMPLATE.read_text(), re.M))
    sixteen = {f"TWELVEDATA_API_KEY_G{group}_{n}" for group in (1, 2) for n in range(1, 9)}
    assert {*facts.ENVIRONMENT, *facts.MENTIONED_VARIABLES, *sixteen} <= names


def test_copied_template_is_a_valid_configuration(tmp_path: Path) -> None:
    """``cp .env.enhanced-websocket .env``, edited as the document shows it."""
    text = TEMPLATE.read_text()
    for name, value in facts.ENVIRONMENT.items():
        value = value.replace("your_real_api_key_here", "0123456789abcdef")
        text, count = re.subn(rf"^#?{name}=.*$", f"{name}={value}", text, flags=re.M)
        assert count == 1, name
    dotenv = tmp_path / ".env"
    dotenv.write_text(text)
    settings = load_settings({}, dotenv=dotenv).settings
    assert settings.database_url == facts.ENVIRONMENT["DATABASE_URL"]
    assert settings.redis_url == facts.ENVIRONMENT["REDIS_URL"]
    assert str(settings.ready_signals_dir) == facts.ENVIRONMENT["READY_SIGNALS_DIR"]
    assert str(settings.backup_dir) == facts.ENVIRONMENT["BACKUP_DIR"]
    # Both keys are the same here, and one key counts once.
    assert [key.label for key in settings.keys] == ["G1_1"]


def test_exported_placeholder_is_refused_with_a_reason(tmp_path: Path) -> None:
    """Step 5 to the letter, placeholder key included: a sentence and exit code 2, no trace."""
    done = subprocess.run(
        [sys.executable, ROOT / "enhanced_websocket_service.py"],
        cwd=tmp_path,
        env=plain_environment()
        | {
            "DATABASE_URL": facts.ENVIRONMENT["DATABASE_URL"],
            "REDIS_URL": facts.ENVIRONMENT["REDIS_URL"],
            "TWELVEDATA_API_KEY_G1_1": "your_api_key_here",
            "STATE_DIR": str(tmp_path),
            "BACKUP_DIR": str(tmp_path),
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "TWELVEDATA_API_KEY_G1_1" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        [sys.executable, "enhanced_websocket_service.py"],
        [sys.executable, "-m", "enhanced_websocket_service"],
    ],
    ids=["script", "module"],
)
def test_the_program_starts_by_both_names(command: list[str]) -> None:
    done = subprocess.run(
        [*command, "--help"],
        cwd=ROOT,
        env=plain_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_script_and_package_share_their_name() -> None:
    """A package wins over a module of the same name in one folder, so both can be used."""
    module = importlib.import_module("enhanced_websocket_service")
    assert module.__file__ is not None
    assert Path(module.__file__) == ROOT / "enhanced_websocket_service" / "__init__.py"
    assert module.__version__ == facts.SAMPLES["/health"]["version"]


def test_states() -> None:
    assert [state.name for state in ServiceState] == list(facts.STATES)
    assert [state.value for state in ServiceState] == [name.lower() for name in facts.STATES]


def test_flag_of_the_document_counts(tmp_path: Path) -> None:
    assert readiness.FILE_NAME == facts.FLAG_FILE
    flag = readiness.ReadyFlag(tmp_path, SystemClock())
    command = f"echo '{json.dumps(facts.FLAG_SAMPLE)}' > {facts.FLAG_FILE}"
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=60)
    seen = flag.read()
    assert seen.ready
    assert seen.timestamp == facts.FLAG_SAMPLE["timestamp"]


def test_log_says_what_the_document_greps_for(tmp_path: Path, database_dsn: str) -> None:
    """``docker logs NAME | grep PHRASE`` reads standard output alone; standard error passes the pipe by."""
    (tmp_path / facts.FLAG_FILE).write_text(json.dumps(facts.FLAG_SAMPLE))
    with subprocess.Popen(
        [sys.executable, ROOT / "enhanced_websocket_service.py"],
        cwd=tmp_path,
        env=plain_environment()
        | {
            "DATABASE_URL": database_dsn,
            "TWELVEDATA_API_KEY_G1_1": "a-key",
            "TWELVEDATA_REST_URL": "http://127.0.0.1:9",
            "TWELVEDATA_WS_URL": "ws://127.0.0.1:9",
            "STATE_DIR": str(tmp_path),
            "BACKUP_DIR": str(tmp_path),
            "READY_SIGNALS_DIR": str(tmp_path),
            "PORT": "0",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            # As grep does; the test's time-out bounds it.
            assert any(facts.LOG_PHRASE in line for line in process.stdout)
            process.terminate()
            process.stdout.read()
            assert process.stderr.read() == ""
        except BaseException:  # also a time-out: leaving the block would wait for its end
            process.kill()
            raise
    assert process.returncode == 0


def test_backup_files_have_the_names_of_the_document(tmp_path: Path) -> None:
    backup = BackupSet(tmp_path, "USDCOP", TradingCalendar())
    assert (backup.parquet.name, backup.metadata.name) == facts.BACKUP_FILES
    assert backup.parquet.parent == backup.metadata.parent == tmp_path


def test_test_libraries_come_with_the_requirements_file() -> None:
    text = (ROOT / "requirements-enhanced-websocket.txt").read_text()
    for name in ("pytest", "pytest-asyncio", "pytest-cov", "httpx"):
        assert re.search(rf"^{name}==", text, re.M), name


def test_coverage_command_measures_the_package(tmp_path: Path) -> None:
    """``pytest --cov=enhanced_websocket_service``, on one small file: it works beside our options."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--cov=enhanced_websocket_service"),
            *("-n", "1", "-p", "no:cacheprovider", "tests/unit/test_clock.py"),
        ],
        cwd=ROOT,
        env=plain_environment() | {"COVERAGE_FILE": str(tmp_path / "coverage")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    measured = re.search(r"^enhanced_websocket_service/clock\.py\s+(\d+)", done.stdout, re.M)
    assert measured is not None
    assert int(measured[1]) > 0


@pytest.mark.parametrize(
    "place", sorted({p for p in facts.COMMANDS.values() if p.find("test") > 0})
)
def test_every_command_names_a_test_that_exists(place: str) -> None:
    if place == "unit.test_container":
        assert (TESTS / "unit" / "test_container.py").is_file()
    elif place == "e2e.test_requirements_walk":
        assert (TESTS / "e2e" / "test_requirements_walk.py").is_file()
    else:
        module, name = place.split(".")
        assert f"def {name}(" in (TESTS / "requirements" / f"{module}.py").read_text()
