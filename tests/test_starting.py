"""``start=True``: a service is started where no writer lives, once, and on its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from host import exit_code, forked, processes_of, run_script
from support import taking_less_than, wait_until

from jidoka_shm import (
    SessionClient,
    SessionManager,
    SessionReader,
    WriterUnavailable,
    starting,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: How long a call that fails at once may take, in seconds: less than any timeout here.
AT_ONCE = 3.0

#: A service in the command's place, for the tests of how it is started. Its one session says how
#: its process is.
SERVICE = """
import os, signal, sys
from jidoka_shm import SessionManager, WriterAlreadyRunning
facts = {
    "parent": os.getppid(), "session": os.getsid(0), "folder": os.getcwd(), "pid": os.getpid(),
    "stdio": [os.readlink(f"/proc/self/fd/{fd}") for fd in range(3)],
    "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "open": [os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
             if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}")],
}
# Before there is a thread, so that none takes it; one that comes early waits for sigwait.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
try:
    manager = SessionManager(sys.argv[1], capacity=64, listen=True)
except WriterAlreadyRunning:
    sys.exit(1)
if not len(manager):
    manager.create_session(facts)
signal.sigwait({signal.SIGTERM})
manager.close()
"""


def writer_of(name: str) -> int | None:
    """Return the pid of a registry's writer, where it lives."""
    with SessionReader(name, timeout=0) as reader:
        writer = reader._view.control.writer()
        return writer.pid if writer is not None and reader.writer_alive else None


def stop(name: str) -> None:
    """End a registry's writer, which is no child of this process."""
    with suppress(FileNotFoundError):
        pid = writer_of(name)
        if pid is not None:
            os.kill(pid, signal.SIGTERM)
            wait_until(lambda: writer_of(name) is None)


@pytest.fixture
def _stopped(name: str) -> Iterator[None]:
    """End the service of a test and remove its registry."""
    yield
    stop(name)
    with SessionManager(name, wait=60) as manager:
        manager.unlink()


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch, _stopped: None) -> None:
    """Start the service above in the command's place."""
    monkeypatch.setattr(starting, "_SERVE", ("-c", SERVICE))


@pytest.mark.usefixtures("_stand_in")
def test_a_service_is_started_where_there_is_no_registry(name: str) -> None:
    """In a session of its own, and nobody's child that would have to be waited for."""
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)  # noqa: FBT003 - as os has it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    try:
        client = SessionClient(name, timeout=60, start=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(write_end)
    with client:
        wait_until(lambda: len(client) == 1)
        (session,) = client.values()
        facts = session.metadata
        assert facts["pid"] == writer_of(name)
        assert os.getpid() != facts["parent"]
        assert facts["session"] not in {os.getsid(0), facts["pid"]}
        assert facts["folder"] == "/"
        assert facts["stdio"] == ["/dev/null"] * 3
        assert (facts["blocked"], facts["open"]) == (0, [])
        client.create_session()
    os.close(read_end)


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize("end", ["killed", "closed"])
def test_a_service_is_started_where_the_writer_is_dead(name: str, end: str) -> None:
    def write() -> None:
        manager = SessionManager(name, capacity=64)
        manager.create_session(session_id="1" * 32)
        if end == "closed":
            manager.close()

    assert exit_code(forked(write)) == 0
    with SessionClient(name, timeout=60, start=True) as client:
        assert client.update_session("1" * 32, status="active").version > 1
        assert writer_of(name) not in {None, os.getpid()}


@pytest.mark.usefixtures("_stand_in")
def test_a_change_starts_the_next_one(name: str) -> None:
    with SessionClient(name, timeout=60, start=True) as client:
        wait_until(lambda: len(client) == 1)
        first = writer_of(name)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        sid = client.create_session()
        assert writer_of(name) not in {None, first}
        assert len(client) == 2
        with SessionClient(name, timeout=60) as other:
            stop(name)
            with pytest.raises(WriterUnavailable):
                other.update_session(sid)
        client.update_session(sid)


@pytest.mark.usefixtures("_stand_in")
def test_of_many_that_are_started_at_once_one_stays(name: str) -> None:
    clients: list[SessionClient] = []
    threads = [
        threading.Thread(target=lambda: clients.append(SessionClient(name, timeout=60, start=True)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(clients) == 6
    pid = writer_of(name)
    assert pid is not None
    for client in clients:
        client.create_session()
        client.close()
    # The others end by themselves, and leave the one that has the registry to it.
    wait_until(lambda: processes_of(name) == {pid})
    assert writer_of(name) == pid


@pytest.fixture
def dashed(name: str) -> Iterator[str]:
    """A name that begins as an option does."""
    dashed = f"-{name}"
    yield dashed
    stop(dashed)
    with SessionManager(dashed, wait=60) as manager:
        manager.unlink()


def test_a_living_writer_is_left_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    monkeypatch.setattr(starting, "start", started.append)
    with SessionManager(name, listen=True) as manager:
        with SessionClient(name, timeout=60, start=True) as client:
            client.create_session()
        manager.unlink()
    with SessionManager(name) as manager:
        with pytest.raises(WriterUnavailable, match="listen=True"):
            SessionClient(name, timeout=60, start=True)
        manager.unlink()
    assert started == []


def test_a_service_that_does_not_come_is_given_up(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starting, "_SERVE", ("-c", ""))
    with SessionManager(name) as manager:
        manager.create_session()
    with pytest.raises(WriterUnavailable) as caught:
        SessionClient(name, timeout=0.3, start=True)
    assert f"`jidoka-shm serve {name}` was started and does not answer" in str(caught.value)
    with SessionManager(name) as manager:
        manager.unlink()


def test_a_service_that_makes_no_registry_is_given_up(
    dashed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No registry is no reason: that one could not be started is."""
    monkeypatch.setattr(starting, "_SERVE", ("-c", ""))
    with taking_less_than(AT_ONCE), pytest.raises(WriterUnavailable) as caught:
        SessionClient(dashed, timeout=0.3, start=True)
    assert f"`jidoka-shm serve -- {dashed}` was started and does not answer" in str(caught.value)


#: One that makes a registry, cannot serve it, and undoes that.
UNDOING = """
import os, sys
from jidoka_shm import SessionManager
manager = SessionManager(sys.argv[1], capacity=64)
manager._own.control.publish_socket("/nowhere/at/all")
with open(sys.argv[2], "rb") as attached:
    attached.read(1)
manager.unlink()
"""


def test_a_service_that_undoes_its_registry_is_given_up(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As where its directory is another user's."""
    fifo = tmp_path / "attached"
    os.mkfifo(fifo)
    code = UNDOING.replace("sys.argv[2]", repr(str(fifo)))
    monkeypatch.setattr(starting, "_SERVE", ("-c", code))
    waits = SessionClient._await_service

    def wait(client: SessionClient, deadline: float, *, started: bool) -> None:
        with fifo.open("wb"):
            pass
        waits(client, deadline, started=started)

    monkeypatch.setattr(SessionClient, "_await_service", wait)
    with pytest.raises(WriterUnavailable, match="was started and does not answer"):
        SessionClient(name, timeout=60, start=True)


def test_a_service_that_ends_is_started_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no registry, and where it left one without a writer."""
    started: list[str] = []

    def start(which: str, _: float) -> None:
        started.append(which)
        SessionManager(which).close()

    monkeypatch.setattr(starting, "start", start)
    for count in (1, 2):
        with pytest.raises(WriterUnavailable, match="was started and does not answer"):
            SessionClient(name, timeout=0.3, start=True)
        assert started == [name] * count
    SessionManager(name).unlink()


def test_what_starts_it_is_waited_for_no_longer_than_timeout(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(slow))
    with taking_less_than(AT_ONCE), pytest.raises(WriterUnavailable) as caught:
        SessionClient(name, timeout=0.2, start=True)
    assert caught.value.reason == f"its service cannot be started: {slow} did not do it in time"


def test_looking_for_the_extra_loads_nothing_of_it() -> None:
    code = """
        import sys
        from jidoka_shm import starting
        starting._check_extra("n")
        print({"click", "rich"} & set(sys.modules))
    """
    assert run_script(code) == "set()\n"


@pytest.mark.parametrize("library", ["click", "rich"])
def test_without_the_extra_it_says_what_to_install(
    name: str, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(WriterUnavailable) as caught:
        SessionClient(name, start=True)
    assert f"start=True needs {library}: pip install 'jidoka-shm[cli]'" in str(caught.value)


@pytest.mark.parametrize("executable", ["/nowhere/at/all", "/bin/false"])
def test_what_cannot_be_run_is_said(
    name: str, monkeypatch: pytest.MonkeyPatch, executable: str
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(WriterUnavailable, match="cannot be started") as caught:
        SessionClient(name, start=True)
    assert executable in str(caught.value)
    # And not the whole of what was run.
    assert len(str(caught.value)) < 300


def test_a_name_may_begin_with_a_dash(dashed: str) -> None:
    with SessionClient(dashed, timeout=60, start=True) as client:
        assert client.create_session({"a": 1}) in client


def test_a_service_has_nothing_to_say_to_its_starters_service_manager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {"NOTIFY_SOCKET": "@of-the-starter", "LISTEN_FDNAMES": "http"}
    said |= dict.fromkeys(["WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_PID", "LISTEN_FDS"], "1")
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("KEPT", "as it is")
    environment = starting._environment()
    assert environment["KEPT"] == "as it is"
    assert not environment.keys() & said.keys()


@pytest.mark.usefixtures("_stopped")
def test_the_command_is_what_is_started(name: str) -> None:
    code = """
        import sys
        from jidoka_shm import SessionClient
        with SessionClient(sys.argv[1], timeout=60, start=True) as client:
            print(client.create_session({"a": 1}))
    """
    sid = run_script(code, name).strip()
    with SessionClient(name, timeout=60) as client:
        assert client.update_session(sid, status="active").metadata == {"a": 1}


def test_places_to_import_from_are_given_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "a:/b::.")
    here = os.getcwd()  # noqa: PTH109 - text
    assert starting._environment()["PYTHONPATH"] == f"{here}/a:/b:{here}"
    monkeypatch.delenv("PYTHONPATH")
    assert "PYTHONPATH" not in starting._environment()
