"""The command's views of registries: what they say, how they end, and what they never print."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from commands import Command, Ended, one_line
from host import Script, in_child, objects_of, path_of, stop
from support import wait_until

import jidoka_shm
from jidoka_shm import SessionManager, SessionReader, segment
from jidoka_shm.cli import failures, inspection, output
from jidoka_shm.cli.app import app
from jidoka_shm.cli.failures import Refused
from jidoka_shm.errors import CorruptRegistry, ReadContended, WriterAlreadyRunning
from jidoka_shm.layout import (
    CLOSED,
    CONTROL_FIELDS,
    CONTROL_SIZE,
    SLOT_DTYPE,
    SLOT_HEADER_SIZE,
    SLOT_MASK,
    SPARE_SLOTS,
    TABLE_FIELDS,
    TABLE_HEADER_SIZE,
    Geometry,
    control_name,
)
from jidoka_shm.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(jidoka_shm.__file__).parents[1]
COMMAND = [sys.executable, "-W", "error", "-c", "from jidoka_shm.cli import main; main()"]
# Empty is as if it was not set: an output without a buffer forgets what it could not write.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}

GEOMETRY = Geometry.for_capacity(16, 512)

ID = UUID("0b3a6f5e-0000-4000-8000-000000000001")
OTHER = UUID("0b3a6f5e-0000-4000-8000-000000000002")
MISSING = UUID(int=5)

#: Markup of rich, sequences of a terminal, and characters that move or turn what is shown.
EVIL = (
    "[red]x[/] [/] [link=http://x]y[/link] :boom: \x1b[2J\x9b31m\x07\r\n\t\u202e\u2066\x7f\u2028ö"
)


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A living writer, which is this process, of two sessions."""
    manager = SessionManager(name, capacity=16)
    manager.create_session({"n": 1}, {"model": "ö"}, session_id=ID, pid=os.getpid(), ttl=3600)
    manager.create_session({"evil": EVIL}, session_id=OTHER)
    manager.update_session(ID, status="active")
    yield manager
    manager.unlink()
    manager.close()


WRITER = """
    import os, signal, sys
    from uuid import UUID
    from jidoka_shm import SessionManager

    name, how, sid = sys.argv[1:]
    manager = SessionManager(name, capacity=16)
    manager.create_session({"n": 1}, session_id=UUID(sid))
    if how == "close":
        manager.close()
    print("ready", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def left(name: str) -> Iterator[str]:
    """The name of a registry whose writer was killed."""
    left = f"{name}-left"

    def work() -> None:
        manager = SessionManager(left, capacity=16)
        manager.create_session({"n": 1}, session_id=ID)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    yield left
    _remove(left)


def _remove(name: str) -> None:
    for tail in objects_of(name):
        Path(f"{path_of(name)}{tail}").unlink()


def _store(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def _word(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _row(ended: Ended, name: str) -> dict[str, Any]:
    assert (ended.code, ended.err) == (0, "")
    (row,) = [each for each in ended.json if each["name"] == name]
    return row


# ---------------------------------------------------------------------------- ls


def test_ls_shows_a_registry_with_a_living_writer(
    command: Command, manager: SessionManager
) -> None:
    stats = manager.stats()
    assert _row(command("ls", "--json"), manager.name) == {
        "name": manager.name,
        "instance": str(stats.instance),
        "state": "alive",
        "pid": os.getpid(),
        "sessions": 2,
        "capacity": 16,
        "size": sum(path.stat().st_size for path in _paths(manager.name)),
        "version": manager.version,
        "problem": None,
    }


def _paths(name: str) -> list[Path]:
    return [path_of(name), path_of(name, 1)]


def test_ls_prints_tabs_where_there_is_no_terminal(
    command: Command, manager: SessionManager
) -> None:
    lines = [line.split("\t") for line in command("ls").out.splitlines()]
    assert lines[0] == ["NAME", "STATE", "PID", "SESSIONS", "CAPACITY", "SIZE", "VERSION"]
    (line,) = [line for line in lines if line[0] == manager.name]
    row = _row(command("ls", "--json"), manager.name)
    assert line == [str(row[title.lower()]) for title in lines[0]]


def test_ls_sees_that_the_writer_was_killed(command: Command, left: str) -> None:
    row = _row(command("ls", "--json"), left)
    assert (row["state"], row["sessions"], row["problem"]) == ("dead", 1, None)
    assert isinstance(row["pid"], int)


def test_ls_sees_that_the_writer_closed(command: Command, name: str) -> None:
    with Script(WRITER, name, "close", ID) as script:
        script.line()
        row = _row(command("ls", "--json"), name)
    _remove(name)
    assert (row["state"], row["pid"], row["sessions"]) == ("none", None, 1)


def test_ls_does_not_guess_at_another_pid_namespace(command: Command, left: str) -> None:
    _store(path_of(left), CONTROL_FIELDS["writer_namespace"], _word(1))
    assert _row(command("ls", "--json"), left)["state"] == "unknown"


def test_a_stopped_writer_is_alive_and_its_registry_is_read(command: Command, name: str) -> None:
    with Script(WRITER, name, "stay", ID) as script:
        script.line()
        stop(script.pid)
        row = _row(command("ls", "--json"), name)
        assert (row["state"], row["pid"], row["sessions"]) == ("alive", script.pid, 1)
        for arguments in _views(name):
            assert command(*arguments).code == 0, arguments
        one_line(command("unlink", name, "--yes"), 1, script.pid)
    _remove(name)


def _views(name: str) -> list[list[str]]:
    """Return each command that reads one registry."""
    return [["list", name], ["show", name, str(ID)], *_views_of_all(name)]


def _views_of_all(name: str) -> list[list[str]]:
    return [["stats", name], ["check", name], ["layout", name]]


def _make_incomplete(name: str) -> None:
    _store(path_of(name), 0, bytes(8))


def _make_short(name: str) -> None:
    os.truncate(path_of(name), 0)


def _make_another_format(name: str) -> None:
    _store(path_of(name), CONTROL_FIELDS["format"], _word(99))


def _make_anothers_magic(name: str) -> None:
    _store(path_of(name), 0, b"NOT-OURS")


def _damage_the_header(name: str) -> None:
    _store(path_of(name, 1), TABLE_FIELDS["slot_count"][0], b"\xff\xff")


def _take_the_table_away(name: str) -> None:
    path_of(name, 1).unlink()


def _destroy_half_way(name: str) -> None:
    _store(path_of(name), CONTROL_FIELDS["change"], _word(2**40 + 1))
    _store(path_of(name, 1), TABLE_HEADER_SIZE, _word(CLOSED) * GEOMETRY.entries)


def _destroy_all_but_the_control(name: str) -> None:
    _destroy_half_way(name)
    path_of(name, 1).unlink()


def _make_a_fifo(name: str) -> None:
    path_of(name).unlink()
    os.mkfifo(path_of(name))


#: What may be wrong with a registry: how it comes, its state in ls, and the status of the others.
FAULTS: dict[str, tuple[Callable[[str], None], str, int]] = {
    "incomplete": (_make_incomplete, "incomplete", 3),
    "short": (_make_short, "incomplete", 3),
    "format": (_make_another_format, "foreign", 1),
    "magic": (_make_anothers_magic, "foreign", 1),
    "header": (_damage_the_header, "damaged", 1),
    "no table": (_take_the_table_away, "damaged", 1),
    "destroyed": (_destroy_half_way, "destroyed", 3),
    "control left": (_destroy_all_but_the_control, "destroyed", 3),
    "fifo": (_make_a_fifo, "unreadable", 1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_registry_that_cannot_be_read_fails_its_own_commands_alone(
    command: Command, left: str, manager: SessionManager, fault: str
) -> None:
    make, state, code = FAULTS[fault]
    make(left)
    listed = command("ls", "--json")
    row = _row(listed, left)
    assert (row["state"], row["pid"], row["sessions"], row["version"]) == (state, *[None] * 3)
    assert row["problem"]
    assert _row(listed, manager.name)["state"] == "alive"
    assert f"{left}\t{state}\t-\t-" in command("ls").out
    for arguments in _views(left):
        if fault == "destroyed" and arguments[0] == "layout":
            continue  # it reads no index, and shows what an odd registry looks like
        ended = command(*arguments)
        if state == "damaged" and arguments[0] == "check":
            assert (ended.code, ended.err) == (1, "")
            assert ended.out.startswith("problem  ")
        else:
            one_line(ended, code, "damaged registry" if state == "damaged" else left)


@pytest.fixture
def forbidden(left: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a registry that this user may not open."""

    def refuse(name: str, was: Callable[[str], int]) -> int:
        if name.startswith(control_name(left)):
            raise PermissionError(13, "Permission denied", name)
        return was(name)

    for kind in ("open_readable", "open_writable"):
        was = getattr(segment, kind)
        monkeypatch.setattr(segment, kind, lambda name, was=was: refuse(name, was))
    return left


def test_another_users_registry_is_listed_and_not_read(
    command: Command, forbidden: str, manager: SessionManager
) -> None:
    listed = command("ls", "--json")
    row = _row(listed, forbidden)
    assert (row["state"], row["sessions"]) == ("forbidden", None)
    assert "another user" in row["problem"]
    assert _row(listed, manager.name)["state"] == "alive"
    for arguments in [*_views(forbidden), ["unlink", forbidden, "--yes"]]:
        one_line(command(*arguments), 1, "another user")
    assert objects_of(forbidden) == {"", ".1"}


def test_ls_attaches_once_to_each_registry(
    command: Command, manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    was = segment.open_readable

    def count(name: str) -> int:
        opened.append(name)
        return was(name)

    monkeypatch.setattr(segment, "open_readable", count)
    command("ls")
    assert opened.count(control_name(manager.name)) == 1


def test_what_is_no_registry_is_not_listed(command: Command, name: str) -> None:
    strangers = [f"{path_of(name)}{tail}" for tail in (".1", ".x", " y", "\n", "\x1b[2J")]
    for path in strangers:
        Path(path).touch()
    try:
        ended = command("ls", "--json")
    finally:
        for path in strangers:
            Path(path).unlink()
    assert (ended.code, ended.err) == (0, "")
    assert name not in ended.out


def test_a_registry_that_goes_away_meanwhile_is_left_out(
    command: Command, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    was = inspection.names

    def names() -> list[str]:
        found = was()
        _remove(left)
        return found

    monkeypatch.setattr(inspection, "names", names)
    ended = command("ls", "--json")
    assert ended.code == 0
    assert left not in ended.out


# ---------------------------------------------------------------------------- list and show


def test_list_prints_sessions_as_they_are(command: Command, manager: SessionManager) -> None:
    ended = command("list", manager.name, "--json")
    assert (ended.code, ended.err) == (0, "")
    made = [Session.make(**each) for each in ended.json]
    assert made == [manager[ID], manager[OTHER]]
    assert ended.out.isascii()


def test_list_prints_whole_lines(command: Command, manager: SessionManager) -> None:
    long = UUID(int=3)
    manager.create_session({"a": "x" * 300}, session_id=long)
    lines = [line.split("\t") for line in command("list", manager.name).out.splitlines()]
    assert lines[0] == ["ID", "STATUS", "PID", "UPDATED", "VERSION", "METADATA"]
    assert [line[0] for line in lines[1:]] == [str(ID), str(OTHER), str(long)]
    assert lines[1][1:3] == ["active", str(os.getpid())]
    assert lines[1][3] == manager[ID].updated_at.isoformat()
    assert lines[3][1:3] == ["initializing", "-"]
    assert json.loads(lines[3][5]) == {"a": "x" * 300}


def test_what_is_dumped_beside_a_busy_writer_is_whole(name: str) -> None:
    """D9: a dump reads each session as any reader does, and no bytes of a live store."""
    with SessionManager(name, capacity=64) as manager:
        ids = [manager.create_session({"a": 0, "b": 0}) for _ in range(40)]
        for _ in range(3):
            with subprocess.Popen(
                [*COMMAND, "list", name, "--json"], env=ENVIRONMENT, stdout=subprocess.PIPE
            ) as dump:
                version = manager.version
                while dump.poll() is None:
                    for sid in ids:
                        n = manager.version
                        manager.update_session(sid, metadata={"a": n, "b": n})
                assert dump.stdout is not None
                listed = json.load(dump.stdout)
            assert dump.returncode == 0
            assert {UUID(one["session_id"]) for one in listed} == set(ids)
            for one in listed:
                # At its version, whatever it was overwritten with since.
                assert one["metadata"] in (
                    {"a": 0, "b": 0},
                    {"a": one["version"] - 1, "b": one["version"] - 1},
                )
        assert version is not None
        assert manager.version > version + len(ids)
        manager.unlink()


def test_list_shows_the_terminated_only_where_they_are_asked_for(
    command: Command, manager: SessionManager
) -> None:
    manager.terminate_session(ID, error="it fell")
    listed = {
        status: [each["session_id"] for each in command(*_listing(manager.name, status)).json]
        for status in (None, "active", "initializing", "terminated")
    }
    one, other = [str(ID)], [str(OTHER)]
    assert listed == {None: other, "active": [], "initializing": other, "terminated": one}


def _listing(name: str, status: str | None) -> list[str]:
    return ["list", name, "--json", *(["--status", status] if status else [])]


def test_show_prints_one_session(command: Command, manager: SessionManager) -> None:
    for text in (str(ID), ID.hex.upper(), f"session_{ID}"):
        assert command("show", manager.name, text, "--json").json == manager[ID].to_dict()
    lines = command("show", manager.name, ID).out.splitlines()
    assert lines[:3] == [
        f"session_id  {ID}",
        "status      active",
        f"pid         {os.getpid()}",
    ]
    assert lines[8:] == ["metadata", "{", '  "n": 1', "}", "llm_config", "{", '  "model": "ö"', "}"]


def test_show_says_why_a_session_ended(command: Command, manager: SessionManager) -> None:
    manager.terminate_session(ID, error="it fell")
    assert "error       it fell\n" in command("show", manager.name, ID).out


def test_a_session_that_is_not_there_is_status_1(command: Command, manager: SessionManager) -> None:
    for options in ([], ["--json"]):
        one_line(command("show", manager.name, MISSING, *options), 1, MISSING)


# ---------------------------------------------------------------------------- stats, check, layout


def test_stats_are_the_managers(command: Command, manager: SessionManager) -> None:
    found = command("stats", manager.name, "--json").json
    stats = manager.stats()
    counts = {str(status): count for status, count in manager.count_by_status().items()}
    assert (found["state"], found["pid"], found["by_status"]) == ("alive", os.getpid(), counts)
    assert found["instance"] == str(stats.instance)
    for key in set(found) - {"state", "pid", "by_status", "instance", "usage"}:
        assert found[key] == getattr(stats, key), key
    pairs = dict(line.split() for line in command("stats", manager.name).out.splitlines())
    assert pairs["sessions"] == "2"
    assert (pairs["active"], pairs["terminated"]) == ("1", "0")


def test_stats_tell_how_the_slots_are_used(command: Command, manager: SessionManager) -> None:
    sids = [manager.create_session({"text": "x" * size}) for size in (600, 1200, 2600)]
    used = dataclasses.asdict(manager.usage())
    assert used.pop("run_lengths") == (2, 1, 1, 1)
    found = command("stats", manager.name, "--json").json["usage"]
    assert found.pop("run_lengths") == {"1": 2, "2": 1, "3-4": 1, "5-8": 1}
    assert found == used
    pairs = dict(line.split() for line in command("stats", manager.name).out.splitlines())
    assert pairs["slots_used"] == str(used["slots_used"])
    assert pairs["best_slot_size"] == str(used["best_slot_size"])
    assert [key for key in pairs if key.startswith("records_of")] == [
        "records_of_1",
        "records_of_2",
        "records_of_3-4",
        "records_of_5-8",
    ]
    for sid in [*sids, ID, OTHER]:
        manager.terminate_session(sid)
    wait_until(lambda: not len(manager))
    pairs = dict(line.split() for line in command("stats", manager.name).out.splitlines())
    assert (pairs["best_slot_size"], pairs["bytes_saved"]) == ("-", "0")


def test_stats_wait_for_no_writer(command: Command, manager: SessionManager) -> None:
    stopped = threading.Event()

    def change() -> None:
        for number in itertools.count():
            if stopped.is_set():
                return
            manager.update_session(OTHER, metadata={"text": "x" * (number % 7 * 200)})

    thread = threading.Thread(target=change)
    thread.start()
    try:
        found = [command("stats", manager.name, "--json").json["usage"] for _ in range(20)]
    finally:
        stopped.set()
        thread.join()
    for used in found:
        assert used["sessions"] == sum(used["run_lengths"].values()) == 2
        assert used["slots_used"] + used["slots_free"] == manager.stats().capacity + SPARE_SLOTS


def test_a_sound_registry_passes_the_check(command: Command, manager: SessionManager) -> None:
    assert command("check", manager.name, "--json") == Ended(0, _json_of(manager.name, [], 2), "")
    assert command("check", manager.name).out == "sound  2 sessions, all of the table\n"


def _json_of(name: str, problems: list[str], sessions: int) -> str:
    found = {"name": name, "whole": True, "sessions": sessions, "problems": problems}
    return json.dumps(found, indent=2) + "\n"


def _slot_of(name: str, session_id: UUID) -> int:
    """Return the offset of the slot that holds a session, in the table's object."""
    return path_of(name, 1).read_bytes().index(session_id.bytes)


def test_check_finds_a_damaged_record(command: Command, left: str) -> None:
    _store(path_of(left, 1), _slot_of(left, ID) + SLOT_HEADER_SIZE + 3, b"\xff")
    ended = command("check", left, "--json")
    assert (ended.code, ended.err) == (1, "")
    assert ended.json["whole"] is True
    (problem,) = ended.json["problems"]
    assert "crc" in problem
    assert command("check", left) == Ended(1, f"problem  {problem}\n", "")
    # And nothing of it is shown as if it were what the writer wrote.
    for arguments in (["list", left], ["show", left, str(ID)]):
        one_line(command(*arguments), 1, "damaged registry")


@pytest.fixture
def contended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that leaves no moment without a commit."""

    def check(_: SessionReader) -> list[str]:
        raise ReadContended(20)

    monkeypatch.setattr(SessionReader, "check", check)


@pytest.mark.usefixtures("contended")
def test_check_looks_at_each_record_where_the_writer_never_rests(
    command: Command, manager: SessionManager
) -> None:
    ended = command("check", manager.name, "--json")
    assert (ended.code, ended.json["whole"], ended.json["problems"]) == (0, False, [])
    assert command("check", manager.name).out == "sound  2 sessions, each record by itself\n"


@pytest.mark.usefixtures("contended")
def test_check_finds_a_damaged_record_where_the_writer_never_rests(
    command: Command, left: str
) -> None:
    _store(path_of(left, 1), _slot_of(left, ID) + SLOT_HEADER_SIZE + 3, b"\xff")
    ended = command("check", left, "--json")
    assert (ended.code, ended.json["whole"], len(ended.json["problems"])) == (1, False, 1)


def test_layout_says_where_each_field_stands_and_what_is_there(
    command: Command, manager: SessionManager
) -> None:
    found = command("layout", manager.name, "--json").json
    control, table = found["control"], found["table"]
    assert (control["object"], control["size"]) == (control_name(manager.name), CONTROL_SIZE)
    assert set(control["fields"]) == set(CONTROL_FIELDS)
    assert set(table["header"]) == set(TABLE_FIELDS)
    for path, fields in zip(
        _paths(manager.name), (control["fields"], table["header"]), strict=True
    ):
        memory = path.read_bytes()
        end = 0
        for field in sorted(fields.values(), key=lambda field: field["offset"]):
            begin = field["offset"]
            assert begin >= end
            end = begin + field["width"]
            assert _as_json(memory[begin:end], field["value"]) == field["value"]


def _as_json(raw: bytes, like: object) -> object:
    number = int.from_bytes(raw, "little")
    if isinstance(like, str):
        return f"{number:#018x}" if like.startswith("0x") else str(UUID(bytes=raw))
    return number if like is not None else (None if not number else raw)


def test_layout_says_where_the_parts_of_the_table_stand(
    command: Command, manager: SessionManager
) -> None:
    table = command("layout", manager.name, "--json").json["table"]
    index, reach, slots = table["index"], table["reach"], table["slots"]
    path = path_of(manager.name, 1)
    assert table["object"] == f"/{path.name}"
    assert table["size"] == path.stat().st_size == slots["offset"] + slots["size"]
    assert index["offset"] == TABLE_HEADER_SIZE
    assert reach["offset"] == index["offset"] + index["size"]
    assert reach["offset"] + reach["size"] <= slots["offset"]
    assert slots["size"] == slots["count"] * slots["slot_size"]
    # The fields of a slot lead to the session that is there.
    begin = _slot_of(manager.name, ID)
    assert (begin - slots["offset"]) % slots["slot_size"] == 0
    assert set(slots["fields"]) == {*(SLOT_DTYPE.names or ()), "payload"}
    field = slots["fields"]["pid"]
    raw = path.read_bytes()[begin + field["offset"] :][: field["width"]]
    assert int.from_bytes(raw, "little") == os.getpid()


def test_layout_leads_to_a_record_of_several_slots(
    command: Command, manager: SessionManager
) -> None:
    manager.update_session(ID, metadata={"text": "x" * 1500})
    fields = command("layout", manager.name, "--json").json["table"]["slots"]["fields"]
    table = manager._registry.table
    _, word, _ = table.look_up(ID) or ()
    raw = path_of(manager.name, 1).read_bytes()[table.slots.offset(word & SLOT_MASK) :]
    at, width = fields["payload_length"].values()
    length = int.from_bytes(raw[at : at + width], "little")
    assert length > manager.stats().slot_size
    assert fields["payload"] == {"offset": SLOT_HEADER_SIZE, "width": None}
    assert raw[SLOT_HEADER_SIZE:][:length] == manager[ID]._payload
    assert command("show", manager.name, ID, "--json").json == manager[ID].to_dict()
    assert command("check", manager.name).code == 0


def test_layout_prints_a_line_a_field(command: Command, manager: SessionManager) -> None:
    lines = [line.split("\t") for line in command("layout", manager.name).out.splitlines()]
    assert lines[0] == ["PART", "FIELD", "OFFSET", "WIDTH", "VALUE"]
    assert ["control", "writer_pid", "128", "8", str(os.getpid())] in lines
    assert ["table", "slots"] in [line[:2] for line in lines]
    payload = ["slot", "payload", "64", "-", "payload_length bytes, on into the next slots"]
    assert lines[-1] == payload
    assert len(lines) == 1 + len(CONTROL_FIELDS) + len(TABLE_FIELDS) + 3 + len(SLOT_DTYPE) + 1


# ---------------------------------------------------------------------------- unlink


def test_unlink_is_refused_while_a_writer_lives(command: Command, manager: SessionManager) -> None:
    for options in (["--yes"], ["--yes", "--json"]):
        one_line(command("unlink", manager.name, *options), 1, manager.name, os.getpid())
    assert manager[ID].pid == os.getpid()
    assert objects_of(manager.name) == {"", ".1"}


def test_unlink_goes_by_the_lock_where_the_control_says_nothing(
    command: Command, manager: SessionManager
) -> None:
    _store(path_of(manager.name), CONTROL_FIELDS["writer_pid"], _word(0))
    one_line(command("unlink", manager.name, "--yes"), 1, "living writer")
    assert objects_of(manager.name) == {"", ".1"}


def test_unlink_removes_what_a_dead_writer_left(command: Command, left: str) -> None:
    with SessionReader(left) as reader:
        instance = str(reader.stats().instance)
        ended = command("unlink", left, "--yes", "--json")
        assert (ended.code, ended.err) == (0, "")
        assert ended.json == {"name": left, "instance": instance, "removed": True}
        assert objects_of(left) == set()
        with pytest.raises(jidoka_shm.RegistryClosed):
            reader.list_sessions()
    one_line(command("unlink", left, "--yes"), 3, left)


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"fifo"}))
def test_unlink_removes_what_cannot_be_read(command: Command, left: str, fault: str) -> None:
    FAULTS[fault][0](left)
    assert command("unlink", left, "--yes") == Ended(0, f"removed {left}\n", "")
    assert objects_of(left) == set()


def test_unlink_without_a_terminal_needs_the_option(
    command: Command, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path(os.devnull).open() as nothing:
        for stdin in (nothing, None):
            monkeypatch.setattr(sys, "stdin", stdin)
            one_line(command("unlink", left), 2, "--yes")
    assert objects_of(left) == {"", ".1"}


def test_unlink_leaves_what_was_made_after_the_question(left: str) -> None:
    def answer(found: dict[str, Any]) -> bool:
        assert found["sessions"] == 1
        with SessionManager(left, capacity=16, fresh=True) as successor:
            successor.create_session(session_id=OTHER)
        return True

    with pytest.raises(Refused, match="made anew after the question"):
        inspection.unlink(left, answer)
    with SessionReader(left) as reader:
        assert list(reader) == [OTHER]


def test_unlink_leaves_what_was_completed_after_the_question(name: str) -> None:
    path_of(name).write_bytes(b"")

    def answer(found: dict[str, Any]) -> bool:
        assert found["state"] == "incomplete"
        SessionManager(name, capacity=16).close()
        return True

    with pytest.raises(Refused, match="made anew after the question"):
        inspection.unlink(name, answer)
    with SessionManager(name) as manager:
        assert manager.recovery is not None
        manager.unlink()


def test_unlink_is_refused_where_a_writer_came_after_the_question(left: str) -> None:
    successors = []

    def answer(_: dict[str, Any]) -> bool:
        successors.append(SessionManager(left))
        return True

    with pytest.raises(WriterAlreadyRunning):
        inspection.unlink(left, answer)
    assert ID in successors[0]
    successors[0].close()


def _on_terminal(
    *arguments: str,
    act: Callable[[int, int], object] | None = None,
    columns: int = 80,
    kind: str = "xterm",
) -> tuple[int, str]:
    """Run the command on a terminal, and return its status and all that the terminal got.

    Args:
        arguments: the command's.
        act: called with the terminal's other end and the pid, once the command asks.
        columns: how wide the terminal is.
        kind: what TERM says that it is.
    """
    ours, its = pty.openpty()
    environment = ENVIRONMENT | {"COLUMNS": str(columns), "TERM": kind}
    with subprocess.Popen(
        [*COMMAND, *arguments], stdin=its, stdout=its, stderr=its, env=environment
    ) as run:
        os.close(its)
        text = b""
        try:
            while part := _read(ours):
                text += part
                if act is not None and b"[y/N]: " in text:
                    # A signal between the last look for one and the read would not end the read.
                    wait_until(lambda: _state(run.pid) == "S")
                    act(ours, run.pid)
                    act = None
        except BaseException:
            run.kill()  # nobody answers it any more, and Popen would wait for it
            raise
    os.close(ours)
    return run.returncode, text.decode()


def _state(pid: int) -> str:
    """Return a process's state, as /proc has it: S is asleep."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # what a terminal gives once nobody has its other end
        return b""


@pytest.mark.parametrize(
    ("act", "status", "said"),
    [
        (lambda ours, _: os.write(ours, b"y\n"), 0, "removed"),
        (lambda ours, _: os.write(ours, b"\n"), 1, "jidoka-shm: not confirmed"),
        (lambda ours, _: os.write(ours, b"\x04"), 1, "jidoka-shm: not confirmed"),
        (lambda _, pid: os.kill(pid, signal.SIGINT), 130, "jidoka-shm: interrupted"),
    ],
    ids=["yes", "no", "end of input", "Ctrl-C"],
)
def test_unlink_asks_on_a_terminal(
    left: str, act: Callable[[int, int], object], status: int, said: str
) -> None:
    code, text = _on_terminal("unlink", left, act=act)
    assert code == status
    assert f"Destroy the registry {left} (1 sessions) for good? [y/N]:" in text
    assert said in text
    assert "Traceback" not in text
    assert objects_of(left) == (set() if status == 0 else {"", ".1"})


def test_unlink_asks_nothing_while_a_writer_lives(manager: SessionManager) -> None:
    code, text = _on_terminal("unlink", manager.name)
    assert code == 1
    assert text.startswith("jidoka-shm: ")
    assert "for good?" not in text


# ---------------------------------------------------------------------------- how it ends


@pytest.mark.parametrize("view", [*_views("NAME"), ["unlink", "NAME", "--yes"]])
def test_no_registry_of_that_name_is_status_3(command: Command, name: str, view: list[str]) -> None:
    arguments = [name if each == "NAME" else each for each in view]
    one_line(command(*arguments), 3, name)
    if "unlink" not in view:
        one_line(command(*arguments, "--json"), 3, name)
    assert objects_of(name) == set()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["ls", "surplus"],
        ["ls", "--nonsense"],
        ["list"],
        ["list", "a.b"],
        ["list", ""],
        ["list", "x" * 65],
        ["list", "\x1b[2J\n"],
        ["list", "x", "--status", "gone"],
        ["show", "x"],
        ["show", "x", "7"],
        ["show", "x", "\x1b[2J\udcff"],
        ["show", "a/b", str(ID)],
        ["stats", "ä"],
        ["check", "a b"],
        ["layout", "."],
        ["watch", "a.1"],
        ["watch", "x", "--timeout", "-1"],
        ["watch", "x", "--latency", "soon"],
        ["unlink", "a.1", "--yes"],
        ["demo", "/nowhere"],
    ],
)
def test_wrong_usage_is_status_2(command: Command, arguments: list[str]) -> None:
    ended = command(*arguments)
    one_line(ended, 2, "--help'")
    assert ended.err[:-1].isprintable()


def test_a_name_that_begins_with_a_hyphen_goes_behind_two(command: Command, name: str) -> None:
    with SessionManager(f"-{name}", capacity=16) as manager:
        assert command("stats", "--json", "--", manager.name).json["name"] == manager.name
        manager.unlink()


@pytest.mark.parametrize("arguments", [["--help"], *([each, "--help"] for each in app.commands)])
def test_help_is_status_0_and_names_each_argument(command: Command, arguments: list[str]) -> None:
    ended = command(*arguments)
    assert (ended.code, ended.err) == (0, "")
    for each in app.commands[arguments[0]].params if len(arguments) == 2 else ():
        assert each.human_readable_name.upper() in ended.out or each.opts[0] in ended.out
    assert command("--version").out == f"jidoka-shm, version {jidoka_shm.__version__}\n"


def test_an_error_of_the_system_isone_line(
    command: Command, manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> list[str]:
        raise OSError(24, "Too many open files\x1b[2J")

    monkeypatch.setattr(segment, "names", refuse)
    one_line(command("ls"), 1, "Too many open files\\u001b[2J")


def test_an_interrupt_is_status_130(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(segment, "names", interrupt)
    ended = command("ls")
    assert (ended.code, ended.out, ended.err) == (130, "", "\njidoka-shm: interrupted\n")


def _run(  # as subprocess.run, with the command before its arguments
    *arguments: str,
    **options: Any,  # noqa: ANN401 - as above
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *arguments],
        env=ENVIRONMENT | options.pop("environment", {}),
        stderr=subprocess.PIPE,
        check=False,
        **options,
    )


@pytest.mark.parametrize(
    "view",
    [["ls"], ["list", "NAME"], ["layout", "NAME", "--json"], ["watch", "NAME"], ["--help"]],
)
def test_a_closed_pipe_is_no_traceback(manager: SessionManager, view: list[str]) -> None:
    ours, its = os.pipe()
    os.close(ours)
    run = _run(*[manager.name if each == "NAME" else each for each in view], stdout=its)
    os.close(its)
    assert (run.returncode, run.stderr) == (141, b"")


def test_a_full_disk_isone_line(manager: SessionManager) -> None:
    with Path("/dev/full").open("wb") as full:
        run = _run("list", manager.name, stdout=full)
    assert run.returncode == 1
    assert run.stderr == b"jidoka-shm: [Errno 28] No space left on device\n"


def test_no_standard_output_at_all_is_no_traceback(manager: SessionManager) -> None:
    run = _run("list", manager.name, stdout=None, preexec_fn=lambda: os.close(1))
    assert (run.returncode, run.stderr) == (0, b"")


# ---------------------------------------------------------------------------- what is printed


def _harmless(text: str) -> bool:
    """Return whether a terminal only shows it."""
    return all(letter.isprintable() or letter in "\n\t" for letter in text)


def test_no_text_of_a_session_reaches_the_terminal_as_more_than_text(
    command: Command, manager: SessionManager
) -> None:
    manager.terminate_session(ID, error=EVIL)
    name = manager.name
    for arguments in (
        ["list", name],
        ["list", name, "--status", "terminated"],
        ["show", name, str(ID)],
        ["show", name, str(OTHER)],
    ):
        shown, as_json = command(*arguments).out, command(*arguments, "--json").out
        assert _harmless(shown), shown
        assert _harmless(as_json), as_json
        assert as_json.isascii()
        if str(ID) not in arguments and "--status" not in arguments:
            assert "[red]x[/] [/] [link=http://x]y[/link] :boom: \\u001b[2J\\u009b31m" in shown
    assert "error       [red]x[/]" in command("show", name, ID).out
    (session,) = command("list", name, "--json").json
    assert session["metadata"] == {"evil": EVIL}


def test_shown_json_is_what_it_was(command: Command, manager: SessionManager) -> None:
    lines = command("show", manager.name, OTHER).out.splitlines()
    begin, end = lines.index("metadata"), lines.index("llm_config")
    assert json.loads("\n".join(lines[begin + 1 : end])) == {"evil": EVIL}


@pytest.mark.parametrize("view", ["list", "show"])
def test_a_terminal_gets_no_text_of_a_session_as_markup(manager: SessionManager, view: str) -> None:
    ids = [str(OTHER)] if view == "show" else []
    code, text = _on_terminal(view, manager.name, *ids, columns=300)
    assert code == 0
    assert "[red]x[/] [/] [link=http://x]y[/link] :boom: \\u001b[2J\\u009b31m" in text
    # rich's own, of the titles.
    assert _harmless(re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r\n", "\n"))


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_narrow_terminal_shows_ids_and_names_whole(manager: SessionManager, kind: str) -> None:
    for arguments, whole in (
        (["list", manager.name], [str(ID), str(OTHER), "initializing"]),
        (["ls"], [manager.name]),
        (["layout", manager.name], ["writer_namespace"]),
    ):
        code, text = _on_terminal(*arguments, columns=40, kind=kind)
        assert code == 0
        for each in whole:
            assert each in text


def test_an_output_without_unicode_gets_escapes(manager: SessionManager) -> None:
    run = _run(
        "show",
        manager.name,
        str(ID),
        stdout=subprocess.PIPE,
        environment={"PYTHONIOENCODING": "ascii"},
    )
    assert (run.returncode, run.stderr) == (0, b"")
    assert b'"model": "\\u00f6"' in run.stdout


@pytest.mark.parametrize("value", [{"a": b""}, {"a": float("nan")}, [[]] * 2])
def test_what_is_no_json_is_damage(value: object, capsys: pytest.CaptureFixture[str]) -> None:
    if isinstance(value, list):
        value[0].append(value)  # without end
    for show in (output.print_json, output.to_pretty_json, output.to_text):
        with pytest.raises(CorruptRegistry, match="no JSON"):
            show(value)
    assert capsys.readouterr().out == ""


def test_the_shell_completes_names(manager: SessionManager) -> None:
    line = f"jidoka-shm show {manager.name[:-1]}"
    words = {"COMP_WORDS": line, "COMP_CWORD": "2", "_JIDOKA_SHM_COMPLETE": "bash_complete"}
    run = _run(stdout=subprocess.PIPE, environment=words)
    assert f"plain,{manager.name}" in run.stdout.decode().splitlines()


# ---------------------------------------------------------------------------- docs/cli.md

PAGE = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"(?ms)^## `jidoka-shm (\w+)[^`]*`\n(.*?)(?=^## |\Z)", PAGE))


def test_the_page_describes_each_command_and_option() -> None:
    assert list(SECTIONS) == list(app.commands)
    for title, text in SECTIONS.items():
        params = [each for each in app.commands[title].params if each.opts[0][:2] == "--"]
        # Of an option that is on by itself, the one that turns it off.
        options = {(each.secondary_opts or each.opts)[0] for each in params}
        assert set(re.findall(r"`(--[\w-]+)", text)) == options, title


def test_the_page_lists_each_exit_status() -> None:
    listed = re.findall(r"(?m)^\| (\d+) \|", PAGE)
    codes = [value for value in vars(failures).values() if type(value) is int]
    assert list(map(int, listed)) == sorted(codes)


def test_the_page_lists_each_state() -> None:
    assert re.findall(r"(?m)^\| `(\w+)` \|", SECTIONS["ls"]) == [*inspection.STATES]


@pytest.mark.parametrize("view", ["ls", "show", "stats", "check", "layout", "unlink"])
def test_the_page_lists_the_keys_of_the_json(command: Command, left: str, view: str) -> None:
    arguments = {"ls": [view], "show": [view, left, str(ID)], "unlink": [view, left, "--yes"]}
    found = command(*arguments.get(view, [view, left]), "--json").json
    text = SECTIONS[view].partition("\nJSON: ")[2].partition("\n\n")[0].partition(". ")[0]
    listed = set(re.findall(r"`(\w+)`", text)) - {"null", "true"}
    assert listed == set(found[0] if view == "ls" else found)
