"""``config check`` and ``run`` judge alike: each kind of broken setting once, as real processes."""

import fcntl
import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from enhanced_websocket_service.storage.migrate import migrations
from tests.foreign_owner import execute

from .forked_commands import SERVING, Forker, forker
from .playback import Process, free_port

KEY = "0123456789abcdef0123456789abcdef"


@dataclass
class Place:
    """A folder with settings with which ``run`` runs, and what must be closed after the test."""

    folder: Path
    environ: dict[str, str]
    held: ExitStack = field(default_factory=ExitStack)

    def blocked(self) -> str:
        """A folder that nobody can make."""
        (self.folder / "file").write_text("not a folder")
        return str(self.folder / "file" / "below")

    def certificate(self, name: str = "own") -> tuple[Path, Path]:
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ]
        command += ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-keyout", key, "-out", cert]
        subprocess.run(command, check=True, capture_output=True)
        return cert, key


@pytest.fixture(scope="module")
def commands() -> Iterator[Forker]:
    with forker() as started:
        yield started


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    folders = {
        f"{name}_DIR": str(tmp_path / name.lower())
        for name in ("STATE", "BACKUP", "READY_SIGNALS", "LOG")
    }
    made = Place(
        tmp_path,
        {
            **folders,
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "TWELVEDATA_API_KEY_G1_1": KEY,
            # Nothing answers there: what a command waits for must not hold it up here.
            "DATABASE_URL": f"postgresql://me:hunter2@127.0.0.1:{free_port()}/usdcop_trading",
            "TWELVEDATA_REST_URL": f"http://127.0.0.1:{free_port()}",
            "TWELVEDATA_WS_URL": f"ws://127.0.0.1:{free_port()}",
            "PORT": str(free_port()),
        },
    )
    Path(folders["READY_SIGNALS_DIR"]).mkdir()
    with made.held:
        yield made


def taken_port(place: Place) -> None:
    other = place.held.enter_context(socket.socket())
    other.bind(("127.0.0.1", 0))
    other.listen()
    place.environ["PORT"] = str(other.getsockname()[1])


def held_state(place: Place, lock: str = "journal/LOCK", says: str = "4242\n") -> None:
    path = Path(place.environ["STATE_DIR"]) / lock
    path.parent.mkdir(parents=True)
    file = place.held.enter_context(path.open("w"))
    print(says, file=file, end="", flush=True)
    fcntl.flock(file, fcntl.LOCK_EX)


def held_servers(place: Place) -> None:
    del place.environ["DATABASE_URL"]
    place.environ["EMBEDDED"] = "1"
    held_state(place, "embedded/owner.lock", '{"pid": 4242, "created": 1.0}')


def broken_epoch(place: Place) -> None:
    (Path(place.environ["STATE_DIR"]) / "epoch").mkdir(parents=True)


def journal_that_leads_nowhere(place: Place) -> None:
    state = Path(place.environ["STATE_DIR"])
    state.mkdir()
    (state / "journal").symlink_to("/nowhere/journal")


def lock_that_is_a_folder(place: Place) -> None:
    (Path(place.environ["STATE_DIR"]) / "journal" / "LOCK").mkdir(parents=True)


def state_that_is_a_file(place: Place) -> None:
    Path(place.environ["STATE_DIR"]).touch()


def pipe_for(*names: str) -> Callable[[Place], None]:
    """A named pipe into which nobody writes: whoever reads it waits for ever."""

    def break_it(place: Place) -> None:
        path = place.folder / "pipe"
        os.mkfifo(path)
        place.environ.update(dict.fromkeys(names, str(path)))

    return break_it


def proxy_by_socks(place: Place) -> None:
    place.environ |= {
        "ALL_PROXY": "socks5://me:hunter2@127.0.0.1:1080",
        "TWELVEDATA_REST_URL": "http://relay.example.invalid",
    }


def foreign_certificate(place: Place) -> None:
    place.environ["SSL_CERT_PATH"] = str(place.certificate()[0])
    place.environ["SSL_KEY_PATH"] = str(place.certificate("other")[1])


def no_certificate(place: Place) -> None:
    cert = place.folder / "cert.pem"
    cert.write_text("This is no certificate.")
    place.environ |= {"SSL_CERT_PATH": str(cert), "SSL_KEY_PATH": str(cert)}


def certificate_without_file(place: Place) -> None:
    place.environ |= {"SSL_CERT_PATH": "/nowhere.pem", "SSL_KEY_PATH": str(place.folder)}


def setting(name: str, value: str) -> Callable[[Place], None]:
    return lambda place: place.environ.update({name: value})


def unset(name: str) -> Callable[[Place], None]:
    return lambda place: place.environ.pop(name) and None


def below_a_file(name: str) -> Callable[[Place], None]:
    return lambda place: place.environ.update({name: place.blocked()})


def both(name: str) -> Callable[[Place], None]:
    return lambda place: place.environ.update({f"{name}_FILE": str(place.folder / "secret")})


FAULTS: dict[str, tuple[Callable[[Place], None], str]] = {
    # what is broken -> how, and what both must name
    "no key": (unset("TWELVEDATA_API_KEY_G1_1"), "TWELVEDATA_API_KEY_G1_1"),
    "placeholder key": (setting("TWELVEDATA_API_KEY_G1_1", "your_real_api_key"), "_G1_1"),
    "impossible key": (setting("TWELVEDATA_API_KEY_G1_2", "k\u00e9y"), "TWELVEDATA_API_KEY_G1_2"),
    "no database": (unset("DATABASE_URL"), "DATABASE_URL"),
    "foreign database": (setting("DATABASE_URL", "mysql://u:hunter2@h/x"), "DATABASE_URL"),
    "bare @ in a password": (
        setting("DATABASE_URL", "postgresql://u:hun@ter2@h/x"),
        "DATABASE_URL",
    ),
    "unknown sslmode": (
        setting("DATABASE_URL", "postgresql://u:hunter2@h/x?sslmode=always"),
        "DATABASE_URL",
    ),
    "no root certificate": (
        setting("DATABASE_URL", "postgresql://u:hunter2@h/x?sslmode=verify-full"),
        "root.crt",
    ),
    "misspelt Redis": (setting("REDIS_URL", "http://:hunter2@h/0"), "REDIS_URL"),
    "port of Redis": (setting("REDIS_URL", "redis://:hunter2@h:port/0"), "REDIS_URL"),
    "parameter of Redis": (setting("REDIS_URL", "redis://:hunter2@h/0?pool=1"), "REDIS_URL"),
    "secret set twice": (both("DATABASE_URL"), "DATABASE_URL_FILE"),
    "no secret file": (setting("REDIS_URL_FILE", "/nowhere/redis"), "/nowhere/redis"),
    "vendor's REST": (setting("TWELVEDATA_REST_URL", "ftp://h/"), "TWELVEDATA_REST_URL"),
    "vendor's stream": (setting("TWELVEDATA_WS_URL", "https://h/"), "TWELVEDATA_WS_URL"),
    "vendor's REST, unprintable": (setting("TWELVEDATA_REST_URL", "http://h/\x01"), "_REST_URL"),
    "vendor's stream, a token as user": (
        setting("TWELVEDATA_WS_URL", "ws://hunter2@h/"),
        "TWELVEDATA_WS_URL",
    ),
    "vendor's stream, a fragment": (
        setting("TWELVEDATA_WS_URL", "ws://h/?apikey=hunter2#x"),
        "TWELVEDATA_WS_URL",
    ),
    "proxy of the environment": (proxy_by_socks, "ALL_PROXY"),
    "host of the database": (
        setting("DATABASE_URL", f"postgresql://u:hunter2@{'a' * 70}.invalid/x"),
        "DATABASE_URL",
    ),
    "secret for the name of its file": (
        setting("REDIS_URL_FILE", "redis://:hunter2@h/0"),
        "REDIS_URL_FILE",
    ),
    "key for the name of its file": (
        setting("TWELVEDATA_API_KEY_G1_2_FILE", KEY[::-1] + "hunter2"),
        "TWELVEDATA_API_KEY_G1_2_FILE",
    ),
    "secret in a pipe": (pipe_for("REDIS_URL_FILE"), "REDIS_URL_FILE"),
    "certificate in a pipe": (pipe_for("SSL_CERT_PATH", "SSL_KEY_PATH"), "SSL_CERT_PATH"),
    "no finite number": (setting("SHUTDOWN_TIMEOUT_S", "inf"), "SHUTDOWN_TIMEOUT_S"),
    "endless speed": (setting("VIRTUAL_CLOCK", "2025-06-03T07:55:00-05:00,inf"), "VIRTUAL_CLOCK"),
    "clock from nowhere": (
        setting("VIRTUAL_CLOCK", "2025-06-03T07:55:00-05:00,60,-1e300,2"),
        "VIRTUAL_CLOCK",
    ),
    "window of centuries": (setting("L0_WINDOW_DAYS", "1000000000000"), "L0_WINDOW_DAYS"),
    "no number": (setting("PORT", "eighty"), "PORT"),
    "number too large": (setting("PORT", "65536"), "PORT"),
    "no word of a list": (setting("FEED_MODE", "pigeon"), "FEED_MODE"),
    "symbol": (setting("SYMBOLS", "usd/cop"), "SYMBOLS"),
    "time of day": (setting("MARKET_OPEN", "late"), "MARKET_OPEN"),
    "closing before opening": (setting("MARKET_CLOSE", "07:00"), "MARKET_CLOSE"),
    "date": (setting("EXTRA_CLOSURES", "yesterday"), "EXTRA_CLOSURES"),
    "clock": (setting("VIRTUAL_CLOCK", "tomorrow"), "VIRTUAL_CLOCK"),
    "origin": (setting("CORS_ORIGINS", "example.com"), "CORS_ORIGINS"),
    "proxy": (setting("TRUSTED_PROXIES", "proxy"), "TRUSTED_PROXIES"),
    "provider": (setting("PROVIDER", "Twelve Data"), "PROVIDER"),
    "certificate without key": (setting("SSL_CERT_PATH", "/nowhere.pem"), "SSL_KEY_PATH"),
    "certificate files": (certificate_without_file, "/nowhere.pem"),
    "certificate of another key": (foreign_certificate, "SSL_KEY_PATH"),
    "no certificate in the file": (no_certificate, "cert.pem"),
    "taken port": (taken_port, "PORT"),
    "host of another machine": (setting("HOST", "192.0.2.1"), "192.0.2.1"),
    "unknown host": (setting("HOST", "nowhere.invalid"), "nowhere.invalid"),
    "state folder": (below_a_file("STATE_DIR"), "STATE_DIR"),
    "state file": (state_that_is_a_file, "STATE_DIR"),
    "state folder with a long name": (setting("STATE_DIR", f"/tmp/{'a' * 300}"), "STATE_DIR"),
    "journal that leads nowhere": (journal_that_leads_nowhere, "STATE_DIR"),
    "lock that is a folder": (lock_that_is_a_folder, "LOCK"),
    "state folder of the kernel": (setting("STATE_DIR", "/proc/ews"), "/proc/ews"),
    "state held by the service": (held_state, "process 4242"),
    "state held by private servers": (held_servers, "process 4242"),
    "epoch": (broken_epoch, "epoch"),
}

WAITS: dict[str, tuple[Callable[[Place], None], str]] = {
    # what run does without or waits for -> how, and what config check warns of
    "database away": (lambda _place: None, "DATABASE_URL"),
    "vendor away": (lambda _place: None, "TWELVEDATA_REST_URL"),
    "no flag": (lambda _place: None, "l0_ready.flag"),
    "Redis away": (
        setting("REDIS_URL", f"redis://:hunter2@127.0.0.1:{free_port()}/0"),
        "REDIS_URL",
    ),
    "file of the database's": (
        setting("DATABASE_URL", "postgresql://127.0.0.1:1/x?sslmode=require&sslrootcert=/nowhere"),
        "DATABASE_URL",
    ),
    "folder for a .env": (lambda place: (place.folder / ".env").mkdir(), ".env is ignored"),
    "folder of backups": (below_a_file("BACKUP_DIR"), "BACKUP_DIR"),
    "folder of the flag": (below_a_file("READY_SIGNALS_DIR"), "READY_SIGNALS_DIR"),
    "folder of logs": (below_a_file("LOG_DIR"), "LOG_DIR"),
    "every page": (setting("CORS_ORIGINS", "*"), "CORS_ORIGINS"),
    "every interface": (setting("HOST", "0.0.0.0"), "HOST=0.0.0.0"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_both_refuse_the_same_for_the_same_reason(
    name: str, commands: Forker, place: Place
) -> None:
    broken, named = FAULTS[name]
    broken(place)
    ran = commands.run("run", environ=place.environ, folder=place.folder)
    # Offline no name server is asked; everything else is judged without the network anyway.
    offline = () if name == "unknown host" else ("--offline",)
    checked = commands.run("config", "check", *offline, environ=place.environ, folder=place.folder)
    assert (ran["code"], checked["code"]) == (2, 2), (ran, checked)
    for answer in (ran, checked):
        assert named in answer["stderr"]
        assert "Traceback" not in answer["stderr"]
        assert "hunter2" not in answer["stdout"] + answer["stderr"]
        assert KEY not in answer["stdout"] + answer["stderr"]
    told = [line for line in checked["stderr"].splitlines() if line.startswith("error: ")]
    assert told == [line for line in ran["stderr"].splitlines() if line.startswith("error: ")]
    assert f"not ready: {len(told)} fault" in checked["stdout"]


@pytest.mark.parametrize("name", WAITS)
def test_what_run_puts_up_with_is_a_warning(name: str, commands: Forker, place: Place) -> None:
    broken, named = WAITS[name]
    broken(place)
    checked = commands.run("config", "check", environ=place.environ, folder=place.folder)
    assert checked["code"] == 0, checked
    warnings = [line for line in checked["stdout"].splitlines() if line.startswith("warning: ")]
    assert any(named in line for line in warnings), warnings
    assert "ready to run: 1 key in 1 group, PostgreSQL at 127.0.0.1:" in checked["stdout"]
    assert not Path(place.environ["STATE_DIR"]).exists()
    ran = commands.run("run", environ=place.environ, folder=place.folder)
    assert ran["code"] is None, ran


async def test_tables_that_cannot_hold_what_is_written_are_a_fault(
    commands: Forker, place: Place, database_dsn: str
) -> None:
    """``run`` waits until they are mended; whoever asks before is told what mends them."""
    tables = migrations()[0].sql + "ALTER TABLE market_data ALTER datetime TYPE timestamp;"
    await execute(database_dsn, tables)
    place.environ["DATABASE_URL"] = database_dsn
    checked = commands.run("config", "check", environ=place.environ, folder=place.folder)
    assert checked["code"] == 2, checked
    assert "public.market_data.datetime is TIMESTAMP WITHOUT TIME ZONE" in checked["stderr"]
    asked = commands.run("db", "migrate", environ=place.environ, folder=place.folder)
    assert asked["code"] == 1
    cure = asked["stderr"].partition("To mend it: ")[2].partition(" or ")[0]
    await execute(database_dsn, cure)
    done = commands.run("db", "migrate", environ=place.environ, folder=place.folder)
    assert done["code"] == 0, done
    checked = commands.run("config", "check", environ=place.environ, folder=place.folder)
    assert checked["code"] == 0, checked
    await execute(database_dsn, "DROP TABLE vendor_gaps")
    asked = commands.run("db", "migrate", "--sql", environ=place.environ, folder=place.folder)
    assert "CREATE TABLE vendor_gaps" in asked["stdout"]
    done = commands.run("db", "migrate", "--rewrite", environ=place.environ, folder=place.folder)
    assert done["code"] == 0, done
    asked = commands.run("db", "migrate", "--sql", environ=place.environ, folder=place.folder)
    assert asked["stdout"] == "-- The schema is up to date.\n"


def test_every_fault_is_told_at_once_by_both_also_as_json(commands: Forker, place: Place) -> None:
    place.environ |= {
        "PORT": "eighty",
        "SSL_CERT_PATH": "/nowhere.pem",
        "SSL_KEY_PATH": "/nowhere.key",
    }
    place.environ |= {"STATE_DIR": place.blocked(), "REDIS_URL": "redis://h/0?pool=1"}
    unset("TWELVEDATA_API_KEY_G1_1")(place)
    ran = commands.run("run", environ=place.environ, folder=place.folder)
    checked = commands.run("config", "check", "--json", environ=place.environ, folder=place.folder)
    assert (ran["code"], checked["code"]) == (2, 2)
    told = json.loads(checked["stdout"])
    assert (told["ready"], told["verdict"]) == (False, "not ready: 6 faults")
    for fault, name in zip(
        sorted(told["faults"]),
        (
            "No TwelveData API key",
            "PORT=",
            "REDIS_URL",
            "SSL_CERT_PATH",
            "SSL_KEY_PATH",
            "STATE_DIR",
        ),
        strict=True,
    ):
        assert fault.startswith(name)
        assert fault in ran["stderr"]
        assert fault in checked["stderr"]
    assert "PORT" not in told["settings"]
    assert told["settings"]["MARKET_OPEN"] == "08:00"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("l0", "status"), 2),  # no database
        (("l0", "verify", "--start", "soon"), 2),
        (("l0", "import", "nowhere.csv"), 2),
        (("l0", "backfill", "--end", "2025-06-27"), 2),
        (("l0", "continuity", "--symbol", "EURUSD"), 2),
        (("journal", "inspect"), 1),
        (("journal", "inspect", "--dir", "nowhere"), 2),
        (("chaos",), 2),
    ],
)
def test_json_stays_json_when_a_command_fails(
    arguments: tuple[str, ...], code: int, commands: Forker, place: Place
) -> None:
    unset("DATABASE_URL")(place)
    answer = commands.run(*arguments, "--json", environ=place.environ, folder=place.folder)
    assert answer["code"] == code, answer
    error = json.loads(answer["stdout"])["error"]
    assert error in answer["stderr"]
    plain = commands.run(*arguments, environ=place.environ, folder=place.folder)
    assert (plain["code"], plain["stdout"]) == (code, "")


def test_what_an_attacker_would_like_is_warned_of(commands: Forker, place: Place) -> None:
    cert, key = place.certificate()
    key.chmod(0o644)
    place.environ |= {
        "DATABASE_URL": "postgresql://usdcop:usdcop@db.example.invalid/usdcop_trading",
        "REDIS_URL": "redis://:hunter2@cache.example.invalid/0",
        "TWELVEDATA_REST_URL": "http://relay.example.invalid",
        "TWELVEDATA_WS_URL": "ws://relay.example.invalid/v1",
        "PROVIDER": "twelvedata",
        "VIRTUAL_CLOCK": "2025-06-03T07:55:00-05:00,60",
        "CORS_ORIGINS": "*",
        "HOST": "0.0.0.0",
    }
    state = Path(place.environ["STATE_DIR"])
    state.mkdir()
    state.chmod(0o777)
    dotenv = place.folder / ".env"
    dotenv.write_text(f"TWELVEDATA_API_KEY_G1_2={KEY[::-1]}\n")
    dotenv.chmod(0o644)

    def warnings() -> list[str]:
        answer = commands.run(
            *("config", "check", "--json", "--offline"), environ=place.environ, folder=place.folder
        )
        assert answer["code"] == 0, answer
        told: list[str] = json.loads(answer["stdout"])["warnings"]
        return [one for one in told if "l0_ready" not in one]

    places = (
        *("HOST=0.0.0.0", "CORS_ORIGINS", "TWELVEDATA_REST_URL", "TWELVEDATA_WS_URL"),
        *("unencrypted", "REDIS_URL", "anybody would try", "STATE_DIR", "VIRTUAL_CLOCK", ".env"),
    )
    told = warnings()
    for name in places:
        assert sum(name in one for one in told) == 1, (name, told)
    assert len(told) == len(places)

    ran = commands.run("run", environ=place.environ, folder=place.folder)
    assert ran["code"] is None
    for one in told:
        assert one in ran["stdout"] + ran["stderr"]

    place.environ |= {
        "DATABASE_URL": f"postgresql://usdcop:{KEY}@db.example.invalid/usdcop_trading?sslmode=require",
        "REDIS_URL": "rediss://:hunter2@cache.example.invalid/0",
        "TWELVEDATA_REST_URL": "https://relay.example.invalid",
        "TWELVEDATA_WS_URL": "wss://relay.example.invalid/v1",
        "VIRTUAL_CLOCK": "",
        "CORS_ORIGINS": "",
        "SSL_CERT_PATH": str(cert),
        "SSL_KEY_PATH": str(key),
    }
    state.chmod(0o750)
    dotenv.chmod(0o600)
    one, by_hand = warnings()
    assert str(key) in one
    assert "PROVIDER=twelvedata is set by hand" in by_hand
    key.chmod(0o600)
    assert warnings() == [by_hand]


SECRET_ADDRESSES = {
    "DATABASE_URL": "postgresql://me:LEAK1xy@db.example.invalid/x?options=-c%20password%3DLEAK2xy",
    "REDIS_URL": "redis://LEAK3xy@cache.example.invalid/0",
    "TWELVEDATA_REST_URL": "https://proxyuser:LEAK4xy@relay.example.invalid/?apikey=LEAK5xy",
    "TWELVEDATA_WS_URL": "wss://wsuser:LEAK6xy@relay.example.invalid/v1?access_token=LEAK7xy",
}


@pytest.mark.parametrize(
    "arguments", [("config", "check", "--json"), ("config", "check"), ("run",)]
)
def test_no_secret_of_an_address_is_shown(
    arguments: tuple[str, ...], commands: Forker, place: Place
) -> None:
    place.environ |= SECRET_ADDRESSES | {"LOG_LEVEL": "DEBUG"}
    answer = commands.run(*arguments, environ=place.environ, folder=place.folder)
    assert "LEAK" not in answer["stdout"] + answer["stderr"]
    assert answer["code"] in (0, None)
    if arguments[0] == "config":
        # What is no secret stays: without it nobody could tell which address it is.
        for name in ("me:[redacted]@db.example", "[redacted]@cache", "wsuser:", "access_token="):
            assert name in answer["stdout"]


def test_offline_reaches_nothing(commands: Forker, place: Place) -> None:
    listener = place.held.enter_context(socket.create_server(("127.0.0.1", 0)))
    listener.setblocking(False)
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    place.environ |= {
        "DATABASE_URL": f"postgresql://me:hunter2@{address}/x?sslmode=disable",
        "REDIS_URL": f"redis://{address}/0",
        "TWELVEDATA_REST_URL": f"http://{address}",
        "TWELVEDATA_WS_URL": f"ws://{address}",
        "HOST": "nowhere.invalid",
    }
    check = ("config", "check", "--json")
    offline = commands.run(*check, "--offline", environ=place.environ, folder=place.folder)
    assert offline["code"] == 0
    assert any("HOST=nowhere.invalid" in one for one in json.loads(offline["stdout"])["warnings"])
    with pytest.raises(BlockingIOError):
        listener.accept()
    # What would be reached otherwise: the end of the command comes with the first connection.
    place.environ["HOST"] = "127.0.0.1"
    listener.close()
    online = commands.run(*check, environ=place.environ, folder=place.folder)
    told = json.loads(online["stdout"])["warnings"]
    for name in SECRET_ADDRESSES:
        assert any(one.startswith(name) for one in told), told


async def test_what_runs_already_is_named(tmp_path: Path, commands: Forker, place: Place) -> None:
    process = Process("run", tmp_path)
    await process.start("run", environ=place.environ)
    try:
        await process.said(SERVING)
        pid, port = process.pid, place.environ["PORT"]
        for offline in ((), ("--offline",)):
            answers = [
                commands.run("run", environ=place.environ, folder=place.folder),
                commands.run(
                    "config", "check", *offline, environ=place.environ, folder=place.folder
                ),
            ]
            for answer in answers:
                assert answer["code"] == 2
                (line,) = [x for x in answer["stderr"].splitlines() if x.startswith("error: ")]
                assert f"already running here: process {pid} has STATE_DIR=" in line
                assert f"listens on 127.0.0.1:{port}" in line

        def check(**changes: str) -> str:
            environ = place.environ | changes
            answer = commands.run("config", "check", environ=environ, folder=place.folder)
            assert answer["code"] == 2
            (line,) = [x for x in answer["stderr"].splitlines() if x.startswith("error: ")]
            return line

        assert f"process {pid} has STATE_DIR=" in check(PORT="0")
        other = check(STATE_DIR=str(place.folder / "other"))
        assert f"already running on 127.0.0.1:{port}, with another STATE_DIR" in other
        assert process.running  # nobody harmed it
    finally:
        await process.stop()
