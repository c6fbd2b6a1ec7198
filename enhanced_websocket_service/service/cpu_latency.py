"""How long a processor that sleeps may take to wake: a limit for the machine while prices are live.

Between two prices a processor sleeps, and what wakes it takes longer than the whole way of a price to its
clients (figures: docs/decisions/0027). Linux lets a process set a limit for as long as it keeps the file
``/dev/cpu_dma_latency`` open (PM QoS, Documentation/admin-guide/pm in its source): when the process ends,
however it does, so does the limit.
"""

import os
import struct
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

DEVICE: Final = Path("/dev/cpu_dma_latency")
_MICROSECONDS: Final = struct.Struct("=i")


class CpuLatency:
    """The limit of this process. Where it cannot be set, that is logged, and everything goes on without.

    :param limit_us: microseconds that waking may take; 0: processors do not sleep, which costs power.
        ``None``: ask for nothing.
    """

    def __init__(self, limit_us: int | None, device: Path = DEVICE) -> None:
        self._limit_us = limit_us
        self._device = device
        self._fd = -1

    @property
    def held(self) -> bool:
        return self._fd >= 0

    def hold(self) -> None:
        """Set the limit, unless it is set already."""
        if self._limit_us is None or self.held:
            return
        try:
            fd = os.open(self._device, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, _MICROSECONDS.pack(self._limit_us))
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            log.warning(
                "CPU_LATENCY_US has no effect: the device cannot be written (Linux only; the "
                "service's user needs write access to it)",
                device=str(self._device),
                error=error.strerror,
            )
            return
        self._fd = fd
        log.info("Processors wake within a limit from now on", limit_us=self._limit_us)

    def release(self) -> None:
        """Let the machine sleep as it likes."""
        if self.held:
            os.close(self._fd)
            self._fd = -1
            log.info("Processors sleep as the machine likes again")
