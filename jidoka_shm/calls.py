"""From a call's arguments to the request that asks a service for it.

A request's id is random: whoever sends it again, after whatever happened, sends the same one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from msgspec import Raw

from . import changes
from .arguments import parse_session_id
from .errors import RecordTooLarge
from .ids import new_id
from .protocol import MAX_RECORD, Create, Fields, Resize, Terminate, Update

if TYPE_CHECKING:
    from uuid import UUID

    from .control import Identity
    from .protocol import Owner, SessionRequest


#: What a heartbeat changes.
_NOTHING: Final = Fields()


class Call(NamedTuple):
    """One change of a session that is asked for.

    Attributes:
        request: what is sent.
        session_id: which session it is about.
        own_id: whether that id was made for this call, so that nobody else can have used it.
    """

    request: SessionRequest
    session_id: UUID
    own_id: bool = False


class Resizing(NamedTuple):
    """One resize that is asked for.

    Attributes:
        request: what is sent.
    """

    request: Resize


def to_create(
    metadata: object, llm_config: object, pid: object, ttl: object, session_id: object
) -> Call:
    """Return the call of ``create_session``."""
    key = new_id() if session_id is None else parse_session_id(session_id)
    fields = changes.for_create(metadata, llm_config, pid, ttl)
    _check_size(fields["maps"])
    request = Create(
        os.urandom(16),
        None,
        key.bytes,
        Raw(fields["maps"]),
        _to_owner(fields["owner"]),
        fields["ttl"],
    )
    return Call(request, key, session_id is None)


def to_update(  # noqa: PLR0913, PLR0917 - one argument a field
    session_id: object,
    status: object,
    metadata: object,
    llm_config: object,
    pid: object,
    ttl: object,
    expected_version: object,
) -> Call:
    """Return the call of ``update_session``."""
    fields = changes.for_update(status, metadata, llm_config, pid, ttl, expected_version)
    which = parse_session_id(session_id)
    version = fields.pop("expected_version", None)
    return Call(Update(os.urandom(16), None, which.bytes, version, _to_fields(fields)), which)


def to_terminate(session_id: object, error: object) -> Call:
    """Return the call of ``terminate_session``."""
    fields = changes.for_terminate(error)
    which = parse_session_id(session_id)
    reason = fields["error"]
    if reason is not None:
        # As much of it as a request carries; what there is no room for the writer cuts off.
        reason = reason.encode()[:MAX_RECORD].decode(errors="ignore")
    return Call(Terminate(os.urandom(16), None, which.bytes, reason), which)


def to_resize(capacity: object, slot_size: object) -> Resizing:
    """Return the call of ``resize``."""
    return Resizing(Resize(os.urandom(16), None, *changes.for_resize(capacity, slot_size)))


def _to_fields(fields: dict[str, Any]) -> Fields:
    if not fields:
        return _NOTHING
    if "status" in fields:
        fields["status"] = fields["status"].value
    if "owner" in fields:
        fields["owner"] = _to_owner(fields["owner"])
    if "metadata" in fields or "llm_config" in fields:
        _check_size(fields.get("metadata", b""), fields.get("llm_config", b""))
    return Fields(**fields)


def _check_size(*maps: bytes | Raw) -> None:
    """Raise ``RecordTooLarge`` for maps that no request may carry."""
    size = sum([memoryview(each).nbytes for each in maps])
    if size > MAX_RECORD:
        raise RecordTooLarge(size, MAX_RECORD, "request")


def _to_owner(owner: Identity | None) -> Owner | None:
    return None if owner is None else (owner.pid, owner.start, owner.namespace)
