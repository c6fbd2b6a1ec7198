"""What is judged before anything starts: by ``run``, which then does not start, and by ``config check``.

A fault is what no waiting mends: ``run`` ends with 2. What an attacker would like is a warning. Nothing
here reaches another machine, but for the look-up of ``HOST``. What ``run`` waits for, or can do without,
is asked in ``awaited.py``.
"""

import errno
import ipaddress
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
import psutil

from enhanced_websocket_service.bus.address import client_for
from enhanced_websocket_service.errors import ConfigurationError, StorageError, WrongWorld
from enhanced_websocket_service.secret_files import readable_by_others
from enhanced_websocket_service.serving.listening import certificate_faults, listen
from enhanced_websocket_service.settings import Settings
from enhanced_websocket_service.storage.address import understand
from enhanced_websocket_service.storage.epochs import highest_epoch
from enhanced_websocket_service.storage.folders import fault_of, holder
from enhanced_websocket_service.twelvedata.rest import http_client, is_loopback_url

from .connections import missing, starts_servers
from .worlds import check_folders

ASK_TIMEOUT_S: Final = 2.0  # real seconds
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_TLS_MODES: Final = ("require", "verify-ca", "verify-full")


@dataclass(frozen=True, slots=True)
class Findings:
    """Sentences: faults with which ``run`` ends, and warnings with which it runs."""

    faults: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __add__(self, other: "Findings") -> "Findings":
        return Findings(self.faults + other.faults, self.warnings + other.warnings)


async def preflight(
    settings: Settings, *, unknown: Collection[str] = (), offline: bool = False
) -> Findings:
    """Judge ``settings`` by this machine as it is now; nothing that is made for it stays.

    :param unknown: fields with faulty values, reported already: nothing is concluded from their defaults.
    :param offline: look up no name, and do not ask who has the port.
    """
    faults = missing(settings, key="keys" not in unknown, database="database_url" not in unknown)
    faults += certificate_faults(settings.ssl_cert_path, settings.ssl_key_path)
    state = Findings()
    owner = None
    if "state_dir" not in unknown:
        owner, state = _state_dir(settings)
        state += _worlds(settings)
    judged = await _addresses(settings) + state
    if not {"host", "port"} & set(unknown):
        judged += await _listening(settings, owner, offline=offline)
    elif owner is not None:
        judged += Findings((_running(settings, owner),))
    return Findings(tuple(faults)) + judged + Findings((), tuple(_exposures(settings)))


async def _addresses(settings: Settings) -> Findings:
    faults: list[str] = []
    warnings: list[str] = []
    try:
        if settings.database_url is not None:
            await understand(settings.database_url)
    except ConfigurationError as error:
        faults += error.faults
    except OSError as error:
        warnings.append(
            f"DATABASE_URL: a file that it names cannot be used now ({error.strerror or error})."
        )
    try:
        if settings.redis_url is not None:
            client_for(settings.redis_url, name="check", timeout_s=ASK_TIMEOUT_S)
    except ConfigurationError as error:
        faults += error.faults
    try:
        await http_client(settings.twelvedata_rest_url, ASK_TIMEOUT_S).aclose()
    except ConfigurationError as error:
        faults += error.faults
    return Findings(tuple(faults), tuple(warnings))


def _state_dir(settings: Settings) -> tuple[str | None, Findings]:
    """The process of this service that has STATE_DIR, and what is wrong with the folder."""
    folder = settings.state_dir
    journal, embedded = folder / "journal", folder / "embedded"
    for one in (folder, *(part for part in (journal, embedded) if os.path.lexists(part))):
        error = fault_of(one)
        if error is None:
            continue
        what = f"STATE_DIR={folder} cannot be used ({error.strerror}: {error.filename or one})"
        if error.errno in _NO_ROOM:  # room can be made while we wait
            return None, Findings((), (f"{what}: nothing can be journaled there.",))
        return None, Findings((f"{what}; name a folder that this user may write.",))
    try:
        highest_epoch(folder)
    except StorageError as error:
        return None, Findings((f"STATE_DIR={folder} cannot be used: {error}.",))
    lock = journal / "LOCK"
    if os.path.lexists(lock) and not (lock.is_file() and os.access(lock, os.R_OK | os.W_OK)):
        return None, Findings(
            (
                f"STATE_DIR={folder} cannot be used: {lock} is no file that this user may write; give "
                "it to this user, or remove it.",
            )
        )
    owner = holder(lock)
    private = None if owner or not starts_servers(settings) else holder(embedded / "owner.lock")
    if private is not None:
        pid = re.search(r'"pid": (\d+)', private)
        return None, Findings(
            (
                f"STATE_DIR={folder}: process {pid[1] if pid else 'unknown'} uses the private servers "
                "there. Wait for its end or stop it, or give this one another STATE_DIR.",
            )
        )
    return owner, Findings()


def _worlds(settings: Settings) -> Findings:
    try:
        check_folders(settings)
    except WrongWorld as error:
        return Findings((str(error),))
    except (OSError, StorageError):
        return Findings()  # a journal that cannot be read: whoever opens it says so
    return Findings()


async def _listening(settings: Settings, owner: str | None, *, offline: bool) -> Findings:
    """Whether the address can be had; and if not, whether it is this very service that has it."""
    running = () if owner is None else (_running(settings, owner),)
    try:
        listen(settings.host, settings.port, look_up=not offline).close()
    except ConfigurationError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError) or cause.errno != errno.EADDRINUSE:
            named = not re.fullmatch(r"[0-9.]+|.*:.*", settings.host)
            if offline and named and not isinstance(cause, PermissionError):
                return Findings(
                    running, (f"HOST={settings.host} is not looked up with --offline.",)
                )
            return Findings(running + error.faults)
        if owner is not None and _listens(owner, settings.port):
            return Findings((_running(settings, owner, with_port=True),))
        if offline or not await _is_ours(settings):
            return Findings(running + error.faults)
        if owner is not None:
            return Findings((_running(settings, owner, with_port=True),))
        return Findings(
            (
                f"This service is already running on {_place(settings)}, with another STATE_DIR. Stop "
                "it first, or give this one another PORT.",
            )
        )
    return Findings(running)


def _running(settings: Settings, owner: str, *, with_port: bool = False) -> str:
    has = f"STATE_DIR={settings.state_dir}"
    if not with_port:
        return (
            f"This service is already running here: process {owner} has {has}. Stop it first, or give "
            "this one another STATE_DIR."
        )
    return (
        f"This service is already running here: process {owner} has {has} and listens on "
        f"{_place(settings)}. Stop it first, or give this one another STATE_DIR and another PORT."
    )


def _place(settings: Settings) -> str:
    return f"{settings.host or '*'}:{settings.port}"


def _listens(owner: str, port: int) -> bool:
    with suppress(psutil.Error, ValueError):
        return any(
            one.status == psutil.CONN_LISTEN and one.laddr.port == port
            for one in psutil.Process(int(owner)).net_connections("tcp")
        )
    return False


async def _is_ours(settings: Settings) -> bool:
    """Whether the one that has the port answers as this service does."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.host, settings.host)  # noqa: S104
    scheme = "http" if settings.ssl_cert_path is None else "https"
    shown = f"[{host}]" if ":" in host else host
    # Its certificate names a public host, not this one; nothing secret is asked or believed.
    async with httpx.AsyncClient(trust_env=False, timeout=ASK_TIMEOUT_S, verify=False) as client:  # noqa: S501
        try:
            answer = await client.get(f"{scheme}://{shown}:{settings.port}/health/live")
            told = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return False
    return isinstance(told, dict) and told.get("status") == "alive" and "service_status" in told


def _exposures(settings: Settings) -> Iterator[str]:
    """What an attacker would like, and what would make prices wrong."""
    tls = settings.ssl_cert_path is not None
    if not tls and not settings.trusted_proxies and not is_loopback_url(f"//{settings.host}"):
        yield (
            f"HOST={settings.host} listens beyond this machine (or container) without TLS, to whoever "
            "reaches the port: set SSL_CERT_PATH and SSL_KEY_PATH, or put a proxy before it and name it in "
            "TRUSTED_PROXIES."
        )
    if "*" in settings.cors_origins:
        yield "CORS_ORIGINS=*: every web page may read the prices through its visitors' browsers."
    if settings.ssl_key_path is not None:
        yield from readable_by_others(settings.ssl_key_path)
    for name in ("twelvedata_rest_url", "twelvedata_ws_url"):
        url = urlsplit(getattr(settings, name))
        if url.scheme in ("http", "ws") and not is_loopback_url(url.geturl()):
            yield f"{name.upper()}: the API keys travel to {url.hostname} in clear text; use {url.scheme}s://."
    yield from _unencrypted(settings)
    with suppress(OSError):
        mode = stat.S_IMODE(settings.state_dir.stat().st_mode)
        if mode & 0o002:
            yield f"STATE_DIR={settings.state_dir} can be written by every user (mode {mode:04o})."
    if settings.provider_warning is not None:
        yield settings.provider_warning


def _unencrypted(settings: Settings) -> Iterator[str]:
    if settings.database_url is not None:
        url = urlsplit(settings.database_url)
        parameters = parse_qs(url.query)
        host = url.hostname or parameters.get("host", [""])[0]
        mode = parameters.get("sslmode", [os.environ.get("PGSSLMODE", "")])[0]
        if _is_remote(host) and mode not in _TLS_MODES:
            yield (
                f"DATABASE_URL: the connection to {host} may go unencrypted; add ?sslmode=require, or "
                "better verify-full with sslrootcert."
            )
        if url.password and unquote(url.password) in (unquote(url.username or ""), "password"):
            yield (
                "DATABASE_URL: the password is the first that anybody would try; choose a random one."
            )
    if settings.redis_url is not None:
        url = urlsplit(settings.redis_url)
        if url.scheme == "redis" and _is_remote(url.hostname or ""):
            yield f"REDIS_URL: the connection to {url.hostname} is not encrypted; use rediss://."


def _is_remote(host: str) -> bool:
    """Whether data for ``host`` leaves the machine; a bare name is one of a container network's."""
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return "." in host and not host.startswith("/") and not host.endswith(".localhost")
