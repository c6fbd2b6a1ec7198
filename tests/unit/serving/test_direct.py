"""Sockets borrowed from transports: whose descriptor it is, and what a send that falls short tells."""

import gc
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from enhanced_websocket_service.serving.direct import (
    CLOSED,
    BorrowedSocket,
    SocketPool,
    send_to_all,
)


class Transport:
    """What is asked of a transport."""

    def __init__(self, sock: socket.socket | None, tls: object = None) -> None:
        self._info = {"socket": sock, "sslcontext": tls}

    def get_extra_info(self, name: str) -> Any:
        return self._info[name]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        yield ours, theirs


def borrow(pool: SocketPool, sock: socket.socket) -> BorrowedSocket:
    borrowed = pool.borrow(Transport(sock))  # type: ignore[arg-type]
    assert borrowed is not None
    return borrowed


def test_frames_reach_the_peer(pair: tuple[socket.socket, socket.socket]) -> None:
    borrowed = borrow(SocketPool(), pair[0])
    assert send_to_all([borrowed], b"frames") == []
    assert pair[1].recv(100) == b"frames"


def test_what_a_full_socket_took_is_told(pair: tuple[socket.socket, socket.socket]) -> None:
    borrowed = borrow(SocketPool(), pair[0])
    huge = bytes(64 * 1024 * 1024)
    [(short, taken)] = send_to_all([borrowed], huge)
    assert short is borrowed
    assert 0 < taken < len(huge)
    assert send_to_all([borrowed], b"more") == [(borrowed, 0)]


def test_a_peer_that_left_is_told_and_harms_no_other() -> None:
    pool = SocketPool()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ours, other = (socket.create_connection(listener.getsockname()) for _ in range(2))
        theirs, reader = (listener.accept()[0] for _ in range(2))
    with ours, other, theirs, reader:
        ours.shutdown(socket.SHUT_WR)
        borrowed = [borrow(pool, ours), borrow(pool, other)]
        assert send_to_all(borrowed, b"frames") == [(borrowed[0], CLOSED)]
        assert reader.recv(100) == b"frames"


def test_one_given_back_reaches_nobody(pair: tuple[socket.socket, socket.socket]) -> None:
    pool = SocketPool()
    borrowed = borrow(pool, pair[0])
    pool.give_back(borrowed)
    assert send_to_all([borrowed], b"frames") == [(borrowed, CLOSED)]
    pair[0].send(b"still ours")
    assert pair[1].recv(100) == b"still ours"
    assert borrow(pool, pair[0]) is borrowed


def test_one_forgotten_leaves_the_descriptor_open(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    borrow(SocketPool(), pair[0])
    gc.collect()
    os.fstat(pair[0].fileno())
    pair[0].send(b"still open")
    assert pair[1].recv(100) == b"still open"


def test_bytes_do_not_pass_tls_by(pair: tuple[socket.socket, socket.socket]) -> None:
    pool = SocketPool()
    assert pool.borrow(Transport(pair[0], tls=object())) is None  # type: ignore[arg-type]
    assert pool.borrow(Transport(None)) is None  # type: ignore[arg-type]
