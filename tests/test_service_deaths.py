"""The service is killed over and over, stopped, and started by many at once."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import signal
import socket
from collections import Counter
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final
from uuid import UUID

import msgspec
import pytest
from callers import FIGURES
from host import Script, exit_code, forked, stop
from support import wait_until

from jidoka_shm import SessionClient, SessionManager, SessionReader
from jidoka_shm.delivery import Delivery
from jidoka_shm.errors import VersionConflict, WriterUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from jidoka_shm import Session
    from jidoka_shm.connection import Connection

DEATHS: Final = 100
CLIENTS: Final = 8

#: Sessions that all clients change.
SHARED: Final = [UUID(int=at + 1) for at in range(3)]

#: Services that are ready to begin, so that a death is soon followed by a takeover.
READY: Final = 4

#: A service that begins at a word, or as soon as its predecessor is dead. Nothing is ever removed,
#: so that the table keeps all that was changed.
SERVICE: Final = """
import sys
from jidoka_shm import SessionManager
print("ready", flush=True)
wait = {"go": 0, "wait": 60}[input()]
manager = SessionManager(sys.argv[1], listen=True, cleanup_delay=3600, wait=wait)
recovery = manager.recovery
print(*(recovery.kept, len(recovery.dropped)) if recovery else (0, 0), flush=True)
sys.stdin.read()
"""


# ---------------------------------------------------------------------------- clients


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """What a client was told of one change.

    Attributes:
        key: which session.
        kind: create, update, compare (an update of one version only) or terminate.
        tag: what it writes; no other change writes the same.
        outcome: done, unknown, conflict, or refused where no writer was.
        version: the version that it made, where that was told.
    """

    key: UUID
    kind: str
    tag: int
    outcome: str
    version: int | None


class Changer:
    """A client that changes sessions of its own, and those that all change.

    Attributes:
        ledger: what it was told of each change.
        resent: how many requests it sent again.
    """

    def __init__(self, client: SessionClient, number: int) -> None:
        self.ledger: list[Entry] = []
        self.resent = 0
        self._client = client
        self._chance = random.Random(number)
        self._tags = itertools.count(number << 32)
        self._ids = itertools.count((number + 1) << 64)
        #: Its own session: the id, and the tag and version that it has; None where it has none.
        self._own: tuple[UUID, int, int] | None = None
        self._count_what_is_sent_again()

    def _count_what_is_sent_again(self) -> None:
        send_again = Delivery._send_again

        def counting(delivery: Delivery, connection: Connection) -> None:
            self.resent += 1
            send_again(delivery, connection)

        Delivery._send_again = counting

    def change(self) -> bool:
        """Make one change and return whether it was acknowledged."""
        if self._own is None:
            outcome = self._create()
        elif self._chance.random() < 0.4:
            outcome = self._change_shared()
        elif self._chance.random() < 0.1:
            outcome = self._end_own()
        else:
            outcome = self._change_own()
        return outcome == "done"

    def _create(self) -> str:
        key, tag = UUID(int=next(self._ids)), next(self._tags)
        outcome, _ = self._ask(
            "create", key, tag, lambda: self._client.create_session({"tag": tag}, session_id=key)
        )
        session = self._client.get(key)
        # Nobody else knows the id, so this is what the change came to, also where that is unknown.
        assert session is not None or outcome != "done"
        if session is not None:
            assert outcome in {"done", "unknown"}
            assert session.metadata == {"tag": tag}
            self._own = key, tag, session.version
        return outcome

    def _change_own(self) -> str:
        key, before, version = self._own
        tag = next(self._tags)
        compares = self._chance.random() < 0.5
        outcome, session = self._ask(
            "compare" if compares else "update",
            key,
            tag,
            lambda: self._client.update_session(
                key, metadata={"tag": tag}, expected_version=version if compares else None
            ),
        )
        # One that was made twice, or was made and then forgotten, does not find its version.
        assert outcome != "conflict"
        found = self._client[key]
        assert session is None or session == found
        made = found.version > version
        assert found.metadata == {"tag": tag if made else before}
        assert made or outcome != "done"
        assert not made or outcome != "refused"
        self._own = key, found.metadata["tag"], found.version
        return outcome

    def _end_own(self) -> str:
        key, before, _ = self._own
        tag = next(self._tags)
        outcome, _ = self._ask(
            "terminate", key, tag, lambda: self._client.terminate_session(key, error=str(tag))
        )
        found = self._client[key]
        assert found.metadata == {"tag": before}
        ended = found.error is not None
        assert found.error == (str(tag) if ended else None)
        assert ended or outcome != "done"
        assert not ended or outcome != "refused"
        if ended:
            self._own = None
        return outcome

    def _change_shared(self) -> str:
        key, tag = self._chance.choice(SHARED), next(self._tags)
        compares = self._chance.random() < 0.5
        version = self._client[key].version if compares else None
        return self._ask(
            "compare" if compares else "update",
            key,
            tag,
            lambda: self._client.update_session(
                key, metadata={"tag": tag}, expected_version=version
            ),
        )[0]

    def _ask(
        self, kind: str, key: UUID, tag: int, work: Callable[[], Session | UUID | None]
    ) -> tuple[str, Session | None]:
        """Make a change, write down what came of it, and return that, with the new session."""
        outcome, answer = "done", None
        try:
            answer = work()
        except VersionConflict:
            outcome = "conflict"
        except WriterUnavailable as error:
            outcome = "unknown" if error.outcome_unknown else "refused"
        session = None if isinstance(answer, UUID) else answer
        self.ledger.append(
            Entry(key, kind, tag, outcome, None if session is None else session.version)
        )
        return outcome, session


def _change_until_told(name: str, number: int, line: socket.socket, file: Path) -> None:
    """Change until the other end closes, and then until one more change is acknowledged."""
    # So that the next service gets a processor as soon as it wants one.
    os.nice(10)
    line.settimeout(0)
    with SessionClient(name, timeout=60) as client:
        changer = Changer(client, number)
        while True:
            done = changer.change()
            try:
                if done and not _tell(line):
                    break
            except BlockingIOError:
                pass
        while not changer.change():
            pass
    file.write_bytes(msgspec.msgpack.encode((changer.ledger, changer.resent)))


def _tell(line: socket.socket) -> bool:
    """Tell of a change, and return False where nobody listens any more."""
    try:
        line.send(b"c")
    except BrokenPipeError:
        return False
    return True


def _read_until_told(name: str, line: socket.socket) -> None:
    """Read all the time, and answer each word of the other end after one more round."""
    os.nice(10)
    line.settimeout(0)
    newest = dict.fromkeys(SHARED, (0, 0))
    with SessionReader(name) as reader:
        while True:
            try:
                word = line.recv(1)
                if not word:
                    return
            except BlockingIOError:
                word = b""
            for key in SHARED:
                session = reader[key]
                found = session.version, session.metadata["tag"]
                assert found == newest[key] or found[0] > newest[key][0], (found, newest[key])
                newest[key] = found
            if word:
                line.send(word)


# ---------------------------------------------------------------------------- deaths


class Services:
    """One service after the other, the next ones ready before they are needed."""

    def __init__(self, name: str, stack: ExitStack) -> None:
        self._name = name
        self._stack = stack
        self._ready = [self._start() for _ in range(READY)]

    def _start(self) -> Script:
        return self._stack.enter_context(Script(SERVICE, self._name))

    def begin(self, word: str) -> Script:
        """Have one begin, by itself at once or when the one before is dead."""
        service = self._ready.pop(0)
        self._ready.append(self._start())
        assert service.line() == "ready"
        service.say(word)
        return service


class Crew:
    """Clients and a reader, each a process with a line to this one."""

    def __init__(self, name: str, folder: Path) -> None:
        self.files = [folder / str(number) for number in range(CLIENTS)]
        self._lines: list[socket.socket] = []
        self._pids: list[int] = []
        for number, file in enumerate(self.files):
            self._start(lambda line, n=number, f=file: _change_until_told(name, n, line, f))
        self._start(lambda line: _read_until_told(name, line))

    def _start(self, work: Callable[[socket.socket], None]) -> None:
        ours, theirs = socket.socketpair()
        self._lines.append(ours)

        def child() -> None:
            for line in self._lines:
                line.close()
            work(theirs)

        self._pids.append(forked(child))
        theirs.close()

    def await_changes(self, count: int) -> None:
        """Wait until so many more changes were acknowledged, by whichever client."""
        for line in self._lines[:CLIENTS]:
            line.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while line.recv(1 << 16):
                    pass
            line.settimeout(None)
        while count > 0:
            for line in select.select(self._lines[:CLIENTS], (), ())[0]:
                told = len(line.recv(1 << 16))
                assert told, "a client has ended"
                count -= told

    def await_a_round_of_reads(self) -> None:
        """Wait until the reader has read each shared session once more."""
        self._lines[CLIENTS].send(b"r")
        assert self._lines[CLIENTS].recv(1) == b"r", "the reader has ended"

    def end(self) -> list[int]:
        """Have them end, and return their exit codes."""
        for line in self._lines:
            line.close()
        return [exit_code(pid) for pid in self._pids]


def _kill_over_and_over(name: str, crew: Crew, service: Script, services: Services) -> Counter[str]:
    """Kill ``DEATHS`` services at chance moments, and let the last one live."""
    chance = random.Random(1)
    seen: Counter[str] = Counter()
    with SessionReader(name) as reader:
        for _ in range(DEATHS):
            crew.await_changes(chance.randrange(150))
            at_once = chance.random() < 0.5
            heir = services.begin("wait") if at_once else None
            service.kill()
            if heir is None:
                # In the middle of a commit, which then has a version that may have come to nothing.
                seen["in a commit"] += reader.version is None
                crew.await_a_round_of_reads()
                assert reader.writer_alive is False
                heir = services.begin("go")
            else:
                seen["in a commit, perhaps"] += 1
            kept, dropped = map(int, heir.line().split())
            assert dropped == 0
            seen["recovered"] += kept
            service = heir
        return seen


def _check_sessions(ledger: list[Entry], reader: SessionReader) -> None:
    """See that each session is as its last acknowledged change left it, or an unknown one since."""
    entries: dict[UUID, list[Entry]] = {}
    for entry in ledger:
        entries.setdefault(entry.key, []).append(entry)
    for key, changes in entries.items():
        session = reader.get(key)
        acknowledged = [entry for entry in changes if entry.outcome == "done"]
        if session is None:
            assert not acknowledged
            continue
        versions = [entry.version for entry in acknowledged if entry.version is not None]
        assert len(set(versions)) == len(versions)
        by_tag = {entry.tag: entry for entry in changes}
        last = by_tag.get(session.metadata["tag"])
        assert key in SHARED or last is not None
        if last is not None and last.outcome == "done" and last.version is not None:
            assert last.version == max(versions)
            assert session.version == last.version or session.error is not None
        else:
            assert session.version >= max(versions, default=0)
        ends = [entry for entry in changes if entry.kind == "terminate"]
        assert all(entry.outcome != "done" for entry in ends) or session.error is not None


def test_a_service_may_be_killed_at_any_moment_under_its_clients(name: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        stack.callback(_unlink, name)
        services = Services(name, stack)
        service = services.begin("go")
        service.line()
        with SessionClient(name) as client:
            for key in SHARED:
                client.create_session({"tag": -1}, session_id=key)
            before = client.version
        reader = stack.enter_context(SessionReader(name))
        crew = Crew(name, tmp_path)
        codes: list[int] = []
        with ExitStack() as ending:
            ending.callback(lambda: codes.extend(crew.end()))
            seen = _kill_over_and_over(name, crew, service, services)
        assert codes == [0] * (CLIENTS + 1)
        ledger: list[Entry] = []
        resent = 0
        for file in crew.files:
            found, count = msgspec.msgpack.decode(file.read_bytes(), type=tuple[list[Entry], int])
            ledger += found
            resent += count
        _check_sessions(ledger, reader)
        outcomes = Counter(entry.outcome for entry in ledger)
        # Each takeover uses up one version, and what was cut short in a commit another one.
        made = reader.version - before - DEATHS
        spare = seen["in a commit"] + seen["in a commit, perhaps"]
        assert outcomes["done"] <= made <= outcomes["done"] + outcomes["unknown"] + spare
        assert resent
        FIGURES.append(
            f"{DEATHS} services killed under {CLIENTS} clients: {outcomes['done']:,} changes "
            f"acknowledged, {resent:,} sent again, {outcomes['unknown']:,} unknown, "
            f"{outcomes['refused']:,} refused, {made - outcomes['done']:,} made beyond those "
            f"acknowledged; {seen['recovered']:,} sessions recovered"
        )


def _unlink(name: str) -> None:
    with SessionManager(name) as manager:
        manager.unlink()


# ---------------------------------------------------------------------------- stopped, and raced for


def test_a_stopped_service_is_unavailable_for_the_timeout_and_then_goes_on(name: str) -> None:
    with ExitStack() as stack:
        stack.callback(_unlink, name)
        service = stack.enter_context(Script(SERVICE, name))
        assert service.line() == "ready"
        service.go()
        service.line()
        client = stack.enter_context(SessionClient(name, timeout=0.2))
        patient = stack.enter_context(SessionClient(name, timeout=60))
        sid = client.create_session({"tag": 0})
        stop(service.pid)
        with pytest.raises(WriterUnavailable) as caught:
            client.update_session(sid, metadata={"tag": 1})
        assert caught.value.outcome_unknown
        # Reads need no service; and one that is stopped is not dead.
        assert client[sid].metadata == patient[sid].metadata == {"tag": 0}
        assert client.writer_alive
        os.kill(service.pid, signal.SIGCONT)
        assert patient.update_session(sid, metadata={"tag": 2}).metadata == {"tag": 2}
        # The request that nobody waits for any more may be carried out before this one or after.
        wait_until(lambda: client[sid].metadata["tag"] in {1, 2})
        assert patient.update_session(sid, metadata={"tag": 3}).metadata == {"tag": 3}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(client, "_options", patient._options)
            assert client.update_session(sid, metadata={"tag": 4}).metadata == {"tag": 4}


RACER: Final = """
import sys
from jidoka_shm import SessionManager, WriterAlreadyRunning
print("ready", flush=True)
input()
try:
    manager = SessionManager(sys.argv[1], listen=True)
except WriterAlreadyRunning as error:
    print("lost to", error.pid, flush=True)
else:
    print("won", flush=True)
    sys.stdin.read()
    manager.unlink()
"""


def test_of_many_services_that_begin_at_once_one_serves(name: str) -> None:
    with ExitStack() as stack:
        stack.callback(_unlink, name)
        racers = [stack.enter_context(Script(RACER, name)) for _ in range(8)]
        for racer in racers:
            assert racer.line() == "ready"
        for racer in racers:
            racer.go()
        said = [racer.line() for racer in racers]
        assert said.count("won") == 1, said
        winner = racers.pop(said.index("won"))
        # One that looked before the winner had said who it is.
        assert {*said} <= {"won", f"lost to {winner.pid}", "lost to None"}
        for racer in racers:
            assert racer.end() == ""
        # What those who lost took along when they ended was theirs alone.
        with SessionClient(name) as client:
            assert client.update_session(client.create_session()).status == "initializing"
        winner.close_input()
        assert winner.end() == ""
