"""A process that stands beside what is measured: a service, an echo."""

from __future__ import annotations

import os
import subprocess
import sys


def environment() -> dict[str, str]:
    """Return the environment of a process that imports what this one does."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}


class Companion:
    """A Python process that works until its input ends."""

    def __init__(self, code: str, *arguments: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert self._process.stdout  # noqa: S101 - a pipe was asked for
        if self._process.stdout.readline() != "up\n":
            self.end()
            msg = "a process of the benchmark did not start"
            raise RuntimeError(msg)

    def end(self) -> str:
        """End it, wait for it, and return what it printed last."""
        printed, _ = self._process.communicate()
        return printed
