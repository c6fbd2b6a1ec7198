"""Each fault of the vendor does to the service exactly what its expectation says."""

from collections.abc import Mapping

import pytest

from . import secrets
from .catalogue import ALL, STAGES
from .conftest import Judged
from .expectation import Expectation, Stage

pytestmark = [
    pytest.mark.xdist_group("faults"),
    pytest.mark.takes_turns,
    pytest.mark.timeout(600),
]


@pytest.mark.parametrize(("stage", "one"), ALL, ids=[one.name for _, one in ALL])
def test_fault(judged: Mapping[str, Judged], stage: Stage, one: Expectation) -> None:
    wrong = judged[stage.name].faults_of(one)
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


@pytest.mark.parametrize("stage", STAGES, ids=[stage.name for stage in STAGES])
def test_stage(judged: Mapping[str, Judged], stage: Stage) -> None:
    """Whatever happened: one line of offsets, honest accounts, no slot without a bar, a clean end."""
    wrong = judged[stage.name].faults()
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


@pytest.mark.parametrize("stage", STAGES, ids=[stage.name for stage in STAGES])
def test_no_key_is_told(judged: Mapping[str, Judged], stage: Stage) -> None:
    one = judged[stage.name]
    report = one.report
    places = {
        **report.pages,
        **one.cache,
        **secrets.files(report.place.folder),
        "the process title": report.command_line,
        "the messages": str(report.consumer.messages),
        "the database": one.stored.text,
    }
    assert {"/metrics", "/status", "/nowhere", f"service-{stage.name}.log"} <= places.keys()
    assert "USDCOP" in one.stored.text
    assert any(name.startswith("simulated:ews:") for name in one.cache)
    assert secrets.told(report.keys, places) == []


def test_a_key_that_is_told_is_found() -> None:
    assert secrets.told(["abc-key"], {"a log": "... key=abc-key ..."}) == ["a log: ... key=..."]
