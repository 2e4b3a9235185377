"""From a call's arguments to a change's fields: each checked, encoded, and in the registry's units.

Everything that can be wrong with an argument is found here, before a lock is taken.
"""

from __future__ import annotations

from typing import Any, Final

from msgspec import UNSET

from . import processes
from .arguments import SLOT_SIZE, check_pid, check_seconds, check_text, check_whole, check_word
from .control import Identity
from .errors import OwnerNotAlive
from .layout import Geometry
from .maps import encode_map, encode_maps
from .session import parse_status

#: What the record holds of an owner's start time and namespace.
_WORD: Final = (1 << 64) - 1


def for_create(metadata: object, llm_config: object, pid: object, ttl: object) -> dict[str, Any]:
    """Return the fields of ``Registry.create``."""
    return {
        "maps": encode_maps(metadata, llm_config),
        "owner": None if pid is None else _owner(pid),
        "ttl": None if ttl is None else _ttl(ttl),
    }


def for_update(  # noqa: PLR0913, PLR0917 - one argument a field
    status: object,
    metadata: object,
    llm_config: object,
    pid: object,
    ttl: object,
    expected_version: object,
) -> dict[str, Any]:
    """Return the fields of ``Registry.update``, those that are UNSET left out."""
    fields: dict[str, Any] = {}
    if status is not UNSET:
        fields["status"] = parse_status(status)
    if metadata is not UNSET:
        fields["metadata"] = encode_map(metadata, "metadata")
    if llm_config is not UNSET:
        fields["llm_config"] = encode_map(llm_config, "llm_config")
    if pid is not UNSET:
        fields["owner"] = None if pid is None else _owner(pid)
    if ttl is not UNSET:
        fields["ttl"] = None if ttl is None else _ttl(ttl)
    if expected_version is not None:
        fields["expected_version"] = check_word("expected_version", expected_version)
    return fields


def for_terminate(error: object) -> dict[str, Any]:
    """Return the fields of ``Registry.terminate``."""
    return {"error": None if error is None else check_text("error", error)}


def for_resize(capacity: object, slot_size: object) -> tuple[int, int | None]:
    """Return the two arguments of ``SessionManager.resize``."""
    slots = check_whole("capacity", capacity)
    size = None if slot_size is None else check_whole("slot_size", slot_size)
    # Any size of a slot that there is will do to look at the capacity.
    Geometry.for_capacity(slots, SLOT_SIZE if size is None else size)
    return slots, size


def known_owner(owner: tuple[int, int, int]) -> Identity:
    """Return the identity of an owner that a client has looked up.

    Raises:
        ValueError: where it is none.
    """
    pid, start, namespace = owner
    return Identity(check_pid(pid), start & _WORD, namespace & _WORD)


def living_owner(owner: tuple[int, int, int]) -> Identity:
    """Return the same of one that lives.

    Raises:
        OwnerNotAlive: where it has ended since; of another pid namespace that cannot be known.
        ValueError: where it is none.
    """
    identity = known_owner(owner)
    if processes.is_alive(identity) is False:
        raise OwnerNotAlive(identity.pid)
    return identity


def known_ttl(ttl: int) -> int:
    """Return a time to live that a client gives in nanoseconds.

    Raises:
        ValueError: where it is 0 or beyond what any deadline may be.
    """
    _ttl(ttl / 1e9)
    return ttl


def _owner(pid: object) -> Identity:
    """Return who ``pid`` is.

    Raises:
        OwnerNotAlive: where it is nobody, or a zombie.
    """
    number = check_pid(pid)
    owner = processes.find(number)
    if owner is None:
        raise OwnerNotAlive(number)
    return owner


def _ttl(seconds: object) -> int:
    """Return a time to live in nanoseconds."""
    ttl = int(check_seconds("ttl", seconds) * 1e9)
    if ttl == 0:
        msg = f"ttl is {seconds}: give the seconds until the session expires, or None for never"
        raise ValueError(msg)
    return ttl
