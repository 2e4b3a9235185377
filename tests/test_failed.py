"""Errors as replies: each comes through whole, and what stands for none is refused."""

from __future__ import annotations

from uuid import UUID

import pytest

from jidoka_shm import errors
from jidoka_shm.errors import JidokaError
from jidoka_shm.failed import pack_error, unpack_error
from jidoka_shm.protocol import MAX_FRAME, Failed, ProtocolError, decode_reply, encode

ID = UUID("00112233-4455-6677-8899-aabbccddeeff")

ERRORS: list[JidokaError] = [
    errors.SessionNotFound(ID),
    errors.SessionExists(ID),
    errors.IllegalTransition(ID, "active", "initializing", ("idle", "terminated")),
    errors.IllegalTransition(ID, "terminated", "idle", ()),
    errors.VersionConflict(ID, 3, 1 << 39),
    errors.VersionConflict(ID, (1 << 64) - 1, 4),
    errors.InvalidSessionId("'x'"),
    errors.InvalidName("'a b'"),
    errors.InvalidMetadata('metadata["a"][3]', "is b'x' (bytes)"),
    errors.RecordTooLarge(600, 480),
    errors.SessionNotStarted("['agent']", "exited with status 3", 3),
    errors.SessionNotSupervised(ID),
    errors.RegistryFull(1, 0, "slots"),
    errors.RegistryNotFound("r", 0.5),
    errors.RegistryClosed("r", "its manager is gone"),
    errors.WriterAlreadyRunning("r", None),
    errors.WriterUnavailable("r", outcome_unknown=True),
    errors.OwnerNotAlive(5),
    errors.RegistryForbidden("r", None),
    errors.DirectoryForbidden("/d", 5),
    errors.UnsupportedPlatform("plan9"),
    errors.ForkedHandle("r"),
    errors.ForeignLoop("r"),
    errors.ReentrantCall("r"),
    errors.FormatMismatch("r", None, 2),
    errors.CorruptRegistry("its slot is bad"),
    errors.ReadContended(1000),
]


def test_each_public_error_is_among_those_that_are_tried() -> None:
    public = {kind for kind in vars(errors).values() if isinstance(kind, type)}
    named = {kind for kind in public if issubclass(kind, JidokaError)} - {JidokaError}
    assert {type(error) for error in ERRORS} == named


def _through(error: Exception) -> Exception:
    reply = decode_reply(encode(pack_error(error))[4:])
    assert isinstance(reply, Failed)
    return unpack_error(reply)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_comes_through_whole(error: JidokaError) -> None:
    came = _through(error)
    assert type(came) is type(error)
    assert came.args == error.args
    assert vars(came) == vars(error)
    assert str(came) == str(error)


class OddError(ValueError):
    """Of a class that no client knows, and made of what no message can hold."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("a", object()), ValueError),
        (TypeError("t"), TypeError),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ValueError),
        (OddError(object()), ValueError),
    ],
)
def test_another_error_comes_through_as_what_it_is_by_its_text(
    error: Exception, kind: type[Exception]
) -> None:
    came = _through(error)
    assert type(came) is kind
    assert str(came) == str(error)


def test_an_errors_texts_do_not_outgrow_a_reply() -> None:
    long = "x" * (2 * MAX_FRAME)
    for error in (errors.InvalidMetadata(long, long), ValueError(long)):
        assert len(encode(pack_error(error))) < MAX_FRAME // 4
        assert type(_through(error)) is type(error)


@pytest.mark.parametrize(
    ("failed", "reason"),
    [
        (Failed("KeyboardInterrupt", []), "no error of this protocol"),
        (Failed("shown", [1]), "no error of this protocol"),
        (Failed("dataclass", [int]), "no error of this protocol"),
        (Failed("UUID", ["x"]), "no error of this protocol"),
        (Failed("__name__", []), "no error of this protocol"),
        (Failed("", []), "no error of this protocol"),
        (Failed("SessionNotFound", []), "is not made of 0 facts"),
        (Failed("SessionNotFound", [1, 2]), "is not made of 2 facts"),
    ],
)
def test_what_stands_for_no_error_is_refused(failed: Failed, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        unpack_error(failed)
