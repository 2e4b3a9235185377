"""``SessionClient``: reads as a reader does, and changes through the registry's service."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from msgspec import UNSET, UnsetType

from . import calls, starting
from .arguments import check_flag, check_seconds, check_whole
from .attachment import ReadOptions, attach
from .delivery import Delivery
from .errors import RegistryClosed, RegistryNotFound, WriterUnavailable
from .layout import check_name
from .link import Link
from .pipeline import Pipeline
from .reader import SessionReader

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from .batch import Outcome
    from .calls import Call, Resizing
    from .maps import Map
    from .session import Session, SessionStatus


class SessionClient(SessionReader):
    """A registry that this process reads itself and changes through its service.

    Reads are those of ``SessionReader``: they need no service and no living writer. Changes go to
    whichever process writes: a ``SessionManager(name, listen=True)``, as in ``jidoka-shm serve``.
    A writer that takes over is found by itself.

    All calls may come from any thread, and from a signal handler. A client can be pickled, as its
    name and options, and used after a fork.
    """

    def __init__(
        self,
        name: str,
        *,
        timeout: float = 5.0,
        cache_size: int = 65_536,
        start: bool = False,
    ) -> None:
        """Attach to a registry. Its service is looked for at the first change.

        Args:
            name: the registry's name.
            timeout: how long a call may take, in seconds: this one, and each change. A change
                waits its turn within it: while the registry moves to another table, each does.
            cache_size: how many look-ups to keep; 0 keeps none.
            start: whether to start ``jidoka-shm serve NAME``, detached, where no writer lives:
                here, waiting until it answers, and at a change. It goes on when this process ends,
                unless what ends with this one is a unit of systemd or a container: they end
                whatever was started in them. It needs the extra ``cli``.

        Raises:
            RegistryNotFound: without ``start``, where no registry is there in time.
            RegistryForbidden, FormatMismatch, CorruptRegistry: where it cannot be read.
            WriterUnavailable: with ``start``, where no service answers in time.
            InvalidName, ValueError, TypeError: for an argument that cannot be.
        """
        self._start = check_flag("start", start)
        self._link = Link(check_name(name), start=start)
        deadline = time.monotonic() + check_seconds("timeout", timeout)
        check_whole("cache_size", cache_size)
        started = start and not _is_there(name, 0)
        if started:
            starting.start(name, deadline)
            if not _is_there(name, max(0.0, deadline - time.monotonic())):
                raise WriterUnavailable(name, reason=starting.silence_of(name))
        try:
            super().__init__(name, timeout=timeout, cache_size=cache_size)
            if start:
                self._await_service(deadline, started=started)
        except (RegistryClosed, RegistryNotFound):
            if not started:
                raise
            # It made a registry, could not serve it, and undid that.
            raise WriterUnavailable(name, reason=starting.silence_of(name)) from None

    def _await_service(self, deadline: float, *, started: bool) -> None:
        try:
            if started:
                self._link.await_started(self, deadline)
            else:
                self._link.give(self._link.take(self, deadline))
        except TimeoutError as error:
            reason = str(error) or f"no answer within {self._options.timeout:g} s"
            raise WriterUnavailable(self._name, reason=reason) from None

    # ------------------------------------------------------------------ changes

    def create_session(
        self,
        metadata: Map | None = None,
        llm_config: Map | None = None,
        pid: int | None = None,
        ttl: float | None = None,
        session_id: UUID | str | None = None,
    ) -> UUID:
        """Create a session, initializing, and return its id.

        Args:
            metadata: a map of what JSON holds; empty where it is left out.
            llm_config: the same.
            pid: its owner process.
            ttl: in how many seconds it expires, unless an update moves that; None is never.
            session_id: its id; a new version-4 UUID where it is left out.

        Raises:
            WriterUnavailable: where no writer answers; ``outcome_unknown`` says whether the change
                may have been made all the same.
            RegistryClosed: where the registry is gone, or this client is closed.
            SessionExists: where the id is taken.
            InvalidMetadata, InvalidSessionId, ValueError, TypeError: for a bad argument.
            RecordTooLarge: where its record is longer than the manager allows, or its maps than
                a request carries: 1 MiB.
            RegistryFull: where there is no room, nor can the writer make any.
            OwnerNotAlive: where ``pid`` is not alive.
            OSError: where no descriptor is left to look at ``pid``.
        """
        call = calls.to_create(metadata, llm_config, pid, ttl, session_id)
        self._change(call)
        return call.session_id

    def update_session(  # noqa: PLR0913, PLR0917 - one argument a field
        self,
        session_id: UUID | str,
        status: SessionStatus | str | UnsetType = UNSET,
        metadata: Map | UnsetType | None = UNSET,
        llm_config: Map | UnsetType | None = UNSET,
        pid: int | UnsetType | None = UNSET,
        ttl: float | UnsetType | None = UNSET,
        expected_version: int | None = None,
    ) -> Session:
        """Change what is given and return the session as it is then.

        What is not given stays, None clears, a map replaces the whole map, ``ttl`` counts from
        when the writer makes the change. The same status again is no move: a heartbeat, like an
        update of nothing.

        Args:
            session_id: which session.
            status: what it moves to.
            metadata: its new metadata.
            llm_config: its new model configuration.
            pid: its new owner process.
            ttl: in how many seconds it expires.
            expected_version: change only this version.

        Raises:
            WriterUnavailable, RegistryClosed: as for ``create_session``.
            SessionNotFound: where it is not there, or terminated.
            IllegalTransition: where its status may not move so.
            VersionConflict: where it is at another version.
            InvalidMetadata, InvalidSessionId, ValueError, TypeError: for a bad argument.
            RecordTooLarge: where its record is longer than the manager allows, or its maps than
                a request carries: 1 MiB.
            OwnerNotAlive: where ``pid`` is not alive.
            OSError: where no descriptor is left to look at ``pid``.
        """
        call = calls.to_update(session_id, status, metadata, llm_config, pid, ttl, expected_version)
        session: Session = self._change(call)
        return session

    def terminate_session(self, session_id: UUID | str, error: str | None = None) -> None:
        """End a session: it reads as terminated for the writer's ``cleanup_delay``, then is gone.

        Args:
            session_id: which session.
            error: why, if it went wrong; where there is no room for it, cut to what is left of the
                session's slots.

        Raises:
            WriterUnavailable, RegistryClosed: as for ``create_session``.
            SessionNotFound: where it is not there. One still visible as terminated is no error.
            InvalidSessionId, ValueError, TypeError: for a bad argument.
        """
        self._change(calls.to_terminate(session_id, error))

    def resize(self, capacity: int, slot_size: int | None = None) -> None:
        """Move all sessions to a table of another size, larger or smaller; readers follow.

        Both tables are there for a moment. Whatever ``grow`` and ``max_capacity`` say.

        The size that the registry has already is no change. Where the connection is lost, the
        resize is sent again as every change is, and made once by one writer. A next writer cannot
        know whether the last one made it: it gives the registry this size, whatever it has by then.

        It takes the longer, the more sessions and the larger tables there are, and ``timeout``
        holds for it as for every change. Where that is too short, the writer goes on all the same:
        asking for the same size again waits for it. What others change waits meanwhile, within
        the ``timeout`` of each; reads do not wait.

        Args:
            capacity: its slots, of which a session takes one or more.
            slot_size: bytes a slot, a multiple of 64; as before where it is left out.

        Raises:
            WriterUnavailable, RegistryClosed: as for ``create_session``.
            RegistryFull: where its sessions take more room than that, or /dev/shm has none.
            ValueError, TypeError: for sizes that no table has.
        """
        self._change(calls.to_resize(capacity, slot_size))

    def pipeline(self) -> Pipeline:
        """Return a pipeline: its changes go to the service in one round trip.

        ``timeout`` bounds all of them together::

            with client.pipeline() as changes:
                sid = changes.create_session(metadata={"project": "jidoka"})
                changes.update_session(sid, status="active")
            created, session = changes.results
        """
        return Pipeline(self._deliver)

    def _change(self, call: Call | Resizing) -> Any:  # noqa: ANN401 - what the call's method returns
        (outcome,) = self._deliver((call,))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _deliver(self, asked: Sequence[Call | Resizing]) -> list[Outcome]:
        return Delivery(self._link, self, asked, timeout=self._options.timeout).run()

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Let go of registry and service. May be repeated.

        Calls in other threads end by themselves.
        """
        super().close()
        self._link.close()

    def __reduce__(self) -> tuple[Any, ...]:
        options: dict[str, Any] = {"cache_size": self._options.cache_size, "start": self._start}
        options["timeout"] = self._options.timeout
        return functools.partial(type(self), self._name, **options), ()

    def __repr__(self) -> str:
        return f"SessionClient({self._name!r}, {self._summary()})"


def _is_there(name: str, timeout: float) -> bool:
    """Return whether there is a registry to attach to, after so many seconds at most."""
    try:
        attach(name, ReadOptions(timeout=timeout, cache_size=0, verify=False))
    except RegistryNotFound:
        return False
    return True
