"""Marks: what a record holds of times, deadlines and owners, from what a call was given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace

from .control import Identity
from .session import decode_payload
from .splices import with_end

if TYPE_CHECKING:
    from msgspec import Raw

    from .session import Session


#: The fields that the end of a session sets.
_END: Final = frozenset({"error", "deadline"})


class Instant(Struct, frozen=True, gc=False):
    """One moment on both clocks, in nanoseconds."""

    wall: int
    monotonic: int


def whole_microseconds(ns: int) -> int:
    """Return ``ns`` as a datetime can carry it, so that a value survives its own text."""
    return ns - ns % 1000


def expiry(ttl: int | None, now: Instant) -> dict[str, Any]:
    """Return the fields that a time to live sets: one on each clock."""
    if ttl is None:
        return {"expires": None, "deadline": None}
    return {"expires": whole_microseconds(now.wall + ttl), "deadline": now.monotonic + ttl}


def first_payload(
    maps: bytes, owner: Identity | None, ttl: int | None, now: Instant, request: bytes | None
) -> tuple[bytes, int | None]:
    """Return the payload of a new session, whose maps are encoded already, and its deadline."""
    marks = {} if ttl is None else expiry(ttl, now)
    if owner is not None:
        marks |= owner_marks(owner)
    if request is not None:
        marks["request"] = request
    if not marks:
        return maps, None
    payload = replace(decode_payload(maps), **marks)
    return payload.encode(), payload.deadline


def changed_fields(
    metadata: Raw | UnsetType,
    llm_config: Raw | UnsetType,
    owner: Identity | UnsetType | None,
    ttl: int | UnsetType | None,
    now: Instant,
) -> dict[str, Any]:
    """Return the fields of a payload that an update sets, those that are UNSET left out."""
    changes: dict[str, Any] = {}
    if metadata is not UNSET:
        changes["metadata"] = metadata
    if llm_config is not UNSET:
        changes["llm_config"] = llm_config
    if owner is not UNSET:
        changes |= owner_marks(owner)
    if ttl is not UNSET:
        changes |= expiry(ttl, now)
    return changes


def changed_payload(session: Session, changes: dict[str, Any]) -> tuple[bytes, int | None]:
    """Return the payload of a session's next version, and its deadline."""
    if changes.keys() == _END:
        ended = with_end(session._payload, **changes)  # noqa: SLF001 - ours
        if ended is not None:
            return ended, changes["deadline"]
    payload = replace(session.payload(), **changes)
    return payload.encode(), payload.deadline


def owner_of(session: Session) -> Identity:
    """Return the owner that a session's record names, what it does not say of it as 0."""
    payload = session.payload()
    return Identity(session.pid or 0, payload.owner_start or 0, payload.owner_namespace or 0)


def owner_marks(owner: Identity | None) -> dict[str, Any]:
    """Return the fields that tell an owner from a later process of its pid."""
    if owner is None:
        return {"owner_start": None, "owner_namespace": None}
    return {"owner_start": owner.start or None, "owner_namespace": owner.namespace or None}
