"""The registry against a plain dict: any order of calls, crashes and look-ups, checked each step.

The table begins with two slots, may grow to some more by itself, and is resized besides. Ids fall on
few home entries, so that probing, reaches, full tables and reused slots are the rule; records are
of every size up to the limit, so that runs must be made. Each step ends with ``check()`` and with the answers of two
readers, one that was there from the beginning and one with a cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from interleavings import Reader
from msgspec import UNSET
from msgspec.structs import replace
from support import ME, at, make_registry, make_writer, successor_of

from jidoka_shm.control import Identity
from jidoka_shm.errors import (
    IllegalTransition,
    RecordTooLarge,
    RegistryFull,
    SessionExists,
    SessionNotFound,
    VersionConflict,
)
from jidoka_shm.growth import capacity_for, plan
from jidoka_shm.layout import Geometry
from jidoka_shm.maps import encode_map, encode_maps
from jidoka_shm.marks import changed_fields, first_payload
from jidoka_shm.registry import EXPIRED
from jidoka_shm.session import MOVES, SessionStatus
from jidoka_shm.writer import TableWriter

if TYPE_CHECKING:
    from jidoka_shm.marks import Instant
    from jidoka_shm.session import Session

#: Slots at first, that it may grow to, and that it may be resized to; bytes of a slot and of the
#: longest record.
CAPACITY, LIMIT, MOST = 2, 24, 36
SLOT_SIZE, LONGEST = 128, 1000
DELAY = 50
SIZE = make_writer(LIMIT, SLOT_SIZE).geometry.index_size

ids = st.builds(lambda home, k: UUID(int=home + k * SIZE), st.integers(0, 2), st.integers(0, 4))
statuses = st.sampled_from(SessionStatus)
small = st.dictionaries(st.text(max_size=3), st.integers(-(2**63), 2**64 - 1), max_size=2)
long = st.builds(lambda size: {"much": "x" * size}, st.integers(0, 900))
maps = small | long
ttls = st.none() | st.integers(1, 200)
owners = st.none() | st.builds(Identity, st.integers(1, 9), st.integers(1, 9), st.just(7))
large = st.just({"much": "x" * LONGEST})


class Model(RuleBasedStateMachine):
    """D5: the real rules and table, and beside them what a dict says they hold."""

    verify = False

    @initialize()
    def begin(self) -> None:
        self.now = 1000
        self.live: dict[UUID, dict[str, object]] = {}
        self.first = self.writer = make_writer(CAPACITY, SLOT_SIZE, max_record_size=LONGEST)
        self.first.heirs = []
        self._write(self.writer)
        self.old = Reader(self.writer, cache_size=0, verify=self.verify)
        self.cached = Reader(self.writer, cache_size=4, verify=self.verify)

    def _write(self, writer: TableWriter) -> None:
        self.writer = writer
        self.registry = make_registry(writer, cleanup_delay=DELAY, grow=self._make_room)

    def _make_room(self, newcomer: UUID | None, full: RegistryFull) -> None:
        """Grow as a manager does."""
        room = full.needed if full.unit == "adjacent slots" else 1
        capacity = capacity_for(self.writer, room, LIMIT)
        if capacity is None:
            raise full
        self._move(capacity, newcomer, room)

    def _move(self, capacity: int, newcomer: UUID | None = None, room: int = 0) -> None:
        old, control = self.writer, self.writer.control
        geometry = Geometry.for_capacity(capacity, SLOT_SIZE)
        where = plan(old, geometry, newcomer, room=room)
        memory = bytearray(geometry.size)
        new = TableWriter(memory, control, geometry, max_record_size=LONGEST)
        new.fill(old, where)
        self.first.heirs.append(new)
        new.follow(old, control.generation + 1, lambda: setattr(self.registry, "table", new))
        self.writer = new

    @rule(capacity=st.integers(1, MOST))
    def resize(self, capacity: int) -> None:
        if capacity < self._needed():
            before = self.first.control.generation
            with pytest.raises(RegistryFull):
                self._move(capacity)
            assert self.first.control.generation == before
        else:
            self._move(capacity)

    def _run(self, payload: bytes, status: SessionStatus = SessionStatus.INITIALIZING) -> int:
        size = 64 + len(payload) + (0 if status is SessionStatus.TERMINATED else 32)
        return -(-size // SLOT_SIZE)

    def _has_room(self, run: int) -> bool:
        """Return whether a record of so many slots finds room, by what there is and must stay."""
        return self._needed(run) <= max(LIMIT, self.writer.geometry.capacity)

    def _needed(self, run: int = 0) -> int:
        there = [self.registry.find(key) for key in self.live]
        runs = [self._run(each._payload, each.status) for each in there]
        longest = max([run, *runs], default=0)
        return sum(runs) + run + (longest if longest > 1 else 0)

    def _fails(
        self, expected: type[Exception], call: object, *args: object, **fields: object
    ) -> None:
        """A call that must fail changes no word, no version and no free slot."""
        before = (bytes(self.writer.slots.memory), self.writer.change[0], sorted(self.writer.space))
        with pytest.raises(expected):
            call(*args, now=at(self.now), **fields)
        after = (bytes(self.writer.slots.memory), self.writer.change[0], sorted(self.writer.space))
        assert after == before

    @rule(key=ids, metadata=maps, config=maps, ttl=ttls, owner=owners)
    def create(self, key, metadata, config, ttl, owner) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
        fields = {
            "maps": encode_maps(metadata, config),
            "ttl": ttl,
            "owner": owner,
        }
        if key in self.live:
            self._fails(SessionExists, self.registry.create, key, **fields)
            return
        payload, _ = first_payload(fields["maps"], owner, ttl, at(self.now), None)
        if len(payload) + 96 > LONGEST:
            self._fails(RecordTooLarge, self.registry.create, key, **fields)
        elif not self._has_room(self._run(payload)):
            self._fails(RegistryFull, self.registry.create, key, **fields)
        else:
            made = self.registry.create(key, now=at(self.now), **fields)
            self.live[key] = {
                "status": SessionStatus.INITIALIZING,
                "metadata": metadata,
                "llm_config": config,
                "pid": owner and owner.pid,
                "owner": owner,
                "error": None,
                "deadline": None if ttl is None else self.now + ttl,
                "version": made.version,
                "created": self.now,
            }

    @rule(key=ids, metadata=large)
    def create_too_large(self, key, metadata) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
        error = SessionExists if key in self.live else RecordTooLarge
        maps = encode_maps(metadata, None)
        self._fails(error, self.registry.create, key, ttl=None, owner=None, maps=maps)

    @rule(
        key=ids,
        status=statuses,
        metadata=st.none() | maps,
        owner=st.none() | owners,
        right=st.booleans(),
    )
    def update(self, key, status, metadata, owner, right: bool) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
        known = self.live.get(key)
        fields: dict[str, object] = {"status": status, "owner": owner}
        if metadata is not None:
            fields["metadata"] = encode_map(metadata, "m")
        if known is None or known["status"] is SessionStatus.TERMINATED:
            self._fails(SessionNotFound, self.registry.update, key, **fields)
        elif not right:
            fields["expected_version"] = known["version"] + 1
            self._fails(VersionConflict, self.registry.update, key, **fields)
        elif status is not known["status"] and status not in MOVES[known["status"]]:
            self._fails(IllegalTransition, self.registry.update, key, **fields)
        elif error := self._refusal(key, at(self.now), **fields):
            self._fails(error, self.registry.update, key, **fields)
        else:
            if known["version"] is not None:
                fields["expected_version"] = known["version"]
            made = self.registry.update(key, now=at(self.now), **fields)
            known |= {"status": status, "pid": owner and owner.pid, "version": made.version}
            known["owner"] = owner
            if metadata is not None:
                known["metadata"] = metadata
            if status is SessionStatus.TERMINATED:
                known["deadline"] = self.now + DELAY

    def _refusal(self, key: UUID, now: Instant, **fields: object) -> type[Exception] | None:
        """Return why an update finds no room, or None."""
        before = self.registry.find(key)
        given = [fields.get(name, UNSET) for name in ("metadata", "llm_config", "owner", "ttl")]
        changes = changed_fields(*given, now)
        status = fields.get("status", before.status)
        if status is SessionStatus.TERMINATED:
            changes["deadline"] = self.now + DELAY
        payload = replace(before.payload(), **changes).encode()
        room = 0 if status is SessionStatus.TERMINATED else 32
        if len(payload) + 64 + room > max(LONGEST, len(before._payload) + 96):
            return RecordTooLarge
        run = self._run(payload, status)
        grows = run > max(1, self._run(before._payload))
        return RegistryFull if grows and not self._has_room(run) else None

    @rule(key=ids, ttl=ttls)
    def heartbeat(self, key, ttl) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
        known = self.live.get(key)
        if known is None or known["status"] is SessionStatus.TERMINATED:
            return
        if error := self._refusal(key, at(self.now), ttl=ttl):
            self._fails(error, self.registry.update, key, ttl=ttl)
        else:
            made = self.registry.update(key, ttl=ttl, now=at(self.now))
            known |= {
                "deadline": None if ttl is None else self.now + ttl,
                "version": made.version,
            }

    @rule(key=ids, error=st.none() | st.text(max_size=5) | st.just("e" * 400))
    def terminate(self, key, error) -> None:  # type: ignore[no-untyped-def] # noqa: ANN001
        known = self.live.get(key)
        if known is None:
            self._fails(SessionNotFound, self.registry.terminate, key, error=error)
            return
        self.registry.terminate(key, error=error, now=at(self.now))
        if known["status"] is not SessionStatus.TERMINATED:
            known |= {
                "status": SessionStatus.TERMINATED,
                "error": error,
                "deadline": self.now + DELAY,
                "version": self.writer.change[0] // 2,
            }

    @precondition(lambda self: len(self.registry.owners))
    @rule(which=st.integers(0, 99), limit=st.integers(1, LIMIT))
    def an_owner_ended(self, which: int, limit: int) -> None:
        owner = list(self.registry.owners)[which % len(self.registry.owners)]
        its = self.registry.owners.sessions_of(owner)
        done = self.registry.owner_ended(owner, "it ended", at(self.now), limit=limit)
        assert done == min(limit, len(its))
        left = self.registry.owners.sessions_of(owner)
        for key in set(its) - set(left):
            self.live[UUID(int=key)] |= {
                "status": SessionStatus.TERMINATED,
                "error": "it ended",
                "deadline": self.now + DELAY,
                "version": None,
            }

    @rule(step=st.integers(0, 120))
    def time_goes_on(self, step: int) -> None:
        self.now += step
        self.registry.expire(at(self.now))
        for key, known in list(self.live.items()):
            if known["deadline"] is None or known["deadline"] > self.now:
                continue
            if known["status"] is SessionStatus.TERMINATED:
                del self.live[key]
            else:
                known |= {
                    "status": SessionStatus.TERMINATED,
                    "error": EXPIRED,
                    "deadline": self.now + DELAY,
                    "version": None,
                }

    @precondition(lambda self: self.live)
    @rule()
    def another_writer(self) -> None:
        """The writer is gone at rest; the next one takes up what is there, deadlines too."""
        self._write(successor_of(self.writer))
        assert self.registry.resume(ME) == (len(self.live), ())

    @rule(key=ids)
    def a_look_up_of_one(self, key: UUID) -> None:
        known = self.live.get(key)
        for reader in (self.old, self.cached):
            found = reader.get(key)
            assert (found is None) == (known is None)
            assert (key in reader) == (known is not None)
            if found is not None:
                self._same(found, known)
                assert reader.get_session_status(key) is known["status"]

    @invariant()
    def nothing_is_out_of_order(self) -> None:
        assert self.writer.check() == []
        for reader in (self.old, self.cached):
            assert reader.check() == []
            listed = {session.session_id: session for session in reader.values()}
            assert listed.keys() == self.live.keys()
            for key, session in listed.items():
                self._same(session, self.live[key])
            assert len(reader) == len(self.live) == len(reader.snapshot())
            assert sum(reader.count_by_status().values()) == len(self.live)

    @invariant()
    def each_owner_has_its_sessions_that_live(self) -> None:
        owners = self.registry.owners
        assert {key: owner for owner in owners for key in owners.sessions_of(owner)} == {
            key.int: known["owner"]
            for key, known in self.live.items()
            if known["owner"] and known["status"] is not SessionStatus.TERMINATED
        }

    @invariant()
    def the_next_deadline_is_the_earliest(self) -> None:
        known = [known["deadline"] for known in self.live.values()]
        expected = min((when for when in known if when is not None), default=None)
        assert self.registry._deadlines.next() == expected

    def _same(self, session: Session, known: dict[str, object]) -> None:
        assert session.status is known["status"]
        assert session.metadata == known["metadata"]
        assert session.llm_config == known["llm_config"]
        assert session.pid == known["pid"]
        assert session._created == at(known["created"]).wall // 1000 * 1000
        if known["version"] is not None:
            assert session.version == known["version"]
        error = known["error"]
        if error is not None and len(error) > 300:
            assert session.error
            assert error.startswith(session.error)
        else:
            assert session.error == error


class VerifiedModel(Model):
    """The same with readers that compute the crcs."""

    verify = True


@pytest.mark.parametrize("model", [Model, VerifiedModel])
def test_the_registry_behaves_as_a_dict(model: type[Model]) -> None:
    run_state_machine_as_test(
        model,
        settings=settings(
            max_examples=150,
            stateful_step_count=40,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
