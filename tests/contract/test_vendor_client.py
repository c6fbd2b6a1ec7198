"""The vendor's own client, pointed at the simulator, gets what the source holds."""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from twelvedata import TDClient
from twelvedata.exceptions import (
    BadRequestError,
    InternalServerError,
    InvalidApiKeyError,
    TwelveDataError,
)

from enhanced_websocket_service.twelvedata.simulator import (
    Candle,
    MarketSource,
    Simulator,
    SimulatorConfig,
    SymbolSource,
    market_from_options,
)
from tests.unit.twelvedata.simulator.parts import OPEN, ManualClock, at

NOW = OPEN + 4 * 3600 + 130  # 12:02:10 in Bogota: a bar is forming


@pytest.fixture(scope="module")
def market() -> MarketSource:
    return market_from_options(seed=5)


@pytest.fixture
def source(market: MarketSource) -> SymbolSource:
    found = market.get("USD/COP")
    assert found is not None
    return found


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
async def simulator(market: MarketSource, clock: ManualClock) -> AsyncIterator[Simulator]:
    made = Simulator(SimulatorConfig(market), clock)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def ask(simulator: Simulator) -> AsyncIterator[Callable[..., Any]]:
    """Run ``call(client)`` in a thread: the vendor's client blocks."""
    clients: list[Any] = []

    def run(call: Callable[[Any], Any], key: str) -> Any:
        client = TDClient(key, base_url=simulator.rest_url)
        clients.append(client)
        return call(client)

    async def in_thread(call: Callable[[Any], Any], key: str = "a-key") -> Any:
        return await asyncio.to_thread(run, call, key)

    yield in_thread
    for client in clients:
        client.ctx.http_client.session.close()


def values_of(candles: list[Candle]) -> list[dict[str, str]]:
    """What the client must show, newest first, with its default of five decimals."""
    return [
        {
            "datetime": datetime.fromtimestamp(one.open_time, UTC).strftime("%Y-%m-%d %H:%M:%S"),
            "open": f"{one.open:.5f}",
            "high": f"{one.high:.5f}",
            "low": f"{one.low:.5f}",
            "close": f"{one.close:.5f}",
        }
        for one in reversed(candles)
    ]


async def test_time_series_value_by_value(ask: Callable[..., Any], source: SymbolSource) -> None:
    got = await ask(
        lambda client: client.time_series(
            symbol="USD/COP",
            interval="5min",
            start_date="2025-05-01",
            end_date="2025-06-03 16:55:00",
            outputsize=5000,
            timezone="UTC",
        ).as_json()
    )
    expected = source.candles(at("2025-05-01"), at("2025-06-03 17:00"))
    assert len(expected) > 1200
    assert list(got) == values_of(expected)


async def test_the_newest_value_is_the_forming_bar(
    ask: Callable[..., Any], source: SymbolSource
) -> None:
    got = await ask(
        lambda client: client.time_series(
            symbol="USD/COP", interval="5min", timezone="UTC"
        ).as_json()
    )
    slot = NOW - NOW % 300
    seen = [tick.price for tick in source.ticks(slot, NOW + 1)]
    forming = Candle(slot, seen[0], max(seen), min(seen), seen[-1])
    finished = source.candles(slot - 29 * 300, slot)
    assert list(got) == values_of([*finished, forming])


async def test_time_series_as_csv_and_pandas(ask: Callable[..., Any], source: SymbolSource) -> None:
    def series(client: Any) -> Any:
        return client.time_series(
            symbol="USD/COP", interval="5min", date="2025-05-30", timezone="America/Bogota"
        )

    expected = source.candles(at("2025-05-30"), at("2025-05-31"))[-30:]
    rows = await ask(lambda client: series(client).as_csv())
    header, *lines = rows
    assert list(header) == ["datetime", "open", "high", "low", "close"]
    assert [float(line[4]) for line in lines] == [one.close for one in reversed(expected)]
    assert lines[0][0] == "2025-05-30 12:55:00"
    frame = await ask(lambda client: series(client).as_pandas())
    assert frame["high"].tolist() == [one.high for one in reversed(expected)]


async def test_price_quote_and_usage(ask: Callable[..., Any], source: SymbolSource) -> None:
    last = source.last_tick(NOW)
    assert last is not None
    price = await ask(lambda client: client.price(symbol="USD/COP").as_json())
    assert price == {"price": f"{last.price:.5f}"}
    quote = await ask(lambda client: client.quote(symbol="USD/COP").as_json())
    assert quote["close"] == f"{last.price:.5f}"
    assert quote["is_market_open"] is True
    rate = await ask(lambda client: client.exchange_rate(symbol="USD/COP").as_json())
    assert rate["rate"] == round(last.price, 5)
    first = await ask(
        lambda client: client.get_earliest_timestamp(symbol="USD/COP", interval="1day").as_json()
    )
    assert first["unix_time"] <= at("2020-01-02 13:00")
    usage = await ask(lambda client: client.api_usage().as_json())
    assert usage["plan_limit"] == 610
    assert usage["current_usage"] >= 5


async def test_a_batch_of_symbols(ask: Callable[..., Any], market: MarketSource) -> None:
    got = await ask(
        lambda client: client.time_series(
            symbol=["USD/COP", "EUR/USD"],
            interval="5min",
            end_date="2025-06-03 16:55:00",
            outputsize=3,
            timezone="UTC",
        ).as_json()
    )
    assert set(got) == {"USD/COP", "EUR/USD"}
    for symbol, values in got.items():
        prices = market.get(symbol)
        assert prices is not None
        expected = prices.candles(at("2025-06-03 16:45"), at("2025-06-03 17:00"))
        assert list(values) == values_of(expected)
    prices_of_both = await ask(lambda client: client.price(symbol="USD/COP,EUR/USD").as_json())
    assert set(prices_of_both) == {"USD/COP", "EUR/USD"}


@pytest.mark.parametrize("status_200", [False, True])
async def test_errors_become_the_clients_exceptions(
    ask: Callable[..., Any], simulator: Simulator, status_200: bool
) -> None:
    await ask(lambda client: client)  # the first client of a process makes a call of its own
    simulator.inject({"status_200_errors": status_200})

    def series(**params: Any) -> Callable[[Any], Any]:
        query = {"symbol": "USD/COP", "interval": "5min", **params}
        return lambda client: client.time_series(**query).as_json()

    with pytest.raises(InvalidApiKeyError, match="apikey"):
        await ask(series(), key="invalid-key")
    with pytest.raises(BadRequestError, match="No data is available on the specified dates"):
        await ask(series(start_date="2031-01-01"))
    with pytest.raises(BadRequestError, match=r"Invalid \*\*interval\*\* provided: 1ms"):
        await ask(series(interval="1ms"))
    with pytest.raises(TwelveDataError, match="missing or invalid"):
        await ask(series(symbol="NO/SUCH"))
    simulator.inject({"rest_status": "500"})
    with pytest.raises(InternalServerError, match="Internal server error"):
        await ask(series())
    simulator.inject({"rest_status": "429_day"})
    with pytest.raises(TwelveDataError, match="run out of API credits for the day"):
        await ask(series())


async def test_credits_run_out(market: MarketSource, clock: ManualClock) -> None:
    simulator = Simulator(SimulatorConfig(market, plan="basic"), clock)
    await simulator.start()

    def call() -> None:
        # The first client of a process makes a call of its own, which another key shall pay.
        TDClient("first", base_url=simulator.rest_url).ctx.http_client.session.close()
        client = TDClient("k", base_url=simulator.rest_url)
        try:
            for _ in range(8):
                client.price(symbol="USD/COP").as_json()
            with pytest.raises(TwelveDataError, match="for the current minute"):
                client.price(symbol="USD/COP").as_json()
        finally:
            client.ctx.http_client.session.close()

    await asyncio.to_thread(call)
    await simulator.stop()


async def test_ticks_by_websocket(
    ask: Callable[..., Any], simulator: Simulator, clock: ManualClock, source: SymbolSource
) -> None:
    events: queue.Queue[Any] = queue.Queue()

    def dial(client: Any) -> Any:
        ws = client.websocket(symbols=["USD/COP"], on_event=events.put)
        ws.url = f"{simulator.ws_url}?apikey=a-key"
        ws.connect()
        return ws

    async def event() -> Any:
        return await asyncio.to_thread(events.get, True, 30)

    ws = await ask(dial)
    try:
        status = await event()
        assert status["event"] == "subscribe-status"
        assert [one["symbol"] for one in status["success"]] == ["USD/COP"]
        resent = await event()
        last = source.last_tick(NOW)
        assert last is not None
        assert (resent["timestamp"], resent["price"]) == (last.timestamp, last.price)
        await clock.move_to(NOW + 1800)
        expected = source.ticks(NOW + 1, NOW + 1801)
        assert len(expected) > 20
        got = [await event() for _ in expected]
        assert [
            (one["timestamp"], one["price"], one.get("bid"), one.get("ask")) for one in got
        ] == expected
        await asyncio.to_thread(ws.heartbeat)
        assert await event() == {"event": "heartbeat", "status": "ok"}
        await asyncio.to_thread(ws.subscribe, "EUR/USD")
        status = await event()
        assert [one["symbol"] for one in status["success"]] == ["EUR/USD"]
    finally:
        await asyncio.to_thread(ws.disconnect)


async def test_recorded_bars_from_a_file(tmp_path: Path, clock: ManualClock) -> None:
    lines = [
        f"2025-06-03 {13 + i // 12}:{i % 12 * 5:02d}:00,{4100 + i}.25,{4103 + i}.5,{4099 + i},"
        f"{4101 + i}.125"
        for i in range(48)
    ]
    path = tmp_path / "bars.csv"
    path.write_text("datetime,open,high,low,close\n" + "\n".join(lines) + "\n")
    recorded = market_from_options(path)
    simulator = Simulator(SimulatorConfig(recorded), clock)
    await simulator.start()

    def call() -> Any:
        client = TDClient("k", base_url=simulator.rest_url)
        try:
            return client.time_series(
                symbol="USD/COP", interval="5min", outputsize=48, timezone="UTC", order="asc"
            ).as_json()
        finally:
            client.ctx.http_client.session.close()

    got = await asyncio.to_thread(call)
    shown = [
        f"{one['datetime']},{float(one['open'])},{float(one['high'])},{float(one['low']):.0f},"
        f"{float(one['close'])}"
        for one in got
    ]
    assert shown == lines
    await simulator.stop()
