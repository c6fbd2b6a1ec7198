"""Who may connect: pages by their Origin, and places, in all and per address. Counts who may not.

Two doors. A TCP connection takes a place before it has said anything (http_guard.py), so that silent ones
cannot take every file descriptor; a WebSocket client takes one more when its handshake is complete, where it
can be told in words why there is none (sockets.py), and where a proxy has told whose it is.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import structlog

from enhanced_websocket_service.telemetry import Metrics, Rarely

from .limits import DEFAULT_PER_ADDRESS, Limits

log = structlog.get_logger(__name__)

SPARE_CONNECTIONS: Final = 256
"""TCP connections beyond the clients: REST, probes, and clients that are being refused in words."""

_PER_ADDRESS_SPARE: Final = 64
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


class Refusal(NamedTuple):
    """Why a client gets no place: ``code`` of the ``error`` message, and its sentence."""

    code: str
    message: str


class Admission:
    """Places taken and refusals. Synchronous; one event loop.

    :param cors_origins: origins whose pages may connect, beside the service's own; ``*``: all.
    :param trusted_proxies: addresses or networks whose connections stand for many clients.
    """

    def __init__(
        self,
        limits: Limits,
        metrics: Metrics,
        cors_origins: Sequence[str] = (),
        trusted_proxies: Sequence[str] = (),
        real_time: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.connections_max = limits.clients + SPARE_CONNECTIONS
        self._metrics = metrics
        self._any_origin = "*" in cors_origins
        self._origins = {_origin_key(origin) for origin in cors_origins}
        self._proxies = [ip_network(proxy, strict=False) for proxy in trusted_proxies]
        self._real_time = real_time
        self._clients: Counter[str] = Counter()
        self._connections: Counter[str] = Counter()
        self._clients_total = self._connections_total = 0
        self._refused: Counter[str] = Counter()
        self._told = Rarely()

    # --- pages ------------------------------------------------------------------------------------

    def origin_fault(self, origins: Sequence[str], host: str) -> str | None:
        """Why a page may not connect; ``None`` when it may, or when it is no page (no Origin).

        :param host: the ``Host`` header: a page of this very service may always connect.
        """
        if not origins or self._any_origin:
            return None
        key = _origin_key(origins[0])
        if len(origins) == 1 and (key in self._origins or _same_host(key, host)):
            return None
        return (
            f"Pages of the origin {origins[0][:100]!r} may not connect here. If they should, add it to "
            "CORS_ORIGINS of the service."
        )

    # --- places -----------------------------------------------------------------------------------

    def enter(self, address: str | None) -> Refusal | None:
        """Take a client's place, to be given back with ``leave``; or why there is none."""
        if self._clients_total >= self.limits.clients:
            return Refusal("too_many_clients", "Too many clients (MAX_CLIENTS); try later.")
        bucket = _bucket(address)
        most = self._most(bucket)
        if most is not None and self._clients[bucket] >= most:
            return Refusal(
                "too_many_from_address",
                f"There are {most} clients from your address, as many as one may have "
                "(MAX_CLIENTS_PER_ADDRESS); close one, or try later.",
            )
        self._clients[bucket] += 1
        self._clients_total += 1
        return None

    def leave(self, address: str | None) -> None:
        self._clients_total -= 1
        _take_one(self._clients, _bucket(address))

    def connect(self, address: str | None) -> str | None:
        """Take a connection's place, to be given back with ``disconnect``; or why there is none."""
        if self._connections_total >= self.connections_max:
            return "too_many_connections"
        bucket = _bucket(address)
        most = self._most(bucket)
        if most is not None and self._connections[bucket] >= most + _PER_ADDRESS_SPARE:
            return "too_many_connections_from_address"
        self._connections[bucket] += 1
        self._connections_total += 1
        return None

    def disconnect(self, address: str | None) -> None:
        self._connections_total -= 1
        _take_one(self._connections, _bucket(address))

    def _most(self, bucket: str) -> int | None:
        """How many clients may come from there; ``None``: as many as there are places."""
        if not bucket:
            return None  # a Unix socket: only a proxy of this machine uses one
        network = ip_network(bucket)
        for proxy in self._proxies:
            if _within(network, proxy):
                return None
        if self.limits.clients_per_address is not None:
            return self.limits.clients_per_address
        return None if network.network_address.is_loopback else DEFAULT_PER_ADDRESS

    # --- what was refused -------------------------------------------------------------------------

    def refused(
        self, reason: str, address: str | None, detail: str, *, worth_telling: bool = True
    ) -> None:
        """Count a refusal; the log hears of each reason once a minute at most, with their number."""
        self._refused[reason] += 1
        self._metrics.clients_refused.labels(reason).inc()
        if worth_telling and (count := self._told.due(self._real_time(), reason)):
            log.warning(
                "Connection refused",
                reason=reason,
                address=address,
                detail=detail,
                refused_since_last_told=count,
            )

    def closed(self, code: int) -> None:
        """Count a connection that this side ended with ``code``."""
        self._metrics.clients_closed.labels(str(code)).inc()

    @property
    def connections(self) -> int:
        """TCP connections now, those of clients included."""
        return self._connections_total

    @property
    def refusals(self) -> dict[str, int]:
        """Refusals by reason since the start of the process."""
        return dict(self._refused)


def _take_one(counter: Counter[str], bucket: str) -> None:
    counter[bucket] -= 1
    if counter[bucket] <= 0:
        del counter[bucket]  # or every address ever seen would stay


def _bucket(address: str | None) -> str:
    """What counts as one address: IPv6 by its /64, of which every host has all."""
    try:
        found = ip_address(address or "")
    except ValueError:
        return ""
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        if found.is_loopback:
            return str(found)
        return str(IPv6Network((int(found) >> 64 << 64, 64)))
    return str(found)


def _within(network: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    if isinstance(network, IPv4Network) and isinstance(other, IPv4Network):
        return network.subnet_of(other)
    if isinstance(network, IPv6Network) and isinstance(other, IPv6Network):
        return network.subnet_of(other) or other.subnet_of(network)
    return False


def _origin_key(origin: str) -> tuple[str, str, int | None]:
    """Scheme, host and port, comparable; an opaque origin (``null``) is its text."""
    try:
        parts = urlsplit(origin.strip().lower())
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return ("", origin, None)
    if not parts.scheme or not parts.hostname:
        return ("", origin.strip().lower(), None)
    return (parts.scheme, parts.hostname, port)


def _same_host(origin: tuple[str, str, int | None], host: str) -> bool:
    """Whether the page came from ``host``. Not the scheme: TLS may end at a proxy before us."""
    scheme, name, port = origin
    if scheme not in _DEFAULT_PORTS:
        return False
    try:
        parts = urlsplit(f"{scheme}://{host.strip().lower()}")
        given = parts.port or _DEFAULT_PORTS[scheme]
    except ValueError:
        return False
    return parts.hostname == name and given == port
