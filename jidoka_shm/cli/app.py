"""The command's tree, its options and its exit status."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import click

from .demo import Demo, sample_path
from .figures import as_table


@click.group()
@click.version_option(package_name="jidoka-shm")
def app() -> None:
    """Sessions in shared memory: one writer, lock-free readers in any process."""


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
    readers: int | None,
    seconds: float | None,
    as_json: bool,  # noqa: FBT001 - click passes its flags so
    careless: bool,  # noqa: FBT001 - as above
) -> None:
    """Run a writer and readers at full speed, kill the writer half-way, and take over.

    SESSIONS is a file of one JSON object a line, with the maps `metadata` and `llm_config`; a
    sample is used without it. Exit status: 0 if no record was torn, no acknowledged one lost
    and reads did overlap commits, else 1.
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
        click.echo(json.dumps(figures.to_dict(), indent=2))
    else:
        as_table(figures)
    sys.exit(0 if figures.passed else 1)
