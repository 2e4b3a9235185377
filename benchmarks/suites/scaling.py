"""Reads a second by many reader processes at once, and how long the slow ones take.

Readers are processes of their own. They read while nothing is written, beside a writer of what
they read, and beside a writer of another store, which takes as much of the machine and leaves what
they read alone. Systems that other processes cannot attach to are left out.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks import peers
from benchmarks.crew import Failed, Member
from benchmarks.figures import Figure, Ratio
from benchmarks.worker import QUANTILES, Order

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.bench import Bench

NAME: Final = "scaling"

QUIET, WRITTEN, OTHER = "quiet", "under a writer", "beside another's writer"
MODES: Final = (QUIET, WRITTEN, OTHER)
READS, COMMITS, CHANGES = "reads", "met a commit", "changes"
#: All counts of readers up to so many; beyond, each is twice the one before.
EACH: Final = 8
#: Rounds of a process at most, as a round takes its time whatever the machine.
MOST_ROUNDS: Final = 3


class Line(NamedTuple):
    """A system in a way of reading, and what the report calls it."""

    label: str
    system: str
    method: str


LINES: Final = (
    Line("jidoka_shm", "jidoka_shm", "repeated"),
    Line("jidoka_shm, no cache", "jidoka_shm", "look_up"),
    *(Line(name, name, "look_up") for name in ("dict", "lmdb", "sqlite", "redis", "manager")),
)

RATIOS: Final = tuple(
    ratio
    for label in ("jidoka_shm", "jidoka_shm, no cache")
    for ratio in (
        Ratio(
            suite=NAME,
            row=f"{READS}, {WRITTEN}",
            system=label,
            beside_row=f"{READS}, {OTHER}",
            beside=label,
            at_least=0.6,
            at=1,
        ),
        Ratio(suite=NAME, row=f"{COMMITS}, {WRITTEN}", system=label, at_most=0.05, at=1),
    )
)


def counts(cores: int) -> list[int]:
    """Return how many readers there are at once: up to twice the cores."""
    most = 2 * cores
    if most <= EACH:
        return list(range(1, most + 1))
    return [*(1 << at for at in range(most.bit_length()) if 1 << at < most), most]


def _lines(bench: Bench) -> list[Line]:
    return [line for line in LINES if line.system in (*peers.OWN, *bench.foreign)]


def _rounds(bench: Bench) -> int:
    return 1 + min(bench.effort.rounds, MOST_ROUNDS)


def steps(bench: Bench) -> int:
    """Return how many measurements it makes."""
    readers = len(counts(_cores()))
    return bench.effort.crowds * _rounds(bench) * len(MODES) * readers * len(_lines(bench))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


class Crowd:
    """One system: its host, another store's host, and readers that are attached to the first."""

    def __init__(self, bench: Bench, system: str, stack: contextlib.ExitStack) -> None:
        self.system = system
        sessions = bench.effort.sessions
        self.host, self.other = (
            stack.enter_context(Member(system, bench.place(system), sessions)) for _ in range(2)
        )
        for member in (self.host, self.other):
            member.tell(Order("make"))
        for member in (self.host, self.other):
            member.hear()
            member.ask(Order("attach"))
        self.readers = [
            stack.enter_context(Member(system, self.host.place, sessions))
            for _ in range(max(counts(_cores())))
        ]
        for reader in self.readers:
            reader.tell(Order("attach"))
        for reader in self.readers:
            reader.hear()

    @contextlib.contextmanager
    def written(self, mode: str) -> Iterator[list[float]]:
        """Have one of the hosts write meanwhile; then there is how often, and for how long."""
        made: list[float] = []
        if mode == QUIET:
            yield made
            return
        writer = self.host if mode == WRITTEN else self.other
        writer.tell(Order("until", "update"))
        try:
            yield made
        finally:
            made += writer.stop()

    def read(self, line: Line, readers: int, seconds: float) -> tuple[float, float]:
        """Return the reads a second of some readers, and the share that met a commit."""
        reading = self.readers[:readers]
        before = self._retries(reading)
        for reader in reading:
            reader.tell(Order("rate", line.method, seconds=seconds))
        found = [reader.hear() for reader in reading]
        met = self._retries(reading) - before
        return sum(made / taken for made, taken in found), met / sum(made for made, _ in found)

    def _retries(self, reading: list[Member]) -> float:
        if not hasattr(peers.load(self.system), "retries"):
            return 0.0
        return sum(reader.ask(Order("call", "retries"))[0] for reader in reading)

    def spread(self, line: Line, readers: int, seconds: float) -> list[float]:
        """Return how often one reader read, and the quantiles, while the others read as well."""
        first, *others = self.readers[:readers]
        for reader in others:
            reader.tell(Order("rate", line.method, seconds=seconds))
        quantiles = first.ask(Order("spread", line.method, seconds=seconds))
        for reader in others:
            reader.hear()
        return quantiles


class Key(NamedTuple):
    """Which figure a value belongs to."""

    row: str
    label: str
    unit: str
    axis: str
    at: float


class Scaling:
    """The measurements of one process of each role."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.values: dict[Key, list[float]] = {}

    def run(self) -> None:
        """Start everything and do the rounds."""
        bench = self._bench
        with contextlib.ExitStack() as stack:
            crowds: dict[str, Crowd] = {}
            for system in dict.fromkeys(line.system for line in _lines(bench)):
                try:
                    crowds[system] = Crowd(bench, system, stack)
                except Failed as error:
                    bench.drop(system, str(error))
            for number in range(_rounds(bench)):
                for mode in MODES:
                    for readers in counts(_cores()):
                        self._take_turns(crowds, mode, readers, keep=number > 0)

    def _take_turns(self, crowds: dict[str, Crowd], mode: str, readers: int, *, keep: bool) -> None:
        for line in _lines(self._bench):
            if line.system in crowds:
                found = self._measure(crowds[line.system], line, mode, readers)
                for key, value in found.items() if keep else ():
                    self.values.setdefault(key, []).append(value)
            self._bench.advance()

    def _measure(self, crowd: Crowd, line: Line, mode: str, readers: int) -> dict[Key, float]:
        seconds = self._bench.effort.window
        found: dict[Key, float] = {}
        with crowd.written(mode) as made:
            reads, met = crowd.read(line, readers, seconds)
            if mode != OTHER and readers in {1, 2 * _cores()}:
                row = f"latency, {mode}, {readers} reading"
                calls, *quantiles = crowd.spread(line, readers, seconds)
                for at, value in zip(QUANTILES, quantiles, strict=True):
                    # One in ten thousand of fewer calls would be the slowest, whichever that was.
                    if at == 1 or calls * (1 - at) >= 1:
                        found[Key(row, line.label, "ns", "quantile", at)] = value
        found[Key(f"{READS}, {mode}", line.label, "1/s", "readers", readers)] = reads
        if hasattr(peers.load(line.system), "retries"):
            found[Key(f"{COMMITS}, {mode}", line.label, "share", "readers", readers)] = met
        if made:
            found[Key(f"{CHANGES}, {mode}", line.label, "1/s", "readers", readers)] = (
                made[0] / made[1]
            )
        return found


def run(bench: Bench) -> list[Figure]:
    """Measure."""
    found: dict[Key, list[list[float]]] = {}
    for _ in range(bench.effort.crowds):
        scaling = Scaling(bench)
        scaling.run()
        for key, values in scaling.values.items():
            found.setdefault(key, []).append(values)
    return [
        Figure(
            suite=NAME,
            row=key.row,
            system=key.label,
            unit=key.unit,
            values=values,
            axis=key.axis,
            at=key.at,
        )
        for key, values in found.items()
    ]
