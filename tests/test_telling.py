"""What a watcher was told: each change once, and again where its caller did not get it."""

from __future__ import annotations

from uuid import UUID

import pytest

from jidoka_shm import Change, ChangeKind, Session
from jidoka_shm.telling import Telling

CREATED, UPDATED, TERMINATED, REMOVED = ChangeKind
IDS = [UUID(int=n) for n in range(1, 4)]


def _session(at: int, version: int) -> Session:
    return Session.make(
        session_id=IDS[at], version=version, created_at="2026-01-01T00:00:00Z", metadata={"n": at}
    )


FIRST = [_session(at, at + 1) for at in range(3)]


def _told(count: int) -> Telling:
    telling = Telling()
    telling.tell({one.session_id: one for one in FIRST})
    for _ in range(count):
        telling.take()
    return telling


def test_a_session_is_known_once_it_was_told_of() -> None:
    telling = _told(0)
    assert telling.sessions == {}
    assert bool(telling.queue) is True
    assert [telling.take() for _ in range(4)] == [*(Change(CREATED, one) for one in FIRST), None]
    assert list(telling.sessions.values()) == FIRST
    assert bool(telling.queue) is False
    telling.tell({IDS[0]: None, IDS[1]: _session(1, 9)})
    assert telling.take() == Change(REMOVED, FIRST[0])
    assert list(telling.sessions) == IDS[1:]
    assert telling.take() == Change(UPDATED, _session(1, 9))
    assert telling.take() is None


@pytest.mark.parametrize("forgets", [False, True])
@pytest.mark.parametrize("told", [0, 1, 3])
def test_what_was_taken_since_a_mark_is_told_again(told: int, *, forgets: bool) -> None:
    telling = _told(told)
    if forgets:
        telling.forget_told()
    mark = telling.mark()
    first = telling.take()
    telling.go_back(mark)
    assert telling.take() == first
    rest = [telling.take() for _ in range(3)]
    assert [first, *rest][: 3 - told] == [Change(CREATED, one) for one in FIRST[told:]]


def test_what_was_found_and_told_since_a_mark_is_told_again() -> None:
    telling = _told(3)
    mark = telling.mark()
    telling.forget_told()
    telling.tell({IDS[2]: None})
    assert telling.take() == Change(REMOVED, FIRST[2])
    telling.go_back(mark)
    assert telling.take() == Change(REMOVED, FIRST[2])
    assert telling.take() is None


def test_what_was_told_is_not_kept_for_ever() -> None:
    telling = _told(2)
    telling.forget_told()
    assert telling.queue.changes == [Change(CREATED, FIRST[2])]


def test_all_are_told_of_as_removed() -> None:
    telling = _told(2)
    telling.tell_all_gone()
    assert [telling.take() for _ in range(3)] == [
        *(Change(REMOVED, one) for one in FIRST[:2]),
        None,
    ]
    assert telling.sessions == {}


@pytest.mark.parametrize(
    ("since", "kinds"), [(0, [CREATED] * 3), (2, [CREATED]), (3, []), (None, [])]
)
def test_a_beginning_tells_what_was_committed_after_a_version(
    since: int | None, kinds: list[ChangeKind]
) -> None:
    telling = Telling()
    telling.begin({one.session_id: one for one in FIRST}, since)
    assert [change.kind for change in iter(telling.take, None)] == kinds
    assert len(telling.sessions) == 3
