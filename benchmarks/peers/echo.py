"""An echo of an update's bytes over a Unix socket, by asyncio: what a round trip costs by itself.

What it does not do: anything with the bytes.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, ClassVar

from msgspec import UNSET

from benchmarks import records
from benchmarks.companion import Companion
from jidoka_shm.calls import to_update
from jidoka_shm.protocol import encode

from .base import Peer

if TYPE_CHECKING:
    from uuid import UUID

ECHO = """
import asyncio, sys

class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)

async def serve():
    await asyncio.get_running_loop().create_unix_server(Echo, sys.argv[1])
    print("up", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(serve())
"""


class Echo(Peer):
    """A process that sends back what it gets."""

    name: ClassVar[str] = "echo"
    shared: ClassVar[bool] = False

    def make(self) -> None:
        """Start it."""
        self._process = Companion(ECHO, self.place / "socket")

    def attach(self) -> None:
        """Connect."""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(self.place / "socket"))
        unset = (UNSET,) * 4
        self.bytes = encode(to_update(self.ids[0], records.STATUSES[0], *unset, None).request)

    def close(self) -> None:
        """End it."""
        self.socket.close()
        self._process.end()

    def echo(self, keys: list[UUID]) -> None:
        """Send the bytes of an update and receive them."""
        send, receive, data = self.socket.sendall, self.socket.recv, self.bytes
        for _ in keys:
            send(data)
            receive(4096)
