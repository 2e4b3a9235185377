"""What changes through the service cost, beside an echo of the same bytes, in one run.

    python benchmarks/service.py [--rounds N] [--trips N] [--owners N] [--json]

Every case runs once a round, one after the other, so that a slow moment of the machine meets
all of them; a figure is the median of the rounds. Service, echo and clients are processes, and
the reader's companions are: on fewer than two idle processors the figures say little.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import UNSET

from jidoka_shm import AsyncSessionClient, SessionClient, SessionReader, SessionStatus
from jidoka_shm.calls import to_update
from jidoka_shm.errors import SessionNotFound
from jidoka_shm.protocol import encode

if TYPE_CHECKING:
    import uuid
    from collections.abc import Iterator
    from typing import Self

METADATA = {"project": "my-project", "user": "ann", "n": 3}
STATUSES = (SessionStatus.ACTIVE, SessionStatus.IDLE)
MANY = 64
PIPELINED = 1_000
TASKS = 100
LISTED = 1_000

SERVICE = """
import sys
from jidoka_shm import SessionManager
manager = SessionManager(sys.argv[1], listen=True, fresh=True)
print("up", flush=True)
sys.stdin.read()
manager.unlink()
"""

ECHO = """
import asyncio, sys

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

async def serve():
    await asyncio.get_running_loop().create_unix_server(Echo, sys.argv[1])
    print("up", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(serve())
"""

#: Commits at full speed, and stops when told to: to the registry that is read, or to another one.
WRITER = """
import sys, threading
from jidoka_shm import SessionManager

manager = SessionManager(sys.argv[1], listen=True, fresh=True)
sessions = [manager.create_session({"n": n}) for n in range(int(sys.argv[2]))]
print("up", flush=True)
ended = threading.Event()
def wait():
    sys.stdin.read()
    ended.set()
threading.Thread(target=wait).start()
if sys.argv[3] == "run":
    version = manager.version
    while not ended.is_set():
        for session_id in sessions:
            manager.update_session(session_id)
    print(manager.version - version, flush=True)
ended.wait()
manager.unlink()
"""


class Process:
    """A Python process that works until its input ends."""

    def __init__(self, code: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[1:])},
        )
        assert self._process.stdout  # noqa: S101 - a pipe was asked for
        if self._process.stdout.readline() != "up\n":
            sys.exit("a process of the benchmark did not start")

    def end(self) -> str:
        """End it and return what else it printed."""
        return self._process.communicate()[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self.end()


class Bench:
    """A service, an echo and one client of each."""

    def __init__(self, folder: str, stack: ExitStack, trips: int) -> None:
        self.trips = trips
        self.name = f"service-{os.getpid()}"
        stack.enter_context(Process(SERVICE, self.name))
        self.client = stack.enter_context(SessionClient(self.name))
        self.session = self.client.create_session(METADATA)
        path = str(Path(folder) / "echo")
        stack.enter_context(Process(ECHO, path))
        self.socket = stack.enter_context(socket.socket(socket.AF_UNIX))
        self.socket.connect(path)
        self._runner = stack.enter_context(asyncio.Runner())
        self._awaited = AsyncSessionClient(self.name)
        self._runner.run(self._awaited.__aenter__())
        stack.callback(self._awaited.close)
        unset = (UNSET,) * 4
        self.bytes = encode(to_update(self.session, STATUSES[0], *unset, None).request)

    def echoes(self) -> float:
        """Return the nanoseconds of one echo."""
        send, receive, data = self.socket.sendall, self.socket.recv, self.bytes
        begun = time.perf_counter_ns()
        for _ in range(self.trips):
            send(data)
            receive(4096)
        return (time.perf_counter_ns() - begun) / self.trips

    def updates(self) -> float:
        """Return the nanoseconds of one update."""
        update, session = self.client.update_session, self.session
        begun = time.perf_counter_ns()
        for at in range(self.trips):
            update(session, STATUSES[at % 2])
        return (time.perf_counter_ns() - begun) / self.trips

    def pipelined(self) -> float:
        """Return the nanoseconds of one update of many in a pipeline, asking for it included."""
        begun = time.perf_counter_ns()
        with self.client.pipeline() as changes:
            for at in range(PIPELINED):
                changes.update_session(self.session, STATUSES[at % 2])
        return (time.perf_counter_ns() - begun) / PIPELINED

    def awaited(self) -> float:
        """Return the nanoseconds of one update that is awaited."""
        begun = time.perf_counter_ns()
        self._runner.run(self._update(self.session, self.trips))
        return (time.perf_counter_ns() - begun) / self.trips

    def tasks(self) -> float:
        """Return the nanoseconds of one update, of many tasks at once."""
        each = max(self.trips // TASKS, 1)

        async def main() -> None:
            await asyncio.gather(*[self._update(self.session, each) for _ in range(TASKS)])

        begun = time.perf_counter_ns()
        self._runner.run(main())
        return (time.perf_counter_ns() - begun) / (TASKS * each)

    async def _update(self, session: uuid.UUID, count: int) -> None:
        for at in range(count):
            await self._awaited.update_session(session, STATUSES[at % 2])


class Many:
    """Many clients, each a process that updates a session of its own when it is told to."""

    def __init__(self, name: str, trips: int) -> None:
        self._trips = trips
        self._lines: list[socket.socket] = []
        self._pids: list[int] = []
        for _ in range(MANY):
            ours, theirs = socket.socketpair()
            self._lines.append(ours)
            pid = os.fork()
            if not pid:
                try:
                    self._work(name, theirs)
                finally:
                    os._exit(0)
            theirs.close()
            self._pids.append(pid)

    def _work(self, name: str, line: socket.socket) -> None:
        for other in self._lines:
            other.close()
        with SessionClient(name, timeout=60) as client:
            session = client.create_session(METADATA)
            line.send(b"r")
            while line.recv(1):
                for at in range(self._trips):
                    client.update_session(session, STATUSES[at % 2])
                line.send(b"d")
            client.terminate_session(session)

    def updates(self) -> float:
        """Return the nanoseconds of one update, of all at once."""
        begun = time.perf_counter_ns()
        for line in self._lines:
            line.send(b"g")
        self.await_each()
        return (time.perf_counter_ns() - begun) / (MANY * self._trips)

    def await_each(self) -> None:
        """Wait for a word of each."""
        for line in self._lines:
            if not line.recv(1):
                sys.exit("a client of the benchmark has ended")

    def __enter__(self) -> Self:
        self.await_each()
        return self

    def __exit__(self, *exc_info: object) -> None:
        for line in self._lines:
            line.close()
        for pid in self._pids:
            os.waitpid(pid, 0)


# ---------------------------------------------------------------------------- owners


def owners_death(client: SessionClient) -> float:
    """Return the milliseconds from an owner's death to a reader's sight of it."""
    pid = os.fork()
    if not pid:
        signal.pause()
        os._exit(0)
    session = client.create_session(METADATA, pid=pid)
    begun = time.perf_counter_ns()
    os.kill(pid, signal.SIGKILL)
    limit = begun + 2 * 10**9
    while not _is_terminated(client, session) and time.perf_counter_ns() < limit:
        pass
    ended = time.perf_counter_ns()
    os.waitpid(pid, 0)
    return (ended - begun) / 1e6


def _is_terminated(reader: SessionReader, session: uuid.UUID) -> bool:
    try:
        return reader.get_session_status(session) is SessionStatus.TERMINATED
    except SessionNotFound:
        return True


# ---------------------------------------------------------------------------- readers


def reading(seconds: float, *, cache_size: int, beside: str) -> tuple[float, float]:
    """Return a reader's look-ups a second, and how many of them met a commit, as a share.

    Args:
        seconds: for how long.
        cache_size: the reader's.
        beside: "same" for a service that commits to what is read, "other" for one that commits to
            another registry, which takes as much of the machine.
    """
    name = f"service-{os.getpid()}-read"
    with ExitStack() as stack:
        if beside == "same":
            writer = stack.enter_context(Process(WRITER, name, LISTED, "run"))
        else:
            stack.enter_context(Process(WRITER, name, LISTED, "rest"))
            writer = stack.enter_context(Process(WRITER, f"{name}-other", LISTED, "run"))
        reader = stack.enter_context(SessionReader(name, cache_size=cache_size))
        ids, look_ups = list(reader), 0
        look_up = reader.get_session_info
        begun = time.perf_counter()
        while time.perf_counter() - begun < seconds:
            for session in ids:
                look_up(session)
            look_ups += len(ids)
        taken = time.perf_counter() - begun
        share = reader.stats().retries / look_ups
        writer.end()
        return look_ups / taken, share


# ---------------------------------------------------------------------------- the report


def measure(options: argparse.Namespace) -> dict[str, float]:
    """Return the median of each case: nanoseconds, milliseconds, look-ups a second, shares."""
    found: dict[str, list[float]] = {}

    def note(case: str, value: float) -> None:
        found.setdefault(case, []).append(value)

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        bench = Bench(folder, stack, options.trips)
        many = stack.enter_context(Many(bench.name, max(options.trips // MANY, 1)))
        for _ in range(options.rounds):
            note("echo", bench.echoes())
            note("update", bench.updates())
            note("pipelined", bench.pipelined())
            note("awaited", bench.awaited())
            note("tasks", bench.tasks())
            note("many", many.updates())
        deaths = sorted(owners_death(bench.client) for _ in range(options.owners))
    for _ in range(options.rounds):
        for case, cache_size in (("kept", 65_536), ("fresh", 0)):
            for beside in ("same", "other"):
                rate, share = reading(options.seconds, cache_size=cache_size, beside=beside)
                note(f"{case}, {beside}", rate)
                note(f"{case}, {beside}, retries", share)
    medians = {case: statistics.median(values) for case, values in found.items()}
    return medians | {
        "death": statistics.median(deaths),
        "death, p99": deaths[min(len(deaths) * 99 // 100, len(deaths) - 1)],
    }


def report(found: dict[str, float]) -> Iterator[str]:
    """Yield the lines that say what was measured."""
    echo, update = found["echo"], found["update"]
    pipelined, many = found["pipelined"], found["many"]
    yield f"{'echo of the same bytes':44} {echo / 1000:8.1f} us"
    yield f"{'update_session':44} {update / echo:8.3f} x echo (goal 1.5)"
    yield f"{f'pipeline of {PIPELINED:,} updates, each':44} {pipelined / update:8.3f} x (goal 0.25)"
    awaited, tasks = found["awaited"], found["tasks"]
    yield f"{'await update_session':44} {awaited / echo:8.3f} x echo"
    yield f"{f'{TASKS} tasks at once, each update':44} {tasks / pipelined:8.3f} x pipeline's"
    yield f"{f'{MANY} clients, changes a second':44} {1e9 / many:8,.0f}"
    text = "the same / those of one that pipelines"
    yield f"{text:44} {pipelined / many:8.3f} (goal 0.2, or more)"
    yield f"{'death of an owner, until it is seen: median':44} {found['death']:8.2f} ms"
    yield f"{'the same, p99':44} {found['death, p99']:8.2f} ms (goal 20)"
    for case in ("fresh", "kept"):
        same, other = found[f"{case}, same"], found[f"{case}, other"]
        text = f"{case} look-ups beside commits / beside others'"
        yield f"{text:44} {same / other:8.3f} (goal 0.6, or more)"
        yield f"{'of them met a commit':44} {found[f'{case}, same, retries']:8.3%} (goal 5%)"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trips", type=int, default=2_000, help="round trips a round")
    parser.add_argument("--owners", type=int, default=200, help="owners that die")
    parser.add_argument("--seconds", type=float, default=0.5, help="of reading, a case and round")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors")
    for line in report(found):
        print(line)


if __name__ == "__main__":
    main()
