"""``jidoka-shm watch``: what becomes different in a registry, a line a change."""

from __future__ import annotations

import math
import select
import sys
from typing import TYPE_CHECKING, Final

import click

from jidoka_shm.arguments import check_seconds

from .inspection import open_reader
from .options import bad_values_are_wrong_usage, json_option, name_argument
from .output import print_json_line, print_line

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jidoka_shm.differences import Change
    from jidoka_shm.watching import Changes

#: How often to see whether anybody still reads the output, in seconds: while nothing is printed
#: no error says so, and `watch | head -1` would never end.
_LOOK: Final = 1.0

_TITLES: Final = ("CHANGE", "ID", "STATUS", "PID", "UPDATED", "VERSION", "METADATA")
_KEYS: Final = ("session_id", "status", "pid", "updated_at", "version", "metadata")

#: Columns of each but the last on a terminal: of the longest word, an id, a status, a pid, a time
#: and a version.
_WIDTHS: Final = (10, 36, 12, 7, 32, 10)


@click.command()
@name_argument
@click.option("--new", is_flag=True, help="Only what changes from now on, not what is there.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="End after so long without a change; default: never.",
)
@click.option(
    "--latency",
    type=click.FloatRange(min=0),
    default=0.01,
    show_default=True,
    metavar="SECONDS",
    help="How often to look.",
)
@json_option
def watch(name: str, *, new: bool, timeout: float | None, latency: float, as_json: bool) -> None:
    """Print what changes in the registry NAME, a line a change, from what is there on.

    CHANGE is created, updated, terminated or removed. What happens to a session between two looks
    is one change; what comes and goes between them is none.
    """
    with open_reader(name) as reader:
        with bad_values_are_wrong_usage():
            parts, part = _parts(timeout)
            changes = reader.changes(timeout=part, since=None if new else 0, latency=latency)
        if as_json:
            for kind, session in _told(changes, parts):
                print_json_line({"kind": kind, "session": session.to_dict()})
            return
        print_line(_TITLES, _WIDTHS)
        for kind, session in _told(changes, parts):
            found = session.to_dict()
            print_line([kind, *(found[key] for key in _KEYS)], _WIDTHS)


def _parts(timeout: float | None) -> tuple[float, float]:
    """Return in how many parts of how many seconds to wait."""
    if timeout is None:
        return math.inf, _LOOK
    seconds = check_seconds("timeout", timeout)
    parts = max(math.ceil(seconds / _LOOK), 1)
    return parts, seconds / parts


def _told(changes: Changes, parts: float) -> Iterator[Change]:
    """Yield the changes, until there is none for so many times the changes' own timeout.

    Raises:
        BrokenPipeError: where nobody reads what is printed any more.
    """
    quiet = 0
    while quiet < parts:
        for change in changes:
            yield change
            quiet = 0
        if _is_output_closed():
            raise BrokenPipeError
        quiet += 1


def _is_output_closed() -> bool:
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
