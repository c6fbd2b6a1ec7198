"""The private parts of libraries that this package is built on: looked for once, before anything starts.

``pyproject.toml`` bounds these libraries, but an installer may be told otherwise. A server whose library
lacks one of these names starts, says that it is healthy, and refuses every client.
"""

import dis
import importlib
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from types import FunctionType
from typing import Final, NamedTuple

from .errors import ConfigurationError


class Dependence(NamedTuple):
    """What a class of a library must have: methods, and attributes that its methods set."""

    distribution: str
    module: str
    owner: str
    names: tuple[str, ...] = ()


DEPENDENCES: Final = (
    Dependence(
        "uvicorn",
        "uvicorn.protocols.websockets.websockets_sansio_impl",
        "WebSocketsSansIOProtocol",
        # For serving/frames.py and twelvedata/simulator/sockets.py.
        (
            *("client", "close_sent", "close_timeout", "close_timer", "conn", "disconnected"),
            *("frames", "handle_close", "handle_connect", "handle_events"),
            *("handle_parser_exception", "handle_ping", "handshake_complete"),
            *("handshake_initiated", "keepalive_timeout", "logger", "loop", "ping_timeout"),
            *("pong_timer", "queue", "read_paused", "request", "response", "run_asgi", "scope"),
            *("send", "send_keepalive_ping", "send_receive_event_to_app", "shutdown"),
            *("stop_keepalive", "transport", "writable"),
        ),
    ),
    Dependence(
        "uvicorn",
        "uvicorn.protocols.http.httptools_impl",
        "HttpToolsProtocol",
        (
            *("_should_upgrade", "client", "cycle", "handle_websocket_upgrade", "logger", "loop"),
            *("on_headers_complete", "on_message_begin", "on_message_complete"),
            *("on_response_complete", "on_url", "parser", "scope", "send_400_response"),
            *("timeout_keep_alive_task", "transport"),
        ),
    ),
    Dependence(
        "uvicorn",
        "uvicorn.protocols.http.httptools_impl",
        "RequestResponseCycle",
        ("response_complete",),
    ),
    Dependence("uvicorn", "uvicorn.protocols.utils", "ClientDisconnected"),
    Dependence(
        "uvicorn",
        "uvicorn.server",
        "Server",
        (
            *("capture_signals", "config", "force_exit", "lifespan", "serve", "server_state"),
            *("servers", "should_exit", "startup"),
        ),
    ),
    Dependence("uvicorn", "uvicorn.server", "ServerState", ("connections",)),
    Dependence("uvicorn", "uvicorn.config", "Config", ("http_protocol_class", "ssl")),
    Dependence(
        "websockets",
        "websockets.server",
        "ServerProtocol",
        (
            *("available_extensions", "close_sent", "current_size", "data_to_send", "events"),
            *("extensions", "fail", "handshake_exc", "recv_frame", "send_close", "state"),
        ),
    ),
    Dependence("websockets", "websockets.asyncio.client", "connect", ("process_redirect",)),
)


def check_libraries(dependences: Iterable[Dependence] = DEPENDENCES) -> None:
    """Look whether the installed libraries have what this package takes from inside them.

    :raises ConfigurationError: one sentence for each library that lacks something.
    """
    absent: dict[str, list[str]] = {}
    for dependence in dependences:
        for distribution, name in _lacks(dependence):
            absent.setdefault(distribution, []).append(name)
    if absent:
        raise ConfigurationError(*(what_lacks(name, lacks) for name, lacks in absent.items()))


def provided(owner: type) -> set[str]:
    """Every name of a class: its own and inherited ones, and the attributes that its methods set."""
    found = set(dir(owner))
    for each in owner.__mro__:
        for member in vars(each).values():
            if isinstance(member, FunctionType):
                steps = dis.get_instructions(member)
                found.update(step.argval for step in steps if step.opname == "STORE_ATTR")
    return found


def what_lacks(distribution: str, lacks: Sequence[str]) -> str:
    """A sentence on an installed library that does not have what this package needs of it."""
    remedy = (
        "Install the locked versions into the virtual environment you start it from: "
        "pip install -r requirements-enhanced-websocket.txt"
    )
    try:
        version = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return f"This service needs the library {distribution}, which is not installed. {remedy}"
    names = ", ".join(dict.fromkeys(lacks))
    return f"This service needs {names}, which {distribution} {version} does not have. {remedy}"


def _lacks(dependence: Dependence) -> Iterator[tuple[str, str]]:
    """Library and name of each thing that is not there."""
    distribution, module_name, owner_name, names = dependence
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        # Perhaps of another library than this one: what it needs itself is absent, or another version.
        place = error.name or module_name
        name = getattr(error, "name_from", None)  # since Python 3.12
        yield place.split(".")[0], f"{place}.{name}" if name else place
        return
    owner = getattr(module, owner_name, None)
    if not isinstance(owner, type):
        yield distribution, f"{module_name}.{owner_name}"
        return
    for name in sorted(set(names) - provided(owner)):
        yield distribution, f"{owner_name}.{name}"
