"""What the benchmarks ran on: the processor, its cores, the kernel, Python and the packages."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import jidoka_shm
from benchmarks import peers
from benchmarks.peers import redis_server

if TYPE_CHECKING:
    from collections.abc import Iterable


def describe(systems: Iterable[str]) -> dict[str, str]:
    """Return the environment, with the versions of what the systems use."""
    found = {
        "cpu": _cpu(),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "jidoka_shm": jidoka_shm.__version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for system in systems:
        found |= _versions(system)
    return found


def _versions(system: str) -> dict[str, str]:
    found = {
        package: importlib.metadata.version(package) for package in peers.load(system).packages
    }
    match system:
        case "sqlite":
            found["SQLite"] = sqlite3.sqlite_version
        case "redis":
            found |= _said_by(redis_server() or "redis-server", "--version")
        case "ets" | "genserver":
            found |= _said_by("elixir", "--short-version")
    return found


def _said_by(program: str, option: str) -> dict[str, str]:
    run = subprocess.run([program, option], capture_output=True, text=True, check=False)
    words = run.stdout.split()
    # "Redis server v=7.0.15 sha=..." and "Valkey server v=...", and a version alone.
    version = next((word for word in words if word.startswith("v=")), " ".join(words[:1]))
    return {Path(program).name: version.removeprefix("v=")}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
