"""A process that calls a registry as its seed says, and writes down what it asked and was told."""

from __future__ import annotations

import itertools
import random
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from linear import Operation, Seen

from jidoka_shm import SessionStatus
from jidoka_shm.errors import (
    IllegalTransition,
    JidokaError,
    SessionExists,
    SessionNotFound,
    VersionConflict,
    WriterUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from linear import Answer

    from jidoka_shm import Session, SessionReader

#: What conftest.py prints at the end of a run.
FIGURES: Final[list[str]] = []

#: How often a client calls what, and how often a reader does.
CHANGES: Final = {"create": 18, "update": 47, "terminate": 5, "read": 20, "status": 10}
READS: Final = {"read": 60, "status": 39, "list": 1}

#: What an update moves to, and how often. An end is rare, so that a session has a life.
_MOVES: Final = {
    None: 30,
    SessionStatus.ACTIVE: 40,
    SessionStatus.IDLE: 30,
    SessionStatus.INITIALIZING: 4,
    SessionStatus.TERMINATING: 2,
    SessionStatus.TERMINATED: 2,
}


class Caller:
    """One process's calls.

    Attributes:
        history: its calls so far.
    """

    def __init__(self, handle: SessionReader, number: int, mix: dict[str, int]) -> None:
        """Take what to call.

        Args:
            handle: a client, or a reader where no call is a change.
            number: which process this is, so that no two write the same tag.
            mix: how often it calls what.
        """
        self.history: list[Operation] = []
        self._handle: Any = handle
        self._tags = itertools.count(number << 32)
        self._kinds, self._weights = list(mix), list(mix.values())
        self._versions: dict[UUID, int] = {}

    def make_calls(
        self, chance: random.Random, keys: Sequence[UUID], count: int, before: Callable[[int], None]
    ) -> None:
        """Call ``count`` times, ``before`` each with its number."""
        for at, kind in enumerate(chance.choices(self._kinds, self._weights, k=count)):
            key, status, expected = chance.choice(keys), None, None
            if kind == "update":
                (status,) = chance.choices(list(_MOVES), list(_MOVES.values()))
                # Half of them, where any is known.
                expected = self._versions.get(key) if chance.random() < 0.5 else None
            before(at)
            if kind == "list":
                self._list(keys)
            else:
                self._call(kind, key, status, expected)

    def _call(self, kind: str, which: UUID, status: str | None, expected: int | None) -> None:
        tag = next(self._tags)
        work = getattr(self, f"_{kind}")
        begin = time.monotonic_ns()
        try:
            answer: Answer = work(which, tag, status, expected)
        except JidokaError as error:
            answer = _answer(error)
        end = None if answer is None else time.monotonic_ns()
        if isinstance(answer, Seen):
            self._versions[which] = answer.version
        self.history.append(Operation(which, kind, tag, begin, end, answer, status, expected))

    def _create(self, which: UUID, tag: int, *_: object) -> Answer:
        self._handle.create_session({"tag": tag}, session_id=which)
        return "done"

    def _update(self, which: UUID, tag: int, status: str | None, expected: int | None) -> Answer:
        given: dict[str, Any] = {} if status is None else {"status": status}
        session = self._handle.update_session(
            which, metadata={"tag": tag}, expected_version=expected, **given
        )
        return seen(session)

    def _terminate(self, which: UUID, tag: int, *_: object) -> Answer:
        self._handle.terminate_session(which, error=str(tag))
        return "done"

    def _read(self, which: UUID, *_: object) -> Answer:
        return seen(self._handle.get_session_info(which))

    def _status(self, which: UUID, *_: object) -> Answer:
        return self._handle.get_session_status(which).value

    def _list(self, keys: Sequence[UUID]) -> None:
        """Write a list down as one read of each session, all under way as long as the list is."""
        begin = time.monotonic_ns()
        listed = self._handle.list_sessions()
        end = time.monotonic_ns()
        found = {session.session_id: session for session in listed}
        for key in keys:
            answer = seen(found[key]) if key in found else "absent"
            self.history.append(Operation(key, "list", next(self._tags), begin, end, answer))


def seen(session: Session) -> Seen:
    """Return what is written down of a session."""
    error = None if session.error is None else int(session.error)
    return Seen(session.status.value, session.metadata["tag"], session.version, error)


def _answer(error: JidokaError) -> Answer:
    """Return what is written down of an error; None where it leaves the outcome open."""
    match error:
        case SessionNotFound():
            return "absent"
        case SessionExists():
            return "exists"
        case IllegalTransition():
            return f"illegal {error.current}"
        case VersionConflict():
            return f"conflict {error.actual}"
        case WriterUnavailable(outcome_unknown=True):
            return None
    raise error


def keys_of(seed: int, count: int) -> list[UUID]:
    """Return ids that no other seed has."""
    chance = random.Random(f"ids of {seed}")
    return [UUID(int=chance.getrandbits(128)) for _ in range(count)]
