"""Every death of a writer: what readers see then, and what the next writer finds."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import sys
from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

import deaths
import pytest
from deaths import (
    CAPACITY,
    COMMIT,
    IDS,
    KEYS,
    Child,
    Ledger,
    Loads,
    Steps,
    Witness,
    kill_this_process,
    killing_at,
    stop_at_each_line,
    stop_at_line_of,
    stop_this_process,
    stop_within,
)
from host import (
    give_up_in_few_lines,
    in_child,
    list_own_names_alone,
    objects_of,
    path_of,
    stop_at_line,
)
from support import wait_until

from jidoka_shm import (
    JidokaError,
    Recovery,
    RegistryClosed,
    RegistryFull,
    RegistryNotFound,
    SessionManager,
    SessionNotFound,
    SessionReader,
    WriterAlreadyRunning,
    processes,
    segment,
)
from jidoka_shm.control import Identity
from jidoka_shm.layout import CONTROL_FIELDS, CONTROL_SIZE, SPARE_SLOTS, index_size_for
from jidoka_shm.marks import Instant
from jidoka_shm.records import RecordWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Self

    from deaths import Around, Work

    from jidoka_shm import Session


@pytest.fixture(autouse=True)
def _unlinked(name: str) -> Iterator[None]:
    """Remove what the test made under its name."""
    yield
    for tail in objects_of(name):
        segment.unlink(f"/jidoka_shm.{name}{tail}")


# ---------------------------------------------------------------------------- at any moment

ANY_MOMENT, CAUGHT = "at any moment", "caught in a commit"
ANY_LINE, IN_COMMIT = "at any line", "at a line of a commit"


def _around(kind: str, rng: Random, stop: Work) -> Around:
    """Return how a writer stops itself, or that it does not: then another process does it."""
    number = rng.randrange(1, 400)
    if kind == ANY_LINE:
        return lambda work: stop_at_line(number, work, stop)
    if kind == IN_COMMIT:
        return lambda work: stop_at_line_of(COMMIT, 1 + number % 60, work, stop)
    return lambda work: work()


def _writers(
    name: str, ledger: Ledger, rng: Random, kinds: dict[str, int], stop: Work
) -> Generator[tuple[str, Child, Witness]]:
    """Yield writers, one after the other dies, each with its kind, and their one reader."""
    witness = None
    for kind in rng.sample([*kinds], counts=[*kinds.values()], k=sum(kinds.values())):
        around, own_rng = _around(kind, rng, stop), Random(rng.random())
        with Child(partial(deaths.write, name, ledger, own_rng, around)) as child:
            if witness is None:
                wait_until(lambda: ledger.begun)
                witness = Witness(name, ledger)
            yield kind, child, witness
        for key, mark in enumerate(witness.look_at_rest()):
            ledger.settle(key, mark)
        ledger.there = len(witness.reader)


def _look_up_to_a_moment(child: Child, witness: Witness, ledger: Ledger, rng: Random) -> None:
    """Look up until a writer is well under way, then a few more times."""
    target, overlaps = ledger.last + rng.randrange(1, 100), witness.overlaps
    witness.look_until(lambda: ledger.last >= target, child)
    # What was never looked up while it changed would show nothing.
    witness.look_until(lambda: witness.overlaps > overlaps, child)
    for _ in range(rng.randrange(50)):
        witness.look()


def _catch_in_a_commit(name: str, child: Child, witness: Witness, rng: Random) -> None:
    """Stop a writer at one moment after the other, until that is within a commit."""
    child.stop()
    while deaths.where_in_a_commit(name) is None:
        child.go_on()
        for _ in range(rng.randrange(1, 20)):
            witness.look()
        child.stop()


@pytest.mark.parametrize("seed", [1])
def test_no_kill_of_a_busy_writer_loses_or_tears_anything(name: str, seed: int) -> None:
    """T5: killed hundreds of times, at any moment and in its commits, and read all the while."""
    rng, ledger = Random(seed), Ledger()
    kinds = {ANY_MOMENT: 400, CAUGHT: 5, ANY_LINE: 40, IN_COMMIT: 55}
    kills: Counter[str] = Counter()
    halves: Counter[tuple[str, str]] = Counter()
    with closing(_writers(name, ledger, rng, kinds, kill_this_process)) as writers:
        for kind, child, witness in writers:
            if kind in {ANY_MOMENT, CAUGHT}:
                _look_up_to_a_moment(child, witness, ledger, rng)
                if kind == CAUGHT:
                    _catch_in_a_commit(name, child, witness, rng)
                child.kill()
            else:
                while not child.has(os.WEXITED):
                    witness.look()
                child.wait_for_kill()
            kills[kind] += 1
            half = deaths.where_in_a_commit(name)
            if half is not None:
                halves[kind, half] += 1
            assert witness.reader.writer_alive is False
    with SessionManager(name, capacity=CAPACITY) as manager:
        stats = manager.stats()
        assert manager.check() == []
    deaths.FIGURES.append(
        f"{kills.total()} writers killed ({_in_words(kills)}), {halves.total()} in a commit "
        f"({_in_words(halves)}); {ledger.last} changes begun, 0 lost; {witness.looks} look-ups, "
        f"{witness.overlaps} while a change was made"
    )
    print(deaths.FIGURES[-1])
    assert kills == kinds
    assert halves.total() >= 30
    for kind in (CAUGHT, IN_COMMIT):
        assert sum(halves[each] for each in halves if each[0] == kind) == kinds[kind]
    assert witness.overlaps >= kinds[ANY_MOMENT]
    assert objects_of(name) == {"", f".{stats.generation}"}
    assert stats.generation > 100
    assert min(stats.created, stats.updated, stats.removed) > 100
    assert (stats.takeovers, stats.dropped) == (kills.total(), 0)


def _in_words(counts: Counter[Any]) -> str:
    """Return counts as a text."""
    texts = {kind: kind if isinstance(kind, str) else " ".join(kind) for kind in counts}
    return ", ".join(f"{counts[kind]} {texts[kind]}" for kind in sorted(counts))


@pytest.mark.parametrize("seed", [1])
def test_a_writer_that_stands_still_holds_nobody_up(name: str, seed: int) -> None:
    """D7: stopped at any moment and in its commits, it is alive, and readers go on."""
    rng, ledger = Random(seed), Ledger()
    kinds = {ANY_MOMENT: 25, IN_COMMIT: 15}
    halves: Counter[str] = Counter()
    with closing(_writers(name, ledger, rng, kinds, stop_this_process)) as writers:
        for kind, child, witness in writers:
            if kind == ANY_MOMENT:
                _look_up_to_a_moment(child, witness, ledger, rng)
                child.stop()
            else:
                witness.look_until(partial(child.has, os.WSTOPPED), child)
                child.wait_for_stop()
            last = ledger.last
            halves[kind] += deaths.where_in_a_commit(name) is not None
            with SessionReader(name, cache_size=0) as stranger:
                for number in range(500):
                    for reader in (stranger, witness.reader):
                        key = number % KEYS
                        deaths.judge_at_rest(key, reader.get(IDS[key]), ledger)
            assert witness.reader.writer_alive is True
            with pytest.raises(WriterAlreadyRunning) as caught:
                SessionManager(name, capacity=CAPACITY)
            assert caught.value.pid == child.pid
            witness.look_at_rest()
            assert ledger.last == last

            child.go_on()
            witness.look_until(lambda last=last: ledger.last > last + 1, child)
            child.stop()
            witness.look_at_rest()
            assert witness.reader.writer_alive is True
            child.kill()
            assert witness.reader.writer_alive is False
    deaths.FIGURES.append(
        f"{sum(kinds.values())} writers stopped ({_in_words(Counter(kinds))}), "
        f"{halves.total()} in a commit; 1,000 look-ups at each"
    )
    print(deaths.FIGURES[-1])
    assert halves[IN_COMMIT] == kinds[IN_COMMIT]


# ---------------------------------------------------------------------------- at every store

_CAPACITY = 8
_SIZE = index_size_for(_CAPACITY)

#: Two that share their home, one that will be joined in its own by a new one, and by one that
#: never comes, and one that has ended.
A, B, C, NEW, ABSENT, D = (
    UUID(int=home + _SIZE * turn)
    for home, turn in ((3, 0), (3, 1), (20, 0), (20, 1), (20, 2), (9, 0))
)


def _manager(name: str, **options: Any) -> SessionManager:  # noqa: ANN401 - a manager's own
    return SessionManager(name, **{"capacity": _CAPACITY, "cleanup_delay": 3600} | options)


def _fill(manager: SessionManager) -> None:
    for sid in (A, B, C, D):
        manager.create_session({"of": str(sid)}, session_id=sid)
    manager.terminate_session(D)


def _expire(manager: SessionManager) -> None:
    with manager._lock:
        manager._registry.expire(Instant(0, 2**62))


def _resume(manager: SessionManager) -> None:
    with manager._lock:
        manager._registry.resume(processes.own_identity())


MUTATIONS: dict[str, Callable[[SessionManager], object]] = {
    "create": lambda manager: manager.create_session({"of": str(NEW)}, session_id=NEW),
    "update": lambda manager: manager.update_session(B, status="active"),
    "terminate": lambda manager: manager.terminate_session(B, error="e"),
    "remove": _expire,
    "resume": _resume,
}


def _mutate(name: str, mutation: str, around: Around) -> None:
    """Make a registry, stand still, change it, and die."""
    manager = _manager(name, fresh=True)
    _fill(manager)
    stop_this_process()
    around(lambda: MUTATIONS[mutation](manager))
    kill_this_process()


class _Readers:
    """Readers that answer for a few sessions, and count what they load for that."""

    def __init__(self, name: str) -> None:
        self.loads = Loads()
        self._kept = SessionReader(name)
        self._fresh = SessionReader(name, cache_size=0)

    def answers(self) -> dict[UUID, Session | None]:
        """Return what a look-up finds, which must be the same for every kind of it."""
        found: dict[UUID, Session | None] = {}
        for sid in (A, B, C, NEW, ABSENT, D):
            for reader in (self._fresh, self._kept, self._kept):
                session = self._count(partial(reader.get, sid))
                assert found.setdefault(sid, session) == session
                status = self._count(partial(reader.get_session_status, sid))
                assert status == (SessionNotFound if session is None else session.status)
        listed = {session.session_id: session for session in self._fresh.values()}
        assert listed == {sid: session for sid, session in found.items() if session is not None}
        return found

    def _count(self, read: Callable[[], Any]) -> Any:  # noqa: ANN401 - what it reads
        value = self.loads.of(read)
        assert 1 <= self.loads.count <= 8, (read, self.loads.count)
        return value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._kept.close()
        self._fresh.close()


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_reader_answers_at_once_wherever_a_mutation_stands_still_or_is_cut(
    name: str, mutation: str
) -> None:
    """T5: SIGSTOP and SIGKILL at every store of every mutation: at most 8 loads of shared words."""
    answers: list[Any] = []
    around = partial(stop_at_each_line, stop=stop_this_process)
    with Child(partial(_mutate, name, mutation, around)) as child:
        child.wait_for_stop()
        steps = Steps(child, partial(_objects, name))
        with _Readers(name) as readers:
            answers += [readers.answers() for _ in steps]
            answers.append(readers.answers())
    # The memory as it was, odd, the word, even, and a counter; but for a removal also a slot.
    assert len(steps.changed) >= (3 if mutation == "resume" else 5)
    assert _come_in_order(answers)
    assert (answers[0] == answers[-1]) == (mutation == "resume")
    cut = []
    for number in steps.changed:
        with Child(partial(_mutate, name, mutation, killing_at(number))) as child:
            child.wait_for_stop()
            with _Readers(name) as readers:
                readers.answers()
                child.go_on()
                child.wait_for_kill()
                found = readers.answers()
                with _manager(name) as heir:
                    assert heir.check() == []
                    assert heir.recovery == Recovery(len(heir), (), clean=False)
                    # What a reader was told before the takeover stands after it.
                    assert readers.answers() == found
        cut.append(found)
    assert _come_in_order(cut)


def _objects(name: str) -> dict[str, bytes]:
    """Return all that a kill would leave of a registry."""
    tails = sorted(objects_of(name))
    return {tail: Path(f"{path_of(name)}{tail}").read_bytes() for tail in tails}


def _come_in_order(answers: list[dict[UUID, Session | None]]) -> bool:
    """Return whether each session was as at first up to a moment, and then as at last."""
    for sid, last in answers[-1].items():
        changed = [_facts(found[sid]) != _facts(answers[0][sid]) for found in answers]
        kept = [_facts(found[sid]) != _facts(last) for found in answers]
        if changed != sorted(changed) or (any(changed) and kept != [not c for c in changed]):
            return False
    return True


def _facts(session: Session | None) -> tuple[object, ...] | None:
    """Return what is the same of a session in every run."""
    if session is None:
        return None
    return session.session_id, session.version, session.status, session.error, session.metadata


# ---------------------------------------------------------------------------- in a full table


def _padded(sid: UUID, number: int, slots: int) -> dict[str, object]:
    """Return the metadata of a record that takes so many slots of 128 bytes."""
    return {"of": str(sid), "n": number, "pad": f"{number}" * (128 * slots - 180)}


#: Changes in a table without room but the reserve, of the length of the longest record: one that
#: is committed there and back, one that is committed there, one that gives slots back.
LONG_CHANGES: dict[str, Callable[[SessionManager], object]] = {
    "of the shorter": lambda manager: manager.update_session(A, metadata=_padded(A, 1, 2)),
    "of the longest": lambda manager: manager.update_session(B, metadata=_padded(B, 1, 3)),
    "made shorter": lambda manager: manager.update_session(B, metadata=_padded(B, 1, 2)),
}


#: Sessions of a slot each.
_SHORT = [UUID(int=1000 + number) for number in range(2 * SPARE_SLOTS)]


def _long_manager(name: str, **options: Any) -> SessionManager:  # noqa: ANN401 - as above
    return _manager(name, slot_size=128, grow=False, **options)


def _change_in_a_full_table(name: str, change: str, line: int) -> None:
    """Make a registry, fill it, stand still, change it, and die at a line or stand still again."""
    manager = _long_manager(name, capacity=5 + 3 + len(_SHORT), fresh=True)
    manager.create_session(_padded(A, 0, 2), session_id=A)
    manager.create_session(_padded(B, 0, 3), session_id=B)
    for sid in _SHORT:
        manager.create_session(session_id=sid)
    # Every other one moves to a spare slot, which leaves no two adjacent ones to spare.
    for sid in _SHORT[::2]:
        manager.update_session(sid, status="active")
    space = manager._registry.table.space
    assert (len(space.singles), space.runs()) == (SPARE_SLOTS, {3: 1})
    stop_this_process()
    code = RecordWriter.replace.__code__
    stop_within(code, line, lambda: LONG_CHANGES[change](manager), kill_this_process)
    stop_this_process()


@pytest.mark.parametrize("change", LONG_CHANGES)
def test_a_long_commit_cut_at_any_line_in_a_full_table_is_gone_on_from(
    name: str, change: str
) -> None:
    """T5: the next writer finds the reserve again, and a reader of before sees what it does."""
    committed, moved = [], 0
    for line in itertools.count(1):
        with Child(partial(_change_in_a_full_table, name, change, line)) as child:
            child.wait_for_stop()
            with SessionReader(name) as reader:
                assert _told(reader) == {A: 0, B: 0}
                child.go_on()
                is_cut = not child.stops()
                if not is_cut:
                    child.kill()
                told, left = _told(reader), reader[A].version
                committed.append(sum(told.values()))
                with _long_manager(name) as heir:
                    assert heir.recovery == Recovery(2 + len(_SHORT), (), clean=False)
                    assert heir.check() == []
                    assert told == _told(heir) == _told(reader)
                    moved += reader[A].version != left
                    _end_each(heir, reader)
        if not is_cut:
            break
    assert (committed[0], committed[-1]) == (0, 1)
    assert committed == sorted(committed)
    assert len(committed) > 40
    # Where it stood in the reserve, between two commits.
    assert (moved > 0) == (change == "of the shorter")


def _told(handle: SessionReader | SessionManager) -> dict[UUID, int]:
    """Return which change each of the two long records is of, which must be whole."""
    assert set(handle) == {A, B, *_SHORT}
    found = {}
    for sid in (A, B):
        metadata = handle[sid].metadata
        number, pad = metadata["n"], metadata["pad"]
        assert metadata["of"] == str(sid)
        assert pad == f"{number}" * len(pad)
        assert metadata in [_padded(sid, number, slots) for slots in (2, 3)]
        found[sid] = number
    return found


def _end_each(heir: SessionManager, reader: SessionReader) -> None:
    """Change the status of each session of a full table, then end each, beside a reader."""
    for sid in (B, A, *_SHORT):
        heir.update_session(sid, status="active")
        assert reader.get_session_status(sid) == "active"
    assert heir.check() == []
    for sid in (B, A, *_SHORT):
        heir.terminate_session(sid, error="e")
        assert reader[sid].error == "e"
    assert heir.check() == []


# ---------------------------------------------------------------------------- between system calls


@pytest.fixture
def _few_lines(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let loops over all objects of the host, and over all entries, have few lines to die at."""
    list_own_names_alone(monkeypatch, name)
    give_up_in_few_lines(monkeypatch)


def _cut_off_commit(name: str) -> None:
    """Leave a registry as a writer does that is killed in mid-commit."""
    manager = _manager(name)
    _fill(manager)
    stop_at_line_of(COMMIT, 3, lambda: manager.terminate_session(C), kill_this_process)


class _Left:
    """The objects of a registry, to be put back as they were."""

    def __init__(self, name: str) -> None:
        assert in_child(lambda: _cut_off_commit(name)) == -signal.SIGKILL
        self._images = {
            path_of(name, generation): path_of(name, generation).read_bytes()
            for generation in (None, 1)
        }
        with SessionReader(name) as reader:
            assert reader.version is None
            self.sessions = dict(reader)
        assert len(self.sessions) == 4

    def put_back(self) -> None:
        for path, image in self._images.items():
            path.write_bytes(image)


def _start(name: str, around: Around) -> None:
    managers = []
    around(lambda: managers.append(_manager(name)))


def _start_afresh(name: str, around: Around) -> None:
    managers = []
    around(lambda: managers.append(_manager(name, fresh=True)))


def _close(name: str, around: Around) -> None:
    around(_manager(name).close)


def _unlink(name: str, around: Around) -> None:
    around(_manager(name).unlink)


#: More lines than these are not all gone through.
_AFFORDABLE = 700


def _lines_to_die_at(
    name: str, call: Callable[[str, Around], None], seed: int
) -> Iterator[tuple[int, bool]]:
    """Yield line numbers of a call, and whether it has so many; the last one has it not.

    Every line of it; where it has too many, each before which something outside had changed,
    since a kill between two of those leaves the same, and some of the others all the same.
    """
    with Child(partial(_step_through, name, call)) as child:
        child.wait_for_stop()
        steps = Steps(child, partial(_objects, name))
        for _ in steps:
            pass
    numbers = range(1, steps.lines + 1)
    assert len(steps.changed) > 1
    if steps.lines > _AFFORDABLE:
        some = Random(seed).sample(numbers, 100)
        numbers = sorted({1, *steps.changed, *some, steps.lines})
    for number in [*numbers, steps.lines + 1]:
        yield number, number <= steps.lines


def _step_through(name: str, call: Callable[[str, Around], None]) -> None:
    def around(work: Work) -> None:
        stop_this_process()
        stop_at_each_line(work, stop_this_process)

    call(name, around)


def _die_in(name: str, call: Callable[[str, Around], None], number: int, *, killed: bool) -> None:
    code = in_child(lambda: call(name, killing_at(number)))
    assert code == (-signal.SIGKILL if killed else 0), number


@pytest.mark.parametrize("seed", [1])
@pytest.mark.usefixtures("_few_lines")
def test_a_creation_cut_at_any_line_is_followed_by_a_start(name: str, seed: int) -> None:
    """A4: killed before each line of the first start, it leaves nothing that hinders the next."""
    complete = False
    numbers = list(_lines_to_die_at(name, _start, seed))
    _manager(name).unlink()
    for number, killed in numbers:
        _die_in(name, _start, number, killed=killed)
        try:
            reader = SessionReader(name, timeout=0)
        except RegistryNotFound:
            assert not complete
            reader = None
        else:
            complete = True
            assert list(reader) == []
        with _manager(name) as heir:
            assert heir.recovery == (Recovery(0, (), clean=not killed) if complete else None)
            with reader or SessionReader(name, timeout=0) as reader:
                _goes_on(heir, reader)
            heir.unlink()
    assert complete


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("call", [_start, _close])
@pytest.mark.usefixtures("_few_lines")
def test_a_takeover_or_close_cut_at_any_line_loses_nothing(
    name: str, call: Callable[[str, Around], None], seed: int
) -> None:
    """A4: killed before each line of it, readers and the next writer have all that was there."""
    left = _Left(name)
    for number, killed in _lines_to_die_at(name, call, seed):
        left.put_back()
        with SessionReader(name, timeout=0) as reader:
            assert _read(reader) == left.sessions
            _die_in(name, call, number, killed=killed)
            assert _read(reader) == left.sessions
            with SessionReader(name, timeout=0) as stranger:
                assert _read(stranger) == left.sessions
            with _manager(name) as heir:
                assert heir.recovery is not None
                assert (heir.recovery.kept, heir.recovery.dropped) == (4, ())
                assert dict(heir) == left.sessions
                _goes_on(heir, reader)
                heir.unlink()


@pytest.mark.parametrize("seed", [1])
@pytest.mark.parametrize("call", [_start_afresh, _unlink])
@pytest.mark.usefixtures("_few_lines")
def test_a_destruction_cut_at_any_line_destroys_all_or_nothing(
    name: str, call: Callable[[str, Around], None], seed: int
) -> None:
    """A4: killed before each line of it, readers and the next writer have all of it or nothing."""
    left = _Left(name)
    gone = False
    for number, killed in _lines_to_die_at(name, call, seed):
        left.put_back()
        with SessionReader(name, timeout=0) as reader:
            assert _read(reader) == left.sessions
            _die_in(name, call, number, killed=killed)
            answers = [_read(reader), _read_anew(name)]
            with _manager(name) as heir:
                assert not gone or dict(heir) == {}
                gone = dict(heir) == {}
                if gone:
                    assert heir.recovery in {None, Recovery(0, (), clean=not killed)}
                else:
                    assert heir.recovery is not None
                    assert (heir.recovery.kept, heir.recovery.dropped) == (4, ())
                    assert dict(heir) == left.sessions
                for answer in answers:
                    assert answer in (NOTHING if gone else [left.sessions])
                _goes_on(heir, reader)
                heir.unlink()
    assert gone


def _read(reader: SessionReader) -> object:
    """Return all that a reader finds, one look-up after the other; or the error that it meets."""
    try:
        found = {sid: reader[sid] for sid in (A, B, C, D) if sid in reader}
        assert dict(reader) == found
    except JidokaError as error:
        return type(error)
    return found


def _read_anew(name: str) -> object:
    """Return what a reader finds that attaches now; or the error that it meets."""
    try:
        with SessionReader(name, timeout=0) as reader:
            return _read(reader)
    except JidokaError as error:
        return type(error)


#: What a reader may say of a registry that was there.
NOTHING = [{}, RegistryClosed, RegistryNotFound]


def _goes_on(heir: SessionManager, reader: SessionReader) -> None:
    """Assert that a new writer and a reader of before see one registry, that is sound."""
    assert heir.check() == []
    assert objects_of(heir.name) == {"", ".1"}
    sid = heir.create_session({"of": "the heir"})
    assert reader[sid] == heir[sid]
    assert dict(reader) == dict(heir)
    assert reader.writer_alive is True


# ---------------------------------------------------------------------------- again and again


def _start_and_create(name: str, fresh: bool) -> None:
    manager = _manager(name, fresh=fresh)
    while len(manager) < _CAPACITY:
        manager.create_session({"of": "a start"})
    stop_this_process()


@pytest.mark.parametrize("seed", [1])
def test_killed_starts_leave_one_set_of_objects(name: str, seed: int) -> None:
    """L6: 50 times, at any moment of it, while a reader attaches and sees its deadline at most."""
    rng = Random(seed)
    outcomes = Counter([_attach(name)])
    cut = 0
    for _ in range(50):
        fresh = rng.random() < 0.5
        # A start takes as long as some hundred attempts, and each tenth is let come to its end.
        tries = int(2 ** rng.uniform(0, 11)) if rng.random() < 0.9 else sys.maxsize
        with Child(lambda fresh=fresh: _start_and_create(name, fresh)) as child:
            while tries and not child.has(os.WSTOPPED):
                outcomes[_attach(name)] += 1
                tries -= 1
            cut += not child.has(os.WSTOPPED)
            child.kill()
        assert objects_of(name) <= {"", ".1"}
        outcomes[_attach(name)] += 1
    with _manager(name) as manager:
        assert manager.check() == []
        assert objects_of(name) == {"", ".1"}
        outcomes[_attach(name)] += 1
    deaths.FIGURES.append(f"50 starts killed, {cut} before their end; {_in_words(outcomes)}")
    print(deaths.FIGURES[-1])
    assert 0 < cut < 50
    assert {"attached", "its deadline"} <= set(outcomes) <= {"attached", "its deadline", "closed"}


def _attach(name: str) -> str:
    """Attach with a reader, once, and return what came of it."""
    try:
        with SessionReader(name, timeout=0) as reader:
            assert all(session.metadata == {"of": "a start"} for session in reader.values())
    except RegistryNotFound:
        return "its deadline"
    except RegistryClosed:
        # What it was attached to was discarded meanwhile.
        return "closed"
    return "attached"


# ---------------------------------------------------------------------------- what follows


def test_a_new_writer_uses_no_slot_of_what_is_there_and_shows_nothing_of_the_dead(
    name: str,
) -> None:
    """D4: killed before each line of a commit, then filled to the last slot by the next writer."""

    def die(line: int) -> None:
        manager = _manager(name, fresh=True)
        for sid in (A, B, C):
            manager.create_session({"of": str(sid)}, session_id=sid)
        create = partial(manager.create_session, {"of": "the dead"}, session_id=NEW)
        stop_at_line_of(COMMIT, line, create, kill_this_process)

    committed = []
    for line in itertools.count(1):
        code = in_child(partial(die, line))
        with SessionReader(name) as reader:
            left = dict(reader)
            committed.append(NEW in left)
            assert set(left) - {NEW} == {A, B, C}
            with _manager(name, grow=False) as heir:
                assert heir.recovery == Recovery(len(left), (), clean=code == 0)
                mine = [heir.create_session({"of": "heir"}) for _ in range(_CAPACITY - len(left))]
                with pytest.raises(RegistryFull):
                    heir.create_session()
                assert {sid: reader[sid] for sid in left} == left
                assert all(reader[sid].metadata == {"of": "heir"} for sid in mine)
                # So often that all slots were written anew.
                for _ in range(4):
                    for sid in (*left, *mine):
                        heir.update_session(sid, metadata={"of": str(sid)})
                assert set(reader) == {*left, *mine}
                assert all(reader[sid].metadata == {"of": str(sid)} for sid in reader)
                assert (NEW in reader) == (NEW in left)
                assert heir.check() == []
        if code == 0:
            break
    assert (committed[0], committed[-1]) == (False, True)
    assert committed == sorted(committed)
    assert len(committed) > 4


def test_a_reader_goes_on_with_each_writer_that_follows_a_killed_one(name: str) -> None:
    """A6: it is not made anew, and sees what the second and third writer do, and a new registry."""

    def write(number: int, *, fresh: bool) -> None:
        manager = _manager(name, fresh=fresh)
        if A not in manager:
            manager.create_session(session_id=A)
        manager.update_session(A, metadata={"by": number})
        stop_this_process()

    reader = None
    for number in range(8):
        with Child(partial(write, number, fresh=number in {0, 4, 7})) as child:
            child.wait_for_stop()
            reader = reader or SessionReader(name)
            for alive in (True, False):
                if not alive:
                    child.kill()
                assert reader[A].metadata == {"by": number}
                assert [session.metadata for session in reader.list_sessions()] == [{"by": number}]
                assert reader.writer_alive is alive
    assert reader is not None
    reader.close()


def test_what_the_last_run_left_is_reported_or_discarded_as_asked(name: str) -> None:
    """L4: no start fails after a crash, none takes anything over without saying so, none needs rm."""

    def start(*, fresh: bool) -> None:
        manager = _manager(name, fresh=fresh)
        manager.create_session()
        kill_this_process()

    expected = 0
    for fresh in (False, False, True, False, False, True, True):
        assert in_child(partial(start, fresh=fresh)) == -signal.SIGKILL
        expected = 1 if fresh else expected + 1
        with SessionReader(name, timeout=0) as reader:
            assert len(reader) == expected
    with _manager(name) as manager:
        assert manager.recovery == Recovery(expected, (), clean=False)
    with _manager(name) as manager:
        assert manager.recovery == Recovery(expected, (), clean=True)
    with _manager(name, fresh=True) as manager:
        assert manager.recovery is None
        assert list(manager) == []


def _identities() -> dict[str, Identity]:
    """Return what a dead writer may have left for its own identity, or somebody else for it."""
    me = processes.own_identity()
    parent = processes.identity_of(os.getppid())
    assert parent is not None
    return {
        "none": Identity(0, 0, 0),
        "this process": me,
        "a living process": parent,
        "a recycled pid": Identity(parent.pid, parent.start + 1, parent.namespace),
        "a pid alone": Identity(parent.pid, 0, 0),
        "another namespace": Identity(parent.pid, parent.start, parent.namespace + 1),
        "no pid": Identity(2**64 - 1, 2**64 - 1, 2**64 - 1),
    }


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("who", _identities())
def test_whatever_a_control_says_of_its_writer_the_lock_alone_keeps_others_out(
    name: str, who: str, *, odd: bool
) -> None:
    """T8: a recorded pid blocks nobody, whosever it is, and the lack of one lets nobody in."""
    with _manager(name) as manager:
        sid = manager.create_session()
        _record_writer(name, who, odd=odd)
        with pytest.raises(WriterAlreadyRunning):
            _manager(name)
        manager.close()
    _record_writer(name, who, odd=odd)
    with SessionReader(name, timeout=0) as reader:
        assert list(reader) == [sid]
        with _manager(name) as heir:
            assert heir.recovery == Recovery(1, (), clean=who == "none" and not odd)
            assert reader.writer_alive is True
            _goes_on(heir, reader)


def _record_writer(name: str, who: str, *, odd: bool) -> None:
    with path_of(name).open("r+b") as file:
        for field, value in zip(
            ("writer_pid", "writer_start", "writer_namespace"),
            dataclasses.astuple(_identities()[who]),
            strict=True,
        ):
            file.seek(CONTROL_FIELDS[field])
            file.write(value.to_bytes(8, "little"))
        file.seek(CONTROL_FIELDS["change"])
        file.write((4 - odd).to_bytes(8, "little"))


@pytest.mark.parametrize("size", [0, 1, 4095, CONTROL_SIZE])
def test_an_empty_control_blocks_nobody(name: str, size: int) -> None:
    """T8: as a writer leaves it that is killed between two system calls, or a full disk."""
    path_of(name).write_bytes(bytes(size))
    path_of(name, 1).write_bytes(b"")
    with _manager(name) as manager, SessionReader(name, timeout=0) as reader:
        assert manager.recovery is None
        _goes_on(manager, reader)
