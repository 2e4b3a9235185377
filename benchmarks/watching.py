"""What watching costs: a change among many sessions, an idle watcher, and what a writer loses.

    python benchmarks/watching.py [--sessions N] [--rounds N] [--seconds S] [--watchers N]

A look after one change is compared with a list of all sessions by a reader that has none; the
commits of a writer at full speed beside watchers with those of the same writer alone, the two
taking turns. The watchers have other cores than the writer, and its commits are counted by its own
processor time: what is left is what their loads cost its stores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from jidoka_shm import SessionManager, SessionReader
from jidoka_shm.asyncwatching import AsyncChanges
from jidoka_shm.watching import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NAME = f"bench-watching-{os.getpid()}"

WATCHER = """
import sys
from jidoka_shm import SessionReader
changes = SessionReader(sys.argv[1]).changes()
print("ready", flush=True)
for change in changes:
    pass
"""

WRITER = """
import sys
from jidoka_shm import SessionManager
with SessionManager(sys.argv[1], fresh=True) as manager:
    print("ready", flush=True)
    sys.stdin.readline()
    manager.unlink()
"""


def timed(work: Callable[[], object]) -> float:
    """Return how long ``work`` takes, in seconds."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def one_change(sessions: int, rounds: int) -> tuple[float, float]:
    """Return a look after one change, and the first look, as parts of one list of all."""
    looks, begins, lists = [], [], []
    with SessionManager(NAME, capacity=sessions, fresh=True) as manager:
        ids = [manager.create_session({"n": n, "project": "p"}) for n in range(sessions)]
        with SessionReader(NAME) as reader:
            changes = reader.changes(timeout=0)
            for _ in changes:
                pass
            for turn in range(rounds):
                with SessionReader(NAME) as fresh:
                    lists.append(timed(fresh.list_sessions))
                with SessionReader(NAME) as fresh:
                    begins.append(timed(fresh.changes))
                manager.update_session(ids[turn])
                looks.append(timed(lambda: list(changes)))
        manager.unlink()
    whole = statistics.median(lists)
    return statistics.median(looks) / whole, statistics.median(begins) / whole


def share(work: Callable[[], object]) -> float:
    """Return which part of a core ``work`` takes."""
    before = time.process_time()
    wall = timed(work)
    return (time.process_time() - before) / wall


def idle(seconds: float) -> tuple[float, float]:
    """Return which part of a core an idle watcher takes: blocking, and in an asyncio loop."""
    with process(WRITER, NAME), SessionReader(NAME) as reader:
        blocking = share(lambda: list(reader.changes(timeout=seconds)))

        async def watch() -> None:
            async for _ in AsyncChanges(Watch(reader, since=0, latency=0.01), seconds):
                pass

        return blocking, share(lambda: asyncio.run(watch()))


@contextlib.contextmanager
def process(code: str, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run code in a process of its own, from when it is ready on."""
    with subprocess.Popen(
        [sys.executable, "-c", code, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as started:
        assert started.stdout  # noqa: S101 - it is a pipe
        started.stdout.readline()
        try:
            yield started
        finally:
            assert started.stdin  # noqa: S101 - as above
            with contextlib.suppress(BrokenPipeError):
                started.stdin.write(b"\n")
                started.stdin.flush()
            if code is WATCHER:
                started.send_signal(signal.SIGKILL)


def commits(manager: SessionManager, seconds: float) -> float:
    """Return how many commits a writer at full speed makes in a second of its processor time."""
    ids = list(manager)[:100]
    count, begin, used = 0, time.perf_counter(), time.thread_time()
    while time.perf_counter() - begin < seconds:
        for sid in ids:
            manager.update_session(sid)
        count += len(ids)
    return count / (time.thread_time() - used)


def beside(watchers: int, rounds: int, seconds: float) -> float:
    """Return a writer's commits beside watchers, as a part of those without."""
    ratios = []
    own, *others = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {own})
    with SessionManager(NAME, capacity=16_384, fresh=True) as manager:
        for n in range(1000):
            manager.create_session({"n": n})
        for _ in range(rounds):
            alone = commits(manager, seconds)
            with contextlib.ExitStack() as stack:
                for _ in range(watchers):
                    started = stack.enter_context(process(WATCHER, NAME))
                    os.sched_setaffinity(started.pid, others or {own})
                ratios.append(commits(manager, seconds) / alone)
        manager.unlink()
    return statistics.median(ratios)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--watchers", type=int, default=8)
    options = parser.parse_args()
    look, begin = one_change(options.sessions, options.rounds)
    print(f"one change among {options.sessions:,} sessions, of a list of them: {look:.3f}")
    print(f"the first look at {options.sessions:,} sessions, of a list of them: {begin:.2f}")
    blocking, looped = idle(options.seconds)
    print(f"an idle watcher, of a core: {blocking:.2%}; in an asyncio loop: {looped:.2%}")
    ratio = beside(options.watchers, options.rounds, options.seconds)
    print(f"commits beside {options.watchers} watchers, of those alone: {ratio:.2f}")


if __name__ == "__main__":
    main()
