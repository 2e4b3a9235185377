"""The command's tree, its options and its exit status."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jidoka_shm import __version__
from jidoka_shm.session import SessionStatus

from . import change, fields, inspection
from .demo import Demo, sample_path
from .failures import DONE, REFUSED, Commands, Refused
from .figures import as_table
from .options import id_argument, json_option, name_argument
from .output import print_json, print_pairs, print_table, to_pretty_json
from .serve import serve
from .watch import watch

if TYPE_CHECKING:
    from uuid import UUID

    from .inspection import Json


@click.group(cls=Commands, no_args_is_help=False)
@click.version_option(__version__)
def app() -> None:
    """Sessions in shared memory: one writer, lock-free readers in any process.

    Exit status: 0 done; 1 no such session, refused, not readable, or a check found problems; 2
    wrong usage; 3 no registry of that name, or no writer that answers; 130 interrupted; 141 output
    closed before the end.
    """


@app.command()
@json_option
def ls(*, as_json: bool) -> None:
    """List the registries of this host.

    STATE is that of the writer: alive, dead, none (it closed the registry) or unknown (of another
    pid namespace); or why the registry cannot be read: incomplete, destroyed, foreign (of another
    format), forbidden (another user's), damaged or unreadable.
    """
    found = inspection.registries()
    if as_json:
        print_json(found)
        return
    keys = ("name", "state", "pid", "sessions", "capacity", "size", "version")
    print_table([key.upper() for key in keys], ([each[key] for key in keys] for each in found))


@app.command("list")
@name_argument
@click.option(
    "--status",
    type=click.Choice([str(status) for status in SessionStatus]),
    help="Only sessions of this status; default: all but the terminated.",
)
@json_option
def list_(name: str, *, status: str | None, as_json: bool) -> None:
    """List the sessions of the registry NAME, the oldest first."""
    found = inspection.sessions(name, None if status is None else SessionStatus(status))
    if as_json:
        print_json(found)
        return
    keys = ("session_id", "status", "pid", "updated_at", "version", "metadata")
    titles = ("ID", "STATUS", "PID", "UPDATED", "VERSION", "METADATA")
    print_table(titles, ([each[key] for key in keys] for each in found))


@app.command()
@name_argument
@id_argument
@json_option
def show(name: str, session_id: UUID, *, as_json: bool) -> None:
    """Show the session ID of the registry NAME.

    ID is 32 hexadecimal digits, with or without hyphens, with or without `session_` before them.
    """
    found = inspection.session(name, session_id)
    if as_json:
        print_json(found)
        return
    maps = ("metadata", "llm_config")
    print_pairs((key, value) for key, value in found.items() if key not in maps)
    for key in maps:
        click.echo(f"{key}\n{to_pretty_json(found[key])}")


@app.command()
@name_argument
@json_option
def stats(name: str, *, as_json: bool) -> None:
    """Show the figures of the registry NAME."""
    found = inspection.stats(name)
    if as_json:
        print_json(found)
        return
    by_status, usage = found.pop("by_status"), found.pop("usage")
    lengths = {f"records_of_{each}": count for each, count in usage.pop("run_lengths").items()}
    usage["mean_distance"] = round(usage["mean_distance"], 2)
    print_pairs((found | by_status | usage | lengths | found).items())


@app.command()
@name_argument
@json_option
def check(name: str, *, as_json: bool) -> int:
    """Look for damage in the registry NAME; exit status 1 where there is some.

    All of the table is checked where the writer leaves a moment without a commit, else each
    record by itself.
    """
    found = inspection.check(name)
    problems = found["problems"]
    if as_json:
        print_json(found)
    else:
        print_pairs(_report(found))
    return REFUSED if problems else DONE


def _report(found: Json) -> list[tuple[str, object]]:
    scope = "all of the table" if found["whole"] else "each record by itself"
    lines: list[tuple[str, object]] = [("problem", each) for each in found["problems"]]
    return lines or [("sound", f"{found['sessions']} sessions, {scope}")]


@app.command()
@name_argument
@json_option
def layout(name: str, *, as_json: bool) -> None:
    """Show where everything stands in the memory of the registry NAME, and the values there."""
    found = fields.layout(name)
    if as_json:
        print_json(found)
    else:
        print_table(("PART", "FIELD", "OFFSET", "WIDTH", "VALUE"), fields.rows(found))


app.add_command(watch)
app.add_command(serve)
app.add_command(change.create)
app.add_command(change.update)
app.add_command(change.terminate)
app.add_command(change.resize)


@app.command()
@name_argument
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def unlink(name: str, *, yes: bool, as_json: bool) -> None:
    """Destroy the registry NAME and its sessions for good, unless a writer lives.

    It asks first. Where standard input is no terminal it cannot, and is wrong usage without --yes.
    """
    if not yes and not (sys.stdin is not None and sys.stdin.isatty()):
        msg = "unlink asks first, and standard input is no terminal: give --yes"
        raise click.UsageError(msg)
    found = inspection.unlink(name, _confirmed if yes else _confirm)
    if found is None:
        msg = "not confirmed"
        raise Refused(msg)
    if as_json:
        print_json({"name": name, "instance": found["instance"], "removed": True})
    else:
        click.echo(f"removed {name}")


def _confirmed(_: Json) -> bool:
    return True


def _confirm(found: Json) -> bool:
    what = found["state"] if found["sessions"] is None else f"{found['sessions']} sessions"
    return click.confirm(f"Destroy the registry {found['name']} ({what}) for good?", err=True)


@app.command()
@click.argument(
    "sessions", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--readers", type=click.IntRange(1, 64), default=None, help="Reader processes; default: cores."
)
@click.option(
    "--seconds",
    type=click.FloatRange(1, 3600),
    default=None,
    help="How long to run; default: 10, and on to 100,000 commits.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option(
    "--break",
    "careless",
    is_flag=True,
    help="Leave out the second load of the index word, to see that the check can fail.",
)
def demo(
    sessions: Path | None,
    *,
    readers: int | None,
    seconds: float | None,
    as_json: bool,
    careless: bool,
) -> int:
    """Run a writer and readers at full speed, kill the writer half-way, and take over.

    SESSIONS is a file of one JSON object a line, with the maps `metadata` and `llm_config`; a
    sample is used without it. Exit status: 0 if no record was torn, no acknowledged one lost
    and reads did overlap commits, else 1; 2 for a file that holds something else, naming the line;
    130 where it was interrupted.
    """
    try:
        run = Demo(
            sessions or sample_path(),
            readers=readers or len(os.sched_getaffinity(0)),
            seconds=seconds,
            careless=careless,
        )
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="SESSIONS") from error
    figures = run.run(quiet=as_json)
    if as_json:
        print_json(figures.to_dict())
    else:
        as_table(figures)
    return DONE if figures.passed else REFUSED
