"""The address and the certificate that the service listens with."""

import socket
import ssl
from pathlib import Path

from enhanced_websocket_service.errors import ConfigurationError

BACKLOG = 2048


def listen(host: str, port: int, *, look_up: bool = True) -> socket.socket:
    """A socket that listens on ``host:port``.

    :param look_up: ``False`` asks no name server: only addresses and ``localhost`` are understood then.
    :raises ConfigurationError: the address is taken or not this machine's; its cause is the ``OSError``.
    """
    flags = socket.AI_PASSIVE if look_up else socket.AI_PASSIVE | socket.AI_NUMERICHOST
    if not look_up and host == "localhost":
        host = "127.0.0.1"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=flags
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(
            f"HOST={host} is not an address of this machine "
            f"({getattr(error, 'strerror', None) or error}); "
            "use 127.0.0.1, 0.0.0.0 or one of its names."
        ) from error
    listener = socket.socket(family, kind, protocol)
    try:
        # A restart must not wait for old connections in TIME_WAIT; it never shares a live port.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"Cannot listen on {host or '*'}:{port} ({error.strerror}). Stop what uses the port, or "
            "choose another with PORT or --port."
        ) from error
    return listener


def certificate_faults(cert: Path | None, key: Path | None) -> list[str]:
    """Why ``cert`` and ``key`` cannot be used for TLS; nothing where both are ``None``."""
    if cert is None and key is None:
        return []
    if cert is None or key is None:
        return [
            "SSL_CERT_PATH and SSL_KEY_PATH belong together: set both, or neither for plain HTTP."
        ]
    faults = []
    for name, path in (("SSL_CERT_PATH", cert), ("SSL_KEY_PATH", key)):
        if path.is_fifo():  # reading it could wait for ever
            faults.append(f"{name}={path} is a pipe; name a readable PEM file.")
            continue
        try:
            path.read_bytes()
        except OSError as error:
            faults.append(
                f"{name}={path} cannot be read ({error.strerror}); name a readable PEM file."
            )
    if faults:
        return faults
    try:
        # Without a password of ours OpenSSL asks the terminal for one, and waits.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
            cert, key, password=lambda: ""
        )
    except (ssl.SSLError, ValueError) as error:
        return [
            f"SSL_CERT_PATH={cert} and SSL_KEY_PATH={key} are not a certificate and its unencrypted "
            f"private key in PEM form ({error})."
        ]
    return []
