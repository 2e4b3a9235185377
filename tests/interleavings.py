"""Scenarios for the stepper, and what every outcome of each must satisfy.

A small table, two ids of one home and a third of another, as few free slots as can be, so that a
slot that is given back is written at once. A scenario is what the table holds at first, what its
writer does, and what a reader does meanwhile. The oracle reads each recorded state of the memory
with the standard library alone.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import UUID

from stepper import Explorer, record
from support import at, make_registry, make_writer, reader_of

from jidoka_shm.attachment import Attachment
from jidoka_shm.maps import encode_map
from jidoka_shm.reads import SessionReads
from jidoka_shm.scan import scan_headers
from jidoka_shm.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepper import Outcome, State

    from jidoka_shm.registry import Registry
    from jidoka_shm.writer import TableWriter

_SIZE = make_writer(1, 128).geometry.index_size
#: X and Y share a home, so one of them lies beyond it; Z's home is where the other one may lie.
X, Y, Z = UUID(int=2), UUID(int=2 + _SIZE), UUID(int=3)
_NAMES = {"x": X, "y": Y, "z": Z}


class Reader(SessionReads):
    """A reader of a writer's memory without a name; what it would attach to again is the same."""

    def __init__(self, writer: TableWriter, *, cache_size: int, verify: bool) -> None:
        self._name = "interleaved"
        self._writer, self._cache_size, self._verify = writer, cache_size, verify
        self.renew()

    def renew(self) -> None:
        table = reader_of(self._writer, verify=self._verify)
        self._view = Attachment(
            self._writer.control, table, is_named=lambda: True, cache_size=self._cache_size
        )

    def remembered(self) -> object:
        view = self._view
        return (
            [(key, hit[1]) for key, hit in view.young.items()],
            view.listing.change,
            list(view.listing.sessions),
        )

    def _attach_again(self, old: Attachment) -> None:
        raise StopAsyncIteration

    def close(self) -> None:
        pass


@dataclass
class Scenario:
    """What the table holds, what the writer does, what a reader does.

    ``first`` and ``script`` are words like ``+x`` (create), ``x`` (update), ``-x`` (remove).
    """

    first: str
    script: str
    read: Callable[[Reader], object]
    cache_size: int = 0
    verify: bool = False
    warm: Callable[[Reader], object] = lambda reader: None
    writer: TableWriter = field(init=False)
    states: list[State] = field(init=False)
    explorer: Explorer = field(init=False)

    def __post_init__(self) -> None:
        self.writer = writer = make_writer(4, 128)
        writer._free = deque([0, 1, 2, 3])
        registry = make_registry(writer)
        run(registry, self.first)
        # No slot to spare but the one that any change needs: what is given back is used next.
        creations = self.script.count("+") - self.script.count("-")
        writer._free = deque(list(writer._free)[: max(creations, 0) + 1])
        before = bytes(writer.control._memory), bytes(writer.slots.memory)
        self.states = record(writer, lambda: run(registry, self.script))
        reader = Reader(writer, cache_size=self.cache_size, verify=self.verify)

        def reset() -> None:
            writer.control._memory[:], writer.slots.memory[:] = before
            reader.renew()
            self.warm(reader)

        self.explorer = Explorer(
            writer, self.states, lambda: self.read(reader), reset, reader.remembered
        )

    def outcomes(self) -> list[Outcome]:
        return list(self.explorer.outcomes())

    def truths(self, outcome: Outcome) -> list[dict[UUID, int]]:
        """Return what was true, id by version, at each state that the reader ran beside."""
        table = [oracle(self.writer, state) for state in self.states]
        return table[outcome.first : outcome.last + 1]


def run(registry: Registry, script: str) -> None:
    """Do what a script says."""
    moment = 0
    for word in script.split():
        moment += 1
        key = _NAMES[word[-1]]
        maps = {"metadata": encode_map({"of": str(key), "n": moment}, "m")}
        if word[0] == "+":
            maps["llm_config"] = encode_map(None, "l")
            registry.create(key, owner=None, ttl=None, now=at(moment), **maps)
        elif word[0] == "-":
            entry, _, _ = registry.table.look_up(key)
            registry.table.remove(entry)
        else:
            registry.update(key, now=at(moment), **maps)


def oracle(writer: TableWriter, state: State) -> dict[UUID, int]:
    """Return which sessions a state of the memory holds, each with its version."""
    _, table = state
    geometry = writer.geometry
    found = {}
    for entry in range(geometry.entries):
        (word,) = struct.unpack_from("<Q", table, geometry.index_offset + 8 * entry)
        if word > 2:
            slot = geometry.slots_offset + (word & 0xFFFFFF) * geometry.slot_size
            found[UUID(bytes=table[slot : slot + 16])] = word >> 24
    return found


# ---------------------------------------------------------------------------- what must hold


def check_session(key: UUID, session: Session) -> None:
    """A session is whole: its maps tell its id, and its time is its own."""
    assert session.session_id == key
    assert session.metadata["of"] == str(key)
    assert session._updated == at(session.metadata["n"]).wall // 1000 * 1000


def check_look_up(scenario: Scenario, outcome: Outcome) -> None:
    """What was found was there at some moment of the look-up, or nothing was."""
    assert not isinstance(outcome.value, Exception), outcome
    versions = [truth.get(X) for truth in scenario.truths(outcome)]
    if outcome.value is None:
        assert None in versions, ("a live session was missed", versions)
    else:
        check_session(X, outcome.value)
        assert outcome.value.version in versions, (outcome.value.version, versions)


def check_two_look_ups(scenario: Scenario, outcome: Outcome) -> None:
    """The second look-up is not of an earlier moment than the first."""
    assert not isinstance(outcome.value, Exception), outcome
    versions = [truth.get(X) for truth in scenario.truths(outcome)]
    one, two = (None if found is None else found.version for found in outcome.value)
    assert one in versions
    assert two in versions[versions.index(one) :], (one, two, versions)


def check_list(scenario: Scenario, outcome: Outcome) -> None:
    """Each session is whole and current; each that lived throughout is there; atomic if it says so."""
    assert not isinstance(outcome.value, Exception), outcome
    atomic, sessions = outcome.value
    truths = scenario.truths(outcome)
    listed = {session.session_id: session.version for session in sessions}
    assert len(listed) == len(sessions), ("twice", sessions)
    for session in sessions:
        check_session(session.session_id, session)
        assert session.version in [truth.get(session.session_id) for truth in truths]
    for key in set.intersection(*(set(truth) for truth in truths)):
        assert key in listed, ("a live session is not listed", key)
    if atomic:
        assert listed in truths, ("no state of the registry", listed, truths)


def check_headers(scenario: Scenario, outcome: Outcome) -> None:
    """As for a list, of what a header tells."""
    assert not isinstance(outcome.value, Exception), outcome
    atomic, rows, count = outcome.value
    truths = scenario.truths(outcome)
    assert len(rows) == count, "twice"
    for key, version in rows.items():
        assert version in [truth.get(key) for truth in truths]
    for key in set.intersection(*(set(truth) for truth in truths)):
        assert key in rows, ("a live session is missing", key)
    if atomic:
        assert rows in truths, ("no state of the registry", rows, truths)


def check_seen_then_listed(scenario: Scenario, outcome: Outcome) -> None:
    """A list, one given again included, is not older than what was looked up before it."""
    assert not isinstance(outcome.value, Exception), outcome
    seen, sessions = outcome.value
    versions = [truth.get(X) for truth in scenario.truths(outcome)]
    listed = {session.session_id: session.version for session in sessions}.get(X)
    start = versions.index(None if seen is None else seen.version)
    assert listed in versions[start:], (seen, listed, versions)


def look_up(reader: Reader) -> object:
    return reader.get(X)


def look_up_twice(reader: Reader) -> object:
    first = reader.get(X)
    return first, reader.get(X)


def list_all(reader: Reader) -> object:
    listing = reader._listing()
    return listing.change >= 0, list(listing.sessions.values())


def headers(reader: Reader) -> object:
    change, rows = scan_headers(reader._view.table)
    return change is not None, {
        UUID(bytes=bytes(row["session_id"])): int(row["version"]) for row in rows
    }, len(rows)


def see_then_list(reader: Reader) -> object:
    # Another reader's look-up, so that nothing but the memory is between the two.
    seen = reader._view.table.look_up(X)
    return None if seen is None else seen[2], list(reader._listing().sessions.values())
