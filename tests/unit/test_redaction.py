"""Secrets are taken out of addresses and texts, and words are left in."""

from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enhanced_websocket_service.redaction import Redactor, redact_url, secrets_in_url


@pytest.mark.parametrize(
    ("url", "shown", "secrets"),
    [
        ("postgresql://me:pw@db:5432/x", "postgresql://me:[redacted]@db:5432/x", {"pw"}),
        ("postgresql://me@db/x", "postgresql://me@db/x", set()),
        ("postgresql://ews@/x?host=/run&port=5", "postgresql://ews@/x?host=/run&port=5", set()),
        (
            "postgresql://h/x?password=p&user=me",
            "postgresql://h/x?password=[redacted]&user=me",
            {"p"},
        ),
        (
            "postgresql://h/x?options=-c%20password%3Dabc&sslmode=require",
            "postgresql://h/x?options=-c%20password=[redacted]&sslmode=require",
            {"abc"},
        ),
        (
            "postgresql://h/x?passfile=/p&sslkey=/k&sslpassword=s",
            "postgresql://h/x?passfile=/p&sslkey=/k&sslpassword=[redacted]",
            {"s"},
        ),
        ("redis://:a%40b@h/0", "redis://:[redacted]@h/0", {"a%40b", "a@b"}),
        ("redis://token@h", "redis://[redacted]@h", {"token"}),
        ("rediss://token:@h", "rediss://[redacted]:@h", {"token"}),
        ("unix:///tmp/a@b.sock?db=0", "unix:///tmp/a@b.sock?db=0", set()),
        ("unix://:pw@/tmp/x.sock", "unix://:[redacted]@/tmp/x.sock", {"pw"}),
        (
            "https://u:pw@h/?apikey=K&b=1",
            "https://u:[redacted]@h/?apikey=[redacted]&b=1",
            {"pw", "K"},
        ),
        (
            "wss://h/v1?access_token=T#key=F",
            "wss://h/v1?access_token=[redacted]#key=[redacted]",
            {"T", "F"},
        ),
        ("https://h/?API-Key=K", "https://h/?API-Key=[redacted]", {"K"}),
        (
            "postgresql://h/x?options=-c%20password%3D%27a%20b%27%20-c%20a%3Db",
            "postgresql://h/x?options=-c%20password=[redacted]%20-c%20a=b",
            {"'a b'"},
        ),
        ("redis://h/0?username=token", "redis://h/0?username=[redacted]", {"token"}),
        ("no address at all", "no address at all", set()),
        ("", "", set()),
    ],
)
def test_an_address_is_shown_without_its_secrets(url: str, shown: str, secrets: set[str]) -> None:
    assert redact_url(url) == shown
    assert secrets_in_url(url) == secrets


@given(st.text())
def test_no_text_is_too_odd_for_an_address(text: str) -> None:
    redact_url(text)
    redact_url(f"redis://{text}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        # What could be a word or a number stays where it is one.
        ("invalid username-password pair", "invalid username-password pair"),
        ("every user has a name", "every user has a name"),
        ("2025-06-03T08:00", "2025-06-03T08:00"),
        ("https://user.example/password/x", "https://user.example/password/x"),
        ("channel usdcop:latest_price", "channel usdcop:latest_price"),
        # Where it is meant, it goes.
        ("redis://user@h and redis://:2025@h", "redis://[redacted]@h and redis://:[redacted]@h"),
        ("postgresql://usdcop:usdcop@h/x", "postgresql://usdcop:[redacted]@h/x"),
        ("password=password host=h", "password=[redacted] host=h"),
        ('{"password": "password"}', '{"[redacted]": "[redacted]"}'),
        ("password", "[redacted]"),
        # What is no word goes wherever it stands.
        ("the server said hunter2!", "the server said [redacted]!"),
        ("apikey0123456789abcdef&x", "apikey[redacted]&x"),
        ("correcthorsebattery", "[redacted]"),
    ],
)
def test_only_secrets_are_taken_out_of_a_text(text: str, shown: str) -> None:
    redact = Redactor(
        ("user", "password", "2025", "usdcop", "hunter2", "0123456789abcdef", "correcthorsebattery")
    )
    assert redact(text) == shown


def test_nested_values_are_redacted_too() -> None:
    redact = Redactor({"0123456789abcdef"})
    value = {"a": ["x0123456789abcdef", 1, None], "b": ValueError("0123456789abcdef")}
    assert redact(value) == {"a": ["x[redacted]", 1, None], "b": "[redacted]"}
    assert redact(urlsplit("http://h/0123456789abcdef")) == ("http", "h", "/[redacted]", "", "")
    assert Redactor(())("anything") == "anything"


@given(st.text(min_size=4), st.text(), st.text())
def test_a_secret_that_is_no_word_survives_in_no_text(secret: str, before: str, after: str) -> None:
    shown = Redactor({f"{secret}0-x-1"})(f"{before}{secret}0-x-1{after}")
    assert f"{secret}0-x-1" not in shown.replace("[redacted]", "")
