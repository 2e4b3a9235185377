"""Many changes in one round trip.

All are sent and all are applied, in their order, whether those before them failed or not: a
pipeline is no transaction. What is asked for is checked when it is asked for; what the registry
makes of it is known when the pipeline was executed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, UnsetType

from . import calls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from typing import Self
    from uuid import UUID

    from .batch import Outcome
    from .calls import Call
    from .maps import Map
    from .session import SessionStatus

#: Numbers of failed changes that a note lists.
_LISTED: Final = 20


class Collected:
    """Changes that are collected to be sent together.

    Attributes:
        results: what the changes of the last execution came to, in their order: what the method
            of the same name returns, or the exception that it would have raised.
    """

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self.results: list[Any] = []

    def create_session(
        self,
        metadata: Map | None = None,
        llm_config: Map | None = None,
        pid: int | None = None,
        ttl: float | None = None,
        session_id: UUID | str | None = None,
    ) -> UUID:
        """Collect a ``SessionClient.create_session``.

        Returns:
            The id, for changes that follow in the pipeline. There is no session of it before the
            pipeline was executed.

        Raises:
            InvalidMetadata, InvalidSessionId, ValueError, TypeError: for a bad argument, at once.
            OwnerNotAlive, OSError: where ``pid`` is not alive, or cannot be looked at, at once.
            RecordTooLarge: where the maps are more than a request carries, at once.
        """
        call = calls.to_create(metadata, llm_config, pid, ttl, session_id)
        self._calls.append(call)
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
    ) -> None:
        """Collect a ``SessionClient.update_session``; the new session is among the results.

        Raises:
            InvalidMetadata, InvalidSessionId, ValueError, TypeError: for a bad argument, at once.
            OwnerNotAlive, OSError: where ``pid`` is not alive, or cannot be looked at, at once.
            RecordTooLarge: where the maps are more than a request carries, at once.
        """
        self._calls.append(
            calls.to_update(session_id, status, metadata, llm_config, pid, ttl, expected_version)
        )

    def terminate_session(self, session_id: UUID | str, error: str | None = None) -> None:
        """Collect a ``SessionClient.terminate_session``.

        Raises:
            InvalidSessionId, ValueError, TypeError: for a bad argument, at once.
        """
        self._calls.append(calls.to_terminate(session_id, error))

    def _take(self) -> list[Call]:
        """Return what was collected, which is collected no longer."""
        collected, self._calls = self._calls, []
        # Those of the execution before would pass for this one's, where it is interrupted.
        self.results = []
        return collected

    def __len__(self) -> int:
        return len(self._calls)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} changes>"


class Pipeline(Collected):
    """Changes that are collected and sent together; for one thread at a time.

    Leaving ``with`` executes what was collected since the last time, and raises as ``execute``
    does; where the body raised, it sends nothing. It can be used again after that.

    Attributes:
        results: what the changes of the last execution came to, in their order: what the method
            of the same name returns, or the exception that it would have raised.
    """

    def __init__(self, deliver: Callable[[Sequence[Call]], list[Outcome]]) -> None:
        """Make an empty one; see ``SessionClient.pipeline``.

        Args:
            deliver: sends changes and returns their outcomes.
        """
        super().__init__()
        self._deliver = deliver

    def execute(self) -> list[Any]:
        """Send what was collected and return what each change came to, in order.

        Raises:
            JidokaError: the first that a change ended in, once all of them were sent and applied,
                with a note that says which it was and which others failed. ``results`` has all.
        """
        return _raise_first(self.settle())

    def settle(self) -> list[Any]:
        """Send what was collected and return what each change came to, in order.

        Returns:
            For each change what its method returns, or the exception that it would have raised.
        """
        self.results = self._deliver(self._take())
        return self.results

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is not None:
            self._calls.clear()
        elif self._calls:
            self.execute()


class AsyncPipeline(Collected):
    """The pipeline of an ``AsyncSessionClient``: collecting is a plain call, sending is awaited.

    Leaving ``async with`` executes what was collected since the last time, and raises as
    ``execute`` does; where the body raised, or was cancelled, it sends nothing.

    Attributes:
        results: what the changes of the last execution came to, in their order: what the method
            of the same name returns, or the exception that it would have raised.
    """

    def __init__(self, deliver: Callable[[Sequence[Call]], Awaitable[list[Outcome]]]) -> None:
        """Make an empty one; see ``AsyncSessionClient.pipeline``.

        Args:
            deliver: sends changes and returns their outcomes.
        """
        super().__init__()
        self._deliver = deliver

    async def execute(self) -> list[Any]:
        """Send what was collected and return what each change came to; as ``Pipeline.execute``."""
        return _raise_first(await self.settle())

    async def settle(self) -> list[Any]:
        """Send what was collected and return what each change came to; as ``Pipeline.settle``."""
        self.results = await self._deliver(self._take())
        return self.results

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        if kind is not None:
            self._calls.clear()
        elif self._calls:
            await self.execute()


def _raise_first(results: list[Any]) -> list[Any]:
    """Return results none of which is an error."""
    failed = [at for at, result in enumerate(results) if isinstance(result, Exception)]
    if failed:
        first: Exception = results[failed[0]]
        first.add_note(_note(failed, len(results)))
        raise first
    return results


def _note(failed: Sequence[int], count: int) -> str:
    """Return which of a pipeline's changes failed, counted from 0 as ``results`` is."""
    listed = ", ".join(map(str, failed[:_LISTED])) + ("" if len(failed) <= _LISTED else ", ...")
    return f"of the pipeline's {count} changes {len(failed)} failed: {listed} of its results"
