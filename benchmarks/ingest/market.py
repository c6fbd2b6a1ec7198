"""What the vendor would send: text frames of a seeded market, as bytes."""

import json
import random
from pathlib import Path

OPEN = 1_748_955_600
"""2025-06-03 08:00:00 in Bogota, a trading day; unix seconds UTC."""
SYMBOL = "USDCOP"
TICKS_A_SECOND = 50
"""Of the stamps: how many ticks share one. What is measured is not bound to it."""


def write_frames(path: Path, count: int, seed: int = 0) -> None:
    """One frame a line: prices with the vendor's decimals, now and then crossed, all in one session."""
    chance = random.Random(seed)
    price = 4100.0
    head = '{"event":"price","symbol":"USD/COP","currency_base":"US Dollar",'
    head += '"currency_quote":"Colombian Peso","type":"Physical Currency"'
    with path.open("w") as file:
        for number in range(count):
            price = min(4300.0, max(3900.0, price + chance.gauss(0, 0.05)))
            side = chance.uniform(-0.05, 0.45)  # a tenth of the quotes is crossed
            quote = (round(price - side, 5), round(price + side, 5))
            stamp = OPEN + number // TICKS_A_SECOND
            file.write(
                f'{head},"timestamp":{stamp},"price":{round(price, 5)!r},'
                f'"bid":{quote[0]!r},"ask":{quote[1]!r}}}\n'
            )


def read_frames(path: Path) -> list[bytes]:
    frames = path.read_bytes().splitlines()
    assert json.loads(frames[0])["event"] == "price"
    return frames
