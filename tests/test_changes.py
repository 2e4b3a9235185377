"""From arguments to fields: each checked and in the registry's units before a lock is taken."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET
from tables import json_maps

from jidoka_shm import processes
from jidoka_shm.changes import for_create, for_resize, for_terminate, for_update
from jidoka_shm.control import Identity
from jidoka_shm.errors import InvalidMetadata, OwnerNotAlive
from jidoka_shm.session import SessionStatus

NAMES = ("status", "metadata", "llm_config", "pid", "ttl")

THEIRS = Identity(4242, 77, 4026531836)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be one process, 4242."""
    monkeypatch.setattr(processes, "find", {4242: THEIRS}.get)


def _create(**given: object) -> dict:
    return for_create(**{"metadata": None, "llm_config": None, "pid": None, "ttl": None} | given)


def _update(expected_version: object = None, **given: object) -> dict:
    return for_update(**dict.fromkeys(NAMES, UNSET) | given, expected_version=expected_version)


def _decoded(raw: msgspec.Raw) -> object:
    return msgspec.msgpack.decode(raw)


# ---------------------------------------------------------------------------- what is given


@given(json_maps, json_maps)
def test_maps_are_encoded(metadata: dict, llm_config: dict) -> None:
    created = _create(metadata=metadata, llm_config=llm_config)
    assert _decoded(created["maps"]) == [metadata, llm_config]
    updated = _update(metadata=metadata, llm_config=llm_config)
    assert _decoded(updated["metadata"]) == metadata
    assert _decoded(updated["llm_config"]) == llm_config


def test_a_creation_has_every_field() -> None:
    fields = _create()
    assert _decoded(fields.pop("maps")) == [{}, {}]
    assert fields == {"owner": None, "ttl": None}


def test_an_update_has_only_what_is_given() -> None:
    assert _update() == {}


@pytest.mark.parametrize("name", NAMES)
def test_an_update_has_what_is_given_alone(name: str) -> None:
    value = {"status": "active", "metadata": {}, "llm_config": {}, "pid": 4242, "ttl": 1}[name]
    assert list(_update(**{name: value})) == [{"pid": "owner"}.get(name, name)]


@pytest.mark.parametrize(("name", "field"), [("pid", "owner"), ("ttl", "ttl")])
def test_none_clears(name: str, field: str) -> None:
    assert _update(**{name: None}) == {field: None}


@pytest.mark.parametrize("name", ["metadata", "llm_config"])
def test_none_clears_a_map(name: str) -> None:
    assert _decoded(_update(**{name: None})[name]) == {}


@pytest.mark.parametrize("status", ["idle", SessionStatus.IDLE])
def test_a_status_is_parsed(status: object) -> None:
    assert _update(status=status)["status"] is SessionStatus.IDLE


@pytest.mark.parametrize("status", [None, "dead", 3])
def test_what_is_no_status_is_refused(status: object) -> None:
    with pytest.raises(ValueError, match="is no status"):
        _update(status=status)


# ---------------------------------------------------------------------------- maps


@pytest.mark.parametrize("make", [_create, _update])
@pytest.mark.parametrize("name", ["metadata", "llm_config"])
def test_what_json_does_not_hold_is_refused_by_the_maps_name(make: object, name: str) -> None:
    with pytest.raises(InvalidMetadata, match=rf'^{name}\["a"\] is '):
        make(**{name: {"a": {1}}})


# ---------------------------------------------------------------------------- owners

both = pytest.mark.parametrize("make", [_create, _update])


@both
def test_a_pid_becomes_the_process_that_has_it(make: object) -> None:
    assert make(pid=4242)["owner"] == THEIRS


@both
def test_a_pid_that_nobody_has_is_refused(make: object) -> None:
    with pytest.raises(OwnerNotAlive) as caught:
        make(pid=5000)
    assert caught.value.pid == 5000


@both
def test_no_pid_is_no_owner(make: object) -> None:
    assert make(pid=None)["owner"] is None


@both
@pytest.mark.parametrize("pid", [0, -1, 2**32])
def test_a_pid_outside_the_limits_is_refused(make: object, pid: int) -> None:
    with pytest.raises(ValueError, match=f"^pid is {pid}: "):
        make(pid=pid)


@both
@pytest.mark.parametrize("pid", [True, "4242", 4242.0])
def test_what_is_no_pid_is_refused(make: object, pid: object) -> None:
    with pytest.raises(TypeError, match=r"^pid is of type "):
        make(pid=pid)


# ---------------------------------------------------------------------------- times to live


@both
@pytest.mark.parametrize(
    ("seconds", "ns"), [(1, 10**9), (0.05, 50_000_000), (1e-9, 1), (60, 60 * 10**9), (1.5e-9, 1)]
)
def test_a_time_to_live_becomes_nanoseconds(make: object, seconds: float, ns: int) -> None:
    assert make(ttl=seconds)["ttl"] == ns


@given(st.floats(1e-9, 3_155_760_000))
def test_any_time_to_live_is_a_positive_int_of_63_bits(seconds: float) -> None:
    ttl = _create(ttl=seconds)["ttl"]
    assert type(ttl) is int
    assert 0 < ttl < 2**63
    assert math.isclose(ttl, seconds * 1e9, abs_tol=1)


@both
@pytest.mark.parametrize("seconds", [0, 0.0, 1e-10, 5e-324])
def test_a_time_to_live_of_nothing_is_refused(make: object, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"^ttl is .*: give the seconds until"):
        make(ttl=seconds)


@both
@pytest.mark.parametrize("seconds", [-1, math.nan, math.inf, 1e300])
def test_a_time_to_live_outside_the_limits_is_refused(make: object, seconds: float) -> None:
    with pytest.raises(ValueError, match=r"^ttl is .*: it must be 0 to "):
        make(ttl=seconds)


@both
@pytest.mark.parametrize("seconds", [True, "1", [1]])
def test_a_time_to_live_of_another_type_is_refused(make: object, seconds: object) -> None:
    with pytest.raises(TypeError, match=r"^ttl is of type "):
        make(ttl=seconds)


# ---------------------------------------------------------------------------- versions


@pytest.mark.parametrize("version", [0, 1, 2**64 - 1])
def test_an_expected_version_is_taken_as_it_is(version: int) -> None:
    assert _update(expected_version=version) == {"expected_version": version}


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (-1, r"^expected_version is -1: it must be 0 or more$"),
        (2**64, rf"^expected_version is {2**64}: it must be of 64 bits$"),
        (10**5000, r"^expected_version is int without a repr \(ValueError\): "),
    ],
    ids=["negative", "65 bits", "without a text"],
)
def test_a_version_that_no_session_can_have_is_refused(version: int, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        _update(expected_version=version)


@pytest.mark.parametrize("version", [True, "1", 1.0, UNSET])
def test_a_version_of_another_type_is_refused(version: object) -> None:
    with pytest.raises(TypeError, match=r"^expected_version is of type "):
        _update(expected_version=version)


# ---------------------------------------------------------------------------- ends


@pytest.mark.parametrize("error", [None, "", "over", "\u00fc\0"])
def test_the_reason_of_an_end_is_taken_as_it_is(error: str | None) -> None:
    assert for_terminate(error) == {"error": error}


def test_a_reason_that_utf8_cannot_carry_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^error holds a lone surrogate"):
        for_terminate("\ud800")


@pytest.mark.parametrize("error", [b"over", 5, ValueError("over")])
def test_a_reason_of_another_type_is_refused(error: object) -> None:
    with pytest.raises(TypeError, match=r"^error is of type "):
        for_terminate(error)


# ---------------------------------------------------------------------------- a resize


class Whole:
    """A whole number of another type, as numpy has them."""

    def __index__(self) -> int:
        return 256


@pytest.mark.parametrize("slot_size", [None, 256, Whole()])
@pytest.mark.parametrize("capacity", [256, Whole()])
def test_a_size_is_two_whole_numbers(capacity: object, slot_size: object) -> None:
    found = for_resize(capacity, slot_size)
    assert found == (256, None if slot_size is None else 256)
    assert [type(each) for each in found] == [int, type(None) if slot_size is None else int]


@pytest.mark.parametrize(
    ("sizes", "error"),
    [
        ((0, None), ValueError),
        ((-1, None), ValueError),
        ((1 << 64, None), ValueError),
        ((8, 0), ValueError),
        ((8, 100), ValueError),
        ((8, 1 << 64), ValueError),
        (("8", None), TypeError),
        ((None, 512), TypeError),
        ((True, None), TypeError),
        ((8, 512.0), TypeError),
    ],
)
def test_a_size_that_no_table_has_is_refused(
    sizes: tuple[object, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        for_resize(*sizes)
