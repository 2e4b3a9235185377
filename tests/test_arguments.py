"""Arguments: what is taken, what is refused, and that the error names the argument."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tables import copies_of

from jidoka_shm.arguments import (
    check_flag,
    check_mode,
    check_pid,
    check_seconds,
    check_text,
    check_version,
    check_whole,
)

if TYPE_CHECKING:
    from collections.abc import Callable

CENTURY = 3_155_760_000


# ---------------------------------------------------------------------------- seconds


@given(st.floats(0, CENTURY) | st.integers(0, CENTURY))
def test_seconds_are_taken_as_they_are(value: float) -> None:
    assert check_seconds("ttl", value) == value


@pytest.mark.parametrize("value", [0, 1, np.float64(1.5)])
def test_seconds_come_back_as_a_float(value: float) -> None:
    assert isinstance(check_seconds("ttl", value), float)


@pytest.mark.parametrize(
    "value",
    [-1, -0.001, -5e-324, CENTURY + 1, 1e300, math.inf, -math.inf, math.nan, 2**64, 10**400],
    ids=lambda value: f"{value!r:.20}",
)
def test_seconds_outside_a_century_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"^ttl is .*: it must be 0 to 3155760000 seconds$"):
        check_seconds("ttl", value)


@pytest.mark.parametrize("value", [None, True, False, "1", b"1", [1], 1j, np.int64(1)], ids=repr)
def test_seconds_of_another_type_are_refused(value: object) -> None:
    wanted = f"^ttl is of type {type(value).__name__}: it must be a number of seconds$"
    with pytest.raises(TypeError, match=wanted):
        check_seconds("ttl", value)


# ---------------------------------------------------------------------------- whole numbers


@given(st.integers(0))
def test_a_whole_number_is_taken_as_it_is(value: int) -> None:
    assert check_whole("cache_size", value) == value


@given(st.integers(max_value=-1))
def test_a_negative_number_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"^cache_size is {value}: it must be 0 or more$"):
        check_whole("cache_size", value)


@pytest.mark.parametrize("value", [None, True, 1.0, "1", np.float64(1)], ids=repr)
def test_what_is_no_int_is_refused(value: object) -> None:
    wanted = f"^cache_size is of type {type(value).__name__}: it must be a whole number$"
    with pytest.raises(TypeError, match=wanted):
        check_whole("cache_size", value)


# ---------------------------------------------------------------------------- flags


@pytest.mark.parametrize("value", [True, False])
def test_a_flag_is_taken_as_it_is(value: object) -> None:
    assert check_flag("grow", value) is value


@pytest.mark.parametrize("value", [None, 0, 1, "no", "", np.bool_(True)], ids=repr)  # noqa: FBT003
def test_what_is_only_truthy_or_falsy_is_no_flag(value: object) -> None:
    wanted = f"^grow is of type {type(value).__name__}: it must be True or False$"
    with pytest.raises(TypeError, match=wanted):
        check_flag("grow", value)


# ---------------------------------------------------------------------------- text


@given(st.text())
def test_text_is_taken_as_it_is(value: str) -> None:
    assert check_text("error", value) is value


@given(st.text(), st.characters(categories=["Cs"]), st.text())
def test_a_lone_surrogate_is_refused(before: str, surrogate: str, after: str) -> None:
    with pytest.raises(ValueError, match=r"^error holds a lone surrogate: "):
        check_text("error", before + surrogate + after)


@pytest.mark.parametrize("value", [None, b"text", 5, ["text"]], ids=repr)
def test_what_is_no_str_is_refused(value: object) -> None:
    wanted = f"^error is of type {type(value).__name__}: it must be a str$"
    with pytest.raises(TypeError, match=wanted):
        check_text("error", value)


# ---------------------------------------------------------------------------- pids


@pytest.mark.parametrize("value", [1, 2, 32_768, 4_194_304])
def test_a_pid_is_taken_as_it_is(value: int) -> None:
    assert check_pid(value) == value


@pytest.mark.parametrize("value", [0, -1, 4_194_305, 2**31, 2**32 + 1, 2**64])
def test_a_pid_that_linux_never_gives_is_refused(value: int) -> None:
    with pytest.raises(ValueError, match=f"^pid is {value}: it must be 1 to 4194304$"):
        check_pid(value)


@pytest.mark.parametrize("value", [None, True, 1.0, "1"], ids=repr)
def test_what_is_no_pid_is_refused(value: object) -> None:
    wanted = f"^pid is of type {type(value).__name__}: it must be a process id$"
    with pytest.raises(TypeError, match=wanted):
        check_pid(value)


# ---------------------------------------------------------------------------- modes


def _is_taken(mode: int) -> bool:
    try:
        return check_mode(mode) == mode
    except ValueError:
        return False


def test_the_modes_taken_are_those_that_the_error_names() -> None:
    # The owner reads and writes, others read or do nothing, whatever the mode.
    taken = {mode for mode in range(-8, 0o20000) if _is_taken(mode)}
    assert taken == {0o600, 0o640, 0o604, 0o644}


@pytest.mark.parametrize("mode", [0, 0o400, 0o200, 0o700, 0o611, 0o1600, 0o4600, -1], ids=oct)
def test_the_error_of_a_mode_shows_it_in_octal(mode: int) -> None:
    with pytest.raises(ValueError, match=f"^mode is {mode:#o}: it must be 0o600, with 0o040 or"):
        check_mode(mode)


@pytest.mark.parametrize("value", [None, True, "600", 384.0], ids=repr)
def test_what_is_no_mode_is_refused(value: object) -> None:
    wanted = f"^mode is of type {type(value).__name__}: it must be a file mode such as 0o600$"
    with pytest.raises(TypeError, match=wanted):
        check_mode(value)


# ---------------------------------------------------------------------------- whichever


@pytest.mark.parametrize("check", [check_whole, check_seconds, check_flag, check_text])
def test_the_error_names_the_argument(check: Callable[[str, object], object]) -> None:
    with pytest.raises(TypeError, match=r"^the_argument is of type object: "):
        check("the_argument", object())


@pytest.mark.parametrize("check", [check_pid, check_mode])
def test_the_error_names_the_type(check: Callable[[object], object]) -> None:
    with pytest.raises(TypeError, match="of type object: "):
        check(object())


@pytest.mark.parametrize("check", [check_whole, lambda name, value: check_pid(value)])
def test_an_int_of_numpys_is_an_int(check: Callable) -> None:
    """The columns of a snapshot are such."""
    number = check("n", np.uint64(7))
    assert number == 7
    assert type(number) is int


class Unshowable:
    def __repr__(self) -> str:
        raise ZeroDivisionError


@pytest.mark.parametrize(
    "value", [10**5000, -(10**5000), Unshowable()], ids=["large", "small", "stranger"]
)
def test_a_value_that_cannot_be_shown_is_refused_with_a_clear_error(value: object) -> None:
    for check in (
        lambda: check_version(value),
        lambda: check_pid(value),
        lambda: check_mode(value),
        lambda: check_seconds("seconds", value),
        lambda: check_text("text", value),
        lambda: check_flag("flag", value),
    ):
        with pytest.raises(
            (TypeError, ValueError), match=r"^(version|pid|mode|seconds|text|flag) "
        ):
            check()


def test_a_str_of_a_callers_own_class_comes_back_as_a_str() -> None:
    class Shout(str):
        __slots__ = ()

        def __str__(self) -> str:
            return self.upper()

    text = check_text("error", Shout("boom"))
    assert text == "boom"
    assert type(text) is str


def test_an_error_of_a_type_survives_pickling() -> None:
    with pytest.raises(TypeError) as caught:
        check_flag("fresh", 1)
    assert {str(one) for one in copies_of(caught.value)} == {str(caught.value)}


# ---------------------------------------------------------------------------- odd values


class _Whole(int):
    pass


class _Text(str):
    __slots__ = ()


def test_what_is_taken_is_of_a_plain_type() -> None:
    numbers = [
        check_whole("cache_size", _Whole(7)),
        check_pid(_Whole(7)),
        check_mode(_Whole(0o600)),
    ]
    assert numbers == [7, 7, 0o600]
    assert {type(number) for number in numbers} == {int}
    assert check_text("error", _Text("a")) == "a"
    assert type(check_text("error", _Text("a"))) is str
