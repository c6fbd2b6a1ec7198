"""The key pool: turns, spacing, ledgers, what it learns, what it shows and saves."""

import json
import math
from typing import Any

import pytest

from enhanced_websocket_service.errors import ConfigurationError
from enhanced_websocket_service.twelvedata.keys import ApiKey, KeyPool, Lease, Wait

DAY_START = 1_748_995_201.0  # 2025-06-04 00:00:01 UTC: where our count of the day begins
SECRETS = ("s3cretsecretsecret00", "s3cretsecretsecret01", "s3cretsecretsecret02")


def pool(count: int = 2, **options: float) -> KeyPool:
    keys = [ApiKey(f"G1_{i + 1}", SECRETS[i]) for i in range(count)]
    return KeyPool(keys, **options)  # type: ignore[arg-type]


def lease(keys: KeyPool, now: float, purpose: str = "poll") -> Lease:
    answer = keys.acquire(now, 1, purpose)
    assert isinstance(answer, Lease)
    return answer


def call(keys: KeyPool, now: float, purpose: str = "poll", **said: Any) -> Lease:
    """A call that is answered at once."""
    answer = lease(keys, now, purpose)
    keys.report(answer, "ok", now, **said)
    return answer


def disabled(keys: KeyPool) -> KeyPool:
    """The same, its first key called wrong when the day began."""
    keys.report(lease(keys, DAY_START), "invalid_key", DAY_START, detail="who is that?")
    return keys


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
        call(keys, DAY_START + 30)
    assert wait(keys, DAY_START + 30) == DAY_START + 60
    tight = pool(1, spacing_s=0.0, minute_limit=1000, day_limit=3)
    for _ in range(3):
        call(tight, DAY_START + 30)
    assert wait(tight, DAY_START + 30) == DAY_START + 86_400
    lease(tight, DAY_START + 86_400)


def test_a_clock_set_back_does_not_hand_out_the_same_minute_twice() -> None:
    keys = pool(1, spacing_s=0.0)
    for _ in range(8):
        call(keys, DAY_START + 60)
    assert wait(keys, DAY_START + 59) == DAY_START + 120


def test_429_cools_the_key_for_its_scope() -> None:
    keys = pool(1)
    keys.report(lease(keys, DAY_START + 30), "minute_exhausted", DAY_START + 30)
    assert wait(keys, DAY_START + 30) == DAY_START + 61
    keys.report(lease(keys, DAY_START + 61), "day_exhausted", DAY_START + 61, stated=(501, 500))
    assert wait(keys, DAY_START + 70) == DAY_START + 86_401
    assert keys.budget(DAY_START + 70).left == 0
    assert keys.budget(DAY_START + 86_400).left == 500


def test_a_wrong_key_is_never_used_again() -> None:
    keys = pool(2)
    keys.report(lease(keys, DAY_START), "invalid_key", DAY_START, detail="who is that?")
    assert [lease(keys, DAY_START + 10 * i).index for i in (1, 2, 3)] == [1, 1, 1]
    keys.report(lease(keys, DAY_START + 40), "invalid_key", DAY_START + 40)
    assert wait(keys, DAY_START + 60) == math.inf
    assert keys.stream_key() is None
    assert keys.budget(DAY_START).keys == 0
    assert keys.snapshot(DAY_START)["keys"][0]["access"]["key"].refusal == "who is that?"


def test_a_disabled_key_is_tried_once_an_hour() -> None:
    """A vendor whose accounts are down calls good keys wrong; that must not outlast it."""
    keys, now = pool(1), DAY_START
    for _ in range(3):
        keys.report(lease(keys, now), "invalid_key", now + 2, detail="who is that?")
        assert wait(keys, now + 3601) == math.inf
        assert keys.budget(now + 3601).left == keys.left(now + 3601) == 0
        now += 3602
        assert keys.budget(now).left == keys.left(now) > 0, "who asks for credits must see it"
    call(keys, now)
    assert keys.usable() == 1
    keys.report(lease(keys, now + 8), "invalid_key", now + 8)
    lease(keys, now + 3608)


def test_whatever_becomes_of_a_try_the_next_one_is_an_hour_later() -> None:
    for outcome in ("unavailable", "cancelled", "invalid_key"):
        keys = disabled(pool(1))
        keys.report(lease(keys, DAY_START + 3600), outcome, DAY_START + 3600)  # type: ignore[arg-type]
        assert wait(keys, DAY_START + 7199) == math.inf
        assert keys.trial(DAY_START + 7199, 0.0) is None
        lease(keys, DAY_START + 7200)
    killed = disabled(pool(1))
    lease(killed, DAY_START + 3600)
    again = pool(1)
    assert again.import_state(killed.export_state(DAY_START + 3600), DAY_START + 3601)
    assert wait(again, DAY_START + 7199) == math.inf


def test_a_clock_set_back_hands_out_no_second_try() -> None:
    keys = disabled(pool(1))
    lease(keys, DAY_START + 3600)
    for now in (DAY_START + 3600, DAY_START, DAY_START + 7199):
        assert wait(keys, now) == math.inf
        assert keys.trial(now, 0.0) is None


def test_the_next_call_tries_a_disabled_key_though_others_are_free() -> None:
    keys = pool(3)
    keys.report(lease(keys, DAY_START), "invalid_key", DAY_START)
    assert [call(keys, DAY_START + 3599 + i).index for i in range(3)] == [1, 0, 2]
    assert keys.usable() == 3


def test_a_key_that_runs_out_of_credits_is_one_that_the_vendor_knows() -> None:
    for outcome in ("minute_exhausted", "day_exhausted", "not_entitled"):
        keys = disabled(pool(1))
        keys.report(lease(keys, DAY_START + 3600), outcome, DAY_START + 3600)  # type: ignore[arg-type]
        assert keys.usable() == 1


def test_an_answer_to_an_older_question_does_not_bring_a_key_back() -> None:
    keys = pool(1)
    slow = lease(keys, DAY_START)
    keys.report(lease(keys, DAY_START + 8), "invalid_key", DAY_START + 9)
    keys.report(slow, "ok", DAY_START + 10)
    assert keys.usable() == 0


def test_a_trial_is_for_a_disabled_key_that_no_call_has_tried() -> None:
    keys = disabled(pool(2))
    assert keys.trial(DAY_START + 3659, 60.0) is None
    tried = keys.trial(DAY_START + 3660, 60.0)
    assert tried is not None
    assert (tried.index, tried.purpose, tried.credits) == (0, "trial", 1)
    assert keys.trial(DAY_START + 3660, 60.0) is None
    keys.report(tried, "ok", DAY_START + 3660)
    assert keys.usable() == 2


def test_what_the_vendor_said_of_a_key_survives_a_restart() -> None:
    keys = pool(3)
    topic = "/price USD/COP"
    keys.report(lease(keys, DAY_START), "invalid_key", DAY_START, detail="who is that?")
    asked = keys.acquire(DAY_START, topic=topic)
    assert isinstance(asked, Lease)
    keys.report(asked, "not_entitled", DAY_START, detail="Grow plan only")
    keys.accept_stream(keys.keys[2], DAY_START)
    keys.refuse_stream(keys.keys[2], "not permitted", DAY_START + 5)
    saved = json.loads(json.dumps(keys.export_state(DAY_START + 10)))
    again = pool(3)
    assert again.import_state(saved, DAY_START + 20)
    wrong, plan, stream = again.accounts(DAY_START + 20)
    for account, name in ((wrong, "key"), (plan, topic), (stream, "stream")):
        assert account.access[name].refusal
    assert stream.access["stream"].granted
    assert [again.acquire(DAY_START + 20, topic=topic).__class__ for _ in range(2)] == [Lease, Wait]
    streamer = again.stream_key(rotate=True)
    assert streamer is not None
    assert streamer.label == "G1_2"


def test_processes_tell_each_other_which_keys_are_wrong_and_which_are_well_again() -> None:
    one, other = disabled(pool(1)), pool(1)
    assert other.import_state(one.export_state(DAY_START), DAY_START + 1)
    assert wait(other, DAY_START + 60) == math.inf
    call(other, DAY_START + 3600)
    assert one.import_state(other.export_state(DAY_START + 3600), DAY_START + 3601)
    assert one.usable() == 1
    assert other.import_state(one.export_state(DAY_START + 3601), DAY_START + 3602)
    assert other.usable() == 1, "an old refusal does not come back"


def test_refusals_of_keys_that_only_others_have_are_handed_on() -> None:
    both, first = pool(2), pool(2)
    evening, midnight = DAY_START + 80_000, DAY_START + 86_400
    both.report(lease(both, evening), "invalid_key", evening)
    narrow = KeyPool([ApiKey("G1_1", SECRETS[1])])
    assert narrow.import_state(both.export_state(evening), midnight)
    assert first.import_state(narrow.export_state(midnight), midnight)
    assert first.usable() == 1


def test_ledgers_of_the_release_before_are_read() -> None:
    """They say nothing about refusals."""
    keys = pool(1)
    call(keys, DAY_START)
    saved = json.loads(json.dumps(keys.export_state(DAY_START)))
    for one in saved["keys"].values():
        del one["access"]
    mine = disabled(pool(1))
    assert mine.import_state(saved, DAY_START + 1)
    assert mine.usable() == 0, "who knows nothing of a refusal does not undo it"
    assert mine.total_calls(DAY_START + 1) == 2


def test_a_key_refused_for_a_topic_is_spared_it_for_an_hour() -> None:
    keys = pool(2)
    topic = "/price USD/COP"
    first = keys.acquire(DAY_START, topic=topic)
    assert isinstance(first, Lease)
    keys.report(first, "not_entitled", DAY_START, detail="Grow plan only")
    again = [keys.acquire(DAY_START + 8 * i, topic=topic) for i in (1, 2)]
    assert [one.index for one in again if isinstance(one, Lease)] == [1, 1]
    assert isinstance(again[1], Lease)
    keys.report(again[1], "not_entitled", DAY_START + 16, detail="Grow plan only")
    answer = keys.acquire(DAY_START + 60, topic=topic)
    assert answer == Wait(DAY_START + 3600, "Grow plan only", refused=True)
    assert lease(keys, DAY_START + 60).topic == "", "good for everything else"
    third = keys.acquire(DAY_START + 3600, topic=topic)
    assert isinstance(third, Lease)
    keys.report(third, "ok", DAY_START + 3600)
    assert keys.accounts(DAY_START + 3601)[third.index].refused(topic) is None


def test_groups_take_turns() -> None:
    labels = [(g, i) for g in (1, 2) for i in (1, 2)]
    keys = KeyPool([ApiKey(f"G{g}_{i}", f"secret-{g}{i}", g) for g, i in labels])
    used = [call(keys, DAY_START + i).key.label for i in range(4)]
    assert used == ["G1_1", "G2_1", "G1_2", "G2_2"]
    groups = keys.snapshot(DAY_START + 4)["groups"]
    assert [(one["group"], one["keys"], one["used_today"]) for one in groups] == [
        (1, 2, 2),
        (2, 2, 2),
    ]


def test_the_key_with_most_credits_left_is_used_first() -> None:
    keys = pool(2)
    call(keys, DAY_START)
    keys.report(
        lease(keys, DAY_START), "ok", DAY_START, header_credits=(5, 3)
    )  # somebody else spends with the second key
    assert [call(keys, DAY_START + 8 * i).index for i in (1, 2, 3)] == [0, 0, 0]


def test_a_call_at_the_edge_of_a_minute_counts_in_both() -> None:
    """The vendor's clock may be a second from ours, and calls take time to get there."""
    for ended, calls in ((57.9, 8), (58.1, 7), (61.0, 7)):
        keys = pool(1, spacing_s=0.0)
        held = lease(keys, DAY_START + 57)
        keys.report(held, "ok", DAY_START + ended)
        for _ in range(calls):
            call(keys, DAY_START + 61)
        assert wait(keys, DAY_START + 61) == DAY_START + 120


def test_what_others_spend_is_counted_and_room_is_left_for_them() -> None:
    keys = pool(1, spacing_s=0.0)
    call(keys, DAY_START + 1, header_credits=(4, 4))  # one of them ours
    assert keys.budget(DAY_START + 2).left == 800 - 4
    assert keys.snapshot(DAY_START + 2)["credits_by_purpose"] == {"poll": 1, "elsewhere": 3}
    for _ in range(4):
        call(keys, DAY_START + 2)
    assert wait(keys, DAY_START + 2) == DAY_START + 60
    for _ in range(5):  # three credits stay for the other
        call(keys, DAY_START + 61)
    assert wait(keys, DAY_START + 61) == DAY_START + 120


def test_a_429_tells_what_others_have_spent() -> None:
    keys = pool(1)
    keys.report(lease(keys, DAY_START), "minute_exhausted", DAY_START + 1, stated=(9, 8))
    assert keys.budget(DAY_START + 2).left == 800 - 9
    keys.report(lease(keys, DAY_START + 61), "day_exhausted", DAY_START + 62, stated=(801, 800))
    assert keys.budget(DAY_START + 63).left == 0
    assert keys.budget(DAY_START + 63).spent["elsewhere"] == 799


def test_headers_teach_the_limit_and_what_others_spent() -> None:
    keys = pool(1, spacing_s=0.0)
    keys.report(lease(keys, DAY_START), "ok", DAY_START + 1, header_credits=(50, 5))
    for _ in range(5):
        call(keys, DAY_START + 2)
    assert wait(keys, DAY_START + 2) == DAY_START + 60
    # An answer to a question of the minute before says nothing about this one.
    late = lease(keys, DAY_START + 60)
    keys.report(late, "ok", DAY_START + 121, header_credits=(55, 0))
    assert keys.snapshot(DAY_START + 121)["keys"][0]["minute_used"] == 1


def test_usage_teaches_the_day() -> None:
    keys = pool(1, spacing_s=0.0)
    first = lease(keys, DAY_START)
    keys.learn_limits(first, DAY_START, minute=8, day=100, day_used=98)
    assert keys.budget(DAY_START).left == 2
    keys.learn_limits(first, DAY_START, minute=55, day=None, day_used=None)
    assert keys.budget(DAY_START).left == 55 * 1440 - 98


def test_calls_and_credits_are_counted_by_utc_day_and_purpose() -> None:
    keys = pool(2)
    call(keys, DAY_START, "poll")
    call(keys, DAY_START, "repair")
    call(keys, DAY_START + 8, "poll")
    keys.got("repair", "bars", 60)
    assert keys.total_calls(DAY_START + 9) == 3
    assert keys.snapshot(DAY_START + 9)["credits_by_purpose"] == {"poll": 2, "repair": 1}
    assert keys.snapshot(DAY_START + 9)["purchases"]["repair"] == {
        "credits": 1,
        "calls": 1,
        "outcomes": {"ok": 1},
        "items": {"bars": 60},
        "last_at": DAY_START,
        "last_outcome": "ok",
    }
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
    keys.refuse_stream(first, "403", DAY_START)
    second = keys.stream_key(rotate=True)
    assert second is not None
    assert second.label == "G1_2"
    third, again = keys.stream_key(rotate=True), keys.stream_key(rotate=True)
    assert third is not None
    assert again is not None
    assert [third.label, again.label] == ["G1_3", "G1_2"]  # the refused one is left out
    for key in (second, third):
        keys.refuse_stream(key, "403", DAY_START)
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
    assert not pool(1).import_state(saved, DAY_START - 3600)
    assert pool(1).import_state(saved, DAY_START - 1), "clocks are set back a little"
    for damaged in ({}, {**saved, "keys": 7}, {**saved, "saved_at": "x"}, None, []):
        assert not pool(1).import_state(damaged, DAY_START)


def test_yesterdays_spending_does_not_burden_today() -> None:
    keys = pool(1)
    call(keys, DAY_START)
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
            probe.report(answer, "ok", at)
        assert expected == at - DAY_START - 1
    assert keys.total_calls(DAY_START + 1) == 1  # asking costs nothing


def test_the_forecast_knows_exhausted_days_and_keys() -> None:
    keys = pool(1, day_limit=3)
    assert keys.forecast(DAY_START, 3) == 16
    assert keys.forecast(DAY_START, 4) == 86_400
    keys.report(lease(keys, DAY_START), "invalid_key", DAY_START)
    assert keys.forecast(DAY_START + 60, 1) == math.inf
