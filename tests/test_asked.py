"""What is kept of the order in which requests were sent: as much as one without a reply needs."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from jidoka_shm.asked import Asked, Trail
from jidoka_shm.calls import to_terminate
from jidoka_shm.protocol import Again, Done

KEY = "00000000-0000-0000-0000-000000000001"


class Settled:
    """A future's part here."""

    def __init__(self) -> None:
        self.is_done = False

    def done(self) -> bool:
        return self.is_done

    def set_result(self, _: None) -> None:
        self.is_done = True


def asked(count: int = 1) -> Asked:
    """Return a call of so many changes that reads nothing."""
    stand_in: Any = None
    settled: Any = Settled()
    return Asked(stand_in, [to_terminate(KEY, None) for _ in range(count)], settled, 0.0)


def request_of(call: Asked) -> bytes:
    """Return the id of a call's first request."""
    return call.calls[0].request.request


def test_what_was_sent_before_went_before() -> None:
    trail, calls = Trail(), [asked() for _ in range(3)]
    for call in calls:
        trail.add(call)
    trail.hand_out()
    found = [[later._went_before(request_of(call)) for call in calls] for later in calls]
    assert found == [[False, False, False], [True, False, False], [True, True, False]]
    assert not calls[2]._went_before(request_of(asked()))
    assert not calls[2]._went_before(None)


@pytest.mark.parametrize("under_way", [1, 2, 7])
def test_a_call_that_was_answered_is_kept_while_one_sent_beside_it_is_not(under_way: int) -> None:
    trail, flying = Trail(), deque([asked() for _ in range(under_way)])
    for call in flying:
        trail.add(call)
    for _ in range(100):
        first = flying.popleft()
        trail.note_answered(first, flying[0] if flying else None)
        # It was sent before all that are under way, and answered after they were sent.
        assert (first in trail._sent) == bool(flying)
        flying.append(asked())
        trail.add(flying[-1])
        assert len(trail._sent) <= 2 * under_way
    while flying:
        trail.note_answered(flying.popleft(), flying[0] if flying else None)
    assert not trail._sent


@pytest.mark.parametrize("handed", range(-1, 5))
def test_what_was_handed_over_whole_is_to_be_sent_again(handed: int) -> None:
    call = asked(4)
    frames = call.begin(Again(0, 0), 1000)
    size = len(frames[0])
    call.take(Done(b""))
    assert (call.due, call.is_over) == (3, False)
    assert call.leave(1000 + handed * size + size // 2) == (handed > 1)
    assert (call.sent, call.due) == (max(handed, 0), 0)


def test_a_reply_that_nobody_waits_for_is_counted_and_dropped() -> None:
    call = asked(2)
    call.begin(Again(0, 0), 0)
    call.is_over = True
    for due in (1, 0):
        call.take(Done(b"nonsense"))
        assert (call.due, call.outcomes) == (due, [])
