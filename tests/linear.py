"""Whether a history of calls on sessions is linearizable: whether some order explains all answers.

A history is linearizable where its calls can be put in one order in which each comes between its
beginning and its return, and in which each answer is what the sessions, changed one call at a
time, would give. Calls on different ids do not touch each other, so each id is judged by itself.

The search is that of Wing and Gong, with Lowe's memory of where it has been: it follows the
returns in time and keeps all places at which the session can be by then, each with the calls
under way that have already taken effect there. A call that never returned may take effect at any
time after it began, or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from uuid import UUID  # noqa: TC003 - msgspec evaluates the annotations

import msgspec

from jidoka_shm.session import MOVES, SessionStatus

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

#: From each status, by its value: where an update may take it. The same again is no move.
NEXT = {status.value: {status.value, *(to.value for to in MOVES[status])} for status in MOVES}
INITIALIZING, TERMINATED = SessionStatus.INITIALIZING.value, SessionStatus.TERMINATED.value


class Seen(NamedTuple):
    """A session as an answer shows it; ``error`` and ``tag`` are the tags of calls."""

    status: str
    tag: int
    version: int
    error: int | None


#: What a call was told: see ``Operation``.
Answer = str | Seen | None


class Operation(msgspec.Struct, frozen=True, array_like=True, eq=False):
    """One call.

    Attributes:
        key: which session.
        kind: create, update, terminate, read, status, or list.
        tag: what tells a change from every other one: the metadata that a create or an update
            writes, the error that a terminate leaves.
        status: what an update moves to.
        expected: the version that an update asks for.
        begin: when it was called, in nanoseconds.
        end: when it returned; None where it did not, or where its outcome is unknown.
        answer: "done", "absent", "exists", ``Seen``, a status, "illegal" and the status that it may not
            move from, or "conflict" and the version that is there.
    """

    key: UUID
    kind: str
    tag: int
    begin: int
    end: int | None
    answer: Answer
    status: str | None = None
    expected: int | None = None


class State(NamedTuple):
    """A session between two calls; the status is None where it is not there.

    No answer to a create or a terminate tells the version that it made. Until another one does,
    ``version`` is the last that is known, and the session's own is above it.
    """

    status: str | None = None
    tag: int = 0
    version: int = 0
    knows_version: bool = False
    error: int | None = None


_NOWHERE = State()


def steps(call: Operation, state: State) -> Iterator[State]:
    """Yield each state that a call leads to from another one with the answer that it had."""
    yield from _STEPS[call.kind](call, state)
    if state.status == TERMINATED:
        # It is removed by itself, at a time that no call tells.
        yield from _STEPS[call.kind](call, state._replace(status=None))


def _create(call: Operation, state: State) -> Iterator[State]:
    if state.status is not None:
        if call.answer == "exists":
            yield state
    elif call.answer in {"done", None}:
        yield State(INITIALIZING, call.tag, state.version)


def _update(call: Operation, state: State) -> Iterator[State]:
    answer = call.answer
    if state.status is None or state.status == TERMINATED:
        if answer == "absent":
            yield state
        return
    if isinstance(answer, str) and answer.startswith("conflict "):
        version = int(answer.removeprefix("conflict "))
        if call.expected not in {None, version}:
            yield from _at_version(state, version)
    elif call.expected is not None:
        for known in _at_version(state, call.expected):
            yield from _move(call, known)
    else:
        yield from _move(call, state)


def _move(call: Operation, state: State) -> Iterator[State]:
    answer, status = call.answer, call.status or state.status
    if status not in NEXT[state.status]:
        if answer == f"illegal {state.status}":
            yield state
    elif answer is None:
        yield State(status, call.tag, state.version)
    elif isinstance(answer, Seen) and answer.version > state.version:
        made = State(status, call.tag, answer.version, knows_version=True)
        if answer == (made.status, made.tag, made.version, None):
            yield made


def _terminate(call: Operation, state: State) -> Iterator[State]:
    if state.status is None:
        if call.answer == "absent":
            yield state
    elif call.answer in {"done", None}:
        if state.status == TERMINATED:
            yield state
        else:
            yield State(TERMINATED, state.tag, state.version, error=call.tag)


def _read(call: Operation, state: State) -> Iterator[State]:
    answer = call.answer
    if answer == "absent":
        if state.status is None:
            yield state
    elif isinstance(answer, Seen) and answer[:2] == state[:2] and answer.error == state.error:
        yield from _at_version(state, answer.version)


def _status(call: Operation, state: State) -> Iterator[State]:
    if call.answer == (state.status or "absent"):
        yield state


def _list(call: Operation, state: State) -> Iterator[State]:
    """Read by way of a list, which leaves out the terminated."""
    if state.status != TERMINATED:
        yield from _read(call, state)
    elif call.answer == "absent":
        yield state


def _at_version(state: State, version: int) -> Iterator[State]:
    """Yield the state as it is known where it is at ``version``, unless it cannot be."""
    if state.knows_version:
        if version == state.version:
            yield state
    elif version > state.version:
        yield state._replace(version=version, knows_version=True)


_STEPS = {
    "create": _create,
    "update": _update,
    "terminate": _terminate,
    "read": _read,
    "status": _status,
    "list": _list,
}


def unexplained(history: Iterable[Operation]) -> Operation | None:
    """Return None where some order explains a history.

    Otherwise a call by whose return no order does any more, the first such of its id.
    """
    calls: dict[UUID, list[Operation]] = {}
    for call in history:
        calls.setdefault(call.key, []).append(call)
    for each in calls.values():
        found = _unexplained(each)
        if found is not None:
            return found
    return None


#: What the search is at: a state, and which calls under way have taken effect.
Place = tuple[State, frozenset[int]]


def _unexplained(calls: list[Operation]) -> Operation | None:
    # A call that begins in the nanosecond in which another returns may have come before it.
    moments = [(call.begin, False, at) for at, call in enumerate(calls)]
    moments += [(call.end, True, at) for at, call in enumerate(calls) if call.end is not None]
    under_way: set[int] = set()
    places: set[Place] = {(_NOWHERE, frozenset())}
    for _, returns, at in sorted(moments):
        if not returns:
            under_way.add(at)
            continue
        places = _after_return(at, places, calls, under_way)
        if not places:
            return calls[at]
        under_way.remove(at)
    return None


def _after_return(
    at: int, places: Iterable[Place], calls: list[Operation], under_way: Collection[int]
) -> set[Place]:
    """Return where the session can be once call ``at`` has taken effect."""
    known, left, after = set(places), list(places), set()
    while left:
        state, effective = left.pop()
        if at in effective:
            after.add((state, effective - {at}))
            continue
        for each in under_way:
            if each in effective:
                continue
            for step in steps(calls[each], state):
                place = (step, effective | {each})
                if place not in known:
                    known.add(place)
                    left.append(place)
    return after
