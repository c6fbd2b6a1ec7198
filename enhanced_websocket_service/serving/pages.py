"""The dashboard and the OpenAPI page. Every byte comes from this process: no CDN, no inline script."""

import importlib.util
from importlib.resources import files
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.responses import FileResponse, HTMLResponse, Response

from enhanced_websocket_service.compatibility import what_lacks
from enhanced_websocket_service.errors import ConfigurationError

from .problems import Problem

_HERE: Final = Path(str(files(__package__))) / "dashboard"

# Plotly and Swagger UI set styles from script; nothing else may be inline, nothing comes from afar.
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)

_MEDIA: Final = {".js": "text/javascript", ".css": "text/css"}


def _package_file(package: str, *parts: str) -> Path:
    """A data file of an installed package, found without importing the package.

    :raises ConfigurationError: it is not there; the page would be blank, and nothing would say why.
    """
    found = importlib.util.find_spec(package)
    for folder in (found and found.submodule_search_locations) or ():
        if (path := Path(folder, *parts)).is_file():
            return path
    raise ConfigurationError(what_lacks(package, ["/".join(parts)]))


def assets() -> dict[str, Path]:
    """Served name below ``/assets/`` -> file."""
    return {
        "app.js": _HERE / "app.js",
        "chart.js": _HERE / "chart.js",
        "connection.js": _HERE / "connection.js",
        "style.css": _HERE / "style.css",
        "docs.js": _HERE / "docs.js",
        "plotly.min.js": _package_file("plotly", "package_data", "plotly.min.js"),
        "swagger-ui-bundle.js": _package_file("fastapi_offline", "static", "swagger-ui-bundle.js"),
        "swagger-ui.css": _package_file("fastapi_offline", "static", "swagger-ui.css"),
    }


def install(app: FastAPI) -> None:
    """Add ``/``, ``/docs`` and ``/assets/...``; none is in the OpenAPI text."""
    served = assets()

    def page(name: str) -> Response:
        return HTMLResponse(
            (_HERE / name).read_text(encoding="utf-8"),
            headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY},
        )

    @app.get("/", include_in_schema=False)
    def dashboard() -> Response:
        return page("index.html")

    @app.get("/docs", include_in_schema=False)
    def docs() -> Response:
        return page("docs.html")

    @app.get("/assets/{name}", include_in_schema=False)
    def asset(name: str) -> Response:
        path = served.get(name)
        if path is None:
            raise Problem(404, "not_found", f"There is no asset {name[:60]!r}.")
        # Revalidated by ETag: an upgrade of the service never meets yesterday's script.
        return FileResponse(
            path, media_type=_MEDIA[path.suffix], headers={"Cache-Control": "no-cache"}
        )
