"""Redis or Valkey over a private Unix socket, by redis-py: one hash of msgpack records.

The harness starts ``redis-server`` or ``valkey-server``, whichever is in ``PATH``, without
persistence. What it does not do: each look-up is a round trip through another process; it knows no
sessions, and updating one is a look-up and a change. It does more in that it serves other hosts.
"""

from __future__ import annotations

import subprocess
import uuid
from typing import TYPE_CHECKING, ClassVar

import redis

from benchmarks import peers, records

from .base import Peer

if TYPE_CHECKING:
    from uuid import UUID

#: Commands a pipeline: redis-py packs all of one in memory.
BATCH = 1_000


class Redis(Peer):
    """A server of this process's own, and one connection."""

    name: ClassVar[str] = "redis"
    packages: ClassVar[tuple[str, ...]] = ("redis",)

    _server: subprocess.Popen[bytes] | None = None

    @classmethod
    def missing(cls) -> str | None:
        """Return why there is no server."""
        return None if peers.redis_server() else "no redis-server or valkey-server is in PATH"

    def make(self) -> None:
        """Start a server and fill its hash."""
        options = ("--port", "0", "--unixsocket", "socket", "--save", "", "--appendonly", "no")
        self._server = subprocess.Popen(
            [str(peers.redis_server()), *options], cwd=self.place, stdout=subprocess.DEVNULL
        )
        self.attach()
        self._fill("sessions", self.ids)

    def attach(self) -> None:
        """Connect; a server that has just been started is waited for."""
        retry = redis.retry.Retry(redis.backoff.ConstantBackoff(0.01), 1_000)
        self.client = redis.Redis(
            unix_socket_path=str(self.place / "socket"),
            retry=retry,
            retry_on_error=[redis.ConnectionError],
        )
        self.client.ping()

    def close(self) -> None:
        """Disconnect, and end the server in the process that started it."""
        if hasattr(self, "client"):
            self.client.close()
        if self._server is not None:
            self._server.terminate()
            self._server.wait()

    def _fill(self, name: str, keys: object) -> None:
        assert isinstance(keys, list)  # noqa: S101 - as every row has them
        for at in range(0, len(keys), BATCH):
            packed = {
                key.bytes: records.encode(records.make_record(key)) for key in keys[at : at + BATCH]
            }
            self.client.hset(name, mapping=packed)

    def shared_bytes(self) -> int:
        """Return what the server says that it uses."""
        return int(self.client.info("memory")["used_memory"])

    # ------------------------------------------------------------------ reading

    def look_up(self, keys: list[UUID]) -> None:
        """Ask for each and decode it."""
        get, decode = self.client.hget, records.decode
        for key in keys:
            decode(get("sessions", key.bytes))

    def status(self, keys: list[UUID]) -> None:
        """Ask for each and decode no farther than the status."""
        get, decode = self.client.hget, records.decode_head
        for key in keys:
            decode(get("sessions", key.bytes)).status  # noqa: B018 - what is timed

    def miss(self, keys: list[UUID]) -> None:
        """Ask for what is not there."""
        get = self.client.hget
        for key in keys:
            get("sessions", key.bytes)

    def list_all(self, keys: list[UUID]) -> object:
        """Ask for all and decode them."""
        del keys
        return list(map(records.decode, self.client.hvals("sessions")))

    def count(self, keys: list[UUID]) -> object:
        """Ask for all and decode the status."""
        del keys
        return records.count_statuses(map(records.decode_head, self.client.hvals("sessions")))

    # ------------------------------------------------------------------ changes

    def update(self, keys: list[UUID]) -> None:
        """Ask for each, change it and send it back."""
        get, put = self.client.hget, self.client.hset
        for key in keys:
            record = records.moved(records.decode(get("sessions", key.bytes)))
            put("sessions", key.bytes, records.encode(record))

    def update_pipelined(self, keys: list[UUID]) -> None:
        """Ask for all, change them and send them back: two round trips."""
        with self.client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hget("sessions", key.bytes)
            found = pipeline.execute()
            for key, packed in zip(keys, found, strict=True):
                record = records.moved(records.decode(packed))
                pipeline.hset("sessions", key.bytes, records.encode(record))
            pipeline.execute()

    def create(self, keys: list[UUID]) -> None:
        """Send new records."""
        put = self.client.hset
        for _ in keys:
            key = uuid.uuid4()
            put("created", key.bytes, records.encode(records.make_record(key)))

    def create_pipelined(self, keys: list[UUID]) -> None:
        """Send all in one round trip."""
        with self.client.pipeline(transaction=False) as pipeline:
            for _ in keys:
                key = uuid.uuid4()
                pipeline.hset("created", key.bytes, records.encode(records.make_record(key)))
            pipeline.execute()

    def after_create(self) -> None:
        """Take out what was put in."""
        self.client.delete("created")

    after_create_pipelined = after_create

    def before_terminate(self, keys: list[UUID]) -> None:
        """Put in what is to go."""
        self._fill("created", keys)

    def terminate(self, keys: list[UUID]) -> None:
        """Have each deleted."""
        delete = self.client.hdel
        for key in keys:
            delete("created", key.bytes)

    before_terminate_pipelined = before_terminate

    def terminate_pipelined(self, keys: list[UUID]) -> None:
        """Have all deleted in one round trip."""
        with self.client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.hdel("created", key.bytes)
            pipeline.execute()
