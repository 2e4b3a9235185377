"""The processes that hold the systems, from the side that tells them what to do."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Final

import msgspec

from benchmarks.companion import environment
from benchmarks.worker import Answer, Order

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

#: Of what a worker printed before it failed.
LAST: Final = 2_000

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Answer).decode


class Failed(Exception):  # noqa: N818 - what a worker has done
    """A worker did not do what it was told."""


class Member:
    """A worker process of one system."""

    def __init__(self, system: str, place: Path, sessions: int) -> None:
        self.system = system
        self.place = place
        self.sessions = sessions
        self._log = place.with_name(f"{place.name}.log").open("a+")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "benchmarks.worker", system, str(place), str(sessions)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment(),
        )

    def tell(self, order: Order) -> None:
        """Send an order; ``hear`` returns what came of it."""
        self._send(_encode(order))

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None  # noqa: S101 - a pipe was asked for
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise Failed(self._last_words()) from None

    def stop(self) -> list[float]:
        """End an order that goes on until then, and return what came of it."""
        self._send(b"")
        return self.hear()

    def hear(self) -> list[float]:
        """Return what came of an order.

        Raises:
            Failed: where it could not be done.
        """
        assert self._process.stdout is not None  # noqa: S101 - a pipe was asked for
        line = self._process.stdout.readline()
        if not line:
            raise Failed(self._last_words())
        answer = _decode(line)
        if answer.error is not None:
            raise Failed(answer.error)
        return answer.values

    def ask(self, order: Order) -> list[float]:
        """Send an order and return what came of it."""
        self.tell(order)
        return self.hear()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read()[-LAST:].strip().splitlines()
        return lines[-1] if lines else "its process ended"

    def end(self) -> None:
        """Have it close what it holds, and wait for it."""
        self._process.communicate()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()

    def __repr__(self) -> str:
        return f"<worker of {self.system}, pid {self._process.pid}>"
