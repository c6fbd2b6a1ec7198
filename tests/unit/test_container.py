"""The container: compose and Dockerfile are parsed, their steps carried out without an engine."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from enhanced_websocket_service.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.enhanced-websocket.yml"
DOCKERFILE = ROOT / "Dockerfile.enhanced-websocket"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# --- compose ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


def test_compose_has_the_names_the_requirements_use(compose: dict[str, Any]) -> None:
    service = compose["services"]["enhanced-websocket"]
    assert service["container_name"] == "enhanced-websocket-service"
    assert service["image"] == "enhanced-websocket-service"
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert service["env_file"] == [".env"]
    assert any(port.endswith(":8080") for port in service["ports"])
    assert "/data/ready-signals:/data/ready-signals" in service["volumes"]


def test_compose_configures_the_service_it_starts(compose: dict[str, Any]) -> None:
    services = compose["services"]
    service = services["enhanced-websocket"]
    environ = {
        name: re.sub(r"\$\{\w+:-(\w+)\}", r"\1", str(value))
        for name, value in service["environment"].items()
    }
    loaded = load_settings(environ)
    settings = loaded.settings
    assert loaded.warnings == ()
    assert settings.host == "0.0.0.0"
    assert settings.log_dir is not None
    database = services["postgres"]["environment"]
    assert settings.database_url is not None
    assert settings.database_url.endswith(f"@postgres:5432/{database['POSTGRES_DB']}")
    assert f"//{database['POSTGRES_USER']}:" in settings.database_url
    assert settings.redis_url == "redis://redis:6379/0"
    # What it writes to lasts, and a drain is not cut short.
    targets = {volume.split(":")[-1] for volume in service["volumes"]}
    assert {str(settings.state_dir), str(settings.backup_dir), str(settings.log_dir)} <= targets
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.shutdown_timeout_s


def test_compose_waits_for_healthy_parts_and_publishes_only_the_service(
    compose: dict[str, Any],
) -> None:
    services = compose["services"]
    for name, dependency in services["enhanced-websocket"]["depends_on"].items():
        if dependency["condition"] == "service_healthy":
            assert services[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
    assert [name for name, service in services.items() if "ports" in service] == [
        "enhanced-websocket"
    ]
    named = {
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", [])
        if not volume.startswith((".", "/"))
    }
    assert named == set(compose["volumes"])
    owner = re.search(r"^USER (\S+)$", DOCKERFILE.read_text(), re.M)
    assert owner is not None
    assert services["folders"]["entrypoint"][:2] == ["chown", owner[1]]


# --- Dockerfile ---------------------------------------------------------------------------------


def instructions() -> list[list[tuple[str, str]]]:
    """Stages of the Dockerfile, each a list of (instruction, argument)."""
    stages: list[list[tuple[str, str]]] = []
    text = "\n".join(
        line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")
    )
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, argument = line.strip().partition(" ")
            if name == "FROM":
                stages.append([])
            stages[-1].append((name, " ".join(argument.split())))
    return stages


def of(stage: list[tuple[str, str]], name: str) -> list[str]:
    return [argument for instruction, argument in stage if instruction == name]


def ignored(path: str) -> bool:
    """What .dockerignore says: the last matching pattern wins, a folder's rule holds below it."""
    verdict = False
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if not pattern or pattern.startswith("#"):
            continue
        keep, glob = pattern.startswith("!"), pattern.removeprefix("!").rstrip("/")
        names = [path, *(str(parent) for parent in Path(path).parents)]
        bare = glob.removeprefix("**/")
        if any(fnmatch(name, glob) or fnmatch(Path(name).name, bare) for name in names):
            verdict = not keep
    return verdict


def test_dockerfile_has_two_stages_and_does_not_end_as_root() -> None:
    build, final = instructions()
    assert any("--require-hashes" in run for run in of(build, "RUN"))
    assert of(build, "COPY")[0].split()[0] == "deploy/requirements-runtime.txt"
    (user,) = of(final, "USER")
    assert int(user.split(":")[0]) > 0
    assert f"--uid {user.split(':')[0]}" in of(final, "RUN")[0]
    (healthcheck,) = of(final, "HEALTHCHECK")
    assert "curl" not in healthcheck
    major, minor = re.findall(r"python:(\d+)\.(\d+)", of(final, "FROM")[0])[0]
    assert Requirement(f"x{PROJECT['requires-python']}").specifier.contains(f"{major}.{minor}.0")


def test_dockerfile_environment_is_understood() -> None:
    _, final = instructions()
    environ = dict(pair.split("=", 1) for pair in shlex.split(of(final, "ENV")[0]))
    ours = {k: v for k, v in environ.items() if not k.startswith(("PATH", "PYTHON", "XDG_"))}
    assert {name.upper() for name in Settings.model_fields} >= ours.keys()
    settings = load_settings(ours).settings
    assert settings.host == "0.0.0.0"
    assert of(final, "EXPOSE") == [str(settings.port)]
    made = of(final, "RUN")[0]
    assert str(settings.state_dir) in made
    assert str(settings.backup_dir) in made


def test_the_files_of_the_image_run_alone(tmp_path: Path) -> None:
    """Executes the COPY steps into an empty folder and asks the program there for its help."""
    _, final = instructions()
    for step in of(final, "COPY"):
        if step.startswith("--from="):
            continue
        *sources, target = step.split()
        for source in sources:
            assert not ignored(source.rstrip("/")), f".dockerignore hides {source}"
            destination = tmp_path / target
            if (ROOT / source).is_dir():
                shutil.copytree(
                    ROOT / source,
                    destination,
                    ignore=lambda folder, names: [
                        n for n in names if ignored(str((Path(folder) / n).relative_to(ROOT)))
                    ],
                )
            else:
                destination.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, destination)
    tmp_path.chmod(0o755)
    (entrypoint,) = (json.loads(argument) for argument in of(final, "ENTRYPOINT"))
    environ = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COV_CORE_SOURCE")}
    done = subprocess.run(
        [sys.executable, *entrypoint[1:], "--help"],
        cwd=tmp_path,
        env=environ | {"PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for command in ("run", "demo", "simulate", "l0", "config"):
        assert command in done.stdout
    assert not list(tmp_path.rglob("__pycache__"))


@pytest.mark.parametrize("name", [".env", ".git", "tests", "README.md", "data"])
def test_dockerignore_keeps_the_rest_out(name: str) -> None:
    assert ignored(name)


# --- health check -------------------------------------------------------------------------------


@contextmanager
def health_server(status: int, body: str) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/health"
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            del format, args  # quiet: the base class writes to standard error

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, name="health-server")
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def healthcheck(port: int) -> subprocess.CompletedProcess[str]:
    environ = {k: v for k, v in os.environ.items() if k != "SSL_CERT_PATH"}
    return subprocess.run(
        [sys.executable, ROOT / "deploy" / "healthcheck.py"],
        env=environ | {"PORT": str(port)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (200, '{"status": "healthy", "service_status": "active"}', 0),
        (200, '{"status": "degraded", "service_status": "waiting_l0"}', 0),
        (503, '{"status": "unhealthy", "service_status": "error"}', 1),
        (200, "not json", 1),
        (200, "[]", 1),
    ],
)
def test_healthcheck_follows_the_answer(status: int, body: str, code: int) -> None:
    with health_server(status, body) as port:
        done = healthcheck(port)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_healthcheck_fails_when_nobody_answers() -> None:
    with health_server(200, "{}") as port:
        pass
    done = healthcheck(port)
    assert done.returncode == 1
    assert "no answer" in done.stderr
