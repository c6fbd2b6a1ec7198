"""The commands beside ``run`` and ``demo``, as processes: what they print, write and return."""

import json
from pathlib import Path

import httpx
import polars as pl
import pytest

from .rig import Rig

EVENING = "2025-06-24T20:00:00-05:00"


async def output(rig: Rig, *arguments: str, **changes: str | None) -> tuple[int, str]:
    process = await rig.command(*arguments, **changes)
    return await process.finished(60.0), process.text()


def document(text: str) -> object:
    """The JSON behind the log lines."""
    text = "\n" + text
    return json.loads(text[text.index("\n[\n") if "\n[\n" in text else text.index("{\n") :])


async def test_backfill_then_status_then_incremental(rig: Rig) -> None:
    rig.set_clock(EVENING)
    code, text = await output(
        rig, "l0", "backfill", "--start", "2025-06-10", "--end", "2025-06-24", "--json"
    )
    assert code == 0, text
    (result,) = document(text)  # type: ignore[misc]
    days = result["trading_days"]
    assert days == 10  # two weekends and the Monday of the Sacred Heart are closed
    assert result["bars_written"] == result["expected_slots"] == 60 * days
    assert result["missing_slots"] == []

    folder = Path(rig.environ["BACKUP_DIR"])
    parquet = pl.read_parquet(folder / "usdcop_m5_complete_backup.parquet")
    metadata = json.loads((folder / "usdcop_m5_backup_metadata.json").read_text())
    assert len(parquet) == metadata["rows"] == 60 * days
    assert set(parquet["source"]) == {"simulator"}
    flag = json.loads((rig.signals / "l0_ready.flag").read_text())
    assert flag["ready"] is True

    code, text = await output(rig, "l0", "status", "--json")
    assert code == 0, text
    status = document(text)
    assert isinstance(status, dict)
    assert status["ok"] is True
    assert status["symbols"][0]["completeness_percentage"] == 100.0

    (line, *_), drift = (
        status["continuity"]["USDCOP"]["days"],
        status["continuity"]["USDCOP"]["drift"],
    )
    assert (line["expected"], line["vendor"], line["unknown"]) == (60, 60, 0)
    assert drift["bars"] == 0

    code, text = await output(rig, "l0", "continuity", "--date", "2025-06-24")
    assert code == 0, text
    assert "Tue 2025-06-24 " + 60 * "v" + " 60/60" in text
    assert "08:00-12:55 vendor: The service was not running." in text
    code, text = await output(
        rig, "l0", "continuity", "--start", "2025-06-09", "--end", "2025-06-25", "--json"
    )
    assert code == 1, text  # nobody has the 9th
    shown = document(text)
    assert isinstance(shown, list)
    numbers = {one["date"]: (one["vendor"], one["unknown"], one["pending"]) for one in shown}
    assert numbers["2025-06-09"] == (0, 60, 0)
    assert numbers["2025-06-10"] == (60, 0, 0)
    assert numbers["2025-06-25"] == (0, 0, 60)
    code, text = await output(rig, "l0", "continuity", "--date", "2025-06-23")
    assert code == 0
    assert "closed (Corpus Christi" in text
    code, text = await output(rig, "l0", "continuity", "--start", "2025-06-09")
    assert code == 2, text

    code, text = await output(rig, "l0", "incremental")
    assert code == 0, text
    assert "USDCOP" in text

    code, text = await output(rig, "l0", "verify")
    assert code == 0, text
    assert "No difference." in text
    content = bytearray((folder / "usdcop_m5_complete_backup.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "usdcop_m5_complete_backup.parquet").write_bytes(content)
    code, text = await output(
        rig, "l0", "verify", "--start", "2025-06-10", "--end", "2025-06-11", "--json"
    )
    assert code == 1
    (report,) = document(text)  # type: ignore[misc]
    assert report["expected_slots"] == report["rows_in_database"] == 120
    assert report["differences"][0]["kind"] == "backup_set"


async def test_a_plan_asks_the_vendor_nothing(rig: Rig) -> None:
    rig.set_clock(EVENING)
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    dates = ("--start", "2024-06-11", "--end", "2025-06-24")
    code, text = await output(rig, "l0", "backfill", *dates, "--plan")
    assert code == 0, text
    assert "4 calls, 4 credits of 800 left today, about 24 s with 1 key" in text
    code, text = await output(rig, "l0", "backfill", *dates, "--dry-run", "--json")
    assert code == 0, text
    (plan,) = document(text)  # type: ignore[misc]
    assert (plan["calls"], plan["credits"], plan["keys"]) == (4, 4, 1)
    assert (rig.signals / "l0_ready.flag").exists()
    async with httpx.AsyncClient(base_url=rig.environ["TWELVEDATA_REST_URL"]) as client:
        assert (await client.get("/_sim/requests")).json() == {"requests": []}


async def test_status_without_data_says_so_and_fails(rig: Rig) -> None:
    code, text = await output(rig, "l0", "status")
    assert code == 1
    assert "l0 backfill" in text


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("l0", "backfill", "--start", "yesterday", "--end", "2025-06-25"), "--start"),
        (("l0", "backfill", "--start", "2025-06-25", "--end", "2025-06-10"), "swap"),
        (("l0", "backfill", "--start", "2025-06-25"), "--end"),
        (("simulate", "--bars", "nowhere.parquet"), "nowhere.parquet"),
        (("simulate", "--plan", "golden"), "golden"),
        (("demo", "--at", "soon"), "--at"),
        (("launch",), "launch"),
    ],
)
async def test_bad_usage_names_the_fault(rig: Rig, arguments: tuple[str, ...], named: str) -> None:
    code, text = await output(rig, *arguments)
    assert code == 2
    assert named in text
    assert "Traceback" not in text


async def test_a_backfill_that_fails_leaves_the_flag_withdrawn(rig: Rig) -> None:
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    code, text = await output(
        rig,
        *("l0", "backfill", "--start", "2025-06-10", "--end", "2025-06-24"),
        TWELVEDATA_API_KEY_G1_1="invalid-key",
    )
    assert code == 1
    assert "withdrawn" in text
    assert not (rig.signals / "l0_ready.flag").exists()


async def test_simulate_prints_its_addresses_and_ends_on_a_signal(rig: Rig) -> None:
    process = await rig.command("simulate", "--port", "0")
    url = (await process.said("TWELVEDATA_REST_URL=")).partition("=")[2].strip()
    async with httpx.AsyncClient(base_url=url) as client:
        answer = await client.get("/price", params={"symbol": "USD/COP", "apikey": "k"})
        status = await client.get("/_sim/status")
    assert answer.status_code == 200
    assert status.status_code == 200
    assert await process.stop() == 0, process.text()[-3000:]


async def test_version(rig: Rig) -> None:
    code, text = await output(rig, "--version")
    assert (code, text.strip()) == (0, "4.0.0")
