"""Owners: what a plain dict would answer, and the rules that keep them as the table has them."""

from __future__ import annotations

import random
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ME, at, make_registry, make_writer, successor_of
from tables import maps_of

from jidoka_shm.control import Identity
from jidoka_shm.layout import SPARE_SLOTS
from jidoka_shm.owners import Owners
from jidoka_shm.registry import BATCH, Registry
from jidoka_shm.session import SessionStatus

ANN, BOB, EVE = (Identity(pid, start, 7) for pid, start in ((5, 1), (5, 2), (6, 1)))
DELAY = 50
#: A key gets an owner or none; or somebody takes note of who is to be watched.
steps = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([ANN, BOB, EVE, None])) | st.none(), max_size=40
)


def _made(*items: tuple[int, Identity | None]) -> Owners:
    owners = Owners()
    for key, owner in items:
        owners.set(key, owner)
    return owners


def _agree(owners: Owners, model: dict[int, Identity]) -> None:
    """Assert that owners answer as a plain dict from key to owner does."""
    assert set(owners) == set(model.values())
    assert len(owners) == len(list(owners)) == len(set(model.values()))
    for owner in (ANN, BOB, EVE):
        keys = {key for key, its in model.items() if its == owner}
        assert set(owners.sessions_of(owner)) == keys
        assert owners.count(owner) == len(owners.sessions_of(owner)) == len(keys)


@settings(max_examples=1000)
@given(steps)
def test_the_answers_are_those_of_a_plain_dict(steps: list) -> None:
    owners, model, watched = Owners(), {}, set()
    for step in steps:
        if step is None:
            watched = (watched - owners.departed) | owners.arrived
            owners.arrived.clear()
            owners.departed.clear()
            assert watched == set(owners)
        else:
            owners.set(*step)
            model = {key: owner for key, owner in (model | dict([step])).items() if owner}
        _agree(owners, model)
        assert not owners.arrived & (watched - owners.departed)
        assert owners.departed <= watched
        assert (watched - owners.departed) | owners.arrived == set(owners)


@given(steps, steps)
def test_those_made_anew_tell_whoever_watches_all_that_is_different(old: list, new: list) -> None:
    earlier, owners = Owners(), Owners()
    watched: set[Identity] = set()
    for step in old:
        if step is None:
            watched = (watched - earlier.departed) | earlier.arrived
            earlier.arrived.clear()
            earlier.departed.clear()
        else:
            earlier.set(*step)
    for step in filter(None, new):
        owners.set(*step)
    owners.replace(earlier)
    assert owners.arrived == set(owners)
    assert (watched | owners.arrived) - owners.departed == set(owners)


def test_one_process_is_noted_once_however_many_sessions_it_has() -> None:
    owners = _made(*((key, Identity(5, 1, 7)) for key in range(100)))
    assert (len(owners), owners.arrived) == (1, {ANN})
    assert len({id(group.owner) for group in owners._group_of.values()}) == 1


def test_two_processes_of_one_pid_are_two_owners() -> None:
    assert len(_made((1, ANN), (2, BOB))) == 2


def test_one_that_comes_and_goes_is_not_to_be_watched_and_back_again_is_watched_anew() -> None:
    owners = _made((1, ANN), (1, None))
    assert (owners.arrived, owners.departed) == (set(), set())
    owners.set(1, ANN)
    owners.arrived.clear()
    owners.set(1, None)
    assert owners.departed == {ANN}
    # It may have ended meanwhile, which its watch said once and will not say again.
    owners.set(1, ANN)
    assert (owners.arrived, owners.departed) == ({ANN}, {ANN})
    owners.set(1, None)
    assert (owners.arrived, owners.departed) == (set(), {ANN})


def test_no_more_are_named_than_asked_for() -> None:
    owners = _made(*((key, ANN) for key in range(10)))
    for limit in (0, 3, 10, 20):
        assert len(set(owners.sessions_of(ANN, limit))) == min(limit, 10)


# ---------------------------------------------------------------------------- the rules


def _registry(capacity: int = 8) -> Registry:
    return make_registry(make_writer(capacity, 256), cleanup_delay=DELAY)


def _create(registry: Registry, key: int, owner: Identity | None, moment: int = 0) -> None:
    registry.create(UUID(int=key), owner=owner, ttl=None, now=at(moment), **maps_of())


def _owned(registry: Registry) -> dict[int, Identity]:
    owners = registry.owners
    return {key: owner for owner in owners for key in owners.sessions_of(owner)}


def _resumed(registry: Registry) -> Registry:
    """Return the rules of a next writer that has taken the table up."""
    fresh = make_registry(successor_of(registry.table), cleanup_delay=DELAY)
    fresh.resume(ME)
    return fresh


def _error_of(registry: Registry, key: int) -> str | None:
    found = registry.table.look_up(UUID(int=key))
    assert found is not None
    assert found[2].status is SessionStatus.TERMINATED
    return found[2].error


def test_a_created_session_is_its_owners_and_one_without_is_nobodys() -> None:
    registry = _registry()
    for key, owner in enumerate([ANN, None, BOB, ANN]):
        _create(registry, key, owner)
    assert _owned(registry) == {0: ANN, 2: BOB, 3: ANN}


def test_an_update_moves_a_session_or_leaves_it() -> None:
    registry = _registry()
    _create(registry, 1, ANN)
    registry.update(UUID(int=1), status=SessionStatus.ACTIVE, now=at(0))
    assert _owned(registry) == {1: ANN}
    registry.update(UUID(int=1), owner=EVE, now=at(0))
    assert _owned(registry) == {1: EVE}
    registry.update(UUID(int=1), owner=None, now=at(0))
    assert _owned(registry) == {}


@pytest.mark.parametrize("owner", [{}, {"owner": EVE}, {"owner": None}])
def test_a_session_that_ended_is_nobodys(owner: dict[str, Identity | None]) -> None:
    registry = _registry()
    for key in (1, 2, 3):
        _create(registry, key, ANN)
    registry.update(UUID(int=1), status=SessionStatus.TERMINATED, now=at(0), **owner)
    registry.terminate(UUID(int=2), error=None, now=at(0))
    assert _owned(registry) == {3: ANN}
    assert _owned(_resumed(registry)) == {3: ANN}


def test_a_session_that_expired_is_nobodys() -> None:
    registry = _registry()
    registry.create(UUID(int=1), owner=ANN, ttl=10, now=at(0), **maps_of())
    registry.expire(at(10))
    assert _owned(registry) == {}


def test_a_change_that_is_refused_moves_no_session() -> None:
    registry = _registry()
    _create(registry, 1, ANN)
    registry.update(UUID(int=1), status=SessionStatus.TERMINATING, now=at(0))
    with pytest.raises(ValueError, match="terminating"):
        registry.update(UUID(int=1), status=SessionStatus.ACTIVE, owner=EVE, now=at(0))
    with pytest.raises(LookupError):
        registry.update(UUID(int=2), owner=EVE, now=at(0))
    assert _owned(registry) == {1: ANN}
    assert registry.owners.arrived == {ANN}


@pytest.mark.parametrize("seed", range(20))
def test_the_owners_are_always_those_that_the_next_writer_finds(seed: int) -> None:
    rng = random.Random(seed)
    registry = _registry()
    for moment in range(0, 3000, 10):
        key, owner = rng.randrange(6), rng.choice([ANN, BOB, EVE, None])
        found = registry.table.look_up(UUID(int=key))
        if found is None:
            _create(registry, key, owner, moment)
        elif found[2].status is not SessionStatus.TERMINATED:
            call = rng.choice(["owner", "status", "terminate", "end"])
            if call == "owner":
                registry.update(UUID(int=key), owner=owner, now=at(moment))
            elif call == "end":
                registry.owner_ended(owner or ANN, "it ended", at(moment))
            elif call == "terminate":
                registry.terminate(UUID(int=key), error=None, now=at(moment))
            else:
                registry.update(UUID(int=key), ttl=rng.choice([25, None]), now=at(moment))
        registry.expire(at(moment))
        assert _owned(_resumed(registry)) == _owned(registry), (seed, moment)
        if rng.random() < 0.1:
            registry.resume(ME)


def test_what_a_record_does_not_say_of_its_owner_is_unknown_to_the_next_writer() -> None:
    registry = _registry()
    _create(registry, 1, Identity(5, 0, 0))
    assert list(_resumed(registry).owners) == [Identity(5, 0, 0)]


def test_who_writes_next_watches_all_owners() -> None:
    registry = _registry()
    _create(registry, 1, ANN)
    _create(registry, 2, EVE)
    registry.terminate(UUID(int=2), error=None, now=at(0))
    assert _resumed(registry).owners.arrived == {ANN}


def test_a_new_owner_is_to_be_looked_after_at_once() -> None:
    registry = _registry()
    registry.create(UUID(int=1), owner=None, ttl=30, now=at(0), **maps_of())
    assert registry.next_turn() == 30
    _create(registry, 2, ANN)
    assert registry.next_turn() == 0
    registry.owners.arrived.clear()
    assert registry.next_turn() == 30


# ---------------------------------------------------------------------------- ends


def test_the_end_of_an_owner_ends_its_sessions_and_no_others() -> None:
    registry = _registry()
    for key, owner in enumerate([ANN, BOB, ANN, None]):
        _create(registry, key, owner)
    assert registry.owner_ended(ANN, "it ended", at(100)) == 2
    assert [_error_of(registry, key) for key in (0, 2)] == ["it ended"] * 2
    assert registry.owners.arrived == {BOB}
    registry.owners.arrived.clear()
    assert registry.next_turn() == 100 + DELAY
    assert _owned(registry) == {1: BOB}
    registry.expire(at(100 + DELAY))
    assert registry.table.look_up(UUID(int=0)) is None
    assert registry.table.look_up(UUID(int=1)) is not None
    assert registry.table.check() == []


@pytest.mark.parametrize("asked", [False, True])
def test_an_owner_that_was_asked_to_end_leaves_no_error_in_what_was_terminating(
    *, asked: bool
) -> None:
    registry = _registry()
    for key, status in enumerate([None, "ACTIVE", "TERMINATING"]):
        _create(registry, key, ANN)
        if status:
            registry.update(UUID(int=key), status=SessionStatus[status], now=at(0))
    assert registry.owner_ended(ANN, "it ended", at(100), asked=asked) == 3
    expected = ["it ended", "it ended", None if asked else "it ended"]
    assert [_error_of(registry, key) for key in range(3)] == expected


def test_the_end_of_one_that_owns_nothing_ends_nothing() -> None:
    registry = _registry()
    _create(registry, 1, ANN)
    before = registry.table.next_version()
    assert registry.owner_ended(BOB, "it ended", at(0)) == 0
    assert registry.table.next_version() == before


def test_a_session_that_is_not_there_keeps_no_other_from_its_end() -> None:
    registry = _registry()
    registry.owners.set(77, ANN)
    _create(registry, 1, ANN)
    assert registry.owner_ended(ANN, "it ended", at(0)) == 2
    assert (len(registry.owners), _error_of(registry, 1)) == (0, "it ended")


def test_the_many_sessions_of_an_owner_end_some_at_a_time() -> None:
    registry = make_registry(make_writer(3 * BATCH, 192), cleanup_delay=DELAY)
    for key in range(2 * BATCH + 7):
        _create(registry, key, ANN)
    counts = [registry.owner_ended(ANN, "it ended", at(0)) for _ in range(4)]
    assert counts == [BATCH, BATCH, 7, 0]
    assert len(registry.owners) == 0


def test_a_hundred_owners_that_end_at_once_leave_no_session_and_no_slot_taken() -> None:
    """P3: 100 sessions are terminated and their slots used again."""
    registry = make_registry(make_writer(100, 192), cleanup_delay=DELAY)
    owners = [Identity(pid, 1, 7) for pid in range(1, 101)]
    for again in range(3):
        moment = again * 1000
        for key, owner in enumerate(owners):
            _create(registry, key, owner, moment)
        assert registry.table.free_slots == SPARE_SLOTS
        for owner in owners:
            assert registry.owner_ended(owner, "it ended", at(moment + 1)) == 1
        assert {_error_of(registry, key) for key in range(100)} == {"it ended"}
        registry.expire(at(moment + 1 + DELAY))
        assert registry.table.free_slots == 100 + SPARE_SLOTS
    assert registry.table.check() == []


def test_a_hundred_thousand_owners_through_64_slots_leave_nothing_behind() -> None:
    """P3: nothing that is kept of owners or deadlines grows with those that were."""
    writer = make_writer(64, 192)
    registry = make_registry(writer, cleanup_delay=1000)
    owners, maps = registry.owners, maps_of()
    for n in range(100_000):
        moment, owner = at(100 * n), Identity(1 + n % 30_000, n, 7)
        registry.create(UUID(int=n), owner=owner, ttl=None, now=moment, **maps)
        if n % 3:
            # Whoever watches came in between.
            owners.arrived.clear()
            owners.departed.clear()
        assert registry.owner_ended(owner, "it ended", moment) == 1
        registry.expire(moment)
        kept = [len(owners), len(owners._group_of), len(owners._groups), len(owners.arrived)]
        assert kept == [0] * 4
        assert len(owners.departed) <= 2
        assert len(registry._deadlines) <= 11
        assert len(registry._deadlines._heap) <= 100
    registry.expire(at(10**9))
    assert (writer.free_slots, registry.next_turn()) == (64 + SPARE_SLOTS, None)
    assert writer.check() == []
