"""What a hostile client's fields become: the error that says so, and no change."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import pytest
import wire
from hypothesis import given
from hypothesis import strategies as st
from living import Living
from support import at, make_registry, make_writer

from jidoka_shm import errors, processes, service
from jidoka_shm.control import Identity
from jidoka_shm.errors import ForkedHandle, RegistryClosed
from jidoka_shm.failed import unpack_error
from jidoka_shm.layout import MAX_CAPACITY, MAX_SLOT_SIZE, ROOM_TO_END, SLOT_HEADER_SIZE
from jidoka_shm.once import OnceOnly
from jidoka_shm.protocol import (
    Again,
    Done,
    Failed,
    ProtocolError,
    Request,
    decode_request,
    encode,
)
from jidoka_shm.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from jidoka_shm.protocol import Reply

KEY, NEW = UUID(int=1), UUID(int=2)
NOW = at(10**9)
ME = processes.own_identity()


class Bench:
    """A service over a registry in plain memory, with one session."""

    def __init__(self) -> None:
        self.writer = make_writer(max_record_size=512)
        self.registry = make_registry(self.writer)
        self.sizes: list[tuple[int, int | None]] = []
        self.registry.create(
            KEY, maps=msgspec.msgpack.encode([{"a": 1}, {}]), owner=None, ttl=None, now=NOW
        )
        self.succeed()

    def succeed(self) -> None:
        """Be the next writer's, that remembers no request."""
        once = OnceOnly(self.registry, self.writer.control)
        self._service = Service(once, self._change, self._resize)

    def _change(self, change: Callable[..., Reply], key: UUID, fields: dict[str, Any]) -> Reply:
        return change(key, now=NOW, **fields)

    def _resize(self, capacity: int, slot_size: int | None) -> None:
        self.sizes.append((capacity, slot_size))

    def ask(self, request: Request) -> Reply:
        """Answer a request as it comes out of a frame."""
        return self._service.answer(decode_request(encode(request)[4:]))


@pytest.fixture
def bench() -> Bench:
    return Bench()


def _raw(data: bytes) -> msgspec.Raw:
    return msgspec.Raw(data)


def _refused(bench: Bench, request: Request) -> Exception:
    """Return the error that a request is answered with, once nothing is seen to have changed."""
    before = bytes(bench.writer.slots.memory), bytes(bench.writer.control._memory)
    reply = bench.ask(request)
    assert isinstance(reply, Failed), reply
    assert (bytes(bench.writer.slots.memory), bytes(bench.writer.control._memory)) == before
    return unpack_error(reply)


# ---------------------------------------------------------------------------- maps

_DEEP = b"\x81\xa1a" * 32 + b"\x80"

BAD_MAPS = {
    "bytes": b"\x81\xa1a\xc4\x01x",
    "a key of bytes": b"\x81\xc4\x01a\x01",
    "a number as a key": b"\x81\x01\x01",
    "nil as a key": b"\x81\xc0\x01",
    "an array as a key": b"\x81\x91\x01\x01",
    "a map as a key": b"\x81\x80\x01",
    "an extension": b"\x81\xa1a\xd4\x05\x00",
    "a timestamp": b"\x81\xa1a\xd6\xff\x00\x00\x00\x01",
    "a timestamp beyond all years": b"\x81\xa1a\xc7\x0c\xff\x00\x00\x00\x00" + b"\x7f" * 8,
    "a timestamp as a key": b"\x81\xd6\xff\x00\x00\x00\x01\x01",
    "nan": b"\x81\xa1a\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    "infinity": b"\x81\xa1a\xcb\x7f\xf0\x00\x00\x00\x00\x00\x00",
    "text that is no utf-8": b"\x81\xa1a\xa1\xff",
    "a surrogate": b"\x81\xa1a\xa3\xed\xa0\x80",
    "33 levels": _DEEP,
    "thousands of levels": b"\x81\xa1a" * 900 + b"\x80",
    "an array": b"\x90",
    "a number": b"\x01",
    "text": b"\xa1a",
    "the byte that msgpack does not use": b"\x81\xa1a\xc1",
}

_no_message = {"the byte that msgpack does not use", "thousands of levels"}


@pytest.mark.parametrize("kind", sorted(BAD_MAPS.keys() - _no_message))
@pytest.mark.parametrize("field", ["metadata", "llm_config"])
def test_a_map_that_json_does_not_hold_is_refused(bench: Bench, kind: str, field: str) -> None:
    raw = BAD_MAPS[kind]
    with_it = (raw, b"\x80") if field == "metadata" else (b"\x80", raw)
    created = wire.create(NEW)
    created = msgspec.structs.replace(created, maps=_raw(b"\x92" + b"".join(with_it)))
    updated = wire.update(KEY)
    fields = msgspec.structs.replace(updated.fields, **{field: _raw(raw)})
    for request in (created, msgspec.structs.replace(updated, fields=fields)):
        error = _refused(bench, request)
        assert isinstance(error, (ValueError, TypeError)), error
        if isinstance(error, errors.InvalidMetadata):
            assert error.path.startswith(field)


@pytest.mark.parametrize("kind", sorted(_no_message))
def test_a_map_that_is_no_msgpack_is_no_change(bench: Bench, kind: str) -> None:
    request = msgspec.structs.replace(wire.create(NEW), maps=_raw(b"\x92\x80" + BAD_MAPS[kind]))
    with contextlib.suppress(ProtocolError):
        assert isinstance(bench.ask(request), Failed)
    assert bench.registry.find(NEW) is None


def test_thirty_two_levels_are_taken(bench: Bench) -> None:
    request = msgspec.structs.replace(
        wire.create(NEW), maps=_raw(b"\x92\x80" + b"\x81\xa1a" * 31 + b"\x80")
    )
    assert isinstance(bench.ask(request), Done)


@pytest.mark.parametrize("maps", [b"\x80", b"\xc0", b"\x90", b"\x91\x80", b"\x93\x80\x80\x80"])
def test_what_is_no_pair_of_maps_is_refused(bench: Bench, maps: bytes) -> None:
    error = _refused(bench, msgspec.structs.replace(wire.create(NEW), maps=_raw(maps)))
    assert "maps must be an array of metadata and llm_config" in str(error)


def test_of_a_key_that_comes_twice_the_last_counts_and_one_is_kept(bench: Bench) -> None:
    request = msgspec.structs.replace(
        wire.create(NEW), maps=_raw(b"\x92\x82\xa1a\x01\xa1a\x02\x80")
    )
    assert bench.ask(request) == Done(b"")
    assert bytes(bench.registry.find(NEW).payload().metadata) == b"\x81\xa1a\x02"


def test_nil_is_an_empty_map(bench: Bench) -> None:
    request = msgspec.structs.replace(wire.create(NEW), maps=_raw(b"\x92\xc0\xc0"))
    assert bench.ask(request) == Done(b"")
    assert isinstance(bench.ask(wire.update(KEY, metadata=None)), Done)
    assert bench.registry.find(NEW).metadata == bench.registry.find(KEY).metadata == {}


maps = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.text(max_size=5)
    | st.binary(max_size=5)
    | st.datetimes(timezones=st.timezones()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers() | st.binary(max_size=3), inner)
    ),
    max_leaves=8,
)


def _encoded(value: object) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except OverflowError:
        return b""


_bench = Bench()


@given(st.binary(max_size=40) | maps.map(_encoded))
def test_any_map_is_an_answer_and_never_another_exception(data: bytes) -> None:
    request = wire.update(KEY)
    request = msgspec.structs.replace(
        request, fields=msgspec.structs.replace(request.fields, metadata=_raw(data))
    )
    reply = _bench._service.answer(request)
    assert isinstance(reply, (Done, Failed))
    assert len(encode(reply)) < 1 << 16
    if isinstance(reply, Failed):
        assert isinstance(unpack_error(reply), (ValueError, TypeError))


def test_a_path_of_long_keys_makes_no_long_reply(bench: Bench) -> None:
    bad: object = b"bytes"
    for _ in range(20):
        bad = {"\U000e0001" * 10_000: bad}
    request = wire.update(KEY, metadata=bad)
    assert len(encode(bench.ask(request))) < 1 << 16


def _emptys(count: int) -> bytes:
    """Return an array of so many empty maps, a byte each."""
    return msgspec.msgpack.encode([{}] * count)


@pytest.mark.parametrize("field", ["metadata", "llm_config"])
@pytest.mark.parametrize("beyond", [0, 1, 1_000_000])
def test_a_map_that_no_record_holds_is_refused_before_it_is_decoded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, field: str, beyond: int
) -> None:
    """A byte of it becomes an object of sixty, and more than a second passes with a million."""
    limit = bench.writer.max_record_size - SLOT_HEADER_SIZE
    decoded: list[int] = []

    def count(raw: msgspec.Raw) -> object:
        decoded.append(memoryview(raw).nbytes)
        return msgspec.msgpack.decode(raw)

    monkeypatch.setattr(service, "_decode", count)
    update = wire.update(KEY)
    raw = b"\x81\xa1a" + _emptys(limit - 6 + beyond)
    fields = msgspec.structs.replace(update.fields, **{field: _raw(raw)})
    updated = _refused(bench, msgspec.structs.replace(update, fields=fields))
    both = (raw, b"\x80") if field == "metadata" else (b"\x80", raw)
    maps = _raw(b"\x92" + b"".join(both))
    created = _refused(bench, msgspec.structs.replace(wire.create(NEW), maps=maps))
    for error in (created, updated):
        assert isinstance(error, errors.RecordTooLarge)
        assert error.limit == limit + 64 - ROOM_TO_END
        assert 0 <= error.size - (64 + 2 + len(raw)) < 8
    # The pair of a creation is longer than the map that would fill a payload.
    assert decoded == ([] if beyond else [limit])


@pytest.mark.parametrize("slot_size", [128, 2048])
def test_a_map_that_only_a_record_that_is_there_has_room_for_is_decoded(
    bench: Bench, slot_size: int
) -> None:
    """Its writer had a larger limit; a map that was never looked at must not come into it."""
    bench.writer = make_writer(40, slot_size)
    bench.registry = make_registry(bench.writer)
    long = {"a": "x" * 1000}
    maps = msgspec.msgpack.encode([long, {}])
    bench.registry.create(KEY, maps=maps, owner=None, ttl=None, now=NOW)
    bench.writer.max_record_size = 512
    bench.succeed()
    update = wire.update(KEY)
    for raw in (_emptys(900), b"\x81\xa1a" + b"\x91" * 900 + b"\xc0"):
        fields = msgspec.structs.replace(update.fields, metadata=_raw(raw))
        error = _refused(bench, msgspec.structs.replace(update, fields=fields))
        assert not isinstance(error, errors.RecordTooLarge)
    assert isinstance(bench.ask(wire.update(KEY, metadata=long)), Done)
    longer = {"a": "x" * 3000}
    error = _refused(bench, wire.update(KEY, metadata=longer))
    assert isinstance(error, errors.RecordTooLarge)


def test_what_no_record_holds_is_asked_all_else_first(bench: Bench) -> None:
    long = {"a": "x" * 1000}
    for fields, kind in (
        ({"expected_version": 7}, errors.VersionConflict),
        ({"status": "idle"}, errors.IllegalTransition),
        ({"status": "terminated"}, errors.RecordTooLarge),
        ({"ttl": 0}, ValueError),
    ):
        assert type(_refused(bench, wire.update(KEY, metadata=long, **fields))) is kind
    assert type(_refused(bench, wire.update(NEW, metadata=long))) is errors.SessionNotFound
    assert type(_refused(bench, wire.create(KEY, maps=(long, {})))) is errors.SessionExists
    assert type(_refused(bench, wire.create(NEW, maps=(long, {}), ttl=0))) is ValueError


@pytest.mark.parametrize("marks", [{}, {"ttl": 10**9}, {"owner": (ME.pid, ME.start, ME.namespace)}])
def test_what_is_no_pair_of_maps_is_refused_however_long_it_is(
    bench: Bench, marks: dict[str, Any]
) -> None:
    for maps in (_emptys(1000), b"\x91" + _emptys(1000), b"\xda\x03\xe8" + b"x" * 1000):
        request = msgspec.structs.replace(wire.create(NEW, **marks), maps=_raw(maps))
        assert "maps must be an array of metadata and llm_config" in str(_refused(bench, request))


# ---------------------------------------------------------------------------- other fields

WORD = (1 << 64) - 1


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"status": "sleeping"}, ValueError),
        ({"status": ""}, ValueError),
        ({"status": "ACTIVE"}, ValueError),
        ({"status": "x" * 100_000}, ValueError),
        ({"status": "idle"}, errors.IllegalTransition),
        ({"expected_version": 7}, errors.VersionConflict),
        ({"expected_version": WORD}, errors.VersionConflict),
        ({"ttl": 0}, ValueError),
        ({"ttl": WORD}, ValueError),
        ({"ttl": int(101 * 365.25 * 86_400 * 1e9)}, ValueError),
        ({"owner": (0, 1, 1)}, ValueError),
        ({"owner": (WORD, 1, 1)}, ValueError),
        ({"owner": (1 << 31, 1, 1)}, ValueError),
        ({"owner": (ME.pid, ME.start + 1, ME.namespace)}, errors.OwnerNotAlive),
        ({"owner": (ME.pid, 0, ME.namespace)}, errors.OwnerNotAlive),
        ({"metadata": {"fill": "x" * 1000}}, errors.RecordTooLarge),
    ],
)
def test_a_field_that_cannot_be_is_refused(
    bench: Bench, fields: dict[str, Any], kind: type[Exception]
) -> None:
    error = _refused(bench, wire.update(KEY, **fields))
    assert isinstance(error, kind)
    assert type(error).__name__ == kind.__name__


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"ttl": 0}, ValueError),
        ({"ttl": WORD}, ValueError),
        ({"owner": (0, 0, 0)}, ValueError),
        (
            {"owner": (ME.pid, ME.start + 1, ME.namespace)},
            errors.OwnerNotAlive,
        ),
        ({"maps": ({"fill": "x" * 1000}, {})}, errors.RecordTooLarge),
    ],
)
def test_a_creation_that_cannot_be_is_refused(
    bench: Bench, fields: dict[str, Any], kind: type[Exception]
) -> None:
    assert type(_refused(bench, wire.create(NEW, **fields))) is kind
    assert bench.registry.find(NEW) is None


def test_a_dead_process_owns_nothing(bench: Bench) -> None:
    pid = os.fork()
    if not pid:
        os._exit(0)
    found = processes.identity_of(pid) or Identity(pid, 1, ME.namespace)
    os.waitpid(pid, 0)
    owner = (found.pid, found.start, found.namespace)
    assert type(_refused(bench, wire.create(NEW, owner=owner))) is errors.OwnerNotAlive


@pytest.mark.parametrize("remembers", [True, False])
def test_an_owner_that_died_since_does_not_make_what_was_made_look_refused(
    bench: Bench, *, remembers: bool
) -> None:
    again = Again(bench.writer.next_version() - 1, 0)
    with Living() as child:
        found = processes.identity_of(child.pid)
        owner = (found.pid, found.start, found.namespace)
        requests = [wire.create(NEW, owner=owner), wire.update(KEY, owner=owner)]
        for request in requests:
            assert isinstance(bench.ask(request), Done)
    version = bench.writer.next_version()
    if not remembers:
        bench.succeed()
    for request in requests:
        assert isinstance(bench.ask(msgspec.structs.replace(request, again=again)), Done)
    assert bench.writer.next_version() == version


def test_an_owner_that_lives_or_of_which_nobody_can_tell_is_taken(bench: Bench) -> None:
    assert isinstance(bench.ask(wire.update(KEY, owner=(ME.pid, ME.start, ME.namespace))), Done)
    assert isinstance(bench.ask(wire.update(KEY, owner=(5, 6, ME.namespace + 1))), Done)
    assert bench.registry.find(KEY).pid == 5
    assert isinstance(bench.ask(wire.update(KEY, owner=None)), Done)
    assert bench.registry.find(KEY).pid is None


def test_what_is_not_there_and_what_is_there_already(bench: Bench) -> None:
    assert type(_refused(bench, wire.create(KEY))) is errors.SessionExists
    assert type(_refused(bench, wire.update(NEW))) is errors.SessionNotFound
    assert type(_refused(bench, wire.terminate(NEW))) is errors.SessionNotFound


def test_an_error_of_any_length_ends_a_session(bench: Bench) -> None:
    assert bench.ask(wire.terminate(KEY, "é" * 300_000)) == Done(b"")
    session = bench.registry.find(KEY)
    assert session.status == "terminated"
    assert set(session.error) == {"é"}


@pytest.mark.parametrize("slot_size", [None, 128, 512, MAX_SLOT_SIZE])
@pytest.mark.parametrize("capacity", [1, 8, MAX_CAPACITY])
def test_a_size_that_a_table_can_have_is_asked_of_the_registry(
    bench: Bench, capacity: int, slot_size: int | None
) -> None:
    assert bench.ask(wire.resize(capacity, slot_size)) == Done(b"")
    assert bench.sizes == [(capacity, slot_size)]


@pytest.mark.parametrize(
    ("sizes", "text"),
    [
        ((0,), "capacity is 0: it must be 1 to"),
        ((MAX_CAPACITY + 1,), "it must be 1 to"),
        ((WORD,), "it must be 1 to"),
        ((8, 0), "slot_size is 0: it must be a multiple of 64"),
        ((8, 64), "it must be a multiple of 64 from 128"),
        ((8, 500), "it must be a multiple of 64"),
        ((8, MAX_SLOT_SIZE + 64), "it must be a multiple of 64"),
        ((8, WORD), "it must be a multiple of 64"),
    ],
)
def test_a_size_that_no_table_has_is_refused(
    bench: Bench, sizes: tuple[int, ...], text: str
) -> None:
    error = _refused(bench, wire.resize(*sizes))
    assert type(error) is ValueError
    assert text in str(error)
    assert bench.sizes == []


@pytest.mark.parametrize(
    "error", [errors.RegistryFull(6, 5, "slots"), errors.CorruptRegistry("its slot is bad")]
)
def test_what_a_resize_fails_with_is_the_answer(bench: Bench, error: errors.JidokaError) -> None:
    def refuse(*_: object) -> None:
        raise error

    bench._service._resize = refuse
    found = _refused(bench, wire.resize(8))
    assert (type(found), found.args) == (type(error), error.args)


@pytest.mark.parametrize("error", [RegistryClosed("r", "closed"), ForkedHandle("r")])
def test_a_registry_that_takes_no_change_is_no_answer(error: Exception) -> None:
    def change(*_: object) -> Reply:
        raise error

    bench = Bench()
    bench._change = change  # type: ignore[method-assign]
    bench._service._change = bench._service._resize = change
    for request in (wire.terminate(KEY), wire.resize(8)):
        with pytest.raises(type(error)):
            bench.ask(request)


@pytest.mark.parametrize("error", [TypeError, ValueError, KeyError, MemoryError])
def test_a_fault_within_a_change_is_no_answer(bench: Bench, error: type[Exception]) -> None:
    """Nobody knows what it has changed, which ``failed`` would say is nothing."""

    def change(*_: object) -> Reply:
        raise error

    bench._service._change = bench._service._resize = change
    for request in (wire.create(NEW), wire.update(KEY), wire.terminate(KEY), wire.resize(8)):
        with pytest.raises(error):
            bench.ask(request)
