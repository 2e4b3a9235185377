"""``jidoka-shm serve``: a process that is the writer of a registry and answers its clients."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import select
import signal
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from jidoka_shm import arguments
from jidoka_shm.errors import JidokaError, RegistryClosed, WriterAlreadyRunning
from jidoka_shm.logs import log

from . import logs, notify
from .failures import DONE, Refused, end_of
from .options import FileMode, bad_values_are_wrong_usage, name_argument

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Self

    from jidoka_shm.manager import SessionManager

#: How often a manager is asked whether it still has its registry, in milliseconds. It looks
#: itself every half second.
_LOOK: Final = 1000

#: What CPython says of a signal that came before it was ignored and is handled after.
_RACE: Final = "ignored due to race condition"


@click.command()
@name_argument
@click.option(
    "--capacity",
    type=click.IntRange(min=1),
    default=arguments.CAPACITY,
    metavar="SLOTS",
    show_default=True,
    help="Slots at first; a session takes one or more.",
)
@click.option(
    "--max-capacity",
    type=click.IntRange(min=1),
    default=arguments.MAX_CAPACITY,
    metavar="SLOTS",
    show_default=True,
    help="Slots that it may grow to.",
)
@click.option("--grow/--no-grow", default=True, show_default=True, help="Whether it may grow.")
@click.option(
    "--slot-size",
    type=click.IntRange(min=1),
    default=arguments.SLOT_SIZE,
    metavar="BYTES",
    show_default=True,
    help="Bytes a slot of a new registry, a multiple of 64.",
)
@click.option(
    "--max-record-size",
    type=click.IntRange(min=1),
    default=arguments.MAX_RECORD_SIZE,
    metavar="BYTES",
    show_default=True,
    help="Bytes of the longest record.",
)
@click.option(
    "--cleanup-delay",
    type=click.FloatRange(min=0),
    default=arguments.CLEANUP_DELAY,
    metavar="SECONDS",
    show_default=True,
    help="Seconds that a terminated session stays visible.",
)
@click.option(
    "--mode",
    type=FileMode(),
    default=f"{arguments.MODE:o}",
    show_default=True,
    help="Mode of the shared memory; 640 or 644 lets others read.",
)
@click.option("--fresh", is_flag=True, help="Discard what is there, whatever it is.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    show_default=True,
    help="Seconds to wait for the end of a living writer.",
)
@click.option(
    "--max-clients",
    type=click.IntRange(min=1),
    default=arguments.MAX_CLIENTS,
    metavar="CLIENTS",
    show_default=True,
    help="Clients that may be connected at once.",
)
@click.option(
    "--log-level",
    type=click.Choice(logs.LEVELS),
    default="info",
    show_default=True,
    help="The least level that is logged.",
)
@click.option("--log-json", is_flag=True, help="Log one JSON object a line.")
def serve(name: str, *, log_level: str, log_json: bool, **options: Any) -> int:  # noqa: ANN401 - SessionManager's own
    """Be the writer of the registry NAME, and answer its clients until a signal ends it.

    The registry is made, or taken over from a writer that has ended; what was taken over keeps its
    slot size, and its capacity where that is larger. It grows where a record finds no room. At the
    end all sessions stay for the next writer.

    It logs to standard error. Exit status: 0 where SIGTERM, SIGINT or SIGHUP ended it; 1 where the
    registry has a living writer, cannot be made or taken over, or was removed; 2 wrong usage.
    """
    logs.begin(log_level, as_json=log_json)
    _fill_standard_descriptors()
    _raise_descriptor_limit()
    try:
        return _serve(name, options)
    except (click.ClickException, JidokaError, OSError) as error:
        if not log_json:
            raise
        # A program that reads the log gets this in the same form as all else.
        status, text = end_of(error)
        log.error("%s", text)
        return status


def _fill_standard_descriptors() -> None:
    """Have each of the first three lead somewhere, where they came closed.

    Else one would be the registry's memory, over which an interpreter or a C library that aborts
    writes why.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - standard error
        continue
    os.close(descriptor)


def _raise_descriptor_limit() -> None:
    """Let this process have as many descriptors as it may: one a client, one an owner process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # A hard limit may be more than the system gives; then the soft one stays.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _serve(name: str, options: dict[str, Any]) -> int:
    # In this order: a signal may come before the block has begun.
    with contextlib.suppress(_Stopped), _Signals() as signals:
        with bad_values_are_wrong_usage():
            manager = _manager(name, options)
        # From here on a signal is waited for, and interrupts nothing.
        signals.defer()
        with manager:
            count = len(manager)
            extra = {"registry": name, "sessions": count}
            log.info("serving registry %r: %d sessions", name, count, extra=extra)
            notify.ready(f"Serving registry {name}")
            try:
                number = signals.wait(manager)
                extra = {"registry": name, "signal": number.name}
                log.info("%s: closing registry %r", number.name, name, extra=extra)
            finally:
                notify.stopping(f"Closing registry {name}")
        text = "closed registry %r, which stays for its next writer"
        log.info(text, name, extra={"registry": name})
    return DONE


def _manager(name: str, options: dict[str, Any]) -> SessionManager:
    """Return the manager, and say so where it has to wait for another."""
    # It loads asyncio, which takes longer than most of the other commands.
    from jidoka_shm.manager import SessionManager  # noqa: PLC0415 - as said

    try:
        return SessionManager(name, listen=True, **options | {"wait": 0.0})
    except WriterAlreadyRunning as error:
        wait = options["wait"]
        if not wait:
            raise
        text = "registry %r: waiting up to %g s for process %s to end"
        extra = {"registry": name, "writer_pid": error.pid, "wait": wait}
        log.info(text, name, wait, error.pid, extra=extra)
        notify.status(f"Waiting for process {error.pid} to end")
    return SessionManager(name, listen=True, **options)


class _Stopped(BaseException):
    """What a signal raises while the registry is made or taken over, or waited for."""


class _Signals:
    """The signals that end a service.

    They come by a pipe into which the interpreter writes their numbers: a handler would run only
    when the main thread does, and a signal that the kernel gives to another thread does not wake
    that one.
    """

    def __enter__(self) -> Self:
        self._numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
            self._numbers.append(signal.SIGHUP)
        self._pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self._deferred = False
        for number in self._numbers:
            signal.signal(number, self._handle)
        return self

    def _handle(self, _: int, __: FrameType | None) -> None:
        if not self._deferred:
            # Once: another would interrupt what the first one has to undo.
            self._deferred = True
            raise _Stopped

    def defer(self) -> None:
        """Let later signals wait for ``wait``."""
        self._deferred = True

    def wait(self, manager: SessionManager) -> signal.Signals:
        """Wait for a signal and return it.

        Raises:
            Refused: where the manager lost its registry.
        """
        poll = select.poll()
        poll.register(self._pipe[0], select.POLLIN)
        while not poll.poll(_LOOK):
            try:
                manager.version  # noqa: B018 - a manager that let go raises
            except RegistryClosed as error:
                raise Refused(str(error)) from error
        return signal.Signals(os.read(self._pipe[0], 1)[0])

    def __exit__(self, *exc_info: object) -> None:
        # Ignored, not restored: the process ends now, and a signal more must not change its status.
        sys.unraisablehook = functools.partial(_report, sys.unraisablehook)
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        for descriptor in self._pipe:
            os.close(descriptor)


def _report(
    report: Callable[[sys.UnraisableHookArgs], object], found: sys.UnraisableHookArgs
) -> None:
    """Report what nobody can catch, but for a signal that came just before it was ignored.

    CPython has a traceback for it, and it is one more signal that ends what is ending.
    """
    if not (isinstance(found.exc_value, OSError) and _RACE in str(found.exc_value)):
        report(found)
