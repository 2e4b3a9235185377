"""The command: the demo on real processes, its exit status, and that nothing stays behind."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID

import msgspec
import pytest
from click.testing import CliRunner
from support import wait_until

from jidoka_shm import SessionManager, segment
from jidoka_shm.cli import app as app_module
from jidoka_shm.cli import children, demo, proofs
from jidoka_shm.cli.demo import sample_path
from jidoka_shm.cli.figures import Figures, as_table
from jidoka_shm.cli.ledger import Ledger
from jidoka_shm.errors import RecordTooLarge
from jidoka_shm.session import Session

COMMAND = [sys.executable, "-c", "from jidoka_shm.cli import main; main()", "demo"]
ID = UUID(int=7)


def _demo(*options: str) -> tuple[int, dict[str, object]]:
    run = subprocess.run(
        [*COMMAND, "--json", *options], capture_output=True, text=True, check=False
    )
    assert run.returncode in {0, 1}, run.stderr
    return run.returncode, json.loads(run.stdout)


def _objects_of_demos() -> list[str]:
    return [name for name in segment.names() if name.startswith("/jidoka_shm.demo-")]


def test_the_demo_takes_over_and_loses_nothing() -> None:
    status, figures = _demo("--seconds", "3", "--readers", "2")
    assert status == 0
    assert figures["passed"] is True
    assert (figures["torn"], figures["lost"], figures["problems"]) == (0, 0, [])
    assert figures["acknowledged"] == figures["recovered"] == len(proofs.load(sample_path()))
    assert figures["overlapped"] > 0
    assert figures["look_ups_without_writer"] > 0
    assert figures["commits"] > figures["acknowledged"]
    assert len(figures["readers"]) == 2
    assert not _objects_of_demos()


def test_the_demo_can_fail() -> None:
    status, figures = _demo("--seconds", "3", "--readers", "2", "--break")
    assert status == 1
    assert figures["torn"] > 0
    assert not _objects_of_demos()


@pytest.mark.parametrize(
    ("number", "status", "line"),
    [
        (signal.SIGINT, 130, b"\njidoka-shm: interrupted\n"),
        (signal.SIGTERM, 143, b""),
        (signal.SIGHUP, 129, b""),
    ],
)
def test_the_demo_leaves_nothing_after_a_signal(
    number: signal.Signals, status: int, line: bytes
) -> None:
    # In a group of its own, as a shell gives it, so that an interrupt reaches all of it.
    run = subprocess.Popen(
        [*COMMAND, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
    )
    wait_until(_objects_of_demos)
    if number == signal.SIGINT:
        os.killpg(run.pid, number)
    else:
        run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert (run.returncode, said) == (status, line)
    assert not _objects_of_demos()


def test_the_demos_processes_do_not_outlive_it() -> None:
    run = subprocess.Popen(
        [*COMMAND, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
    )
    wait_until(lambda: _objects_of_demos() and len(_group(run.pid)) >= 3)
    run.kill()
    run.communicate(timeout=60)
    wait_until(lambda: not _group(run.pid))
    for name in _objects_of_demos():
        segment.unlink(name)


def _group(group: int) -> list[int]:
    """Return the processes of a process group, those that have ended left out."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and int(fields[2]) == group:
            found.append(int(path.parent.name))
    return found


def test_a_file_of_ones_own_is_used(tmp_path: Path) -> None:
    lines = [{"metadata": {"n": n}, "llm_config": {"model": "ö"}} for n in range(30)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    status, figures = _demo(str(path), "--seconds", "2", "--readers", "1")
    assert (status, figures["acknowledged"]) == (0, 30)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        '{"metadata": {}}',
        '{"metadata": [], "llm_config": {}}',
        '{"metadata": 1',
        '{"metadata": null, "llm_config": null}',
        '{"metadata": {"proof": 1}, "llm_config": {}}',
        '{"metadata": {"a": NaN}, "llm_config": {}}',
        '{"metadata": {"a": 18446744073709551616}, "llm_config": {}}',
        '{"metadata": {"a": "\\ud800"}, "llm_config": {}}',
        '{"metadata": {}, "llm_config": {"a": "' + 1_100_000 * "x" + '"}}',
        '{"metadata": {"a": ' + 100_000 * "[" + "]}",
        "\x1b[2J",
        b'{"metadata": {"a": "\xff"}, "llm_config": {}}',
    ],
)
def test_a_file_that_holds_something_else_is_named_with_its_line(
    tmp_path: Path, text: str | bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.jsonl"
    # Line ends of JSON, and one that only Python takes for one, within a string.
    good = '{"metadata": {"a": "\u2028\x0b"}, "llm_config": {}}'.replace("\x0b", "\\u000b")
    raw = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(good.encode() + b"\r\n" + raw + b"\n" if raw else b"")
    with pytest.raises(SystemExit) as ended:
        app_module.app(["demo", str(path)])
    out, said = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert f"{path}, line 2: " in said if raw else f"{path} holds no session" in said
    assert said[:-1].isprintable()
    assert said.startswith("jidoka-shm: ")


def test_the_largest_record_that_is_taken_fits(name: str, tmp_path: Path) -> None:
    def load(length: int) -> list[proofs.Sample]:
        path = tmp_path / "large.jsonl"
        path.write_text(json.dumps({"metadata": {"a": "x" * length}, "llm_config": {}}))
        return proofs.load(path)

    def is_taken(length: int) -> bool:
        with contextlib.suppress(ValueError):
            return bool(load(length))
        return False

    longest = max(filter(is_taken, range(proofs.LIMIT - 200, proofs.LIMIT)))
    (sample,) = load(longest)
    with SessionManager(name, capacity=2) as manager:
        sid = manager.create_session(*proofs.proven(sample, ID, 2**32 - 1))
        manager.update_session(sid, status="active")
        manager.terminate_session(sid)
        # One byte more would not have fitted.
        sample[0]["a"] += "x"
        with pytest.raises(RecordTooLarge):
            manager.create_session(*proofs.proven(sample, ID, 2**32 - 1))
        manager.unlink()


def test_a_sample_may_come_through_a_pipe() -> None:
    line = json.dumps({"metadata": {"n": 1}, "llm_config": {}}).encode()
    run = subprocess.run(
        [*COMMAND, "/dev/stdin", "--seconds", "1", "--readers", "1", "--json"],
        input=line,
        capture_output=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, b"")
    assert json.loads(run.stdout)["acknowledged"] == 1


def test_a_process_of_the_demo_fails_in_one_line() -> None:
    options = json.dumps({"name": "a.b", "run": str(ID), "count": 1, "seed": 1, "careless": False})
    run = subprocess.run(
        [sys.executable, "-m", "jidoka_shm.cli.workers", "read", options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("jidoka-shm demo, read: 'a.b' is no registry name")
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "options", [["--readers", "0"], ["--seconds", "0"], ["--nonsense"], ["no"]]
)
def test_wrong_usage_is_status_2(options: list[str]) -> None:
    assert CliRunner().invoke(app_module.app, ["demo", *options]).exit_code == 2


def test_without_the_extra_the_command_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['click'] = None\nfrom jidoka_shm.cli import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "pip install 'jidoka-shm[cli]'" in run.stderr
    assert "Traceback" not in run.stderr


def test_the_sample_is_what_it_should_be() -> None:
    samples = proofs.load(sample_path())
    sizes = [len(msgspec.msgpack.encode(a)) + len(msgspec.msgpack.encode(b)) for a, b in samples]
    assert len(samples) >= 1000
    assert min(sizes) >= 60
    assert 18_000 <= max(sizes) <= 20_480
    assert 30 <= sum(size > 512 for size in sizes) <= 100
    assert any(not str(sample).isascii() for sample in samples)
    assert any(isinstance(value, dict) for sample in samples for value in sample[0].values())


def _proven(change: int, other: dict[str, object]) -> Session:
    metadata, llm_config = proofs.proven(({"a": [1]}, {"m": "x"}), ID, change)
    return Session.make(session_id=ID, metadata=metadata | other, llm_config=llm_config)


def test_a_record_proves_which_change_it_is_of() -> None:
    assert proofs.change_of(_proven(3, {})) == 3


@pytest.mark.parametrize("other", [{"a": [2]}, {"change": 4}, {"proof": 1}, {"more": None}])
def test_a_record_that_was_changed_proves_nothing(other: dict[str, object]) -> None:
    assert proofs.change_of(_proven(3, other)) is None


def test_a_record_of_another_session_proves_nothing() -> None:
    metadata, llm_config = proofs.proven(({}, {}), ID, 1)
    other = Session.make(session_id=UUID(int=8), metadata=metadata, llm_config=llm_config)
    assert proofs.change_of(other) is None


def test_maps_of_two_changes_prove_nothing() -> None:
    metadata, _ = proofs.proven(({}, {}), ID, 1)
    _, llm_config = proofs.proven(({}, {}), ID, 2)
    torn = Session.make(session_id=ID, metadata=metadata, llm_config=llm_config)
    assert proofs.change_of(torn) is None


def test_the_ledger_is_seen_by_whoever_maps_it(tmp_path: Path) -> None:
    one, other = (Ledger(tmp_path / "ledger", 3) for _ in range(2))
    one.intended[1], one.acknowledged[1] = 5, 4
    assert (other.intended.tolist(), other.acknowledged.tolist()) == ([0, 5, 0], [0, 4, 0])
    assert other.changes() == 4


GOOD = Figures(
    seconds=2.0,
    readers=(
        {
            "look_ups_per_second": 1e5,
            "fresh_p50_ns": 1.0,
            "fresh_p99_ns": 2.0,
            "repeated_p50_ns": 3.0,
            "repeated_p99_ns": 4.0,
        },
    ),
    look_ups=200_000,
    look_ups_without_writer=5,
    commits=10,
    retries=1,
    overlapped=1,
    torn=0,
    acknowledged=2,
    recovered=2,
    lost=0,
    problems=(),
    careless=False,
)


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ({"torn": 1}, "1 torn"),
        ({"lost": 2}, "2 lost"),
        ({"problems": ("slot 3 is twice",)}, "slot 3 is twice"),
        ({"overlapped": 0}, "no read overlapped"),
    ],
)
def test_each_fault_fails_the_run(
    fault: dict[str, object], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = dataclasses.replace(GOOD, **fault)
    assert not failed.passed
    as_table(failed)
    assert word in capsys.readouterr().out


def test_a_good_run_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert GOOD.passed
    as_table(GOOD)
    assert "none that was acknowledged was lost" in capsys.readouterr().out


def test_a_process_of_the_demo_that_does_not_end_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(children, "PATIENCE", 0.05)
    worker = children.Worker.__new__(children.Worker)
    worker._process = subprocess.Popen(
        [sys.executable, "-c", "import signal; signal.pause()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    worker._listener = threading.Thread(target=lambda: None)
    worker._listener.start()
    try:
        with pytest.raises(TimeoutError, match="did not end"):
            worker.stop()
    finally:
        worker.discard()


def test_a_demo_that_does_not_come_to_its_commits_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "PATIENCE", 0.05)
    stuck = SimpleNamespace(_seconds=0.0, _commits=1)
    book = SimpleNamespace(changes=lambda: 0)
    with pytest.raises(TimeoutError, match="did not come to its end"):
        demo.Demo._until(stuck, 1.0, time.monotonic(), book, [], lambda: None)
