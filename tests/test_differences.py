"""What became different between two looks: each kind, their order, and any history against a dict."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import copies_of

from jidoka_shm import Change, ChangeKind, Session
from jidoka_shm.differences import changes_since, differences

if TYPE_CHECKING:
    from collections.abc import Iterable

CREATED, UPDATED, TERMINATED, REMOVED = ChangeKind

A, B, C = (UUID(int=n) for n in (1, 2, 3))
EARLY, LATE = "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z"


def _session(key: UUID, version: int, status: str = "active", created: str = EARLY) -> Session:
    return Session.make(
        session_id=key, version=version, status=status, created_at=created, updated_at=LATE
    )


def _by_id(*sessions: Session) -> dict[UUID, Session]:
    return {session.session_id: session for session in sessions}


# ---------------------------------------------------------------------------- one session

OLD = _session(A, 5)
ENDED = _session(A, 6, "terminated")


@pytest.mark.parametrize(
    ("old", "new", "kinds"),
    [
        (None, None, []),
        (None, OLD, [CREATED]),
        (None, ENDED, [CREATED, TERMINATED]),
        (OLD, None, [REMOVED]),
        (ENDED, None, [REMOVED]),
        (OLD, OLD, []),
        (OLD, _session(A, 5), []),
        (OLD, _session(A, 6), [UPDATED]),
        (OLD, _session(A, 9, "idle"), [UPDATED]),
        (OLD, ENDED, [TERMINATED]),
        (ENDED, _session(A, 7, "terminated"), [UPDATED]),
        # A machine that reorders loads may show an older version after a newer one.
        (OLD, _session(A, 4), []),
        # The id of another session meanwhile.
        (OLD, _session(A, 8, created=LATE), [REMOVED, CREATED]),
        (OLD, _session(A, 8, "terminated", created=LATE), [REMOVED, CREATED, TERMINATED]),
        (ENDED, _session(A, 8, "initializing"), [REMOVED, CREATED]),
        (ENDED, _session(A, 8, "terminated", created=LATE), [REMOVED, CREATED, TERMINATED]),
    ],
)
def test_what_became_different_of_a_session(
    old: Session | None, new: Session | None, kinds: list[ChangeKind]
) -> None:
    changes = differences({} if old is None else {A: old}, {A: new})
    assert [change.kind for change in changes] == kinds
    for kind, session in changes:
        assert session is (old if kind is REMOVED else new)


def test_what_is_not_looked_at_stays() -> None:
    assert differences(_by_id(OLD, _session(B, 2)), {B: _session(B, 2)}) == []


def test_removals_come_first_and_all_else_as_it_was_committed() -> None:
    told = _by_id(_session(A, 3), _session(B, 2), _session(C, 4))
    found = {
        C: _session(C, 9, created=LATE),
        UUID(int=4): _session(UUID(int=4), 7, "terminated"),
        A: None,
        UUID(int=5): _session(UUID(int=5), 8),
        B: _session(B, 6),
    }
    changes = differences(told, found)
    assert [(change.kind, change.session.session_id.int) for change in changes] == [
        (REMOVED, 1),
        (REMOVED, 3),
        (UPDATED, 2),
        (CREATED, 4),
        (TERMINATED, 4),
        (CREATED, 5),
        (CREATED, 3),
    ]


# ---------------------------------------------------------------------------- after a version


def test_what_was_committed_after_a_version_is_told_as_far_as_it_tells() -> None:
    new = Session.make(session_id=B, version=8, created_at=EARLY)
    sessions = [_session(A, 7), new, ENDED, _session(C, 5)]
    assert changes_since(sessions, 5) == [
        Change(TERMINATED, ENDED),
        Change(UPDATED, sessions[0]),
        Change(CREATED, new),
    ]
    assert changes_since(sessions, 7) == [Change(CREATED, new)]
    assert changes_since(sessions, 8) == []


# ---------------------------------------------------------------------------- values


def test_a_change_is_a_pair() -> None:
    change = Change(CREATED, OLD)
    kind, session = change
    assert (kind, session) == (change.kind, change.session) == ("created", OLD)
    assert change == Change(CREATED, _session(A, 5)) != Change(UPDATED, OLD)
    assert hash(change) == hash(Change(CREATED, _session(A, 5)))
    with pytest.raises(AttributeError):
        change.kind = UPDATED  # type: ignore[misc]
    assert copies_of(change) == [change] * len(copies_of(change))
    match change:
        case Change("created", Session(status="active")):
            pass
        case _:
            pytest.fail("it matches nothing")


def test_the_kinds_are_text() -> None:
    assert [str(kind) for kind in ChangeKind] == ["created", "updated", "terminated", "removed"]


# ---------------------------------------------------------------------------- any history

moments = st.sampled_from([EARLY, LATE])
states = st.dictionaries(
    st.sampled_from([A, B, C]),
    st.tuples(st.integers(1, 4), st.sampled_from(["active", "terminated"]), moments),
)


def _apply(changes: Iterable[Change], model: dict[UUID, Session]) -> None:
    """Do to a dict what a watcher tells, and see that each change can follow the one before it."""
    for kind, session in changes:
        key = session.session_id
        assert (kind is CREATED) == (key not in model)
        if kind is TERMINATED:
            assert session.status == "terminated"
        if kind is REMOVED:
            assert model.pop(key) is session
        else:
            model[key] = session


@given(st.lists(st.tuples(states, st.sets(st.sampled_from([A, B, C]))), max_size=8))
def test_a_dict_that_is_told_of_any_history_is_as_the_registry(
    history: list[tuple[dict[UUID, tuple[int, str, str]], set[UUID]]],
) -> None:
    """A look tells of the sessions that changed, and of any others besides."""
    model: dict[UUID, Session] = {}
    before: dict[UUID, Session] = {}
    version = 0
    for state, others in history:
        now: dict[UUID, Session] = {}
        for key, (step, status, created) in state.items():
            old = before.get(key)
            if old is not None and step == 1:
                now[key] = old
            else:
                version += step
                now[key] = _session(key, version, status, created)
        touched = {key for key in {A, B, C} if before.get(key) is not now.get(key)} | others
        _apply(differences(model, {key: now.get(key) for key in touched}), model)
        assert model == now
        before = now
