"""Health check of the container: exit 0 when ``/health`` answers 200, else 1 with the reason.

Standard library only and no curl. Asks the service on this very machine, so its certificate (which
names a public host, not 127.0.0.1) is not verified.
"""

import json
import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

TIMEOUT_S = 4.0  # below the HEALTHCHECK's own, so that the reason is printed


def main() -> int:
    port = int(os.environ.get("PORT") or 8080)
    connection = HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    if os.environ.get("SSL_CERT_PATH"):
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)
    try:
        connection.request("GET", "/health")
        response = connection.getresponse()
        answer = json.loads(response.read())
        report = f"{response.status} {answer.get('status')} ({answer.get('service_status')})"
    except (OSError, HTTPException, ValueError, AttributeError) as error:
        print(f"no answer from /health on port {port}: {error!r}", file=sys.stderr)
        return 1
    finally:
        connection.close()
    print(report)
    return 0 if response.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
