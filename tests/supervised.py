"""Services as processes of their own, told apart from the test by nothing but a notify socket."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jidoka_shm

if TYPE_CHECKING:
    from typing import Self

#: Where the package under test is imported from: this folder, or where a wheel was installed.
PACKAGES = Path(jidoka_shm.__file__).parents[1]

#: This project's folder, with its documents.
ROOT = Path(__file__).parents[1]

#: The command, with warnings as errors.
COMMAND = [sys.executable, "-W", "error", "-m", "jidoka_shm"]

#: Nothing takes so long; it only catches hanging, in seconds.
LIMIT = 60.0


class Place:
    """A runtime directory of the test's own, with a path that is short enough for sockets."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="jk")
        self.path = Path(self._directory.name)
        self.environment = os.environ | {
            "PYTHONPATH": str(PACKAGES),
            "XDG_RUNTIME_DIR": str(self.path),
            # As users have it: what is buffered at the end counts.
            "PYTHONUNBUFFERED": "",
        }
        # What the process that runs the tests was given is no business of theirs.
        self.environment.pop("NOTIFY_SOCKET", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._directory.cleanup()


class NotifySocket:
    """What a service manager listens at."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        self._socket.settimeout(LIMIT)

    def next(self) -> dict[str, str]:
        """Return what is said next."""
        text = self._socket.recv(4096).decode()
        return dict(line.split("=", 1) for line in text.split("\n"))

    def close(self) -> None:
        self._socket.close()


class Service:
    """``jidoka-shm serve``, from its first line to its end."""

    def __init__(
        self,
        place: Place,
        name: str,
        *options: str,
        address: str | None = None,
        **more: Any,  # noqa: ANN401 - subprocess.Popen's own
    ) -> None:
        """Start it.

        Args:
            place: where it listens.
            name: its registry's name.
            options: of the command.
            address: of the notify socket.
            more: of ``subprocess.Popen``.
        """
        self.notified = NotifySocket(address or str(place.path / f"notify-{os.urandom(4).hex()}"))
        self.process = subprocess.Popen(
            [*COMMAND, "serve", name, *options],
            env=place.environment | {"NOTIFY_SOCKET": self.notified.address},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **more,
        )
        self.pid = self.process.pid
        try:
            #: What the service manager is told first.
            self.said = self.notified.next()
        except BaseException:
            print(self.kill())
            self.close()
            raise

    def end(self, number: signal.Signals | None = signal.SIGTERM) -> tuple[int, str]:
        """Send it a signal, or none, and return its exit status and what it logged."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=LIMIT)
        if out:
            msg = f"it printed {out!r}"
            raise AssertionError(msg)
        return self.process.returncode, err

    def kill(self) -> str:
        """Kill it, and return what it logged."""
        self.process.kill()
        return self.process.communicate(timeout=LIMIT)[1]

    def close(self) -> None:
        """Leave nothing of it."""
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        self.notified.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
