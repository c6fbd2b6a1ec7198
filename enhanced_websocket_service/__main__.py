"""``python -m enhanced_websocket_service [command]``, and what every other way to start it calls."""

import sys
from typing import NoReturn

from enhanced_websocket_service.compatibility import check_libraries
from enhanced_websocket_service.errors import ConfigurationError


def main() -> NoReturn:
    """Run the command line; exit with 2 and a sentence where the installed libraries do not fit."""
    try:
        check_libraries()
    except ConfigurationError as error:
        sys.stderr.writelines(f"error: {fault}\n" for fault in error.faults)
        sys.exit(2)
    # Not at the top: with libraries that do not fit, this import itself fails.
    from enhanced_websocket_service.cli import main as run

    run()


if __name__ == "__main__":
    main()
