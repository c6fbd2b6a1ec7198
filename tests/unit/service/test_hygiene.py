"""Odd quotes: counted, stored, and without power over bars, prices and the clock."""

from enhanced_websocket_service.market.bar import Bar, BarUpdate
from enhanced_websocket_service.market.calendar import TradingCalendar
from enhanced_websocket_service.market.tick import Flag, Rejection, Tick
from enhanced_websocket_service.service.pipeline import Pipeline
from enhanced_websocket_service.telemetry import Metrics
from enhanced_websocket_service.watermarks import Hop

from .test_pipeline import CLOSE, OPEN, Recorder, pipeline, quote

END_OF_TIME = 253_402_300_799
"""The last second of the year 9999, which the protocol lets pass."""


def bars(recorder: Recorder) -> list[Bar]:
    return [event.bar for event in recorder.events if isinstance(event, BarUpdate)]


def partial(bar: Bar) -> bool:
    assert bar.certificate is not None
    return bar.certificate.partial


def vendor_bar(revision: int) -> Bar:
    return Bar("USDCOP", 300, OPEN, 1, 1, 1, 1, 0, "simulator", revision, "revised")


def test_each_oddity_is_counted_by_symbol_in_status_and_metrics() -> None:
    recorder, metrics = Recorder(), Metrics()
    line = Pipeline(
        {"USDCOP": TradingCalendar()},
        journal=recorder,
        publish=recorder.publish,
        metrics=metrics,
        epoch=1,
    )
    line.on_time(OPEN + 10.0, 60.0)
    line.on_quotes(
        [
            quote(OPEN - 1, 4100.0),
            quote(OPEN + 1, 4100.0),
            quote(OPEN + 1, 4100.0),
            quote(OPEN, 4101.0),
            quote(OPEN + 2, 4179.95996),
            quote(OPEN + 3, 4180.0, bid=4181.0, ask=4179.0),
            quote(OPEN + 100, 4180.0),
            quote(OPEN + 4, 4180.0, stamped=False, source="simulator_rest"),
            quote(OPEN + 4, 8000.0),
            quote(OPEN + 5, 4180.5),
            quote(OPEN + 6, 9000.0),
        ],
        OPEN + 10.0,
    )
    shown = line.hygiene()["USDCOP"]
    last = shown.pop("last_rejected")
    assert (last["reason"], last["price"]) == ("outlier", 8000.0)
    assert shown == {
        "quotes": 11,
        "ticks": 8,
        "repeated": 1,
        "out_of_order": 1,
        "late": 0,
        "future": 1,
        "outside_session": 1,
        "crossed": 1,
        "float32_noise": 1,
        "confirmed": 0,
        "resent": 0,
        "unchanged": 1,
        "rejected": {"outlier": 1},
        "held_now": 1,
    }
    for kind in ("repeated", "out_of_order", "future", "crossed", "float32_noise"):
        labels = {"symbol": "USDCOP", "kind": kind}
        assert metrics.registry.get_sample_value("ews_ticks_odd_total", labels) == 1
    accepted = {"symbol": "USDCOP", "source": "simulator_websocket"}
    assert metrics.registry.get_sample_value("ews_ticks_accepted_total", accepted) == 8
    assert metrics.registry.get_sample_value("ews_last_price", {"symbol": "USDCOP"}) == 4180.5


def test_an_out_of_order_tick_is_published_and_is_not_the_last_price() -> None:
    recorder, metrics = Recorder(), Metrics()
    line = Pipeline(
        {"USDCOP": TradingCalendar()},
        journal=recorder,
        publish=recorder.publish,
        metrics=metrics,
        epoch=1,
    )
    assert metrics.registry.get_sample_value("ews_last_price", {"symbol": "USDCOP"}) is None
    line.on_quotes([quote(OPEN + 9, 4100.0), quote(OPEN + 8, 4090.0)], OPEN + 9.5)
    assert [event.flags for event in recorder.events if isinstance(event, Tick)] == [
        (),
        (Flag.OUT_OF_ORDER,),
    ]
    assert metrics.registry.get_sample_value("ews_last_price", {"symbol": "USDCOP"}) == 4100.0
    line.on_time(OPEN + 301.0, 60.0)
    assert [(bar.open, bar.low, bar.close) for bar in bars(recorder)] == [(4090.0, 4090.0, 4100.0)]


def test_stamps_of_any_year_are_stored_and_stop_nothing() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.on_time(OPEN + 5.0, 60.0)
    stamps = [1, END_OF_TIME, END_OF_TIME - 40_000, CLOSE - 86_400, CLOSE + 86_400]
    line.on_quotes([quote(stamp, 4100.0) for stamp in stamps], OPEN + 5.0)
    line.on_quotes([quote(OPEN + 5, 4100.0)], OPEN + 5.1)
    stored = [record for record in recorder.records if isinstance(record, Tick)]
    assert [tick.timestamp for tick in stored] == [*stamps, OPEN + 5]
    assert [tick.offset for tick in stored] == [1, 2, 3, 4, 5, 6]
    line.on_time(CLOSE + 86_400.0, 60.0)
    assert [bar.open_time for bar in bars(recorder)] == [OPEN]


def test_a_late_tick_changes_no_price_of_its_bar_which_says_partial_and_asks_for_the_vendors() -> (
    None
):
    recorder = Recorder()
    wished: list[tuple[str, float, float]] = []
    line = Pipeline(
        {"USDCOP": TradingCalendar()},
        journal=recorder,
        publish=recorder.publish,
        metrics=Metrics(),
        epoch=1,
        incomplete=lambda *wish: wished.append(wish),
    )
    line.on_quotes([quote(OPEN + 10, 4100.0)], OPEN + 10.1)
    line.on_time(OPEN + 361.0, 60.0)
    line.on_quotes([quote(OPEN + 299, 4150.0)], OPEN + 362.0)
    line.on_time(OPEN + 363.0, 60.0)
    assert [(bar.revision, bar.high) for bar in bars(recorder)] == [(0, 4100.0), (1, 4100.0)]
    certificates = [bar.certificate for bar in bars(recorder)]
    assert [one is not None and one.partial for one in certificates] == [False, True]
    assert recorder.records[-1] in recorder.events
    assert line.counts.late == 1
    assert wished == [("USDCOP", OPEN, OPEN + 300)]


def test_a_run_held_over_the_close_leaves_its_bar_partial_until_it_is_decided() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.on_quotes([quote(OPEN + 10, 4100.0)], OPEN + 10.1)
    line.on_quotes([quote(OPEN + 298, 4400.0), quote(OPEN + 299, 4401.0)], OPEN + 299.1)
    line.on_time(OPEN + 301.0, 60.0)
    line.on_quotes([quote(OPEN + 301, 4402.0)], OPEN + 301.5)
    line.on_time(OPEN + 302.0, 60.0)
    assert [(bar.revision, bar.close, partial(bar)) for bar in bars(recorder)] == [
        (0, 4100.0, True),
        (1, 4401.0, False),
    ]


def test_a_run_refuted_after_the_close_leaves_its_bar_whole() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.on_quotes([quote(OPEN + 10, 4100.0), quote(OPEN + 299, 8000.0)], OPEN + 299.1)
    line.on_time(OPEN + 301.0, 60.0)
    line.on_quotes([quote(OPEN + 301, 4101.0)], OPEN + 301.5)
    line.on_time(OPEN + 302.0, 60.0)
    assert [(bar.revision, bar.high, partial(bar)) for bar in bars(recorder)] == [
        (0, 4100.0, True),
        (1, 4100.0, False),
    ]


def test_a_run_nobody_decided_leaves_the_last_bar_partial_and_is_stored() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.on_quotes([quote(CLOSE - 10, 4100.0), quote(CLOSE - 1, 4400.0)], CLOSE - 0.5)
    line.flush_held()
    line.on_time(CLOSE + 1.0, 60.0)
    (bar,) = bars(recorder)
    assert partial(bar)
    reasons = [one.reason for one in recorder.records if isinstance(one, Rejection)]
    assert reasons == ["held", "outlier"], "first that it waits, then what became of it"


def test_refused_quotes_are_no_work_undone_once_rest_shows_the_last_price() -> None:
    line = pipeline(Recorder())
    line.on_quotes([quote(OPEN + 1, 4100.0)], OPEN + 1.5)
    line.on_quotes([quote(OPEN + 2 + n, 9000.0 + 1000 * n) for n in range(4)], OPEN + 6.5)
    line.on_quotes([quote(OPEN + 7, 4101.0)], OPEN + 7.5)  # what was held is refuted
    line.on_quotes([quote(OPEN + 8 + n, 0.0) for n in range(4)], OPEN + 12.5)
    (undone,) = [one for one in line._watermarks.undone() if one.hop is Hop.ACCEPTED]
    assert undone.count == 4
    line.on_rest_price("USDCOP", 4150.0, OPEN + 30.0)
    assert [one.hop for one in line._watermarks.undone()].count(Hop.ACCEPTED) == 1
    line.on_rest_price("USDCOP", 4101.0, OPEN + 31.0)
    assert Hop.ACCEPTED not in [one.hop for one in line._watermarks.undone()]


def test_a_session_takes_what_it_refused_with_it() -> None:
    line = pipeline(Recorder())
    line.on_quotes([quote(CLOSE - 1, 0.0) for _ in range(4)], CLOSE - 0.5)
    assert Hop.ACCEPTED in [one.hop for one in line._watermarks.undone()]
    line.flush_held("USDCOP")
    assert Hop.ACCEPTED not in [one.hop for one in line._watermarks.undone()]


def test_a_sampled_rest_price_confirms_held_quotes_and_becomes_no_tick() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.on_rest_price("USDCOP", 4100.0, OPEN + 1.0)
    line.on_rest_price("EURUSD", 1.1, OPEN + 1.0)
    line.on_quotes([quote(OPEN + 1, 4100.0), quote(OPEN + 2, 4400.0)], OPEN + 2.5)
    line.on_rest_price("USDCOP", 4399.0, OPEN + 5.0)
    ticks = [event for event in recorder.events if isinstance(event, Tick)]
    assert [(tick.offset, tick.price, tick.flags) for tick in ticks] == [
        (1, 4100.0, ()),
        (2, 4400.0, (Flag.HELD,)),
    ]
    assert line.hygiene()["USDCOP"]["confirmed"] == 1


def test_a_rest_price_that_did_not_change_is_no_tick_however_it_is_spelt() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.on_quotes([quote(OPEN + 1, 4179.96)], OPEN + 1.5)
    polled = {"stamped": False, "source": "simulator_rest"}
    line.on_quotes([quote(OPEN + 5, 4179.95996, **polled)], OPEN + 5.0)
    line.on_quotes([quote(OPEN + 9, 4180.0, **polled)], OPEN + 9.0)
    assert line.offsets == {"USDCOP": 2}
    assert line.counts.unchanged == 1


def test_a_gap_of_one_feed_marks_its_own_bars_also_those_already_published() -> None:
    recorder = Recorder()
    line = Pipeline(
        {"USDCOP": TradingCalendar(), "EURUSD": TradingCalendar()},
        journal=recorder,
        publish=recorder.publish,
        metrics=Metrics(),
        epoch=1,
    )
    both = [quote(OPEN + 10, 4100.0), quote(OPEN + 10, 1.1, symbol="EURUSD")]
    line.on_quotes(both, OPEN + 10.1)
    line.on_time(OPEN + 400.0, 60.0)
    line.interrupted(OPEN + 20, OPEN + 320, "USDCOP")
    line.interrupted(OPEN + 20, OPEN + 320, "GBPUSD")
    line.on_time(OPEN + 401.0, 60.0)
    assert [(bar.symbol, bar.revision, partial(bar)) for bar in bars(recorder)] == [
        ("USDCOP", 0, False),
        ("EURUSD", 0, False),
        ("USDCOP", 1, True),
    ]


def test_a_vendor_bar_whose_number_was_taken_meanwhile_is_refused() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.on_quotes([quote(OPEN + 10, 4100.0)], OPEN + 10.1)
    line.on_time(OPEN + 400.0, 60.0)
    line.interrupted(OPEN + 20, OPEN + 30, "USDCOP")
    line.on_time(OPEN + 401.0, 60.0)
    assert line.on_vendor_bars([vendor_bar(1)], OPEN + 402.0) == []
    assert len(line.on_vendor_bars([vendor_bar(2)], OPEN + 403.0)) == 1
    line.interrupted(OPEN + 20, OPEN + 40, "USDCOP")
    line.on_time(OPEN + 404.0, 60.0)
    assert [bar.revision for bar in bars(recorder)] == [0, 1, 2]


def test_after_a_restart_a_future_tick_is_not_what_prices_are_measured_by() -> None:
    before, after = Recorder(), Recorder()
    line = pipeline(before)
    line.on_quotes([quote(OPEN + 1, 4100.0), quote(OPEN + 100, 8000.0)], OPEN + 2.0)
    last = before.records[-1]
    assert isinstance(last, Tick)
    assert last.flags == (Flag.FUTURE,)
    restarted = pipeline(after, epoch=8)
    restarted.seed([last])
    restarted.restore(before.records)
    restarted.on_quotes([quote(OPEN + 3, 8000.0), quote(OPEN + 4, 4101.0)], OPEN + 4.5)
    assert [one.price for one in after.events if isinstance(one, Tick)] == [4101.0]


def test_the_first_price_far_from_the_one_before_a_restart_waits_for_others() -> None:
    recorder = Recorder()
    line = pipeline(recorder)
    line.seed([Tick("USDCOP", 1, 1, OPEN - 86_400, 4100.0, None, None, 0, "x", OPEN, True)])
    line.on_quotes([quote(OPEN, 4500.0)], OPEN + 0.5)
    assert recorder.events == []
    line.on_quotes([quote(OPEN + 1, 4501.0), quote(OPEN + 2, 4502.0)], OPEN + 2.5)
    assert [one.price for one in recorder.events if isinstance(one, Tick)] == [
        4500.0,
        4501.0,
        4502.0,
    ]
