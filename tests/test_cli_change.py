"""The commands that change sessions: what they ask for, what they print, how they end."""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from commands import Command, one_line
from host import forked, in_child, objects_of, path_of
from supervised import ROOT, Place

from jidoka_shm import RecordTooLarge, RegistryForbidden, SessionManager, WriterUnavailable
from jidoka_shm.cli import change, failures

if TYPE_CHECKING:
    from collections.abc import Iterator

ID = UUID("0b3a6f5e-0000-4000-8000-000000000001")
OTHER = UUID("0b3a6f5e-0000-4000-8000-000000000002")
#: The session of the page's examples.
PAGE_ID = UUID("c422e418-1395-4735-a828-e90e274702f4")


@pytest.fixture
def manager(name: str, place: Place) -> Iterator[SessionManager]:
    """A writer that listens, with one session."""
    with SessionManager(name, capacity=16, listen=True, cleanup_delay=60) as manager:
        manager.create_session({"n": 1}, {"model": "m"}, os.getpid(), 3600, ID)
        yield manager
        manager.unlink()


# ---------------------------------------------------------------------------- create


def test_create_prints_the_new_id(command: Command, manager: SessionManager) -> None:
    ended = command("create", manager.name)
    assert (ended.code, ended.err) == (0, "")
    session = manager[UUID(ended.out.rstrip("\n"))]
    assert (session.metadata, session.llm_config, session.pid) == ({}, {}, None)
    assert session.expires_at is None


def test_create_takes_each_field(command: Command, manager: SessionManager) -> None:
    fields = ["--metadata", '{"ö": [1, null]}', "--llm-config", '{"model": "x"}']
    owner = ["--pid", os.getpid(), "--ttl", "60.5"]
    ended = command("create", manager.name, *fields, *owner, "--id", f"session_{OTHER.hex}")
    assert ended == (0, f"{OTHER}\n", "")
    session = manager[OTHER]
    assert session.metadata == {"ö": [1, None]}
    assert session.llm_config == {"model": "x"}
    assert session.pid == os.getpid()
    assert session.expires_at is not None
    left = session.expires_at - session.created_at
    assert left.total_seconds() == pytest.approx(60.5, abs=0.01)


def test_create_prints_the_session_as_json(command: Command, manager: SessionManager) -> None:
    ended = command("create", manager.name, "--json", "--metadata", '{"a": 1}')
    assert ended.json == manager[UUID(ended.json["session_id"])].to_dict()
    assert ended.json["metadata"] == {"a": 1}


def test_an_id_that_is_taken_is_refused(command: Command, manager: SessionManager) -> None:
    one_line(command("create", manager.name, "--id", ID), 1, f"session {ID} exists")


def test_an_owner_that_is_gone_is_refused(command: Command, manager: SessionManager) -> None:
    pid = forked(lambda: None)
    os.waitpid(pid, 0)
    one_line(command("create", manager.name, "--pid", pid), 1, f"process {pid} is not alive")
    assert len(manager) == 1


# ---------------------------------------------------------------------------- update


def test_update_prints_the_new_version(command: Command, manager: SessionManager) -> None:
    ended = command("update", manager.name, ID, "--status", "active")
    version = manager[ID].version
    assert ended == (0, f"{ID} is active, version {version}\n", "")
    assert (manager[ID].metadata, manager[ID].pid) == ({"n": 1}, os.getpid())


def test_update_takes_each_field(command: Command, manager: SessionManager) -> None:
    before = manager[ID]
    ended = command(
        *["update", manager.name, ID, "--metadata", "{}", "--llm-config", '{"model": "y"}'],
        *["--pid", os.getppid(), "--ttl", "7200", "--expected-version", before.version, "--json"],
    )
    assert ended.json == manager[ID].to_dict()
    assert (ended.json["metadata"], ended.json["llm_config"]) == ({}, {"model": "y"})
    assert ended.json["pid"] == os.getppid()
    assert ended.json["version"] > before.version
    assert manager[ID].expires_at > before.expires_at


def test_update_takes_owner_and_end_away(command: Command, manager: SessionManager) -> None:
    assert command("update", manager.name, ID, "--no-pid", "--no-ttl").code == 0
    assert (manager[ID].pid, manager[ID].expires_at) == (None, None)


def test_an_update_of_nothing_is_a_heartbeat(command: Command, manager: SessionManager) -> None:
    before = manager[ID]
    assert command("update", manager.name, ID).code == 0
    after = manager[ID]
    assert after.updated_at > before.updated_at
    same = {"updated_at": None, "version": None}
    assert before.to_dict() | same == after.to_dict() | same


def test_another_version_is_refused(command: Command, manager: SessionManager) -> None:
    before = manager[ID]
    ended = command("update", manager.name, ID, "--status", "active", "--expected-version", 999)
    one_line(ended, 1, f"session {ID} is at version {before.version}, not 999")
    assert manager[ID] == before


def test_a_move_that_may_not_be_is_refused(command: Command, manager: SessionManager) -> None:
    ended = command("update", manager.name, ID, "--status", "idle")
    one_line(ended, 1, f"session {ID} is initializing and cannot become idle")


# ---------------------------------------------------------------------------- terminate


def test_terminate_ends_a_session(command: Command, manager: SessionManager) -> None:
    ended = command("terminate", manager.name, ID, "--error", "it broke\n")
    assert ended == (0, f"terminated {ID}\n", "")
    assert (manager[ID].status, manager[ID].error) == ("terminated", "it broke\n")
    # As the library has it: what is still visible may be ended once more.
    assert command("terminate", manager.name, ID).code == 0
    assert manager[ID].error == "it broke\n"


def test_terminate_as_json(command: Command, manager: SessionManager) -> None:
    ended = command("terminate", manager.name, ID, "--json")
    assert ended.json == {"name": manager.name, "session_id": str(ID), "terminated": True}
    assert manager[ID].error is None


# ---------------------------------------------------------------------------- resize


def test_resize_prints_what_the_registry_is_then(command: Command, manager: SessionManager) -> None:
    before, name = manager[ID], manager.name
    ended = command("resize", name, "--capacity", 100)
    text = f"{name} has 100 slots of 512 bytes, in generation 2\n"
    assert ended == (0, text, "")
    assert command("resize", name, "--capacity", 100, "--slot-size", 512).out == text
    ended = command("resize", name, "--capacity", 1, "--slot-size", 1024)
    assert ended.out == f"{name} has 1 slots of 1024 bytes, in generation 3\n"
    assert manager[ID] == before
    stats = manager.stats()
    assert (stats.capacity, stats.slot_size, stats.generation) == (1, 1024, 3)


def test_resize_as_json(command: Command, manager: SessionManager) -> None:
    found = command("resize", manager.name, "--capacity", 8, "--json").json
    assert found == {"name": manager.name, "capacity": 8, "slot_size": 512, "generation": 2}
    text = PAGE[PAGE.index("## `jidoka-shm resize") :].partition("\nJSON: ")[2].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", text)) == set(found)


def test_a_resize_has_a_time_of_its_own(
    command: Command, manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_end = threading.Event()
    monkeypatch.setattr(manager, "_move", lambda *_: may_end.wait(60))
    monkeypatch.setattr(change, "_RESIZE", 0.2)
    ended = command("resize", manager.name, "--capacity", 8)
    may_end.set()
    one_line(ended, 3, "no answer within 0.2 s; the change may or may not have been made")


def test_a_size_that_is_too_small_is_refused(command: Command, manager: SessionManager) -> None:
    manager.create_session()
    ended = command("resize", manager.name, "--capacity", 1)
    one_line(ended, 1, "needs 2 slots, 1 are free", "a larger capacity")
    assert manager.stats().generation == 1


# ---------------------------------------------------------------------------- what fails


@pytest.mark.parametrize("arguments", [["update"], ["terminate"]])
def test_a_session_that_is_not_there_is_status_1(
    command: Command, manager: SessionManager, arguments: list[str]
) -> None:
    one_line(command(*arguments, manager.name, OTHER), 1, f"no live session {OTHER}")


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", "NAME", "--metadata", "{"],
        ["create", "NAME", "--metadata", "[]"],
        ["create", "NAME", "--metadata", "null"],
        ["create", "NAME", "--metadata", '{"a": NaN}'],
        ["create", "NAME", "--metadata", '{"a": 1e999}'],
        ["create", "NAME", "--metadata", '{"a": 18446744073709551616}'],
        ["create", "NAME", "--metadata", '{"a": ' + 100_000 * "[" + "]}"],
        ["create", "NAME", "--metadata", '{"a": "\\ud800"}'],
        ["create", "NAME", "--llm-config", "7"],
        ["create", "NAME", "--pid", "0"],
        ["create", "NAME", "--pid", "99999999999"],
        ["create", "NAME", "--ttl", "-1"],
        ["create", "NAME", "--ttl", "nan"],
        ["create", "NAME", "--id", "7"],
        ["create", "no.name"],
        ["create"],
        ["update", "NAME"],
        ["update", "NAME", "7"],
        ["update", "NAME", str(ID), "--status", "gone"],
        ["update", "NAME", str(ID), "--pid", "1", "--no-pid"],
        ["update", "NAME", str(ID), "--ttl", "0", "--no-ttl"],
        ["update", "NAME", str(ID), "--expected-version", "0"],
        ["terminate", "NAME"],
        ["terminate", "NAME", str(ID), "--error", "\ud800"],
        ["resize", "NAME"],
        ["resize", "NAME", "--slot-size", "512"],
        ["resize", "--capacity", "8"],
        ["resize", "NAME", "--capacity", "0"],
        ["resize", "NAME", "--capacity", "-8"],
        ["resize", "NAME", "--capacity", "many"],
        ["resize", "NAME", "--capacity", "99999999999999999999"],
        ["resize", "NAME", "--capacity", "8", "--slot-size", "0"],
        ["resize", "NAME", "--capacity", "8", "--slot-size", "100"],
        ["resize", "NAME", "--capacity", "8", "--slot-size", "33554432"],
    ],
)
def test_wrong_usage_is_status_2_and_changes_nothing(
    command: Command, manager: SessionManager, arguments: list[str]
) -> None:
    before = manager.version, manager.stats()
    one_line(command(*[manager.name if each == "NAME" else each for each in arguments]), 2)
    assert (manager.version, manager.stats()) == before


def _each(name: str) -> list[list[str]]:
    """Return each of the commands."""
    changes = [["create", name], ["update", name, str(ID)], ["terminate", name, str(ID)]]
    return [*changes, ["resize", name, "--capacity", "8"]]


def test_a_name_that_reads_as_an_option_is_told_where_to_go(command: Command) -> None:
    for arguments in (["create", "-name"], ["stats", "--name"], ["list", "-n", "--json"]):
        one_line(command(*arguments), 2, "No such option", "goes behind '--'", "--help")
    one_line(command("create", "--", "-name"), 3, "no registry '-name'")


def test_a_way_out_is_said_in_the_commands_own_options(command: Command, name: str) -> None:
    with SessionManager(name, capacity=2, grow=False, listen=True) as manager:
        _check_ways_out(command, manager)
        manager.unlink()


def _check_ways_out(command: Command, manager: SessionManager) -> None:
    assert "'serve' it with a larger --max-record-size" in failures.end_of(RecordTooLarge(9, 8))[1]
    for _ in range(2):
        manager.create_session()
    one_line(
        command("create", manager.name), 1, "0 are free", "'jidoka-shm resize'", "--max-capacity"
    )
    assert "--mode 640 or 644" in failures.end_of(RegistryForbidden("n", 5))[1]
    busy = WriterUnavailable("n", reason="512 clients: give it a larger max_clients")
    assert "a larger --max-clients" in failures.end_of(busy)[1]


def test_no_registry_is_status_3(command: Command, name: str) -> None:
    for arguments in _each(name):
        one_line(command(*arguments), 3, f"no registry '{name}'")


def test_a_registry_that_is_not_complete_is_status_3_at_once(command: Command, name: str) -> None:
    path_of(name).touch(0o600)
    for arguments in _each(name):
        # A client would wait for it, and know no more than that there is none.
        one_line(command(*arguments), 3, f"no complete registry '{name}'")
    path_of(name).unlink()


def test_a_dead_writer_is_status_3(command: Command, name: str) -> None:
    def work() -> None:
        manager = SessionManager(name, capacity=16)
        manager.create_session(session_id=ID)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    for arguments in _each(name):
        ended = command(*arguments)
        one_line(ended, 3, f"registry '{name}' has no writer that answers", "jidoka-shm serve")
    for tail in objects_of(name):
        Path(f"{path_of(name)}{tail}").unlink()


def test_a_writer_that_does_not_listen_is_status_3(command: Command, name: str) -> None:
    with SessionManager(name, capacity=16) as manager:
        manager.create_session(session_id=ID)
        for arguments in _each(name):
            one_line(command(*arguments), 3, "has no writer that answers", "does not listen")
        manager.unlink()


def test_a_command_to_type_takes_a_name_that_begins_as_an_option_does() -> None:
    assert "'jidoka-shm serve -- -n'" in failures.end_of(WriterUnavailable("-n"))[1]
    assert "'jidoka-shm serve n-'" in failures.end_of(WriterUnavailable("n-"))[1]


def test_a_change_whose_outcome_is_unknown_says_so() -> None:
    code, text = failures.end_of(WriterUnavailable("n", outcome_unknown=True))
    assert code == 3
    assert text.endswith("; the change may or may not have been made")


# ---------------------------------------------------------------------------- docs/cli.md

PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


@pytest.mark.usefixtures("place")
def test_the_examples_of_the_page_are_so(command: Command, name: str) -> None:
    text = PAGE[PAGE.index("## `jidoka-shm create") : PAGE.index("## `jidoka-shm unlink")]
    examples = re.findall(r"(?m)^\$ jidoka-shm (.*)\n(.*)$", text)
    with SessionManager(name, capacity=16, listen=True, cleanup_delay=60) as manager:
        made = None
        for line, printed in examples:
            words = shlex.split(
                line.replace(" agents", f" {name}").replace(str(PAGE_ID), str(made))
            )
            ended = command(*words)
            made = made or ended.out.rstrip("\n")
            printed = printed.replace(str(PAGE_ID), made).replace("agents ", f"{name} ")  # noqa: PLW2901 - as here
            assert ended.out + ended.err == printed + "\n", line
        manager.unlink()
    assert len(examples) == 7
