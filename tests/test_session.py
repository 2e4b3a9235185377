"""A session: its moves, its copies, its times and ids, and a damaged record's one error."""

from __future__ import annotations

import contextlib
import itertools
import json
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import INSTANCE
from tables import copies_of, json_maps

from jidoka_shm.errors import CorruptRegistry, InvalidMetadata, InvalidSessionId
from jidoka_shm.maps import encode_map
from jidoka_shm.session import (
    CODE_OF_STATUS,
    MOVES,
    STATUS_OF_CODE,
    Payload,
    Session,
    SessionStatus,
    parse_session_id,
    parse_status,
)

if TYPE_CHECKING:
    from collections.abc import Callable

FIELDS = {
    "session_id": INSTANCE,
    "status": SessionStatus.IDLE,
    "pid": 4242,
    "created_at": datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC),
    "updated_at": datetime(2026, 1, 2, 3, 4, 5, 7, tzinfo=UTC),
    "metadata": {"task": "a", "tags": ["b", None, 1.5]},
    "llm_config": {"model": "m"},
    "expires_at": datetime(2027, 1, 1, tzinfo=UTC),
    "error": "over",
    "version": 9,
}
SESSION = Session.make(**FIELDS)

each_field = pytest.mark.parametrize("name", FIELDS)

# ---------------------------------------------------------------------------- statuses


def test_the_moves_are_those_of_the_design() -> None:
    assert MOVES == {
        "initializing": ("active", "terminating", "terminated"),
        "active": ("idle", "terminating", "terminated"),
        "idle": ("active", "terminating", "terminated"),
        "terminating": ("terminated",),
        "terminated": (),
    }


def test_each_status_has_its_moves() -> None:
    assert list(MOVES) == list(SessionStatus)


def test_every_status_can_come_to_its_end() -> None:
    live = set(SessionStatus) - {SessionStatus.TERMINATED}
    assert all(SessionStatus.TERMINATED in MOVES[status] for status in live)


def test_statuses_and_codes_belong_together_one_to_one() -> None:
    assert STATUS_OF_CODE == {
        1: "initializing",
        2: "active",
        3: "idle",
        4: "terminating",
        5: "terminated",
    }
    assert {status: code for code, status in STATUS_OF_CODE.items()} == CODE_OF_STATUS


@pytest.mark.parametrize("status", SessionStatus)
def test_a_status_is_parsed_from_itself_and_from_its_text(status: SessionStatus) -> None:
    assert parse_status(status) is status
    assert parse_status(status.value) is status
    assert parse_status("".join(status.value)) is status


@pytest.mark.parametrize(
    "value", ["", "Active", "active ", "ACTIVE", "dead", None, 1, b"active", [], {}, ("active",)]
)
def test_what_is_no_status_is_refused_with_the_five(value: object) -> None:
    text = "is no status: use one of initializing, active, idle, terminating, terminated$"
    with pytest.raises(ValueError, match=text):
        parse_status(value)


# ---------------------------------------------------------------------------- making


@each_field
def test_a_field_is_as_it_was_given(name: str) -> None:
    assert getattr(SESSION, name) == FIELDS[name]


def test_all_may_be_left_out() -> None:
    made = Session.make()
    assert (made.status, made.pid, made.version) == ("initializing", None, 1)
    assert (made.metadata, made.llm_config, made.expires_at, made.error) == ({}, {}, None, None)


def test_a_new_id_is_a_random_one() -> None:
    made = [Session.make().session_id for _ in range(100)]
    assert len(set(made)) == 100
    assert {one.version for one in made} == {4}


def test_the_time_of_creation_is_now() -> None:
    before = datetime.now(UTC)
    made = Session.make().created_at
    assert before <= made <= datetime.now(UTC)


def test_the_time_of_the_last_change_is_that_of_creation() -> None:
    made = Session.make()
    assert made.updated_at == made.created_at


def test_the_status_may_be_given_as_text() -> None:
    assert Session.make(status="active").status is SessionStatus.ACTIVE


@pytest.mark.parametrize("name", ["metadata", "llm_config"])
def test_a_map_that_holds_what_json_does_not_is_refused(name: str) -> None:
    with pytest.raises(InvalidMetadata, match=rf'^{name}\["a"\] is '):
        Session.make(**{name: {"a": {1}}})


def test_an_id_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidSessionId):
        Session.make(session_id="nonsense")


def test_a_status_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="is no status"):
        Session.make(status="dead")


@pytest.mark.parametrize("name", ["created_at", "updated_at", "expires_at"])
@pytest.mark.parametrize("when", [datetime(2026, 1, 2), "2026-01-02T00:00:00"])  # noqa: DTZ001
def test_a_time_without_a_zone_is_refused(name: str, when: object) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is 2026-01-02 00:00:00 and has no time zone"):
        Session.make(**{name: when})


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="yesterday"):
        Session.make(created_at="yesterday")


# ---------------------------------------------------------------------------- a value

#: What 64 bits of nanoseconds can surely tell apart.
YEARS = datetime(1700, 1, 1), datetime(2500, 1, 1)  # noqa: DTZ001 - bounds without a zone

sessions = st.builds(
    Session.make,
    session_id=st.uuids(),
    status=st.sampled_from(SessionStatus),
    pid=st.none() | st.integers(1, 2**22),
    created_at=st.datetimes(timezones=st.just(UTC)),
    updated_at=st.none() | st.datetimes(timezones=st.just(UTC)),
    metadata=st.none() | json_maps,
    llm_config=st.none() | json_maps,
    expires_at=st.none() | st.datetimes(*YEARS, timezones=st.just(UTC)),
    error=st.none() | st.text(),
    version=st.integers(1, 2**64 - 1),
)


@given(sessions)
def test_a_session_is_made_again_from_its_dict(session: Session) -> None:
    assert Session.make(**session.to_dict()) == session


@given(sessions)
def test_the_dict_is_json(session: Session) -> None:
    plain = session.to_dict()
    assert json.loads(json.dumps(plain)) == plain


def test_the_dict_holds_the_public_fields() -> None:
    assert SESSION.to_dict() == {
        "session_id": "0f0e0d0c-0b0a-4908-8706-050403020100",
        "status": "idle",
        "pid": 4242,
        "created_at": "2026-01-02T03:04:05.000006+00:00",
        "updated_at": "2026-01-02T03:04:05.000007+00:00",
        "metadata": {"task": "a", "tags": ["b", None, 1.5]},
        "llm_config": {"model": "m"},
        "expires_at": "2027-01-01T00:00:00+00:00",
        "error": "over",
        "version": 9,
    }


def test_the_status_in_the_dict_is_a_plain_str() -> None:
    assert type(SESSION.to_dict()["status"]) is str


@given(sessions)
def test_each_copy_is_equal(session: Session) -> None:
    for copied in copies_of(session):
        assert copied == session
        assert type(copied) is Session
        assert hash(copied) == hash(session)


def test_a_copy_carries_what_only_the_record_holds() -> None:
    empty = encode_map(None, "metadata")
    payload = Payload(metadata=empty, llm_config=empty, deadline=5, request=b"x" * 16)
    session = Session(INSTANCE, 1, SessionStatus.IDLE, None, 0, 0, payload.encode())
    for copied in copies_of(session):
        assert (copied.payload().deadline, copied.payload().request) == (5, b"x" * 16)


def test_the_same_maps_in_another_order_of_keys_are_the_same_session() -> None:
    one = Session.make(**FIELDS | {"metadata": {"a": 1, "b": {"c": 2, "d": 3}}})
    other = Session.make(**FIELDS | {"metadata": {"b": {"d": 3, "c": 2}, "a": 1}})
    assert one == other
    assert hash(one) == hash(other)


@each_field
def test_a_session_that_differs_in_one_field_is_another(name: str) -> None:
    changed = {
        "session_id": UUID(int=5),
        "status": "active",
        "pid": None,
        "created_at": datetime(2026, 1, 2, 3, 4, 5, 7, tzinfo=UTC),
        "updated_at": datetime(2026, 1, 2, 3, 4, 5, 8, tzinfo=UTC),
        "metadata": {"task": "b"},
        "llm_config": {},
        "expires_at": None,
        "error": None,
        "version": 10,
    }
    assert Session.make(**FIELDS | {name: changed[name]}) != SESSION


@pytest.mark.parametrize("other", [None, 0, "session", INSTANCE, FIELDS, SESSION.to_dict()])
def test_a_session_equals_nothing_else(other: object) -> None:
    assert other != SESSION
    assert SESSION.__eq__(other) is NotImplemented


def test_sessions_can_be_members_and_keys() -> None:
    assert {SESSION: 1}[Session.make(**FIELDS)] == 1


@each_field
def test_no_field_can_be_set(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(SESSION, name, FIELDS[name])


@pytest.mark.parametrize("name", ["_created", "_updated", "_payload", "anything"])
def test_nothing_else_can_be_set_either(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(SESSION, name, 1)


@each_field
def test_no_field_can_be_deleted(name: str) -> None:
    with pytest.raises(AttributeError):
        delattr(SESSION, name)


def test_the_repr_shows_the_maps() -> None:
    assert repr(SESSION) == (
        "Session(session_id='0f0e0d0c-0b0a-4908-8706-050403020100', status='idle', pid=4242, "
        "metadata={'task': 'a', 'tags': ['b', None, 1.5]}, llm_config={'model': 'm'}, "
        "error='over', v9)"
    )


def test_the_repr_leaves_out_an_error_that_there_is_not() -> None:
    assert "error" not in repr(Session.make())


@pytest.mark.parametrize("name", ["metadata", "llm_config"])
def test_a_change_to_a_map_shows_nowhere_else(name: str) -> None:
    before = getattr(SESSION, name)
    before.clear()
    before["mine"] = 1
    assert getattr(SESSION, name) == FIELDS[name]
    assert SESSION.to_dict()[name] == FIELDS[name]


def test_a_change_deep_in_a_map_shows_nowhere_else() -> None:
    SESSION.metadata["tags"].append("mine")
    SESSION.to_dict()["metadata"]["tags"].clear()
    assert SESSION.metadata == FIELDS["metadata"]


def test_a_change_to_the_map_given_shows_nowhere() -> None:
    given_map = {"a": [1]}
    session = Session.make(metadata=given_map)
    given_map["a"].append(2)
    assert session.metadata == {"a": [1]}


# ---------------------------------------------------------------------------- times

whole_hours = st.integers(-23, 23).map(lambda hours: timezone(timedelta(hours=hours)))


@given(st.datetimes(timezones=st.just(UTC)))
@example(datetime.min.replace(tzinfo=UTC))
@example(datetime.max.replace(tzinfo=UTC))
@example(datetime(1970, 1, 1, tzinfo=UTC))
@example(datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC))
@example(datetime(1677, 9, 21, 0, 12, 43, 145_224, tzinfo=UTC))
def test_a_time_of_any_year_is_exact_to_the_microsecond(when: datetime) -> None:
    made = Session.make(created_at=when, updated_at=when)
    assert (made.created_at, made.updated_at) == (when, when)


@given(st.datetimes(*YEARS, timezones=st.just(UTC)))
def test_an_expiry_is_exact_to_the_microsecond(when: datetime) -> None:
    assert Session.make(expires_at=when).expires_at == when


@pytest.mark.parametrize("when", [datetime.min, datetime.max, datetime(1677, 9, 21)])  # noqa: DTZ001, DTZ901
def test_an_expiry_that_a_record_cannot_hold_is_exact_or_a_value_error(when: datetime) -> None:
    when = when.replace(tzinfo=UTC)
    with contextlib.suppress(ValueError):
        assert Session.make(expires_at=when).expires_at == when


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_time_in_text_is_exact_to_the_microsecond(when: datetime) -> None:
    assert Session.make(created_at=when.isoformat()).created_at == when


@given(
    st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=whole_hours)  # noqa: DTZ001
)
def test_a_time_of_another_zone_comes_back_in_utc(when: datetime) -> None:
    created = Session.make(created_at=when).created_at
    assert created == when
    assert created.tzinfo is UTC


# ---------------------------------------------------------------------------- ids

TEXT = "12345678-9abc-4def-8123-456789abcdef"
HEX = TEXT.replace("-", "")


@given(st.uuids())
def test_an_id_is_itself(session_id: UUID) -> None:
    assert parse_session_id(session_id) is session_id


@given(st.uuids(), st.sampled_from(["", "session_"]), st.booleans(), st.booleans())
def test_an_id_is_parsed_from_its_text(
    session_id: UUID,
    prefix: str,
    hyphens: bool,
    upper: bool,
) -> None:
    text = str(session_id) if hyphens else session_id.hex
    assert parse_session_id(prefix + (text.upper() if upper else text)) == session_id


def test_a_subclass_of_uuid_becomes_a_uuid() -> None:
    class Own(UUID):
        def __eq__(self, other: object) -> bool:
            return False

        __hash__ = UUID.__hash__

    parsed = parse_session_id(Own(TEXT))
    assert type(parsed) is UUID
    assert parsed == UUID(TEXT)


def test_a_subclass_of_str_is_taken() -> None:
    class Own(str):
        __slots__ = ()

    assert parse_session_id(Own(TEXT)) == UUID(TEXT)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "session_",
        HEX[:-1],
        HEX + "0",
        TEXT[:-1],
        TEXT + "0",
        TEXT.replace("-", "", 1),
        TEXT[:8] + TEXT[9:13] + "-" + TEXT[13:],
        TEXT.replace("-", "_"),
        HEX[:16] + "-" + HEX[16:],
        "1_" + HEX[2:],
        HEX[:-2] + "_1",
        "0x" + HEX[2:],
        "+" + HEX[1:],
        "-" + HEX[1:],
        "g" + HEX[1:],
        "{" + TEXT + "}",
        "urn:uuid:" + TEXT,
        " " + TEXT,
        TEXT + " ",
        TEXT + "\n",
        "\t" + HEX,
        TEXT + "\0",
        "session_ " + TEXT,
        "session_session_" + TEXT,
        "session-" + TEXT,
        "sessions_" + TEXT,
        "\u017fession_" + TEXT,  # the long s, which upper-cases to S
        "\u0661" * 32,  # Arabic digits
        "\uff11" * 32,  # full-width digits
        "\u0967" + HEX[1:],  # a Devanagari digit
        "\uff41" + HEX[1:],  # a full-width a
        "\ud800" + HEX[1:],
        TEXT.encode(),
        UUID(TEXT).bytes,
        bytearray(UUID(TEXT).bytes),
        UUID(TEXT).int,
        0,
        1.5,
        None,
        True,
        [TEXT],
        (TEXT,),
        {TEXT},
        object,
    ],
    ids=ascii,
)
def test_what_is_no_id_is_refused(value: object) -> None:
    with pytest.raises(InvalidSessionId) as caught:
        parse_session_id(value)
    assert caught.value.value == repr(value)[:80]


class _Liar(str):
    """A text whose parts are another's, and whose comparisons fail."""

    __slots__ = ()

    def __getitem__(self, at: object) -> str:
        return "session_" if at == slice(None, 8) else str(UUID(int=1))

    def __eq__(self, other: object) -> bool:
        raise RuntimeError

    __hash__ = str.__hash__


@pytest.mark.parametrize("text", [TEXT, HEX, "session_" + TEXT])
def test_the_text_of_a_subclass_is_what_it_holds_whatever_it_says(text: str) -> None:
    assert parse_session_id(_Liar(text)) == UUID(TEXT)


@given(st.text(max_size=50))
def test_text_of_any_kind_is_no_id(text: str) -> None:
    with pytest.raises(InvalidSessionId):
        parse_session_id(text)


# ---------------------------------------------------------------------------- payloads

PAYLOAD = {
    "metadata": encode_map({"a": 1}, "metadata"),
    "llm_config": encode_map({"b": 2}, "llm_config"),
    "expires": 5,
    "error": "over",
    "deadline": 6,
    "owner_start": 7,
    "owner_namespace": 8,
    "request": bytes(16),
}


def _with_payload(raw: bytes) -> Session:
    return Session(INSTANCE, 9, SessionStatus.IDLE, None, 0, 0, raw)


def test_the_fields_of_a_payload_stand_in_their_order() -> None:
    decoded = msgspec.msgpack.decode(Payload(**PAYLOAD).encode())
    assert decoded == [{"a": 1}, {"b": 2}, 5, "over", 6, 7, 8, bytes(16)]


@pytest.mark.parametrize("count", range(2, 9))
def test_nones_at_the_end_of_a_payload_are_left_out(count: int) -> None:
    names = list(PAYLOAD)[:count]
    raw = Payload(**{name: PAYLOAD[name] for name in names}).encode()
    assert len(msgspec.msgpack.decode(raw)) == count


@pytest.mark.parametrize("falsy", [False, True])
def test_all_but_the_nones_at_the_end_of_a_payload_is_written(*, falsy: bool) -> None:
    # What is false is there; only None is not.
    values = PAYLOAD | ({"expires": 0, "error": "", "request": b""} if falsy else {})
    optional = list(PAYLOAD)[2:]
    for count in range(len(optional) + 1):
        for names in itertools.combinations(optional, count):
            fields = {name: values[name] for name in ["metadata", "llm_config", *names]}
            written = list(values.values())
            written = [written[at] if name in fields else None for at, name in enumerate(PAYLOAD)]
            while written[-1] is None:
                del written[-1]
            assert Payload(**fields).encode() == msgspec.msgpack.encode(written), names


@given(st.sets(st.sampled_from(list(PAYLOAD)[2:])))
def test_a_payload_is_the_same_decoded_again(names: set[str]) -> None:
    fields = {name: PAYLOAD[name] for name in ["metadata", "llm_config", *names]}
    decoded = _with_payload(Payload(**fields).encode()).payload()
    for name, value in PAYLOAD.items():
        if name in {"metadata", "llm_config"}:
            assert bytes(getattr(decoded, name)) == bytes(value)
        else:
            assert getattr(decoded, name) == (value if name in names else None)


def test_a_payload_of_a_later_version_with_more_fields_is_read() -> None:
    raw = Payload(**PAYLOAD).encode()
    session = _with_payload(b"\x99" + raw[1:] + b"\xc0")
    assert (session.metadata, session.error) == ({"a": 1}, "over")


# ---------------------------------------------------------------------------- damage

ACCESSES: dict[str, Callable[[Session], object]] = {
    "metadata": lambda session: session.metadata,
    "llm_config": lambda session: session.llm_config,
    "error": lambda session: session.error,
    "expires_at": lambda session: session.expires_at,
    "created_at": lambda session: session.created_at,
    "updated_at": lambda session: session.updated_at,
    "payload": lambda session: session.payload(),
    "to_dict": lambda session: session.to_dict(),
    "repr": repr,
    "equality": lambda session: session == SESSION,
    "hash": hash,
}

each_access = pytest.mark.parametrize("access", ACCESSES.values(), ids=ACCESSES)


def _is_typed(session: Session, access: Callable[[Session], object]) -> bool:
    """Return whether an access ends well or in CorruptRegistry; anything else is raised on."""
    try:
        access(session)
    except CorruptRegistry as error:
        return str(INSTANCE) in error.reason
    return True


@each_access
@given(raw=st.binary(max_size=60))
def test_any_bytes_end_well_or_in_the_one_error(
    raw: bytes, access: Callable[[Session], object]
) -> None:
    assert _is_typed(_with_payload(raw), access)


@each_access
@given(st.integers(0, len(SESSION._payload)), st.integers(0, 12), st.binary(max_size=12))
def test_a_record_written_over_ends_well_or_in_the_one_error(
    access: Callable[[Session], object], start: int, length: int, raw: bytes
) -> None:
    payload = SESSION._payload
    assert _is_typed(_with_payload(payload[:start] + raw + payload[start + length :]), access)


@each_access
def test_each_flipped_bit_ends_well_or_in_the_one_error(
    access: Callable[[Session], object],
) -> None:
    for bit in range(8 * len(SESSION._payload)):
        raw = bytearray(SESSION._payload)
        raw[bit // 8] ^= 1 << bit % 8
        assert _is_typed(_with_payload(bytes(raw)), access)


#: Records that are wrong, each in a way of its own.
DAMAGE: dict[str, bytes] = {
    "nothing": b"",
    "no array": b"\xc0",
    "an empty array": b"\x90",
    "cut off": SESSION._payload[:-1],
    "more behind it": SESSION._payload + b"\0",
    "an unused code": b"\xc1",
    "no UTF-8 in a key": b"\x92\x81\xa1\xff\x01\x80",
    "no UTF-8 in a value": b"\x92\x81\xa1a\xa1\xff\x80",
    "no UTF-8 in the other map": b"\x92\x80\x81\xa1a\xa1\xff",
    "no UTF-8 in the error": b"\x94\x80\x80\xc0\xa1\xff",
    "a surrogate in a key": b"\x92\x81\xa3\xed\xa0\x80\x01\x80",
    "lists without end": b"\x92\x81\xa1a" + 50_000 * b"\x91",
    "deep lists": b"\x92\x81\xa1a" + 50_000 * b"\x91" + b"\x01\x80",
    "deep maps": b"\x92" + 50_000 * b"\x81\xa1a" + b"\x01\x80",
    "deep lists for a map": b"\x92" + 50_000 * b"\x91" + b"\x01\x80",
    "deep lists in the other map": b"\x92\x80\x81\xa1a" + 50_000 * b"\x91" + b"\x01",
    "a long array": b"\xdd\xff\xff\xff\xff",
    "a long array in a map": b"\x92\x81\xa1a\xdd\xff\xff\xff\xff\x80",
    "a long map": b"\x92\xdf\xff\xff\xff\xff",
    "a long text": b"\x94\x80\x80\xc0\xdb\xff\xff\xff\xff",
    "an int for a map": b"\x92\x05\x80",
    "an int for the error": b"\x94\x80\x80\xc0\x05",
    "an int for a key": b"\x92\x81\x01\x01\x80",
    "a map for a key": b"\x92\x81\xa1a\x81\x80\x01\x80",
    "a list for a key": b"\x92\x81\xa1a\x81\x91\x80\x01\x80",
    "a timestamp": b"\x92\x81\xa1a\xd6\xff\xff\xff\xff\xff\x80",
    "a timestamp beyond all years": b"\x92\x81\xa1a\xc7\x0c\xff" + 12 * b"\xff" + b"\x80",
    "an unknown ext": b"\x92\x81\xa1a\xd6\x05abcd\x80",
    "the last nanosecond": b"\x93\x80\x80\xcf" + 8 * b"\xff",
    "the first nanosecond": b"\x93\x80\x80\xd3\x80" + 7 * b"\0",
}


@each_access
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_ends_well_or_in_the_one_error(
    kind: str, access: Callable[[Session], object]
) -> None:
    assert _is_typed(_with_payload(DAMAGE[kind]), access)


@pytest.mark.parametrize("kind", ["nothing", "cut off", "an int for the error"])
def test_damage_is_found_at_the_access_and_not_before(kind: str) -> None:
    session = _with_payload(DAMAGE[kind])
    assert (session.session_id, session.status, session.version) == (INSTANCE, "idle", 9)
    with pytest.raises(CorruptRegistry):
        session.payload()


@pytest.mark.parametrize("ns", [-(2**63), -1, 0, 2**63 - 1])
def test_a_time_that_a_slots_header_can_hold_is_a_datetime(ns: int) -> None:
    session = Session(INSTANCE, 1, SessionStatus.IDLE, None, ns, ns, b"\x92\x80\x80")
    since = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ns // 1000)
    assert session.created_at == session.updated_at == since


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("version", 0),
        ("version", -3),
        ("version", "1"),
        ("pid", 0),
        ("pid", -1),
        ("pid", "x"),
        ("pid", True),
        ("error", 5),
        ("error", "\ud800"),
        ("created_at", 5),
        ("updated_at", b"2026-01-01"),
        ("expires_at", 1.5),
    ],
)
def test_a_session_is_not_made_from_a_field_that_cannot_be(field: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"^{field} "):
        Session.make(**{field: value})
