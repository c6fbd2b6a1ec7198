"""A vendor simulator: TwelveData's REST and WebSocket on one port, with fault switches.

An independent implementation of the vendor's side; it shares no code with the client side.
"""

from .credits import PLANS
from .faults import FAULTS, BadFault
from .model import Candle, MarketSource, SimTick, SymbolSource
from .options import market_from_options
from .server import Simulator, SimulatorConfig
from .time_series import Limits

__all__ = [
    "FAULTS",
    "PLANS",
    "BadFault",
    "Candle",
    "Limits",
    "MarketSource",
    "SimTick",
    "Simulator",
    "SimulatorConfig",
    "SymbolSource",
    "market_from_options",
]
