"""The real recordings, where they are present: every bar and every tick comes out as it went in."""

import polars as pl

from enhanced_websocket_service.twelvedata.simulator import Candle, market_from_options
from tests.shared_data import shared


def test_ticks_of_the_recorded_bars_give_the_recorded_bars() -> None:
    path = shared("data/usdcop_m5_dev.parquet")
    source = market_from_options(path, ticks_per_bar=6).get("USD/COP")
    assert source is not None
    # Four months: enough to meet every shape of bar.
    month = pl.col("datetime").dt.year().eq(2025) & pl.col("datetime").dt.month().le(4)
    frame = pl.read_parquet(path).filter(month).sort("datetime")
    rows = frame.select(pl.col("datetime").dt.epoch("s"), "open", "high", "low", "close").rows()
    assert len(rows) > 4000
    ticks = source.ticks(rows[0][0], rows[-1][0] + 300)
    built = (
        pl.DataFrame(ticks, orient="row", schema=["stamp", "price", "bid", "ask"])
        .group_by((pl.col("stamp") // 300 * 300).alias("slot"), maintain_order=True)
        .agg(
            pl.col("price").first().alias("open"),
            pl.col("price").max().alias("high"),
            pl.col("price").min().alias("low"),
            pl.col("price").last().alias("close"),
        )
    )
    assert built.rows() == rows
    assert source.candles(rows[0][0], rows[-1][0] + 300) == [Candle(*row) for row in rows]


def test_scaled_ticks_agree_with_polars() -> None:
    path = shared("data/ticks/eurusd_oanda_201405_dev.parquet")
    source = market_from_options(ticks=path, scale=3000).get("USD/COP")
    assert source is not None
    frame = pl.read_parquet(path).select(
        pl.col("datetime").dt.epoch("s").alias("stamp"),
        ((pl.col("bid") + pl.col("ask")) / 2 * 3000).round(6).alias("price"),
    )
    start, end = frame["stamp"][0], frame["stamp"][-1] + 1
    served = source.ticks(start, end)
    assert [(tick.timestamp, tick.price) for tick in served] == frame.rows()
    bars = frame.group_by((pl.col("stamp") // 300 * 300).alias("slot"), maintain_order=True).agg(
        pl.col("price").first().alias("open"),
        pl.col("price").max().alias("high"),
        pl.col("price").min().alias("low"),
        pl.col("price").last().alias("close"),
    )
    assert [tuple(one) for one in source.candles(start - 300, end)] == bars.rows()
