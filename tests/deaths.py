"""A writer that keeps a ledger until it is killed, and what must hold whenever that is.

The writer says in the ledger what it is about to change, and what it was told is changed. The
ledger is memory that outlives it. Each record proves itself: its maps tell its id and the number
of the change that made it, one map with a crc of the other.
"""

from __future__ import annotations

import gc
import itertools
import linecache
import mmap
import os
import re
import signal
import sys
import zlib
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from uuid import UUID

import numpy as np
from host import do_traced, exit_code, forked, path_of

import jidoka_shm
from jidoka_shm import SessionExists, SessionManager, SessionReader, SessionStatus, seqlock
from jidoka_shm.header import TableHeader
from jidoka_shm.layout import CONTROL_FIELDS, SLOT_DTYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from random import Random
    from types import CodeType, FrameType
    from typing import Self

    from jidoka_shm import Session

    Work = Callable[[], object]
    Around = Callable[[Work], object]

#: What conftest.py prints at the end of a run.
FIGURES: Final[list[str]] = []

#: Sessions that the writer changes. Every other one shares its home with the one before it.
KEYS: Final = 24
CAPACITY: Final = 64

#: What the table is resized to now and then, and how often that is.
SIZES: Final = (KEYS, CAPACITY, 100)
RESIZED: Final = 0.02

NEVER, CREATED, UPDATED, ENDED = range(4)
LIVE: Final = {CREATED, UPDATED}
_STATUS: Final = {
    CREATED: SessionStatus.INITIALIZING,
    UPDATED: SessionStatus.ACTIVE,
    ENDED: SessionStatus.TERMINATED,
}


class Mark(NamedTuple):
    """One change of one session: its number, how often the id was created, and what it did."""

    number: int
    life: int
    kind: int


class Ledger:
    """What was intended and what was acknowledged, in memory that processes share.

    Each mark is one word, so that no kill leaves half of one.
    """

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    @property
    def last(self) -> int:
        """The number of the last change that was intended."""
        return self._words[0]

    @property
    def begun(self) -> int:
        """How many writers have taken over and begun."""
        return self._words[1]

    @begun.setter
    def begun(self, number: int) -> None:
        self._words[1] = number

    @property
    def there(self) -> int:
        """How many sessions the last writer left."""
        return self._words[2]

    @there.setter
    def there(self, number: int) -> None:
        self._words[2] = number

    def intended(self, key: int) -> Mark:
        """Return the last change that was begun."""
        return _mark(self._words[8 + key])

    def acknowledged(self, key: int) -> Mark:
        """Return the last change that a call returned from."""
        return _mark(self._words[8 + KEYS + key])

    def intend(self, key: int, mark: Mark) -> None:
        """Say what comes next."""
        self._words[0] = max(mark.number, self._words[0])
        self._words[8 + key] = _word(mark)

    def acknowledge(self, key: int, mark: Mark) -> None:
        """Say what is done."""
        self._words[8 + KEYS + key] = _word(mark)

    def settle(self, key: int, mark: Mark) -> None:
        """Say how it turned out, once the writer is dead."""
        self.intend(key, mark)
        self.acknowledge(key, mark)


def _word(mark: Mark) -> int:
    return mark.number << 24 | mark.life << 2 | mark.kind


def _mark(word: int) -> Mark:
    return Mark(word >> 24, word >> 2 & 0x3FFFFF, word & 3)


def id_of(key: int) -> UUID:
    """Return the id of a session of the ledger."""
    index_size = jidoka_shm.layout.index_size_for(CAPACITY)
    return UUID(int=(key // 2 * 11 + 5) + (key % 2) * index_size)


IDS: Final = [id_of(key) for key in range(KEYS)]

# ---------------------------------------------------------------------------- the writer


def write(name: str, ledger: Ledger, rng: Random, around: Around) -> None:
    """Take a registry over, judge what the last writer left, then change it for ever.

    Args:
        name: the registry's name.
        ledger: what is known of it.
        rng: chooses the changes.
        around: is given the changing, to be done.
    """
    # The thread that removes what has ended gets its turn often enough to be killed in it, too.
    sys.setswitchinterval(1e-4)
    manager = SessionManager(name, capacity=CAPACITY, cleanup_delay=rng.choice([0, 0.0003]))
    if ledger.begun:
        assert manager.recovery is not None
        assert (manager.recovery.dropped, manager.recovery.clean) == ((), False)
        assert manager.recovery.kept == ledger.there
    assert manager.check() == []
    for key in range(KEYS):
        judge(key, manager.get(IDS[key]), ledger.acknowledged(key), ledger.intended(key))
    ledger.begun += 1

    parent = os.getppid()

    def for_ever() -> None:
        # A test that is killed itself must not leave a writer behind that nobody ends.
        while os.getppid() == parent:
            _change(manager, ledger, rng)

    around(for_ever)


def _change(manager: SessionManager, ledger: Ledger, rng: Random) -> None:
    if rng.random() < RESIZED:
        manager.resize(rng.choice(SIZES))
        return
    key = rng.randrange(KEYS)
    old, number = ledger.acknowledged(key), ledger.last + 1
    if old.kind not in LIVE:
        new = Mark(number, old.life + 1, CREATED)
    else:
        new = Mark(number, old.life, ENDED if rng.random() < 0.2 else UPDATED)
    metadata, llm_config = _proof(IDS[key], new)
    ledger.intend(key, new)
    if new.kind == CREATED:
        try:
            manager.create_session(metadata, llm_config, session_id=IDS[key])
        except SessionExists:
            # It has ended and is not removed yet.
            ledger.intend(key, old)
            return
    elif new.kind == UPDATED:
        manager.update_session(IDS[key], status="active", metadata=metadata, llm_config=llm_config)
    else:
        manager.terminate_session(IDS[key], error=str(number))
    ledger.acknowledge(key, new)


def _proof(session_id: UUID, mark: Mark) -> tuple[dict[str, object], dict[str, object]]:
    """Return the maps of the record that a change makes; an end leaves them as they are."""
    metadata = {**mark._asdict(), "pad": "x" * (mark.number * 7 % 90)}
    return metadata, {"crc": zlib.crc32(f"{session_id} {metadata}".encode())}


class Child:
    """A forked process that a test stops and kills; it must not end by itself."""

    def __init__(self, work: Work) -> None:
        self.pid = forked(work)
        self._reaped = False

    def stop(self) -> None:
        """Stop it, and wait until it stands still."""
        os.kill(self.pid, signal.SIGSTOP)
        self.wait_for_stop()

    def wait_for_stop(self) -> None:
        """Wait until it stands still."""
        assert self.stops(), "it ended instead of standing still"

    def stops(self) -> bool:
        """Wait until it stands still, which is True, or ends by itself."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        self._reaped = not os.WIFSTOPPED(status)
        return not self._reaped

    def go_on(self) -> None:
        """Let it go on where it stands."""
        os.kill(self.pid, signal.SIGCONT)

    def has(self, event: int) -> bool:
        """Return whether it has ended (``os.WEXITED``) or stands still (``os.WSTOPPED``)."""
        return os.waitid(os.P_PID, self.pid, event | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> None:
        """Kill it."""
        os.kill(self.pid, signal.SIGKILL)
        self.wait_for_kill()

    def wait_for_kill(self) -> None:
        """Wait until it is killed; that it ended in any other way is a failure."""
        self._reaped = True
        assert exit_code(self.pid) == -signal.SIGKILL, "it ended by itself"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if not self._reaped:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


# ---------------------------------------------------------------------------- the reader


class Witness:
    """A reader in the test's own process, which looks up while the writer writes.

    Attributes:
        reader: the reader.
        looks: how many look-ups were judged.
        overlaps: during how many of them the writer went on to another change.
    """

    def __init__(self, name: str, ledger: Ledger) -> None:
        self.reader = SessionReader(name)
        self.looks = self.overlaps = 0
        self._ledger = ledger
        self._keys = itertools.cycle(range(KEYS))

    def look(self) -> None:
        """Look one session up, and judge it."""
        key, ledger = next(self._keys), self._ledger
        last, before = ledger.last, ledger.acknowledged(key)
        found = self.reader.get(IDS[key])
        judge(key, found, before, ledger.intended(key))
        self.looks += 1
        self.overlaps += ledger.last != last

    def look_until(self, condition: Callable[[], bool], child: Child) -> None:
        """Look up until a condition of a living writer holds."""
        while not condition():
            for _ in range(8):
                self.look()
            assert not child.has(os.WEXITED), "it ended meanwhile"

    def look_at_rest(self) -> list[Mark]:
        """Judge all sessions, looked up and listed, and return what they are at."""
        reader, ledger = self.reader, self._ledger
        marks = [judge_at_rest(key, reader.get(IDS[key]), ledger) for key in range(KEYS)]
        listed = {session.session_id: mark_of(session) for session in reader.values()}
        assert listed == {IDS[key]: mark for key, mark in enumerate(marks) if IDS[key] in reader}
        assert len(reader) == len(listed)
        return marks


# ---------------------------------------------------------------------------- what must hold


def mark_of(session: Session) -> Mark:
    """Return which change made a record, which must be whole."""
    maps = session.metadata, session.llm_config
    mark = Mark(*(session.metadata[field] for field in Mark._fields))
    assert maps == _proof(session.session_id, mark)
    if session.status is SessionStatus.TERMINATED:
        assert session.error is not None
        mark = Mark(int(session.error), mark.life, ENDED)
    assert session.status is _STATUS[mark.kind]
    return mark


def judge(key: int, found: Session | None, before: Mark, after: Mark) -> None:
    """Assert that a look-up gave what was there at some moment of it.

    Args:
        key: whose.
        found: what it gave.
        before: what had been acknowledged before it began.
        after: what had been intended when it ended.
    """
    if found is None:
        lived = before.kind in LIVE and after.kind in LIVE and before.life == after.life
        assert not lived, f"{key} was lost between {before} and {after}"
        return
    assert found.session_id == IDS[key]
    mark = mark_of(found)
    assert before.number <= mark.number <= after.number, (before, mark, after)
    assert mark.number != before.number or mark == before, (before, mark)
    assert mark.number != after.number or mark == after, (mark, after)


def judge_at_rest(key: int, found: Session | None, ledger: Ledger) -> Mark:
    """Assert that a look-up gave what was acknowledged, or the change under way, and return it.

    The writer is stopped or dead.
    """
    known, begun = ledger.acknowledged(key), ledger.intended(key)
    judge(key, found, known, begun)
    if found is None:
        # Only what has ended goes, and only what was never created is not there yet.
        gone = begun if begun.kind == ENDED else known
        assert gone.kind in {ENDED, NEVER}, (key, known, begun)
        return gone
    mark = mark_of(found)
    assert mark in {known, begun}, (key, known, mark, begun)
    return mark


def where_in_a_commit(name: str) -> str | None:
    """Return how far the commit of a stopped or dead writer got: not at all is None.

    From outside: by the change word, and by slots of a version that it does not know yet.
    """
    control = path_of(name).read_bytes()
    change, generation = (
        int.from_bytes(control[CONTROL_FIELDS[field] :][:8], "little")
        for field in ("change", "generation")
    )
    if change % 2:
        return "under an odd change word"
    table = bytearray(path_of(name, generation).read_bytes())
    header = TableHeader.read(table)
    assert header is not None
    geometry = header.geometry
    slots = np.frombuffer(table, np.uint8, offset=geometry.slots_offset)
    rows = slots.reshape(geometry.slot_count, geometry.slot_size)[:, : SLOT_DTYPE.itemsize]
    written = rows.view(SLOT_DTYPE)["version"] > change // 2
    return "with a slot written and no commit" if written.any() else None


# ---------------------------------------------------------------------------- at a line


def kill_this_process() -> None:
    """Die at once."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop_this_process() -> None:
    """Stand still until somebody sends SIGCONT."""
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_at_line_of(code: CodeType, number: int, work: Work, stop: Work) -> None:
    """Do ``work``, and call ``stop`` before the ``number``-th line of one function in it."""
    left = number

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        nonlocal left
        if frame.f_code is not code:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                stop()
        return trace

    do_traced(work, trace)


#: What is traced to stop within a commit.
COMMIT: Final = seqlock.commit.__code__


def stop_at_each_line(work: Work, stop: Work) -> None:
    """Do ``work``, and call ``stop`` before each line of the package in it.

    Which line is the how many-th must be the same in each run. A garbage collection would bring in
    lines of its own, so there is none from then on; it is for a process that will die.
    """
    gc.disable()

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        if not _is_ours(frame):
            return None
        if event == "line":
            stop()
        return trace

    do_traced(work, trace)


def stop_within(code: CodeType, number: int, work: Work, stop: Work) -> None:
    """Do ``work``, and call ``stop`` before the ``number``-th line of one function's calls in it.

    Those of all package functions that it calls count too. As above, for a process that will die.
    """
    gc.disable()
    left, is_within = number, False

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        nonlocal left, is_within
        if not _is_ours(frame):
            return None
        if frame.f_code is code:
            is_within = event != "return"
        if event == "line" and is_within:
            left -= 1
            if left == 0:
                stop()
        return trace

    do_traced(work, trace)


def killing_at(number: int) -> Around:
    """Return what does its work up to the package's ``number``-th line in it, and dies there."""
    lines = itertools.count(1)

    def stop() -> None:
        if next(lines) == number:
            kill_this_process()

    return partial(stop_at_each_line, stop=stop)


@dataclass
class Steps:
    """A child that stops itself before each line of the package, seen from outside.

    Attributes:
        child: the child; it stands still where the first step begins.
        look: returns what a kill would leave.
        changed: the lines before which that was new, up to now.
        lines: how many lines there were, up to now.
    """

    child: Child
    look: Callable[[], object]
    changed: list[int] = field(default_factory=list)
    lines: int = 0

    def __iter__(self) -> Iterator[int]:
        """Let the child go on, line by line to its end; yield where ``look`` finds a change."""
        seen: object = None
        while True:
            self.child.go_on()
            if not self.child.stops():
                return
            self.lines += 1
            before, seen = seen, self.look()
            if seen != before:
                self.changed.append(self.lines)
                yield self.lines


# ---------------------------------------------------------------------------- loads

#: What the text of a line that loads a shared word holds.
_WORDS: Final = re.compile(r"words\[|reach\[|change\[", re.ASCII)

#: A condition whose second half loads only where the first one lets it.
_GUARDED: Final = re.compile(r"(?:if|while) ([^(\[]+?) (and|or) ", re.ASCII)

_PACKAGE: Final = str(Path(jidoka_shm.__file__).parent)


def _is_ours(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_PACKAGE)


@dataclass
class Loads:
    """Counts the loads of shared words that reads make, by the text of the lines they come by."""

    count: int = 0

    def of(self, read: Callable[[], object]) -> object:
        """Do a read and return what it returned; or the error, if it raised one of the package."""
        self.count = 0
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            return read()
        except jidoka_shm.JidokaError as error:
            return type(error)
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        if not _is_ours(frame):
            return None
        if event == "line" and _loads_a_word(frame):
            self.count += 1
        return self._trace


def _loads_a_word(frame: FrameType) -> bool:
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
    load = _WORDS.search(line)
    if load is None:
        return False
    guard = _GUARDED.match(line)
    if guard is None or load.start() < guard.end():
        return True
    # Of local names alone, so nothing is loaded by it.
    first = bool(eval(guard[1], frame.f_globals, frame.f_locals))  # noqa: S307 - our own lines
    return first if guard[2] == "and" else not first
