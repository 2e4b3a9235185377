"""LMDB by py-lmdb: one environment in /dev/shm, a transaction a call, msgpack records.

It does not sync to a disk here, as shared memory does not. What it does not do: it knows no
sessions (no moves of status, no deaths of owners, no expiry), a list is a walk over a B-tree, and a
reader that dies inside a transaction keeps old pages from being used again. It does more in that it
outlives the host where it syncs, and that any process may write.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any, ClassVar

import lmdb

from benchmarks import records

from .base import Peer

if TYPE_CHECKING:
    from uuid import UUID


class Lmdb(Peer):
    """An environment of two databases: the records, and what rows create."""

    name: ClassVar[str] = "lmdb"
    packages: ClassVar[tuple[str, ...]] = ("lmdb",)

    env: Any = None

    def _open(self) -> None:
        size = (1 << 26) + 2048 * len(self.ids)
        self.env = lmdb.open(str(self.place), map_size=size, sync=False, max_dbs=2)
        self.records = self.env.open_db(b"records")
        self.created = self.env.open_db(b"created")

    def make(self) -> None:
        """Make the environment."""
        self._open()
        with self.env.begin(self.records, write=True) as transaction:
            for key in self.ids:
                transaction.put(key.bytes, records.encode(records.make_record(key)))

    def attach(self) -> None:
        """Open it, unless this process made it: one environment is opened once a process."""
        if self.env is None:
            self._open()

    def close(self) -> None:
        """Close it."""
        if self.env is not None:
            self.env.close()

    # ------------------------------------------------------------------ reading

    def look_up(self, keys: list[UUID]) -> None:
        """Get and decode each in a transaction of its own."""
        begin, database, decode = self.env.begin, self.records, records.decode
        for key in keys:
            with begin(database) as transaction:
                decode(transaction.get(key.bytes))

    def by_text(self, keys: list[str]) -> None:
        """Get each by the bytes of its id, which a str has to become first."""
        begin, database, decode = self.env.begin, self.records, records.decode
        for key in keys:
            with begin(database) as transaction:
                decode(transaction.get(uuid.UUID(key).bytes))

    def status(self, keys: list[UUID]) -> None:
        """Decode no farther than the status."""
        begin, database, decode = self.env.begin, self.records, records.decode_head
        for key in keys:
            with begin(database) as transaction:
                decode(transaction.get(key.bytes)).status  # noqa: B018 - what is timed

    def miss(self, keys: list[UUID]) -> None:
        """Get what is not there."""
        begin, database = self.env.begin, self.records
        for key in keys:
            with begin(database) as transaction:
                transaction.get(key.bytes)

    def list_all(self, keys: list[UUID]) -> object:
        """Decode all in one transaction."""
        del keys
        with self.env.begin(self.records) as transaction:
            values = transaction.cursor().iternext(keys=False, values=True)
            return list(map(records.decode, values))

    def count(self, keys: list[UUID]) -> object:
        """Count by status, decoding no more."""
        del keys
        with self.env.begin(self.records) as transaction:
            values = transaction.cursor().iternext(keys=False, values=True)
            return records.count_statuses(map(records.decode_head, values))

    # ------------------------------------------------------------------ changes

    def update(self, keys: list[UUID]) -> None:
        """Get, change and put each in a transaction of its own."""
        begin, database = self.env.begin, self.records
        for key in keys:
            with begin(database, write=True) as transaction:
                record = records.moved(records.decode(transaction.get(key.bytes)))
                transaction.put(key.bytes, records.encode(record))

    def update_pipelined(self, keys: list[UUID]) -> None:
        """Do the same for all in one transaction."""
        with self.env.begin(self.records, write=True) as transaction:
            for key in keys:
                record = records.moved(records.decode(transaction.get(key.bytes)))
                transaction.put(key.bytes, records.encode(record))

    def create(self, keys: list[UUID]) -> None:
        """Put a new record, each in a transaction of its own."""
        begin, database = self.env.begin, self.created
        for _ in keys:
            key = uuid.uuid4()
            record = records.encode(records.make_record(key))
            with begin(database, write=True) as transaction:
                transaction.put(key.bytes, record)

    def create_pipelined(self, keys: list[UUID]) -> None:
        """Put all in one transaction."""
        with self.env.begin(self.created, write=True) as transaction:
            for _ in keys:
                key = uuid.uuid4()
                transaction.put(key.bytes, records.encode(records.make_record(key)))

    def after_create(self) -> None:
        """Take out what was put in."""
        with self.env.begin(write=True) as transaction:
            transaction.drop(self.created, delete=False)

    after_create_pipelined = after_create

    def before_terminate(self, keys: list[UUID]) -> None:
        """Put in what is to go."""
        with self.env.begin(self.created, write=True) as transaction:
            for key in keys:
                transaction.put(key.bytes, records.encode(records.make_record(key)))

    def terminate(self, keys: list[UUID]) -> None:
        """Delete each in a transaction of its own."""
        begin, database = self.env.begin, self.created
        for key in keys:
            with begin(database, write=True) as transaction:
                transaction.delete(key.bytes)

    before_terminate_pipelined = before_terminate

    def terminate_pipelined(self, keys: list[UUID]) -> None:
        """Delete all in one transaction."""
        with self.env.begin(self.created, write=True) as transaction:
            for key in keys:
                transaction.delete(key.bytes)

    def shared_bytes(self) -> int:
        """Return the bytes of the pages in use; the file itself is sparse."""
        info, stat = self.env.info(), self.env.stat()
        return int((info["last_pgno"] + 1) * stat["psize"])
