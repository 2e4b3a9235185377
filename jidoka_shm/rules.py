"""The rules of a change: what create, update and terminate may do. Pure: no clock, lock or I/O.

Every call takes the time as an argument and either commits one change or raises and changes
nothing.
"""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from .deadlines import Deadlines
from .errors import (
    IllegalTransition,
    RecordTooLarge,
    RegistryFull,
    SessionExists,
    SessionNotFound,
    VersionConflict,
)
from .layout import SLOT_HEADER_SIZE
from .marks import changed_fields, changed_payload, first_payload, whole_microseconds
from .owners import Owners
from .session import MOVES, Session, SessionStatus
from .splices import with_request

if TYPE_CHECKING:
    from uuid import UUID

    from msgspec import Raw

    from .control import ControlWriter, Identity
    from .marks import Instant
    from .writer import TableWriter

#: An attribute of an enumeration costs as much as four of a module.
_INITIALIZING: Final = SessionStatus.INITIALIZING
_TERMINATED: Final = SessionStatus.TERMINATED


class SessionRules(abc.ABC):
    """The changes to the sessions of one table, each as its rules allow."""

    def __init__(self, table: TableWriter, control: ControlWriter, *, cleanup_delay: int) -> None:
        """Take a table to write.

        Args:
            table: the sessions.
            control: where what happens is counted.
            cleanup_delay: how long a terminated session stays visible, in nanoseconds.
        """
        self.table = table
        self._control = control
        self._cleanup_delay = cleanup_delay
        self._deadlines = Deadlines()
        self.owners = Owners()

    @abc.abstractmethod
    def make_room(self, newcomer: UUID | None, full: RegistryFull, now: Instant) -> None:
        """Make some room for a record, or raise ``full``; it may not be enough yet."""

    # ------------------------------------------------------------------ changes

    def create(  # noqa: PLR0913 - one argument a field
        self,
        session_id: UUID,
        *,
        maps: bytes,
        owner: Identity | None,
        ttl: int | None,
        now: Instant,
        request: bytes | None = None,
    ) -> Session:
        """Add a session, initializing.

        Args:
            session_id: its id.
            maps: its metadata and model configuration, as ``encode_maps`` returns them.
            owner: its owner process.
            ttl: in how many nanoseconds it expires, or None.
            now: the time.
            request: the id of the request that asks for it, 16 bytes, for the record to keep.

        Raises:
            SessionExists: where the id is visible.
            RecordTooLarge: where the record is longer than any may be.
            RegistryFull: where no room is, nor can be made.
        """
        if self._is_visible(session_id):
            raise SessionExists(session_id)
        packed, deadline = first_payload(maps, owner, ttl, now, request)
        created = whole_microseconds(now.wall)
        while True:
            session = Session(
                session_id=session_id,
                # Asked for anew: in the making of room a version may have been used up.
                version=self.table.next_version(),
                status=_INITIALIZING,
                pid=None if owner is None else owner.pid,
                _created=created,
                _updated=created,
                _payload=packed,
            )
            try:
                self.table.insert(session)
                break
            except RecordTooLarge:
                if request is None:
                    raise
                # What fits without the id of its request must not fail for it.
                request = None
                packed, _ = first_payload(maps, owner, ttl, now, request)
            except RegistryFull as full:
                try:
                    self.make_room(session_id, full, now)
                except RegistryFull:
                    if request is None:
                        raise
                    # As above: without it the record may take a slot less.
                    request = None
                    packed, _ = first_payload(maps, owner, ttl, now, request)
        if deadline is not None:
            self._deadlines.set(session_id.int, deadline)
        if owner is not None:
            self.owners.set(session_id.int, owner)
        self._control.count("created")
        return session

    def update(  # noqa: PLR0913 - one argument a field
        self,
        session_id: UUID,
        *,
        now: Instant,
        status: SessionStatus | UnsetType = UNSET,
        metadata: Raw | UnsetType = UNSET,
        llm_config: Raw | UnsetType = UNSET,
        owner: Identity | UnsetType | None = UNSET,
        ttl: int | UnsetType | None = UNSET,
        expected_version: int | None = None,
        request: bytes | None = None,
    ) -> Session:
        """Change what is given of a live session and return its new version.

        The record keeps ``request``, the id of the request that asks for it, where it has room;
        without one it keeps the last.

        Raises:
            SessionNotFound: where it is not there, or terminated.
            VersionConflict: where it is not at ``expected_version``.
            IllegalTransition: where its status may not move so.
            RecordTooLarge: where the record becomes longer than any may be.
            RegistryFull: where it takes more slots than before, and no room is, nor can be made.
        """
        entry, session = self._live(session_id)
        if expected_version not in {None, session.version}:
            raise VersionConflict(session_id, expected_version, session.version)
        if status is UNSET:
            status = session.status
        elif status is not session.status and status not in MOVES[session.status]:
            allowed = tuple(move.value for move in MOVES[session.status])
            raise IllegalTransition(session_id, session.status.value, status.value, allowed)
        changes = changed_fields(metadata, llm_config, owner, ttl, now)
        pid = session.pid if owner is UNSET else None if owner is None else owner.pid
        if status is _TERMINATED:
            changes["deadline"] = now.monotonic + self._cleanup_delay
            # Nobody need know any more whether that process lives.
            owner = None
        while True:
            try:
                changed = self._replace(
                    entry, session, now, changes, status=status, pid=pid, request=request
                )
                break
            except RegistryFull as full:
                # Again and again, for what was due may not have left so many adjacent slots.
                self.make_room(None, full, now)
                entry, session = self._live(session_id)
        if owner is not UNSET:
            self.owners.set(session_id.int, owner)
        return changed

    def terminate(
        self, session_id: UUID, *, error: str | None, now: Instant, request: bytes | None = None
    ) -> None:
        """End a session; it stays visible as terminated for the cleanup delay.

        An ``error`` that finds no room is cut to what is left of the session's slots; ``request``
        is as in ``update``.

        Raises:
            SessionNotFound: where it is not there. One that is visible as terminated stays as is.
        """
        entry, session = self._visible(session_id)
        if session.status is not _TERMINATED:
            deadline = now.monotonic + self._cleanup_delay
            changes: dict[str, Any] = {"error": error, "deadline": deadline}
            end: dict[str, Any] = {"status": _TERMINATED, "pid": session.pid}
            try:
                self._replace(entry, session, now, changes, request=request, **end)
            except (RecordTooLarge, RegistryFull):
                # The end must succeed; its reason is what can be shortened.
                changes |= {"error": self._cut(entry, session, changes), "request": None}
                self._replace(entry, session, now, changes, **end)
            if session.pid is not None:
                self.owners.set(session_id.int, None)

    # ------------------------------------------------------------------ parts

    def find(self, session_id: UUID) -> Session | None:
        """Return a session that is visible, or None."""
        found = self.table.look_up(session_id)
        return None if found is None else found[2]

    def _is_visible(self, session_id: UUID) -> bool:
        glance = self.table.quick_glance(session_id)
        if glance is None:
            return self.table.find(session_id, self.table.copy_head) is not None
        return glance != ()

    def _visible(self, session_id: UUID) -> tuple[int, Session]:
        found = self.table.locate(session_id)
        if found is None:
            raise SessionNotFound(session_id)
        return found[0], self.table.make_session(session_id, *found)

    def _live(self, session_id: UUID) -> tuple[int, Session]:
        entry, session = self._visible(session_id)
        if session.status is _TERMINATED:
            raise SessionNotFound(session_id)
        return entry, session

    def _cut(self, entry: int, session: Session, changes: dict[str, Any]) -> str:
        """Return of an end's reason what the slots of the session have room for."""
        payload = replace(session.payload(), **{**changes, "request": None})
        over = SLOT_HEADER_SIZE + len(payload.encode()) - self.table.room_at(entry)
        reason = (payload.error or "").encode()
        return reason[: len(reason) - max(over, 0)].decode(errors="ignore")

    def _replace(  # noqa: PLR0913 - one argument a field
        self,
        entry: int,
        session: Session,
        now: Instant,
        changes: dict[str, Any],
        *,
        status: SessionStatus,
        pid: int | None,
        request: bytes | None = None,
    ) -> Session:
        """Commit a session's next version, with ``changes`` to its payload.

        The id of a request goes into the payload as well, where it fits: what fits without it must
        not fail for it.
        """
        packed = session._payload  # noqa: SLF001 - ours
        if request is not None and not changes:
            spliced = with_request(packed, request)
            if spliced is not None:
                packed, request = spliced, None
        if request is not None:
            try:
                marked = {**changes, "request": request}
                return self._replace(entry, session, now, marked, status=status, pid=pid)
            except (RecordTooLarge, RegistryFull):
                changes["request"] = None
        if changes:
            packed, deadline = changed_payload(session, changes)
        following = Session(
            session_id=session.session_id,
            version=self.table.next_version(),
            status=status,
            pid=pid,
            _created=session._created,  # noqa: SLF001 - ours
            _updated=whole_microseconds(now.wall),
            _payload=packed,
        )
        changed = self.table.replace(entry, following)
        if changes:
            self._deadlines.set(changed.session_id.int, deadline)
        self._control.count("updated")
        return changed
