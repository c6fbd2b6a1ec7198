"""Enhanced WebSocket Service: a self-hosted real-time market data service for USD/COP."""

from typing import Final

__version__: Final = "4.0.0"
