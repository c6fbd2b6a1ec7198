"""``python enhanced_websocket_service.py [command]``: the entry point of the requirements."""

from enhanced_websocket_service.__main__ import main

main()
