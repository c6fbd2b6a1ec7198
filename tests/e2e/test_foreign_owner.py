"""Tables of another owner, by the commands: refused with a sentence, migrated, granted, collected into."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests.foreign_owner import ForeignOwner, foreign_owner
from tests.waiting import eventually

from .rig import WITHIN_S, Rig


@pytest.fixture
async def place(rig: Rig, database_dsn: str) -> AsyncIterator[ForeignOwner]:
    async with foreign_owner(database_dsn, "svc-") as made:
        rig.environ["DATABASE_URL"] = made.service_dsn
        try:
            yield made
        finally:
            for process in rig.processes:
                if process.running:
                    await process.stop()


async def output(rig: Rig, dsn: str, *arguments: str, code: int = 0) -> str:
    process = await rig.command(*arguments, DATABASE_URL=dsn)
    assert await process.finished(WITHIN_S) == code, process.text()
    return process.text()


async def checked(rig: Rig, place: ForeignOwner) -> str:
    """What ``config check`` says of this database, with a STATE_DIR that nobody has."""
    process = await rig.command(
        *("config", "check"), DATABASE_URL=place.service_dsn, STATE_DIR=str(rig.folder / "checked")
    )
    assert await process.finished(WITHIN_S) == 0, process.text()
    return process.text()


async def health(rig: Rig) -> dict[str, Any] | None:
    async with rig.client() as client:
        try:
            return dict((await client.get("/health")).json())
        except httpx.TransportError:
            return None


async def test_a_role_that_owns_nothing_runs_the_service(rig: Rig, place: ForeignOwner) -> None:
    (rig.signals / "l0_ready.flag").write_text('{"ready": true}')
    await place.as_admin(
        "DO $$ BEGIN EXECUTE format('GRANT CONNECT ON DATABASE %I TO PUBLIC', current_database()); END $$;"
        "GRANT USAGE ON SCHEMA public TO PUBLIC"
    )
    await rig.run()
    found: dict[str, Any] = {}

    async def told() -> bool | None:
        nonlocal found
        found = await health(rig) or {}
        if "connectivity" not in found:
            return None
        said = (found["service_info"]["reason"], found["connectivity"]["database"]["error"])
        return all("db migrate" in str(one) for one in said) or None

    await eventually(told, WITHIN_S, lambda: str(found))
    reason = found["service_info"]["reason"]
    assert "lacks the migrations 0001_requirements_tables, " in reason
    assert f"Run `db migrate` as {place.owner}, who " in reason
    assert f"`db grants --role {place.service}`" in reason
    assert reason in found["connectivity"]["database"]["error"]
    told_twice = [one for one in found["problems"] if reason in one and "committed:" not in one]
    assert len(told_twice) == 2  # state, connection

    # The service's own role cannot, and says so in the same words; `l0 status` too. It was told before.
    warned = await checked(rig, place)
    assert "warning: DATABASE_URL: Database " in warned
    assert reason.partition(" may not apply them in schema public: ")[0] in warned
    assert f"Run `db migrate` as {place.owner}, who " in warned
    assert "db migrate" in await output(rig, place.service_dsn, "db", "migrate", code=1)
    assert "db migrate" in await output(rig, place.service_dsn, "l0", "status", code=1)
    assert "lacks table" in await output(
        rig, place.owner_dsn, "db", "grants", "--role", place.service, code=1
    )
    assert "0006_published_bars" in await output(rig, place.owner_dsn, "db", "migrate")
    assert "up to date" in await output(rig, place.owner_dsn, "db", "migrate")
    assert "no role nobody" in await output(
        rig, place.owner_dsn, "db", "grants", "--role", "nobody", code=1
    )
    printed = await output(rig, place.owner_dsn, "db", "grants", "--role", place.service)
    grants = [line for line in printed.splitlines() if line.startswith("GRANT ")]
    assert f'GRANT INSERT ON TABLE public.rejected_ticks TO "{place.service}";' in grants
    await place.as_owner("\n".join(grants))

    await rig.state("active", 3 * WITHIN_S)
    await rig.price()
    connection = await asyncpg.connect(place.admin_dsn)
    counts = (
        "SELECT (SELECT count(*) FROM realtime_market_data), (SELECT count(*) FROM market_data)"
    )

    async def stored() -> bool | None:
        ticks, bars = await connection.fetchrow(counts)
        return (ticks > 0 and bars > 0) or None

    await eventually(stored, WITHIN_S, "ticks and bars")

    assert "warning: DATABASE_URL" not in await checked(rig, place)

    # One right less, later: named in /health for as long as it lasts.
    async def problems() -> list[str]:
        found = await health(rig)
        return [] if found is None else list(found["problems"])

    async def named() -> bool | None:
        return (
            any("lacks INSERT on table public.system_health" in one for one in await problems())
            or None
        )

    async def gone() -> bool | None:
        return not any("lacks" in one for one in await problems()) or None

    await place.as_owner(f'REVOKE INSERT ON system_health FROM "{place.service}"')
    await eventually(named, WITHIN_S, "the right that is lacking")
    right = next(one for one in await problems() if "lacks INSERT" in one)
    sentence = right.partition("Role ")[2]
    warned = await checked(rig, place)
    assert f"warning: DATABASE_URL: Role {sentence[: sentence.index('that it prints.')]}" in warned
    assert "ready to run: " in warned
    await place.as_owner(f'GRANT INSERT ON system_health TO "{place.service}"')
    await eventually(gone, WITHIN_S, "no more complaint")
    await connection.close()


async def test_what_migrate_would_do_as_sql_for_psql(rig: Rig, place: ForeignOwner) -> None:
    text = await output(rig, place.owner_dsn, "db", "migrate", "--sql")
    script = text[text.index("BEGIN;") : text.index("COMMIT;") + len("COMMIT;")]
    await place.as_owner(script)
    assert "up to date" in await output(rig, place.owner_dsn, "db", "migrate")
    assert "-- The schema is up to date." in await output(
        rig, place.owner_dsn, "db", "migrate", "--sql"
    )


async def test_a_schema_that_is_not_public(rig: Rig, place: ForeignOwner) -> None:
    """The service finds it by its search path; the grants say how."""
    await place.as_owner('CREATE SCHEMA "Trading"')
    there = f"{place.owner_dsn}&search_path=%22Trading%22"
    await output(rig, there, "db", "migrate")
    printed = await output(rig, there, "db", "grants", "--role", place.service)
    assert '-- The tables are in "Trading": end DATABASE_URL of the service with' in printed
    await place.as_owner("\n".join(one for one in printed.splitlines() if one.startswith("GRANT ")))
    status = f"{place.service_dsn}&search_path=%22Trading%22"
    assert "l0 backfill" in await output(rig, status, "l0", "status", code=1)


async def test_a_database_that_cannot_be_reached_is_named_by_every_command(
    rig: Rig, tmp_path: Path
) -> None:
    nowhere = f"postgresql://me:s3cr3t-pw@/fx?host={tmp_path}&port=5433"
    (tmp_path / "bars.csv").write_text("datetime,open,high,low,close\n2025-06-24 08:00,1,1,1,1\n")
    for arguments in (
        ("l0", "status"),
        ("l0", "verify"),
        ("l0", "import", str(tmp_path / "bars.csv")),
        ("db", "grants", "--role", "svc"),
    ):
        text = await output(rig, nowhere, *arguments, code=1)
        assert f"PostgreSQL at {tmp_path}/.s.PGSQL.5433 (database fx, user me)" in text, arguments
        assert "there is no such socket" in text
        assert "s3cr3t" not in text
    assert "which `db grants` needs" in text
