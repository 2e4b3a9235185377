"""The registry: its rules, and what time and the ends of owner processes do to its sessions.

Pure, as the rules are. A session's deadline stands in its record, so the next writer takes it up
again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .deadlines import Deadlines
from .errors import VERSIONS, CorruptRegistry
from .ids import id_of
from .layout import TERMINATED_CODE
from .marks import owner_of
from .owners import Owners
from .rules import SessionRules
from .session import SessionStatus

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from .control import ControlWriter, Identity
    from .errors import RegistryFull
    from .marks import Instant
    from .session import Session
    from .survey import Dropped
    from .writer import TableWriter

#: An attribute of an enumeration costs as much as four of a module.
_TERMINATED: Final = SessionStatus.TERMINATED

#: What the record of an expired session says.
EXPIRED: Final = "expired"

#: Sessions that one call of ``expire`` or ``owner_ended`` handles, so that others get a turn.
BATCH: Final = 256


class Registry(SessionRules):
    """The sessions of one registry, as their one writer changes them."""

    def __init__(
        self,
        table: TableWriter,
        control: ControlWriter,
        *,
        cleanup_delay: int,
        grow: Callable[[UUID | None, RegistryFull], object] | None = None,
    ) -> None:
        """Take a table to write.

        Args:
            table: the sessions.
            control: where what happens is counted.
            cleanup_delay: how long a terminated session stays visible, in nanoseconds.
            grow: given the id of a new session that finds no room, or None for a record that
                outgrows its own, and the error that says so; raises it, or puts another table in
                the place of ``table``. None is a table of a fixed size.
        """
        super().__init__(table, control, cleanup_delay=cleanup_delay)
        self._grow = grow

    def resume(self, identity: Identity) -> tuple[int, tuple[Dropped, ...]]:
        """Take up what the table holds, deadlines and owners included.

        Returns:
            How many sessions were kept, and what was dropped.
        """
        self._deadlines, owners = Deadlines(), Owners()
        kept = 0

        def visit(session: Session) -> None:
            nonlocal kept
            kept += 1
            deadline = session.deadline()
            if deadline is not None:
                self._deadlines.set(session.session_id.int, deadline)
            if session.pid is not None and session.status is not _TERMINATED:
                owners.set(session.session_id.int, owner_of(session))

        dropped = self.table.resume(identity, visit)
        owners.replace(self.owners)
        self.owners = owners
        return kept, dropped

    def revoke(self, gone: Any) -> None:  # noqa: ANN401 - stands where many things did
        """Make a change that is under way raise, in a forked child, at its next step."""
        self.table.revoke(gone)
        self._control = gone

    # ------------------------------------------------------------------ what happens to them

    def owner_ended(
        self, owner: Identity, error: str, now: Instant, *, asked: bool = False, limit: int = BATCH
    ) -> int:
        """Terminate sessions of an owner process that ended.

        Args:
            owner: the process.
            error: how it ended, for the sessions to say.
            now: the time.
            asked: whether in a way that is no error of a session that is terminating.
            limit: how many sessions at most, so that other callers get their turn.

        Returns:
            How many it has seen to: all that there were, where they are fewer than ``limit``.
        """
        keys = self.owners.sessions_of(owner, limit)
        for key in keys:
            session_id = id_of(key)
            if (found := self.table.look_up(session_id)) is not None:
                is_told = not asked or found[2].status is not SessionStatus.TERMINATING
                self.terminate(session_id, error=error if is_told else None, now=now)
            self.owners.set(key, None)
        return len(keys)

    def next_turn(self) -> int | None:
        """Return the next deadline, or 0, which is at once, where an owner is not watched yet."""
        return 0 if self.owners.arrived else self._deadlines.next()

    def expire(self, now: Instant) -> int:
        """Remove the terminated whose delay is over, terminate those past their time to live.

        Returns:
            How many it removed.
        """
        removed = 0
        for key in self._deadlines.due(now.monotonic, BATCH):
            session_id = id_of(key)
            found = self.table.find(session_id, self.table.copy_head)
            if found is None:
                self._deadlines.set(key, None)
            elif found[2][0][6] == TERMINATED_CODE:
                # Counted first: a kill between the two leaves one too many, which at worst makes
                # the outcome of a request unknown, and never one that was carried out look new.
                self._control.count("removed")
                self.table.remove(found[0])
                self._deadlines.set(key, None)
                removed += 1
            else:
                self.terminate(session_id, error=EXPIRED, now=now)
        return removed

    def make_room(self, newcomer: UUID | None, full: RegistryFull, now: Instant) -> None:
        """Make some room for a record, or raise ``full``; it may not be enough yet."""
        if full.unit == VERSIONS:
            raise full
        # What is due may not have had its turn, where creates follow one another without a pause:
        # a table must not grow for it.
        removed = 0
        try:
            # As many as may do, or each part of them would be tried by itself.
            while removed < full.needed and (done := self.expire(now)):
                removed += done
        except CorruptRegistry:
            # That of another session. The turn that it is waiting for recovers it.
            pass
        if removed:
            return
        if self._grow is None:
            raise full
        self._grow(newcomer, full)
