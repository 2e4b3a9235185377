"""A client of the service that speaks bytes, so that it can send what no client should."""

from __future__ import annotations

import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import msgspec

from jidoka_shm.protocol import (
    Again,
    Create,
    Fields,
    FrameBuffer,
    Hello,
    Reply,
    Request,
    Resize,
    Terminate,
    Update,
    decode_reply,
    encode,
)

if TYPE_CHECKING:
    from typing import Self
    from uuid import UUID

    from jidoka_shm import SessionManager

#: How long a client waits for what must come, in seconds; the limit only catches hanging.
PATIENCE = 30.0


def create(key: UUID, *, maps: object = ({}, {}), **fields: Any) -> Create:  # noqa: ANN401 - of it
    """Return a request to create a session."""
    raw = msgspec.Raw(msgspec.msgpack.encode(maps))
    given = {"request": os.urandom(16), "again": None, "owner": None, "ttl": None} | fields
    return Create(session_id=key.bytes, maps=raw, **given)


def update(
    key: UUID,
    *,
    request: bytes | None = None,
    again: Again | None = None,
    expected_version: int | None = None,
    **fields: Any,  # noqa: ANN401 - those of an update
) -> Update:
    """Return a request to update a session; maps are given as values."""
    for name in {"metadata", "llm_config"} & fields.keys():
        fields[name] = msgspec.Raw(msgspec.msgpack.encode(fields[name]))
    return Update(request or os.urandom(16), again, key.bytes, expected_version, Fields(**fields))


def terminate(
    key: UUID,
    error: str | None = None,
    *,
    request: bytes | None = None,
    again: Again | None = None,
) -> Terminate:
    """Return a request to end a session."""
    return Terminate(request or os.urandom(16), again, key.bytes, error)


def resize(
    capacity: int,
    slot_size: int | None = None,
    *,
    request: bytes | None = None,
    again: Again | None = None,
) -> Resize:
    """Return a request to resize the registry."""
    return Resize(request or os.urandom(16), again, capacity, slot_size)


def frame(body: bytes) -> bytes:
    """Return a frame around any bytes."""
    return struct.pack("<I", len(body)) + body


def path_of_service(manager: SessionManager) -> str:
    """Return where a manager listens, as its control says it."""
    raw = manager._own.control._memory[256:384]
    return bytes(raw).rstrip(b"\0").decode()


class Wire:
    """A connection that has been greeted, unless ``greeted`` is False."""

    def __init__(self, manager: SessionManager | str, *, greeted: bool = True) -> None:
        path = manager if isinstance(manager, str) else path_of_service(manager)
        self.socket = socket.socket(socket.AF_UNIX)
        self._frames: list[bytes] = []
        self._buffer = FrameBuffer(1 << 25)
        try:
            self.socket.settimeout(PATIENCE)
            self.socket.connect(path)
            if greeted:
                self.hello = self.reply()
                assert isinstance(self.hello, Hello)
        except BaseException:
            self.socket.close()
            raise

    def send(self, *messages: Request | bytes) -> Self:
        """Send requests, or bytes as they are, in one piece."""
        parts = [each if isinstance(each, bytes) else encode(each) for each in messages]
        self.socket.sendall(b"".join(parts))
        return self

    def reply(self) -> Reply:
        """Return the next reply."""
        found = self.next()
        assert found is not None, "the connection has ended"
        return found

    def ask(self, request: Request) -> Reply:
        """Return the reply to a request."""
        return self.send(request).reply()

    def next(self) -> Reply | None:
        """Return the next reply; None at the end of the connection."""
        while not self._frames:
            try:
                piece = self.socket.recv(1 << 18)
            except ConnectionResetError:
                # What the service had not read of ours; all that it sent was read before this.
                piece = b""
            if not piece:
                assert len(self._buffer) == 0, "the end came within a frame"
                return None
            self._frames.extend(self._buffer.feed(piece))
        return decode_reply(self._frames.pop(0))

    def rest(self) -> list[Reply]:
        """Return all replies up to the end of the connection."""
        found = []
        while (reply := self.next()) is not None:
            found.append(reply)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.socket.close()
