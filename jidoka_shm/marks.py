"""Marks: what a record holds of times, deadlines and owners, from what a call was given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from .control import Identity

if TYPE_CHECKING:
    from .session import Session


class Instant(NamedTuple):
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


def owner_of(session: Session) -> Identity:
    """Return the owner that a session's record names, what it does not say of it as 0."""
    payload = session.payload()
    return Identity(session.pid or 0, payload.owner_start or 0, payload.owner_namespace or 0)


def owner_marks(owner: Identity | None) -> dict[str, Any]:
    """Return the fields that tell an owner from a later process of its pid."""
    if owner is None:
        return {"owner_start": None, "owner_namespace": None}
    return {"owner_start": owner.start or None, "owner_namespace": owner.namespace or None}
