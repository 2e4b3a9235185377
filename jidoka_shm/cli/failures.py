"""How the command fails: one line on standard error and an exit status, never a traceback.

=====  =======================================================================
0      done
1      no such session, refused, not readable, or a check that found problems
2      wrong usage
3      no registry of that name, or for a change no writer that answers
130    interrupted by Ctrl-C
141    standard output was closed before the end, as by ``| head``
=====  =======================================================================
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from jidoka_shm.errors import (
    JidokaError,
    RegistryClosed,
    RegistryNotFound,
    WriterAlreadyRunning,
    WriterUnavailable,
)
from jidoka_shm.starting import command_of

from .output import escape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn

DONE: Final = 0
REFUSED: Final = 1
USAGE: Final = 2
NO_REGISTRY: Final = 3
INTERRUPTED: Final = 130
OUTPUT_CLOSED: Final = 141

PROGRAM: Final = "jidoka-shm"

#: How the way out of an error reads for who types commands.
_OPTIONS: Final = {
    "fresh=True": "--fresh",
    "give the manager a larger max_record_size": "'serve' it with a larger --max-record-size",
    "a larger capacity: by max_capacity, or by resize()": (
        "a larger capacity: by 'jidoka-shm resize', or by 'serve' with a larger --max-capacity"
    ),
    "a larger max_clients": "a larger --max-clients",
    "mode=0o640 or 0o644": "--mode 640 or 644",
}


class Refused(click.ClickException):
    """The registry, or the user, does not allow it."""

    exit_code = REFUSED


class NoRegistry(click.ClickException):
    """There is nothing to look at under this name."""

    exit_code = NO_REGISTRY


class _OutputClosed(click.ClickException):
    """Nobody reads what the command prints."""

    exit_code = OUTPUT_CLOSED

    def __init__(self) -> None:
        super().__init__("")


class Commands(click.Group):
    """A group of commands that all fail as this module says."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:  # noqa: ANN401 - click's own
        """Read the command line; the text of --help is printed here."""
        with _output_may_close():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's own
        """Run a command."""
        with _output_may_close():
            return super().invoke(ctx)

    def main(self, *args: Any, **extra: Any) -> NoReturn:  # noqa: ANN401 - click's own
        """Run the command line, and end the process."""
        extra["standalone_mode"] = False
        try:
            code, text = super().main(*args, **extra), ""
        except (click.ClickException, click.Abort, JidokaError, OSError) as error:
            code, text = end_of(error)
        if text:
            with contextlib.suppress(OSError):
                click.echo(f"{PROGRAM}: {escape(text)}", err=True)
        _forget_output()
        sys.exit(code or DONE)


def end_of(error: Exception) -> tuple[int, str]:
    """Return the status and the text that an error ends the command with."""
    match error:
        case click.UsageError():
            return USAGE, _usage(error)
        case click.ClickException():
            return error.exit_code, error.format_message()
        case click.Abort():
            # click makes one of Ctrl-C, and of the end of input at a question.
            ended = isinstance(error.__context__, EOFError)
            return (REFUSED, "not confirmed") if ended else (INTERRUPTED, "interrupted")
        case RegistryNotFound() | RegistryClosed() | WriterUnavailable():
            return NO_REGISTRY, _as_options(_absence(error))
        case WriterAlreadyRunning():
            holder = "a process that it does not name" if error.pid is None else f"{error.pid}"
            return REFUSED, f"registry {error.name!r} has a living writer: process {holder}"
    return REFUSED, _as_options(str(error)) or type(error).__name__


def _as_options(text: str) -> str:
    """Return an error's text with the library's options as the command has them."""
    for name, option in _OPTIONS.items():
        text = text.replace(name, option)
    return text


def _absence(error: RegistryNotFound | RegistryClosed | WriterUnavailable) -> str:
    if not isinstance(error, WriterUnavailable):
        return f"no registry {error.name!r}"
    why = error.reason or f"start one with '{command_of(error.name)}'"
    tail = "; the change may or may not have been made" if error.outcome_unknown else ""
    return f"registry {error.name!r} has no writer that answers: {why}{tail}"


def _usage(error: click.UsageError) -> str:
    path = PROGRAM if error.ctx is None else error.ctx.command_path
    # A name that begins with a hyphen reads as an option.
    more = "a NAME like that goes behind '--'; " if isinstance(error, click.NoSuchOption) else ""
    return f"{error.format_message().rstrip('.')} ({more}see '{path} --help')"


@contextlib.contextmanager
def _output_may_close() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise _OutputClosed from None


def _forget_output() -> None:
    """Let what could not be written go nowhere: the interpreter would try again, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                descriptor = stream.fileno()
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
