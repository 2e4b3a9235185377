"""Looks at one table in plain memory: what is read, how often, and that nothing is lost."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import keep_free, make_writer, reader_of, session
from tables import add, both_ways

from jidoka_shm import seqlock
from jidoka_shm.differences import ChangeKind, differences
from jidoka_shm.errors import CorruptRegistry
from jidoka_shm.layout import CLOSED, MOVED, SLOT_MASK, index_word
from jidoka_shm.looks import Look, TableLook
from jidoka_shm.scan import NO_SESSIONS, scan_sessions
from jidoka_shm.session import Session
from jidoka_shm.table import SessionTable, TableGone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jidoka_shm.writer import TableWriter

KEYS = range(6)
#: Ids of three homes next to each other, two of each.
SIZE = make_writer(8, 192).geometry.index_size
IDS = [UUID(int=5 + key // 2 + key % 2 * SIZE) for key in KEYS]


class Watcher:
    """Looks at a table and keeps each look, with a dict of what it was told."""

    def __init__(self, table: SessionTable, suspects: Iterable[UUID] = ()) -> None:
        self.looks = TableLook(table, suspects)
        self.told: dict[UUID, Session] = {}

    def look(self) -> list[tuple[ChangeKind, Session]]:
        look = self.looks.look()
        changes = differences(self.told, look.found)
        self.looks.keep(look)
        for kind, one in changes:
            if kind is ChangeKind.REMOVED:
                del self.told[one.session_id]
            else:
                self.told[one.session_id] = one
        return changes


def _entry(writer: TableWriter, key: UUID) -> int:
    found = writer.look_up(key)
    assert found is not None
    return found[0]


def _all(table: SessionTable) -> dict[UUID, Session]:
    found = scan_sessions(table, NO_SESSIONS).sessions
    return {one.session_id: one for one in found.values()}


def _counted(monkeypatch: pytest.MonkeyPatch, of: type, name: str, weigh: Callable) -> list[int]:
    """Have the calls of a method counted, each by what ``weigh`` makes of its answer."""
    counts: list[int] = []
    method = getattr(of, name)

    def count(*arguments: object) -> object:
        answer = method(*arguments)
        counts.append(weigh(answer))
        return answer

    monkeypatch.setattr(of, name, count)
    return counts


# ---------------------------------------------------------------------------- what is read


@both_ways
def test_the_first_look_finds_all_that_is_there(*, verify: bool) -> None:
    writer = make_writer(200, 128)
    made = add(writer, *(random.Random(4).getrandbits(128) for _ in range(200)))
    look = TableLook(reader_of(writer, verify=verify)).look()
    assert look.change == 400
    assert look.found == {one.session_id: one for one in made}


@both_ways
def test_a_look_that_was_not_kept_is_made_again(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1, 2)
    looks = TableLook(reader_of(writer, verify=verify))
    first = looks.look()
    assert looks.look() == first
    looks.keep(first)
    assert looks.look() == Look(4, {}, {}, {})
    writer.remove(1)
    gone = looks.look()
    assert gone.found == {UUID(int=1): None}
    looks.keep(first)
    assert looks.look() == gone
    looks.keep(gone)
    looks.keep(gone)
    assert looks.look().found == {}


@both_ways
def test_a_change_among_many_is_read_alone(
    monkeypatch: pytest.MonkeyPatch, *, verify: bool
) -> None:
    """One numpy pass, and as many copies and decodes as sessions changed."""
    writer = make_writer(1000, 192)
    made = add(writer, *range(1000))
    watcher = Watcher(reader_of(writer, verify=verify))
    watcher.look()
    decoded = _counted(monkeypatch, SessionTable, "make_sessions", len)
    looked_up = _counted(monkeypatch, SessionTable, "look_up", bool)
    passes = _counted(monkeypatch, SessionTable, "differing", len)
    assert watcher.look() == []
    assert (sum(decoded), looked_up, passes) == (0, [], [0])
    writer.replace(500, session(writer, 500, created_at=made[500].created_at))
    writer.replace(7, session(writer, 7, created_at=made[7].created_at))
    writer.remove(40)
    decoded.clear()
    looked_up.clear()
    assert [(kind, one.session_id.int) for kind, one in watcher.look()] == [
        ("removed", 40),
        ("updated", 500),
        ("updated", 7),
    ]
    assert (decoded, looked_up, passes) == ([2], [False], [0, 3])


def test_what_is_found_is_a_copy() -> None:
    writer = make_writer()
    (made,) = add(writer, 1, metadata={"a": 1})
    found = TableLook(reader_of(writer)).look().found[UUID(int=1)]
    writer.slots.memory[writer.slots.begin :] = bytes(len(writer.slots.memory) - writer.slots.begin)
    assert found == made


# ---------------------------------------------------------------------------- beside a writer


def _beside(monkeypatch: pytest.MonkeyPatch, name: str, work: Callable[[], object]) -> None:
    """Let the writer do ``work`` once, right after a reader's next call of a method."""
    method = getattr(SessionTable, name)

    def meet(*arguments: object) -> object:
        answer = method(*arguments)
        monkeypatch.setattr(SessionTable, name, method)
        work()
        return answer

    monkeypatch.setattr(SessionTable, name, meet)


@both_ways
@pytest.mark.parametrize("moment", ["differing", "words_of"])
def test_a_slot_that_is_written_anew_while_it_is_read_is_not_believed(
    moment: str, monkeypatch: pytest.MonkeyPatch, *, verify: bool
) -> None:
    writer = make_writer()
    add(writer, 1)
    watcher = Watcher(reader_of(writer, verify=verify))
    # Each with the only free slot, so that the slot which is copied holds another session.
    keep_free(writer, sorted(writer.space)[:1])

    def replace() -> None:
        for _ in range(3):
            writer.replace(1, session(writer, 1, metadata={"n": writer.next_version()}))

    _beside(monkeypatch, moment, replace)
    (change,) = watcher.look()
    assert change.session.metadata == {"n": change.session.version} == {"n": 4}
    assert watcher.look() == []


@both_ways
def test_a_session_that_moves_to_an_entry_that_was_passed_is_there(
    monkeypatch: pytest.MonkeyPatch, *, verify: bool
) -> None:
    writer = make_writer()
    first, second = IDS[0], IDS[1]
    add(writer, first.int, second.int)
    watcher = Watcher(reader_of(writer, verify=verify))
    watcher.look()
    writer.remove(_entry(writer, first))

    def move() -> None:
        writer.remove(_entry(writer, second))
        add(writer, second.int, status="idle", created_at="2020-01-01T00:00:00Z")

    # What the pass saw is that the first entry is empty; then the second session comes there.
    _beside(monkeypatch, "differing", move)
    watcher.look()
    watcher.look()
    assert watcher.told == _all(writer)
    assert list(watcher.told) == [second]


@both_ways
@pytest.mark.parametrize("places", [(9, 10), (10, 9)])
def test_a_session_that_is_met_at_two_entries_is_the_later_one(
    places: tuple[int, int], *, verify: bool
) -> None:
    """As a pass may see one that was removed and created again at another entry meanwhile."""
    writer = make_writer()
    add(writer, 9)
    words = writer.index.words
    old = words[9]
    other = session(writer, 9, status="idle")
    writer.replace(9, other)
    words[places[0]], words[places[1]] = old, words[9]
    assert TableLook(reader_of(writer, verify=verify)).look().found == {UUID(int=9): other}


@both_ways
def test_a_torn_word_is_read_again(monkeypatch: pytest.MonkeyPatch, *, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1, 2)
    table = reader_of(writer, verify=verify)
    watcher = Watcher(table)
    words_of = SessionTable.words_of
    # The high half of one word with the low half of another: no slot of that number is there.
    torn = [np.array([(1 << 56) | SLOT_MASK, 3 << 24 | 2], np.uint64)]
    monkeypatch.setattr(
        SessionTable, "words_of", lambda *given: torn.pop() if torn else words_of(*given)
    )
    assert [one.session_id.int for _, one in watcher.look()] == [1, 2]
    assert watcher.look() == []


@pytest.mark.parametrize("word", [MOVED, CLOSED])
def test_a_table_that_was_given_up_ends_the_look(word: int) -> None:
    writer = make_writer()
    add(writer, 1)
    watcher = Watcher(reader_of(writer))
    watcher.look()
    seqlock.give_up(writer.index.words, writer.reach, word)
    for _ in range(2):
        with pytest.raises(TableGone):
            watcher.look()
    assert len(watcher.told) == 1


@both_ways
def test_a_word_that_names_no_slot_is_damage(*, verify: bool) -> None:
    writer = make_writer()
    add(writer, 1)
    writer.index.words[1] = index_word(1, SLOT_MASK)
    with pytest.raises(CorruptRegistry, match="entry 1"):
        TableLook(reader_of(writer, verify=verify)).look()


# ---------------------------------------------------------------------------- another table


@both_ways
def test_what_was_known_of_the_last_table_is_looked_up_in_the_next(*, verify: bool) -> None:
    before, after = make_writer(), make_writer(16)
    add(before, 1, 2, 3)
    watcher = Watcher(reader_of(before, verify=verify))
    watcher.look()
    after.change[0] = before.change[0]
    for one in watcher.told.values():
        if one.session_id.int != 2:
            after.insert(one)
    after.change[0] = before.change[0]
    watcher.looks = TableLook(reader_of(after, verify=verify), watcher.told)
    assert [(kind, one.session_id.int) for kind, one in watcher.look()] == [("removed", 2)]
    assert watcher.look() == []
    assert watcher.told == _all(after)


# ---------------------------------------------------------------------------- any history

steps = st.lists(
    st.tuples(
        st.sampled_from(["create", "update", "end", "remove", "look"]), st.sampled_from(KEYS)
    ),
    max_size=40,
)


@both_ways
@settings(max_examples=200)
@given(steps=steps)
def test_a_dict_that_is_told_of_any_changes_is_as_the_registry(
    steps: list[tuple[str, int]], *, verify: bool
) -> None:
    writer = make_writer(8, 192)
    watcher = Watcher(reader_of(writer, verify=verify))
    for what, key in [*steps, ("look", 0)]:
        found = writer.look_up(IDS[key])
        if what == "look":
            watcher.look()
            assert watcher.told == _all(writer)
        elif what == "create" and found is None:
            writer.insert(session(writer, IDS[key].int))
        elif found is not None and what == "remove":
            writer.remove(found[0])
        elif found is not None and what in {"update", "end"}:
            status = "terminated" if what == "end" else found[2].status
            writer.replace(
                found[0],
                session(writer, IDS[key].int, status=status, created_at=found[2].created_at),
            )
