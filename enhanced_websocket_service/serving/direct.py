"""A transport's socket, for writing to it without the transport.

Sending is a third of what a message to a client costs beside the kernel's share; docs/decisions/0023 has the
figures. Who borrows a socket writes to it only while the transport holds nothing back, and gives it
back (``detach``) before the transport closes it.
"""

import asyncio
import os
import socket


class BorrowedSocket(socket.socket):
    """Shares another socket's descriptor and never closes it; used after ``detach`` it raises OSError."""

    __slots__ = ()

    def __del__(self) -> None:
        self.detach()  # else the descriptor, by then perhaps another connection's, would be closed


def borrow(transport: asyncio.Transport) -> BorrowedSocket | None:
    """The socket of ``transport``; ``None`` where bytes must not pass it by (TLS, no POSIX socket)."""
    shared = transport.get_extra_info("socket")
    if os.name != "posix" or shared is None or transport.get_extra_info("sslcontext") is not None:
        return None
    if shared.type & ~(socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) != socket.SOCK_STREAM:
        return None
    kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK  # as it is already: a call never waits
    return BorrowedSocket(shared.family, kind, shared.proto, shared.fileno())
