"""A vendor simulator: TwelveData's REST and WebSocket on one port, with fault switches.

An independent implementation of the vendor's side; it shares no code with the client side.
"""

from .agenda import Step
from .credits import PLANS
from .fault_table import FAULTS
from .faults import BadFault
from .model import Candle, MarketSource, SimTick, SymbolSource
from .options import TRIAL_SYMBOLS, faults_from_options, market_from_options
from .script import load_script
from .server import Simulator, SimulatorConfig
from .time_series import Limits

__all__ = [
    "FAULTS",
    "PLANS",
    "TRIAL_SYMBOLS",
    "BadFault",
    "Candle",
    "Limits",
    "MarketSource",
    "SimTick",
    "Simulator",
    "SimulatorConfig",
    "Step",
    "SymbolSource",
    "faults_from_options",
    "load_script",
    "market_from_options",
]
