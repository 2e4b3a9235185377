"""The protocol, step by step: the order of stores, the second load, and every bounded retry."""

from __future__ import annotations

import importlib.util
import platform
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jidoka_shm
from jidoka_shm import seqlock
from jidoka_shm.errors import ReadContended
from jidoka_shm.layout import CLOSED, EMPTY, GIVEN_UP_REACH, MOVED, index_word
from jidoka_shm.seqlock import SequenceWords

if TYPE_CHECKING:
    from types import ModuleType


ONE, TWO, THREE = (index_word(version, 7) for version in (1, 2, 3))


class Stores(list):
    """Words that log each store, with their own name."""

    def __init__(self, words: list[int], name: str, log: list) -> None:
        super().__init__(words)
        self.name, self.log = name, log

    def __setitem__(self, at: int, word: int) -> None:
        super().__setitem__(at, word)
        self.log.append((self.name, at, word))


class Loads(list):
    """Words of which each load gives the next of some values."""

    def __init__(self, *values: int) -> None:
        super().__init__(values)

    def __getitem__(self, at: int) -> int:
        return self.pop(0)


# ---------------------------------------------------------------------------- commits


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list:
    """Return what is stored, and fenced, in its order."""
    log: list = []
    monkeypatch.setattr(seqlock, "fence", lambda: log.append("fence"))
    return log


@pytest.mark.parametrize("weak", [False, True])
def test_a_commit_stores_odd_then_the_word_then_even(
    log: list, monkeypatch: pytest.MonkeyPatch, *, weak: bool
) -> None:
    monkeypatch.setattr(seqlock, "WEAK", weak)
    change, words = Stores([16], "change", log), Stores([EMPTY, ONE], "words", log)
    seqlock.commit(change, words, 1, TWO, 9)
    stores = [("change", 0, 17), ("words", 1, TWO), ("change", 0, 18)]
    assert [step for step in log if step != "fence"] == stores


def test_a_commit_on_a_weak_machine_fences_between_its_stores(
    log: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seqlock, "WEAK", True)
    seqlock.commit(Stores([16], "change", log), Stores([ONE], "words", log), 0, TWO, 9)
    assert [step if step == "fence" else step[0] for step in log] == [
        "change",
        "fence",
        "words",
        "fence",
        "change",
    ]


@pytest.mark.parametrize("weak", [False, True])
def test_only_a_weak_machine_fences(
    log: list, monkeypatch: pytest.MonkeyPatch, *, weak: bool
) -> None:
    monkeypatch.setattr(seqlock, "WEAK", weak)
    seqlock.end_scan([2], seqlock.begin_scan([2]))
    seqlock.hold([0], 1)
    seqlock.settle([0], 1)
    assert log == (4 * ["fence"] if weak else [])


def test_a_hold_is_odd_before_its_fence_and_settled_after_one(
    log: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seqlock, "WEAK", True)
    change = Stores([16], "change", log)
    seqlock.hold(change, 9)
    seqlock.settle(change, 9)
    assert log == [("change", 0, 17), "fence", "fence", ("change", 0, 18)]


@given(st.integers(1, 2**63 - 1))
def test_at_rest_the_next_version_follows_the_last(version: int) -> None:
    change = [2 * version]
    assert (seqlock.last_version(change), seqlock.next_version(change)) == (version, version + 1)


@given(st.integers(1, 2**63 - 1))
def test_in_mid_commit_the_last_version_is_the_one_that_was_begun(version: int) -> None:
    assert seqlock.last_version([2 * version - 1]) == version


def test_the_first_version_is_1() -> None:
    assert (seqlock.last_version([0]), seqlock.next_version([0])) == (0, 1)


@given(st.integers(1, 2**63 - 1))
def test_a_hold_of_a_version_uses_it_up(version: int) -> None:
    change = [0]
    seqlock.hold(change, version)
    assert change == [2 * version - 1]
    seqlock.settle(change, version)
    assert seqlock.next_version(change) == version + 1


@pytest.mark.parametrize("word", [MOVED, CLOSED])
def test_a_table_given_up_says_so_in_every_word_and_its_reach_leads_to_one(word: int) -> None:
    words, reach = memoryview(bytearray(80)).cast("Q"), memoryview(bytearray(b"\0\1\xff"))
    words[3] = ONE
    seqlock.give_up(words, reach, word)
    assert words.tolist() == 10 * [word]
    assert set(reach) == {GIVEN_UP_REACH}


def test_no_word_is_given_up_before_every_reach_leads_to_one() -> None:
    """Else a look-up would call missing what the table no longer knows of."""
    reach = memoryview(bytearray(3))
    seen: list[set[int]] = []

    class Words(list[int]):
        def __setitem__(self, at: object, word: object) -> None:
            seen.append(set(reach))

    seqlock.give_up(Words([0, 0]), reach, CLOSED)
    assert seen == [{GIVEN_UP_REACH}, {GIVEN_UP_REACH}]


# ---------------------------------------------------------------------------- scans


def test_a_scan_with_no_commit_under_way_is_atomic() -> None:
    change = [18]
    assert seqlock.end_scan(change, seqlock.begin_scan(change))


@pytest.mark.parametrize("after", [16, 19, 20, 2**63])
def test_a_scan_that_a_commit_came_into_is_not_atomic(after: int) -> None:
    change = [18]
    before = seqlock.begin_scan(change)
    change[0] = after
    assert not seqlock.end_scan(change, before)


def test_a_scan_in_mid_commit_is_not_atomic() -> None:
    change = [17]
    assert not seqlock.end_scan(change, seqlock.begin_scan(change))


# ---------------------------------------------------------------------------- fences


def test_a_fence_never_waits() -> None:
    for _ in range(1000):
        seqlock.fence()


def test_fences_of_several_threads_do_not_wait_for_one_another() -> None:
    threads = [
        threading.Thread(target=lambda: [seqlock.fence() for _ in range(1000)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()


# ---------------------------------------------------------------------------- read


@pytest.mark.parametrize("word", [EMPTY, MOVED, CLOSED])
def test_a_word_that_names_no_slot_is_returned_without_a_copy(word: int) -> None:
    copied = []
    assert SequenceWords([word]).read(0, copied.append) == (word, None)
    assert copied == []


@pytest.mark.parametrize("word", [3, ONE, 2**64 - 1])
def test_a_copy_is_made_of_the_word_that_was_loaded(word: int) -> None:
    assert SequenceWords([EMPTY, word]).read(1, lambda copied: ("copy", copied)) == (
        word,
        ("copy", word),
    )


def test_a_read_that_meets_no_commit_counts_no_retry() -> None:
    words = SequenceWords([ONE])
    words.read(0, str)
    assert words.retries == 0


def test_a_read_loads_the_word_twice_and_no_more() -> None:
    loads = Loads(ONE, ONE)
    assert SequenceWords(loads).read(0, str) == (ONE, str(ONE))
    assert loads == []


class _Sequence(SequenceWords):
    """Words whose copies are each met by a commit of the next of some words."""

    __slots__ = ("copied", "later")

    def __init__(self, first: int, *later: int) -> None:
        super().__init__([first])
        self.later, self.copied = list(later), []

    def copy(self, word: int) -> str:
        self.copied.append(word)
        if self.later:
            self.words[0] = self.later.pop(0)
        return f"copy of {word}"


@pytest.mark.parametrize("later", [[TWO], [TWO, THREE], [TWO, ONE, THREE, TWO]])
def test_a_copy_that_a_commit_came_into_is_made_again(later: list[int]) -> None:
    sequence = _Sequence(ONE, *later)
    assert sequence.read(0, sequence.copy) == (later[-1], f"copy of {later[-1]}")
    assert sequence.copied == [ONE, *later]
    assert sequence.retries == len(later)


@pytest.mark.parametrize("word", [EMPTY, MOVED, CLOSED])
@pytest.mark.parametrize("before", [[], [TWO], [TWO, THREE]])
def test_a_read_ends_where_the_word_comes_to_name_no_slot(before: list[int], word: int) -> None:
    sequence = _Sequence(ONE, *before, word)
    assert sequence.read(0, sequence.copy) == (word, None)
    assert sequence.copied == [ONE, *before]


def test_a_value_seen_before_does_not_stand_for_one_seen_now() -> None:
    # To another word and back again: a version never comes twice, so that is no commit undone.
    sequence = _Sequence(ONE, TWO)
    assert sequence.read(0, sequence.copy)[1] == f"copy of {TWO}"


def test_a_read_that_always_meets_a_commit_ends_in_an_error() -> None:
    sequence = _Sequence(1, *(index_word(version, 7) for version in range(2, 5000)))
    sequence.words[0] = ONE
    with pytest.raises(ReadContended) as caught:
        sequence.read(0, sequence.copy)
    assert caught.value.tries == seqlock.TRIES
    assert len(sequence.copied) == seqlock.TRIES + 1
    assert sequence.retries == seqlock.TRIES


def test_a_read_that_meets_a_commit_at_all_tries_but_the_last_succeeds() -> None:
    later = [index_word(version, 7) for version in range(2, seqlock.TRIES + 2)]
    sequence = _Sequence(ONE, *later)
    assert sequence.read(0, sequence.copy) == (later[-1], f"copy of {later[-1]}")


def test_an_error_of_the_copy_is_passed_on() -> None:
    def copy(_: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        SequenceWords([ONE]).read(0, copy)


# ---------------------------------------------------------------------------- machines


def _loaded_anew() -> ModuleType:
    """Return the module run once more, under another name."""
    path = f"{jidoka_shm.__path__[0]}/seqlock.py"
    spec = importlib.util.spec_from_file_location("jidoka_shm._seqlock_again", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("machine", "switch", "weak"),
    [
        ("x86_64", None, False),
        ("AMD64", None, False),
        ("x86_64", "", False),
        ("x86_64", "0", False),
        ("x86_64", "1", True),
        ("aarch64", None, True),
        ("riscv64", "0", True),
        ("ppc64le", "", True),
        ("", None, True),
    ],
)
def test_every_machine_but_an_x86_64_is_weak_and_that_one_can_be_told_to_be(
    monkeypatch: pytest.MonkeyPatch, machine: str, switch: str | None, *, weak: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.delenv("JIDOKA_SHM_WEAK_MEMORY", raising=False)
    if switch is not None:
        monkeypatch.setenv("JIDOKA_SHM_WEAK_MEMORY", switch)
    assert _loaded_anew().WEAK is weak
