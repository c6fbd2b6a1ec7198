"""Each fault of the vendor does to the service exactly what its expectation says."""

from collections.abc import Mapping

import pytest

from .catalogue import ALL, STAGES
from .conftest import Judged
from .expectation import Expectation, Stage

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(300)]


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
    places = {
        **one.report.pages,
        "the log": one.report.log,
        "the command line": one.report.command_line,
        "the messages": str(one.report.consumer.messages),
        "the database": one.stored.text,
    }
    assert one.report.secrets
    told = [name for name, text in places.items() for key in one.report.secrets if key in text]
    assert told == []
