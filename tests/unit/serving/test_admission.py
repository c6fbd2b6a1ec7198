"""Who may connect, decided without sockets."""

from dataclasses import replace

import pytest

from enhanced_websocket_service.serving.admission import (
    SPARE_CONNECTIONS,
    Admission,
)
from enhanced_websocket_service.serving.limits import DEFAULT_PER_ADDRESS, Limits
from enhanced_websocket_service.telemetry import Metrics


def make(
    *,
    origins: tuple[str, ...] = (),
    proxies: tuple[str, ...] = (),
    clients: int = 20_000,
    per_address: int | None = None,
) -> Admission:
    limits = replace(Limits(), clients=clients, clients_per_address=per_address)
    return Admission(limits, Metrics(), origins, proxies)


ALLOWED = [
    # (CORS_ORIGINS, Origin, Host)
    ((), [], "localhost:8080"),
    ((), ["http://localhost:8080"], "localhost:8080"),
    ((), ["https://prices.example"], "prices.example"),
    ((), ["https://prices.example"], "Prices.Example:443"),
    ((), ["http://[::1]:8080"], "[::1]:8080"),
    (("https://a.example",), ["https://a.example"], "prices.example"),
    (("https://a.example",), ["https://A.EXAMPLE:443"], "prices.example"),
    (("https://a.example", "null"), ["null"], "prices.example"),
    (("*",), ["https://whoever.example"], "prices.example"),
    (("*",), ["null"], "prices.example"),
]
REFUSED = [
    ((), ["https://evil.example"], "prices.example"),
    ((), ["https://prices.example.evil.example"], "prices.example"),
    ((), ["https://prices.example:8443"], "prices.example"),
    ((), ["http://localhost:3000"], "localhost:8080"),
    ((), ["null"], "prices.example"),
    ((), ["null"], "null"),
    ((), [""], ""),
    ((), ["http://[::1"], "[::1"),
    ((), ["http://x:99999"], "x:99999"),
    ((), ["file:///etc/passwd"], ""),
    (("https://a.example",), ["http://a.example"], "prices.example"),
    (("https://a.example",), ["https://a.example", "https://a.example"], "prices.example"),
]


@pytest.mark.parametrize(("configured", "sent", "host"), ALLOWED)
def test_origins_that_may(configured: tuple[str, ...], sent: list[str], host: str) -> None:
    assert make(origins=configured).origin_fault(sent, host) is None


@pytest.mark.parametrize(("configured", "sent", "host"), REFUSED)
def test_origins_that_may_not(configured: tuple[str, ...], sent: list[str], host: str) -> None:
    fault = make(origins=configured).origin_fault(sent, host)
    assert fault is not None
    assert "CORS_ORIGINS" in fault


def fill(admission: Admission, address: str, most: int) -> int:
    taken = 0
    while taken < most and admission.enter(address) is None:
        taken += 1
    return taken


def test_places_in_all() -> None:
    admission = make(clients=3)
    assert fill(admission, "127.0.0.1", 10) == 3
    refusal = admission.enter("192.0.2.1")
    assert refusal is not None
    assert refusal.code == "too_many_clients"
    admission.leave("127.0.0.1")
    assert admission.enter("192.0.2.1") is None


def test_places_per_address() -> None:
    admission = make(per_address=2)
    assert fill(admission, "127.0.0.1", 10) == 2
    assert fill(admission, "192.0.2.1", 10) == 2
    assert fill(admission, "::ffff:192.0.2.1", 10) == 0, "the same address in its other spelling"
    assert fill(admission, "2001:db8::1", 10) == 2
    assert fill(admission, "2001:db8::ffff:2", 10) == 0, "one host has a whole /64"
    assert fill(admission, "2001:db8:0:1::1", 10) == 2
    refusal = admission.enter("192.0.2.1")
    assert refusal is not None
    assert refusal.code == "too_many_from_address"
    assert "2 clients" in refusal.message
    admission.leave("192.0.2.1")
    assert fill(admission, "192.0.2.1", 10) == 1


def test_the_default_spares_this_machine_and_proxies() -> None:
    most = DEFAULT_PER_ADDRESS + 5
    admission = make(proxies=("10.0.0.0/8", "2001:db8::7"))
    assert fill(admission, "127.0.0.1", most) == most
    assert fill(admission, "::1", most) == most
    assert fill(admission, "", most) == most
    assert fill(admission, "10.1.2.3", most) == most
    assert fill(admission, "2001:db8::7", most) == most
    assert fill(admission, "192.0.2.1", most) == DEFAULT_PER_ADDRESS
    limited = make(proxies=("10.0.0.0/8",), per_address=1)
    assert fill(limited, "127.0.0.1", 5) == 1, "a number that was set holds for this machine too"
    assert fill(limited, "10.1.2.3", 5) == 5


def test_connections_have_their_own_places() -> None:
    admission = make(clients=1, per_address=1)
    for _ in range(65):
        assert admission.connect("192.0.2.1") is None
    assert admission.connect("192.0.2.1") == "too_many_connections_from_address"
    for n in range(1 + SPARE_CONNECTIONS - 65):
        assert admission.connect(f"198.51.100.{n % 250}") is None
    assert admission.connect("203.0.113.9") == "too_many_connections"
    assert admission.connections == admission.connections_max
    admission.disconnect("192.0.2.1")
    assert admission.connect("192.0.2.1") is None


def test_each_reason_is_logged_once_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    admission = Admission(Limits(), Metrics(), real_time=lambda: now)
    for _ in range(100):
        admission.refused("origin", "192.0.2.1", "No.")
    admission.refused("bad_http", "192.0.2.1", "No.")
    assert capsys.readouterr().out.count("Connection refused") == 2
    now = 61.0
    admission.refused("origin", "192.0.2.1", "No.")
    said = capsys.readouterr().out
    assert said.count("Connection refused") == 1
    assert "refused_since_last_told=100" in said
    assert admission.refusals == {"origin": 101, "bad_http": 1}
