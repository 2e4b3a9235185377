"""What every kind of handle has in common: the protocol of reading, and its figures."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

    from numpy.typing import NDArray

    from .differences import Change
    from .session import Session, SessionStatus
    from .usage import Usage


class Sessions(Protocol):
    """What every kind of handle offers to read by; each is a ``Mapping`` besides."""

    def get_session_info(self, session_id: UUID | str) -> Session:
        """Return a session."""
        ...

    def get_session_pid(self, session_id: UUID | str) -> int | None:
        """Return the pid of a session's owner process."""
        ...

    def get_session_status(self, session_id: UUID | str) -> SessionStatus:
        """Return a session's status."""
        ...

    def list_sessions(self, status: SessionStatus | str | None = None) -> list[Session]:
        """Return the sessions of a status, or all but the terminated."""
        ...

    def count_by_status(self) -> dict[SessionStatus, int]:
        """Return how many sessions have each status."""
        ...

    def snapshot(self) -> NDArray[Any]:
        """Return the header columns of all sessions."""
        ...

    def changes(
        self, timeout: float | None = None, *, since: int | None = 0, latency: float = 0.01
    ) -> Iterator[Change]:
        """Return an iterator of what becomes different."""
        ...

    def stats(self) -> Stats:
        """Return figures of the registry and of this handle."""
        ...

    def usage(self) -> Usage:
        """Return how the slots are used."""
        ...

    def refresh(self) -> None:
        """Attach to what bears the name now."""
        ...

    def close(self) -> None:
        """Let go of the registry."""
        ...

    @property
    def version(self) -> int | None:
        """Commits so far."""
        ...

    @property
    def writer_alive(self) -> bool | None:
        """Whether the registry has a living writer."""
        ...

    def __getitem__(self, session_id: UUID | str, /) -> Session: ...
    def __contains__(self, session_id: object, /) -> bool: ...
    def __iter__(self) -> Iterator[UUID]: ...
    def __len__(self) -> int: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Figures of a registry and of the handle that was asked.

    Attributes:
        name: the registry's name.
        instance: the id of this creation of it.
        generation: which table it is at.
        version: commits so far; None while one is under way or was cut short.
        sessions: sessions that are visible.
        capacity: slots, the spare ones left out; a session takes one or more.
        slot_size: bytes a slot.
        index_size: home entries.
        table_bytes: bytes of the table's shared memory.
        created, updated, removed: changes since the registry was created.
        takeovers: how often a writer took it over.
        dropped: damaged records that recoveries dropped.
        cached: look-ups that this handle keeps.
        retries: reads of this handle that met a commit and tried again.
    """

    name: str
    instance: UUID
    generation: int
    version: int | None
    sessions: int
    capacity: int
    slot_size: int
    index_size: int
    table_bytes: int
    created: int
    updated: int
    removed: int
    takeovers: int
    dropped: int
    cached: int
    retries: int
