"""``jidoka-shm serve``: how it starts, what it says to whom, and each way in which it ends."""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import itertools
import json
import logging
import os
import re
import resource
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from host import objects_of, path_of, processes_of
from living import descriptors_left
from supervised import COMMAND, LIMIT, ROOT, Place, Service
from support import wait_until

from jidoka_shm import (
    RegistryFull,
    SessionClient,
    SessionManager,
    SessionNotFound,
    SessionReader,
    WriterUnavailable,
)
from jidoka_shm.cli import logs
from jidoka_shm.cli.serve import _report, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _run(place: Place, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "serve", *arguments],
        env=place.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )


def _fill(name: str, count: int) -> None:
    with SessionManager(name, capacity=16) as manager:
        for _ in range(count):
            manager.create_session()


# ---------------------------------------------------------------------------- its end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_and_the_sessions_stay(
    place: Place, registry: str, number: signal.Signals
) -> None:
    _fill(registry, 3)
    with Service(place, registry) as service, SessionReader(registry) as reader:
        assert service.said["READY"] == "1"
        assert service.said["MAINPID"] == str(service.pid)
        assert registry in service.said["STATUS"]
        assert reader.writer_alive is True
        status, log = service.end(number)
        assert (status, service.notified.next()["STOPPING"]) == (0, "1")
        assert f"{number.name}: closing registry '{registry}'" in log
        assert (reader.writer_alive, len(reader)) == (False, 3)
    with SessionManager(registry) as manager:
        assert manager.recovery is not None
        assert (manager.recovery.clean, manager.recovery.kept) == (True, 3)


def test_more_signals_while_it_closes_change_nothing(place: Place, registry: str) -> None:
    with Service(place, registry, "--capacity", "16") as service:
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
        while service.process.poll() is None:
            for number in numbers:
                service.process.send_signal(number)
        status, log = service.end(None)
    assert (status, log.count("closing registry"), log.count("closed registry")) == (0, 1, 1)
    assert "Traceback" not in log


def test_a_signal_that_another_thread_gets_ends_it(place: Place, registry: str) -> None:
    with Service(place, registry, "--capacity", "16") as service:
        threads = {int(path.name) for path in Path(f"/proc/{service.pid}/task").iterdir()}
        # As os.kill, where the kernel may choose any that does not block it. numpy has some, too.
        for thread in threads - {service.pid}:
            ctypes.CDLL(None).tgkill(service.pid, thread, signal.SIGTERM)
        status, log = service.end(None)
    assert (status, "SIGTERM: closing" in log) == (0, True)


def test_what_is_acknowledged_before_the_end_stays(place: Place, registry: str) -> None:
    with Service(place, registry, "--capacity", "4096") as service:
        made: list[list[UUID]] = [[] for _ in range(4)]
        doubtful: list[UUID] = []
        busy = threading.Barrier(5)

        def work(mine: list[UUID]) -> None:
            with SessionClient(registry) as client:
                mine.append(client.create_session())
                busy.wait(LIMIT)
                with contextlib.suppress(RegistryFull):
                    while True:
                        sid = uuid4()
                        try:
                            mine.append(client.create_session(session_id=sid))
                        except WriterUnavailable as error:
                            doubtful.extend([sid] * error.outcome_unknown)
                            return

        threads = [threading.Thread(target=work, args=[mine]) for mine in made]
        for thread in threads:
            thread.start()
        busy.wait(LIMIT)
        status, _ = service.end()
        for thread in threads:
            thread.join()
    acknowledged = set(itertools.chain(*made))
    with SessionReader(registry) as reader:
        assert status == 0
        assert acknowledged <= set(reader)
        assert set(reader) - acknowledged <= set(doubtful)
        assert reader.check() == []


@pytest.mark.parametrize("how", ["no", "broken"])
def test_without_anybody_who_reads_its_log_it_serves(place: Place, registry: str, how: str) -> None:
    def close() -> None:
        if how == "no":
            os.close(2)

    with Service(place, registry, "--capacity", "16", preexec_fn=close) as service:
        assert service.process.stderr
        service.process.stderr.close()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(LIMIT) == 0
        assert service.notified.next()["STOPPING"] == "1"


def test_memory_is_nobodys_standard_error(place: Place, registry: str) -> None:
    """What an interpreter that aborts writes there must not go over a registry."""
    with Service(
        place, registry, "--capacity", "16", preexec_fn=lambda: os.closerange(0, 3)
    ) as service:
        links = Path(f"/proc/{service.process.pid}/fd")
        assert {str((links / f"{number}").readlink()) for number in range(3)} == {os.devnull}


def test_what_nohup_ignores_stays_ignored(place: Place, registry: str) -> None:
    with Service(
        place,
        registry,
        "--capacity",
        "16",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    ) as service:
        state = Path(f"/proc/{service.pid}/status").read_text()
        (ignored,) = re.findall(r"SigIgn:\t([0-9a-f]+)", state)
        assert int(ignored, 16) >> signal.SIGHUP - 1 & 1
        service.process.send_signal(signal.SIGHUP)
        status, log = service.end(signal.SIGTERM)
    assert (status, "SIGTERM: closing" in log, "SIGHUP" in log) == (0, True, False)


def test_a_signal_while_it_waits_for_a_living_writer_ends_it(place: Place, registry: str) -> None:
    with SessionManager(registry, capacity=16) as manager:
        with Service(place, registry, "--wait", "600") as service:
            assert service.said == {"STATUS": f"Waiting for process {os.getpid()} to end"}
            assert service.end(signal.SIGTERM)[0] == 0
        assert manager.writer_alive
        assert manager.create_session()


def test_it_waits_for_a_living_writer_to_end(place: Place, registry: str) -> None:
    with (
        Service(place, registry, "--capacity", "16") as old,
        Service(place, registry, "--wait", "600") as new,
    ):
        assert new.said == {"STATUS": f"Waiting for process {old.pid} to end"}
        assert old.end()[0] == 0
        assert new.notified.next()["READY"] == "1"
        status, log = new.end()
    assert status == 0
    assert f"waiting up to 600 s for process {old.pid} to end" in log
    assert "took over registry" in log


def test_one_that_was_killed_is_taken_over(place: Place, registry: str) -> None:
    _fill(registry, 2)
    with Service(place, registry) as service:
        service.kill()
    with Service(place, registry) as service:
        status, log = service.end()
    assert (status, "its writer died): 2 sessions kept" in log) == (0, True)


@pytest.mark.parametrize("as_json", [False, True])
def test_names_that_are_removed_end_it(place: Place, registry: str, *, as_json: bool) -> None:
    options = ["--log-json"] if as_json else []
    with Service(place, registry, "--capacity", "16", *options) as service:
        for tail in objects_of(registry):
            Path(f"{path_of(registry)}{tail}").unlink()
        # It sees that by itself.
        status, log = service.end(None)
        assert service.notified.next()["STOPPING"] == "1"
    lines = log.splitlines()
    assert status == 1
    assert f"the names of registry '{registry}' were removed: closing it" in lines[-2]
    if as_json:
        assert [json.loads(line)["level"] for line in lines[-2:]] == ["error", "error"]
    else:
        assert lines[-1].startswith(f"jidoka-shm: registry '{registry}': its names were removed")


# ---------------------------------------------------------------------------- no start


def test_a_living_writer_is_status_1_and_named(place: Place, registry: str) -> None:
    with SessionManager(registry, capacity=16) as manager:
        run = _run(place, registry)
        as_json = _run(place, registry, "--log-json")
        assert manager.writer_alive
    said = f"registry '{registry}' has a living writer: process {os.getpid()}"
    assert (run.returncode, run.stdout, run.stderr) == (1, "", f"jidoka-shm: {said}\n")
    assert (as_json.returncode, as_json.stdout) == (1, "")
    entry = json.loads(as_json.stderr)
    assert (entry["level"], entry["message"]) == ("error", said)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no.name"],
        ["n", "--capacity", "0"],
        ["n", "--capacity", "many"],
        ["n", "--slot-size", "100"],
        ["n", "--cleanup-delay", "-1"],
        ["n", "--cleanup-delay", "nan"],
        ["n", "--mode", "666"],
        ["n", "--mode", "rw"],
        ["n", "--wait", "-1"],
        ["n", "--max-clients", "0"],
        ["n", "--log-level", "loud"],
        ["n", "--nonsense"],
        ["n", "more"],
    ],
)
def test_wrong_usage_is_status_2_and_makes_nothing(
    place: Place, name: str, arguments: list[str]
) -> None:
    run = _run(place, *[name if each == "n" else each for each in arguments])
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("jidoka-shm: ")
    assert run.stderr.count("\n") == 1
    assert objects_of(name) == set()


def test_no_room_is_status_1(place: Place, name: str) -> None:
    run = _run(place, name, "--capacity", str(2**23), "--slot-size", "65536")
    assert (run.returncode, run.stdout) == (1, "")
    assert "bytes of /dev/shm" in run.stderr
    assert objects_of(name) == set()


# ---------------------------------------------------------------------------- its options


def test_the_options_are_the_managers(place: Place, registry: str) -> None:
    _fill(registry, 1)
    size = ["--capacity", "100", "--slot-size", "1024"]
    others = ["--cleanup-delay", "0", "--mode", "640", "--fresh"]
    with Service(place, registry, *size, *others) as service, SessionReader(registry) as reader:
        stats = reader.stats()
        assert (stats.sessions, stats.slot_size) == (0, 1024)
        assert 100 <= stats.capacity < 200
        assert path_of(registry).stat().st_mode & 0o777 == 0o640
        assert service.end()[0] == 0


def test_what_no_option_says_is_as_the_manager_has_it() -> None:
    given = serve.make_context("serve", ["n"]).params
    parameters = inspect.signature(SessionManager).parameters
    shared = (parameters.keys() & given.keys()) - {"name"}
    assert len(shared) == len(parameters) - 2, "all but the name and listen"
    assert {key: given[key] for key in shared} == {key: parameters[key].default for key in shared}


def test_what_is_taken_over_gets_the_capacity_that_is_asked_for_at_least(
    place: Place, registry: str
) -> None:
    _fill(registry, 1)
    for asked, capacity in (("8", 16), ("100", 100)):
        with (
            Service(place, registry, "--capacity", asked) as service,
            SessionReader(registry) as reader,
        ):
            assert (reader.stats().sessions, reader.stats().capacity) == (1, capacity)
            assert service.end()[0] == 0


def test_it_grows_up_to_its_largest_capacity(place: Place, registry: str) -> None:
    with (
        Service(place, registry, "--capacity", "4", "--max-capacity", "6") as service,
        SessionClient(registry) as client,
    ):
        for _ in range(6):
            client.create_session()
        with pytest.raises(RegistryFull):
            client.create_session()
        assert client.stats().capacity == 6
        status, log = service.end()
        assert status == 0
        assert f"registry '{registry}': 6 slots of 512 bytes now, and 4 before" in log


def test_it_may_have_all_the_descriptors_that_the_system_gives(place: Place, registry: str) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))

    with Service(place, registry, "--capacity", "16", preexec_fn=few) as service:
        assert resource.prlimit(service.pid, resource.RLIMIT_NOFILE) == (hard, hard)
        assert service.end()[0] == 0


# ---------------------------------------------------------------------------- sd_notify


def test_an_abstract_notify_socket_is_told(place: Place, registry: str) -> None:
    address = f"@{registry}"
    with Service(place, registry, "--capacity", "16", address=address) as service:
        assert service.said["READY"] == "1"
        assert service.end()[0] == 0


@pytest.mark.parametrize("address", ["/nowhere/at/all", f"/{'long' * 99}", "vsock:2:1234"])
def test_a_notify_socket_that_nobody_hears_is_a_line_in_the_log(
    place: Place, registry: str, address: str
) -> None:
    place.environment["NOTIFY_SOCKET"] = address
    process = subprocess.Popen(
        [*COMMAND, "serve", registry, "--capacity", "16"],
        env=place.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    said = f"WARNING the service manager at '{address}' cannot be told: "
    # It serves all the same, up to a signal.
    before = list(itertools.takewhile(lambda line: said not in line, process.stderr))
    process.send_signal(signal.SIGTERM)
    _, after = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    assert f"serving registry '{registry}'" in before[-1]
    assert "SIGTERM: closing" in after
    assert "Traceback" not in after


# ---------------------------------------------------------------------------- its log

TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00 (INFO|WARNING) \S.*")


def test_the_log_is_lines_of_text(place: Place, registry: str) -> None:
    with Service(place, registry, "--capacity", "16") as service:
        _, log = service.end()
    lines = log.splitlines()
    assert all(TEXT_LINE.fullmatch(line) for line in lines), lines
    assert lines[-3].endswith(f" INFO serving registry '{registry}': 0 sessions")


def test_the_log_is_lines_of_json(place: Place, registry: str) -> None:
    with Service(place, registry, "--capacity", "16", "--log-json") as service:
        _, log = service.end()
    entries = [json.loads(line) for line in log.splitlines()]
    assert entries[-3]["message"] == f"serving registry '{registry}': 0 sessions"
    for entry in entries:
        assert list(entry)[:6] == ["time", "level", "message", "logger", "pid", "registry"]
        assert entry["registry"] == registry
        assert datetime.fromisoformat(entry["time"]).utcoffset().total_seconds() == 0
        assert (entry["level"], entry["logger"]) == ("info", "jidoka_shm")
        assert entry["pid"] == service.pid
    fields = {key: each for entry in entries for key, each in entry.items()}
    assert Path(fields["path"]).parent == place.path / "jidoka_shm"
    assert (fields["sessions"], fields["signal"]) == (0, "SIGTERM")


def test_at_debug_it_says_who_comes_and_goes(place: Place, registry: str) -> None:
    options = ["--capacity", "16", "--log-json", "--log-level", "debug"]
    with Service(place, registry, *options) as service:
        with SessionClient(registry) as client:
            client.create_session(pid=os.getpid())
            with pytest.raises(SessionNotFound):
                client.terminate_session(UUID(int=1))
        _, log = service.end()
    entries = [json.loads(line) for line in log.splitlines()]
    told = [entry for entry in entries if entry["level"] == "debug"]
    assert {entry["logger"] for entry in told} <= {"asyncio", "jidoka_shm"}
    pids = [entry.get("client_pid") or entry.get("owner_pid") for entry in told[1:]]
    assert pids == [os.getpid()] * 4
    (refused,) = [entry for entry in told if "error" in entry]
    assert (refused["session_id"], refused["error"]) == (str(UUID(int=1)), "SessionNotFound")


def test_what_others_say_is_lines_of_json_too(place: Place) -> None:
    code = """
        import logging, warnings
        from jidoka_shm.cli import logs
        logs.begin("info", as_json=True)
        logging.getLogger("asyncio").error("one")
        warnings.warn("two")
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=place.environment,
        stderr=subprocess.PIPE,
        text=True,
        check=True,
    )
    one, two = map(json.loads, run.stderr.splitlines())
    assert (one["logger"], one["message"]) == ("asyncio", "one")
    assert (two["level"], "UserWarning: two" in two["message"]) == ("warning", True)


def test_the_level_leaves_lines_out(place: Place, registry: str) -> None:
    with Service(place, registry, "--capacity", "16", "--log-level", "warning") as service:
        assert service.end() == (0, "")


def _record(message: str, *facts: object, **more: object) -> logging.LogRecord:
    logger = logging.getLogger("jidoka_shm.test")
    return logger.makeRecord("jidoka_shm", logging.ERROR, "f", 1, message, facts, None, extra=more)


def test_a_line_of_json_has_the_fields_that_the_caller_gave() -> None:
    line = logs.JsonLines().format(_record("%d\n\x1bö", 7, session="s", limit=3, level="no"))
    entry = json.loads(line)
    assert "\n" not in line
    assert line.isascii()
    assert entry["message"] == "7\n\x1bö"
    assert (entry["session"], entry["limit"], entry["level"]) == ("s", 3, "error")


def test_a_field_that_is_no_json_is_shown() -> None:
    entry = json.loads(logs.JsonLines().format(_record("x", what={1: object}, path=Path("/a"))))
    assert entry["path"] == repr(Path("/a"))


@pytest.mark.parametrize("formatter", [logs.JsonLines(), logs.TextLines()])
def test_an_exception_is_logged_with_its_traceback(formatter: logging.Formatter) -> None:
    record = _record("failed")
    try:
        raise KeyError(5)  # noqa: TRY301 - for its traceback
    except KeyError:
        record.exc_info = sys.exc_info()
    text = formatter.format(record)
    assert "KeyError: 5" in text
    assert "Traceback" in text
    assert ("\n" in text) == isinstance(formatter, logs.TextLines)


def test_a_line_of_text_is_one_whatever_the_message_holds() -> None:
    line = logs.TextLines().format(_record("a\nb\x1b[2J"))
    assert line.endswith("ERROR a\\nb\\u001b[2J")


def _lines(descriptor: int, *, as_json: bool = False) -> logs.Lines:
    """Return a handler that writes to a descriptor."""
    with open(descriptor, "w", closefd=False, encoding="ascii") as stream:
        handler = logs.Lines(stream)
    handler.setFormatter(logs.JsonLines() if as_json else logs.TextLines())
    return handler


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """A pipe whose end that is written to does not block."""
    ends = os.pipe2(os.O_NONBLOCK)
    try:
        yield ends
    finally:
        for end in ends:
            with contextlib.suppress(OSError):
                os.close(end)


def _fill_pipe(end: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(end, b"x" * (1 << 16))
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(end, b"x")


def _drain(end: int) -> bytes:
    found = b""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(end, 1 << 16):
            found += data
    return found


def test_lines_for_which_a_pipe_has_no_room_are_counted() -> None:
    with _pipe() as (reader, writer):
        lines = _lines(writer, as_json=True)
        _fill_pipe(writer)
        for number in range(3):
            lines.handle(_record("lost %d", number))
        assert set(_drain(reader)) == {ord("x")}
        for text in ("four", "five"):
            lines.handle(_record(text))
        said, four, five = map(json.loads, _drain(reader).splitlines())
    assert (said["level"], said["logger"]) == ("warning", "jidoka_shm")
    assert re.fullmatch(
        r"3 lines of this log could not be written: \[Errno \d+\] .+", said["message"]
    )
    assert [four["message"], five["message"]] == ["four", "five"]


def test_a_line_that_was_cut_is_lost_and_the_next_one_is_whole() -> None:
    """More than a pipe takes at once, of which it takes a part."""
    with _pipe() as (reader, writer):
        lines = _lines(writer)
        lines.handle(_record("y" * (1 << 17)))
        assert _drain(reader).endswith(b"yyy")
        lines.handle(_record("next"))
        empty, said, line = _drain(reader).split(b"\n")[:-1]
    assert empty == b""
    assert b" WARNING 1 lines of this log could not be written" in said
    assert line.endswith(b" ERROR next")


def test_a_full_disk_takes_lines_again(tmp_path: Path) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    path = tmp_path / "log"
    try:
        lines = _lines(descriptor)
        lines.handle(_record("lost"))
        with path.open("wb") as room:
            os.dup2(room.fileno(), descriptor)
        lines.handle(_record("kept"))
    finally:
        os.close(descriptor)
    said, kept = path.read_text().splitlines()
    assert "1 lines of this log could not be written" in said
    assert kept.endswith(" ERROR kept")


@pytest.mark.parametrize("make", [os.pipe, os.openpty])
def test_where_nobody_reads_nothing_is_written_any_more(
    make: Callable[[], tuple[int, int]],
) -> None:
    """Of a pipe, or of a terminal that was closed."""
    reader, writer = make()
    os.close(reader)
    try:
        lines = _lines(writer)
        for _ in range(2):
            lines.handle(_record("unread"))
        assert os.readlink(f"/proc/self/fd/{writer}") == os.devnull  # noqa: PTH115 - text
        assert lines._lost == 0
    finally:
        os.close(writer)


def test_where_nobody_reads_and_no_descriptor_is_left_nothing_fails() -> None:
    with _pipe() as (reader, writer):
        os.close(reader)
        lines = _lines(writer)
        with descriptors_left(0):
            lines.handle(_record("unread"))
        lines.handle(_record("unread"))
        assert os.readlink(f"/proc/self/fd/{writer}") == os.devnull  # noqa: PTH115 - text


def test_a_full_disk_below_its_log_is_no_failure(place: Place, registry: str) -> None:
    """Nor does it change how a command ends that has something to say there."""

    def fill() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), 2)

    with Service(place, registry, "--capacity", "16", preexec_fn=fill) as service:
        second = subprocess.run(
            [*COMMAND, "serve", registry],
            env=place.environment,
            preexec_fn=fill,
            check=False,
            timeout=LIMIT,
        )
        assert second.returncode == 1
        assert service.end() == (0, "")


# ---------------------------------------------------------------------------- its clients


def test_many_processes_that_start_one_get_the_same(place: Place, registry: str) -> None:
    code = f"""
        import sys
        from jidoka_shm import SessionClient
        with SessionClient({registry!r}, timeout={LIMIT}, start=True) as client:
            print(client.create_session(), client._view.control.writer().pid)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    started = [
        subprocess.Popen(
            command,
            env=place.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    said = [process.communicate(timeout=LIMIT) for process in started]
    assert [err for _, err in said] == [""] * 4
    made, pids = zip(*(out.split() for out, _ in said), strict=True)
    with SessionReader(registry) as reader:
        assert {str(session_id) for session_id in reader} == set(made)
        (pid,) = map(int, set(pids))
        # One that is late to find the registry taken would be the next writer.
        wait_until(lambda: processes_of(registry) == {pid})
        os.kill(pid, signal.SIGTERM)
        # It is nobody's child here; what it closed has no writer.
        wait_until(lambda: not reader.writer_alive)
    with SessionManager(registry, wait=LIMIT) as manager:
        assert manager.recovery is not None
        assert (manager.recovery.clean, manager.recovery.kept) == (True, 4)


# ---------------------------------------------------------------------------- README.md


def test_the_readmes_service_is_one(place: Place, registry: str) -> None:
    """The block as it stands, pasted at once: no line may be too early for the one before."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"(?ms)^```sh\n(.*?)^```", readme)
    assert len(block.splitlines()) == 3
    (place.path / ".venv" / "bin").mkdir(parents=True)
    for program, words in {"jidoka-shm": COMMAND, "python": COMMAND[:3]}.items():
        script = place.path / ".venv" / "bin" / program
        script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        script.chmod(0o700)
    run = subprocess.run(
        ["/bin/sh", "-c", block.replace("agents", registry) + "kill $!; wait $!; echo $?"],
        env=place.environment,
        cwd=place.path,
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT,
    )
    _, listed, status = run.stdout.splitlines()
    assert listed.endswith('\t{"n": 1}')
    assert status == "0"
    assert "Traceback" not in run.stderr


def test_a_signal_that_comes_as_it_is_ignored_is_not_reported() -> None:
    """CPython's traceback of it would look like a fault; whatever else nobody can catch is told."""
    told: list[Any] = []
    for error in (
        OSError("Signal 15 ignored due to race condition"),
        OSError("else"),
        ValueError(),
    ):
        found: Any = SimpleNamespace(exc_value=error)
        _report(told.append, found)
    assert [str(each.exc_value) for each in told] == ["else", ""]
