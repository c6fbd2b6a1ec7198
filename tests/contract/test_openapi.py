"""The API against its own OpenAPI description: schemathesis invents requests, good and bad ones."""

import warnings

import pytest
from hypothesis import HealthCheck, settings

with warnings.catch_warnings():
    # schemathesis uses names that other libraries have deprecated; not ours to fix.
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis import checks as _checks

from enhanced_websocket_service.serving.api import create_app
from enhanced_websocket_service.telemetry import Metrics
from tests.unit.serving.fakes import FakeService, bar, make_hub, tick

pytestmark = pytest.mark.filterwarnings("ignore")  # schemathesis' own


def _app() -> object:
    ticks = [tick(n) for n in range(1, 6)]
    service = FakeService(
        stored_bars=[bar(n) for n in range(5)], stored_ticks=ticks, last={"USDCOP": ticks[-1]}
    )
    return create_app(service, make_hub(), Metrics().registry)


schema = schemathesis.openapi.from_asgi("/openapi.json", _app())

_CHECKS = (
    _checks.not_a_server_error,
    _checks.status_code_conformance,
    _checks.content_type_conformance,
    _checks.response_headers_conformance,
    _checks.response_schema_conformance,
    _checks.unsupported_method,
)


@schema.parametrize()
@settings(
    max_examples=60,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_as_described(case: schemathesis.Case) -> None:
    case.call_and_validate(checks=_CHECKS)


def test_every_endpoint_of_the_requirements_is_described() -> None:
    described = set(schema.raw_schema["paths"])
    assert {
        "/health",
        "/health/live",
        "/health/ready",
        "/status",
        "/market/latest",
        "/market/session",
        "/market/bars",
        "/market/ticks",
        "/market/continuity",
        "/metrics",
    } <= described
