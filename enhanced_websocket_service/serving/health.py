"""The verdict of ``/health``, and the machine's resources."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import psutil

from enhanced_websocket_service import __version__

from .models import ConnectivityInfo, HealthAnswer, ServiceInfo, SystemResources
from .views import HealthView

SERVICE: Final = "enhanced-websocket-service"

_FAILED: Final = frozenset({"error", "shutdown"})
_NOT_YET: Final = frozenset({"initializing", "waiting_l0", "checking_data"})

_DOING: Final = " (while "
"""Behind it errors of the database tell what was being done; the cause stands before."""

Level = Literal["healthy", "degraded", "unhealthy"]


def judge(view: HealthView) -> tuple[Level, list[str]]:
    """The level, and a sentence for each thing that keeps it from ``healthy``."""
    problems: list[str] = []
    others = list(view.problems)
    state = view.state.state
    if state in _FAILED or state in _NOT_YET:
        problems.append(f"The service is in state {state}: {view.state.reason}")
    for name, part in (("Database", view.database), ("Redis", view.redis)):
        if not part.connected:
            problems.append(f"{name} is not connected: {part.error or 'no answer'}")
            # What follows from it is told, and why it does once.
            if cause := (part.error or "").partition(_DOING)[0].rstrip("."):
                others = [one.replace(cause, f"{name} is not connected") for one in others]
    if view.feed.expected and not view.feed.connected:
        why = f": {view.feed.evidence}" if view.feed.evidence else "."
        problems.append(f"The market is open and no feed delivers prices{why}")
    problems += others
    if state in _FAILED:
        return "unhealthy", problems
    return ("degraded" if problems else "healthy"), problems


def is_ready(state: str) -> bool:
    """Whether an orchestrator may send clients here."""
    return state not in _FAILED and state not in _NOT_YET


def health_answer(
    view: HealthView, resources: SystemResources, now: float, service_status: str
) -> HealthAnswer:
    level, problems = judge(view)
    return HealthAnswer(
        timestamp=now,
        service_status=service_status,
        status=level,
        service=SERVICE,
        version=__version__,
        service_info=ServiceInfo(
            name=SERVICE.replace("-", "_"),
            status=view.state.state,
            uptime_seconds=view.uptime_seconds,
            reason=view.state.reason,
            since=view.state.since,
        ),
        connectivity=ConnectivityInfo(database=view.database, redis=view.redis, feed=view.feed),
        system_resources=resources,
        problems=problems,
        work=dict(view.work),
    )


class ResourceMeter:
    """Processor, memory and disk use, measured at most once a second and never by waiting.

    :param disk: a path on the disk to watch; its nearest existing parent is measured.
    """

    def __init__(self, disk: Path, real_time: Callable[[], float] = time.monotonic) -> None:
        self._disk = disk
        self._real_time = real_time
        self._at = real_time()
        # cpu_percent is the use since the last call: the first one has nothing to compare with.
        psutil.cpu_percent(interval=None)
        self._last: SystemResources | None = None

    def read(self) -> SystemResources:
        now = self._real_time()
        if self._last is None or now - self._at >= 1.0:
            disk = self._disk.absolute()
            while not disk.exists():
                disk = disk.parent
            self._at = now
            self._last = SystemResources(
                cpu_percent=psutil.cpu_percent(interval=None),
                memory_percent=psutil.virtual_memory().percent,
                disk_percent=psutil.disk_usage(str(disk)).percent,
            )
        return self._last
