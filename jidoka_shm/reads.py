"""Reading: the one implementation behind every kind of handle.

A look-up takes no lock and makes no system call; a list makes one, to see that the name stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload
from uuid import UUID

from . import processes, seqlock
from .access import ATTACHMENTS, Access
from .arguments import parse_session_id
from .attachment import Attachment
from .errors import (
    CorruptRegistry,
    InvalidSessionId,
    JidokaError,
    ReadContended,
    SessionNotFound,
)
from .handles import Stats
from .ids import decode_ids
from .scan import count_sessions, scan_headers
from .session import (
    STATUS_OF_CODE,
    Session,
    SessionStatus,
    parse_status,
)
from .table import TableGone
from .usage import measure
from .views import SessionItems, SessionValues
from .watching import Changes, Watch

if TYPE_CHECKING:
    from collections.abc import ItemsView, Iterator, ValuesView

    from numpy.typing import NDArray

    from .attachment import Listing
    from .usage import Usage

T = TypeVar("T")

#: An attribute of an enumeration costs as much as four of a module.
_TERMINATED: Final = SessionStatus.TERMINATED

#: Tries at a table that stays as it is while ``check`` looks at all of it.
_CHECKS: Final = 20


class SessionReads(Access, Mapping[UUID, Session]):
    """Reading, for every kind of handle. A ``Mapping`` of what ``get_session_info`` finds."""

    # ------------------------------------------------------------------ one session

    def get_session_info(self, session_id: UUID | str) -> Session:
        """Return a session, one in its last moments as terminated included.

        Args:
            session_id: the id, or its text with or without ``session_`` before it. A ``UUID`` is
                the fast way.

        Raises:
            SessionNotFound: where it is not there.
            InvalidSessionId: for what is no id.
        """
        view = self._view
        if type(session_id) is not UUID:
            # A closed handle says so whatever it is asked.
            view.kept  # noqa: B018 - a detached view raises
            session_id = parse_session_id(session_id)
        hit = view.kept.get(session_id.int)
        if hit is not None:
            entry, word, session = hit
            if view.words[entry] == word:
                return session
        found = view.quick_look_up(session_id)
        if found:
            return found
        closer = self._look_up(session_id) if found is None else None
        if closer is None:
            raise SessionNotFound(session_id)
        return closer

    __getitem__ = get_session_info

    def get_session_status(self, session_id: UUID | str) -> SessionStatus:
        """Return a session's status; otherwise as a first ``get_session_info``, in less time."""
        quick_glance = self._view.quick_glance
        key = session_id if type(session_id) is UUID else parse_session_id(session_id)
        glance = quick_glance(key)
        if glance:
            try:
                return STATUS_OF_CODE[glance[2]]
            except KeyError:
                # Damage, which the closer look names.
                glance = None
        if glance is None:
            return self._glance(key)[0]
        raise SessionNotFound(key)

    def get_session_pid(self, session_id: UUID | str) -> int | None:
        """Return the pid of a session's owner process, or None where it has none.

        Raises:
            SessionNotFound: where it is not there, or terminated.
            InvalidSessionId: for what is no id.
        """
        quick_glance = self._view.quick_glance
        key = session_id if type(session_id) is UUID else parse_session_id(session_id)
        glance = quick_glance(key)
        if glance:
            _, pid, code = glance
            status = STATUS_OF_CODE.get(code)
        elif glance is None:
            status = None
        else:
            raise SessionNotFound(key)
        if status is None:
            status, pid = self._glance(key)
        if status is _TERMINATED:
            raise SessionNotFound(key)
        return pid or None

    @overload
    def get(self, session_id: object, /) -> Session | None: ...
    @overload
    def get(self, session_id: object, /, default: T) -> Session | T: ...
    def get(self, session_id: object, /, default: T | None = None) -> Session | T | None:
        """Return a session, or ``default`` where it is not there or ``session_id`` is no id."""
        # Again, and not by a call, which would cost as much as a hit does.
        view = self._view
        kept = view.kept
        if type(session_id) is UUID:
            key = session_id
        else:
            try:
                key = parse_session_id(session_id)
            except InvalidSessionId:
                return default
        # Nothing is asked of a cache that keeps nothing: of a miss that would be a tenth.
        hit = kept.get(key.int) if kept else None
        if hit is not None:
            entry, word, session = hit
            if view.words[entry] == word:
                return session
        found = view.quick_look_up(key)
        if found:
            return found
        closer = self._look_up(key) if found is None else None
        return default if closer is None else closer

    def __contains__(self, session_id: object) -> bool:
        return self.get(session_id) is not None

    def _look_up(self, session_id: UUID) -> Session | None:
        """Look up where the quick way leaves the answer open."""
        for _ in range(ATTACHMENTS):
            view = self._view
            try:
                return view.look_up(session_id)
            except TableGone:
                self._attach_again(view)
        raise ReadContended(ATTACHMENTS)

    def _glance(self, session_id: UUID) -> tuple[SessionStatus, int]:
        """Return status and owner pid, or 0, where the quick way leaves the answer open."""
        for _ in range(ATTACHMENTS):
            view = self._view
            table = view.table
            try:
                found = table.find(session_id, table.copy_head)
            except TableGone:
                self._attach_again(view)
                continue
            if found is None:
                raise SessionNotFound(session_id)
            return _status(session_id, found[2][0][6]), found[2][0][4]
        raise ReadContended(ATTACHMENTS)

    # ------------------------------------------------------------------ all sessions

    def list_sessions(self, status: SessionStatus | str | None = None) -> list[Session]:
        """Return the sessions of a status, or all but the terminated; in no promised order.

        Where no commit came between, that is an atomic snapshot. Otherwise each session is whole
        and current, and each that lived throughout is there once.

        Raises:
            ValueError: for a status that is none.
        """
        wanted = None if status is None else parse_status(status)
        listing = self._listing()
        listed = listing.lists.get(wanted)
        if listed is None:
            sessions = listing.scanned.sessions.values()
            if wanted is None:
                listed = [s for s in sessions if s.status is not _TERMINATED]
            else:
                listed = [s for s in sessions if s.status is wanted]
            listing.lists[wanted] = listed
        return listed.copy()

    def count_by_status(self) -> dict[SessionStatus, int]:
        """Return how many sessions have each status; all five are there, the terminated too."""
        codes = self.snapshot()["status"]
        return {status: int((codes == code).sum()) for code, status in STATUS_OF_CODE.items()}

    def snapshot(self) -> NDArray[Any]:
        """Return the header columns of all sessions, the terminated too: a copy, a row each.

        The columns are those of the slot header in docs/format.md: ``session_id`` (16 raw bytes),
        ``version``, ``created_at`` and ``updated_at`` (nanoseconds since the epoch), ``pid`` (0
        for none), ``status`` (its code), and the lengths and crcs of the record. As atomic as
        ``list_sessions``.
        """
        return self._on_table(lambda view: scan_headers(view.table)[1])

    def __len__(self) -> int:
        return self._on_table(lambda view: count_sessions(view.table))

    def __iter__(self) -> Iterator[UUID]:
        return iter(decode_ids(self.snapshot()["session_id"].tobytes()))

    def items(self) -> ItemsView[UUID, Session]:
        """Return the pairs of id and session; each iteration is one scan."""
        return SessionItems(self)

    def values(self) -> ValuesView[Session]:
        """Return the sessions; each iteration is one scan."""
        return SessionValues(self)

    def changes(
        self, timeout: float | None = None, *, since: int | None = 0, latency: float = 0.01
    ) -> Changes:
        """Return an iterator of what becomes different, beginning with what is there now.

        It compares what it sees, by versions: nothing is lost, but what happens to a session
        between two looks is one ``Change``, and one that came and went between them is not told
        of. It goes on with a writer that takes over, and with the next registry of the name:
        the sessions of the old one are removed then. It ends when this handle is closed.

        Args:
            timeout: end after so many seconds without a change; None is never. Iterating again
                goes on from there.
            since: tell at the beginning of those sessions alone whose version is greater, as
                created or updated; None is of none, as where ``version`` is None.
            latency: how often to look, in seconds. A look where nothing was committed is one load.

        Raises:
            RegistryClosed: where there is no registry now.
            ValueError, TypeError: for an argument that cannot be.
        """
        return Changes(Watch(self, since=since, latency=latency), timeout)

    def _listing(self) -> Listing:
        return self._on_table(Attachment.scan)

    # ------------------------------------------------------------------ the registry

    @property
    def version(self) -> int | None:
        """Commits so far; None while one is under way or was cut short by its writer's death.

        A number that grew says that something changed; the same number, that nothing did.
        """
        return seqlock.version(self._view.table.change)

    @property
    def writer_alive(self) -> bool | None:
        """Whether the registry has a living writer; None if it is of another pid namespace."""
        writer = self._on_table(lambda view: view.control).writer()
        return False if writer is None else processes.is_alive(writer)

    def stats(self) -> Stats:
        """Return figures of the registry and of this handle."""
        return self._on_table(self._stats)

    def _stats(self, view: Attachment) -> Stats:
        # All of it of one table: the registry may be replaced while it is put together.
        geometry = view.table.geometry
        return Stats(
            name=self._name,
            instance=view.identity[0],
            generation=view.identity[1],
            version=seqlock.version(view.table.change),
            sessions=count_sessions(view.table),
            capacity=geometry.capacity,
            slot_size=geometry.slot_size,
            index_size=geometry.index_size,
            table_bytes=geometry.size,
            cached=len(view.cache),
            retries=view.table.index.retries,
            **view.control.counters(),
        )

    def usage(self) -> Usage:
        """Return how the slots are used, and which slot size would suit the records there are.

        It reads the header of each record, as ``snapshot`` does.
        """
        return self._on_table(lambda view: measure(view.table))

    def check(self) -> list[str]:
        """Return what is wrong with the registry, a line each; nothing where all is well.

        It looks at all of the table, with all crcs, and tries for a moment without a commit.

        Raises:
            ReadContended: where there was none.
        """
        for _ in range(_CHECKS):
            before = self._view.table.change[0]
            problems = self._on_table(Attachment.check)
            # A reach is raised before a commit and lowered after it.
            if problems and problems != self._on_table(Attachment.check):
                continue
            if self._view.table.change[0] == before:
                return problems
        raise ReadContended(_CHECKS)

    def _summary(self) -> str:
        """Return the part of a repr that says how the registry is, without raising."""
        try:
            return f"{len(self)} sessions, version {self.version}"
        except JidokaError as error:
            return f"{type(error).__name__}"

    # A handle is itself, whatever it maps to: a Mapping's own == would compare all sessions.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


def _status(session_id: UUID, code: int) -> SessionStatus:
    try:
        return STATUS_OF_CODE[code]
    except KeyError:
        reason = f"session {session_id} has the status code {code}"
        raise CorruptRegistry(reason) from None
