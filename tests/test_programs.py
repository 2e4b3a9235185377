"""From what a session is to run to a command line; and the callee, which reads that again."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import types
from typing import TYPE_CHECKING, Any
from uuid import UUID

import agents
import pytest
from agents import ENVIRONMENT

from jidoka_shm import InvalidMetadata, SessionNotStarted, callee
from jidoka_shm.programs import environment_of, to_program

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _called(runs: Callable[..., object]) -> tuple[str, list[Any], dict[str, Any]]:
    """Return which callable a command calls, and with what."""
    *_, target, given = to_program(runs, env=None, cwd=None).command
    arguments = json.loads(given)
    return target, arguments["args"], arguments["kwargs"]


def test_a_command_is_looked_for_as_its_own_environment_has_it(tmp_path: Path) -> None:
    script = tmp_path / "agent"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    for runs, env, cwd in [
        (["agent", "a b"], {"PATH": str(tmp_path)}, None),
        (["./agent", "a b"], {}, tmp_path),
        ((script, "a b"), {}, None),
    ]:
        program = to_program(runs, env=env, cwd=cwd)
        assert program.path == str(script)
        assert program.command == [str(runs[0]), "a b"]
        assert program.environment == env
    with pytest.raises(SessionNotStarted):
        to_program(["agent"], env={}, cwd=tmp_path)


def test_a_partial_of_a_partial_is_called_as_it_would_be_here() -> None:
    inner = functools.partial(agents.tell, "a", b=1, c=2)
    outer = functools.partial(inner, ["b"], c={"d": None})
    assert _called(outer) == ("agents:tell", ["a", ["b"]], {"b": 1, "c": {"d": None}})


def test_a_class_and_what_is_in_it_can_be_called() -> None:
    assert _called(agents.Agent) == ("agents:Agent", [], {})
    assert _called(agents.Agent.run) == ("agents:Agent.run", [], {})


def test_what_another_process_would_not_find_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def local() -> None:
        """Have a name of its own, in a function."""

    class Callable:
        def __call__(self) -> None: ...

    other = types.FunctionType(agents.fail.__code__, {}, "fail")
    other.__module__, other.__qualname__ = "agents", "fail"
    for runs in (local, Callable(), agents.Agent().__init__, other, len.__call__):
        with pytest.raises(ValueError, match="cannot be found by its name"):
            to_program(runs, env=None, cwd=None)
    # What is typed in or piped in has no module to import.
    monkeypatch.setattr(agents.fail, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "fail", agents.fail, raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    with pytest.raises(ValueError, match="put it into a module"):
        to_program(agents.fail, env=None, cwd=None)


def test_arguments_that_would_come_as_others_are_refused() -> None:
    for argument in ((1, 2), {1: 2}, b"", float("nan"), UUID(int=1), 1 << 80):
        with pytest.raises(InvalidMetadata, match=r'arguments\["kwargs"\]\["a"\]'):
            to_program(functools.partial(agents.tell, a=argument), env=None, cwd=None)


def test_a_process_is_told_nothing_of_this_ones_own_session(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("JIDOKA_READY_FD", "JIDOKA_SHM_NAME", "JIDOKA_SESSION_ID"):
        monkeypatch.setenv(name, "outer")
    program = to_program(["sleep"], env=None, cwd=None)
    told = environment_of(program, "inner", UUID(int=1), "")
    assert told["JIDOKA_SHM_NAME"] == "inner"
    assert told["JIDOKA_SESSION_ID"] == str(UUID(int=1))
    assert "JIDOKA_READY_FD" not in told
    assert environment_of(program, "inner", UUID(int=1), "5:6")["JIDOKA_READY_FD"] == "5:6"
    assert os.environ["JIDOKA_SHM_NAME"] == "outer"


def test_the_callee_calls_what_it_is_told_and_hides_how(tmp_path: Path) -> None:
    (tmp_path / "called.py").write_text("import sys\ndef work(*a, **k): print(a, k, sys.argv)\n")
    path, given = (
        json.dumps([str(tmp_path), *sys.path]),
        json.dumps({"args": [1], "kwargs": {"b": []}}),
    )
    run = subprocess.run(
        [sys.executable, *callee.BOOTSTRAP, path, "called:work", given],
        env=ENVIRONMENT | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.stdout, run.stderr) == ("(1,) {'b': []} ['-c']\n", "")
