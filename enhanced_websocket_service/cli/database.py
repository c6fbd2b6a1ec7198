"""``db``: what the owner of the tables does for a service that does not own them."""

import sys
from typing import Annotated, Literal

import typer

from enhanced_websocket_service.errors import ConfigurationError, StorageError
from enhanced_websocket_service.service import connections, worlds
from enhanced_websocket_service.storage import rights
from enhanced_websocket_service.storage.id_width import caveats
from enhanced_websocket_service.storage.mend import mend_epochs
from enhanced_websocket_service.storage.migrate import check, migrate, script

from .console import JsonOption, err, load, out, print_json, run_to_end

database = typer.Typer(help="The database, for the owner of its tables.", no_args_is_help=True)


@database.command("migrate")
def db_migrate(
    as_sql: Annotated[
        bool, typer.Option("--sql", help="Change nothing; print the SQL that would.")
    ] = False,
    rewrite: Annotated[
        bool,
        typer.Option(
            "--rewrite",
            help="Also make the ids of large tables BIGINT; it says how long that takes.",
        ),
    ] = False,
) -> None:
    """Make the tables, or bring them up to date: as their owner, whom DATABASE_URL names."""
    settings = load().settings

    async def work() -> str:
        async with connections.open_database(
            settings, "connecting and looking at the schema"
        ) as found:
            if as_sql:
                return await script(found)
            if rewrite:
                for sentence in await caveats(found):
                    err.print(sentence, markup=False, soft_wrap=True)
            applied = await migrate(found, by_owner=True, rewrite=rewrite)
            for sentence in await check(found):
                err.print(sentence, markup=False, soft_wrap=True)
            mended = await mend_epochs(found)
            name = await found.fetchval("SELECT quote_ident(current_database())")
            role = await found.fetchval("SELECT current_user")
        if not applied:
            return " ".join([f"Database {name} is up to date.", *mended])
        told = (
            f"Database {name}: applied {', '.join(map(str, applied))} as {role}. Give every other role "
            "that runs the service its rights with `db grants --role NAME`."
        )
        return " ".join([told, *mended])

    typer.echo(run_to_end(work()))


@database.command("grants")
def db_grants(
    role: Annotated[str, typer.Option(help="Who runs the service.", metavar="NAME")],
) -> None:
    """The least rights that `run` and `l0` need, as SQL for the owner of the tables to run."""
    if not role:
        raise ConfigurationError("--role is empty. Name the role that the service connects as.")
    settings = load().settings

    async def work() -> str:
        doing = "asking for the names of its tables and sequences, which `db grants` needs"
        async with connections.open_database(settings, doing) as found:
            if not await rights.role_exists(found, role):
                raise StorageError(
                    f"There is no role {role} in this PostgreSQL. Make it first, in psql for instance: "
                    f"CREATE ROLE {rights.quoted(role)} LOGIN; then \\password {rights.quoted(role)}"
                )
            return rights.grants_script(await rights.needed(found, role))

    typer.echo(run_to_end(work()))


@database.command("world")
def db_world(
    wanted: Annotated[
        Literal["real", "simulated"] | None,
        typer.Option("--set", help="From here on it is for prices of this kind."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before changing it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Whether the database, and Redis, are for real prices or for simulated ones."""
    settings = load().settings
    if wanted is None:
        _show_worlds(run_to_end(worlds.look(settings)), as_json)
        return
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigurationError(
                "db world --set asks before it changes anything, and nobody is there to answer. "
                "Run it on a terminal, or add --yes."
            )
        for sentence in run_to_end(worlds.look(settings)).sentences():
            err.print(sentence, markup=False, soft_wrap=True)
        question = (
            f"Instances with {wanted} prices may write there from here on, and no others. Go on?"
        )
        if not typer.confirm(question, err=True):
            raise typer.Exit(1)
    _show_worlds(run_to_end(worlds.change(settings, wanted)), as_json)


def _show_worlds(found: worlds.Worlds, as_json: bool) -> None:
    if as_json:
        print_json(found.as_dict())
    else:
        for sentence in found.sentences():
            out.print(sentence, markup=False, soft_wrap=True)
