"""What the operating system knows about a connection. Linux tells; elsewhere the answers are zeros."""

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from typing import Final

_LINUX: Final = sys.platform == "linux"
_TCP_INFO_BYTES: Final = 160
_ACKNOWLEDGED_AT, _NOT_SENT_AT = 120, 144
"""Offsets of tcpi_bytes_acked and tcpi_notsent_bytes in struct tcp_info (linux/tcp.h, since 4.6)."""


def limit_send_buffer(transport: asyncio.Transport, size: int) -> None:
    """Let the operating system take about ``size`` unsent bytes, instead of growing to megabytes."""
    connection = transport.get_extra_info("socket")
    if connection is None:
        return
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    except OSError:
        return  # the connection has just been lost, or is none of TCP


def limit_unsent(transport: asyncio.Transport, size: int) -> None:
    """Let it take no more while about ``size`` bytes wait on this side; those under way do not count."""
    connection = transport.get_extra_info("socket")
    if not _LINUX or connection is None:
        return
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, size)
    except OSError:
        return  # as above


def not_acknowledged(transport: asyncio.Transport) -> int:
    """Bytes that the operating system has taken to send and the peer's has not acknowledged."""
    connection = transport.get_extra_info("socket")
    if not _LINUX or connection is None:
        return 0
    try:
        answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    except OSError:
        return 0
    return int.from_bytes(answer, sys.byteorder)


def unread_and_acknowledged(transport: asyncio.Transport) -> tuple[int, int]:
    """Bytes that wait on this side because the peer does not read, and bytes it has acknowledged."""
    unread = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket")
    if not _LINUX or connection is None:
        return unread, 0
    try:
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return unread, 0
    if len(info) < _NOT_SENT_AT + 4:
        return unread, 0
    (acknowledged,) = struct.unpack_from("=Q", info, _ACKNOWLEDGED_AT)
    (not_sent,) = struct.unpack_from("=I", info, _NOT_SENT_AT)
    return unread + not_sent, acknowledged
