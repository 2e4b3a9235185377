"""Errors: one tree, each with its facts, the way out in its text, and copies that are whole."""

from __future__ import annotations

import builtins
import errno
import inspect
import re
from dataclasses import fields
from uuid import UUID

import pytest
from tables import copies_of

from jidoka_shm import errors
from jidoka_shm.errors import (
    CorruptRegistry,
    DirectoryForbidden,
    ForeignLoop,
    ForkedHandle,
    FormatMismatch,
    IllegalTransition,
    InvalidMetadata,
    InvalidName,
    InvalidSessionId,
    JidokaError,
    OwnerNotAlive,
    ReadContended,
    RecordTooLarge,
    ReentrantCall,
    RegistryClosed,
    RegistryForbidden,
    RegistryFull,
    RegistryNotFound,
    SessionExists,
    SessionNotFound,
    SessionNotStarted,
    SessionNotSupervised,
    UnsupportedPlatform,
    VersionConflict,
    WriterAlreadyRunning,
    WriterUnavailable,
    shown,
)

ID = UUID("12345678-9abc-4def-8123-456789abcdef")

#: An error of each kind, and its way out.
CASES: list[tuple[JidokaError, str]] = [
    (SessionNotFound(ID), "never existed here, or it has ended"),
    (SessionExists(ID), "leave session_id out"),
    (IllegalTransition(ID, "idle", "initializing", ("active", "terminated")), "it may move to"),
    (IllegalTransition(ID, "terminated", "active", ()), "no other status"),
    (VersionConflict(ID, 31, 47), "read it again"),
    (InvalidSessionId("'nonsense'"), "32 hexadecimal digits"),
    (InvalidName("'a.b'"), "1 to 64 of A-Z, a-z, 0-9, '_' and '-'"),
    (InvalidMetadata('metadata["a"][3]', "is {1} (set)"), "at most 32 deep"),
    (RecordTooLarge(513, 448), "a larger max_record_size"),
    (RecordTooLarge(513, 512, "request"), "make the change in the manager's own process"),
    (RegistryFull(1, 0, "slots"), "a larger capacity"),
    (RegistryFull(4097, 4095, "bytes of /dev/shm"), "--shm-size"),
    (RegistryFull(1, 0, "entries near the id's home"), "a larger capacity"),
    (RegistryNotFound("agents", 2.5), "start its SessionManager first"),
    (RegistryClosed("agents", "it was destroyed"), "open it again"),
    (WriterAlreadyRunning("agents", 4242), "SessionClient"),
    (WriterAlreadyRunning("agents", None), "another process"),
    (WriterUnavailable("agents"), "changes fail until there is one"),
    (WriterUnavailable("agents", outcome_unknown=True), "may or may not have been made"),
    (WriterUnavailable("agents", reason="it does not listen"), "that answers"),
    (OwnerNotAlive(4242), "pass the pid of a running process, or None"),
    (SessionNotStarted("['agent']", "it exited with status 3", 3), "start it again"),
    (SessionNotStarted("agent:main", "it took too long"), "start it again"),
    (SessionNotSupervised(ID), "stop it where it was started"),
    (RegistryForbidden("agents", 1000), "mode=0o640"),
    (RegistryForbidden("agents", None), "another user"),
    (DirectoryForbidden("/tmp/d", 1000), "set XDG_RUNTIME_DIR to"),  # noqa: S108 - a text
    (DirectoryForbidden("/tmp/d", None), "is no directory"),  # noqa: S108 - a text
    (UnsupportedPlatform("win32"), "needs Linux"),
    (ForkedHandle("agents"), "SessionReader"),
    (ForeignLoop("agents"), "a client for each loop"),
    (ReentrantCall("agents"), "set a flag"),
    (FormatMismatch("agents", 7, 1), "fresh=True"),
    (FormatMismatch("agents", None, 1), "unknown format"),
    (CorruptRegistry("entry 7 holds no session"), "takes it over"),
    (ReadContended(1001), "read again"),
]

each_error = pytest.mark.parametrize("error", [error for error, _ in CASES], ids=repr)


def _classes() -> list[type[JidokaError]]:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    return [kind for kind in found if issubclass(kind, JidokaError) and kind is not JidokaError]


def _drawn() -> dict[str, str | None]:
    """Return each error drawn in the module's docstring, and the builtin beside it."""
    lines = re.findall(r"^    [|`]-- (\w+)(?: \((\w+)\))?  +\S", errors.__doc__, re.MULTILINE)
    return {name: builtin or None for name, builtin in lines}


def test_each_class_has_a_case_here() -> None:
    assert {type(error) for error, _ in CASES} == set(_classes())


def test_the_tree_draws_each_class_once() -> None:
    drawn = re.findall(r"-- (\w+)", errors.__doc__)
    assert sorted(drawn) == sorted(kind.__name__ for kind in _classes())


@pytest.mark.parametrize("kind", _classes())
def test_the_bases_are_those_of_the_tree(kind: type[JidokaError]) -> None:
    builtin = _drawn()[kind.__name__]
    mixed_in = () if builtin is None else (getattr(builtins, builtin),)
    assert kind.__bases__ == (JidokaError, *mixed_in)


@pytest.mark.parametrize("kind", _classes())
def test_the_docstring_names_each_fact(kind: type[JidokaError]) -> None:
    _, _, listed = inspect.cleandoc(kind.__doc__).partition("Attributes:\n")
    named = re.findall(r"^ {4}(\w+): \S", listed, re.MULTILINE)
    assert named == [fact.name for fact in fields(kind)]


@each_error
def test_args_are_the_facts(error: JidokaError) -> None:
    assert error.args == tuple(getattr(error, fact.name) for fact in fields(error))


@each_error
def test_each_copy_has_equal_args(error: JidokaError) -> None:
    for copied in copies_of(error):
        assert (type(copied), copied.args) == (type(error), error.args)


@each_error
def test_each_copy_has_equal_attributes(error: JidokaError) -> None:
    for copied in copies_of(error):
        assert vars(copied) == vars(error)


@each_error
def test_each_copy_has_the_same_text(error: JidokaError) -> None:
    for copied in copies_of(error):
        assert str(copied) == str(error)


@each_error
def test_a_note_survives_copying(error: JidokaError) -> None:
    (kind, facts) = (type(error), error.args)
    noted = kind(*facts)
    noted.add_note("while testing")
    assert all(copied.__notes__ == ["while testing"] for copied in copies_of(noted))


@each_error
def test_the_text_names_each_fact(error: JidokaError) -> None:
    for fact in error.args:
        if fact is not None and not isinstance(fact, bool):
            parts = fact if isinstance(fact, tuple) else (fact,)
            assert all(str(part) in str(error) for part in parts)


@pytest.mark.parametrize(("error", "way_out"), CASES, ids=lambda value: repr(value)[:60])
def test_the_text_names_the_way_out(error: JidokaError, way_out: str) -> None:
    assert way_out in str(error)


@each_error
def test_the_text_is_one_line_without_a_full_stop(error: JidokaError) -> None:
    text = str(error)
    assert text
    assert "\n" not in text
    assert not text.endswith(".")


@each_error
def test_the_repr_is_the_call_that_makes_it(error: JidokaError) -> None:
    listed = ", ".join(map(repr, error.args))
    assert repr(error) == f"{type(error).__name__}({listed})"


@each_error
def test_it_can_be_raised_and_caught_as_each_base(error: JidokaError) -> None:
    for kind in type(error).__mro__[:-1]:
        with pytest.raises(kind) as caught:
            raise error
        assert caught.value is error


@each_error
def test_an_error_equals_only_itself(error: JidokaError) -> None:
    assert error == error  # noqa: PLR0124 - that is the test
    assert error != type(error)(*error.args)
    assert {error: 1}[error]


@each_error
def test_facts_may_be_given_by_name(error: JidokaError) -> None:
    facts = {fact.name: getattr(error, fact.name) for fact in fields(error)}
    assert type(error)(**facts).args == error.args


def test_an_outcome_is_known_unless_said() -> None:
    assert WriterUnavailable("agents").outcome_unknown is False


def test_the_base_has_no_facts() -> None:
    assert JidokaError().args == ()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RegistryNotFound("a", 0), errno.ENOENT),
        (RegistryForbidden("a", 0), errno.EACCES),
        (DirectoryForbidden("a", 0), errno.EACCES),
    ],
)
def test_an_error_of_the_system_has_its_number(error: OSError, code: int) -> None:
    assert {one.errno for one in copies_of(error)} == {error.errno} == {code}


# ---------------------------------------------------------------------------- values in texts


class _Mute:
    def __repr__(self) -> str:
        raise LookupError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        ("a\ud800", r"'a\ud800'"),
        ("x" * 100_000, "'" + 79 * "x"),
        (10**5000, "int without a repr (ValueError)"),
        (_Mute(), "_Mute without a repr (LookupError)"),
    ],
    ids=["int", "surrogate", "long", "no text", "no repr"],
)
def test_any_value_has_a_short_text(value: object, text: str) -> None:
    assert shown(value) == text


def test_a_version_of_any_size_has_a_text() -> None:
    error = VersionConflict(UUID(int=5), 10**5000, 7)
    assert "is at version 7, not int without a repr" in str(error)
