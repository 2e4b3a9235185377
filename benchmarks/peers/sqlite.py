"""SQLite by Python's own module: one file in /dev/shm, WAL, memory-mapped, no syncing to a disk.

The status is a column; the record is msgpack. What it does not do: it knows no sessions; a writer
and its readers wait for each other at checkpoints. It does more in that it outlives the host
where it syncs, that any process may write, and that it answers any question.
"""

from __future__ import annotations

import sqlite3
import uuid
from typing import TYPE_CHECKING, ClassVar

from benchmarks import records

from .base import Peer

if TYPE_CHECKING:
    from uuid import UUID

MAKE = """
CREATE TABLE {} (id BLOB PRIMARY KEY, status TEXT NOT NULL, record BLOB NOT NULL) WITHOUT ROWID
"""
FIND = "SELECT record FROM sessions WHERE id = ?"
CHANGE = "UPDATE sessions SET status = ?, record = ? WHERE id = ?"
ADD = "INSERT INTO {} VALUES (?, ?, ?)"
ADD_NEW = ADD.format("created")
DELETE = "DELETE FROM created WHERE id = ?"


class Sqlite(Peer):
    """A table of records, and one of what rows create."""

    name: ClassVar[str] = "sqlite"

    def _open(self) -> None:
        # Each statement is a transaction of its own unless one was begun.
        self.connection = sqlite3.connect(self.place / "sessions.db", isolation_level=None)
        for pragma in ("journal_mode=WAL", "synchronous=OFF", "mmap_size=4294967296"):
            self.connection.execute(f"PRAGMA {pragma}").fetchall()
        self.execute = self.connection.execute

    def make(self) -> None:
        """Make the tables."""
        self._open()
        self.execute(MAKE.format("sessions"))
        self.execute(MAKE.format("created"))
        self._fill("sessions", self.ids)

    def _fill(self, table: str, keys: object) -> None:
        assert isinstance(keys, list)  # noqa: S101 - as every row has them
        self.execute("BEGIN")
        for key in keys:
            self.execute(ADD.format(table), _row(key))
        self.execute("COMMIT")

    def attach(self) -> None:
        """Connect, unless this process made it."""
        if not hasattr(self, "connection"):
            self._open()

    def close(self) -> None:
        """Close the connection."""
        if hasattr(self, "connection"):
            self.connection.close()

    # ------------------------------------------------------------------ reading

    def look_up(self, keys: list[UUID]) -> None:
        """Select and decode each."""
        execute, decode = self.execute, records.decode
        for key in keys:
            decode(execute(FIND, (key.bytes,)).fetchone()[0])

    def by_text(self, keys: list[str]) -> None:
        """Select each by the bytes of its id, which a str has to become first."""
        execute, decode = self.execute, records.decode
        for key in keys:
            decode(execute(FIND, (uuid.UUID(key).bytes,)).fetchone()[0])

    def status(self, keys: list[UUID]) -> None:
        """Select the status."""
        execute = self.execute
        for key in keys:
            execute("SELECT status FROM sessions WHERE id = ?", (key.bytes,)).fetchone()

    def miss(self, keys: list[UUID]) -> None:
        """Select what is not there."""
        execute = self.execute
        for key in keys:
            execute(FIND, (key.bytes,)).fetchone()

    def list_all(self, keys: list[UUID]) -> object:
        """Select and decode all."""
        del keys
        decode = records.decode
        return [decode(record) for (record,) in self.execute("SELECT record FROM sessions")]

    def count(self, keys: list[UUID]) -> object:
        """Count by status, in SQL."""
        del keys
        return self.execute("SELECT status, count(*) FROM sessions GROUP BY status").fetchall()

    # ------------------------------------------------------------------ changes

    def _move(self, key: UUID) -> None:
        (packed,) = self.execute(FIND, (key.bytes,)).fetchone()
        record = records.moved(records.decode(packed))
        self.execute(CHANGE, (record.status, records.encode(record), key.bytes))

    def update(self, keys: list[UUID]) -> None:
        """Select, change and update each in a transaction of its own."""
        execute, move = self.execute, self._move
        for key in keys:
            execute("BEGIN IMMEDIATE")
            move(key)
            execute("COMMIT")

    def update_pipelined(self, keys: list[UUID]) -> None:
        """Do the same for all in one transaction."""
        self.execute("BEGIN IMMEDIATE")
        for key in keys:
            self._move(key)
        self.execute("COMMIT")

    def create(self, keys: list[UUID]) -> None:
        """Insert a new record, each in a transaction of its own."""
        execute = self.execute
        for _ in keys:
            execute(ADD_NEW, _row(uuid.uuid4()))

    def create_pipelined(self, keys: list[UUID]) -> None:
        """Insert all in one transaction."""
        self._fill("created", [uuid.uuid4() for _ in keys])

    def after_create(self) -> None:
        """Take out what was put in."""
        self.execute("DELETE FROM created")

    after_create_pipelined = after_create

    def before_terminate(self, keys: list[UUID]) -> None:
        """Put in what is to go."""
        self._fill("created", keys)

    def terminate(self, keys: list[UUID]) -> None:
        """Delete each in a transaction of its own."""
        execute = self.execute
        for key in keys:
            execute(DELETE, (key.bytes,))

    before_terminate_pipelined = before_terminate

    def terminate_pipelined(self, keys: list[UUID]) -> None:
        """Delete all in one transaction."""
        self.execute("BEGIN IMMEDIATE")
        self.terminate(keys)
        self.execute("COMMIT")


def _row(key: UUID) -> tuple[bytes, str, bytes]:
    record = records.make_record(key)
    return key.bytes, record.status, records.encode(record)
