"""ETS in an Erlang machine: read directly, and through a GenServer as the Elixir original reads.

The clock is Elixir's own, around its own loop: no Python stands between. What it does not do: no
other process of the operating system can read the table; each look-up copies the record; the
table ends with its machine. Directly, as in ``ets``, nothing keeps two processes from losing one of
their updates; the server of ``genserver`` does all in turn, and reads wait for writes.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from .base import Peer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

SCRIPT = Path(__file__).with_suffix(".exs")


class Ets(Peer):
    """A table that is read directly."""

    name: ClassVar[str] = "ets"
    shared: ClassVar[bool] = False
    #: Before the script's loop runs it reads the ids from files.
    largest: ClassVar[int | None] = 100_000

    _process: subprocess.Popen[str] | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Return that there is no Elixir."""
        return None if shutil.which("elixir") else "elixir is not in PATH"

    def make(self) -> None:
        """Start the machine and fill the table."""
        self._process = subprocess.Popen(
            [str(shutil.which("elixir")), str(SCRIPT), self.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._told: dict[str, Sequence[object]] = {}
        self._tell("own", self.ids)
        self._ask("fill")

    def attach(self) -> None:
        """Nothing else can."""

    def close(self) -> None:
        """End the machine."""
        if self._process is not None:
            self._process.communicate()

    def _ask(self, *words: object) -> str:
        assert self._process is not None  # noqa: S101 - it was made
        assert self._process.stdin is not None  # noqa: S101 - pipes were asked for
        assert self._process.stdout is not None  # noqa: S101 - pipes were asked for
        print(*words, file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            msg = f"elixir ended, asked for {words}"
            raise RuntimeError(msg)
        return answer.strip()

    def _tell(self, kind: str, keys: Sequence[UUID]) -> None:
        path = self.place / kind
        path.write_text("\n".join(map(str, keys)), encoding="ascii")
        self._ask("keys", kind, path)
        self._told[kind] = keys

    def _row(self, row: str, keys: Sequence[UUID]) -> list[int]:
        # A slice of the same list each time, mostly; the worker hands out the beginnings of one.
        kind = f"{row}-{len(keys)}"
        if self._told.get(kind) != keys:
            self._tell(kind, keys)
        return [int(self._ask(row, kind, len(keys)))]

    def shared_bytes(self) -> int:
        """Return the size of the table."""
        return int(self._ask("memory"))

    def look_up(self, keys: list[UUID]) -> list[int]:
        """Look each up."""
        return self._row("look_up", keys)

    def status(self, keys: list[UUID]) -> list[int]:
        """Look each up and take its status."""
        return self._row("status", keys)

    def miss(self, keys: list[UUID]) -> list[int]:
        """Look for what is not there."""
        return self._row("miss", keys)

    def list_all(self, keys: list[UUID]) -> list[int]:
        """Copy the table into a list."""
        return self._row("list_all", keys)

    def count(self, keys: list[UUID]) -> list[int]:
        """Count by status."""
        return self._row("count", keys)

    def update(self, keys: list[UUID]) -> list[int]:
        """Look each up, change it and insert it."""
        return self._row("update", keys)

    def create(self, keys: list[UUID]) -> list[int]:
        """Insert new ones."""
        return self._row("create", keys)

    def terminate(self, keys: list[UUID]) -> list[int]:
        """Delete each."""
        return self._row("terminate", keys)


class GenServer(Ets):
    """A table that is read by calls to the process that owns it."""

    name: ClassVar[str] = "genserver"
