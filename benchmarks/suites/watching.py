"""What watching costs: a look after one change, an idle watcher, and what a writer loses.

A look is compared with a list of all sessions by a reader that has none; the commits of a writer at
full speed beside watchers with those of the same writer alone, the two taking turns. The watchers
have other cores than the writer, and its commits are counted by its own processor time: what is
left is what their loads cost its stores.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

from benchmarks.companion import Companion
from benchmarks.figures import Figure, Ratio
from jidoka_shm import SessionManager, SessionReader
from jidoka_shm.asyncwatching import AsyncChanges
from jidoka_shm.watching import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.bench import Bench

NAME: Final = "watching"
SYSTEM: Final = "jidoka_shm"

LIST, FIRST, LOOK = "a list of all sessions", "the first look", "a look after one change"
IDLE, LOOPED = "an idle watcher, of a core", "the same in an asyncio loop"
ALONE, BESIDE = "commits alone", "commits beside watchers"
UNITS: Final = dict.fromkeys((LIST, FIRST, LOOK), "ms") | dict.fromkeys((IDLE, LOOPED), "share")

RATIOS: Final = (
    Ratio(suite=NAME, row=LOOK, beside_row=LIST),
    Ratio(suite=NAME, row=FIRST, beside_row=LIST),
    Ratio(suite=NAME, row=BESIDE, beside_row=ALONE),
)

#: It watches until its input ends.
WATCHER: Final = """
import os, sys, threading
from jidoka_shm import SessionReader
changes = SessionReader(sys.argv[1]).changes()
def end():
    sys.stdin.read()
    os._exit(0)
threading.Thread(target=end).start()
print("up", flush=True)
for change in changes:
    pass
"""
#: Sessions that the writer at full speed has, and those that it changes.
WRITTEN: Final = 1_000
CHANGED: Final = 100


def steps(bench: Bench) -> int:
    """Return how many measurements it makes."""
    return 3 * bench.effort.rounds


def run(bench: Bench) -> list[Figure]:
    """Measure."""
    found: dict[str, list[float]] = {}
    for measured in (looks(bench), idle(bench), beside(bench)):
        for values in measured:
            bench.advance()
            for row, value in values.items():
                found.setdefault(row, []).append(value)
    return [
        Figure(suite=NAME, row=row, system=SYSTEM, unit=UNITS.get(row, "1/s"), values=[values])
        for row, values in found.items()
    ]


@contextlib.contextmanager
def _registry(bench: Bench, sessions: int) -> Iterator[SessionManager]:
    place = bench.place(NAME)
    name = f"bench-{place.parent.name}-{place.name}"
    with SessionManager(name, capacity=max(sessions, 16_384), fresh=True) as manager:
        try:
            for number in range(sessions):
                manager.create_session({"n": number, "project": "p"})
            yield manager
        finally:
            manager.unlink()


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def looks(bench: Bench) -> Iterator[dict[str, float]]:
    """Yield the milliseconds of a list, of a first look and of one after a change."""
    with _registry(bench, bench.effort.watched) as manager, SessionReader(manager.name) as reader:
        changes = reader.changes(timeout=0)
        list(changes)
        ids = list(manager)
        for number in range(bench.effort.rounds):
            with SessionReader(manager.name) as fresh:
                listed = _timed(fresh.list_sessions)
            with SessionReader(manager.name) as fresh:
                first = _timed(fresh.changes)
            manager.update_session(ids[number])
            look = _timed(lambda: list(changes))
            yield {LIST: 1e3 * listed, FIRST: 1e3 * first, LOOK: 1e3 * look}


def idle(bench: Bench) -> Iterator[dict[str, float]]:
    """Yield which part of a core a watcher takes while nothing changes."""
    seconds = 10 * bench.effort.window
    with _registry(bench, 1) as manager, SessionReader(manager.name) as reader:

        async def watch() -> None:
            async for _ in AsyncChanges(Watch(reader, since=0, latency=0.01), seconds):
                pass

        for _ in range(bench.effort.rounds):
            yield {
                IDLE: _share(lambda: list(reader.changes(timeout=seconds))),
                LOOPED: _share(lambda: asyncio.run(watch())),
            }


def _share(work: Callable[[], object]) -> float:
    before = time.thread_time()
    taken = _timed(work)
    return (time.thread_time() - before) / taken


def beside(bench: Bench) -> Iterator[dict[str, float]]:
    """Yield a writer's commits in a second of its processor time, alone and beside watchers."""
    cores = os.sched_getaffinity(0)
    own, *others = sorted(cores)
    with _registry(bench, WRITTEN) as manager, contextlib.ExitStack() as undo:
        undo.callback(os.sched_setaffinity, 0, cores)
        for _ in range(bench.effort.rounds):
            os.sched_setaffinity(0, {own})
            alone = _commits(manager, bench.effort.window)
            with contextlib.ExitStack() as stack:
                os.sched_setaffinity(0, others or {own})
                for _ in range(bench.effort.watchers):
                    stack.callback(Companion(WATCHER, manager.name).end)
                os.sched_setaffinity(0, {own})
                yield {ALONE: alone, BESIDE: _commits(manager, bench.effort.window)}


def _commits(manager: SessionManager, seconds: float) -> float:
    ids = list(manager)[:CHANGED]
    made, begun, used = 0, time.perf_counter(), time.thread_time()
    while time.perf_counter() - begun < seconds:
        for session in ids:
            manager.update_session(session)
        made += len(ids)
    return made / (time.thread_time() - used)
