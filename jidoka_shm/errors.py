"""Every error of the package: one tree, each error with its facts as attributes.

::

    JidokaError
    |-- SessionNotFound (KeyError)             no such session, or no longer
    |-- SessionExists                          the id is taken
    |-- IllegalTransition (ValueError)         the status may not move so
    |-- VersionConflict                        somebody changed the session first
    |-- InvalidSessionId (ValueError)          not a UUID, nor the text of one
    |-- InvalidName (ValueError)               not a registry's name
    |-- InvalidMetadata (ValueError)           a map holds what JSON does not
    |-- RecordTooLarge (ValueError)            the record is too long
    |-- RegistryFull                           no free slot, or no room in /dev/shm
    |-- RegistryNotFound (FileNotFoundError)   nobody made a registry of that name
    |-- RegistryClosed                         this handle, or the registry, is closed
    |-- WriterAlreadyRunning                   one writer a registry, and it lives
    |-- WriterUnavailable (ConnectionError)    no writer answers
    |-- OwnerNotAlive (ValueError)             the owner process is gone already
    |-- SessionNotStarted                      a session's process did not begin, or get ready
    |-- SessionNotSupervised                   this supervisor runs no such session
    |-- RegistryForbidden (PermissionError)    it belongs to another user
    |-- DirectoryForbidden (PermissionError)   the service's directory is not this user's
    |-- UnsupportedPlatform (OSError)          not Linux
    |-- ForkedHandle                           a handle belongs to the process that made it
    |-- ForeignLoop (RuntimeError)             an async client belongs to the loop that entered it
    |-- ReentrantCall (RuntimeError)           a call from inside one of the manager's own
    |-- FormatMismatch                         another version's memory format
    |-- CorruptRegistry                        the memory does not hold what it must
    `-- ReadContended                          a bounded retry ran out

An error is a dataclass of its facts: they are its attributes and its ``args``, so that the
default pickling of exceptions restores it whole. ``str()`` says what happened, the limit, and the
way out.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from uuid import UUID


#: Letters of a value that an error shows.
_SHOWN = 80


def shown(value: object) -> str:
    """Return a short text of a value for an error.

    Its repr may be a stranger's code and fail; an int of more than 4300 digits has none.
    """
    try:
        return repr(value)[:_SHOWN]
    except Exception as error:  # noqa: BLE001 - whatever a stranger's repr raises
        return f"{type(value).__name__} without a repr ({type(error).__name__})"


class JidokaError(Exception):
    """The base of every error that this package raises on purpose."""

    def __post_init__(self) -> None:
        # What pickling restores an exception from. OSError's own constructor leaves it empty.
        self.args = tuple(getattr(self, fact.name) for fact in fields(self))  # type: ignore[arg-type]


@dataclass(eq=False, repr=False)
class SessionNotFound(JidokaError, KeyError):
    """No session has this id, or it has ended.

    Attributes:
        session_id: the id that was asked for.
    """

    session_id: UUID

    def __str__(self) -> str:
        return f"no live session {self.session_id}: it never existed here, or it has ended"


@dataclass(eq=False, repr=False)
class SessionExists(JidokaError):
    """A session with this id is still visible.

    Attributes:
        session_id: the id that was to be created.
    """

    session_id: UUID

    def __str__(self) -> str:
        return (
            f"session {self.session_id} exists: leave session_id out to get a new id, or wait "
            "until the old session has ended and cleanup_delay is over"
        )


@dataclass(eq=False, repr=False)
class IllegalTransition(JidokaError, ValueError):
    """A status may not move to the one asked for.

    Attributes:
        session_id: whose status it is.
        current: the status it has.
        requested: the status asked for.
        allowed: the statuses it may move to.
    """

    session_id: UUID
    current: str
    requested: str
    allowed: tuple[str, ...]

    def __str__(self) -> str:
        ways = ", ".join(self.allowed) or "no other status"
        return (
            f"session {self.session_id} is {self.current} and cannot become {self.requested}; "
            f"from {self.current} it may move to {ways}"
        )


@dataclass(eq=False, repr=False)
class VersionConflict(JidokaError):
    """The session is not at the version that the caller expected.

    Attributes:
        session_id: whose version it is.
        expected: the version that was given as ``expected_version``.
        actual: the version the session has.
    """

    session_id: UUID
    expected: int
    actual: int

    def __str__(self) -> str:
        return (
            f"session {self.session_id} is at version {self.actual}, not {shown(self.expected)}: "
            "read it again, decide again, and pass the version you read"
        )


@dataclass(eq=False, repr=False)
class InvalidSessionId(JidokaError, ValueError):
    """What was given as an id is neither a UUID nor the text of one.

    Attributes:
        value: what was given, shortened, as text.
    """

    value: str

    def __str__(self) -> str:
        return (
            f"{self.value} is no session id: pass a uuid.UUID, or its text of 32 hexadecimal "
            "digits with or without hyphens, with or without 'session_' before it"
        )


@dataclass(eq=False, repr=False)
class InvalidName(JidokaError, ValueError):
    """What was given as a registry's name cannot be one.

    Attributes:
        name: what was given, shortened, as text.
    """

    name: str

    def __str__(self) -> str:
        return f"{self.name} is no registry name: use 1 to 64 of A-Z, a-z, 0-9, '_' and '-'"


@dataclass(eq=False, repr=False)
class InvalidMetadata(JidokaError, ValueError):
    """A map holds something that JSON does not.

    Attributes:
        path: where, as Python would write it, like ``metadata["a"][3]``.
        reason: what is wrong there.
    """

    path: str
    reason: str

    def __str__(self) -> str:
        return (
            f"{self.path} {self.reason}: maps hold str keys and str, 64-bit int, finite float, "
            "bool, None, list and dict values, at most 32 deep"
        )


@dataclass(eq=False, repr=False)
class RecordTooLarge(JidokaError, ValueError):
    """The encoded session does not fit.

    Attributes:
        size: the record's size in bytes; of what no request can carry, that of its maps.
        limit: the largest that fits, in bytes.
        place: what it does not fit: ``"record"``, or ``"request"``, whatever a record holds.
    """

    size: int
    limit: int
    place: str = "record"

    def __str__(self) -> str:
        if self.place == "request":
            return (
                f"the session's maps take {self.size} bytes of a request and may take "
                f"{self.limit}: keep less in them, or make the change in the manager's own process"
            )
        return (
            f"the session takes a record of {self.size} bytes and may take {self.limit}: keep less "
            "in its maps, or give the manager a larger max_record_size"
        )


#: Units of a ``RegistryFull``: what a long record needs, and what a registry has no more of after
#: years.
ADJACENT: Final = "adjacent slots"
VERSIONS: Final = "versions of 40 bits"


@dataclass(eq=False, repr=False)
class RegistryFull(JidokaError):
    """There is no room: no free slot, or not enough of /dev/shm.

    Attributes:
        needed: what was asked for (slots, or bytes).
        available: what there is of it.
        unit: ``"slots"``, ``"adjacent slots"``, ``"bytes of /dev/shm"``, ``"entries near the id's
            home"`` or ``"versions of 40 bits"``.
    """

    needed: int
    available: int
    unit: str

    def __str__(self) -> str:
        if self.unit == "bytes of /dev/shm":
            out = (
                "free some, make the registry smaller, or enlarge /dev/shm (in a container, "
                "start it with a larger --shm-size)"
            )
        elif self.unit == VERSIONS:
            out = "make the registry anew with fresh=True"
        else:
            out = "end sessions, or give it a larger capacity: by max_capacity, or by resize()"
        return f"the registry needs {self.needed} {self.unit}, {self.available} are free: {out}"


@dataclass(eq=False, repr=False)
class RegistryNotFound(JidokaError, FileNotFoundError):
    """No registry of this name appeared in time.

    Attributes:
        name: the registry's name.
        timeout: how long it was waited for, in seconds.
    """

    name: str
    timeout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        self.errno = errno.ENOENT

    def __str__(self) -> str:
        return (
            f"no registry {self.name!r} after {self.timeout:g} s: start its SessionManager "
            "first, or give a longer timeout"
        )


@dataclass(eq=False, repr=False)
class RegistryClosed(JidokaError):
    """This handle is closed, or the registry was destroyed.

    Attributes:
        name: the registry's name.
        reason: which of the two, in words.
    """

    name: str
    reason: str

    def __str__(self) -> str:
        return f"registry {self.name!r}: {self.reason}; open it again to go on"


@dataclass(eq=False, repr=False)
class WriterAlreadyRunning(JidokaError):
    """Another manager holds the registry's lock.

    Attributes:
        name: the registry's name.
        pid: the holder's pid, or None where it cannot be known.
    """

    name: str
    pid: int | None

    def __str__(self) -> str:
        holder = "another process" if self.pid is None else f"process {self.pid}"
        return (
            f"registry {self.name!r} has a writer already ({holder}): read with SessionReader, "
            "change through SessionClient, or wait for its end with wait="
        )


@dataclass(eq=False, repr=False)
class WriterUnavailable(JidokaError, ConnectionError):
    """No writer answers for the registry.

    Attributes:
        name: the registry's name.
        outcome_unknown: True where a change was sent and nobody can tell whether it was made.
        reason: what is known beyond that, or None.
    """

    name: str
    outcome_unknown: bool = False
    reason: str | None = None

    def __str__(self) -> str:
        what = f"has no writer that answers ({self.reason})" if self.reason else "has no writer"
        tail = "; the change may or may not have been made" if self.outcome_unknown else ""
        return f"registry {self.name!r} {what}: reads go on, changes fail until there is one{tail}"


@dataclass(eq=False, repr=False)
class OwnerNotAlive(JidokaError, ValueError):
    """The process named as a session's owner is not alive.

    Attributes:
        pid: the process id that was given.
    """

    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} is not alive: pass the pid of a running process, or None"


@dataclass(eq=False, repr=False)
class SessionNotStarted(JidokaError):
    """A session's process could not be started, or ended or took too long before it was ready.

    Attributes:
        program: what was to run, shortened, as text.
        reason: what went wrong.
        exit_status: its exit status, or minus the signal that ended it, where it had begun.
    """

    program: str
    reason: str
    exit_status: int | None = None

    def __str__(self) -> str:
        return (
            f"no session runs {self.program}: {self.reason}; nothing is left of it, so mend that "
            "and start it again"
        )


@dataclass(eq=False, repr=False)
class SessionNotSupervised(JidokaError):
    """This supervisor runs no process of this session.

    Attributes:
        session_id: the id that was given.
    """

    session_id: UUID

    def __str__(self) -> str:
        return (
            f"session {self.session_id} has no process here: it has ended, or was started in "
            "another way; stop it where it was started, or end it with terminate_session"
        )


@dataclass(eq=False, repr=False)
class RegistryForbidden(JidokaError, PermissionError):
    """The registry belongs to another user.

    Attributes:
        name: the registry's name.
        uid: its owner's uid, or None where even that cannot be known.
    """

    name: str
    uid: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.errno = errno.EACCES

    def __str__(self) -> str:
        owner = "another user" if self.uid is None else f"the user with uid {self.uid}"
        return (
            f"registry {self.name!r} belongs to {owner}: choose another name, or have its owner "
            "make it with mode=0o640 or 0o644 to be read"
        )


@dataclass(eq=False, repr=False)
class DirectoryForbidden(JidokaError, PermissionError):
    """What bears the name of the directory for the service's socket is not this user's directory.

    Attributes:
        directory: its path.
        uid: its owner's uid; None where it is no directory.
    """

    directory: str
    uid: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.errno = errno.EACCES

    def __str__(self) -> str:
        owner = f"belongs to the user with uid {self.uid}"
        what = "is no directory" if self.uid is None else owner
        return (
            f"a service cannot listen in {self.directory}, which {what}: have it removed, or set "
            "XDG_RUNTIME_DIR to a directory of this user with mode 0700"
        )


@dataclass(eq=False, repr=False)
class UnsupportedPlatform(JidokaError, OSError):
    """This system is not Linux.

    Attributes:
        platform: what ``sys.platform`` says.
    """

    platform: str

    def __str__(self) -> str:
        return f"a registry cannot be opened on {self.platform}: jidoka_shm needs Linux"


@dataclass(eq=False, repr=False)
class ForkedHandle(JidokaError):
    """A manager, supervisor or async client was used in a process forked from its own.

    Attributes:
        name: the registry's name.
    """

    name: str

    def __str__(self) -> str:
        return (
            f"this handle of {self.name!r} belongs to the parent process: in a forked child "
            "read with SessionReader and change through a SessionClient"
        )


@dataclass(eq=False, repr=False)
class ForeignLoop(JidokaError, RuntimeError):
    """An ``AsyncSessionClient`` was used in another event loop than the one that entered it.

    Attributes:
        name: the registry's name.
    """

    name: str

    def __str__(self) -> str:
        return (
            f"this client of {self.name!r} belongs to another event loop: change through it in the "
            "loop that entered it, and make a client for each loop"
        )


@dataclass(eq=False, repr=False)
class ReentrantCall(JidokaError, RuntimeError):
    """A signal handler or finalizer called the manager inside one of the manager's calls.

    Attributes:
        name: the registry's name.
    """

    name: str

    def __str__(self) -> str:
        return (
            f"registry {self.name!r} is in the middle of a change in this very thread: a signal "
            "handler or finalizer may read and close, but set a flag instead of changing"
        )


@dataclass(eq=False, repr=False)
class FormatMismatch(JidokaError):
    """The memory was laid out by another version of this package.

    Attributes:
        name: the registry's name.
        found: the format version in memory, or None where the magic is not ours at all.
        supported: the format version of this package.
    """

    name: str
    found: int | None
    supported: int

    def __str__(self) -> str:
        found = "an unknown format" if self.found is None else f"format {self.found}"
        return (
            f"registry {self.name!r} has {found}, this package reads format {self.supported}: use "
            "one version of jidoka_shm everywhere, or discard the old registry with fresh=True"
        )


@dataclass(eq=False, repr=False)
class CorruptRegistry(JidokaError):
    """The memory holds something that its writer can never have put there.

    Attributes:
        reason: what is wrong, and where.
    """

    reason: str

    def __str__(self) -> str:
        return (
            f"damaged registry: {self.reason}; a SessionManager that takes it over drops damaged "
            "records and keeps the rest, and with fresh=True it starts anew"
        )


@dataclass(eq=False, repr=False)
class ReadContended(JidokaError):
    """A read met a change at every one of its tries: commits, or tables that were given up.

    Attributes:
        tries: how many there were.
    """

    tries: int

    def __str__(self) -> str:
        return f"{self.tries} tries of one read each met a new change: read again"
