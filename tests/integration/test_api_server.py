"""The server as a component: ports, certificates, start and stop, both event loops."""

import asyncio
import contextlib
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.serving.limits import Limits
from enhanced_websocket_service.serving.server import ApiServer
from tests.unit.serving.fakes import running, tick, until


async def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = ApiServer(_nothing, "127.0.0.1", port)
        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1:{port} .*--port"):
            await server.start()


async def test_an_address_that_is_not_ours_is_named() -> None:
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(ConfigurationError, match=host):
            await ApiServer(_nothing, host, 0).start()


async def test_the_port_is_free_after_stop() -> None:
    async with running() as api:
        port = api.server.port
    server = ApiServer(_nothing, "127.0.0.1", port)
    assert await server.start() == port
    await server.stop()
    await server.stop()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    try:
        subprocess.run(
            [
                *command,
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=IP:127.0.0.1",
                "-keyout",
                key,
                "-out",
                cert,
            ],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("needs the openssl command")
    return cert, key


async def test_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    context = ssl.create_default_context(cafile=str(cert))
    async with (
        running(ssl_cert=cert, ssl_key=key) as api,
        httpx.AsyncClient(base_url=api.url, verify=context) as client,
    ):
        assert api.url.startswith("https://")
        assert (await client.get("/status")).status_code == 200


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_websockets_over_tls(certificate: tuple[Path, Path], loop_factory: Any) -> None:
    """Messages, each kind of goodbye, and a peer that sends on when it is told to stop."""
    cert, key = certificate
    context = ssl.create_default_context(cafile=str(cert))

    async def code(client: ClientConnection) -> int | None:
        with contextlib.suppress(ConnectionClosed):
            async with asyncio.timeout(10):
                while True:
                    await client.recv()
        return client.close_code

    async def main() -> None:
        async with running(ssl_cert=cert, ssl_key=key) as api:
            client = await connect(f"{api.ws}/ws", ssl=context)
            api.hub.on_events([tick(1)])
            async with asyncio.timeout(10):
                while '"offset":1,' not in str(await client.recv()):
                    pass
            await client.close()
            assert client.close_code == 1000
            client = await connect(f"{api.ws}/ws", ssl=context)
            with contextlib.suppress(ConnectionClosed):
                await client.send("x" * 70_000)
            assert await code(client) == 1009
            client = await connect(f"{api.ws}/ws", ssl=context)
            await client.recv()
            api.hub.close_all()
            assert await code(client) == 1012
            await until(lambda: api.server.admission.connections == 0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_tls_handshake_has_its_time(
    certificate: tuple[Path, Path], loop_factory: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """A connection takes no place before it is done."""
    cert, key = certificate

    async def main() -> None:
        limits = Limits(handshake_s=0.05)
        async with running(limits=limits, ssl_cert=cert, ssl_key=key) as api:
            reader, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
            async with asyncio.timeout(10):
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert "Traceback" not in "".join(capfd.readouterr())


async def test_bad_certificates_are_named(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = certificate
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nothing")
    for files, said in (
        ((cert, None), "belong together"),
        ((tmp_path / "absent.pem", key), "SSL_CERT_PATH=.*absent.pem cannot be read"),
        ((nonsense, key), "not a certificate"),
        ((key, cert), "not a certificate"),
    ):
        server = ApiServer(_nothing, "127.0.0.1", 0, ssl_cert=files[0], ssl_key=files[1])
        with pytest.raises(ConfigurationError, match=said):
            await server.start()


def test_it_runs_under_uvloop() -> None:
    async def main() -> None:
        assert type(asyncio.get_running_loop()).__module__.startswith("uvloop")
        async with running() as api, httpx.AsyncClient(base_url=api.url) as client:
            assert (await client.get("/health")).status_code == 200

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("never called")
