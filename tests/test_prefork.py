"""docs/prefork.md: its programs under the real servers, and what survives whose death."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import importlib
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import pytest
from supervised import LIMIT, ROOT, Place, Service
from support import wait_until

from jidoka_shm import SessionManager, SessionReader

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

PROGRAMS = ROOT / "docs" / "prefork"

PAGE = (ROOT / "docs" / "prefork.md").read_text(encoding="utf-8")

#: The command lines of the page, without what they say of this machine.
LINES = re.findall(r"(?m)^SESSIONS=agents (.*)$", PAGE)
GUNICORN, PRELOADED, UVICORN, IN_MASTER = LINES

#: The servers beside `jidoka-shm serve`, and those that are the writer themselves.
BESIDE = {
    "gunicorn": GUNICORN,
    "gunicorn --preload": PRELOADED,
    # Stopped by a test for a while, a worker is not to be replaced on a busy machine. But one that
    # is killed while its master waits for its health is missed for as long, and none takes its place
    # before: the master holds the other end of the pipe that it waits for, too.
    "uvicorn": f"{UVICORN} --timeout-worker-healthcheck {LIMIT / 3:.0f}",
}
WITHIN = {"gunicorn": IN_MASTER, "gunicorn --preload": f"{IN_MASTER} --preload"}


def _params(servers: dict[str, str]) -> list[Any]:
    """Return each server's command; one that is not installed is skipped, and says so."""
    return [
        pytest.param(
            line,
            id=name,
            marks=pytest.mark.skipif(
                importlib.util.find_spec(line.split()[0]) is None,
                reason=f"{line.split()[0]} is not installed: it is in the extra 'test'",
            ),
        )
        for name, line in servers.items()
    ]


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=LIMIT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Server:
    """A server with two workers."""

    def __init__(self, place: Place, line: str, name: str) -> None:
        self._path = place.path / "http"
        line = line.replace("/run/app/http.sock", str(self._path))
        words = shlex.split(line.replace("docs/prefork", str(PROGRAMS)))
        self._log = (place.path / "http.log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words],
            env=place.environment | {"SESSIONS": name},
            cwd=place.path,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            # Its workers must not outlive a test that fails.
            process_group=0,
        )
        try:
            wait_until(self._answers, LIMIT)
        except BaseException:
            self.close()
            raise

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        with contextlib.suppress(OSError, http.client.HTTPException):
            self.get(uuid4())
            return True
        return False

    def log(self) -> str:
        """Return what it and its workers printed."""
        return Path(self._log.name).read_text(encoding="utf-8")

    def ask(self, method: str, path: object = "", **body: object) -> tuple[int, dict[str, Any]]:
        """Return the status and the JSON of one request, on a connection of its own."""
        connection = _Connection(self._path)
        with contextlib.closing(connection):
            connection.request(method, f"/sessions/{path}", json.dumps(body) if body else None)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())

    def get(self, session_id: object) -> tuple[int, dict[str, Any]]:
        """Return what it says of a session."""
        return self.ask("GET", session_id)

    def end(self) -> None:
        """End it as its service manager does."""
        self.process.terminate()
        assert self.process.wait(LIMIT) == 0, self.log()

    def close(self) -> None:
        """Leave nothing of it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(LIMIT)
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@contextlib.contextmanager
def _stopped(pid: int) -> Iterator[None]:
    """Stop a process, so that another answers."""
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: _state(pid) == "T")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _state(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def _any_worker_answers_for_any_session(server: Server) -> str:
    """Create by one worker, change by the other, end by the first; return another session."""
    status, made = server.ask("POST", n=1)
    assert status == 200, server.log()
    sid, first = made["session_id"], made["worker"]
    with _stopped(first):
        _, found = server.get(sid)
        assert (found["status"], found["metadata"]) == ("initializing", {"n": 1})
        second = found["worker"]
        assert second != first
        status, changed = server.ask("PATCH", sid, status="active")
        assert (status, changed["worker"]) == (200, second)
    with _stopped(second):
        assert server.get(sid)[1]["status"] == "active"
        status, ended = server.ask("DELETE", sid)
        assert (status, ended["worker"]) == (200, first)
    return str(server.ask("POST", n=2)[1]["session_id"])


def _workers_are_killed(server: Server, kept: str) -> None:
    """Kill one worker, then the other; ``kept`` is a session of neither."""
    _, mine = server.ask("POST", n=1, mine=True)
    first, sid = mine["worker"], mine["session_id"]
    with _stopped(first):
        _, others = server.ask("POST", n=2, mine=True)
        second = others["worker"]
        assert second != first
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: server.get(sid)[1].get("status") != "initializing")
    status, ended = server.get(sid)
    # Visible for a while, with the reason, then gone.
    assert status == 404 or (
        ended["status"] == "terminated" and f"process {first}" in ended["error"]
    )
    assert server.get(others["session_id"])[1]["status"] == "initializing"

    os.kill(second, signal.SIGKILL)
    wait_until(lambda: _state(second) in {"Z", ""})
    # Only a worker that has taken a killed one's place can answer now.
    status, found = server.ask("PATCH", kept, metadata={"n": 3})
    assert (status, found["status"]) == (200, "initializing")
    assert found["worker"] not in {first, second}


@pytest.mark.parametrize("line", _params(BESIDE))
def test_a_server_beside_a_service(place: Place, registry: str, line: str) -> None:
    with (
        Service(place, registry, "--capacity", "64") as service,
        Server(place, line, registry) as server,
    ):
        kept = _any_worker_answers_for_any_session(server)
        _workers_are_killed(server, kept)

        # Without its writer: reads go on, changes are refused.
        service.kill()
        assert server.get(kept)[0] == 200
        status, refused = server.ask("PATCH", kept, status="active")
        assert (status, "no writer" in refused["error"]) == (503, True)

        # The same workers find the next one.
        with Service(place, registry) as successor:
            assert server.ask("PATCH", kept, status="active")[0] == 200
            assert successor.end()[0] == 0
        assert server.get(kept)[1]["status"] == "active"
        server.end()


@pytest.mark.parametrize("line", _params(WITHIN))
def test_the_writer_in_the_master(place: Place, registry: str, line: str) -> None:
    with Server(place, line, registry) as server, SessionReader(registry) as reader:
        kept = _any_worker_answers_for_any_session(server)
        _workers_are_killed(server, kept)
        assert reader.writer_alive
        server.end()
        assert not reader.writer_alive
        assert reader[kept].metadata == {"n": 3}
    # What its master left is the next one's.
    with Server(place, line, registry) as server:
        assert server.ask("PATCH", kept, status="active")[0] == 200
        server.end()


@pytest.fixture
def programs(registry: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Programs]:
    """The programs' modules, in this process, for a registry that is to be made."""
    monkeypatch.setenv("SESSIONS", registry)
    monkeypatch.syspath_prepend(PROGRAMS)
    names = ["answers", "wsgi_app", "asgi_app"]
    answers, wsgi, asgi = map(importlib.import_module, names)
    yield Programs(answers, wsgi, asgi)
    if answers.sessions.cache_info().currsize:
        answers.sessions().close()
    for name in names:
        del sys.modules[name]


class Programs(NamedTuple):
    """What is told over HTTP, without a server."""

    answers: Any
    wsgi: Any
    asgi: Any

    def answer(self, method: str, path: object = "", **body: object) -> int:
        """Return the status of an answer."""
        raw = json.dumps(body).encode() if body else b""
        status: int = self.answers.answer(method, f"/sessions/{path}", raw)[0]
        return status

    def ask_wsgi(self, method: str, body: bytes) -> str:
        """Return the status line that the WSGI app answers with."""
        lines: list[str] = []
        environ = {"REQUEST_METHOD": method, "PATH_INFO": "/sessions/"}
        environ |= {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}
        (text,) = self.wsgi.app(environ, lambda line, _: lines.append(line))
        assert json.loads(text)
        return lines[0]

    def ask_asgi(self, method: str, body: bytes) -> int:
        """Return the status that the ASGI app answers with."""
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"body": body}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": method, "path": "/sessions/"}
        asyncio.run(self.asgi.app(scope, receive, send))
        assert json.loads(sent[1]["body"])
        return int(sent[0]["status"])


@pytest.mark.usefixtures("place")
def test_each_error_has_its_status(programs: Programs, registry: str) -> None:
    assert programs.answer("GET", uuid4()) == 503
    with SessionManager(registry, capacity=1, grow=False, listen=True) as manager:
        sid = manager.create_session()
        assert programs.answer("GET", sid) == 200
        assert programs.answer("GET", uuid4()) == 404
        # A registry that is full is no fault of who asks.
        assert programs.answer("POST", n=1) == 507
        assert programs.answer("PATCH", sid, status="idle") == 409
        assert programs.answer("PATCH", sid, status="active", expected_version=9) == 409
        # Nor is one whose record outgrows it; but one that is longer than any may be is.
        assert programs.answer("PATCH", sid, metadata={"a": "x" * 999}) == 507
        long = {"metadata": {"a": "x" * (1 << 20)}}
        bad = [{"status": "gone"}, {"metadata": 5}, {"what": 1}, long]
        assert [programs.answer("PATCH", sid, **each) for each in bad] == [400] * len(bad)
        assert programs.answer("GET", "nonsense") == 400
        assert programs.answer("PUT", sid) == 400
    assert programs.answer("PATCH", sid, status="active") == 503
    SessionManager(registry).unlink()
    assert programs.answer("GET", sid) == 503


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    "body", [b"[]", b"5", b"null", b'"x"', b"{", b"\xff", b"[" * 100_000, b'{"a": 1e999}']
)
def test_a_body_that_is_no_object_of_json_is_the_clients_fault(
    programs: Programs, registry: str, body: bytes
) -> None:
    with SessionManager(registry, capacity=2, grow=False, listen=True) as manager:
        assert programs.ask_wsgi("POST", body) == "400 Bad Request"
        assert programs.ask_asgi("POST", body) == 400
        assert len(manager) == 0
        assert programs.ask_wsgi("POST", b"") == "200 OK"
        assert programs.ask_asgi("POST", b'{"n": 1}') == 200
        assert programs.ask_wsgi("POST", b"") == "507 Insufficient Storage"
        manager.unlink()


def test_the_page_shows_the_client_of_the_programs() -> None:
    (block,) = re.findall(r"(?ms)^```python\n(.*?)^```", PAGE)
    assert block in (PROGRAMS / "answers.py").read_text(encoding="utf-8")
