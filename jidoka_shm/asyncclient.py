"""``AsyncSessionClient``: reads as a reader does, and changes by ``await``, in one event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import time
import warnings
from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, UnsetType

from . import calls
from .arguments import check_seconds, check_whole
from .asyncwatching import AsyncChanges
from .attachment import POLL, Attachment, ReadOptions, detached, try_to_attach
from .channel import Channel
from .errors import CorruptRegistry, ForkedHandle, RegistryClosed, RegistryNotFound
from .layout import check_name
from .pipeline import AsyncPipeline
from .reader import AttachedReads
from .watching import Watch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self
    from uuid import UUID

    from .batch import Outcome
    from .calls import Call, Resizing
    from .maps import Map
    from .session import Session, SessionStatus

#: How long a read may wait for a registry that is being made anew, in seconds: the loop stands
#: still so long. After a wait in vain, reads do not wait for a while.
_PATIENCE: Final = 0.05
_IMPATIENCE: Final = 1.0

_OUTSIDE: Final = "this client is not open: use it inside its `async with`"


class AsyncSessionClient(AttachedReads):
    """A registry that this process reads itself and changes through its service, by ``await``.

    Reads are those of ``SessionReader``: plain calls, straight from shared memory. Changes are
    those of ``SessionClient``, each made once. Those of many tasks are under way at a time, over
    one connection, and made in the order in which they were asked for::

        async with AsyncSessionClient("agents") as client:
            sid = await client.create_session({"project": "jidoka"})
            await client.update_session(sid, status="active")
            print(client[sid])

    Changes belong to the loop that entered the client; reads may come from any thread. A change
    that is cancelled may have been made all the same, and disturbs no other. A client can be
    pickled, as its name and options. In a forked child reads go on, and changes are refused until
    the child enters it itself.
    """

    _ended = _OUTSIDE
    _channel: Channel | None = None
    _is_forked = False
    #: Until when reads do not wait, by the monotonic clock in seconds.
    _impatient_until = 0.0

    def __init__(self, name: str, *, timeout: float = 5.0, cache_size: int = 65_536) -> None:
        """Make a client; ``async with`` attaches it to the registry.

        Args:
            name: the registry's name.
            timeout: how long a call may take, in seconds: ``async with``, and each change. A
                change waits its turn within it: while the registry moves to another table, each
                does.
            cache_size: how many look-ups to keep; 0 keeps none.

        Raises:
            InvalidName, ValueError, TypeError: for an argument that cannot be.
        """
        checked = check_name(name)
        self._timeout = check_seconds("timeout", timeout)
        kept = check_whole("cache_size", cache_size)
        options = ReadOptions(timeout=_PATIENCE, cache_size=kept, verify=False)
        super().__init__(checked, options, detached(RegistryClosed, checked, _OUTSIDE))

    async def __aenter__(self) -> Self:
        """Attach to the registry; its service is looked for at the first change.

        Raises:
            RegistryNotFound: where no registry is there in time.
            RegistryForbidden, FormatMismatch, CorruptRegistry: where it cannot be read.
            RuntimeError: where it is entered already.
        """
        if self._channel is not None and not self._channel.is_stale:
            msg = f"the client of {self._name!r} is entered already: make one for each `async with`"
            raise RuntimeError(msg)
        self._channel = channel = Channel(self, self._timeout)
        self._is_forked = False
        try:
            view = await self._attach()
        except BaseException:
            self._channel = None
            raise
        if self._channel is channel:
            self._closed, self._view = False, view
        return self

    async def _attach(self) -> Attachment:
        deadline = time.monotonic() + self._timeout
        options = dataclasses.replace(self._options, timeout=self._timeout)
        while True:
            opened = try_to_attach(self._name, options)
            if isinstance(opened, Attachment):
                return opened
            if time.monotonic() >= deadline:
                raise opened
            await asyncio.sleep(POLL)

    # ------------------------------------------------------------------ changes

    async def create_session(
        self,
        metadata: Map | None = None,
        llm_config: Map | None = None,
        pid: int | None = None,
        ttl: float | None = None,
        session_id: UUID | str | None = None,
    ) -> UUID:
        """Create a session, initializing, and return its id; as ``SessionClient.create_session``.

        Args:
            metadata: a map of what JSON holds; empty where it is left out.
            llm_config: the same.
            pid: its owner process.
            ttl: in how many seconds it expires, unless an update moves that; None is never.
            session_id: its id; a new version-4 UUID where it is left out.

        Raises:
            WriterUnavailable: where no writer answers; ``outcome_unknown`` says whether the change
                may have been made all the same.
            ForeignLoop, RegistryClosed, ForkedHandle: in another loop, outside of ``async with``,
                and in a forked child.
            Otherwise as ``SessionClient.create_session``.
        """
        call = calls.to_create(metadata, llm_config, pid, ttl, session_id)
        await self._change(call)
        return call.session_id

    async def update_session(  # noqa: PLR0913, PLR0917 - one argument a field
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

        Arguments and errors are those of ``SessionClient.update_session``, and as for
        ``create_session``.
        """
        call = calls.to_update(session_id, status, metadata, llm_config, pid, ttl, expected_version)
        session: Session = await self._change(call)
        return session

    async def terminate_session(self, session_id: UUID | str, error: str | None = None) -> None:
        """End a session; it reads as terminated for the writer's ``cleanup_delay``, then is gone.

        Arguments and errors are those of ``SessionClient.terminate_session``, and as for
        ``create_session``.
        """
        await self._change(calls.to_terminate(session_id, error))

    async def resize(self, capacity: int, slot_size: int | None = None) -> None:
        """Move all sessions to a table of another size, larger or smaller; readers follow.

        What is asked for after it waits for it. Arguments and errors are those of
        ``SessionClient.resize``, and as for ``create_session``; so is what a lost connection and
        ``timeout`` mean. One that is cancelled once it was sent is made all the same.
        """
        await self._change(calls.to_resize(capacity, slot_size))

    def pipeline(self) -> AsyncPipeline:
        """Return a pipeline: its changes go to the service in one round trip.

        ``timeout`` bounds all of them together::

            async with client.pipeline() as changes:
                sid = changes.create_session(metadata={"project": "jidoka"})
                changes.update_session(sid, status="active")
            created, session = changes.results
        """
        return AsyncPipeline(self._deliver)

    async def _change(self, call: Call | Resizing) -> Any:  # noqa: ANN401 - what the call's method returns
        (outcome,) = await self._deliver((call,))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _deliver(self, asked_for: Sequence[Call | Resizing]) -> list[Outcome]:
        if not asked_for:
            return []
        channel = self._channel
        if channel is None:
            raise ForkedHandle(self._name) if self._is_forked else self._closed_error()
        asked = channel.ask(asked_for)
        try:
            if asked.is_over:
                # Whoever tries again and again must not keep the loop from all else.
                await asyncio.sleep(0)
            await asked.settled
        except BaseException:
            channel.forget(asked)
            raise
        return asked.outcomes

    # ------------------------------------------------------------------ the end

    def close(self) -> None:
        """Let go of registry and service, as leaving ``async with`` does. May be repeated.

        Calls that wait get their error at once: ``WriterUnavailable`` with ``outcome_unknown``
        where what they sent may have been made, else ``RegistryClosed``.

        Raises:
            ForeignLoop: while its loop runs in another thread.
        """
        channel = self._channel
        if channel is not None:
            channel.close(self._closed_error())
            self._channel = None
        super().close()

    def _closed_error(self) -> RegistryClosed:
        return RegistryClosed(self._name, _OUTSIDE)

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def changes(  # type: ignore[override] # a client of a loop waits by it
        self, timeout: float | None = None, *, since: int | None = 0, latency: float = 0.01
    ) -> AsyncChanges:
        """Return an iterator for ``async for``; otherwise as ``SessionReader.changes``.

        A task that is cancelled while it waits for a change loses none.
        """
        return AsyncChanges(Watch(self, since=since, latency=latency), timeout)

    def _attach_again(self, old: Attachment) -> None:
        if time.monotonic() < self._impatient_until:
            problem = self.follow()
            if problem is not None:
                raise problem
            return
        try:
            super()._attach_again(old)
        except (RegistryNotFound, CorruptRegistry):
            self._impatient_until = time.monotonic() + _IMPATIENCE
            raise

    def after_fork_in_child(self) -> None:
        """Leave loop and connection to the parent."""
        super().after_fork_in_child()
        if self._channel is not None:
            self._channel, self._is_forked = None, True

    def __del__(self) -> None:
        if self._channel is not None:
            text = f"unclosed AsyncSessionClient of {self._name!r}"
            warnings.warn(text, ResourceWarning, source=self, stacklevel=1)

    def __reduce__(self) -> tuple[Any, ...]:
        options: dict[str, Any] = {"cache_size": self._options.cache_size}
        options["timeout"] = self._timeout
        return functools.partial(type(self), self._name, **options), ()

    def __repr__(self) -> str:
        return f"AsyncSessionClient({self._name!r}, {self._summary()})"
