"""``python -m enhanced_websocket_service [command]``."""

from enhanced_websocket_service.cli import main

main()
