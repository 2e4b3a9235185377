"""From what a session is to run to the command line of its process. Nothing is started here."""

from __future__ import annotations

import functools
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from . import callee
from .errors import SessionNotStarted, shown
from .maps import encode_map
from .ready import NAME, READY_FD, SESSION_ID

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    #: What a session may run.
    Runs = Sequence[str | os.PathLike[str]] | Callable[..., object]

_UNUSABLE: Final = (
    "give a list of arguments such as ['python', 'agent.py'] (no shell reads it), or a function "
    "that can be imported"
)


class Program(NamedTuple):
    """What is to be started.

    Attributes:
        path: the file that is executed.
        command: its arguments, its own name first.
        directory: where it runs; None is where this process does.
        environment: all of its environment.
        text: what errors call it.
    """

    path: str
    command: list[str]
    directory: str | None
    environment: dict[str, str]
    text: str


def to_program(
    runs: Runs, *, env: Mapping[str, str] | None, cwd: str | os.PathLike[str] | None
) -> Program:
    """Return the program that runs a command, or calls a callable.

    Raises:
        SessionNotStarted: where there is no such command, or directory.
        ValueError, TypeError: for what cannot be run.
        InvalidMetadata: for arguments of a callable that JSON does not hold.
        RuntimeError: where a callable's own module starts sessions while it is imported.
    """
    environment = dict(os.environ) if env is None else _check_environment(env)
    directory = _check_directory(cwd)
    command, text = _call(runs) if callable(runs) else _check_command(runs)
    if directory is not None and not Path(directory).is_dir():
        raise SessionNotStarted(text, f"there is no directory {shown(directory)}")
    path = _find(command[0], environment, directory)
    if path is None:
        raise SessionNotStarted(text, "no such program can be executed")
    return Program(path, command, directory, environment, text)


def environment_of(program: Program, name: str, session_id: UUID, channel: str) -> dict[str, str]:
    """Return a program's environment with what tells it whose process it is.

    Args:
        program: the program.
        name: the registry's name.
        session_id: its session.
        channel: where it says that it is ready; empty where nobody waits for that.
    """
    told = {NAME: name, SESSION_ID: str(session_id)}
    # Not this process's own channel, of a session that starts others before it is ready.
    rest = {key: value for key, value in program.environment.items() if key != READY_FD}
    return rest | told | ({READY_FD: channel} if channel else {})


def check_output(name: str, output: object) -> None:
    """Refuse what a program's output cannot go to.

    Raises:
        ValueError, TypeError: for what is no file, no descriptor and neither of ``subprocess``'s
            ``DEVNULL`` and ``STDOUT``.
    """
    # Asked of the file itself, which may be closed.
    output = output.fileno() if hasattr(output, "fileno") else output
    if output is not None and (not isinstance(output, int) or isinstance(output, bool)):
        msg = f"{name} is of type {type(output).__name__}: it must be a file or a descriptor"
        raise TypeError(msg)
    if output == subprocess.PIPE:
        msg = f"{name} is a pipe, which nobody would read: give a file or a descriptor"
        raise ValueError(msg)


def _check_environment(env: object) -> dict[str, str]:
    if not isinstance(env, Mapping):
        msg = f"env is of type {type(env).__name__}: it must be a mapping of str to str, or None"
        raise TypeError(msg)
    for key, value in env.items():
        if not (isinstance(key, str) and isinstance(value, str)):
            msg = f"env holds {shown(key)}: {shown(value)}: keys and values must be str"
            raise TypeError(msg)
        if not key or "=" in key or not _can_be_given(key + value):
            msg = f"env holds {shown(key)}: {shown(value)}, which no environment can hold"
            raise ValueError(msg)
    return dict(env)


def _check_directory(cwd: object) -> str | None:
    try:
        return None if cwd is None else os.fsdecode(cwd)  # type: ignore[arg-type] # refused below
    except TypeError:
        msg = f"cwd is of type {type(cwd).__name__}: it must be a path, or None"
        raise TypeError(msg) from None


def _check_command(runs: object) -> tuple[list[str], str]:
    if isinstance(runs, str | bytes) or not isinstance(runs, Sequence):
        msg = f"{shown(runs)} is of type {type(runs).__name__}: {_UNUSABLE}"
        raise TypeError(msg)
    try:
        command = [os.fsdecode(each) for each in runs]
    except TypeError:
        msg = f"{shown(runs)} holds something else than str and paths: {_UNUSABLE}"
        raise TypeError(msg) from None
    if not command or not command[0] or not all(map(_can_be_given, command)):
        msg = f"{shown(runs)} is no command: {_UNUSABLE}"
        raise ValueError(msg)
    return command, shown(command)


def _can_be_given(text: str) -> bool:
    """Return whether a process can be given a text."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _find(name: str, environment: dict[str, str], directory: str | None) -> str | None:
    """Return the file of a command, as the program's own environment and directory have it."""
    if os.sep in name:
        name = os.path.join(directory or "", name)  # noqa: PTH118 - text in, text out
    found = shutil.which(name, path=environment.get("PATH", os.defpath))
    return None if found is None else os.path.abspath(found)  # noqa: PTH100 - as above


# ---------------------------------------------------------------------------- callables


def _call(runs: Callable[..., object]) -> tuple[list[str], str]:
    """Return the command that calls a function, a class or a ``functools.partial`` of one."""
    if callee.is_importing():
        msg = (
            f"{shown(runs)} would be started by each process that imports its module: start "
            "sessions under if __name__ == '__main__'"
        )
        raise RuntimeError(msg)
    args: list[Any] = []
    keywords: dict[str, Any] = {}
    while isinstance(runs, functools.partial):
        args, keywords = [*runs.args, *args], {**runs.keywords, **keywords}
        runs = runs.func
    given = {"args": args, "kwargs": keywords}
    # Says where something stands that JSON does not hold.
    encode_map(given, "arguments")
    target = _name_of(runs)
    path = [os.path.abspath(each) for each in sys.path]  # noqa: PTH100 - text in, text out
    command = [sys.executable, *callee.BOOTSTRAP, json.dumps(path), target, json.dumps(given)]
    return command, target


def _name_of(runs: Callable[..., object]) -> str:
    """Return the name by which another process finds a callable.

    Raises:
        ValueError: where it would not find this very one.
    """
    module, name = getattr(runs, "__module__", None), getattr(runs, "__qualname__", None)
    msg = (
        f"{shown(runs)} cannot be found by its name in another process: give a function at the "
        "top level of a module, or functools.partial of one"
    )
    try:
        found = pkgutil.resolve_name(f"{module}:{name}")
    except (ValueError, ImportError, AttributeError):
        raise ValueError(msg) from None
    # Methods of a class are made anew at each access.
    if found is not runs and found != runs:
        raise ValueError(msg)
    return f"{_main_module() if module == '__main__' else module}:{name}"


def _main_module() -> str:
    """Return the name by which the running script can be imported."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name)
    name = Path(file).stem if file else ""
    if not name.isidentifier():
        msg = "what is defined in __main__ cannot be imported here: put it into a module"
        raise ValueError(msg)
    return name
