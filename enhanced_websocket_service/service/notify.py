"""Tells systemd how the service is: ready, its state in words, stopping, and that its loop still turns.

The protocol is a datagram to the socket that ``NOTIFY_SOCKET`` names (``Type=notify``, see sd_notify(3)).
Without one nothing is sent. A message that cannot be delivered is never a reason to fail.
"""

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Self

import structlog

from enhanced_websocket_service.market.events import Event, StatusChanged

from .states import ServiceState

log = structlog.get_logger(__name__)


class Notifier:
    """Subscribe ``on_events`` to the bus and run ``keep_alive`` beside the service.

    :param address: of systemd's socket; a leading ``@`` means Linux's abstract namespace. ``None``: silent.
    :param watchdog_s: real seconds in which systemd wants a sign of life; ``None``: it does not.
    """

    def __init__(self, address: str | None, watchdog_s: float | None = None) -> None:
        self._address = address
        self._watchdog_s = watchdog_s
        self._ready = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], pid: int | None = None) -> Self:
        """As systemd set it up for this very process (``pid``: default our own)."""
        address = environ.get("NOTIFY_SOCKET") or None
        # systemd's children inherit the variables, but only the main process is watched.
        ours = environ.get("WATCHDOG_PID") in (None, "", str(os.getpid() if pid is None else pid))
        period = environ.get("WATCHDOG_USEC", "")
        watched = ours and period.isascii() and period.isdigit() and int(period) > 0
        return cls(address, int(period) / 1_000_000 if watched else None)

    def on_events(self, events: Sequence[Event]) -> None:
        """The first state the service publishes means that it listens; each is shown by systemd."""
        if self._address is None:
            return
        for event in events:
            if isinstance(event, StatusChanged):
                lines = [f"STATUS={event.state}: {_one_line(event.reason)}"]
                if not self._ready:
                    self._ready = True
                    lines.append("READY=1")
                if event.state == ServiceState.SHUTDOWN.value:
                    lines.append("STOPPING=1")
                self._send("\n".join(lines))

    async def keep_alive(self) -> None:
        """Until cancelled: a sign of life twice in each period. It comes from the event loop, so a loop that
        hangs gives none, and systemd restarts the service."""
        if self._address is None or self._watchdog_s is None:
            return
        while True:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / 2)

    def _send(self, text: str) -> None:
        assert self._address is not None
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode(), address)
        except OSError as error:
            log.warning("systemd was not told", reason=str(error), what=text.partition("\n")[0])


def _one_line(text: str) -> str:
    return " ".join(text.split())
