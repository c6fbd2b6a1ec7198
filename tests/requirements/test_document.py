"""The copy in ``facts.py`` against the document it was copied from."""

import json
import re

import pytest

from tests.shared_data import shared

from . import facts


@pytest.fixture(scope="module")
def document() -> str:
    return shared("spec/requirements.md").read_text()


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document, re.M | re.S)


def table_column(document: str, heading: str) -> list[str]:
    """The first column of the table under ``heading``, without its code marks."""
    section = document.split(f"### {heading}\n")[1].split("\n#")[0]
    return re.findall(r"^\| `([^`]+)`", section, re.M)


def test_endpoints(document: str) -> None:
    assert tuple(table_column(document, "REST Endpoints")) == facts.REST_ENDPOINTS
    assert tuple(table_column(document, "WebSocket Endpoints")) == facts.WEBSOCKET_ENDPOINTS


def test_sample_answers(document: str) -> None:
    samples = [json.loads(block) for block in blocks(document, "json")]
    assert samples == list(facts.SAMPLES.values())
    asked = re.findall(r"curl http://localhost:8080(\S+)", document)
    assert asked == list(facts.SAMPLES)


def test_states(document: str) -> None:
    section = document.split("## Service States")[1].split("\n## ")[0]
    assert tuple(re.findall(r"^\d\. \*\*([A-Z0-9_]+)\*\*", section, re.M)) == facts.STATES


def test_tables(document: str) -> None:
    (sql,) = blocks(document, "sql")
    assert sql == facts.SQL
    assert tuple(re.findall(r"EXISTS (\w+)", sql)) == facts.TABLES


def test_environment(document: str) -> None:
    section = document.split("Edit the `.env` file")[1]
    sample = blocks(section, "bash")[0]
    assert dict(re.findall(r"^([A-Z0-9_]+)=(.*)$", sample, re.M)) == facts.ENVIRONMENT
    prose = re.sub(r"^```.*?^```$", "", document, flags=re.M | re.S)
    named = set(re.findall(r"\b[A-Z]+(?:_[A-Z0-9]+)*_(?:URL|PATH|DIR)\b", prose))
    assert named <= {*facts.ENVIRONMENT, *facts.MENTIONED_VARIABLES}
    assert set(facts.MENTIONED_VARIABLES) <= named


def test_every_shell_command_is_listed(document: str) -> None:
    commands = []
    for block in blocks(document, "bash"):
        joined = re.sub(r"\s*\\\n\s*", " ", block)
        joined = re.sub(r"\n(FROM )", r" \1", joined)  # the one query that spans two lines
        commands += [
            line
            for line in joined.splitlines()
            if line.strip() and not line.startswith("#") and not re.match(r"^[A-Z0-9_]+=", line)
        ]
    assert commands == list(facts.COMMANDS)


def test_file_names(document: str) -> None:
    for name in (*facts.FILES, facts.FLAG_FILE, *facts.BACKUP_FILES):
        assert name in document, name
    for name in (facts.LOG_PHRASE, facts.CONTAINER, f"logs -f {facts.COMPOSE_SERVICE}"):
        assert name in document, name


def test_messages(document: str) -> None:
    (client,) = blocks(document, "javascript")
    assert client == facts.JAVASCRIPT
    assert re.findall(r"data\.type === '(\w+)'", client) == list(facts.SERVER_SENDS)
    for kind, fields in facts.SERVER_SENDS.items():
        branch = client.split(f"'{kind}'")[1].split("}")[0]
        assert tuple(re.findall(r"data\.(\w+)\)", branch)) == fields
    assert f"type: '{facts.CLIENT_SENDS['type']}'" in client
    assert json.dumps(facts.FLAG_SAMPLE) in document
