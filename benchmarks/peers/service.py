"""jidoka_shm as a service: a manager in a process of its own, and clients of it.

A row of another kind of client is a class here, beside ``Service``, that is named in
``peers.OWN``, and its name in the rows of suites/write.py and suites/service.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, ClassVar

from benchmarks import records
from benchmarks.companion import Companion
from jidoka_shm import AsyncSessionClient, SessionClient, SessionNotFound, SessionStatus

from .base import Peer
from .own import CAPACITY

if TYPE_CHECKING:
    import uuid
    from uuid import UUID

SERVICE = """
import sys
from jidoka_shm import SessionManager
manager = SessionManager(sys.argv[1], capacity=int(sys.argv[2]), listen=True, fresh=True)
print("up", flush=True)
sys.stdin.read()
manager.unlink()
"""
CLIENTS = 64
TASKS = 100
#: How long an owner's death may take to be seen before the run is given up.
PATIENCE = 10.0


class Service(Peer):
    """A service, and one client."""

    name: ClassVar[str] = "jidoka_shm service"

    _process: Companion | None = None

    @property
    def registry(self) -> str:
        """The registry's name."""
        return f"bench-{self.place.parent.name}-{self.place.name}"

    def make(self) -> None:
        """Start the service; it holds as many again as are created to be measured."""
        capacity = max(2 * len(self.ids), CAPACITY)
        self._process = Companion(SERVICE, self.registry, capacity)
        with SessionClient(self.registry, timeout=60) as client, client.pipeline() as changes:
            for key in self.ids:
                changes.create_session(records.METADATA, records.LLM_CONFIG, session_id=key)
                changes.update_session(key, records.STATUSES[0])

    def attach(self) -> None:
        """Connect a client."""
        self.client = SessionClient(self.registry, timeout=60)

    def close(self) -> None:
        """Close the client, and end the service in the process that started it."""
        if hasattr(self, "client"):
            self.client.close()
        if self._process is not None:
            self._process.end()

    def _status(self, keys: list[UUID]) -> str:
        first = self.client.get_session_status(keys[0])
        return records.STATUSES[first == records.STATUSES[0]]

    def update(self, keys: list[UUID]) -> None:
        """Ask for each update."""
        update, status = self.client.update_session, self._status(keys)
        for key in keys:
            update(key, status)

    def update_pipelined(self, keys: list[UUID]) -> None:
        """Ask for all in a pipeline."""
        status = self._status(keys)
        with self.client.pipeline() as changes:
            for key in keys:
                changes.update_session(key, status)

    def create(self, keys: list[UUID]) -> None:
        """Ask for new sessions."""
        create = self.client.create_session
        self._new = [create(records.METADATA, records.LLM_CONFIG) for _ in keys]

    def create_pipelined(self, keys: list[UUID]) -> None:
        """Ask for all in a pipeline."""
        with self.client.pipeline() as changes:
            create = changes.create_session
            self._new = [create(records.METADATA, records.LLM_CONFIG) for _ in keys]

    def after_create(self) -> None:
        """End what was created, and wait until its slots are free."""
        with self.client.pipeline() as changes:
            for key in self._new:
                changes.terminate_session(key)
        self.after_terminate()

    after_create_pipelined = after_create
    before_terminate = before_terminate_pipelined = create_pipelined

    def terminate(self, keys: list[UUID]) -> None:
        """Ask for each end."""
        del keys
        terminate = self.client.terminate_session
        for key in self._new:
            terminate(key)

    def terminate_pipelined(self, keys: list[UUID]) -> None:
        """Ask for all in a pipeline."""
        del keys
        with self.client.pipeline() as changes:
            for key in self._new:
                changes.terminate_session(key)

    def after_terminate(self) -> None:
        """Wait until what was terminated is gone."""
        deadline = time.monotonic() + PATIENCE
        while len(self.client) > len(self.ids) and time.monotonic() < deadline:
            time.sleep(0.005)

    after_terminate_pipelined = after_terminate

    def death(self, keys: list[UUID]) -> list[int]:
        """Return the nanoseconds from each owner's death to a reader's sight of it."""
        return [self._death() for _ in keys]

    def _death(self) -> int:
        pid = os.fork()
        if not pid:
            signal.pause()
            os._exit(0)
        session = self.client.create_session(records.METADATA, pid=pid)
        begun = time.perf_counter_ns()
        os.kill(pid, signal.SIGKILL)
        limit = begun + int(PATIENCE * 1e9)
        while not self._is_terminated(session) and time.perf_counter_ns() < limit:
            pass
        ended = time.perf_counter_ns()
        os.waitpid(pid, 0)
        return ended - begun

    def _is_terminated(self, session: uuid.UUID) -> bool:
        try:
            return self.client.get_session_status(session) is SessionStatus.TERMINATED
        except SessionNotFound:
            return True


class Async(Service):
    """A service, and a client of an asyncio loop."""

    name: ClassVar[str] = "jidoka_shm async"
    shared: ClassVar[bool] = False

    def attach(self) -> None:
        """Connect it, in a loop that is kept."""
        super().attach()
        self._runner = asyncio.Runner()
        self._awaited = AsyncSessionClient(self.registry, timeout=60)
        self._runner.run(self._awaited.__aenter__())

    def close(self) -> None:
        """Close it and the loop, and the service."""
        if hasattr(self, "_runner"):
            self._awaited.close()
            self._runner.close()
        super().close()

    async def _update(self, keys: list[UUID], status: str) -> None:
        for key in keys:
            await self._awaited.update_session(key, status)

    def update(self, keys: list[UUID]) -> None:
        """Await each update."""
        self._runner.run(self._update(keys, self._status(keys)))

    def update_by_tasks(self, keys: list[UUID]) -> None:
        """Await all in many tasks at once."""
        status = self._status(keys)

        async def main() -> None:
            parts = (keys[at::TASKS] for at in range(min(TASKS, len(keys))))
            await asyncio.gather(*(self._update(part, status) for part in parts))

        self._runner.run(main())


class Crowd(Service):
    """A service, and many clients: each a process that updates a session of its own when told."""

    name: ClassVar[str] = "jidoka_shm 64 clients"
    shared: ClassVar[bool] = False

    def attach(self) -> None:
        """Start the clients, and wait until each has its session."""
        super().attach()
        self._lines: list[socket.socket] = []
        self._pids: list[int] = []
        for _ in range(CLIENTS):
            self._start()
        self._await_each()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        self._lines.append(ours)
        pid = os.fork()
        if not pid:
            try:
                for other in self._lines:
                    other.close()
                self._work(theirs)
            finally:
                os._exit(0)
        theirs.close()
        self._pids.append(pid)

    def _work(self, line: socket.socket) -> None:
        with SessionClient(self.registry, timeout=60) as client:
            session = client.create_session(records.METADATA)
            line.sendall(b"r")
            while told := line.recv(8):
                for at in range(int.from_bytes(told)):
                    client.update_session(session, records.STATUSES[at % 2])
                line.sendall(b"d")
            client.terminate_session(session)

    def _await_each(self) -> None:
        for line in self._lines:
            if not line.recv(1):
                msg = "a client of the benchmark has ended"
                raise RuntimeError(msg)

    def update_by_all(self, keys: list[UUID]) -> list[int]:
        """Have all of them update at once, together about as often as there are ids."""
        trips = max(len(keys) // CLIENTS, 1)
        begun = time.perf_counter_ns()
        for line in self._lines:
            line.sendall(trips.to_bytes(8))
        self._await_each()
        each = (time.perf_counter_ns() - begun) // (trips * CLIENTS)
        return [each] * len(keys)

    def close(self) -> None:
        """End the clients, and the service."""
        for line in self._lines:
            line.close()
        for pid in self._pids:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        super().close()
