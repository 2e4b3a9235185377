"""What a client's request does: checked like a call's arguments, then changed once.

A map longer than any record is passed on as it came, and the table refuses it with its true size:
decoded, each of its bytes may become an object, and a request may have a million.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET, Raw

from . import changes
from .errors import ForkedHandle, JidokaError, RegistryClosed
from .failed import pack_error
from .maps import encode_map
from .protocol import Create, Resize, Terminate, Update

if TYPE_CHECKING:
    from collections.abc import Callable

    from .control import Identity
    from .once import OnceOnly
    from .protocol import Owner, Reply, Request, SessionRequest

_decode: Final = msgspec.msgpack.Decoder().decode
_decode_pair: Final = msgspec.msgpack.Decoder(tuple[Raw, Raw]).decode

_NO_PAIR: Final = "maps must be an array of metadata and llm_config"

#: Return the id that msgpack has as 16 bytes, in a third of the time of UUID().
_decode_id: Final = msgspec.msgpack.Decoder(UUID).decode


class Service:
    """Carries requests out."""

    def __init__(
        self,
        once: OnceOnly,
        change: Callable[..., Reply],
        resize: Callable[[int, int | None], object],
    ) -> None:
        """Take what changes the registry.

        Args:
            once: its changes.
            change: calls one of them at this moment, with a session's id and its fields.
            resize: moves the registry to a table of another size.
        """
        self._once = once
        self._change = change
        self._resize = resize

    def answer(self, request: Request) -> Reply:
        """Carry a request out and return the reply.

        Raises:
            RegistryClosed, ForkedHandle: where no change can be made any more; nothing was.
        """
        try:
            carry_out = self._checked(request)
        except (JidokaError, ValueError, TypeError) as error:
            return pack_error(error)
        try:
            return carry_out()
        except (RegistryClosed, ForkedHandle):
            raise
        except JidokaError as error:
            # And nothing else: of a fault within a commit nobody can say that it changed nothing.
            return pack_error(error)

    def _checked(self, request: Request) -> Callable[[], Reply]:
        """Return what carries a request out that asks for nothing that cannot be."""
        if isinstance(request, Resize):
            return self._checked_resize(request)
        change, fields = self._fields(request)
        session_id = _decode_id(b"\xc4\x10" + request.session_id)
        fields |= {"request": request.request, "again": request.again}
        return functools.partial(self._change, change, session_id, fields)

    def _checked_resize(self, request: Resize) -> Callable[[], Reply]:
        sizes = changes.for_resize(request.capacity, request.slot_size)
        resize = functools.partial(self._resize, *sizes)
        once = self._once.resize
        return functools.partial(once, resize, request=request.request, again=request.again)

    def _fields(self, request: SessionRequest) -> tuple[Callable[..., Reply], dict[str, Any]]:
        match request:
            case Create():
                return self._once.create, self._create_fields(request)
            case Update():
                return self._once.update, self._update_fields(request)
            case Terminate(error=error):
                return self._once.terminate, changes.for_terminate(error)

    def _create_fields(self, request: Create) -> dict[str, Any]:
        if self._is_too_long(request.maps):
            fields: dict[str, Any] = {"maps": _unread_maps(request.maps)}
        else:
            fields = changes.for_create(*_maps(request.maps), None, None)
        fields["owner"] = None if request.owner is None else _owner(request, request.owner)
        fields["ttl"] = None if request.ttl is None else changes.known_ttl(request.ttl)
        return fields

    def _update_fields(self, request: Update) -> dict[str, Any]:
        given = request.fields
        fields = changes.for_update(
            given.status, UNSET, UNSET, UNSET, UNSET, request.expected_version
        )
        if given.metadata is not UNSET:
            fields["metadata"] = self._packed(given.metadata, "metadata")
        if given.llm_config is not UNSET:
            fields["llm_config"] = self._packed(given.llm_config, "llm_config")
        if given.owner is not UNSET:
            fields["owner"] = None if given.owner is None else _owner(request, given.owner)
        if given.ttl is not UNSET:
            fields["ttl"] = None if given.ttl is None else changes.known_ttl(given.ttl)
        return fields

    def _packed(self, raw: Raw, name: str) -> Raw:
        return raw if self._is_too_long(raw) else encode_map(_decoded(raw), name)

    def _is_too_long(self, raw: Raw) -> bool:
        return len(raw) > self._once.longest


def _owner(request: Create | Update, owner: Owner) -> Identity:
    # One that is sent again may have been carried out while its owner lived: an end since then must
    # not be said to have kept it from being made. One that was not is made, and its session ends.
    return changes.living_owner(owner) if request.again is None else changes.known_owner(owner)


def _maps(raw: Raw) -> tuple[object, object]:
    """Return the two maps of a creation."""
    maps = _decoded(raw)
    if not isinstance(maps, list) or len(maps) != 2:  # noqa: PLR2004 - the two maps
        raise ValueError(_NO_PAIR)
    return maps[0], maps[1]


def _unread_maps(raw: Raw) -> bytes:
    """Return the bytes of a creation's maps once they are known to be two of something."""
    try:
        _decode_pair(raw)
    except msgspec.ValidationError:
        raise ValueError(_NO_PAIR) from None
    return bytes(raw)


def _decoded(raw: Raw) -> object:
    """Return what a request's bytes stand for; what no map may hold is refused later."""
    try:
        return _decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        msg = f"a map is no msgpack: {error}"
        raise ValueError(msg) from None
