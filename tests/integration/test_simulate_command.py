"""``ews simulate`` with its faults, as a process."""

import json
import time
from pathlib import Path

import httpx

from tests.e2e.playback import Process


async def test_faults_from_options_and_from_a_script(tmp_path: Path) -> None:
    script = tmp_path / "faults.jsonl"
    script.write_text(
        '{"at": "open-60", "set": {"mute": true}}\n'
        '{"at": "open+0:10:00", "set": {"rest_status": {"status": "500"}}, "for": 60}\n'
    )
    environ = {
        "VIRTUAL_CLOCK": f"2025-06-25T07:59:30-05:00,1,{time.time()!r}",
        "STATE_DIR": str(tmp_path),
        "TWELVEDATA_API_KEY_G1_1": "a-key",
        "COLUMNS": "200",
    }
    options = ["--tick-every", "1,60@2025-06-25T10:30", "--arrivals", "poisson", "--port", "0"]
    faults = ["--fault", "rest_decimals=1", "--fault", 'refuse_handshake={"status":401,"times":2}']
    process = Process("simulator", tmp_path)
    await process.start(
        "simulate", *options, *faults, "--fault-script", str(script), environ=environ
    )
    try:
        url = (await process.said("TWELVEDATA_REST_URL=")).partition("=")[2].strip()
        async with httpx.AsyncClient(base_url=url) as http:
            shown = (await http.get("/_sim/faults")).json()
            price = await http.get("/price", params={"symbol": "USD/COP", "apikey": "k"})
    finally:
        assert await process.stop() == 0
    assert len(price.json()["price"].partition(".")[2]) == 1
    assert shown["faults"]["rest_decimals"] == 1
    assert shown["faults"]["refuse_handshake"] == {"status": 401, "times": 2}
    assert shown["faults"]["mute"] is True
    assert [(one["at"][11:19], one["done"]) for one in shown["script"]] == [
        ("12:59:00", True),
        ("13:10:00", False),
        ("13:11:00", False),
    ]


async def test_everything_wrong_is_told_before_anything_listens(tmp_path: Path) -> None:
    script = tmp_path / "faults.jsonl"
    script.write_text(json.dumps({"at": "later", "set": {"explode": 1}}) + "\nnonsense\n")
    environ = {"STATE_DIR": str(tmp_path), "COLUMNS": "200"}
    process = Process("simulator", tmp_path)
    await process.start("simulate", "--port", "0", "--fault-script", str(script), environ=environ)
    assert await process.finished(30) == 2
    for said in ("line 1: at takes", "line 1: unknown fault 'explode'", "line 2: is not JSON"):
        assert said in process.text()
    process = Process("again", tmp_path)
    await process.start("simulate", "--fault", "mute=7", "--fault", "drop", environ=environ)
    assert await process.finished(30) == 2
    for said in ("mute takes true", "--fault drop: happens once"):
        assert said in process.text()
