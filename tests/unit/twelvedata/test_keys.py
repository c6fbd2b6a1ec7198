"""The key pool: turns, spacing, ledgers, what it learns, what it shows and saves."""

import json
import math

import pytest

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Lease, Wait

DAY_START = 1_748_995_200.0  # 2025-06-04 00:00:00 UTC
SECRETS = ("s3cretsecretsecret00", "s3cretsecretsecret01", "s3cretsecretsecret02")


def pool(count: int = 2, **options: float) -> KeyPool:
    keys = [ApiKey(f"G1_{i + 1}", SECRETS[i]) for i in range(count)]
    return KeyPool(keys, **options)  # type: ignore[arg-type]


def lease(keys: KeyPool, now: float, purpose: str = "poll") -> Lease:
    answer = keys.acquire(now, 1, purpose)
    assert isinstance(answer, Lease)
    return answer


def wait(keys: KeyPool, now: float) -> float:
    answer = keys.acquire(now)
    assert isinstance(answer, Wait)
    return answer.until


def test_keys_take_turns_and_each_rests_for_the_spacing() -> None:
    keys = pool(2)
    assert keys.current_key_index == 0
    assert [lease(keys, DAY_START).index, lease(keys, DAY_START).index] == [0, 1]
    assert keys.current_key_index == 1
    assert wait(keys, DAY_START + 1) == DAY_START + 8
    assert lease(keys, DAY_START + 8).index == 0


def test_spacing_counts_from_the_end_of_the_call() -> None:
    keys = pool(1)
    keys.report(lease(keys, DAY_START), "ok", DAY_START + 3)
    assert wait(keys, DAY_START + 8) == DAY_START + 11


def test_the_minute_and_the_day_are_never_overspent() -> None:
    keys = pool(1, spacing_s=0.0)
    for _ in range(8):
        lease(keys, DAY_START + 30)
    assert wait(keys, DAY_START + 30) == DAY_START + 60
    tight = pool(1, spacing_s=0.0, minute_limit=1000, day_limit=3)
    for _ in range(3):
        lease(tight, DAY_START + 30)
    assert wait(tight, DAY_START + 30) == DAY_START + 86_400
    lease(tight, DAY_START + 86_400)


def test_a_clock_set_back_does_not_hand_out_the_same_minute_twice() -> None:
    keys = pool(1, spacing_s=0.0)
    for _ in range(8):
        lease(keys, DAY_START + 60)
    assert wait(keys, DAY_START + 59) == DAY_START + 120


def test_429_cools_the_key_for_its_scope() -> None:
    keys = pool(1)
    keys.report(lease(keys, DAY_START + 30), "minute_exhausted", DAY_START + 30)
    assert wait(keys, DAY_START + 30) == DAY_START + 61
    keys.report(lease(keys, DAY_START + 61), "day_exhausted", DAY_START + 61, stated_limit=500)
    assert wait(keys, DAY_START + 70) == DAY_START + 86_401
    assert keys.budget(DAY_START + 70).left == 0
    assert keys.budget(DAY_START + 86_400).left == 500


def test_a_wrong_key_is_never_used_again() -> None:
    keys = pool(2)
    keys.report(lease(keys, DAY_START), "invalid_key", DAY_START, detail="who is that?")
    assert [lease(keys, DAY_START + 10 * i).index for i in (1, 2, 3)] == [1, 1, 1]
    keys.report(lease(keys, DAY_START + 40), "invalid_key", DAY_START + 40)
    assert wait(keys, DAY_START + 1e6) == math.inf
    assert keys.stream_key() is None
    assert keys.budget(DAY_START).keys == 0
    assert keys.snapshot(DAY_START)["keys"][0]["disabled"] == "who is that?"


def test_headers_teach_the_limit_and_what_others_spent() -> None:
    keys = pool(1, spacing_s=0.0)
    keys.report(lease(keys, DAY_START), "ok", DAY_START + 1, header_credits=(50, 5))
    for _ in range(5):
        lease(keys, DAY_START + 2)
    assert wait(keys, DAY_START + 2) == DAY_START + 60
    # An answer from the minute before says nothing about this one.
    late = lease(keys, DAY_START + 60)
    keys.report(late, "ok", DAY_START + 121, header_credits=(55, 0))
    lease(keys, DAY_START + 121)


def test_usage_teaches_the_day() -> None:
    keys = pool(1, spacing_s=0.0)
    first = lease(keys, DAY_START)
    keys.learn_limits(first, DAY_START, minute=8, day=100, day_used=98)
    assert keys.budget(DAY_START).left == 2
    keys.learn_limits(first, DAY_START, minute=55, day=None, day_used=None)
    assert keys.budget(DAY_START).left == 55 * 1440 - 98


def test_calls_and_credits_are_counted_by_utc_day_and_purpose() -> None:
    keys = pool(2)
    lease(keys, DAY_START, "poll")
    lease(keys, DAY_START, "repair")
    lease(keys, DAY_START + 8, "poll")
    assert keys.total_calls(DAY_START + 9) == 3
    assert keys.snapshot(DAY_START + 9)["credits_by_purpose"] == {"poll": 2, "repair": 1}
    assert keys.total_calls(DAY_START + 86_400) == 0
    assert keys.snapshot(DAY_START + 86_400)["credits_by_purpose"] == {}


def test_latency_is_kept_per_key() -> None:
    keys = pool(1)
    keys.report(lease(keys, DAY_START), "ok", DAY_START, latency_ms=100.0)
    keys.report(lease(keys, DAY_START + 8), "unavailable", DAY_START + 8, latency_ms=200.0)
    shown = keys.snapshot(DAY_START + 8)["keys"][0]
    assert (shown["latency_ms"], shown["latency_max_ms"], shown["failures"]) == (120.0, 200.0, 1)


def test_the_stream_stays_with_its_key_until_told_to_move() -> None:
    keys = pool(3)
    first = keys.stream_key()
    assert first is not None
    assert (first.label, keys.stream_key()) == ("G1_1", first)
    keys.refuse_stream(first, "403")
    second = keys.stream_key(rotate=True)
    assert second is not None
    assert second.label == "G1_2"
    third, again = keys.stream_key(rotate=True), keys.stream_key(rotate=True)
    assert third is not None
    assert again is not None
    assert [third.label, again.label] == ["G1_3", "G1_2"]  # the refused one is left out
    for key in (second, third):
        keys.refuse_stream(key, "403")
    last = keys.stream_key(rotate=True)
    assert last is not None
    assert last.label == "G1_3"  # all refused: in turn again
    assert lease(keys, DAY_START).purpose == "poll"  # refused for streaming is good for REST


def test_saved_state_survives_a_restart() -> None:
    keys = pool(2)
    for i in range(8):
        keys.report(lease(keys, DAY_START + 8 * i), "ok", DAY_START + 8 * i)
    saved = json.loads(json.dumps(keys.export_state(DAY_START + 57)))
    again = pool(2)
    assert again.import_state(saved, DAY_START + 58)
    assert again.total_calls(DAY_START + 58) == 8
    assert again.budget(DAY_START + 58).left == 1592
    assert again.budget(DAY_START + 58).spent == {"poll": 8}
    assert isinstance(again.acquire(DAY_START + 58), Lease)
    assert wait(again, DAY_START + 58) == DAY_START + 64


def test_state_of_another_timeline_or_damaged_is_ignored() -> None:
    saved = pool(1).export_state(DAY_START)
    assert not pool(1).import_state(saved, DAY_START - 1)
    for damaged in ({}, {**saved, "keys": 7}, {**saved, "saved_at": "x"}, None, []):
        assert not pool(1).import_state(damaged, DAY_START)


def test_yesterdays_spending_does_not_burden_today() -> None:
    keys = pool(1)
    lease(keys, DAY_START)
    again = pool(1)
    assert again.import_state(keys.export_state(DAY_START), DAY_START + 86_400)
    assert again.budget(DAY_START + 86_400).left == 800
    assert again.total_calls(DAY_START + 86_400) == 0


def test_no_secret_is_ever_shown() -> None:
    keys = pool(2)
    answer = lease(keys, DAY_START)
    shown = f"{keys.snapshot(DAY_START)} {keys.export_state(DAY_START)} {answer!r} {keys.keys}"
    for secret in SECRETS:
        assert secret not in shown
        assert secret[-4:] not in shown


def test_unusable_keys_are_named_but_not_shown() -> None:
    for secret in ("", "with space", "line\nbreak", "ñandú"):
        with pytest.raises(ConfigurationError, match="G2_8") as refused:
            ApiKey("G2_8", secret, 2)
        assert not secret or secret not in str(refused.value)
    with pytest.raises(ConfigurationError, match=r"G1_1 and G1_2 are the same"):
        KeyPool([ApiKey("G1_1", "same"), ApiKey("G1_2", "same")])
    for count in (0, 17):
        with pytest.raises(ConfigurationError, match="1 to 16"):
            KeyPool([ApiKey(f"K{i}", f"secret{i}") for i in range(count)])


def test_the_forecast_is_what_then_happens() -> None:
    keys = pool(3)
    lease(keys, DAY_START)
    for calls in (0, 1, 2, 3, 30):
        expected = keys.forecast(DAY_START + 1, calls)
        probe, at = pool(3), DAY_START + 1
        lease(probe, DAY_START)
        for _ in range(calls):
            while isinstance(answer := probe.acquire(at), Wait):
                at = answer.until
        assert expected == at - DAY_START - 1
    assert keys.total_calls(DAY_START + 1) == 1  # asking costs nothing


def test_the_forecast_knows_exhausted_days_and_keys() -> None:
    keys = pool(1, day_limit=3)
    assert keys.forecast(DAY_START, 3) == 16
    assert keys.forecast(DAY_START, 4) == 86_400
    keys.report(lease(keys, DAY_START), "invalid_key", DAY_START)
    assert keys.forecast(DAY_START + 60, 1) == math.inf
