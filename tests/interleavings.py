"""Scenarios for the stepper, and what every outcome of each must satisfy.

A small table, two ids of one home and a third of another, as few free slots as can be, so that a
slot that is given back is written at once. A scenario is what the table holds at first, what its
writer does, and what a reader does meanwhile. The oracle reads each recorded state of the memory
with the standard library alone.
"""

from __future__ import annotations

import contextlib
import struct
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING
from uuid import UUID

from stepper import Explorer, current, memory_of, record, show
from support import ME, at, keep_free, make_registry, make_writer, reader_of, successor_of
from tables import maps_of

from jidoka_shm import ownership, records, segment, seqlock, space
from jidoka_shm.attachment import Attachment
from jidoka_shm.control import Identity
from jidoka_shm.errors import CorruptRegistry, RegistryClosed, SessionNotFound
from jidoka_shm.growth import plan
from jidoka_shm.layout import CLOSED, SLOT_HEADER_SIZE, Geometry
from jidoka_shm.looks import TableLook
from jidoka_shm.maps import encode_map
from jidoka_shm.reads import SessionReads
from jidoka_shm.scan import scan_headers
from jidoka_shm.session import Session, SessionStatus
from jidoka_shm.space import FreeSlots
from jidoka_shm.table import TableGone
from jidoka_shm.writer import TableWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepper import Outcome, State

    from jidoka_shm.registry import Registry

_SLOT_SIZE = 192
_SIZE = make_writer(4, _SLOT_SIZE).geometry.index_size
#: X and Y share a home, so one of them lies beyond it; Z's home is where the other one may lie.
X, Y, Z = UUID(int=2), UUID(int=2 + _SIZE), UUID(int=3)
_NAMES = {"x": X, "y": Y, "z": Z}


class Reader(SessionReads):
    """A reader of a writer's memory without a name; what it would attach to again is the same."""

    looks: TableLook

    def __init__(self, writer: TableWriter, *, cache_size: int, verify: bool) -> None:
        self._name = "interleaved"
        self._writer, self._cache_size, self._verify = writer, cache_size, verify
        self.renew()

    def renew(self) -> None:
        tables = [self._writer, *vars(self._writer).get("heirs", ())]
        generation = self._writer.control.generation
        table = reader_of(tables[generation - 1], verify=self._verify)
        self._view = Attachment(
            self._writer.control, table, is_named=lambda: True, cache_size=self._cache_size
        )
        if self._view.identity[1] != generation:
            # As attachment.py does.
            self.renew()

    def remembered(self) -> object:
        view = self._view
        return (
            view.identity[1],
            [(key, hit[1]) for key, hit in view.cache.kept.items()],
            view.listing.scanned.change,
            view.listing.scanned.words.tolist(),
        )

    def _attach_again(self, old: Attachment) -> None:
        if self._writer.control.generation == old.identity[1]:
            raise RegistryClosed(self._name, "it was destroyed")
        self.renew()

    def close(self) -> None:
        pass


class Scenario:
    """What the table holds, what its writer does, what a reader does meanwhile.

    ``first`` and ``script`` are words: ``+x`` creates, ``x`` updates, ``-x`` removes, and ``>``
    goes on in the next table, once. Of ``x3`` the record takes three slots.
    """

    #: Single slots that the writer lets no new session have.
    spare = 0

    def __init__(  # noqa: PLR0913 - options, each by keyword
        self,
        first: str,
        script: str,
        read: Callable[[Reader], object],
        *,
        cache_size: int = 0,
        verify: bool = False,
        warm: Callable[[Reader], object] = lambda _: None,
    ) -> None:
        self.writer = self.make_writer()
        with _keeping(self.spare):
            self.fill(first, script)
            before = memory_of(self.writer)
            self.states = self.record(script)
        reader = Reader(self.writer, cache_size=cache_size, verify=verify)

        def reset() -> None:
            show(self.writer, before)
            reader.renew()
            warm(reader)

        self.explorer = Explorer(
            self.writer, self.states, lambda: read(reader), reset, reader.remembered
        )

    def make_writer(self) -> TableWriter:
        """Return the writer of an empty table."""
        return make_writer(4, _SLOT_SIZE)

    def fill(self, first: str, script: str) -> None:
        """Create what is there at first, and leave no slot free but those that the script needs."""
        keep_free(self.writer, [0, 1, 2, 3])
        run(make_registry(self.writer), first)
        # No slot to spare but the one that any change needs: what is given back is used next.
        creations = script.count("+") - script.count("-")
        keep_free(self.writer, sorted(self.writer.space)[: max(creations, 0) + 1])

    def record(self, script: str) -> list[State]:
        """Return the memory before the script and after each of its stores."""
        return record(self.writer, lambda: run(make_registry(self.writer), script))

    def outcomes(self) -> list[Outcome]:
        """Return what the reader returned in every interleaving."""
        return list(self.explorer.outcomes())

    def truths(self, outcome: Outcome) -> list[dict[UUID, int]]:
        """Return what was true, id by version, at each state that the reader ran beside."""
        states = self.states[outcome.first : outcome.last + 1]
        return [
            {key: version for key, (version, _) in oracle(self.writer, s).items()} for s in states
        ]


class Long(Scenario):
    """Records of several slots, of which only so many runs are free that one is soon used again.

    Attributes:
        free: the lengths of the free runs, each in the order that it is used in.
    """

    spare = 1

    def __init__(
        self,
        first: str,
        script: str,
        free: tuple[int, ...],
        read: Callable[[Reader], object],
        **options: object,
    ) -> None:
        self.free = free
        super().__init__(first, script, read, **options)

    def fill(self, first: str, script: str) -> None:
        run(make_registry(self.writer), first)
        left = self.writer.space
        # Records of one slot take what is there apart.
        left.settle()
        at, length = left.reserve()
        assert sum(self.free) + len(self.free) <= length + 1
        self.writer.space = kept = FreeSlots(0, 0, left.records)
        for length in self.free:
            # With a slot between any two, or they would be put together.
            kept._put(at, length)
            at += length + 1

    def uses_again(self) -> bool:
        """Return whether a slot of a record that was there at some time was written anew."""
        named: dict[int, bytes] = {}
        for state in self.states:
            table, geometry = table_of(self.writer, state)
            slots = [
                table[at : at + _SLOT_SIZE]
                for at in range(geometry.slots_offset, len(table), _SLOT_SIZE)
            ]
            if any(slots[slot] != was for slot, was in named.items()):
                return True
            for _, word in oracle(self.writer, state).values():
                at = geometry.slots_offset + (word & 0xFFFFFF) * _SLOT_SIZE
                first = word & 0xFFFFFF
                for slot in range(first, first + _run_at(table, at)):
                    named[slot] = slots[slot]
        return False


class Full(Scenario):
    """A table of so many slots that only the reserve and one spare slot are free."""

    spare = 1

    def __init__(
        self,
        first: str,
        script: str,
        slots: int,
        read: Callable[[Reader], object],
        **options: object,
    ) -> None:
        self.slots = slots
        super().__init__(first, script, read, **options)

    def make_writer(self) -> TableWriter:
        like = make_writer(4, _SLOT_SIZE)
        geometry = Geometry(index_size=_SIZE, slot_count=self.slots, slot_size=_SLOT_SIZE)
        return TableWriter(bytearray(geometry.size), like.control, geometry)

    def fill(self, first: str, script: str) -> None:
        run(make_registry(self.writer), first)
        left = self.writer.space
        assert len(left) == left.longest + 1, "it is not full"

    def record(self, script: str) -> list[State]:
        states = super().record(script)
        assert self.writer.check() == []
        return states

    def commits(self) -> int:
        """Return how many commits the script made."""
        first, last = (int.from_bytes(self.states[at][0][64:72], "little") for at in (0, -1))
        return (last - first) // 2


class FullCrash(Full):
    """A writer that is killed after some stores in a full table, and its successor.

    Each record is written by one store: that no half of one is seen, ``Full`` shows.

    Attributes:
        kept: how many of the script's stores it made.
        again: what the successor's own script is.
        is_cut: whether the script has more stores than those.
        moved: whether the successor had to move a record to have a reserve.
    """

    is_cut = moved = False

    def __init__(  # noqa: PLR0913 - as above
        self,
        first: str,
        script: str,
        slots: int,
        kept: int,
        read: Callable[[Reader], object],
        *,
        again: str,
        **options: object,
    ) -> None:
        self.kept, self.again = kept, again
        super().__init__(first, script, slots, read, **options)

    def record(self, script: str) -> list[State]:
        work = partial(run, make_registry(self.writer), script)
        states = record(self.writer, work, apart=False)
        self.is_cut = self.kept < len(states) - 1
        killed = states[: self.kept + 1]
        show(self.writer, killed[-1])
        heir = successor_of(self.writer)
        registry = make_registry(heir)

        def take_over() -> None:
            left = oracle(heir, memory_of(heir))
            registry.resume(ME)
            assert heir.check() == []
            self.moved = left != oracle(heir, memory_of(heir))
            run(registry, self.again, later=10**6)

        states = killed + record(heir, take_over, apart=False)[1:]
        assert heir.check() == []
        _end_all(registry)
        return states


def _end_all(registry: Registry) -> None:
    """Change the status of each session of a full table, and end each."""
    held = list(oracle(registry.table, memory_of(registry.table)))
    for key in held:
        registry.update(key, status=SessionStatus.ACTIVE, now=at(10**8))
        assert registry.table.check() == []
    for key in held:
        registry.terminate(key, error="x", now=at(10**8))
        assert registry.table.check() == []


@contextlib.contextmanager
def _keeping(spare: int) -> Iterator[None]:
    """Have writers keep so many single slots for changes."""
    before = space.SPARE_SLOTS
    space.SPARE_SLOTS = records.SPARE_SLOTS = spare
    try:
        yield
    finally:
        space.SPARE_SLOTS = records.SPARE_SLOTS = before


class Crash(Scenario):
    """A writer that is killed after some stores, and its successor.

    Attributes:
        kept: how many of the script's stores it made.
    """

    def __init__(
        self,
        first: str,
        script: str,
        kept: int,
        read: Callable[[Reader], object],
        **options: object,
    ) -> None:
        self.kept = kept
        super().__init__(first, script, read, **options)

    def record(self, script: str) -> list[State]:
        killed = super().record(script)[: self.kept + 1]
        show(self.writer, killed[-1])
        heir = successor_of(self.writer)
        keep_free(heir, [])
        registry = make_registry(heir)

        def take_over() -> None:
            registry.resume(ME)
            # As few free slots as before, the last one used first: the one of the killed commit.
            keep_free(heir, sorted(heir.space)[:1])
            run(registry, "+x" if heir.look_up(X) is None else "x", later=10**6)

        return killed + record(heir, take_over)[1:]


class Growth(Scenario):
    """A writer that grows at the word ``>`` of its script, and goes on in the next table."""

    def make_writer(self) -> TableWriter:
        writer = make_writer(4, _SLOT_SIZE)
        geometry = Geometry.for_capacity(8, _SLOT_SIZE)
        writer.heirs = [TableWriter(bytearray(geometry.size), writer.control, geometry)]
        return writer

    def record(self, script: str) -> list[State]:
        with _given_up_in_few_steps():
            return record(self.writer, lambda: run(make_registry(self.writer), script))


class GrowthCrash(Growth):
    """A writer that is killed after some stores of a growth, and its successor.

    Attributes:
        kept: how many of the script's stores it made.
    """

    def __init__(
        self,
        first: str,
        script: str,
        kept: int,
        read: Callable[[Reader], object],
        **options: object,
    ) -> None:
        self.kept = kept
        super().__init__(first, script, read, **options)

    def record(self, script: str) -> list[State]:
        killed = super().record(script)[: self.kept + 1]
        show(self.writer, killed[-1])
        tables = [self.writer, *self.writer.heirs]
        there = current(killed[-1])
        own = SimpleNamespace(
            _generations=lambda: [1, 2],
            _give_up=lambda other, word: seqlock.give_up(
                tables[other - 1].index.words, tables[other - 1].reach, word
            ),
        )
        heir = successor_of(tables[there - 1])
        keep_free(heir, [])
        registry = make_registry(heir)

        def take_over() -> None:
            # As SessionManager does.
            ownership.Ownership.discard_others(own, there)
            registry.resume(ME)
            keep_free(heir, sorted(heir.space)[:1])
            run(registry, "+x" if heir.look_up(X) is None else "x", later=10**6)

        with _given_up_in_few_steps():
            return killed + record(self.writer, take_over)[1:]


@contextlib.contextmanager
def _given_up_in_few_steps() -> Iterator[None]:
    """Have tables given up with a stop at each of the entries around the sessions only.

    And with a reach that leads a look-up a few entries on, not all 255: each load is a branch.
    """
    give_up, reach = seqlock.give_up, seqlock.GIVEN_UP_REACH

    def stop_around_the_sessions(words: memoryview, reach: memoryview, word: int) -> None:
        give_up(words[:5], reach, word)
        for entry in range(5, len(words) - 1):
            words[entry] = word
        give_up(words[-1:], reach[:0], word)

    seqlock.give_up, seqlock.GIVEN_UP_REACH = stop_around_the_sessions, 6
    try:
        yield
    finally:
        seqlock.give_up, seqlock.GIVEN_UP_REACH = give_up, reach


def grow(registry: Registry) -> None:
    """Go on in the next table, as a manager does."""
    old = registry.table
    (new,) = old.heirs
    new.fill(old, plan(old, new.geometry))
    # As few free slots as can be, as in the first table.
    keep_free(new, sorted(new.space)[:2])
    new.follow(old, 2, lambda: setattr(registry, "table", new))


class Destruction(Scenario):
    """A writer that destroys the registry, as ``Ownership.destroy`` does."""

    def record(self, script: str) -> list[State]:
        own = SimpleNamespace(
            name="interleaved",
            control=self.writer.control,
            is_named=lambda: True,
            _discard_tables=lambda: seqlock.give_up(
                self.writer.index.words, self.writer.reach, CLOSED
            ),
        )
        unlink, segment.unlink = segment.unlink, lambda name: None
        try:
            with _given_up_in_few_steps():
                return record(self.writer, lambda: ownership.Ownership.destroy(own))
        finally:
            segment.unlink = unlink


def run(registry: Registry, script: str, *, later: int = 0) -> None:
    """Do what a script says, each word at a moment of its own."""
    moment = 1000 * registry.table.next_version() + later
    for word in script.split():
        moment += 1000
        if word == ">":
            grow(registry)
            continue
        key = _key_of(word)
        metadata = _maps(key, moment, _slots_of(word))
        if word[0] == "+":
            maps = maps_of(metadata)
            registry.create(key, owner=_owner(moment), ttl=None, now=at(moment), **maps)
        elif word[0] == "-":
            entry, _, _ = registry.table.look_up(key)
            registry.table.remove(entry)
        else:
            packed = encode_map(metadata, "metadata")
            registry.update(key, owner=_owner(moment), now=at(moment), metadata=packed)


def _key_of(word: str) -> UUID:
    return _NAMES[word.lstrip("+-")[0]]


def _slots_of(word: str) -> int:
    """Return how many slots a word of a script wants for its record."""
    return int(word[-1]) if word[-1].isdigit() else 1


def _maps(key: UUID, moment: int, slots: int) -> dict[str, object]:
    """Return what a record says that takes so many slots, other bytes in each."""
    maps: dict[str, object] = {"of": str(key), "n": moment}
    if slots > 1:
        # Into the last slot, but not to its end.
        size = (slots - 1) * _SLOT_SIZE - SLOT_HEADER_SIZE
        maps["slots"], maps["pad"] = slots, "".join([f"{moment + at:8}" for at in range(size // 8)])
    return maps


def _owner(moment: int) -> Identity:
    """Return an owner that no other change of a script has."""
    return Identity(moment // 1000, 1, 1)


def table_of(writer: TableWriter, state: State) -> tuple[bytes, Geometry]:
    """Return the current table of a state of the memory, and its geometry."""
    at = current(state)
    tables = [writer, *vars(writer).get("heirs", ())]
    return state[at], tables[at - 1].geometry


def oracle(writer: TableWriter, state: State) -> dict[UUID, tuple[int, int]]:
    """Return which sessions a state of the memory holds, each with its version and its word."""
    table, geometry = table_of(writer, state)
    found = {}
    for entry in range(geometry.entries):
        (word,) = struct.unpack_from("<Q", table, geometry.index_offset + 8 * entry)
        if word > 2:
            slot = geometry.slots_offset + (word & 0xFFFFFF) * geometry.slot_size
            found[UUID(bytes=table[slot : slot + 16])] = (word >> 24, word)
    return found


# ---------------------------------------------------------------------------- what must hold


def check_session(key: UUID, session: Session) -> None:
    """A session is whole: its maps tell its id, and its time is its own."""
    assert session.session_id == key
    try:
        metadata = session.metadata
    except CorruptRegistry:
        metadata = None
    assert metadata, "it is torn"
    assert metadata == _maps(key, metadata["n"], metadata.get("slots", 1)), "it is torn"
    assert session._updated == at(metadata["n"]).wall


def check_look_up(scenario: Scenario, outcome: Outcome) -> None:
    """What was found was there at some moment of the look-up, or nothing was."""
    assert not isinstance(outcome.value, Exception), outcome
    versions = [truth.get(X) for truth in scenario.truths(outcome)]
    if outcome.value is None:
        assert None in versions, ("a live session was missed", versions)
    else:
        check_session(X, outcome.value)
        assert outcome.value.version in versions, (outcome.value.version, versions)


def check_glance(scenario: Scenario, outcome: Outcome) -> None:
    """The pid is that of one moment of the look-up, or the session was not there at one."""
    pids = [
        _pid(scenario.writer, state, X)
        for state in scenario.states[outcome.first : outcome.last + 1]
    ]
    assert outcome.value in pids, (outcome.value, pids)


def _run_at(table: bytes, slot: int) -> int:
    """Return how many slots the live record takes that begins at an offset of the table."""
    (length,) = struct.unpack_from("<I", table, slot + 44)
    return -(-(SLOT_HEADER_SIZE + length + 32) // _SLOT_SIZE)


def _pid(writer: TableWriter, state: State, key: UUID) -> int | None:
    found = oracle(writer, state).get(key)
    if found is None:
        return None
    table, geometry = table_of(writer, state)
    slot = geometry.slots_offset + (found[1] & 0xFFFFFF) * geometry.slot_size
    return struct.unpack_from("<I", table, slot + 40)[0]


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


def check_versions(scenario: Scenario) -> None:
    """A version never stands for two records."""
    contents: dict[int, bytes] = {}
    for state in scenario.states:
        table, geometry = table_of(scenario.writer, state)
        for version, word in oracle(scenario.writer, state).values():
            slot = geometry.slots_offset + (word & 0xFFFFFF) * geometry.slot_size
            record = table[slot : slot + _run_at(table, slot) * geometry.slot_size]
            assert contents.setdefault(version, record) == record, f"{version} is used twice"


def check_end(scenario: Scenario, first: str, script: str) -> None:
    """What the script leaves is there at its end."""
    live = {}
    for word in [*first.split(), *script.replace(">", "").split()]:
        live[_key_of(word)] = word[0] != "-"
    assert set(oracle(scenario.writer, scenario.states[-1])) == {key for key in live if live[key]}


def check_closed(scenario: Scenario, outcome: Outcome) -> None:
    """Once a look-up has met the end, a list does too."""
    closed, listed = outcome.value
    assert not (closed and listed), scenario


def look_up(reader: Reader) -> object:
    return reader.get(X)


def look_up_twice(reader: Reader) -> object:
    first = reader.get(X)
    return first, reader.get(X)


def glance(reader: Reader) -> object:
    try:
        return reader.get_session_pid(X)
    except SessionNotFound:
        return None


def list_all(reader: Reader) -> object:
    scanned = reader._listing().scanned
    return scanned.change is not None, list(scanned.sessions.values())


def headers(reader: Reader) -> object:
    change, rows = reader._on_table(lambda view: scan_headers(view.table))
    return (
        change is not None,
        {UUID(bytes=bytes(row["session_id"])): int(row["version"]) for row in rows},
        len(rows),
    )


def see_then_list(reader: Reader) -> object:
    # Another reader's look-up, so that nothing but the memory is between the two.
    seen = Reader(reader._writer, cache_size=0, verify=reader._verify).get(X)
    return seen, list(reader._listing().scanned.sessions.values())


def list_see_list(reader: Reader) -> object:
    list_all(reader)
    return see_then_list(reader)


def remember(reader: Reader) -> None:
    """Let a later look tell what became different since now."""
    reader.looks = TableLook(reader._view.table)
    reader.looks.keep(reader.looks.look())


def look_again(reader: Reader) -> object:
    return reader.looks, reader.looks.look()


def check_looked(scenario: Scenario, outcome: Outcome) -> None:
    """What a look tells was so; what it leaves out, it found as it was, or the next one tells."""
    assert not isinstance(outcome.value, Exception), outcome
    looks, look = outcome.value
    truths = scenario.truths(outcome)
    told = {
        key: version for key, (version, _) in oracle(scenario.writer, scenario.states[0]).items()
    }
    found = {key: None if one is None else one.version for key, one in look.found.items()}
    for key, version in found.items():
        assert version in [truth.get(key) for truth in truths], (key, version, truths)
        if version is not None:
            check_session(key, look.found[key])
    told |= found
    for key in _NAMES.values():
        versions = {truth.get(key) for truth in truths}
        assert len(versions) > 1 or versions == {told.get(key)}, ("not told of", key, versions)
    looks.keep(look)
    # As a watcher decides whether to look again, once the writer has come to its end.
    show(scenario.writer, scenario.states[-1])
    if look.change % 2 or look.change != scenario.writer.change[0]:
        later = looks.look().found
        told |= {key: None if one is None else one.version for key, one in later.items()}
    assert {key: one for key, one in told.items() if one is not None} == {
        key: version for key, (version, _) in oracle(scenario.writer, scenario.states[-1]).items()
    }


def closed_then_list(reader: Reader) -> object:
    try:
        reader._view.table.look_up(X)
        closed = False
    except TableGone:
        closed = True
    try:
        return closed, bool(reader.list_sessions())
    except RegistryClosed:
        return closed, False
