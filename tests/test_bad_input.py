"""Every argument of every public call: what it refuses, with an error that names it, and no trace.

``ROWS`` has a list for each argument. A test reads the signatures, so that an argument without a
row fails it.
"""

from __future__ import annotations

import enum
import functools
import inspect
import math
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import numpy as np
import pytest
from host import objects_of
from tables import state_of

from jidoka_shm import (
    InvalidMetadata,
    InvalidName,
    InvalidSessionId,
    RecordTooLarge,
    Session,
    SessionClient,
    SessionManager,
    SessionReader,
    SessionStatus,
    VersionConflict,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SID = UUID("0f0e0d0c-0b0a-4908-8706-050403020100")
TEXT = str(SID)

#: From 4300 digits on, Python refuses to make the text of an int.
HUGE = 10**5000
CENTURY = 3_155_760_000


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


class Word(str, enum.Enum):  # noqa: UP042 - a StrEnum's text is its value, this one's its name
    """Members whose text is the name of the class and their own."""

    OVER = "over"


class Number(int, enum.Enum):
    ONE = 1


class Mute:
    """An object whose repr fails."""

    def __repr__(self) -> str:
        msg = "no repr"
        raise RuntimeError(msg)


class Row(NamedTuple):
    """What an argument refuses.

    Attributes:
        value: what is given.
        error: what it raises.
        text: what the error's text holds, besides the argument's name; for an error that has
            another word for the argument, that.
    """

    value: Any
    error: type[Exception]
    text: str


def _rows(error: type[Exception], text: str, *values: Any) -> list[Row]:  # noqa: ANN401 - as in Row
    return [Row(value, error, text) for value in values]


# ---------------------------------------------------------------------------- what is refused

#: No numbers, for whatever takes one.
_NO_NUMBERS = ("", "1", b"1", True, False, [1], {}, 1j, np.bool_(True), np.array(1.0))  # noqa: FBT003 - numpy's own

_NO_SECONDS = (*_NO_NUMBERS, np.int64(1), Decimal(1), Fraction(1), np.float32(1), Mute(), Text("1"))
_NO_TIMES = (-1, -5e-324, CENTURY + 1, 2**64, HUGE, -HUGE, Whole(-1))
_NO_TIMES += (math.nan, math.inf, -math.inf, Real("nan"), np.float64("inf"))

_NO_WHOLES = (*_NO_NUMBERS, 1.0, Real(1), Decimal(1), Mute(), math.nan, Text("1"))

#: No text that spells an id, some of it close.
_NO_ID_TEXTS = (
    "",
    "x",
    TEXT[:-1],
    TEXT + "0",
    TEXT + " ",
    TEXT + "\n",
    TEXT + "\0",
    "\N{RIGHT-TO-LEFT OVERRIDE}" + TEXT,
    TEXT + "\N{COMBINING ACUTE ACCENT}",
    TEXT.replace("0", "\N{FULLWIDTH DIGIT ZERO}"),
    TEXT.replace("0", "\N{ARABIC-INDIC DIGIT ZERO}"),
    TEXT.replace("-", "\N{NON-BREAKING HYPHEN}"),
    TEXT.replace("-", "_"),
    SID.hex[:-1] + "\udc80",
    "\ud800" * 32,
    "\N{GRINNING FACE}",
    f"{{{TEXT}}}",
    SID.urn,
    f"session-{TEXT}",
    f"session_session_{TEXT}",
    "0x" + SID.hex[2:],
    Text("x"),
    "a" * 100_000,
)
_NO_IDS = (
    *_NO_ID_TEXTS,
    None,
    True,
    0,
    SID.int,
    2**128,
    1.5,
    math.nan,
    TEXT.encode(),
    SID.bytes,
    bytearray(SID.bytes),
    np.bytes_(SID.hex.encode()),
    np.int64(1),
    np.array([1, 2]),
    [],
    [SID],
    (SID,),
    {SID},
    {},
    object(),
    SessionStatus.ACTIVE,
    HUGE,
    -HUGE,
    Mute(),
    SimpleNamespace(int=SID.int),
    SimpleNamespace(int=[]),
)
_IDS = _rows(InvalidSessionId, "is no session id: pass", *_NO_IDS)

_STATUSES = _rows(
    ValueError,
    "is no status: use one of initializing",
    *("", "ACTIVE", " active", "active\0", "\N{FULLWIDTH LATIN SMALL LETTER A}ctive"),
    *("acti\N{COMBINING ACUTE ACCENT}ve", "\ud800", "gone", Text("gone"), b"active"),
    *(0, 1, 2, True, 1.5, math.nan, np.int64(2), np.bytes_(b"active")),
    *([], ["active"], {}, object(), SessionStatus, SID),
    *(HUGE, -HUGE, Mute()),
)

_NAMES = _rows(
    InvalidName,
    "is no registry name: use",
    *("", ".", "..", "a.b", "a/b", "/a", "a b", "a\n", "a\0", "x" * 65, "x" * 100_000),
    *("\xe9", "e\N{COMBINING ACUTE ACCENT}", "\N{GRINNING FACE}", "\N{RIGHT-TO-LEFT MARK}a"),
    *("\N{ARABIC-INDIC DIGIT ZERO}", "\N{FULLWIDTH LATIN SMALL LETTER A}", "\ud800", Text("a.b")),
    *(None, True, 5, HUGE, 1.5, math.nan, b"a", np.bytes_(b"a"), np.int64(5), ["a"], {}, Mute()),
)


def _maps(name: str) -> list[Row]:
    nothing = [f"{name} is", *_NO_NUMBERS[:3], 5, True, 1.5, math.nan, [], [("a", 1)], (), object()]
    keys = [{1: 2}, {None: 1}, {b"a": 1}, {True: 1}, {"\ud800": 1}, {("a",): 1}]
    values = [(1,), {1}, b"b", math.nan, -math.inf, 2**64, -(2**63) - 1, HUGE, "\ud800", 1j]
    values += [object(), Mute(), SID, np.int64(1), np.array([1]), Decimal(1), Text("a"), Whole(1)]
    return [
        *_rows(InvalidMetadata, f"{name} is ", *nothing),
        *_rows(InvalidMetadata, f"{name} has the key ", *keys),
        *_rows(InvalidMetadata, f'{name}["a"] is ', *({"a": value} for value in values)),
        *_rows(InvalidMetadata, f'{name}["a"][0] is ', *({"a": [value]} for value in values)),
        *_rows(RecordTooLarge, "keep less in its maps", {"a": "x" * 500}, {"a": 500 * [0]}),
    ]


def _seconds(name: str, *, none: bool = False) -> list[Row]:
    wrong = [value for value in (None, *_NO_SECONDS) if not (none and value is None)]
    return [
        *_rows(TypeError, f"{name} is of type ", *wrong),
        *_rows(ValueError, f"{name} is ", *_NO_TIMES),
    ]


def _flag(name: str) -> list[Row]:
    wrong = (None, 0, 1, 1.0, "", "yes", b"", [], np.bool_(True), Whole(1), Mute(), HUGE)  # noqa: FBT003
    return _rows(TypeError, f"{name} is of type ", *wrong)


def _capacities(name: str) -> list[Row]:
    beyond = (2**24 - 15, 2**64 - 1, 2**64, HUGE)
    return [
        *_rows(TypeError, f"{name} is of type ", None, *_NO_WHOLES),
        *_rows(ValueError, f"{name} is ", -1, 0, -HUGE, Whole(0), *beyond),
    ]


_SLOT_SIZES = [
    *_rows(TypeError, "slot_size is of type ", None, *_NO_WHOLES),
    *_rows(ValueError, "slot_size is ", -64, 0, 64, 127, 129, 500, 2**24 + 64, 2**64, HUGE, -HUGE),
]
_RECORD_SIZES = [
    *_rows(TypeError, "max_record_size is of type ", None, *_NO_WHOLES),
    *_rows(ValueError, "max_record_size is ", -1, 0, 127, 2**24 + 1, 2**64, HUGE, -HUGE),
]
_MODES = [
    *_rows(TypeError, "mode is of type ", None, *_NO_WHOLES),
    *_rows(ValueError, "mode is ", -1, 0, 600, 0o400, 0o602, 0o660, 0o700, 0o1600, 2**64, HUGE),
]
_PIDS = [
    *_rows(TypeError, "pid is of type ", *_NO_WHOLES),
    *_rows(ValueError, "pid is ", -1, 0, 4_194_305, 2**31, 2**32 + 1, 2**64, HUGE, -HUGE),
]
_VERSIONS = [
    *_rows(TypeError, "expected_version is of type ", *_NO_WHOLES),
    *_rows(ValueError, "expected_version is ", -1, -HUGE, Whole(-1), 2**64, HUGE),
    *_rows(VersionConflict, "is at version 1, not ", 0, 2, 2**40 + 1, 2**64 - 1, Whole(2)),
]
_TTLS = [
    *_seconds("ttl", none=True),
    *_rows(ValueError, ": give the seconds until", 0, 0.0, -0.0, 1e-10, 5e-324, Whole(0)),
]
_ERRORS = [
    *_rows(TypeError, "error is of type ", 5, 1.5, b"no", ["no"], object(), ValueError("no")),
    *_rows(TypeError, "error is of type ", np.bytes_(b"no"), np.int64(1), Mute(), HUGE),
    *_rows(ValueError, "error holds a lone surrogate", "\ud800", "a\udfffb", Text("\udc80")),
]

_MADE_PIDS = [row for row in _PIDS if row.value is not None]
_MADE_VERSIONS = [
    *_rows(TypeError, "version is of type ", None, *_NO_WHOLES),
    *_rows(ValueError, "version is ", -1, 0, 2**64, HUGE, -HUGE),
]


def _counts(name: str) -> list[Row]:
    return [
        *_rows(TypeError, f"{name} is of type ", None, *_NO_WHOLES),
        *_rows(ValueError, f"{name} is ", -1, -(2**64), -HUGE, Whole(-1)),
    ]


def _moments(name: str) -> list[Row]:
    naive, far = "2026-01-02T00:00:00", "2026-01-02T00:00:00+99:00"
    wrong = (5, 1.5, True, b"2026", [], {}, object(), np.datetime64("2026-01-02"), Mute(), HUGE)
    texts = ("", "x", naive, far, "2026-02-30T00:00:00Z", "\ud800", "2026\0", Text("x"))
    return [*_rows(TypeError, name, *wrong), *_rows(ValueError, name, *texts)]


#: What takes anything at all, and so refuses nothing.
_ANYTHING: list[Row] = []

#: What each argument of each public call refuses.
ROWS: dict[tuple[str, str], list[Row]] = {
    ("SessionManager", "name"): _NAMES,
    ("SessionManager", "capacity"): _capacities("capacity"),
    ("SessionManager", "slot_size"): _SLOT_SIZES,
    ("SessionManager", "max_record_size"): _RECORD_SIZES,
    ("SessionManager", "cleanup_delay"): _seconds("cleanup_delay"),
    ("SessionManager", "mode"): _MODES,
    ("SessionManager", "fresh"): _flag("fresh"),
    ("SessionManager", "listen"): _flag("listen"),
    ("SessionManager", "wait"): _seconds("wait"),
    ("SessionManager", "max_clients"): _counts("max_clients"),
    ("SessionManager", "max_capacity"): _capacities("max_capacity"),
    ("SessionManager", "grow"): _flag("grow"),
    ("resize", "capacity"): _capacities("capacity"),
    ("resize", "slot_size"): [row for row in _SLOT_SIZES if row.value is not None],
    ("SessionReader", "name"): _NAMES,
    ("SessionReader", "timeout"): _seconds("timeout"),
    ("SessionReader", "cache_size"): _counts("cache_size"),
    ("SessionReader", "verify"): _flag("verify"),
    ("SessionClient", "name"): _NAMES,
    ("SessionClient", "timeout"): _seconds("timeout"),
    ("SessionClient", "cache_size"): _counts("cache_size"),
    ("SessionClient", "start"): _flag("start"),
    ("create_session", "metadata"): _maps("metadata"),
    ("create_session", "llm_config"): _maps("llm_config"),
    ("create_session", "pid"): _PIDS,
    ("create_session", "ttl"): _TTLS,
    ("create_session", "session_id"): [row for row in _IDS if row.value is not None],
    ("update_session", "session_id"): _IDS,
    ("update_session", "status"): [*_STATUSES, Row(None, ValueError, "None is no status: use")],
    ("update_session", "metadata"): _maps("metadata"),
    ("update_session", "llm_config"): _maps("llm_config"),
    ("update_session", "pid"): _PIDS,
    ("update_session", "ttl"): _TTLS,
    ("update_session", "expected_version"): _VERSIONS,
    ("terminate_session", "session_id"): _IDS,
    ("terminate_session", "error"): _ERRORS,
    ("get_session_info", "session_id"): _IDS,
    ("get_session_pid", "session_id"): _IDS,
    ("get_session_status", "session_id"): _IDS,
    ("__getitem__", "session_id"): _IDS,
    ("__contains__", "session_id"): _IDS,
    ("get", "session_id"): _IDS,
    ("get", "default"): _ANYTHING,
    ("list_sessions", "status"): _STATUSES,
    ("changes", "timeout"): _seconds("timeout", none=True),
    ("changes", "since"): [row for row in _counts("since") if row.value is not None],
    ("changes", "latency"): _seconds("latency"),
    ("make", "session_id"): [row for row in _IDS if row.value is not None],
    ("make", "status"): [*_STATUSES, Row(None, ValueError, "None is no status: use")],
    ("make", "pid"): _MADE_PIDS,
    ("make", "version"): _MADE_VERSIONS,
    ("make", "created_at"): _moments("created_at"),
    ("make", "updated_at"): _moments("updated_at"),
    ("make", "expires_at"): _moments("expires_at"),
    ("make", "metadata"): [row for row in _maps("metadata") if row.error is InvalidMetadata],
    ("make", "llm_config"): [row for row in _maps("llm_config") if row.error is InvalidMetadata],
    ("make", "error"): _ERRORS,
}

#: Public calls that answer what is no id as what is not there: they are a Mapping's own.
_ANSWERS = {"__contains__": False, "get": None}

#: Calls without a name that are public all the same.
_DUNDERS = {"__contains__", "__getitem__"}


# ---------------------------------------------------------------------------- the calls


class Setting(NamedTuple):
    """A registry with a session in it, and each kind of handle."""

    name: str
    manager: SessionManager
    reader: SessionReader
    client: SessionClient

    def state(self) -> tuple[object, ...]:
        """Return all that a call which fails must leave as it was."""
        manager = self.manager
        memory = state_of(manager._registry.table)
        deadline = manager._registry._deadlines.next()
        return memory, deadline, manager.version, manager.check(), dict(manager), dict(self.reader)


@pytest.fixture
def setting(name: str) -> Iterator[Setting]:
    options: dict[str, Any] = {"capacity": 8, "slot_size": 256, "cleanup_delay": 3600}
    with SessionManager(name, listen=True, max_record_size=512, **options) as manager:
        manager.create_session({"a": 1}, {"b": 2}, pid=1, ttl=3600, session_id=SID)
        with SessionReader(name, verify=True) as reader, SessionClient(name) as client:
            yield Setting(name, manager, reader, client)
        manager.unlink()


#: What is made with a name.
KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (SessionManager, SessionReader, SessionClient)
}

#: Right arguments of each change.
CHANGES: dict[str, dict[str, Any]] = {
    "create_session": {"metadata": {}, "llm_config": {}, "pid": 1, "ttl": 5},
    "update_session": {
        "session_id": SID,
        "status": "active",
        "metadata": {},
        "llm_config": {},
        "pid": None,
        "ttl": None,
    },
    "terminate_session": {"session_id": SID, "error": "over"},
}


def _calls(setting: Setting, call: str, argument: str) -> list[Callable[[Any], object]]:
    """Return functions that make a call with one argument of one's own and all others right."""
    if call in KINDS:
        right: dict[str, Any] = {"name": setting.name}
        return [lambda value: KINDS[call](**right | {argument: value})]
    if call == "make":
        return [lambda value: Session.make(**{argument: value})]
    if call in CHANGES:
        right = CHANGES[call]
        return [
            lambda value: getattr(setting.manager, call)(**right | {argument: value}),
            lambda value: getattr(setting.client, call)(**right | {argument: value}),
            lambda value: _pipelined(setting.client, call, right | {argument: value}),
        ]
    if call == "resize":
        right = {"capacity": 8}
        return [
            lambda value: setting.manager.resize(**right | {argument: value}),
            lambda value: setting.client.resize(**right | {argument: value}),
        ]
    handles = (setting.manager, setting.reader, setting.client)
    if call == "changes":
        return [functools.partial(_watched, handle, argument) for handle in handles]
    return [getattr(handle, call) for handle in handles]


def _watched(handle: SessionReader | SessionManager, argument: str, value: object) -> None:
    changes: Any = handle.changes
    changes(**{argument: value})


def _pipelined(client: SessionClient, call: str, arguments: dict[str, Any]) -> None:
    with client.pipeline() as changes:
        getattr(changes, call)(**arguments)


def _arguments(kind: type) -> Iterator[tuple[str, str]]:
    """Yield call and argument of each public call of a class, its construction included."""
    for name, function in inspect.getmembers(kind, inspect.isroutine):
        call = kind.__name__ if name == "__init__" else name
        if not inspect.isfunction(inspect.unwrap(getattr(function, "__func__", function))):
            continue
        if not call.startswith("_") or call in _DUNDERS:
            # A method of the class comes bound; of the others the first is self.
            first = 0 if inspect.ismethod(function) else 1
            for argument in list(inspect.signature(function).parameters)[first:]:
                yield call, argument


@pytest.mark.parametrize("kind", [*KINDS.values(), Session])
def test_every_argument_of_a_public_call_has_a_row(kind: type) -> None:
    found = set(_arguments(kind))
    calls = {call for call, _ in found}
    assert {"make"} <= calls or {"get", "list_sessions", kind.__name__} <= calls
    assert found <= set(ROWS)


def test_every_row_is_of_an_argument_that_there_is() -> None:
    assert set(ROWS) == {
        *_arguments(SessionManager),
        *_arguments(SessionReader),
        *_arguments(SessionClient),
        *_arguments(Session),
    }


REFUSED = [key for key, rows in ROWS.items() if rows and key[0] not in _ANSWERS]


@pytest.mark.parametrize(("call", "argument"), REFUSED)
def test_what_cannot_be_is_refused_by_name_and_changes_nothing(
    setting: Setting, call: str, argument: str
) -> None:
    """T7: a bad argument leaves version, index, reach, free slots and sessions as they were."""
    before, objects = setting.state(), objects_of(setting.name)
    for row in ROWS[call, argument]:
        for make in _calls(setting, call, argument):
            with pytest.raises(row.error) as caught:
                make(row.value)
            assert row.text in str(caught.value), (row, str(caught.value))
            assert len(str(caught.value)) < 400
            assert setting.state() == before, row
    assert objects_of(setting.name) == objects
    # Nothing that a failed call has left is made good by the next one, which would cost versions.
    setting.manager.update_session(SID)
    assert setting.manager.version == 2


@pytest.mark.parametrize("call", _ANSWERS)
def test_what_is_no_id_is_not_there(setting: Setting, call: str) -> None:
    before = setting.state()
    for row in ROWS[call, "session_id"]:
        for make in _calls(setting, call, "session_id"):
            assert make(row.value) is _ANSWERS[call], row
    assert setting.state() == before


@pytest.mark.parametrize("argument", [key[1] for key in ROWS if key[0] == "SessionManager"])
def test_a_manager_that_is_refused_makes_nothing(name: str, argument: str) -> None:
    for row in ROWS["SessionManager", argument]:
        with pytest.raises(row.error):
            SessionManager(**{"name": name} | {argument: row.value})
    assert objects_of(name) == set()


# ---------------------------------------------------------------------------- odd, and right


@pytest.mark.parametrize("default", [None, 0, "", [], SID, object(), Mute, math.nan])
def test_a_default_is_given_back_as_it_is(setting: Setting, default: object) -> None:
    for handle in (setting.manager, setting.reader):
        assert handle.get(UUID(int=5), default) is default
        assert handle.get("no id", default) is default


@pytest.mark.parametrize("pid", [Whole(1), Number.ONE], ids=repr)
def test_a_pid_of_another_class_is_that_process(setting: Setting, pid: int) -> None:
    plain = setting.manager.create_session(pid=1)
    odd = setting.manager.create_session(pid=pid)
    one, other = (setting.reader[sid].payload() for sid in (plain, odd))
    assert type(setting.reader.get_session_pid(odd)) is int
    assert (other.owner_start, other.owner_namespace) == (one.owner_start, one.owner_namespace)


@pytest.mark.parametrize("error", [Text("over"), np.str_("over"), Word.OVER], ids=repr)
def test_an_error_of_another_class_is_its_text(setting: Setting, error: str) -> None:
    setting.manager.terminate_session(SID, error)
    assert setting.reader[SID].error == "over"
    assert setting.manager.version == 2


@pytest.mark.parametrize("status", [Text("active"), np.str_("active")], ids=repr)
def test_a_status_of_another_class_is_a_status(setting: Setting, status: str) -> None:
    assert setting.manager.update_session(SID, status=status).status is SessionStatus.ACTIVE
    assert [one.session_id for one in setting.reader.list_sessions(status)] == [SID]


@pytest.mark.parametrize("value", [Text(TEXT), np.str_(f"session_{TEXT}")], ids=repr)
def test_an_id_of_another_class_is_an_id(setting: Setting, value: str) -> None:
    assert value in setting.reader
    assert type(setting.reader[value].session_id) is UUID


@pytest.mark.parametrize(
    "kind", [Text, np.str_, lambda text: enum.Enum("E", {"A": text}, type=str).A]
)
def test_a_name_of_another_class_is_that_name(setting: Setting, kind: Callable[[str], str]) -> None:
    # The text of an enum's member is another one, with a dot in it: another registry's object.
    with SessionReader(kind(setting.name)) as reader:
        assert SID in reader
        assert type(reader.name) is str
        assert reader.name == setting.name


@pytest.mark.parametrize("whole", [Whole(2), np.float64(2), Real(2), 2])
def test_a_time_of_another_class_is_that_time(setting: Setting, whole: float) -> None:
    sid = setting.manager.create_session(ttl=whole)
    session = setting.reader[sid]
    assert session.expires_at is not None
    assert (session.expires_at - session.created_at).total_seconds() == 2


@pytest.mark.parametrize("version", [Whole(1), Number.ONE], ids=repr)
def test_a_version_of_another_class_is_that_version(setting: Setting, version: int) -> None:
    assert setting.manager.update_session(SID, expected_version=version).version == 2


def test_the_longest_times_can_be_waited_for(setting: Setting) -> None:
    sid = setting.manager.create_session(ttl=CENTURY)
    soon = setting.manager.create_session(ttl=CENTURY - 0.5)
    setting.manager.terminate_session(soon)
    assert setting.manager[sid].expires_at is not None
    assert setting.manager.check() == []


@pytest.mark.parametrize(
    "text",
    [
        "\0",
        "a\0b\0",
        "e\N{COMBINING ACUTE ACCENT}\N{COMBINING GRAVE ACCENT}",
        "\N{GRINNING FACE}\N{ZERO WIDTH JOINER}\N{WOMAN}",
        "\N{RIGHT-TO-LEFT OVERRIDE}\N{HEBREW LETTER ALEF}\N{POP DIRECTIONAL FORMATTING}",
        "\N{LINE SEPARATOR}\x85\r\n\t\x1b",
        "\N{ZERO WIDTH NO-BREAK SPACE}\ufffe\uffff\U0010ffff",
        "K\N{KELVIN SIGN}\N{ANGSTROM SIGN}\N{LATIN SMALL LIGATURE FI}",
        "'\"\\{}%s$",
    ],
    ids=ascii,
)
def test_any_text_comes_back_letter_by_letter(setting: Setting, text: str) -> None:
    setting.manager.update_session(SID, metadata={text: [text]}, llm_config={"a": {text: text}})
    setting.manager.terminate_session(SID, text)
    session = setting.reader[SID]
    assert session.metadata == {text: [text]}
    assert session.llm_config == {"a": {text: text}}
    assert session.error == text
