"""Fixtures for every test: a name of its own, and nothing left behind."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from jidoka_shm import segment

if TYPE_CHECKING:
    from collections.abc import Iterator

_numbers = itertools.count()


def _objects() -> set[str]:
    return {name for name in segment.names() if name.startswith(f"/jidoka_shm.t{os.getpid()}-")}


def _children() -> set[int]:
    """Return the pids of this process's children, zombies included."""
    text = Path(f"/proc/self/task/{threading.main_thread().native_id}/children").read_text()
    tasks = Path("/proc/self/task").iterdir()
    texts = [text, *((task / "children").read_text() for task in tasks if task.exists())]
    return {int(pid) for text in texts for pid in text.split()}


@pytest.fixture
def name() -> str:
    """A registry name that no other test of any run has."""
    return f"t{os.getpid()}-{next(_numbers)}"


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that leaves shared memory, a process, a thread or a descriptor behind."""
    children, threads = _children(), set(threading.enumerate())
    yield
    # multiprocessing's own server processes stay on purpose, one of each kind a session.
    helpers = {_pid(multiprocessing.resource_tracker), _pid(multiprocessing.forkserver)}
    left = {
        "objects": _objects(),
        "processes": _children() - children - helpers,
        "threads": {t.name for t in set(threading.enumerate()) - threads if t.is_alive()},
    }
    for name in left["objects"]:
        segment.unlink(name)
    assert not any(left.values()), left


def _pid(module: object) -> int | None:
    """Return the pid of a server process of multiprocessing, where it was started."""
    for attribute in ("_resource_tracker", "_forkserver"):
        server = getattr(module, attribute, None)
        if server is not None:
            return getattr(server, "_pid", None) or getattr(server, "_forkserver_pid", None)
    return None

