"""How requests find their endpoint: ``HEAD`` wherever ``GET`` is, and a trailing slash is no other place."""

from collections.abc import Iterable

from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send


class GetRoute(APIRoute):
    """A route that answers ``HEAD`` like ``GET``; the server leaves out the body (RFC 9110, 9.3.2).

    Not by another method of the route: the OpenAPI text would have every operation twice.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return (Match.FULL if match is Match.PARTIAL and self._is_head(scope) else match), child

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_head(scope):
            await self.app(scope, receive, send)
        else:
            await super().handle(scope, receive, send)

    def _is_head(self, scope: Scope) -> bool:
        return scope["method"] == "HEAD" and "GET" in (self.methods or ())


def allowed(methods: Iterable[str]) -> str:
    """The value of ``Allow`` for what an endpoint supports."""
    found = set(methods)
    return ", ".join(sorted(found | {"HEAD"} if "GET" in found else found))


class TrailingSlash:
    """Takes one slash from the end of a path. No redirect: not every client follows one, and those of
    WebSockets do not.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path.endswith("/") and path.strip("/") and not path.endswith("//"):
            raw_path = scope.get("raw_path")
            scope = {
                **scope,
                "path": path[:-1],
                "raw_path": raw_path and raw_path.removesuffix(b"/"),
            }
        await self._app(scope, receive, send)
