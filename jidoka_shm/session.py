"""What a session is: its fields, its statuses and their moves, its record and its id.

The moves are the literal ``MOVES`` below and nothing else. A status given again is no move and no
error: it is a heartbeat. *Terminated* straight from a live status is what a session gets that
expired, or whose owner process ended.

A session in shared memory is a slot's header and, behind it, the array-like msgpack of
``Payload`` in the order of its fields.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeVar
from uuid import UUID  # noqa: TC003 - for get_type_hints(Session)

import msgspec
from msgspec import Raw, Struct
from msgspec.structs import astuple

from .arguments import check_pid, check_text, check_version, parse_session_id
from .errors import CorruptRegistry, shown
from .ids import new_id
from .layout import STATUS_CODES
from .maps import Map, encode_map

if TYPE_CHECKING:
    from collections.abc import Callable


class SessionStatus(StrEnum):
    """The five states of a session, spelled as in the record."""

    INITIALIZING = "initializing"
    ACTIVE = "active"
    IDLE = "idle"
    TERMINATING = "terminating"
    TERMINATED = "terminated"


_S = SessionStatus

MOVES: Final[dict[SessionStatus, tuple[SessionStatus, ...]]] = {
    _S.INITIALIZING: (_S.ACTIVE, _S.TERMINATING, _S.TERMINATED),
    _S.ACTIVE: (_S.IDLE, _S.TERMINATING, _S.TERMINATED),
    _S.IDLE: (_S.ACTIVE, _S.TERMINATING, _S.TERMINATED),
    _S.TERMINATING: (_S.TERMINATED,),
    _S.TERMINATED: (),
}

#: The status of each code of the slot header, and the other way round.
STATUS_OF_CODE: Final = {
    code: SessionStatus(text) for code, text in enumerate(STATUS_CODES) if text
}
CODE_OF_STATUS: Final = {status: code for code, status in STATUS_OF_CODE.items()}


class Payload(Struct, frozen=True, array_like=True, gc=False, eq=False, kw_only=True):
    """The payload of a slot, field by field: what the slot's header does not hold.

    All but the maps is for crash safety or rare, so ``encode`` leaves trailing Nones out.
    """

    metadata: Raw
    llm_config: Raw
    #: When the session expires by the wall clock, in nanoseconds since the epoch.
    expires: int | None = None
    error: str | None = None
    #: CLOCK_MONOTONIC, nanoseconds: when the session expires or, terminated, disappears.
    deadline: int | None = None
    #: The owner process's start time in clock ticks after boot, and its pid namespace's inode.
    owner_start: int | None = None
    owner_namespace: int | None = None
    #: The id of the request that made this version, 16 bytes.
    request: bytes | None = None

    def encode(self) -> bytes:
        """Return the payload's bytes."""
        fields = astuple(self)
        count = len(fields)
        while fields[count - 1] is None:
            count -= 1
        return _encode(fields[:count])


#: What a payload of the maps alone begins with: msgpack's header of an array of two.
MAPS_ALONE: Final = b"\x92"


class Session(Struct, frozen=True, gc=False, eq=False):
    """One session, as it was at one version. A frozen value, safe to share and to keep.

    Attributes:
        session_id: the id.
        version: the number of the commit that made this value; it counts all commits of the
            registry, so it only grows.
        status: a ``SessionStatus``, which is a str.
        pid: the owner process, or None.

    What else there is stays encoded and is decoded at each access: a look-up that only wants
    the status pays nothing for the maps, and a caller's change to a map shows nowhere else. Keep
    the map in a variable to use it twice.

    Times are kept in nanoseconds, whole microseconds, since datetime carries no more.
    """

    session_id: UUID
    version: int
    status: SessionStatus
    pid: int | None
    _created: int
    _updated: int
    _payload: bytes

    def payload(self) -> Payload:
        """Return the decoded payload; for the package itself.

        Raises:
            CorruptRegistry: where the memory that it was copied from is damaged.
        """
        return _decoded(decode_payload, self)

    def deadline(self) -> int | None:
        """Return the payload's deadline; for the package itself."""
        # Most payloads are of the maps alone, and a takeover asks each.
        return None if self._payload[:1] == MAPS_ALONE else self.payload().deadline

    @property
    def metadata(self) -> Map:
        """The caller's own copy of the session's metadata."""
        return _decoded(_decode_metadata, self).metadata

    @property
    def llm_config(self) -> Map:
        """The caller's own copy of the session's model configuration."""
        return _decoded(_decode_llm_config, self).llm_config

    @property
    def error(self) -> str | None:
        """Why the session ended, or None."""
        return self.payload().error

    @property
    def created_at(self) -> datetime:
        """When the session was created, UTC."""
        return _to_datetime(self._created)

    @property
    def updated_at(self) -> datetime:
        """When the session last changed, UTC."""
        return _to_datetime(self._updated)

    @property
    def expires_at(self) -> datetime | None:
        """When the session expires by the wall clock of its last ``ttl``, UTC; None without one.

        The registry itself goes by the monotonic clock, so a step of the wall clock expires
        nothing.
        """
        expires = self.payload().expires
        return None if expires is None else _to_datetime(expires)

    @classmethod
    def make(  # noqa: PLR0913 - one argument a field
        cls,
        *,
        session_id: UUID | str | None = None,
        status: SessionStatus | str = SessionStatus.INITIALIZING,
        pid: int | None = None,
        created_at: datetime | str | None = None,
        updated_at: datetime | str | None = None,
        metadata: Map | None = None,
        llm_config: Map | None = None,
        expires_at: datetime | str | None = None,
        error: str | None = None,
        version: int = 1,
    ) -> Session:
        """Make a session from plain values, such as those of ``to_dict()``.

        Args:
            session_id: the id or its text; a new one where it is left out.
            status: one of the five.
            pid: the owner process.
            created_at: an aware datetime, or its ISO 8601 text; now where it is left out.
            updated_at: the same; ``created_at`` where it is left out.
            metadata: a map of what JSON holds.
            llm_config: the same.
            expires_at: a time as above, or None.
            error: why it ended.
            version: its version, 1 or more.

        Raises:
            InvalidSessionId: for an id that is none.
            InvalidMetadata: for a map that holds anything else, naming where.
            ValueError, TypeError: for a status that is none, a time without a zone, and whatever
                else cannot be.
        """
        created = _to_ns("created_at", datetime.now(UTC) if created_at is None else created_at)
        payload = Payload(
            metadata=encode_map(metadata, "metadata"),
            llm_config=encode_map(llm_config, "llm_config"),
            expires=None if expires_at is None else _to_ns("expires_at", expires_at),
            error=None if error is None else check_text("error", error),
        )
        return cls(
            session_id=new_id() if session_id is None else parse_session_id(session_id),
            version=check_version(version),
            status=parse_status(status),
            pid=None if pid is None else check_pid(pid),
            _created=created,
            _updated=created if updated_at is None else _to_ns("updated_at", updated_at),
            _payload=_encoded(payload),
        )

    def to_dict(self) -> Map:
        """Return the public fields as JSON's types: times as ISO 8601 text, the id as text."""
        return {
            "session_id": str(self.session_id),
            "status": self.status.value,
            "pid": self.pid,
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
            "metadata": self.metadata,
            "llm_config": self.llm_config,
            "expires_at": None if self.expires_at is None else self.expires_at.isoformat(),
            "error": self.error,
            "version": self.version,
        }

    def __eq__(self, other: object) -> bool:
        # Maps compare as values: the same map encoded in another key order is the same map.
        if not isinstance(other, Session):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.session_id, self.version))

    def __repr__(self) -> str:
        fields: Map = {"session_id": str(self.session_id), "status": self.status.value}
        fields |= {"pid": self.pid, "metadata": self.metadata, "llm_config": self.llm_config}
        if self.error is not None:
            fields["error"] = self.error
        return f"Session({', '.join(f'{k}={v!r}' for k, v in fields.items())}, v{self.version})"


# ---------------------------------------------------------------------------- payloads


class _MetadataOnly(Struct, array_like=True, gc=False):
    metadata: Map


class _LlmConfigOnly(Struct, array_like=True, gc=False):
    metadata: Raw
    llm_config: Map


P = TypeVar("P")

#: What decoding damaged bytes may end in: text that is no UTF-8, containers without end.
_DECODING: Final = (msgspec.MsgspecError, ValueError, RecursionError)

_encode: Final = msgspec.msgpack.Encoder().encode
decode_payload: Final = msgspec.msgpack.Decoder(Payload).decode
_decode_metadata: Final = msgspec.msgpack.Decoder(_MetadataOnly).decode
_decode_llm_config: Final = msgspec.msgpack.Decoder(_LlmConfigOnly).decode


def _decoded(decode: Callable[[bytes], P], session: Session) -> P:
    try:
        return decode(session._payload)  # noqa: SLF001 - its own
    except _DECODING as error:
        reason = f"the record of session {session.session_id} ({error})"
        raise CorruptRegistry(reason) from None


def _encoded(payload: Payload) -> bytes:
    try:
        return payload.encode()
    except OverflowError:
        msg = "expires_at lies outside of what 64 bits of nanoseconds hold: 1677 to 2554"
        raise ValueError(msg) from None


# ---------------------------------------------------------------------------- times and statuses


def _to_datetime(ns: int) -> datetime:
    """Return the time of ``ns`` exactly; fromtimestamp() of a float would round."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest // 1000)


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _to_ns(name: str, when: object) -> int:
    """Return nanoseconds since the epoch of an aware datetime or its ISO 8601 text."""
    msg = f"{name} is {shown(when)}: give an aware datetime, or its ISO 8601 text"
    try:
        when = datetime.fromisoformat(when) if isinstance(when, str) else when
        if not isinstance(when, datetime):
            raise TypeError(msg)
        if when.tzinfo is None:
            msg = f"{name} is {when} and has no time zone: give an aware one, as with tzinfo=UTC"
            raise ValueError(msg)  # noqa: TRY301 - with all that makes a time unusable
        since = when.astimezone(UTC) - _EPOCH
    except (ValueError, OverflowError):
        raise ValueError(msg) from None
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + since.microseconds * 1000


_STATUS_OF_TEXT: Final = {status.value: status for status in SessionStatus}


def parse_status(value: object) -> SessionStatus:
    """Return the status that ``value`` is or spells.

    Raises:
        ValueError: where it is none of the five.
    """
    # Not by the enumeration, which takes eight times as long, and the repr of what it refuses.
    found = _STATUS_OF_TEXT.get(value) if isinstance(value, str) else None
    if found is None:
        msg = f"{shown(value)} is no status: use one of {', '.join(SessionStatus)}"
        raise ValueError(msg)
    return found
