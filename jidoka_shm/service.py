"""What a client's request does: checked like a call's arguments, then changed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET, Raw, UnsetType

from . import changes, protocol
from .errors import ForkedHandle, JidokaError, RegistryClosed
from .protocol import Create, Terminate, Update

if TYPE_CHECKING:
    from collections.abc import Callable

    from .once import OnceOnly
    from .protocol import Reply, Request

_decode: Final = msgspec.msgpack.Decoder().decode

#: Return the id that msgpack has as 16 bytes, in a third of the time of UUID().
_decode_id: Final = msgspec.msgpack.Decoder(UUID).decode


class Service:
    """Carries requests out."""

    def __init__(self, once: OnceOnly, change: Callable[..., Reply]) -> None:
        """Take what changes the registry.

        Args:
            once: its changes.
            change: calls one of them at this moment, with a session's id and its fields.
        """
        self._once = once
        self._change = change

    def answer(self, request: Request) -> Reply:
        """Carry a request out and return the reply.

        Raises:
            RegistryClosed, ForkedHandle: where no change can be made any more; nothing was.
        """
        try:
            change, fields = self._fields(request)
            return self._change(
                change,
                _decode_id(b"\xc4\x10" + request.session_id),
                {**fields, "request": request.request, "again": request.again},
            )
        except (RegistryClosed, ForkedHandle):
            raise
        except (JidokaError, ValueError, TypeError) as error:
            return protocol.pack_error(error)

    def _fields(self, request: Request) -> tuple[Callable[..., Reply], dict[str, Any]]:
        match request:
            case Create(maps=maps, owner=owner, ttl=ttl):
                metadata, llm_config = _maps(maps)
                fields = changes.for_create(metadata, llm_config, None, None)
                return self._once.create, fields | {
                    "owner": None if owner is None else changes.known_owner(owner),
                    "ttl": None if ttl is None else changes.known_ttl(ttl),
                }
            case Update():
                return self._once.update, _update_fields(request)
            case Terminate(error=error):
                return self._once.terminate, changes.for_terminate(error)


def _update_fields(request: Update) -> dict[str, Any]:
    given = request.fields
    fields = changes.for_update(
        given.status,
        _map(given.metadata),
        _map(given.llm_config),
        UNSET,
        UNSET,
        request.expected_version,
    )
    if given.owner is not UNSET:
        fields["owner"] = None if given.owner is None else changes.known_owner(given.owner)
    if given.ttl is not UNSET:
        fields["ttl"] = None if given.ttl is None else changes.known_ttl(given.ttl)
    return fields


def _map(raw: Raw | UnsetType) -> object:
    return UNSET if raw is UNSET else _decoded(raw)


def _maps(raw: Raw) -> tuple[object, object]:
    """Return the two maps of a creation."""
    maps = _decoded(raw)
    if not isinstance(maps, list) or len(maps) != 2:  # noqa: PLR2004 - the two maps
        msg = "maps must be an array of metadata and llm_config"
        raise ValueError(msg)
    return maps[0], maps[1]


def _decoded(raw: Raw) -> object:
    """Return what a request's bytes stand for; what no map may hold is refused later."""
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        msg = f"a map is no msgpack: {error}"
        raise ValueError(msg) from None
