"""Which keys are left to poll and to stream with, and the sentence when none is."""

from typing import Any

from enhanced_websocket_service.market.calendar import iso_local
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Lease
from enhanced_websocket_service.twelvedata.ledger import Account
from enhanced_websocket_service.twelvedata.standing import (
    Shortage,
    has_streamed,
    no_key_to_poll,
    no_key_to_stream,
)

NOON = 1_749_038_460.0  # 2025-06-04 07:01 in Bogota
PRICE, SERIES = "/price USD/COP", "/time_series USD/COP"
WRONG = (
    "The vendor answered 401: **apikey** parameter is incorrect or not specified. You can get one"
)


def pool(count: int, **options: Any) -> KeyPool:
    return KeyPool([ApiKey(f"G1_{i}", f"secret-{i}") for i in range(count)], **options)


def ask(keys: KeyPool, outcome: Any, now: float, topic: str = "", words: str = "") -> None:
    answer = keys.acquire(now, topic=topic)
    assert isinstance(answer, Lease)
    keys.report(answer, outcome, now, detail=words)


def polls(accounts: Any) -> Shortage | None:
    return no_key_to_poll(accounts, (PRICE, SERIES))


def streams(accounts: Any, *, polled: bool = True) -> Shortage | None:
    return no_key_to_stream(accounts, ["USD/COP"], polled=polled)


def test_keys_that_work_are_no_shortage() -> None:
    keys = pool(2)
    assert polls(keys.accounts(NOON)) is None
    assert streams(keys.accounts(NOON)) is None, "nobody has tried"
    ask(keys, "invalid_key", NOON)
    keys.refuse_stream(keys.keys[0], "403", NOON)
    ask(keys, "minute_exhausted", NOON)
    assert polls(keys.accounts(NOON)) is None, "a minute passes"
    assert streams(keys.accounts(NOON)) is None


def test_all_refused_says_how_many_since_when_and_what_to_do() -> None:
    keys = pool(3)
    for i in range(3):
        ask(keys, "invalid_key", NOON + i, words=WRONG)
    found = polls(keys.accounts(NOON + 10))
    assert found == Shortage(
        "No usable API key: 3 refused by the vendor (401), since 2025-06-04T07:01:02-05:00. "
        "Last answer: The vendor answered 401: **apikey** parameter is incorrect or not specified. "
        "Check the TWELVEDATA_API_KEY settings and the keys at the vendor's site. A refused key is "
        "tried again once an hour, the next one at 2025-06-04T08:01:00-05:00.",
        NOON + 2,
        lasting=True,
    )
    assert polls(keys.accounts(NOON + 3600)), "an hour alone does not make it work"
    ask(keys, "invalid_key", NOON + 3600, words=WRONG)
    again = polls(keys.accounts(NOON + 3601))
    assert again is not None
    assert again.since == NOON + 2, "the failed try is no new beginning"
    ask(keys, "ok", NOON + 3601)
    assert polls(keys.accounts(NOON + 3602)) is None


def test_spent_days_end_by_themselves() -> None:
    keys = pool(2, day_limit=1)
    for i in range(2):
        ask(keys, "ok", NOON + i)
    found = polls(keys.accounts(NOON + 10))
    assert found is not None
    assert not found.lasting
    assert found.sentence == (
        "No usable API key: 2 out of credits for the day, since 2025-06-04T07:01:01-05:00. New credits "
        "come at 2025-06-04T19:00:00-05:00; more keys or a larger plan bring more."
    )
    assert polls(keys.accounts(NOON + 86_400)) is None


def test_several_reasons_stand_in_one_sentence() -> None:
    keys = pool(2, day_limit=1)
    ask(keys, "invalid_key", NOON, words=WRONG)
    ask(keys, "ok", NOON + 60)
    found = polls(keys.accounts(NOON + 61))
    assert found is not None
    assert "1 refused by the vendor (401), 1 out of credits for the day, since" in found.sentence
    assert not found.lasting
    assert "G1_" not in found.sentence


def test_a_plan_without_one_endpoint_names_it() -> None:
    keys = pool(2)
    for i in range(2):
        ask(
            keys,
            "not_entitled",
            NOON + i,
            SERIES,
            "The vendor answered 404: Grow plan. Upgrade now",
        )
    found = polls(keys.accounts(NOON + 10))
    assert found is not None
    assert found.lasting
    assert found.sentence.startswith(
        "No usable API key for /time_series USD/COP: 2 whose plan does not include it, since"
    )
    assert "Last answer: The vendor answered 404: Grow plan." in found.sentence


def test_no_key_to_stream() -> None:
    keys = pool(3)
    ask(keys, "invalid_key", NOON, words=WRONG)
    for key in keys.keys[1:]:
        assert streams(keys.accounts(NOON)) is None
        keys.refuse_stream(key, "not permitted: USD/COP", NOON + 5)
    found = streams(keys.accounts(NOON + 6))
    assert found is not None
    assert found.sentence.startswith(
        "No API key may stream USD/COP: 1 refused by the vendor (401), 2 whose plan does not stream "
        f"it, since {iso_local(int(NOON + 5))}. Last answer: not permitted: USD/COP."
    )
    assert "until then prices come by REST" in found.sentence
    alone = streams(keys.accounts(NOON + 6), polled=False)
    assert alone is not None
    assert "FEED_MODE=auto" in alone.sentence


def test_that_a_stream_ran_is_remembered_through_refusals() -> None:
    keys = pool(1)
    accounts = keys.accounts(NOON)
    assert not has_streamed(accounts)
    keys.refuse_stream(keys.keys[0], "403", NOON)
    assert not has_streamed(accounts)
    keys.accept_stream(keys.keys[0], NOON + 1)
    keys.refuse_stream(keys.keys[0], "403", NOON + 2)
    assert has_streamed(accounts)
    assert streams(accounts) is not None
    again = pool(1)
    assert again.import_state(keys.export_state(NOON + 3), NOON + 4)
    restored: list[Account] = list(again.accounts(NOON + 4))
    assert has_streamed(restored)
    assert streams(restored) is not None
