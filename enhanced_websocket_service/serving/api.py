"""The REST API. Handlers translate; what they tell comes from the service's view and the hub."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from enhanced_websocket_service import __version__
from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.market.price_view import price_data

from . import models, pages, params, problems, tables, wire
from .admission import Admission
from .get_routes import GetRoute, TrailingSlash
from .health import ResourceMeter, health_answer, is_ready
from .hub import Hub
from .problems import Problem
from .sockets import add_websockets
from .views import BarQuery, ServiceView, TickQuery

_ERROR: Final[dict[str, Any]] = {"model": models.ErrorAnswer}
_TABLE_FORMS: Final[dict[str, Any]] = {
    tables.CSV: {"schema": {"type": "string"}},
    tables.ARROW: {"schema": {"type": "string", "format": "binary"}},
}
_READS: Final[dict[int | str, dict[str, Any]]] = {
    404: _ERROR,
    406: _ERROR,
    422: _ERROR,
    503: _ERROR,
}


def create_app(
    view: ServiceView,
    hub: Hub,
    registry: CollectorRegistry,
    *,
    cors_origins: Sequence[str] = (),
    state_dir: Path = Path(),
    admission: Admission | None = None,
) -> FastAPI:
    """The ASGI application: REST, WebSocket, metrics, dashboard.

    :param cors_origins: origins whose pages may read the answers; ``*`` allows all of them, then
        without credentials. None by default.
    :param admission: shared with the server that runs this; by default one with the hub's limits.
    :param state_dir: its disk is the one whose use ``/health`` tells.
    """
    admission = admission or Admission(hub.limits, hub.metrics, cors_origins)
    app = FastAPI(
        title="Enhanced WebSocket Service",
        version=__version__,
        description="Real-time USD/COP market data. Live messages: WebSocket at /ws and /ws/{symbol}.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={500: _ERROR},
    )
    app.router.route_class = GetRoute
    problems.install(app, view)
    app.add_middleware(TrailingSlash)
    # Added last, wrapped outermost: the boundary is inside, so that its 500 has the headers too.
    app.add_middleware(problems.ErrorBoundary, view=view)
    app.add_middleware(problems.StandardHeaders)
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_origins),
            allow_methods=["GET", "HEAD"],
            allow_headers=["*"],
            allow_credentials="*" not in cors_origins,
            expose_headers=["X-Next-Cursor", "X-Service-Status"],
        )
    _add_health(app, view, ResourceMeter(state_dir))
    _add_status(app, view, hub, admission)
    _add_market(app, view)
    _add_tables(app, view)

    @app.get(
        "/metrics",
        tags=["health"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    pages.install(app)
    add_websockets(app, view, hub, admission)
    return app


def _stamp(view: ServiceView) -> dict[str, Any]:
    return {"timestamp": view.now(), "service_status": view.service_state()}


def _symbol(view: ServiceView, text: str | None) -> str:
    if text is None:
        return view.symbols[0]
    symbol = wire.normalise_symbol(text)
    if symbol not in view.symbols:
        known = ", ".join(view.symbols)
        raise Problem(404, "unknown_symbol", f"Unknown symbol {text!r}; known: {known}.")
    return symbol


def _add_health(app: FastAPI, view: ServiceView, meter: ResourceMeter) -> None:
    def respond(answer: models.Answer, status: int) -> Response:
        body = answer.model_dump_json()
        return Response(body, status_code=status, media_type=tables.JSON)

    @app.get(
        "/health",
        tags=["health"],
        response_model=models.HealthAnswer,
        responses={503: {"model": models.HealthAnswer, "description": "unhealthy"}},
    )
    async def health() -> Response:
        """The service and its parts: healthy, degraded (200), or unhealthy (503)."""
        resources = meter.read()
        answer = health_answer(view.health(), resources, view.now(), view.service_state())
        return respond(answer, 503 if answer.status == "unhealthy" else 200)

    @app.get("/health/live", tags=["health"])
    async def live() -> models.LiveAnswer:
        """The process answers. Restarting it would not help whatever else is wrong."""
        return models.LiveAnswer(status="alive", **_stamp(view))

    @app.get(
        "/health/ready",
        tags=["health"],
        response_model=models.ReadyAnswer,
        responses={503: {"model": models.ReadyAnswer, "description": "not ready"}},
    )
    async def ready() -> Response:
        """Whether clients may be sent here: history checked, live or waiting for the session."""
        state = view.health().state
        able = is_ready(state.state)
        answer = models.ReadyAnswer(
            status="ready" if able else "not_ready", reason=state.reason, **_stamp(view)
        )
        return respond(answer, 200 if able else 503)


def _add_status(app: FastAPI, view: ServiceView, hub: Hub, admission: Admission) -> None:
    @app.get("/status", tags=["service"])
    async def status() -> models.StatusAnswer:
        """Everything about the service at a glance."""
        return models.StatusAnswer(
            **dict(view.status()),
            **_stamp(view),
            version=__version__,
            market_session=view.session(view.symbols[0]),
            clients=hub.counts(),
            connections=models.ConnectionCounts(
                open=admission.connections,
                maximum=admission.connections_max,
                clients_maximum=admission.limits.clients,
                refused_total=admission.refusals,
            ),
            positions=hub.positions(),
        )


def _add_market(app: FastAPI, view: ServiceView) -> None:
    @app.get("/market/session", tags=["market"], responses={404: _ERROR, 422: _ERROR})
    async def session(query: Annotated[params.SymbolParams, Query()]) -> models.SessionAnswer:
        """Whether the market of a symbol is open, and when it opens and closes, in its own zone."""
        symbol = _symbol(view, query.symbol)
        return models.SessionAnswer(**dict(view.session(symbol)), symbol=symbol, **_stamp(view))

    @app.get(
        "/market/latest",
        tags=["market"],
        responses={404: _ERROR, 422: _ERROR},
    )
    async def latest(query: Annotated[params.SymbolParams, Query()]) -> models.LatestAnswer:
        """The last price, with its age."""
        symbol = _symbol(view, query.symbol)
        tick = view.latest(symbol)
        if tick is None:
            raise Problem(
                404,
                "no_price_yet",
                f"There is no price of {symbol} yet: the service is in state "
                f"{view.service_state()}: {view.health().state.reason}",
            )
        now = view.now()
        return models.LatestAnswer(
            **price_data(tick),
            epoch=tick.epoch,
            offset=tick.offset,
            server_time=now,
            age_seconds=round(now - tick.timestamp, 3),
            service_status=view.service_state(),
        )

    @app.get(
        "/market/continuity",
        tags=["market"],
        response_model=models.ContinuityAnswer | models.ContinuityRangeAnswer,
        responses=_without(_READS, 406),
    )
    async def continuity(
        request: Request, query: Annotated[params.DayParams, Query()]
    ) -> models.ContinuityAnswer | models.ContinuityRangeAnswer | Response:
        """The expected 5-minute slots of a day and who covers each; or a range of days in numbers."""
        symbol = _symbol(view, query.symbol)
        if request.method == "HEAD":
            return _head_of_stored(tables.JSON)
        if query.start is not None and query.end is not None:
            days = await view.continuity_range(symbol, query.start, query.end)
            return models.ContinuityRangeAnswer(**dict(days), symbol=symbol, **_stamp(view))
        found = await view.continuity(symbol, query.date or view.today(symbol))
        return models.ContinuityAnswer(**dict(found), symbol=symbol, **_stamp(view))


def _add_tables(app: FastAPI, view: ServiceView) -> None:
    def form_of(request: Request) -> tables.Form:
        form = tables.negotiate(request.headers.get("accept"))
        if form is None:
            offered = ", ".join(tables.OFFERED)
            raise Problem(406, "not_acceptable", f"This endpoint answers as {offered}.")
        return form

    form_param = Annotated[tables.Form, Depends(form_of)]

    def table_headers() -> dict[str, str]:
        return {"X-Service-Status": view.service_state(), "Vary": "Accept"}

    def page(
        form: tables.Form, answer: dict[str, Any], cursor: str | None, schema: Mapping[str, Any]
    ) -> Response:
        headers = table_headers()
        state = headers["X-Service-Status"]
        if cursor is not None:
            headers["X-Next-Cursor"] = cursor
        answer |= {"next_cursor": cursor, "timestamp": iso_local(view.now())}
        answer |= {"service_status": state}
        return tables.table_response(form, answer, schema, headers)

    @app.get(
        "/market/bars",
        tags=["market"],
        response_model=models.BarsAnswer,
        responses={200: {"content": _TABLE_FORMS}, **_READS},
    )
    async def bars(
        request: Request, query: Annotated[params.BarParams, Query()], form: form_param
    ) -> Response:
        """Bars, oldest first. Without start and cursor: the last ``limit`` of them."""
        symbol = _symbol(view, query.symbol)
        if request.method == "HEAD":
            return _head_of_stored(form, table_headers())
        newest = query.start is None and query.cursor is None
        found = await view.bars(
            BarQuery(
                symbol=symbol,
                interval=query.interval,
                start=query.start,
                end=query.end,
                after=query.cursor,
                limit=query.limit if newest else query.limit + 1,  # one more tells of a next page
                newest=newest,
                as_of=query.as_of,
                source=query.source,
            )
        )
        rows = found[: query.limit]
        cursor = str(rows[-1].open_time) if len(found) > query.limit else None
        answer = {
            "symbol": symbol,
            "interval": query.interval,
            "data": [wire.bar_data(row) for row in rows],
        }
        return page(form, answer, cursor, tables.BAR_SCHEMA)

    @app.get(
        "/market/ticks",
        tags=["market"],
        response_model=models.TicksAnswer,
        responses={200: {"content": _TABLE_FORMS}, **_READS},
    )
    async def ticks(
        request: Request, query: Annotated[params.TickParams, Query()], form: form_param
    ) -> Response:
        """Stored ticks by epoch and offset. Without start and cursor: the last ``limit``."""
        symbol = _symbol(view, query.symbol)
        if request.method == "HEAD":
            return _head_of_stored(form, table_headers())
        newest = query.start is None and query.cursor is None
        found = await view.ticks(
            TickQuery(
                symbol=symbol,
                start=query.start,
                end=query.end,
                after=query.after,
                limit=query.limit if newest else query.limit + 1,
                newest=newest,
                as_of=query.as_of,
                source=query.source,
            )
        )
        rows = found[: query.limit]
        last = rows[-1] if len(found) > query.limit else None
        cursor = None if last is None else f"{last.epoch}:{last.offset}"
        answer = {"symbol": symbol, "data": [wire.tick_data(row) for row in rows]}
        return page(form, answer, cursor, tables.TICK_SCHEMA)


def _head_of_stored(media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to ``HEAD`` where ``GET`` would read the database: how long it is only reading tells."""
    response = Response(media_type=media_type, headers=headers)
    del response.headers["Content-Length"]
    return response


def _without(
    responses: Mapping[int | str, dict[str, Any]], status: int
) -> dict[int | str, dict[str, Any]]:
    return {code: answer for code, answer in responses.items() if code != status}
