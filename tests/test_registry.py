"""The rules: each change commits one version or changes nothing; deadlines are monotonic."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NoReturn
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple, replace
from support import ME, at, make_registry, make_writer, successor_of
from tables import maps_of, state_of

from jidoka_shm.control import Identity
from jidoka_shm.errors import (
    IllegalTransition,
    RecordTooLarge,
    RegistryFull,
    SessionExists,
    SessionNotFound,
    VersionConflict,
)
from jidoka_shm.layout import (
    MAX_DISTANCE,
    ROOM_TO_END,
    SLOT_HEADER_SIZE,
    SLOT_MASK,
    SPARE_SLOTS,
)
from jidoka_shm.maps import encode_map
from jidoka_shm.marks import Instant
from jidoka_shm.registry import Registry
from jidoka_shm.session import MOVES, Session, SessionStatus

if TYPE_CHECKING:
    from collections.abc import Callable

INITIALIZING, ACTIVE, IDLE, TERMINATING, TERMINATED = SessionStatus

#: How to bring a new session to each status.
ROUTES = {
    INITIALIZING: (),
    ACTIVE: (ACTIVE,),
    IDLE: (ACTIVE, IDLE),
    TERMINATING: (TERMINATING,),
    TERMINATED: (TERMINATED,),
}
LIVE = [INITIALIZING, ACTIVE, IDLE, TERMINATING]

OWNER = Identity(5000, 99, 4026532000)
YEAR = 365 * 86_400 * 10**9
DELAY = 50


def _map(value: dict | None) -> object:
    return encode_map(value, "metadata")


@pytest.fixture
def registry() -> Registry:
    return make_registry(make_writer(max_record_size=512), cleanup_delay=DELAY)


def _create(
    registry: Registry,
    key: int,
    now: Instant = at(0),  # noqa: B008 - a value
    *,
    metadata: dict | None = None,
    llm_config: dict | None = None,
    **fields: object,
) -> Session:
    fields = {"owner": None, "ttl": None} | maps_of(metadata, llm_config) | fields
    return registry.create(UUID(int=key), now=now, **fields)


def _come_to(registry: Registry, key: int, status: SessionStatus) -> None:
    _create(registry, key)
    for step in ROUTES[status]:
        registry.update(UUID(int=key), status=step, now=at(0))


def _get(registry: Registry, key: int) -> Session | None:
    found = registry.table.look_up(UUID(int=key))
    return None if found is None else found[2]


def _resumed(registry: Registry) -> Registry:
    """Return the rules of a next writer that has taken the table up."""
    fresh = make_registry(successor_of(registry.table), cleanup_delay=DELAY)
    fresh.resume(ME)
    return fresh


# ---------------------------------------------------------------------------- create


def test_a_new_session_is_what_was_given(registry: Registry) -> None:
    made = _create(registry, 5, at(7000), metadata={"a": 1}, llm_config={"b": 2}, owner=OWNER)
    assert (made.session_id, made.status, made.pid) == (UUID(int=5), INITIALIZING, 5000)
    assert (made.metadata, made.llm_config) == ({"a": 1}, {"b": 2})
    assert (made.error, made.expires_at) == (None, None)


def test_a_new_session_can_be_found(registry: Registry) -> None:
    made = _create(registry, 5)
    assert _get(registry, 5) == made
    assert registry.table.check() == []


def test_a_new_session_was_created_and_updated_now(registry: Registry) -> None:
    made = _create(registry, 5, Instant(1_700_000_000_123_456_789, 0))
    assert made.created_at == datetime(2023, 11, 14, 22, 13, 20, 123_456, tzinfo=UTC)
    assert made.updated_at == made.created_at


def test_a_new_session_has_the_next_version(registry: Registry) -> None:
    assert [_create(registry, key).version for key in range(3)] == [1, 2, 3]


def test_the_owner_is_kept_with_what_tells_it_apart(registry: Registry) -> None:
    payload = _create(registry, 5, owner=OWNER).payload()
    assert (payload.owner_start, payload.owner_namespace) == (99, 4026532000)


def test_what_is_not_known_of_an_owner_is_left_out(registry: Registry) -> None:
    payload = _create(registry, 5, owner=Identity(5000, 0, 0)).payload()
    assert (payload.owner_start, payload.owner_namespace) == (None, None)


def test_an_id_that_is_visible_is_taken(registry: Registry) -> None:
    _create(registry, 5)
    with pytest.raises(SessionExists) as caught:
        _create(registry, 5)
    assert caught.value.session_id == UUID(int=5)


def test_an_id_is_taken_while_it_is_visible_as_terminated(registry: Registry) -> None:
    _come_to(registry, 5, TERMINATED)
    with pytest.raises(SessionExists):
        _create(registry, 5)


def test_an_id_is_free_again_once_its_session_is_gone(registry: Registry) -> None:
    _come_to(registry, 5, TERMINATED)
    registry.expire(at(DELAY))
    assert _create(registry, 5).status is INITIALIZING


# ---------------------------------------------------------------------------- update


def test_what_is_not_given_stays(registry: Registry) -> None:
    made = _create(registry, 5, metadata={"a": 1}, llm_config={"b": 2}, owner=OWNER, ttl=90)
    changed = registry.update(UUID(int=5), now=at(1000))
    differing = {"updated_at", "version"}
    before, after = made.to_dict(), changed.to_dict()
    assert {name for name in before if before[name] != after[name]} == differing
    assert bytes(changed._payload) == bytes(made._payload)


def test_an_update_returns_what_can_be_found(registry: Registry) -> None:
    _create(registry, 5)
    changed = registry.update(UUID(int=5), metadata=_map({"a": 1}), now=at(0))
    assert _get(registry, 5) == changed


def test_an_update_is_later_and_creation_stays(registry: Registry) -> None:
    made = _create(registry, 5, at(1000))
    changed = registry.update(UUID(int=5), now=at(61_789))
    assert changed.created_at == made.created_at
    assert changed.updated_at - made.updated_at == timedelta(microseconds=60)


def test_an_update_has_the_next_version(registry: Registry) -> None:
    _create(registry, 5)
    assert [registry.update(UUID(int=5), now=at(0)).version for _ in range(3)] == [2, 3, 4]


@pytest.mark.parametrize("name", ["metadata", "llm_config"])
def test_a_map_replaces_the_whole_map(registry: Registry, name: str) -> None:
    both = {"a": 1, "b": 2}
    _create(registry, 5, metadata=both, llm_config=both)
    changed = registry.update(UUID(int=5), **{name: _map({"c": 3})}, now=at(0))
    other = {"metadata": "llm_config", "llm_config": "metadata"}[name]
    assert getattr(changed, name) == {"c": 3}
    assert getattr(changed, other) == {"a": 1, "b": 2}


@pytest.mark.parametrize("name", ["metadata", "llm_config"])
def test_none_clears_a_map(registry: Registry, name: str) -> None:
    _create(registry, 5, metadata={"a": 1}, llm_config={"a": 1})
    assert getattr(registry.update(UUID(int=5), **{name: _map(None)}, now=at(0)), name) == {}


def test_an_owner_takes_the_place_of_another(registry: Registry) -> None:
    _create(registry, 5, owner=OWNER)
    changed = registry.update(UUID(int=5), owner=Identity(6000, 11, 12), now=at(0))
    payload = changed.payload()
    assert (changed.pid, payload.owner_start, payload.owner_namespace) == (6000, 11, 12)


def test_none_clears_the_owner_with_all_that_told_it_apart(registry: Registry) -> None:
    _create(registry, 5, owner=OWNER)
    changed = registry.update(UUID(int=5), owner=None, now=at(0))
    payload = changed.payload()
    assert (changed.pid, payload.owner_start, payload.owner_namespace) == (None, None, None)


def test_the_owner_stays_with_all_that_tells_it_apart(registry: Registry) -> None:
    _create(registry, 5, owner=OWNER)
    changed = registry.update(UUID(int=5), status=ACTIVE, metadata=_map({"a": 1}), now=at(0))
    payload = changed.payload()
    assert (changed.pid, payload.owner_start, payload.owner_namespace) == (5000, 99, 4026532000)


def test_the_expected_version_is_the_sessions_own(registry: Registry) -> None:
    _create(registry, 1)
    made = _create(registry, 5)
    assert registry.update(UUID(int=5), expected_version=made.version, now=at(0)).version == 3


@pytest.mark.parametrize("expected", [0, 1, 3, 2**64])
def test_another_version_is_a_conflict(registry: Registry, expected: int) -> None:
    _create(registry, 1)
    _create(registry, 5)
    with pytest.raises(VersionConflict) as caught:
        registry.update(UUID(int=5), expected_version=expected, now=at(0))
    assert caught.value.args == (UUID(int=5), expected, 2)


def test_a_version_is_expected_before_a_move_is_judged(registry: Registry) -> None:
    _create(registry, 5)
    with pytest.raises(VersionConflict):
        registry.update(UUID(int=5), expected_version=9, status=IDLE, now=at(0))


# ---------------------------------------------------------------------------- moves


@pytest.mark.parametrize("requested", SessionStatus)
@pytest.mark.parametrize("current", LIVE)
def test_a_status_moves_as_the_table_says(
    registry: Registry, current: SessionStatus, requested: SessionStatus
) -> None:
    _come_to(registry, 5, current)
    if requested is current or requested in MOVES[current]:
        assert registry.update(UUID(int=5), status=requested, now=at(0)).status is requested
    else:
        with pytest.raises(IllegalTransition) as caught:
            registry.update(UUID(int=5), status=requested, now=at(0))
        allowed = tuple(status.value for status in MOVES[current])
        facts = (UUID(int=5), current.value, requested.value, allowed)
        assert caught.value.args == facts


@pytest.mark.parametrize("requested", SessionStatus)
def test_no_status_follows_the_last_one(registry: Registry, requested: SessionStatus) -> None:
    _come_to(registry, 5, TERMINATED)
    with pytest.raises(SessionNotFound):
        registry.update(UUID(int=5), status=requested, now=at(0))


@pytest.mark.parametrize("status", LIVE)
def test_the_same_status_again_is_a_heartbeat(registry: Registry, status: SessionStatus) -> None:
    _come_to(registry, 5, status)
    before = _get(registry, 5)
    changed = registry.update(UUID(int=5), status=status, now=at(9000))
    assert changed.status is status
    assert changed.version == before.version + 1
    assert changed.updated_at > before.updated_at


def test_an_illegal_move_is_told_in_plain_strs(registry: Registry) -> None:
    _create(registry, 5)
    with pytest.raises(IllegalTransition) as caught:
        registry.update(UUID(int=5), status=IDLE, now=at(0))
    _, current, requested, allowed = caught.value.args
    assert {type(text) for text in (current, requested, *allowed)} == {str}


# ---------------------------------------------------------------------------- terminate


@pytest.mark.parametrize("status", LIVE)
def test_every_live_session_can_be_ended(registry: Registry, status: SessionStatus) -> None:
    _come_to(registry, 5, status)
    registry.terminate(UUID(int=5), error=None, now=at(0))
    assert _get(registry, 5).status is TERMINATED


@pytest.mark.parametrize("error", [None, "", "over", "\u00fc" * 10])
def test_the_end_says_why(registry: Registry, error: str | None) -> None:
    _create(registry, 5, metadata={"a": 1}, owner=OWNER)
    registry.terminate(UUID(int=5), error=error, now=at(0))
    ended = _get(registry, 5)
    assert (ended.error, ended.metadata, ended.pid) == (error, {"a": 1}, 5000)


def test_an_end_of_what_is_not_there_is_an_error(registry: Registry) -> None:
    with pytest.raises(SessionNotFound):
        registry.terminate(UUID(int=5), error=None, now=at(0))


def test_a_second_end_changes_nothing(registry: Registry) -> None:
    _create(registry, 5)
    registry.terminate(UUID(int=5), error="first", now=at(0))
    before = state_of(registry.table)
    registry.terminate(UUID(int=5), error="second", now=at(20))
    assert state_of(registry.table) == before
    assert _get(registry, 5).error == "first"
    assert registry.next_turn() == DELAY


def test_an_end_of_what_is_gone_is_an_error(registry: Registry) -> None:
    _come_to(registry, 5, TERMINATED)
    registry.expire(at(DELAY))
    with pytest.raises(SessionNotFound):
        registry.terminate(UUID(int=5), error=None, now=at(DELAY))


@pytest.mark.parametrize("how", ["terminate", "update"])
def test_the_terminated_is_removed_after_the_delay_and_not_before(
    registry: Registry, how: str
) -> None:
    _create(registry, 5)
    if how == "terminate":
        registry.terminate(UUID(int=5), error=None, now=at(100))
    else:
        registry.update(UUID(int=5), status=TERMINATED, now=at(100))
    assert registry.next_turn() == 100 + DELAY
    registry.expire(at(100 + DELAY - 1))
    assert _get(registry, 5).status is TERMINATED
    registry.expire(at(100 + DELAY))
    assert _get(registry, 5) is None
    assert registry.table.check() == []


def test_a_session_ended_with_a_time_to_live_left_is_removed_after_the_delay(
    registry: Registry,
) -> None:
    _create(registry, 5, ttl=1000)
    registry.terminate(UUID(int=5), error=None, now=at(100))
    registry.expire(at(100 + DELAY))
    assert _get(registry, 5) is None


def test_a_time_to_live_given_with_the_end_does_not_put_off_the_removal(
    registry: Registry,
) -> None:
    _create(registry, 5)
    registry.update(UUID(int=5), status=TERMINATED, ttl=10**9, now=at(0))
    assert registry.next_turn() == DELAY


def test_a_delay_of_nothing_removes_at_once() -> None:
    registry = make_registry(make_writer(), cleanup_delay=0)
    _come_to(registry, 5, TERMINATED)
    registry.expire(at(0))
    assert _get(registry, 5) is None


# ---------------------------------------------------------------------------- time to live


def test_a_time_to_live_stands_on_both_clocks(registry: Registry) -> None:
    made = _create(registry, 5, Instant(1_700_000_000_000_000_000, 40), ttl=60_000_000_000)
    assert made.expires_at == datetime(2023, 11, 14, 22, 14, 20, tzinfo=UTC)
    assert made.payload().deadline == 60_000_000_040


def test_a_session_expires_at_its_deadline_and_not_before(registry: Registry) -> None:
    _create(registry, 5, at(100), ttl=30)
    assert registry.next_turn() == 130
    registry.expire(at(129))
    assert _get(registry, 5).status is INITIALIZING
    registry.expire(at(130))
    assert _get(registry, 5).status is TERMINATED


def test_an_expired_session_says_so(registry: Registry) -> None:
    _create(registry, 5, ttl=30)
    registry.expire(at(30))
    assert _get(registry, 5).error == "expired"


def test_an_expired_session_stays_visible_for_the_delay(registry: Registry) -> None:
    _create(registry, 5, ttl=30)
    registry.expire(at(40))
    registry.expire(at(40 + DELAY - 1))
    assert _get(registry, 5) is not None
    registry.expire(at(40 + DELAY))
    assert _get(registry, 5) is None


def test_a_time_to_live_counts_from_the_update(registry: Registry) -> None:
    _create(registry, 5, ttl=30)
    registry.update(UUID(int=5), ttl=30, now=at(20))
    registry.expire(at(49))
    assert _get(registry, 5).status is INITIALIZING
    registry.expire(at(50))
    assert _get(registry, 5).status is TERMINATED


def test_a_heartbeat_does_not_put_off_the_deadline(registry: Registry) -> None:
    _create(registry, 5, ttl=30)
    registry.update(UUID(int=5), status=INITIALIZING, metadata=_map({"a": 1}), now=at(20))
    assert registry.next_turn() == 30


def test_none_clears_the_time_to_live(registry: Registry) -> None:
    _create(registry, 5, ttl=30)
    changed = registry.update(UUID(int=5), ttl=None, now=at(20))
    assert (changed.expires_at, changed.payload().deadline) == (None, None)
    assert registry.next_turn() is None


def test_a_deadline_moved_away_and_back_expires_once(registry: Registry) -> None:
    _create(registry, 5, ttl=30)
    for ttl in (40, 30):
        registry.update(UUID(int=5), ttl=ttl, now=at(0))
    registry.expire(at(30))
    # Twice would have terminated it and then removed it, with nobody to see why.
    assert _get(registry, 5).status is TERMINATED


def test_with_no_deadline_there_is_nothing_to_do(registry: Registry) -> None:
    _create(registry, 5)
    before = state_of(registry.table)
    registry.expire(at(10**18))
    assert registry.next_turn() is None
    assert state_of(registry.table) == before


def test_the_earliest_deadline_is_the_next(registry: Registry) -> None:
    for key, ttl in ((1, 70), (2, 30), (3, None), (4, 50)):
        _create(registry, key, ttl=ttl)
    assert registry.next_turn() == 30


def test_a_session_that_is_gone_otherwise_is_no_longer_due(registry: Registry) -> None:
    _create(registry, 5, ttl=30)
    registry.table.remove(registry.table.look_up(UUID(int=5))[0])
    registry.expire(at(30))
    assert registry.next_turn() is None


def test_many_that_are_due_are_ended_in_parts_the_earliest_first() -> None:
    registry = make_registry(make_writer(1000, 128))
    for key in range(1000):
        _create(registry, key, ttl=2000 - key)
    registry.expire(at(2000))
    ended = [key for key in range(1000) if _get(registry, key).status is TERMINATED]
    assert ended == list(range(1000 - len(ended), 1000))
    assert 0 < len(ended) < 1000
    for _ in range(1000):
        registry.expire(at(2000))
    assert registry.next_turn() == 2000 + DELAY
    assert {_get(registry, key).status for key in range(1000)} == {TERMINATED}


# ---------------------------------------------------------------------------- the wall clock


@pytest.mark.parametrize("jump", [YEAR, -YEAR])
def test_a_jump_of_the_wall_clock_ends_and_keeps_nothing(registry: Registry, jump: int) -> None:
    wall = 1_700_000_000_000_000_000
    _create(registry, 1, Instant(wall, 0), ttl=100)
    _create(registry, 2, Instant(wall, 0))
    registry.terminate(UUID(int=2), error=None, now=Instant(wall, 0))
    before = state_of(registry.table)
    registry.expire(Instant(wall + jump, DELAY - 1))
    assert state_of(registry.table) == before
    registry.expire(Instant(wall + jump, 100))
    assert (_get(registry, 1).error, _get(registry, 2)) == ("expired", None)


def test_a_wall_clock_set_back_makes_an_earlier_update_and_no_error(registry: Registry) -> None:
    made = _create(registry, 5, Instant(1_700_000_000_000_000_000, 0))
    changed = registry.update(UUID(int=5), now=Instant(1_700_000_000_000_000_000 - YEAR, 1))
    assert changed.updated_at < made.created_at == changed.created_at


def test_a_wall_clock_before_1970_is_no_error(registry: Registry) -> None:
    made = _create(registry, 5, Instant(-YEAR, 0), ttl=30)
    assert made.created_at == datetime(1969, 1, 1, tzinfo=UTC)
    assert _get(registry, 5) == made


# ---------------------------------------------------------------------------- failed changes

BIG = _map({"a": 600 * "x"})

#: A change that fails, with its error and how many sessions there is room for.
FAILURES: dict[str, tuple[type[Exception], int, Callable[[Registry], object]]] = {
    "create what exists": (SessionExists, 8, lambda r: _create(r, 1, ttl=5)),
    "create what exists in a full table": (SessionExists, 4, lambda r: _create(r, 1, ttl=5)),
    "create what is terminated": (SessionExists, 8, lambda r: _create(r, 4, ttl=5)),
    "create in a full table": (RegistryFull, 4, lambda r: _create(r, 9, ttl=5)),
    "create too large": (
        RecordTooLarge,
        8,
        lambda r: _create(r, 9, ttl=5, metadata={"a": 600 * "x"}),
    ),
    "update what never was": (
        SessionNotFound,
        8,
        lambda r: r.update(UUID(int=9), status=ACTIVE, ttl=5, now=at(5)),
    ),
    "update what is terminated": (
        SessionNotFound,
        8,
        lambda r: r.update(UUID(int=4), metadata=_map({}), ttl=5, now=at(5)),
    ),
    "update to an illegal status": (
        IllegalTransition,
        8,
        lambda r: r.update(UUID(int=1), status=IDLE, ttl=5, now=at(5)),
    ),
    "update of another version": (
        VersionConflict,
        8,
        lambda r: r.update(UUID(int=1), expected_version=9, ttl=5, now=at(5)),
    ),
    "update too large": (
        RecordTooLarge,
        8,
        lambda r: r.update(UUID(int=1), metadata=BIG, ttl=5, now=at(5)),
    ),
    "update too large in a full table": (
        RecordTooLarge,
        4,
        lambda r: r.update(UUID(int=2), llm_config=BIG, ttl=5, now=at(5)),
    ),
    "terminate what never was": (
        SessionNotFound,
        8,
        lambda r: r.terminate(UUID(int=9), error="e", now=at(5)),
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failed_change_leaves_everything_as_it_was(kind: str) -> None:
    """T7: a failed write moves nothing."""
    error, capacity, change = FAILURES[kind]
    registry = make_registry(make_writer(capacity, max_record_size=512))
    for key, status in zip((1, 2, 3, 4), (INITIALIZING, ACTIVE, IDLE, TERMINATED), strict=True):
        _come_to(registry, key, status)
    registry.update(UUID(int=2), ttl=1000, now=at(0))
    before = state_of(registry.table), registry.next_turn(), len(registry._deadlines)
    with pytest.raises(error):
        change(registry)
    assert (state_of(registry.table), registry.next_turn(), len(registry._deadlines)) == before
    assert registry.table.check() == []


def test_each_kind_of_error_of_a_change_is_among_the_failures() -> None:
    assert {error for error, _, _ in FAILURES.values()} == {
        IllegalTransition,
        RecordTooLarge,
        RegistryFull,
        SessionExists,
        SessionNotFound,
        VersionConflict,
    }


def _refusing(asked: list[UUID | None]) -> Callable[[UUID | None, RegistryFull], NoReturn]:
    """Return what makes no room, and notes for which session it was asked."""

    def grow(key: UUID | None, full: RegistryFull) -> NoReturn:
        asked.append(key)
        raise full

    return grow


@pytest.mark.parametrize("ended", [1, 4])
def test_what_is_due_makes_room_before_the_table_grows(ended: int) -> None:
    grown: list[UUID] = []
    registry = make_registry(make_writer(4), grow=lambda key, _: grown.append(key))
    for key in range(4):
        _create(registry, key)
    for key in range(ended):
        registry.terminate(UUID(int=key), error=None, now=at(0))
    _create(registry, 9, at(DELAY))
    assert not grown
    assert registry.table.free_slots == SPARE_SLOTS + ended - 1
    assert registry.table.check() == []


def test_a_record_for_which_what_is_due_makes_too_little_room_still_makes_the_table_grow() -> None:
    grown: list[UUID | None] = []
    registry = make_registry(make_writer(4), grow=_refusing(grown))
    for key in range(4):
        _create(registry, key)
    registry.terminate(UUID(int=0), error=None, now=at(0))
    with pytest.raises(RegistryFull):
        registry.update(UUID(int=1), now=at(DELAY), metadata=_map({"a": "x" * 2000}))
    assert grown == [None]
    assert registry.find(UUID(int=0)) is None


def test_as_much_as_is_due_may_be_removed_for_one_creation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jidoka_shm.registry.BATCH", 1)
    registry = make_registry(make_writer(2000, 128))
    size = registry.table.geometry.index_size
    for turn in range(MAX_DISTANCE + 1):
        _create(registry, 3 + turn * size)
    for key in range(1000, 1000 + sys.getrecursionlimit()):
        _create(registry, key)
        registry.terminate(UUID(int=key), error=None, now=at(0))
    with pytest.raises(RegistryFull, match="entries near"):
        _create(registry, 3 + 999 * size, at(DELAY))
    assert len(registry.table.occupied()[0]) == MAX_DISTANCE + 1


def test_a_long_record_has_as_much_of_what_is_due_removed_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("jidoka_shm.registry.BATCH", 4)
    registry = make_registry(make_writer(200, 128))
    for key in range(200):
        _create(registry, key)
    for key in range(200):
        registry.terminate(UUID(int=key), error=None, now=at(0))
    asked: list[RegistryFull] = []
    make_room = registry.make_room

    def count(key: UUID | None, full: RegistryFull, now: Instant) -> None:
        asked.append(full)
        make_room(key, full, now)

    monkeypatch.setattr(registry, "make_room", count)
    _create(registry, 9999, at(DELAY), metadata={"a": "x" * 10_000})
    # In parts of what it takes, and not of four: as much again for the reserve, and what is spare.
    assert len(asked) <= 4
    assert asked[0].needed > 70


def test_a_damaged_session_that_is_due_keeps_no_table_from_growing() -> None:
    grown: list[UUID | None] = []
    registry = make_registry(make_writer(4), grow=_refusing(grown))
    for key in range(4):
        _create(registry, key)
    registry.terminate(UUID(int=0), error=None, now=at(0))
    found = registry.table.look_up(UUID(int=0))
    assert found is not None
    # No slot has this number.
    registry.table.index.words[found[0]] |= SLOT_MASK
    with pytest.raises(RegistryFull):
        _create(registry, 9, at(DELAY))
    assert grown == [UUID(int=9)]


def test_after_10_000_failed_creations_there_is_room_for_one_that_follows_an_end() -> None:
    """D6: a failed create leaks nothing."""
    registry = make_registry(make_writer(4))
    for key in range(4):
        _create(registry, key)
    for key in range(10_000):
        with pytest.raises(RegistryFull):
            _create(registry, 100 + key)
    registry.terminate(UUID(int=2), error=None, now=at(0))
    registry.expire(at(DELAY))
    assert _create(registry, 100).version == 7
    assert registry.table.check() == []


def test_a_full_table_takes_any_number_of_changes() -> None:
    registry = make_registry(make_writer(4))
    for key in range(4):
        _create(registry, key)
    for turn in range(1000):
        registry.update(UUID(int=turn % 4), metadata=_map({"turn": turn}), now=at(turn))
    assert registry.table.check() == []


# ---------------------------------------------------------------------------- room for the end

SIZE = 256
#: The longest payload of a live session, and the longest text of {"a": text} alone in it.
ROOM = SIZE - SLOT_HEADER_SIZE - ROOM_TO_END
LONGEST = ROOM - len(b"\x92\x81\xa1a\xd9\x00\x80")

LATE = at(2**62)


def _small() -> Registry:
    return make_registry(make_writer(2, SIZE, max_record_size=SIZE))


def test_the_longest_live_session_leaves_the_room_to_end() -> None:
    made = _create(_small(), 5, metadata={"a": LONGEST * "x"})
    assert len(made._payload) == ROOM


def test_one_byte_more_is_too_large() -> None:
    with pytest.raises(RecordTooLarge) as caught:
        _create(_small(), 5, metadata={"a": (LONGEST + 1) * "x"})
    assert caught.value.args == (SIZE - ROOM_TO_END + 1, SIZE - ROOM_TO_END, "record")


def test_an_update_leaves_the_room_to_end_too() -> None:
    registry = _small()
    _create(registry, 5)
    registry.update(UUID(int=5), metadata=_map({"a": LONGEST * "x"}), now=LATE)
    with pytest.raises(RecordTooLarge):
        registry.update(UUID(int=5), metadata=_map({"a": (LONGEST + 1) * "x"}), now=LATE)


@st.composite
def _longest(draw: st.DrawFn) -> Registry:
    """Draw a registry with a session 5 that fills its slot, but for a few bytes."""
    owner, ttl = draw(st.sampled_from([None, OWNER])), draw(st.none() | st.integers(1, 2**61))
    left = draw(st.integers(0, 8))
    for length in range(LONGEST, 0, -1):
        registry = _small()
        try:
            _create(registry, 5, LATE, metadata={"a": length * "x"}, owner=owner, ttl=ttl)
        except RecordTooLarge:
            continue
        return registry if left == 0 else _with_less(length - left, owner, ttl)
    raise AssertionError


def _with_less(length: int, owner: Identity | None, ttl: int | None) -> Registry:
    registry = _small()
    _create(registry, 5, LATE, metadata={"a": length * "x"}, owner=owner, ttl=ttl)
    return registry


@given(_longest(), st.sampled_from(MOVES[INITIALIZING]))
def test_the_longest_session_can_change_its_status(
    registry: Registry, status: SessionStatus
) -> None:
    assert registry.update(UUID(int=5), status=status, now=LATE).status is status


@given(_longest(), st.none() | st.text(max_size=60) | st.just("x" * 1000))
def test_the_longest_session_can_be_ended_whatever_the_error(
    registry: Registry, error: str | None
) -> None:
    metadata = _get(registry, 5).metadata
    registry.terminate(UUID(int=5), error=error, now=LATE)
    ended = _get(registry, 5)
    assert (ended.status, ended.metadata) == (TERMINATED, metadata)
    assert registry.next_turn() == LATE.monotonic + DELAY
    assert ended.error == error or (error or "").startswith(ended.error or "")
    assert registry.table.check() == []


@given(_longest())
def test_the_longest_session_expires_with_the_whole_word(registry: Registry) -> None:
    registry.update(UUID(int=5), ttl=None, now=LATE)
    registry.terminate(UUID(int=5), error="expired", now=LATE)
    assert _get(registry, 5).error == "expired"


def test_the_longest_session_with_a_deadline_keeps_nobody_else_alive() -> None:
    registry = _small()
    longest = LONGEST
    while _get(registry, 5) is None:
        try:
            _create(registry, 5, at(0), metadata={"a": longest * "x"}, ttl=10)
        except RecordTooLarge:
            longest -= 1
    _create(registry, 6, at(0), ttl=20)
    registry.expire(LATE)
    assert [_get(registry, key).error for key in (5, 6)] == ["expired", "expired"]


@pytest.mark.parametrize("letter", ["x", "\u00fc", "\u20ac", "\U0001f600"])
def test_an_error_too_long_is_cut_to_what_fits_between_two_characters(letter: str) -> None:
    registry = _small()
    _create(registry, 5)
    registry.terminate(UUID(int=5), error=1000 * letter, now=LATE)
    error = _get(registry, 5).error
    unused = SIZE - SLOT_HEADER_SIZE - len(_get(registry, 5)._payload)
    assert error
    assert error == len(error) * letter
    # One character, and what a shorter length of text saves in msgpack.
    assert unused <= len(letter.encode()) + 2


def test_an_error_that_just_fits_is_kept_whole() -> None:
    registry = _small()
    _create(registry, 5)
    registry.terminate(UUID(int=5), error=1000 * "x", now=LATE)
    longest = _get(registry, 5).error
    _create(registry, 6)
    registry.terminate(UUID(int=6), error=longest, now=LATE)
    assert _get(registry, 6).error == longest


# ---------------------------------------------------------------------------- counters


def test_each_change_is_counted_once(registry: Registry) -> None:
    for key in (1, 2, 3):
        _create(registry, key, ttl=30 if key == 3 else None)
    registry.update(UUID(int=1), status=ACTIVE, now=at(0))
    registry.terminate(UUID(int=1), error=None, now=at(0))
    registry.terminate(UUID(int=1), error=None, now=at(1))
    registry.expire(at(30))
    registry.expire(at(DELAY))
    counts = {"created": 3, "updated": 3, "removed": 1, "takeovers": 0, "dropped": 0}
    assert registry._control.counters() == counts


# ---------------------------------------------------------------------------- resume


def test_a_next_writer_takes_up_every_session(registry: Registry) -> None:
    made = [_create(registry, key) for key in range(5)]
    fresh = make_registry(successor_of(registry.table))
    assert fresh.resume(ME) == (5, ())
    assert [_get(fresh, key) for key in range(5)] == made
    assert fresh.table.check() == []


def test_a_next_writer_takes_up_the_deadlines(registry: Registry) -> None:
    _create(registry, 1, ttl=70)
    _create(registry, 2, ttl=30)
    _create(registry, 3)
    _create(registry, 4)
    registry.terminate(UUID(int=4), error=None, now=at(0))
    fresh = _resumed(registry)
    assert fresh.next_turn() == 30
    fresh.expire(at(30))
    assert _get(fresh, 2).error == "expired"
    fresh.expire(at(69))
    assert (_get(fresh, 1).status, _get(fresh, 4)) == (INITIALIZING, None)
    fresh.expire(at(70))
    assert _get(fresh, 1).error == "expired"


def test_what_came_due_meanwhile_is_ended_at_the_first_expiry(registry: Registry) -> None:
    _create(registry, 1, ttl=30)
    fresh = _resumed(registry)
    fresh.expire(at(10**12))
    assert _get(fresh, 1).error == "expired"
    assert fresh.next_turn() == 10**12 + DELAY


def test_a_writer_that_resumes_twice_takes_up_each_deadline_once(registry: Registry) -> None:
    _create(registry, 1, ttl=30)
    registry.resume(ME)
    registry.resume(ME)
    assert len(registry._deadlines) == 1
    registry.expire(at(30))
    assert _get(registry, 1).status is TERMINATED


def test_a_writer_that_resumes_forgets_the_deadlines_it_made_up(registry: Registry) -> None:
    # As after an interrupted call, whose deadline was set and whose session was not committed.
    registry._deadlines.set(77, 5)
    registry.resume(ME)
    assert registry.next_turn() is None


def test_what_a_next_writer_drops_is_told_and_counted(registry: Registry) -> None:
    _create(registry, 1)
    entry, word, _ = registry.table.look_up(UUID(int=1))
    _create(registry, 2)
    registry.table.slots.memory[registry.table.slots.offset(word & 0xFFFFFF)] ^= 1
    fresh = make_registry(successor_of(registry.table))
    kept, dropped = fresh.resume(ME)
    assert (kept, [one.entry for one in dropped]) == (1, [entry])
    assert fresh._control.counters()["dropped"] == 1
    assert fresh.table.check() == []


def test_a_next_writer_goes_on_with_later_versions(registry: Registry) -> None:
    made = _create(registry, 1)
    assert _create(_resumed(registry), 2).version > made.version


def test_a_hundred_thousand_sessions_through_64_slots_leave_nothing_behind() -> None:
    """P3: neither slots nor deadlines of sessions that ended pile up."""
    writer = make_writer(64, 192)
    registry = make_registry(writer, cleanup_delay=1000)
    maps = maps_of()
    for n in range(100_000):
        moment = at(100 * n)
        registry.create(UUID(int=n), owner=None, ttl=None, now=moment, **maps)
        registry.terminate(UUID(int=n), error=None, now=moment)
        registry.expire(moment)
        assert len(registry._deadlines) <= 11
        assert len(registry._deadlines._heap) <= 100
    registry.expire(at(10**9))
    assert (writer.free_slots, registry.next_turn()) == (64 + SPARE_SLOTS, None)
    assert writer.check() == []


# ---------------------------------------------------------------------------- requests

REQUEST, ANOTHER = b"r" * 16, b"s" * 16


def _request_of(registry: Registry, key: int) -> bytes | None:
    found = _get(registry, key)
    assert found is not None
    return found.payload().request


def _fill(registry: Registry, room: int) -> None:
    """Create a session whose record has ``room`` bytes left of what a live one may take."""
    low = _create(registry, 1, metadata={"fill": "x" * 300})
    limit = registry.table.geometry.slot_size - ROOM_TO_END
    size = SLOT_HEADER_SIZE + len(low._payload)
    registry.table.remove(registry.table.look_up(UUID(int=1))[0])
    _create(registry, 1, metadata={"fill": "x" * (300 + limit - size - room)})
    grown = _get(registry, 1)
    assert grown is not None
    assert SLOT_HEADER_SIZE + len(grown._payload) == limit - room


def test_a_record_keeps_the_request_that_made_it(registry: Registry) -> None:
    _create(registry, 1, request=REQUEST)
    assert _request_of(registry, 1) == REQUEST
    registry.update(UUID(int=1), now=at(1), request=ANOTHER)
    assert _request_of(registry, 1) == ANOTHER
    registry.terminate(UUID(int=1), error=None, now=at(1), request=REQUEST)
    assert _request_of(registry, 1) == REQUEST


def test_a_change_by_no_request_keeps_the_last(registry: Registry) -> None:
    _create(registry, 1, request=REQUEST)
    registry.update(UUID(int=1), now=at(1), status=ACTIVE)
    registry.update(UUID(int=1), now=at(1), ttl=5, metadata=_map({"a": 1}))
    assert _request_of(registry, 1) == REQUEST
    registry.expire(at(10))
    assert _request_of(registry, 1) == REQUEST


# A payload of the maps alone grows by five nils and the id with the two bytes before it.
_COST = 5 + 2 + 16


@pytest.mark.parametrize(("room", "kept"), [(0, None), (_COST - 1, None), (_COST, REQUEST)])
def test_an_update_that_fits_without_its_request_is_made(
    registry: Registry, room: int, kept: bytes | None
) -> None:
    _fill(registry, room)
    changed = registry.update(UUID(int=1), now=at(1), status=ACTIVE, request=REQUEST)
    assert (changed.status, changed.payload().request) == (ACTIVE, kept)
    assert registry.table.check() == []


def test_a_request_that_does_not_fit_takes_the_one_before_it_away(registry: Registry) -> None:
    _fill(registry, _COST)
    registry.update(UUID(int=1), now=at(1), request=REQUEST)
    # The deadline needs what the id of the last request left.
    registry.update(
        UUID(int=1), now=at(1), ttl=None, owner=Identity(5, 1 << 63, 0), request=ANOTHER
    )
    assert _request_of(registry, 1) is None


@pytest.mark.parametrize("room", [0, 1, _COST - 1, _COST])
@pytest.mark.parametrize("error", [None, "e", "e" * 400, "é" * 200])
def test_an_end_that_fits_without_its_request_is_made(
    registry: Registry, room: int, error: str | None
) -> None:
    _fill(registry, room)
    registry.terminate(UUID(int=1), error=error, now=at(1), request=REQUEST)
    ended = _get(registry, 1)
    assert ended is not None
    assert ended.status is TERMINATED
    assert (error or "").startswith(ended.error or "")
    size = SLOT_HEADER_SIZE + len(ended._payload)
    assert size <= registry.table.geometry.slot_size
    if ended.error != error:
        # Cut to the last byte but for half a letter, and kept instead of the request.
        assert ended.payload().request is None
        assert size >= registry.table.geometry.slot_size - 3


@pytest.mark.parametrize(("room", "kept"), [(0, None), (_COST - 1, None), (_COST, REQUEST)])
def test_a_creation_that_fits_without_its_request_is_made(
    registry: Registry, room: int, kept: bytes | None
) -> None:
    _fill(registry, room)
    fill = _get(registry, 1)
    assert fill is not None
    _create(registry, 2, metadata=fill.metadata, request=REQUEST)
    made = _get(registry, 2)
    assert made is not None
    assert (made.metadata, made.payload().request) == (fill.metadata, kept)
    with pytest.raises(RecordTooLarge):
        _create(registry, 3, metadata={"fill": "x" * 600}, request=REQUEST)
    assert _get(registry, 3) is None


@pytest.mark.parametrize("other", [4, 0])
def test_a_creation_that_finds_slots_only_without_its_request_is_made(other: int) -> None:
    registry = make_registry(make_writer(5, 128))
    for key in range(other):
        _create(registry, key)
    full = {"fill": "x" * (128 - SLOT_HEADER_SIZE - ROOM_TO_END - len(b"\x92\x81\xa4fill\xb7\x80"))}
    if not other:
        # With the request it takes two slots, and a reserve for it two more.
        _create(registry, 8, request=REQUEST, metadata=full)
        assert _request_of(registry, 8) == REQUEST
    _create(registry, 9, request=REQUEST, metadata=full)
    assert _request_of(registry, 9) is None
    assert registry.table.check() == []
    if other:
        with pytest.raises(RegistryFull):
            _create(registry, 10, request=REQUEST, metadata=full)


def test_an_update_that_does_not_fit_even_without_its_request_changes_nothing(
    registry: Registry,
) -> None:
    _create(registry, 1, request=ANOTHER)
    before = _get(registry, 1)
    with pytest.raises(RecordTooLarge):
        registry.update(UUID(int=1), now=at(1), metadata=_map({"a": "x" * 600}), request=REQUEST)
    after = _get(registry, 1)
    assert (after, _request_of(registry, 1)) == (before, ANOTHER)


FIRST, SECOND = bytes(range(16)), b"\xc4\x10" * 8


@pytest.mark.parametrize("status", [None, ACTIVE, TERMINATED])
@pytest.mark.parametrize("fields", [{}, {"ttl": 500}, {"owner": OWNER}])
@pytest.mark.parametrize("before", [None, FIRST], ids=["without one", "with one"])
def test_a_record_keeps_the_last_requests_id_and_all_else(
    before: bytes | None, fields: dict, status: SessionStatus | None, registry: Registry
) -> None:
    key, maps = UUID(int=7), maps_of({"a": "x"}, {"b": 1})
    given = {"owner": None, "ttl": None, **fields}
    registry.create(key, **maps, now=at(1), request=before, **given)
    old = registry.find(key)
    changes = {} if status is None else {"status": status}
    new = registry.update(key, now=at(2), request=SECOND, **changes)
    assert registry.find(key).to_dict() == new.to_dict()
    kept, found = old.payload(), new.payload()
    deadline = kept.deadline if status is not TERMINATED else 2 + DELAY
    assert astuple(found) == astuple(replace(kept, request=SECOND, deadline=deadline))
    assert registry._deadlines.next() == found.deadline
