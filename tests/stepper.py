"""Every interleaving of a writer's stores with a reader's loads, over the real functions.

A writer never depends on what readers do, so its run is recorded once: the memory after each line
that changed it, in order. A reader is then run again and again under ``sys.settrace``, and before
each of its loads the recorded writer may go on by any number of stores. Which choices lead to a
state that was there before (the same reader lines with the same locals, the writer as far) is
remembered, so that each is followed once; the number of schedules is counted over all of them.

It depends on one rule of the package's code: a line makes at most one load of, or one store to,
live shared memory, and keeps what it loaded in a local name. Lines that load are told by their
text (``LOADS``); a test steps through all lines of a few scenarios and finds the same outcomes.
"""

from __future__ import annotations

import linecache
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import jidoka_shm
from jidoka_shm.attachment import Attachment
from jidoka_shm.layout import CONTROL_FIELDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from jidoka_shm.writer import TableWriter

_GENERATION = CONTROL_FIELDS["generation"]
_PACKAGE = str(Path(jidoka_shm.__file__).parent)

#: What is in the control, in the table and, where that may grow, in the next one.
State = tuple[bytes, ...]

#: Interleavings that all explorers of this run stood for, and how many readers were run for them;
#: conftest.py prints both.
TOTALS = {"schedules": 0, "outcomes": 0}

#: What the text of a line that loads live shared memory holds.
LOADS = re.compile(
    r"words\[|reach\[|change\[|memory\[|_headers\[|_words != |unpack_from\(|unpack_brief\(",
    re.ASCII,
)


def _traced(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_PACKAGE)


def _loads(frame: FrameType) -> bool:
    return LOADS.search(linecache.getline(frame.f_code.co_filename, frame.f_lineno)) is not None


# ---------------------------------------------------------------------------- the writer


def record(writer: TableWriter, script: Callable[[], object], *, apart: bool = True) -> list[State]:
    """Return the memory before ``script`` and after each of its stores.

    A record is written by one line, but not by one store: it is taken apart into its id, the rest
    of its header, and what each of its slots holds of its payload; where ``apart`` says so.
    """
    states = [memory_of(writer)]

    def step(frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401
        _append(states, memory_of(writer), writer, apart=apart)
        return step if _traced(frame) else None

    sys.settrace(step)
    try:
        script()
    finally:
        sys.settrace(None)
    _append(states, memory_of(writer), writer, apart=apart)
    return states


def _tables(writer: TableWriter) -> list[TableWriter]:
    """Return the writer's table, and the one that it may grow into, an attribute of tests."""
    return [writer, *vars(writer).get("heirs", ())]


def memory_of(writer: TableWriter) -> State:
    """Return what is in memory now."""
    tables = [bytes(table.slots.memory) for table in _tables(writer)]
    return bytes(writer.control._memory), *tables


def show(writer: TableWriter, state: State) -> None:
    """Put into memory what was there at another time."""
    writer.control._memory[:] = state[0]
    for table, memory in zip(_tables(writer), state[1:], strict=True):
        table.slots.memory[:] = memory


def current(state: State) -> int:
    """Return which table of a state, counted from 1, its control names."""
    return int.from_bytes(state[0][_GENERATION : _GENERATION + 8], "little")


def _append(states: list[State], now: State, writer: TableWriter, *, apart: bool) -> None:
    before = states[-1]
    if now == before:
        return
    at = current(before)
    old, new, table = before[at], now[at], _tables(writer)[at - 1]
    begin = table.slots.begin
    if apart and new[begin:] != old[begin:]:
        assert new[:begin] == old[:begin]
        differing = [i for i in range(begin, len(old)) if new[i] != old[i]]
        size = table.slots.slot_size
        slot = differing[0] - (differing[0] - begin) % size
        for part in (slot + 16, slot + 64, *range(slot + size, differing[-1] + 1, size)):
            states.append((*before[:at], new[:part] + old[part:], *before[at + 1 :]))
    states.append(now)


# ---------------------------------------------------------------------------- the reader


class _Seen(BaseException):
    """Ends a run that has come to a state that was followed before."""


@dataclass
class Outcome:
    """What a reader returned, or raised, and between which of the writer's states it ran."""

    value: object
    first: int
    last: int


@dataclass
class Explorer:
    """Runs a reader against a recorded writer in every interleaving.

    Attributes:
        writer: whose memory the reader looks at.
        states: what ``record`` returned.
        reader: what is run; anything it changes in itself must show in ``memory_of_reader``.
        reset: puts the reader back to how it was.
        memory_of_reader: what the reader remembers beyond the locals of its frames.
        every_line: let the writer go on before lines that load nothing, too.
    """

    writer: TableWriter
    states: list[State]
    reader: Callable[[], object]
    reset: Callable[[], object] = lambda: None
    memory_of_reader: Callable[[], object] = lambda: None
    every_line: bool = False
    _edges: dict[object, set[object]] = field(default_factory=dict)
    _starts: dict[int, object] = field(default_factory=dict)

    def outcomes(self) -> Iterator[Outcome]:
        """Yield each outcome once for each state that led to it first.

        A call that begins late must answer for fewer of the writer's states than one that begins
        early and comes to the same place, so the late ones go first.
        """
        for start in reversed(range(len(self.states))):
            waiting: list[tuple[int, ...]] = [()]
            while waiting:
                yield from self._run(start, waiting.pop(), waiting)

    def schedules(self) -> int:
        """Return how many interleavings ``outcomes`` stood for."""
        counts: dict[object, int] = {None: 1}
        for position in range(len(self.states) - 1):
            self._link(self._starts[position], self._starts[position + 1])
        stack = [self._starts[0]]
        while stack:
            successors = self._edges[stack[-1]]
            missing = [after for after in successors if after not in counts]
            if missing:
                stack += missing
            else:
                counts[stack.pop()] = sum(counts[after] for after in successors)
        return counts[self._starts[0]]

    def _run(
        self, start: int, schedule: tuple[int, ...], waiting: list[tuple[int, ...]]
    ) -> Iterator[Outcome]:
        """Run the reader from a state on.

        Args:
            start: which state it begins at.
            schedule: before which of its loads the writer goes on, as often as they are named.
            waiting: where schedules that go on from this one are put.
        """
        pending = list(schedule)
        position, at = start, 0
        before: object = None
        times: dict[object, int] = {}
        self.reset()
        self._show(start)

        def go_on() -> None:
            nonlocal position
            position += 1
            self._show(position)

        def step(frame: FrameType, event: str, arg: object) -> Any:  # noqa: ANN401
            nonlocal at, before
            if not _traced(frame):
                return None
            if event == "line" and (self.every_line or _loads(frame)):
                place = self._key(frame)
                # An expression of several lines comes by one of them twice with the same locals.
                times[place] = times.get(place, 0) + 1
                key = (place, times[place], position)
                self._link(before, key)
                before = key
                while pending and pending[0] == at:
                    pending.pop(0)
                    go_on()
                    key = (place, times[place], position)
                    self._link(before, key)
                    before = key
                if not pending and (not schedule or at >= schedule[-1]):
                    if key in self._edges:
                        raise _Seen
                    self._edges[key] = set()
                    if at == 0:
                        self._starts[position] = key
                    elif position + 1 < len(self.states):
                        waiting.append((*schedule, at))
                at += 1
            return step

        sys.settrace(step)
        try:
            value = self.reader()
        except _Seen:
            return
        except Exception as error:  # noqa: BLE001 - an outcome like any other
            value = error
        finally:
            sys.settrace(None)
        self._link(before, None)
        yield Outcome(value, start, position)

    def _link(self, before: object, after: object) -> None:
        if before is not None:
            self._edges.setdefault(before, set()).add(after)

    def _show(self, position: int) -> None:
        show(self.writer, self.states[position])

    def _key(self, frame: FrameType | None) -> object:
        frames = []
        # The scenario's own frames too: what it got from a first call decides what a second may be.
        while frame is not None and frame.f_code.co_filename != __file__:
            places = tuple((k, _frozen(v)) for k, v in sorted(frame.f_locals.items()))
            frames.append((frame.f_code.co_qualname, frame.f_lineno, places))
            frame = frame.f_back
        return tuple(frames), _frozen(self.memory_of_reader())


def _frozen(value: object) -> object:
    """Return a local's value so that equal ones are equal; an object of ours by its class."""
    if value is None or isinstance(value, (int, str, bytes)):
        return value
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, (tuple, list)):
        return tuple(_frozen(item) for item in value)
    if isinstance(value, dict):
        return tuple((_frozen(key), _frozen(item)) for key, item in value.items())
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if type(value).__name__ in {"UUID", "Session"}:
        return hash(value)
    if isinstance(value, Attachment):
        return vars(value).get("identity", (None, None))[1]
    return type(value).__name__
