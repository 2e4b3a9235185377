"""The demo's processes as it sees them: started, listened to, killed, and waited for."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

#: A process that reports nothing for so long, or a run that takes so long, has gone wrong.
PATIENCE: Final = 120.0


class Worker:
    """A process of the demo, with what it reported last."""

    def __init__(self, role: str, **options: Any) -> None:  # noqa: ANN401 - whatever JSON takes
        command = [sys.executable, "-m", "jidoka_shm.cli.workers", role, json.dumps(options)]
        self._process = subprocess.Popen(  # noqa: S603 - this package, with its own options
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.reports = 0
        self.last: dict[str, Any] = {}
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        for line in self._process.stdout or ():
            # One store, so that no other thread ever sees half of two reports.
            self.last = {**self.last, **json.loads(line)}
            self.reports += 1

    def has_said(self, name: str) -> bool:
        """Return whether any report had ``name``."""
        return name in self.last

    def has_denied(self, name: str) -> bool:
        """Return whether the last report that had ``name`` said that it is False."""
        return self.last.get(name) is False

    def has_reported(self, times: int) -> bool:
        """Return whether there were so many reports."""
        return self.reports >= times

    def kill(self) -> None:
        """End it as a crash does."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> dict[str, Any]:
        """Have it end by itself and return what it reported at last."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        check(self)
        if self._process.poll() is None:
            msg = f"a process of the demo did not end within {PATIENCE:g} s"
            raise TimeoutError(msg)
        self._listener.join(PATIENCE)
        return self.last

    def discard(self) -> None:
        """Make sure that it is gone, and its pipes with it."""
        self.kill()
        self._listener.join(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def failed(self) -> bool:
        """Return whether it ended by itself with an error."""
        return self._process.poll() not in {None, 0, -signal.SIGKILL}


def wait(condition: Callable[[], bool], worker: Worker) -> None:
    """Wait for what a worker is to report; its death is an error, and so is its silence."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        check(worker)
        if time.monotonic() >= deadline:
            msg = f"a process of the demo reported nothing for {PATIENCE:g} s"
            raise TimeoutError(msg)
        time.sleep(0.01)


def check(*workers: Worker) -> None:
    """Raise ``ChildProcessError`` where one ended with an error."""
    if any(worker.failed() for worker in workers):
        msg = "a process of the demo ended with an error, which it printed above"
        raise ChildProcessError(msg)
