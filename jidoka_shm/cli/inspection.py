"""What the command says of the registries of this host: values of JSON's types, nothing printed."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from jidoka_shm import ownership, processes, segment
from jidoka_shm.errors import (
    CorruptRegistry,
    FormatMismatch,
    InvalidName,
    JidokaError,
    ReadContended,
    RegistryClosed,
    RegistryForbidden,
    RegistryNotFound,
    WriterAlreadyRunning,
)
from jidoka_shm.layout import CONTROL_SIZE, check_name, control_name
from jidoka_shm.reader import SessionReader

from .failures import NoRegistry, Refused

if TYPE_CHECKING:
    from collections.abc import Callable

    from jidoka_shm.attachment import Attachment
    from jidoka_shm.session import SessionStatus
    from jidoka_shm.usage import Usage

Json = dict[str, Any]

#: The states of a registry; the first four are of its writer, in the others it cannot be read.
ALIVE: Final = "alive"
DEAD: Final = "dead"
NO_WRITER: Final = "none"
UNKNOWN: Final = "unknown"
STATES: Final = (
    ALIVE,
    DEAD,
    NO_WRITER,
    UNKNOWN,
    "incomplete",
    "destroyed",
    "foreign",
    "forbidden",
    "damaged",
    "unreadable",
)

_OF_ALIVE: Final = {True: ALIVE, False: DEAD, None: UNKNOWN}

_OF_ERROR: Final[dict[type[Exception], str]] = {
    RegistryClosed: "destroyed",
    FormatMismatch: "foreign",
    RegistryForbidden: "forbidden",
    CorruptRegistry: "damaged",
}

_INCOMPLETE: Final = "it is being made, or its making was cut short"
_DESTROYED: Final = "its removal is under way, or was cut short"


def names() -> list[str]:
    """Return the names of the registries of this host."""
    found = []
    prefix = control_name("")
    for name in segment.names():
        try:
            found.append(check_name(name.removeprefix(prefix)))
        except InvalidName:
            continue  # a table, or nothing of this package's
    return sorted(found)


def _is_there(name: str) -> bool:
    return control_name(name) in segment.names()


def _was_complete(name: str) -> bool:
    """Return whether a control that leads to no table did once."""
    with contextlib.suppress(OSError):
        control = segment.Handle(segment.open_readable(control_name(name)))
        return segment.is_begun(control.descriptor)
    return False


def open_reader(name: str) -> SessionReader:
    """Return a reader that does not wait and trusts no record without its crcs."""
    try:
        return SessionReader(name, timeout=0, cache_size=0, verify=True)
    except RegistryNotFound:
        if _is_there(name):
            why = _DESTROYED if _was_complete(name) else _INCOMPLETE
            text = f"no complete registry {name!r}: {why}"
            raise NoRegistry(text) from None
        raise


def view_of(reader: SessionReader) -> Attachment:
    """Return the memory that a reader reads."""
    return reader._view  # noqa: SLF001 - what a reader does not say: the writer's pid, the bytes


# ---------------------------------------------------------------------------- registries


def registries() -> list[Json]:
    """Return a summary of each registry of this host, whatever state it is in."""
    found = [summary(name) for name in names()]
    return [each for each in found if each is not None]


def summary(name: str) -> Json | None:
    """Return what one attaching to a registry tells; None where its name is gone."""
    row: Json = dict.fromkeys(
        ("name", "instance", "state", "pid", "sessions", "capacity", "size", "version", "problem")
    )
    row["name"] = name
    try:
        with SessionReader(name, timeout=0, cache_size=0) as reader:
            return row | _facts(reader)
    except (JidokaError, OSError) as error:
        if not _is_there(name):
            return None
        state, problem = _OF_ERROR.get(type(error), "unreadable"), str(error)
        if isinstance(error, RegistryNotFound):
            gone = _was_complete(name)
            state, problem = ("destroyed", _DESTROYED) if gone else ("incomplete", _INCOMPLETE)
        return row | {"state": state, "problem": problem}


def _facts(reader: SessionReader) -> Json:
    stats = reader.stats()
    return {
        "instance": str(stats.instance),
        **_writer(reader),
        "sessions": stats.sessions,
        "capacity": stats.capacity,
        "size": CONTROL_SIZE + stats.table_bytes,
        "version": stats.version,
    }


def _writer(reader: SessionReader) -> Json:
    writer = view_of(reader).control.writer()
    if writer is None:
        return {"state": NO_WRITER, "pid": None}
    return {"state": _OF_ALIVE[processes.is_alive(writer)], "pid": writer.pid}


def unlink(name: str, confirm: Callable[[Json], bool]) -> Json | None:
    """Destroy a registry that has no living writer.

    Args:
        name: its name.
        confirm: whether to destroy the one that a summary is of.

    Returns:
        The summary of what was destroyed; None where it was not confirmed.

    Raises:
        WriterAlreadyRunning: where a writer lives.
        RegistryNotFound: where there is none.
    """
    found = summary(name)
    if found is None:
        raise RegistryNotFound(name, 0)
    if found["state"] == ALIVE:
        raise WriterAlreadyRunning(name, found["pid"])
    if not confirm(found):
        return None
    # Only the one that was confirmed: another may have been made under the name meanwhile. And
    # the lock decides, whatever the control says of its writer.
    now, instance = summary(name), found["instance"]
    if now is None:
        raise RegistryNotFound(name, 0)
    removed = now["instance"] == instance and ownership.remove(
        name, instance=None if instance is None else UUID(instance)
    )
    if not removed:
        text = f"registry {name!r} was made anew after the question: look again"
        raise Refused(text)
    return found


# ---------------------------------------------------------------------------- one registry


def sessions(name: str, status: SessionStatus | None) -> list[Json]:
    """Return the sessions of a status, or all but the terminated, the oldest first."""
    with open_reader(name) as reader:
        listed = [session.to_dict() for session in reader.list_sessions(status)]
    return sorted(listed, key=lambda each: (each["created_at"], each["session_id"]))


def session(name: str, session_id: UUID) -> Json:
    """Return a session.

    Raises:
        SessionNotFound: where it is not there.
    """
    with open_reader(name) as reader:
        return reader.get_session_info(session_id).to_dict()


def stats(name: str) -> Json:
    """Return the figures of a registry."""
    with open_reader(name) as reader:
        figures = dataclasses.asdict(reader.stats())
        by_status = {str(status): count for status, count in reader.count_by_status().items()}
        usage = reader.usage()
        writer = _writer(reader)
    # Figures of the reader that this command made for itself.
    del figures["cached"], figures["retries"]
    figures["instance"] = str(figures["instance"])
    # Of one moment, which the two numbers need not be where a writer is at work.
    figures["sessions"] = sum(by_status.values())
    return {"name": name, **writer, **figures, "by_status": by_status, "usage": _usage(usage)}


def _usage(usage: Usage) -> Json:
    lengths = {_length(place): count for place, count in enumerate(usage.run_lengths)}
    return dataclasses.asdict(usage) | {"run_lengths": lengths}


def _length(place: int) -> str:
    """Return the slots of the records that a place of ``Usage.run_lengths`` counts."""
    least, most = (1 << place >> 1) + 1, 1 << place
    return str(most) if least >= most else f"{least}-{most}"


def check(name: str) -> Json:
    """Return what is wrong with a registry.

    ``whole`` says whether all of the table was looked at. That takes a moment without a commit;
    where a writer leaves none, each record is read and verified by itself.
    """
    report: Json = {"name": name, "whole": False, "sessions": None}
    try:
        with open_reader(name) as reader:
            report["sessions"] = len(reader)
            try:
                problems = reader.check()
                report["whole"] = True
            except ReadContended:
                problems = []
                for each in reader.values():
                    each.payload()
    except CorruptRegistry as error:
        problems = [error.reason]
    return report | {"problems": problems}
