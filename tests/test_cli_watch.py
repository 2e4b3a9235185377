"""The command that watches: a line a change, as it comes, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from commands import Command, Ended, one_line

import jidoka_shm
from jidoka_shm import SessionManager

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

ROOT = Path(jidoka_shm.__file__).parents[1]
COMMAND = [sys.executable, "-W", "error", "-c", "from jidoka_shm.cli import main; main()", "watch"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}

ID = UUID("0b3a6f5e-0000-4000-8000-000000000001")
TITLES = "CHANGE\tID\tSTATUS\tPID\tUPDATED\tVERSION\tMETADATA"


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A living writer, which is this process; what is terminated stays for an hour."""
    with SessionManager(name, capacity=16, cleanup_delay=3600) as manager:
        yield manager
        manager.unlink()


class Watching:
    """The command in a process of its own."""

    def __init__(self, *arguments: str, **options: Any) -> None:  # noqa: ANN401 - Popen's
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            env=ENVIRONMENT,
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
        )

    def line(self) -> str:
        """Return the next line, which it printed without being asked to end."""
        assert self.process.stdout
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> Ended:
        """Wait for its end."""
        out, err = self.process.communicate()
        return Ended(self.process.returncode, out, err)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def test_it_prints_what_is_there_and_ends_after_the_timeout(
    command: Command, manager: SessionManager
) -> None:
    manager.create_session({"n": 1}, session_id=ID, pid=os.getpid())
    manager.terminate_session(ID)
    ended = command("watch", manager.name, "--timeout", 0)
    assert (ended.code, ended.err) == (0, "")
    session = manager[ID].to_dict()
    rest = f"{ID}\tterminated\t{os.getpid()}\t{session['updated_at']}\t2\t" + '{"n": 1}'
    assert ended.out.splitlines() == [TITLES, f"created\t{rest}", f"terminated\t{rest}"]


def test_its_json_is_one_object_a_line(command: Command, manager: SessionManager) -> None:
    manager.create_session({"é": "\u2028\n"}, session_id=ID)
    ended = command("watch", manager.name, "--timeout", 0, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.isascii()
    (line,) = ended.out.splitlines()
    assert json.loads(line) == {"kind": "created", "session": manager[ID].to_dict()}


@pytest.mark.parametrize("as_json", [False, True])
def test_each_change_is_printed_as_it_comes(manager: SessionManager, *, as_json: bool) -> None:
    with Watching(manager.name, *["--json"] * as_json, "--latency", "0.001") as watching:
        assert as_json or watching.line() == TITLES
        for change in ("created", "updated", "terminated"):
            if change == "created":
                manager.create_session(session_id=ID)
            elif change == "updated":
                manager.update_session(ID, status="active")
            else:
                manager.terminate_session(ID)
            line = watching.line()
            kind = json.loads(line)["kind"] if as_json else line.split("\t")[0]
            assert kind == change
        os.kill(watching.process.pid, signal.SIGINT)
        assert watching.end() == Ended(130, "", "\njidoka-shm: interrupted\n")


def test_it_may_begin_with_what_changes_from_now_on(
    command: Command, manager: SessionManager
) -> None:
    manager.create_session()
    assert command("watch", manager.name, "--new", "--timeout", 0.01).out == f"{TITLES}\n"
    with Watching(manager.name, "--new", "--timeout", "60") as watching:
        # Printed behind the first look.
        assert watching.line() == TITLES
        manager.create_session(session_id=ID)
        assert str(ID) in watching.line()


def test_the_timeout_is_of_the_time_without_a_change(
    command: Command, manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        # One change, when half of the time is over.
        if sum(slept) < 1.5 <= sum(slept) + seconds:
            manager.create_session()
        slept.append(seconds)

    monkeypatch.setattr("time.sleep", sleep)
    monkeypatch.setattr("time.monotonic", lambda: 100.0 + sum(slept))
    ended = command("watch", manager.name, "--timeout", 2.5)
    assert ended.out.count("created") == 1
    assert 4.0 <= sum(slept) <= 4.9


def test_a_registry_that_is_gone_has_no_sessions_and_the_next_is_waited_for(registry: str) -> None:
    manager = SessionManager(registry, capacity=16)
    manager.create_session(session_id=ID)
    with Watching(registry, "--latency", "0.001") as watching:
        assert watching.line() == TITLES
        assert watching.line().startswith("created")
        manager.unlink()
        assert watching.line().startswith("removed")
        with SessionManager(registry, capacity=16) as heir:
            sid = heir.create_session()
            assert watching.line().split("\t")[:2] == ["created", str(sid)]


def test_no_registry_of_that_name_is_status_3(command: Command, name: str) -> None:
    one_line(command("watch", name), 3, name)


@pytest.mark.parametrize("option", ["--timeout", "--latency"])
@pytest.mark.parametrize("value", ["nan", "inf", "1e300"])
def test_a_time_that_cannot_be_is_wrong_usage(
    command: Command, manager: SessionManager, option: str, value: str
) -> None:
    one_line(command("watch", manager.name, option, value), 2, option.lstrip("-"))


def test_a_reader_of_its_output_that_goes_away_ends_it_though_nothing_changes(
    manager: SessionManager,
) -> None:
    with Watching(manager.name) as watching:
        assert watching.line() == TITLES
        assert watching.process.stdout
        watching.process.stdout.close()
        assert watching.process.wait() == 141
        assert watching.process.stderr
        assert watching.process.stderr.read() == ""


def test_a_terminal_gets_columns_and_no_markup(manager: SessionManager) -> None:
    manager.create_session({"evil": "[red]x[/] \x1b[2J" + "y" * 200}, session_id=ID)
    ours, its = pty.openpty()
    with Watching(manager.name, "--timeout", "0", stdout=its) as watching:
        os.close(its)
        text = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the terminal's other end is closed
                break
            text += part
        assert watching.process.wait() == 0
    os.close(ours)
    titles, line = text.decode().replace("\r\n", "\n").splitlines()
    assert re.sub(r" +$", "", titles).endswith("METADATA")
    assert line.index(str(ID)) == titles.index("ID")
    assert line.index("{") == titles.index("METADATA")
    assert "\x1b" not in line
    assert '{"evil": "[' in line
