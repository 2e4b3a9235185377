"""How a reader finds a registry's memory: control, then the table that it names.

An ``Attachment`` is all that a look-up uses, in one object that a reader takes once a call.
Attaching again replaces it and unmaps nothing: the memory goes with its last user, in whatever
thread that is, so no read ever touches memory that is gone.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, cast

from . import segment
from .cache import Cache
from .control import ControlReader
from .errors import CorruptRegistry, RegistryClosed, RegistryForbidden, RegistryNotFound
from .header import TableHeader
from .layout import CONTROL_SIZE, control_name, table_name
from .scan import NO_SESSIONS, scan_sessions
from .table import SessionTable, TableGone

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from .errors import JidokaError
    from .scan import Sessions
    from .session import Session, SessionStatus

#: How often a registry that is not complete is looked at again, in seconds.
POLL: Final = 0.002

#: Growths that one look for the current table may meet.
_GENERATIONS: Final = 8

_DESTROYED: Final = "it was destroyed, and no other follows it"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How a reader attaches and reads.

    Attributes:
        timeout: how long to wait for a registry to be there, in seconds.
        cache_size: how many look-ups to keep; 0 keeps none.
        verify: compute the crcs of whatever is read.
    """

    timeout: float
    cache_size: int
    verify: bool


class Listing(NamedTuple):
    """The last scan of a table, and the lists that were made of it.

    Attributes:
        scanned: the sessions.
        lists: what callers asked for, by status; None is all but the terminated.
    """

    scanned: Sessions
    lists: dict[SessionStatus | None, list[Session]]


class Attachment:
    """One table as a reader sees it, with what this reader keeps of it.

    Attributes:
        control: the registry's control.
        table: its sessions.
        words: the table's index words.
        identity: the registry's instance and the table's generation.
        is_named: returns whether the control still has its name.
        cache: look-ups that were made.
        kept: the cache's dict.
        caches: whether to keep any.
        quick_look_up: finds a session, as ``seqlock.quick_look_up`` says.
        quick_glance: finds owner pid and status code, as ``seqlock.quick_glance`` says.
        listing: the last scan.
    """

    def __init__(
        self,
        control: ControlReader,
        table: SessionTable,
        *,
        is_named: Callable[[], bool],
        cache_size: int,
    ) -> None:
        self.control = control
        self.table = table
        self.identity = (control.instance, control.generation)
        self.words = table.index.words
        self.is_named = is_named
        self.cache = Cache(cache_size)
        self.kept = self.cache.kept
        self.caches = cache_size > 0
        keep = self.cache.keep if self.caches else None
        self.quick_look_up = table.make_quick_look_up(keep)
        self.quick_glance = table.quick_glance
        self.listing = Listing(NO_SESSIONS, {})

    def look_up(self, session_id: UUID) -> Session | None:
        """Return a session, or None if it is not there.

        Raises:
            TableGone: where the table is no longer the registry's.
            CorruptRegistry: where its slot cannot be.
        """
        found = self.table.look_up(session_id)
        if found is None:
            return None
        if self.caches:
            self.cache.keep(session_id, found)
        return found[2]

    def scan(self) -> Listing:
        """Return a scan of the table, the last one where nothing was committed since."""
        listing = self.listing
        if self.table.change[0] != listing.scanned.change:
            listing = self.listing = Listing(scan_sessions(self.table, listing.scanned), {})
        return listing

    def check(self) -> list[str]:
        """Return what is wrong with the table, as ``SessionTable.check`` does.

        Raises:
            TableGone: where that is that another one has replaced it.
        """
        problems = self.table.check()
        if problems and self.control.generation != self.identity[1]:
            raise TableGone
        return problems


class _Detached:
    """Stands where an attachment was: any use of it raises."""

    def __init__(self, error: type[JidokaError], *facts: object) -> None:
        self.__dict__["_raise"] = functools.partial(error, *facts)

    def __getattr__(self, _: str) -> NoReturn:
        # Made anew each time: one exception raised again and again would grow a traceback.
        error = self.__dict__["_raise"]()
        raise error

    # Index words and reaches are asked for by number, which Python looks up in the class alone.

    def __getitem__(self, _: object) -> NoReturn:
        self.__getattr__("")

    def __setitem__(self, _: object, __: object) -> None:
        self.__getattr__("")


def detached(error: type[JidokaError], *facts: object) -> Attachment:
    """Return what to put in an attachment's place so that any use of it raises ``error``."""
    return cast("Attachment", _Detached(error, *facts))


def attach(name: str, options: ReadOptions) -> Attachment:
    """Attach to a registry, waiting for one that is being made.

    Args:
        name: the registry's name.
        options: how long to wait for it (it is tried once at least), and how to read.

    Raises:
        RegistryNotFound: where none is there, or none is complete or is being destroyed, by then.
        RegistryForbidden: where this user may not read it.
        FormatMismatch: where another version of this package made it.
        CorruptRegistry: where its control names a table that is not its own.
    """
    return _patiently(functools.partial(try_to_attach, name, options), options.timeout)


def attach_again(name: str, old: Attachment, options: ReadOptions) -> Attachment:
    """Attach to what follows ``old``, whose table was given up or whose name is gone.

    Raises:
        RegistryClosed: where nothing follows: no registry, or still the same table.
        Otherwise as ``attach``.
    """
    return _patiently(functools.partial(try_again, name, old, options), options.timeout)


def try_to_attach(name: str, options: ReadOptions) -> Attachment | Exception:
    """Attach to a registry, or return why that cannot be yet; otherwise as ``attach``."""
    try:
        opened = _open(name, options)
    except FileNotFoundError:
        opened = None
    return _or_reason(name, options, opened)


def try_again(name: str, old: Attachment, options: ReadOptions) -> Attachment | Exception:
    """Attach to what follows ``old``, or return why that cannot be yet.

    Raises:
        RegistryClosed: where nothing follows.
        Otherwise as ``attach``.
    """
    try:
        opened = _open(name, options)
    except FileNotFoundError:
        raise RegistryClosed(name, _DESTROYED) from None
    control = opened.control if isinstance(opened, Attachment) else opened
    if control is not None and (control.instance, control.generation) == old.identity:
        raise RegistryClosed(name, _DESTROYED)
    return _or_reason(name, options, opened)


def _patiently(attempt: Callable[[], Attachment | Exception], timeout: float) -> Attachment:
    """Try until it succeeds, once at least, and raise the last reason where it does not."""
    deadline = time.monotonic() + timeout
    while True:
        opened = attempt()
        if isinstance(opened, Attachment):
            return opened
        if time.monotonic() >= deadline:
            raise opened
        time.sleep(POLL)


def _or_reason(
    name: str, options: ReadOptions, opened: Attachment | ControlReader | None
) -> Attachment | Exception:
    return opened if isinstance(opened, Attachment) else _not_ready(name, options.timeout, opened)


def _not_ready(name: str, timeout: float, control: ControlReader | None) -> Exception:
    # Held odd before a name is removed: without its table that is a destruction that is under way,
    # or was cut short, and no damage.
    if control is None or control.change[0] % 2:
        return RegistryNotFound(name, timeout)
    reason = f"the control of {name!r} names table {control.generation}, which is not its own"
    return CorruptRegistry(reason)


def _open(name: str, options: ReadOptions) -> Attachment | ControlReader | None:
    """Return an attachment; its control alone where the table is missing; None where incomplete.

    Raises:
        FileNotFoundError: where there is no such name.
    """
    try:
        handle = segment.Handle(segment.open_readable(control_name(name)))
    except PermissionError:
        raise RegistryForbidden(name, None) from None
    if segment.size_of(handle.descriptor) < CONTROL_SIZE:
        return None
    control = ControlReader(segment.map_readable(handle.descriptor, CONTROL_SIZE))
    if not control.is_complete():
        return None
    control.check_format(name)
    for _ in range(_GENERATIONS):
        generation = control.generation
        table = _open_table(name, control, generation, options)
        if table is not None:
            made = Attachment(
                control, table, is_named=handle.is_named, cache_size=options.cache_size
            )
            # The control may have gone on to the next table since; taken for this one's number,
            # that would make the reader believe later that nothing follows the table it has.
            if made.identity[1] == generation:
                return made
        elif control.generation == generation:
            break
    return control


def _open_table(
    name: str, control: ControlReader, generation: int, options: ReadOptions
) -> SessionTable | None:
    """Return a table of a control's instance; None where it is not there."""
    try:
        descriptor = segment.open_readable(table_name(name, generation))
    except FileNotFoundError:
        return None
    except PermissionError:
        raise RegistryForbidden(name, None) from None
    try:
        size = segment.size_of(descriptor)
        memory = segment.map_readable(descriptor, size) if size else None
    finally:
        os.close(descriptor)
    header = None if memory is None else TableHeader.read(memory)
    if memory is None or header is None:
        return None
    if (header.instance, header.generation) != (control.instance, generation):
        return None
    return SessionTable(memory, control.change, header.geometry, verify=options.verify)
