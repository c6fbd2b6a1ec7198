"""Everything that is not a success, as one JSON shape; and the headers every answer carries."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from enhanced_websocket_service.errors import DatabaseUnavailable, DataError, StorageError

from .get_routes import allowed
from .models import ErrorAnswer
from .views import ServiceView

log = structlog.get_logger(__name__)

_CODES: Final = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    422: "invalid_parameter",
    426: "upgrade_required",
    500: "internal_error",
    503: "unavailable",
}


class Problem(Exception):
    """An answer that is not a success; raised inside handlers, rendered by ``install``."""

    def __init__(
        self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.headers = status, code, detail, headers


def problem_response(
    view: ServiceView,
    status: int,
    detail: str,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    answer = ErrorAnswer(
        timestamp=view.now(),
        service_status=view.service_state(),
        error=code or _CODES.get(status, f"http_{status}"),
        detail=detail,
    )
    return Response(
        answer.model_dump_json(),
        status_code=status,
        media_type="application/json",
        headers=None if headers is None else dict(headers),
    )


def install(app: FastAPI, view: ServiceView) -> None:
    """Answer every error of ``app`` in the one shape."""

    async def on_problem(_request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return problem_response(view, error.status, error.detail, error.code, error.headers)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path, headers = request.url.path, error.headers
        if error.status_code == HTTPStatus.NOT_FOUND:
            detail = f"There is nothing at {path}. The endpoints are listed at /docs."
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            supported = allowed((headers or {}).get("Allow", "GET").split(", "))
            detail = f"{path} does not support {request.method}; it supports {supported}."
            headers = {"Allow": supported}
        else:
            detail = str(error.detail)
        return problem_response(view, error.status_code, detail, headers=headers)

    async def on_invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        known = _known_parameters(app, request)
        detail = " ".join(_sentence(fault, known) for fault in error.errors())
        return problem_response(view, HTTPStatus.UNPROCESSABLE_ENTITY, detail)

    async def on_storage(_request: Request, error: Exception) -> Response:
        log.warning("Stored data could not be read for a client", error=str(error))
        why = "cannot be reached" if isinstance(error, DatabaseUnavailable) else "refuses the query"
        detail = f"The database {why}; live prices go on, stored rows come back later."
        return problem_response(
            view,
            HTTPStatus.SERVICE_UNAVAILABLE,
            detail,
            "database_unavailable",
            {"Retry-After": "5"},
        )

    async def on_data(_request: Request, error: Exception) -> Response:
        return problem_response(view, HTTPStatus.BAD_REQUEST, str(error))

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(StorageError, on_storage)
    app.add_exception_handler(DataError, on_data)


def _known_parameters(app: FastAPI, request: Request) -> list[str]:
    """The query parameters of the endpoint, as its description has them."""
    described = app.openapi()["paths"].get(request.scope["route"].path, {}).get("get", {})
    return [one["name"] for one in described.get("parameters", ()) if one["in"] == "query"]


def _sentence(fault: Mapping[str, Any], known: Sequence[str]) -> str:
    where: Sequence[Any] = fault.get("loc", ())
    name = next((str(part) for part in where[1:] if isinstance(part, str)), "")
    said = str(fault.get("msg", "is not valid")).removeprefix("Value error, ")
    if fault.get("type") == "extra_forbidden":
        those = f"known: {', '.join(known)}" if known else "this endpoint takes none"
        return f"There is no parameter {name[:60]!r} here; {those}."
    if not name:
        return f"The parameters do not fit together: {said}."
    given = repr(fault.get("input"))[:60]
    return f"Parameter {name!r} = {given}: {said[0].lower()}{said[1:]}."


class ErrorBoundary:
    """Turns what nobody expected into a 500 without internals, and logs it once, with traceback."""

    def __init__(self, app: ASGIApp, view: ServiceView) -> None:
        self._app, self._view = app, view

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:  # the outermost edge: a client gets an answer whatever broke
            log.exception("A request failed", method=scope["method"], path=scope["path"])
            if started:
                return  # headers are out; uvicorn closes the connection as incomplete
            response = problem_response(
                self._view, 500, "The service failed to answer; the reason is in its log."
            )
            await response(scope, receive, send)


class StandardHeaders:
    """Headers of every HTTP answer: no sniffing, no framing, nothing live is cached."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("X-Content-Type-Options", "nosniff")
                headers.setdefault("X-Frame-Options", "DENY")
                headers.setdefault("Referrer-Policy", "no-referrer")
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, with_headers)
