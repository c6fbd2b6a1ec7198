"""The outlet of a connection that this process has the socket of (see frames.py)."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from .direct import BorrowedSocket, SocketPool
from .outlet import OutletListener
from .tcp_state import limit_unsent, not_acknowledged

if TYPE_CHECKING:
    from .frames import FrameProtocol


class FrameOutlet:
    """The outlet of one connection.

    While the transport holds nothing back, the hub has its socket. The transport says when it
    begins to hold something, whoever wrote it: its mark is zero. From then on everything goes through it
    until it is empty, so that no frame stands in the middle of another or before an earlier one.
    """

    __slots__ = (
        "_congested",
        "_high_water",
        "_listener",
        "_protocol",
        "_socket",
        "_sockets",
        "direct",
    )

    def __init__(self, protocol: "FrameProtocol", sockets: SocketPool) -> None:
        self._protocol = protocol
        self._sockets = sockets
        self._listener: OutletListener | None = None
        self._socket: BorrowedSocket | None = None
        self._high_water = 0
        self._congested = False
        self.direct: BorrowedSocket | None = None

    def bind(self, listener: OutletListener, high_water: int, low_water: int) -> None:
        protocol = self._protocol
        if not protocol.can_write:
            listener.on_closed()  # the peer left between the handshake and now
            return
        self._listener = listener
        transport = protocol.transport
        limit_unsent(transport, high_water)
        self._socket = self._sockets.borrow(transport)
        if self._socket is None:
            transport.set_write_buffer_limits(high=high_water, low=low_water)
            return
        self._high_water = high_water
        self.direct = self._socket
        transport.set_write_buffer_limits(high=0, low=0)  # says so at once when something waits

    def write(self, frames: bytes, /) -> None:
        transport = self._protocol.transport
        transport.write(frames)
        if (
            self._socket is not None
            and self.direct is None
            and not self._congested
            and transport.get_write_buffer_size() > self._high_water
            and self._listener is not None
        ):
            self._congested = True
            self._listener.on_congested()

    @property
    def deflates(self) -> bool:
        return bool(self._protocol.conn.extensions)

    def buffered(self) -> int:
        return self._protocol.transport.get_write_buffer_size()

    def untaken(self) -> int:
        return self.buffered() + not_acknowledged(self._protocol.transport)

    def close(self, code: int, reason: str) -> None:
        self._protocol.close_from_hub(code, reason)

    def take_over(
        self, receive: Callable[[str | bytes], None], when_lost: Callable[[], None]
    ) -> None:
        """Give the peer's messages to ``receive`` from now on, in this very turn of the loop. The ASGI
        conversation may then end: the connection does not, and costs a third of the memory.
        ``when_lost`` is called once, when the connection is gone."""
        self._protocol.take_over(receive, when_lost)

    def paused(self) -> None:
        """The transport holds more than its mark."""
        if self._listener is None:
            return
        if self._socket is None:
            self._listener.on_congested()
        else:
            self.direct = None
            self._listener.on_rerouted()

    def resumed(self) -> None:
        """It has given it to the operating system."""
        if self._listener is None:
            return
        if self._socket is None:
            self._listener.on_drained()
            return
        self.direct = self._socket
        self._listener.on_rerouted()
        self._congested = False
        self._listener.on_drained()  # also to one that was slow by age, of which we know nothing

    def ended(self) -> None:
        self.direct = None
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.on_closed()
        borrowed, self._socket = self._socket, None
        if borrowed is not None:
            self._sockets.give_back(borrowed)
