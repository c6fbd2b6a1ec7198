"""``journal inspect`` and ``journal export`` as people call them, beside a running owner."""

import asyncio
import json
import os
import sys
from pathlib import Path

import polars as pl

from enhanced_websocket_service.market.source import Provider
from enhanced_websocket_service.storage.journal import Journal
from enhanced_websocket_service.storage.journal_reader import segment_path
from enhanced_websocket_service.storage.postgres import Database
from tests.storage_samples import SYMBOL, rejected, ticks, writing

ROOT = Path(__file__).parents[2]


async def ews(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "enhanced_websocket_service.py"), "journal", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env={
            **{name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ},
            **{"STATE_DIR": str(folder), "PYTHONPATH": str(ROOT), "COLUMNS": "120"},
            **environment,
        },
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_inspect_tells_what_is_there_and_what_is_stored(
    database_dsn: str, tmp_path: Path
) -> None:
    journal = Journal.open(tmp_path / "journal")
    database = Database(database_dsn, Provider("simulator"))
    journal.append([*ticks(30), rejected()])
    code, text, err = await ews(tmp_path, "inspect", DATABASE_URL=database_dsn)
    assert code == 0, err
    assert "not known" in text  # no tables yet
    async with writing(journal, database) as writer:
        assert await writer.drain(20)
    await database.close()
    stored = journal.end
    journal.append(ticks(5, first=31))
    code, text, err = await ews(tmp_path, "inspect", "--json", DATABASE_URL=database_dsn)
    assert code == 0, err
    report = json.loads(text)
    assert report["checkpoint"] == stored._asdict()
    assert (report["not_stored"], report["owner_pid"]) == (5, str(os.getpid()))
    assert report["ranges"] == [{"symbol": SYMBOL, "epoch": 1, "first": 1, "last": 35, "ticks": 35}]
    assert report["segments"][0]["records"] == {"ticks": 35, "rejections": 1}
    journal.close()
    path = segment_path(journal.directory, 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    code, text, err = await ews(tmp_path, "inspect")
    assert code == 1, err
    assert "Damage: segment 1, " in text
    assert "1 missing between them" in text
    assert "DATABASE_URL is not set" in text
    assert "In use      no" in text


async def test_export_beside_the_owner(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path / "journal")
    journal.append([*ticks(30), rejected()])
    code, text, err = await ews(tmp_path, "export", "--from", "1:29")
    assert code == 0, err
    assert [json.loads(line)["offset"] for line in text.splitlines()] == [29, 30]
    assert "2 ticks exported." in err
    out = tmp_path / "copy.parquet"
    options = ("--format", "parquet", "--out", str(out), "--start", "2025-06-03T08:00:10")
    code, text, err = await ews(tmp_path, "export", *options)
    assert (code, text) == (0, ""), err
    assert pl.read_parquet(out)["offset"].to_list() == list(range(10, 31))
    journal.close()


async def test_bad_usage_is_named(tmp_path: Path) -> None:
    for arguments, code, named in (
        (("inspect",), 1, "There is no journal in"),
        (("export", "--format", "parquet"), 2, "--out"),
        (("export", "--from", "5"), 2, "EPOCH:OFFSET"),
        (("export", "--start", "soon"), 2, "ISO 8601"),
    ):
        got, _, err = await ews(tmp_path, *arguments)
        assert got == code, err
        assert named in err
        assert "Traceback" not in err
