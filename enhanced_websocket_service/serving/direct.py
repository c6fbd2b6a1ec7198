"""Writing to clients' sockets beside their transports: the one line that every message to every client takes.

A transport's own ``write`` costs a third of what the kernel does, a bare ``send`` a tenth (figures and what
else was tried: docs/decisions/0023). Who borrows a socket writes to it only while the transport holds
nothing back, and gives it back before the transport closes it.
"""

import _socket
import asyncio
import socket
from collections.abc import Iterable
from typing import Final

_BLOCK: Final = 256
CLOSED: Final = -1


class BorrowedSocket(_socket.socket):
    """Shares a transport's descriptor and never closes it; after it was given back, it raises OSError."""

    __slots__ = ()

    def __del__(self) -> None:
        self.detach()  # else the descriptor, by then perhaps another connection's, would be closed


class SocketPool:
    """Sockets to borrow, made in blocks: a fan-out touches nothing else of a client, and neighbours in
    memory cost a fraction of what objects scattered among those of the connections do."""

    def __init__(self) -> None:
        self._spare: list[BorrowedSocket] = []

    def borrow(self, transport: asyncio.Transport) -> BorrowedSocket | None:
        """That of ``transport``; ``None`` where bytes must not pass it by (TLS)."""
        shared = transport.get_extra_info("socket")
        if shared is None or transport.get_extra_info("sslcontext") is not None:
            return None
        if not self._spare:
            self._spare = [BorrowedSocket.__new__(BorrowedSocket) for _ in range(_BLOCK)]
            self._spare.reverse()  # taken from the end: in the order of their addresses
        borrowed = self._spare.pop()
        # As it is already: a call never waits.
        kind = shared.type | socket.SOCK_NONBLOCK
        borrowed.__init__(shared.family, kind, shared.proto, shared.fileno())  # type: ignore[misc]
        return borrowed

    def give_back(self, borrowed: BorrowedSocket) -> None:
        """To be called while the transport still has the descriptor: it may be another's soon."""
        borrowed.detach()
        self._spare.append(borrowed)


def send_to_all(
    sockets: Iterable[BorrowedSocket], frames: bytes
) -> list[tuple[BorrowedSocket, int]]:
    """Offer ``frames`` to each; those that did not take all, with how many bytes they took, or ``CLOSED``."""
    size, send = len(frames), _socket.socket.send
    short: list[tuple[BorrowedSocket, int]] = []
    for borrowed in sockets:
        try:
            if (taken := send(borrowed, frames)) != size:
                short.append((borrowed, taken))
        except BlockingIOError:
            short.append((borrowed, 0))
        except OSError:
            short.append((borrowed, CLOSED))
    return short
