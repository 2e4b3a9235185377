"""Requests that are lost, sent again, and come late: each is made once, or nobody can tell."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from support import ME, at, make_registry, make_writer, successor_of

from jidoka_shm import once as once_module
from jidoka_shm.errors import (
    IllegalTransition,
    JidokaError,
    RegistryFull,
    SessionExists,
    SessionNotFound,
    VersionConflict,
)
from jidoka_shm.layout import SLOT_HEADER
from jidoka_shm.maps import encode_map, encode_maps
from jidoka_shm.once import OnceOnly
from jidoka_shm.protocol import Again, Done, Failed, Reply, Unknown
from jidoka_shm.registry import Registry
from jidoka_shm.session import Session, SessionStatus
from jidoka_shm.slots import make_session, pack_slot

if TYPE_CHECKING:
    from collections.abc import Callable

KEY, OTHER = UUID(int=1), UUID(int=2)
R, R2 = b"r" * 16, b"s" * 16
#: How long what is terminated stays, in nanoseconds.
DELAY = 50


class Service:
    """A registry in plain memory and what answers requests to it, one writer after the other."""

    def __init__(self) -> None:
        self.writer = make_writer(max_record_size=512)
        self.now = self.others = 0
        self.applied: Counter[bytes | None] = Counter()
        self.request: bytes | None = None
        self.start()

    def start(self) -> None:
        self.registry: Registry = make_registry(self.writer, cleanup_delay=DELAY)
        self.once = OnceOnly(self.registry, self.writer.control)
        # What is made, counted where it is made.
        replace, insert = self.writer.replace, self.writer.insert

        def count_insert(session: Session) -> None:
            insert(session)
            self.applied[self.request] += 1

        def count_replace(entry: int, session: Session) -> Session:
            made = replace(entry, session)
            self.applied[self.request] += 1
            return made

        self.writer.insert = count_insert  # type: ignore[method-assign]
        self.writer.replace = count_replace  # type: ignore[method-assign]

    def take_over(self) -> None:
        self.writer = successor_of(self.writer)
        self.start()
        self.registry.resume(ME)

    def again(self) -> Again:
        counters = self.writer.control.counters()
        return Again(self.writer.change[0] // 2, counters["removed"] + counters["dropped"])

    def get(self, key: UUID) -> Session | None:
        return self.registry.find(key)

    def pass_time(self) -> None:
        """Remove what is terminated."""
        self.now += DELAY
        self.registry.expire(at(self.now))

    def create(self, request: bytes, again: Again | None = None, key: UUID = KEY) -> Reply:
        fields = {"maps": encode_maps({}, {}), "owner": None, "ttl": None}
        return self._call(self.once.create, request, again, key, fields)

    def update(
        self, request: bytes, again: Again | None = None, key: UUID = KEY, **fields: object
    ) -> Reply:
        fields = fields or {"metadata": encode_map({"by": request.hex()}, "metadata")}
        return self._call(self.once.update, request, again, key, fields)

    def terminate(self, request: bytes, again: Again | None = None, key: UUID = KEY) -> Reply:
        return self._call(self.once.terminate, request, again, key, {"error": None})

    def _call(
        self,
        change: Callable[..., Reply],
        request: bytes,
        again: Again | None,
        key: UUID,
        fields: dict[str, Any],
    ) -> Reply:
        self.request = request
        try:
            return change(key, request=request, again=again, now=at(self.now), **fields)
        finally:
            self.request = None

    def by_manager(self, key: UUID = KEY) -> None:
        """Change a session as the manager's own process does: by no request."""
        self.registry.update(key, now=at(self.now), metadata=encode_map({"by": "me"}, "metadata"))

    def remove(self, key: UUID, request: bytes | None = None) -> None:
        self.terminate(request or self.new_id(), key=key)
        self.pass_time()

    def new_id(self) -> bytes:
        """Return the id of another client's request."""
        self.others += 1
        return (self.others << 64).to_bytes(16)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def live(service: Service) -> Service:
    service.create(b"c" * 16)
    return service


def _record(reply: Reply) -> Session:
    assert isinstance(reply, Done)
    head = SLOT_HEADER.unpack_from(reply.record)[:7]
    return make_session(UUID(bytes=head[0]), (head, reply.record[SLOT_HEADER.size :]))


class Size:
    """What is resized, and how often; what does not fit is refused."""

    def __init__(self) -> None:
        self.moves: list[int] = []

    def to(self, capacity: int) -> Callable[[], None]:
        def move() -> None:
            if capacity < 2:
                raise RegistryFull(2, capacity, "slots")
            if self.moves[-1:] != [capacity]:
                self.moves.append(capacity)

        return move


# ---------------------------------------------------------------------------- the table's rows


def test_the_record_that_has_the_id_is_the_answer(live: Service) -> None:
    again = live.again()
    first = live.update(R)
    for _ in range(2):
        assert live.update(R, again) == first
        live.take_over()
    assert _record(first).version == live.get(KEY).version
    assert live.applied[R] == 1


def test_the_record_of_a_creation_is_the_answer_of_the_next_writer(service: Service) -> None:
    again = service.again()
    assert service.create(R) == Done(b"")
    service.take_over()
    assert service.create(R, again) == Done(pack_slot(service.get(KEY)))
    assert service.applied[R] == 1


def test_what_did_not_change_since_was_not_changed(live: Service) -> None:
    again = live.again()
    live.take_over()
    assert _record(live.update(R, again)).metadata == {"by": R.hex()}
    assert live.applied[R] == 1


def test_what_another_request_changed_since_is_unknown_to_the_next_writer(live: Service) -> None:
    again = live.again()
    live.update(R)
    live.update(R2)
    live.take_over()
    assert isinstance(live.update(R, again), Unknown)
    assert live.applied[R] == 1


def test_the_writer_itself_knows_what_another_request_has_changed_since(live: Service) -> None:
    again = live.again()
    first = live.update(R)
    live.update(R2)
    assert live.update(R, again) == first
    live.remove(KEY)
    assert live.update(R, again) == first


def test_a_change_by_the_managers_own_process_keeps_the_answer_known(live: Service) -> None:
    again = live.again()
    first = _record(live.update(R))
    live.by_manager()
    live.take_over()
    later = _record(live.update(R, again))
    assert (later.metadata, later.version > first.version) == ({"by": "me"}, True)
    assert live.applied[R] == 1


def test_what_is_not_there_was_not_made_where_nothing_was_removed(service: Service) -> None:
    again = service.again()
    service.take_over()
    with pytest.raises(SessionNotFound):
        service.update(R, again)
    assert service.create(R2, again) == Done(b"")


def test_what_is_not_there_is_unknown_where_something_was_removed(live: Service) -> None:
    again = live.again()
    live.create(R, key=OTHER)
    live.remove(OTHER)
    live.take_over()
    assert isinstance(live.create(R, again, key=OTHER), Unknown)
    assert isinstance(live.update(R2, again, key=OTHER), Unknown)
    assert live.get(OTHER) is None


def test_what_a_recovery_dropped_is_unknown(service: Service) -> None:
    again = service.again()
    service.create(R)
    _damage(service, KEY)
    service.take_over()
    assert isinstance(service.create(R, again), Unknown)


def test_a_terminate_whose_session_lives_is_made(live: Service) -> None:
    again = live.again()
    live.update(R2)
    live.take_over()
    assert live.terminate(R, again) == Done(b"")
    assert live.applied[R] == 1


def test_a_terminate_whose_session_is_gone_is_done(live: Service) -> None:
    again = live.again()
    live.remove(KEY, R)
    live.take_over()
    assert live.terminate(R, again) == Done(b"")


@pytest.mark.parametrize("take_over", [False, True])
def test_a_terminate_whose_session_stands_terminated_is_done_whatever_else_was_removed(
    live: Service, *, take_over: bool
) -> None:
    live.create(R2, key=OTHER)
    again = live.again()
    live.terminate(b"y" * 16, key=OTHER)
    live.now += DELAY - 1
    live.terminate(R)
    live.now += 1
    live.registry.expire(at(live.now))
    assert live.get(OTHER) is None
    if take_over:
        live.take_over()
    assert live.terminate(R, again) == Done(b"")
    assert live.get(KEY).status == "terminated"


def test_a_terminate_of_an_id_that_was_created_anew_is_unknown(live: Service) -> None:
    again = live.again()
    live.remove(KEY, R)
    live.create(R2)
    live.take_over()
    assert isinstance(live.terminate(R, again), Unknown)
    assert live.get(KEY).status == "initializing"


def test_a_terminate_of_what_did_not_change_since_is_made_whatever_was_removed(
    live: Service,
) -> None:
    live.create(R2, key=OTHER)
    again = live.again()
    live.remove(OTHER)
    live.take_over()
    assert live.terminate(R, again) == Done(b"")
    assert live.get(KEY).status == "terminated"


# ---------------------------------------------------------------------------- late ones


def test_a_request_that_comes_after_its_repetition_is_answered_and_not_made(live: Service) -> None:
    again = live.again()
    first = live.update(R, again)
    live.update(R2)
    assert live.update(R) == first
    assert live.applied[R] == 1
    assert live.get(KEY).metadata == {"by": R2.hex()}


def test_a_repetition_that_failed_fails_for_good(live: Service) -> None:
    with pytest.raises(SessionExists):
        live.create(R, live.again())
    live.remove(KEY)
    late = live.create(R)
    assert late.error == "SessionExists"
    assert live.get(KEY) is None


def test_a_terminate_that_comes_late_does_not_end_the_next_session_of_the_id(
    live: Service,
) -> None:
    again = live.again()
    live.remove(KEY)
    assert live.terminate(R, again) == Done(b"")
    live.create(R2)
    assert live.terminate(R) == Done(b"")
    assert live.get(KEY).status == "initializing"


def test_a_failure_of_the_first_time_is_not_remembered(service: Service) -> None:
    with pytest.raises(SessionNotFound):
        service.update(R)
    service.create(R2)
    assert isinstance(service.update(R, service.again()), Done)


# ---------------------------------------------------------------------------- what is remembered


def test_what_is_remembered_is_bounded_in_number_and_bytes(
    live: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once_module, "_REMEMBERED", 10)
    monkeypatch.setattr(once_module, "_REMEMBERED_BYTES", 500)
    again = live.again()
    for number in range(30):
        live.update(number.to_bytes(16), again if number % 2 else None)
        replies = live.once._replies
        size = sum(len(reply.record) for reply in replies.values() if isinstance(reply, Done))
        assert live.once._bytes == size <= 500
        assert 0 < len(replies) <= 10


def test_a_record_beyond_all_that_is_remembered_is_answered_all_the_same(
    live: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(once_module, "_REMEMBERED_BYTES", 10)
    again = live.again()
    first = live.update(R)
    assert (len(live.once._replies), live.once._bytes) == (0, 0)
    assert live.update(R, again) == first
    assert live.applied[R] == 1


def _damage(service: Service, key: UUID) -> None:
    """Change one byte of a record."""
    _, word, _ = service.registry.table.look_up(key)
    start = service.writer.slots.offset(word & 0xFFFFFF)
    service.writer.slots.memory[start + 24] ^= 0xFF


# ---------------------------------------------------------------------------- a resize


def test_a_resize_is_made_once_by_the_writer_that_made_it(service: Service) -> None:
    """Though the registry has got another size since; nor does one that comes late undo that."""
    size, again = Size(), service.again()
    assert service.once.resize(size.to(8), request=R, again=None) == Done(b"")
    assert service.once.resize(size.to(16), request=R2, again=None) == Done(b"")
    for repeated in (again, None):
        assert service.once.resize(size.to(8), request=R, again=repeated) == Done(b"")
    assert size.moves == [8, 16]


def test_the_next_writer_gives_the_registry_the_size_that_a_repeated_resize_asks_for(
    service: Service,
) -> None:
    size, again = Size(), service.again()
    service.once.resize(size.to(8), request=R, again=None)
    service.take_over()
    assert service.once.resize(size.to(8), request=R, again=again) == Done(b"")
    assert size.moves == [8]
    service.once.resize(size.to(16), request=R2, again=None)
    service.take_over()
    assert service.once.resize(size.to(8), request=R, again=again) == Done(b"")
    assert size.moves == [8, 16, 8]


def test_what_a_repeated_resize_failed_with_it_fails_with_when_the_first_comes_late(
    service: Service,
) -> None:
    size, again = Size(), service.again()
    with pytest.raises(RegistryFull):
        service.once.resize(size.to(1), request=R, again=again)
    # By now there is room.
    late = service.once.resize(size.to(2), request=R, again=None)
    assert late == Failed("RegistryFull", [2, 1, "slots"])
    assert size.moves == []


# ---------------------------------------------------------------------------- any history


@dataclass(eq=False)
class Sent:
    """A request, and what its client knows of it."""

    number: int
    kind: str
    key: UUID
    fields: dict[str, Any]
    snapshot: Again
    answer: object = None
    #: The writer that carried it out.
    made_by: int | None = None
    #: The last writer that could not tell what became of it.
    unknown_by: int | None = None
    version: int = 0
    attempts: int = 0

    @property
    def request(self) -> bytes:
        return self.number.to_bytes(16)


@dataclass
class Late:
    """A request that lies unread in a connection that its client has left, or will leave."""

    sent: Sent
    again: Again | None = field(default=None)


keys = st.sampled_from([KEY, OTHER])
updates = st.sampled_from(["metadata", "active", "idle", "terminated", "expected"])


class Histories(RuleBasedStateMachine):
    """Clients that lose replies, a manager, time, takeovers and damage, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.service = Service()
        self.sent: list[Sent] = []
        self.late: deque[Late] = deque()
        self.writers = 0

    @initialize()
    def begin(self) -> None:
        self.service.create(self.service.new_id())

    # ------------------------------------------------------------------ clients

    @rule(
        kind=st.sampled_from(["create", "update", "update", "terminate"]),
        key=keys,
        change=updates,
        fate=st.sampled_from(["answered", "reply lost", "late", "lost"]),
    )
    def send(self, kind: str, key: UUID, change: str, fate: str) -> None:
        fields: dict[str, Any] = {}
        if kind == "update":
            number = len(self.sent) + 1
            fields["metadata"] = encode_map({"n": number}, "metadata")
            if change == "expected":
                session = self.service.get(key)
                fields["expected_version"] = session.version if session else 1
            elif change != "metadata":
                fields["status"] = SessionStatus(change)
        sent = Sent(len(self.sent) + 1, kind, key, fields, self.service.again())
        self.sent.append(sent)
        self._attempt(sent, None, fate)

    @precondition(lambda self: any(sent.answer is None for sent in self.sent))
    @rule(data=st.data(), fate=st.sampled_from(["answered", "reply lost", "late", "lost"]))
    def send_again(self, data: st.DataObject, fate: str) -> None:
        open_ones = [sent for sent in self.sent if sent.answer is None]
        sent = data.draw(st.sampled_from(open_ones))
        self._attempt(sent, sent.snapshot, fate)

    @precondition(lambda self: self.late)
    @rule(turn=st.integers(0, 5))
    def come_late(self, turn: int) -> None:
        self.late.rotate(turn)
        late = self.late.popleft()
        self._carry_out(late.sent, late.again)

    # ------------------------------------------------------------------ all else that happens

    @rule(key=keys)
    def change_by_the_manager(self, key: UUID) -> None:
        session = self.service.get(key)
        if session is not None and session.status != "terminated":
            self.service.by_manager(key)

    @rule(key=keys, kind=st.sampled_from(["remove", "replace"]))
    def another_client_ends_a_session(self, key: UUID, kind: str) -> None:
        if self.service.get(key) is not None:
            self.service.remove(key)
            if kind == "replace":
                self.service.create(self.service.new_id(), key=key)

    @rule()
    def time_passes(self) -> None:
        self.service.pass_time()

    @rule()
    def a_successor_comes(self) -> None:
        # What its predecessor had not read is gone with it.
        self.late.clear()
        self.writers += 1
        self.service.take_over()

    @rule(key=keys)
    def damage_is_dropped_by_a_successor(self, key: UUID) -> None:
        if self.service.get(key) is not None:
            _damage(self.service, key)
            self.a_successor_comes()

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def nothing_is_made_twice(self) -> None:
        for sent in self.sent:
            assert self.service.applied[sent.request] <= 1, sent

    @invariant()
    def what_failed_is_never_made(self) -> None:
        for sent in self.sent:
            if isinstance(sent.answer, JidokaError):
                assert self.service.applied[sent.request] == 0, sent

    def _attempt(self, sent: Sent, again: Again | None, fate: str) -> None:
        if fate == "late":
            self.late.append(Late(sent, again))
        elif fate != "lost":
            answer = self._carry_out(sent, again)
            if fate == "answered":
                sent.answer = answer

    def _carry_out(self, sent: Sent, again: Again | None) -> object:
        """Have a request come to the service, check its answer and return it."""
        service = self.service
        before, applied = service.get(sent.key), service.applied[sent.request]
        counters, earlier = service.again(), sent.answer
        call: Callable[..., Reply] = getattr(service, sent.kind)
        try:
            answer: object = call(sent.request, again, sent.key, **sent.fields)
        except JidokaError as error:
            answer = error
        made = service.applied[sent.request] - applied
        if made:
            assert earlier is None, "it was made behind its answer"
            sent.made_by, sent.version = self.writers, service.get(sent.key).version
        if isinstance(answer, Done):
            self._check_done(sent, answer, before)
        elif isinstance(answer, Unknown):
            assert not made
            self._check_unknown(sent, before, counters, earlier)
        else:
            # The same that its repetition failed with, as a reply, where it comes late.
            assert not made
            assert not service.applied[sent.request], "it was made, and then said to have failed"
            allowed = (SessionExists, SessionNotFound, VersionConflict, IllegalTransition)
            assert isinstance(answer, allowed) or answer.error in {
                kind.__name__ for kind in allowed
            }
        return answer

    def _check_done(self, sent: Sent, answer: Done, before: Session | None) -> None:
        service = self.service
        if sent.kind == "terminate":
            session = service.get(sent.key)
            settled = sent.answer is not None or sent.attempts or service.applied[sent.request]
            assert settled or session is None or session.status == "terminated"
            sent.attempts += 1
            return
        assert service.applied[sent.request] == 1, "said to be done, and never made"
        if sent.kind == "update":
            record = _record(answer)
            assert record.session_id == sent.key
            assert record.version >= sent.version
            if record.version == sent.version:
                assert record.metadata == {"n": sent.number}

    def _check_unknown(
        self, sent: Sent, before: Session | None, counters: Again, earlier: object
    ) -> None:
        if isinstance(earlier, Unknown) or sent.unknown_by == self.writers:
            # It says so again, though the reply was lost and the session is another by now.
            return
        sent.unknown_by = self.writers
        assert sent.made_by != self.writers, "the writer made it itself, and does not know"
        removed = counters.removed != sent.snapshot.removed
        if before is None:
            assert removed
            assert sent.kind != "terminate"
        else:
            # It changed since, by another request.
            assert before.version > sent.snapshot.version
            assert before.payload().request != sent.request
            assert sent.kind != "terminate" or (removed and before.status != "terminated")


Histories.TestCase.settings = settings(max_examples=120, stateful_step_count=40, database=None)
TestHistories = Histories.TestCase
