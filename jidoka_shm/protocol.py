"""The service's messages: bytes in, messages out, and the other way round. No I/O.

A frame is four bytes, the length of what follows as a little-endian number, and one message as
msgpack: an array of the message's kind and its fields, in the order in which they stand here.

The service begins with ``Hello``, or with ``Refused`` and the end. A client then sends requests, as
many as it likes before the first reply; each is answered once, in the order of the requests. What
is no frame and no request ends the connection, after ``Refused`` with the reason.

A change is made exactly once however often its request is sent: see ``Again``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from .layout import MAX_RECORD_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROTOCOL_VERSION: Final = 1

#: Bytes of one request at most: the largest maps that a service takes, and what goes around them.
MAX_RECORD: Final = 1 << 20
MAX_FRAME: Final = MAX_RECORD + (1 << 16)

#: Bytes of one reply at most. It may hold the longest record that there is, which a manager can
#: make itself.
MAX_REPLY: Final = MAX_RECORD_SIZE + (1 << 16)

#: Letters of a text that goes to the other side, and to the log, about what a stranger sent.
_LONGEST_REASON: Final = 300

_LENGTH: Final = 4

Word = Annotated[int, Meta(ge=0)]
Id = Annotated[bytes, Meta(min_length=16, max_length=16)]

#: An owner process: pid, start time and pid namespace, as ``control.Identity`` has them.
Owner = tuple[Word, Word, Word]


class Again(Struct, frozen=True, array_like=True, gc=False):
    """How the registry was when a request was first sent; with a request that is sent again.

    What was not changed since then was not changed by the request either.

    Attributes:
        version: how many commits there had been: the control's change word halved, rounded down.
        removed: how many sessions had been removed or dropped, by the control's counters.
    """

    version: Word
    removed: Word


# ---------------------------------------------------------------------------- requests


class Create(Struct, frozen=True, array_like=True, tag="create", gc=False):
    """Create a session. Answered by ``Done``.

    Attributes:
        request: the id of the request, which the record keeps.
        again: None when it is sent for the first time.
        session_id: the new session's id.
        maps: metadata and model configuration, an array of two maps.
        owner: its owner process, or None.
        ttl: in how many nanoseconds it expires, or None.
    """

    request: Id
    again: Again | None
    session_id: Id
    maps: Raw
    owner: Owner | None
    ttl: Word | None


class Fields(Struct, frozen=True, omit_defaults=True, gc=False, forbid_unknown_fields=True):
    """What an update changes; what is not there stays."""

    status: str | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    llm_config: Raw | UnsetType = UNSET
    owner: Owner | UnsetType | None = UNSET
    ttl: Word | UnsetType | None = UNSET


class Update(Struct, frozen=True, array_like=True, tag="update", gc=False):
    """Change a session. Answered by ``Done``, with the record.

    Attributes:
        request: the id of the request.
        again: None when it is sent for the first time.
        session_id: which session.
        expected_version: change only this version; None for any.
        fields: what is changed: any of status, metadata, llm_config, owner, ttl.
    """

    request: Id
    again: Again | None
    session_id: Id
    expected_version: Word | None
    fields: Fields


class Terminate(Struct, frozen=True, array_like=True, tag="terminate", gc=False):
    """End a session. Answered by ``Done``.

    Attributes:
        request: the id of the request.
        again: None when it is sent for the first time.
        session_id: which session.
        error: why, or None.
    """

    request: Id
    again: Again | None
    session_id: Id
    error: str | None


class Resize(Struct, frozen=True, array_like=True, tag="resize", gc=False):
    """Move all sessions to a table of another size. Answered by ``Done``, without a record.

    Attributes:
        request: the id of the request.
        again: None when it is sent for the first time.
        capacity: slots that it is to have.
        slot_size: bytes a slot; None for as many as now.
    """

    request: Id
    again: Again | None
    capacity: Word
    slot_size: Word | None


#: What is asked of one session.
SessionRequest = Create | Update | Terminate

Request = SessionRequest | Resize

# ---------------------------------------------------------------------------- replies


class Hello(Struct, frozen=True, array_like=True, tag="hello", gc=False):
    """The first message of the service.

    Attributes:
        protocol: ``PROTOCOL_VERSION``.
        instance: the registry's instance, so that a client knows that it reads what it changes.
    """

    protocol: int
    instance: Id


class Refused(Struct, frozen=True, array_like=True, tag="refused", gc=False):
    """The service's last message: it ends the connection.

    Attributes:
        reason: why, for people.
    """

    reason: str


class Done(Struct, frozen=True, array_like=True, tag="done", gc=False):
    """The change was made.

    Attributes:
        record: the session's slot as it stands in memory, header and payload; empty where nobody
            asks for it.
    """

    record: bytes


class Failed(Struct, frozen=True, array_like=True, tag="failed", gc=False):
    """Nothing was changed.

    Attributes:
        error: the name of the error's class.
        facts: the arguments that it is made of.
    """

    error: str
    facts: list[Any]


class Unknown(Struct, frozen=True, array_like=True, tag="unknown", gc=False):
    """Whether the request was carried out when it was first sent cannot be told any more."""


Reply = Hello | Refused | Done | Failed | Unknown

# ---------------------------------------------------------------------------- frames

M = TypeVar("M")


class ProtocolError(Exception):
    """Internal: the other side sent what is no frame or no message of its kind."""


class FrameBuffer:
    """The bytes of one connection, as they come, and the frames that they hold.

    All that one call yields is to be taken before the next call. Between two calls it holds less
    than a frame: its length's four bytes, and fewer than the limit of what follows.
    """

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._rest = bytearray()

    def __len__(self) -> int:
        return len(self._rest)

    def feed(self, data: bytes) -> Iterable[bytes]:
        """Take what came and yield each frame that is whole.

        Raises:
            ProtocolError: for a frame above the limit; what came before it was yielded.
        """
        rest = self._rest
        length = int.from_bytes(data[:_LENGTH], "little")
        if not rest and length == len(data) - _LENGTH <= self._limit:
            # The usual case: one frame, and nothing else.
            return (data[_LENGTH:],)
        return self._split(data)

    def _split(self, data: bytes) -> Iterator[bytes]:
        rest = self._rest
        # Appended to, never put together anew: a frame that comes byte by byte would cost its
        # length squared. Most often there is nothing to append to.
        source: bytes | bytearray = data
        if rest:
            rest += data
            source = rest
        at, end = 0, len(source)
        while end - at >= _LENGTH:
            length = int.from_bytes(source[at : at + _LENGTH], "little")
            if length > self._limit:
                msg = f"a frame of {length} bytes: {self._limit} is the limit"
                raise ProtocolError(msg)
            begin = at + _LENGTH
            if end - begin < length:
                break
            at = begin + length
            yield bytes(source[begin:at])
        if source is rest:
            del rest[:at]
        else:
            rest += source[at:]


_encoder: Final = msgspec.msgpack.Encoder()
_request_decoder: Final[msgspec.msgpack.Decoder[Request]] = msgspec.msgpack.Decoder(Request)
_reply_decoder: Final[msgspec.msgpack.Decoder[Reply]] = msgspec.msgpack.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    """Return a message's frame."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_LENGTH, "little") + body


def decode_request(frame: bytes) -> Request:
    """Return the request of a frame.

    Raises:
        ProtocolError: where it is none.
    """
    return _decode(_request_decoder, frame)


def decode_reply(frame: bytes) -> Reply:
    """Return the reply of a frame.

    Raises:
        ProtocolError: where it is none.
    """
    return _decode(_reply_decoder, frame)


def _decode(decoder: msgspec.msgpack.Decoder[M], frame: bytes) -> M:
    try:
        return decoder.decode(frame)
    # Text that is no UTF-8; containers without end.
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # What is wrong may stand in it word for word: line breaks must not reach the log, nor all
        # of a large frame come back.
        reason = ascii(str(error)[:_LONGEST_REASON])[1:-1]
        msg = f"not a message of this protocol: {reason}"
        raise ProtocolError(msg) from None
