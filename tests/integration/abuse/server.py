"""The service's WebSocket side as a process of its own, with ticks every few milliseconds.

Says where it listens on standard output; its log goes to standard error. Ends when standard input does.
"""

import asyncio
import sys

import uvloop

from enhanced_websocket_service.serving.admission import Admission
from enhanced_websocket_service.serving.api import create_app
from enhanced_websocket_service.serving.hub import Hub
from enhanced_websocket_service.serving.limits import Limits
from enhanced_websocket_service.serving.server import ApiServer
from enhanced_websocket_service.telemetry import Metrics, configure_logging
from tests.unit.serving.fakes import FakeService, tick

TICK_EVERY_S = 0.01
LIMITS = Limits(history=1000, handshake_s=5.0)


async def main() -> None:
    service, metrics = FakeService(), Metrics()
    hub = Hub(service.symbols, service.clock, service.service_state, metrics, LIMITS)
    admission = Admission(LIMITS, metrics)
    app = create_app(service, hub, metrics.registry, admission=admission)
    api = ApiServer(app, "127.0.0.1", 0, admission=admission)
    await api.start()
    sys.stdout.write(f"{api.port}\n")
    sys.stdout.flush()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    offset = 0
    while not ended.is_set():
        offset += 1
        hub.on_events([tick(offset)])
        await asyncio.sleep(TICK_EVERY_S)
    hub.close_all()
    await api.stop()


if __name__ == "__main__":
    configure_logging()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
