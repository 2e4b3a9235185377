"""Every interleaving of up to two commits with one look-up and with one list."""

from __future__ import annotations

import itertools

import pytest
from interleavings import (
    Crash,
    Destruction,
    Full,
    FullCrash,
    Growth,
    GrowthCrash,
    Long,
    Scenario,
    check_closed,
    check_end,
    check_glance,
    check_headers,
    check_list,
    check_look_up,
    check_looked,
    check_seen_then_listed,
    check_two_look_ups,
    check_versions,
    closed_then_list,
    glance,
    headers,
    list_all,
    list_see_list,
    look_again,
    look_up,
    look_up_twice,
    remember,
    see_then_list,
)
from stepper import TOTALS, current

from jidoka_shm import seqlock

#: What a table may hold, and one or two changes that it allows.
FIRST = ("", "+x", "+y", "+y +x", "+z +y +x")


def _scripts(first: str) -> list[str]:
    """Return each script of one or two commits that a table like this allows."""
    found = []
    for words in itertools.chain.from_iterable(
        itertools.product(("+x", "x", "-x", "+y", "y", "-y"), repeat=n) for n in (1, 2)
    ):
        live = {word[1] for word in first.split()}
        for word in words:
            if (word[0] == "+") == (word[-1] in live):
                break
            live ^= {word[-1]} if len(word) > 1 else set()
        else:
            found.append(" ".join(words))
    return found


EXTRA = {"+x": ["-x +y +x", "-x +x x"], "+y +x": ["-x -y +x"]}


def _cases(first: str, read: object, **options: object) -> list[Scenario]:
    scripts = [*_scripts(first), *EXTRA.get(first, [])]
    return [Scenario(first, script, read, **options) for script in scripts]


@pytest.fixture(params=[seqlock.WEAK], ids=["verified" if seqlock.WEAK else "plain"])
def verify(request: pytest.FixtureRequest) -> bool:
    """Whether reads are verified: each way once, since under weak order all of them are."""
    return request.param


@pytest.fixture(params=FIRST, ids=[f"from[{first}]" for first in FIRST])
def first(request: pytest.FixtureRequest) -> str:
    return request.param


def _explore(check: object, cases: list[Scenario]) -> None:
    schedules = outcomes = 0
    for scenario in cases:
        for outcome in scenario.outcomes():
            check(scenario, outcome)
            outcomes += 1
        schedules += scenario.explorer.schedules()
    TOTALS["schedules"] += schedules
    TOTALS["outcomes"] += outcomes
    assert schedules >= outcomes > len(cases) - 1


def test_a_look_up_finds_what_was_there(first: str, verify: bool) -> None:
    _explore(check_look_up, _cases(first, look_up, verify=verify))


def test_a_glance_finds_what_was_there(first: str, verify: bool) -> None:
    _explore(check_glance, _cases(first, glance, verify=verify))


def test_a_cached_look_up_finds_what_was_there(first: str, verify: bool) -> None:
    _explore(check_look_up, _cases(first, look_up, verify=verify, cache_size=8, warm=look_up))


def test_a_second_look_up_is_not_older(first: str) -> None:
    _explore(check_two_look_ups, _cases(first, look_up_twice, cache_size=8))


def test_a_list_is_whole(first: str, verify: bool) -> None:
    _explore(check_list, _cases(first, list_all, verify=verify))


def test_the_headers_of_all_are_whole(first: str, verify: bool) -> None:
    _explore(check_headers, _cases(first, headers, verify=verify))


def test_a_list_is_not_older_than_what_was_seen(first: str) -> None:
    _explore(check_seen_then_listed, _cases(first, see_then_list, warm=list_all))


def test_a_look_tells_what_became_different(first: str) -> None:
    _explore(check_looked, _cases(first, look_again, warm=remember))


@pytest.mark.parametrize(
    ("read", "check"), [(look_up, check_look_up), (list_all, check_list)], ids=["look-up", "list"]
)
def test_lines_that_load_nothing_change_nothing(read: object, check: object) -> None:
    """Stepping through every line finds the outcomes that stepping through loads does."""
    found = []
    for every_line in (False, True):
        scenario = Scenario("+y +x", "-y -x", read)
        scenario.explorer.every_line = every_line
        outcomes = scenario.outcomes()
        for outcome in outcomes:
            check(scenario, outcome)
        found.append({repr(outcome.value) for outcome in outcomes})
    assert found[0] == found[1]


@pytest.mark.skipif(seqlock.WEAK, reason="a check or a fence stores nothing: once is enough")
@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("script", ["x", "-x", "-y", "-y -x", "+z"])
@pytest.mark.parametrize(
    ("read", "check", "options"),
    [
        (look_up, check_look_up, {}),
        (look_up, check_look_up, {"cache_size": 8, "warm": look_up}),
        (list_all, check_list, {}),
        (list_see_list, check_seen_then_listed, {}),
        (look_again, check_looked, {"warm": remember}),
    ],
    ids=["look-up", "cached", "list", "list again", "look again"],
)
def test_a_successor_goes_on_beside_readers(
    script: str, read: object, check: object, options: dict[str, object], part: int
) -> None:
    """The writer is killed after each of its stores; a reader runs before, during and after.

    In three parts, since all of the longest takes as long as one test may.
    """
    stores = len(Scenario("+y +x", script, look_up).states) - 1
    for kept in range(part, stores + 1, 3):
        crash = Crash("+y +x", script, kept, read, **options)
        check_versions(crash)
        _explore(check, [crash])


#: What may be read beside a growth, how that is judged, and beside which ones it is read.
BESIDE_GROWTH = {
    "plain": (look_up, check_look_up, {}, ["> x", "x >", "-x > +x"]),
    "verified": (look_up, check_look_up, {"verify": True}, ["> x", "-x > +x"]),
    "cached": (
        look_up,
        check_look_up,
        {"cache_size": 8, "warm": look_up},
        ["> x", "> -x", "-x > +x"],
    ),
    "twice": (look_up_twice, check_two_look_ups, {"cache_size": 8}, ["> x"]),
    "glance": (glance, check_glance, {}, ["> x", "-x > +x"]),
    "list": (list_all, check_list, {}, ["> x", "> +z"]),
    "list again": (list_all, check_list, {"warm": list_all}, ["> x", "x >"]),
    "headers": (headers, check_headers, {}, ["> x", "-x > +x"]),
    "seen": (see_then_list, check_seen_then_listed, {"warm": list_all}, ["> x"]),
}


@pytest.mark.parametrize(
    ("kind", "script"),
    [(kind, script) for kind in BESIDE_GROWTH for script in BESIDE_GROWTH[kind][3]],
)
def test_a_growth_is_seen_by_nobody(kind: str, script: str) -> None:
    read, check, options, _ = BESIDE_GROWTH[kind]
    growth = Growth("+y +x", script, read, **options)
    check_end(growth, "+y +x", script)
    check_versions(growth)
    _explore(check, [growth])


@pytest.mark.parametrize(
    ("read", "check", "options"),
    [
        (look_up, check_look_up, {}),
        (look_up, check_look_up, {"cache_size": 8, "warm": look_up}),
        (list_all, check_list, {"warm": list_all}),
    ],
    ids=["look-up", "cached", "list again"],
)
def test_a_successor_goes_on_from_the_middle_of_a_growth(
    read: object, check: object, options: dict[str, object]
) -> None:
    states = Growth("+y +x", ">", look_up).states
    committed = [current(state) for state in states].index(2)
    # Not yet committed; committed; its reach given up; some of its words; all of them.
    for kept in (committed - 1, committed, committed + 1, committed + 4, len(states) - 1):
        crash = GrowthCrash("+y +x", ">", kept, read, **options)
        check_versions(crash)
        _explore(check, [crash])


# ---------------------------------------------------------------------------- several slots

#: Commits of records of several slots: what is there, what is done, and which runs are free.
LONG = {
    "1 to 2, the slot used again": ("+x +y", "x2 y", (2, 2)),
    "1 to 3, the slot used again": ("+x +y", "x3 y", (3, 3)),
    "3 to 1, used again by a short one": ("+y +x3", "x y", (1,)),
    "3 to 1, used again by a long one": ("+y +x3", "x y2", (1, 4)),
    "3 to 2 and back": ("+x3", "x2 x2", (1, 3)),
    "3 to 3": ("+x3", "x3 x3", (1, 3)),
    "removed and used again": ("+x3", "-x +z3", (1, 4)),
    "a long neighbour": ("+y3 +x", "y x", (1,)),
    "removed and created at its neighbour's": ("+y2 +x3", "-y -x +x3", (1, 4)),
}

#: What is read beside them, and how that is judged.
BESIDE_LONG = {
    "look-up": (look_up, check_look_up, {}),
    "cached": (look_up, check_look_up, {"cache_size": 8, "warm": look_up}),
    "list": (list_all, check_list, {}),
}

#: The same in full tables, where a change is committed twice: what is there, what is done, in how
#: many slots, and what the next writer does that finds it half-done.
TWICE = {
    "the shorter one": ("+y3 +x2", "x2", 9, "y3"),
    "made shorter": ("+y4 +x3", "x2", 12, "y4"),
    "the neighbour": ("+x3 +y2", "y2", 9, "x3"),
}


@pytest.mark.parametrize("case", LONG)
@pytest.mark.parametrize("kind", BESIDE_LONG)
def test_a_record_of_several_slots_is_whole(kind: str, case: str) -> None:
    read, check, options = BESIDE_LONG[kind]
    first, script, free = LONG[case]
    scenario = Long(first, script, free, read, **options)
    check_end(scenario, first, script)
    check_versions(scenario)
    assert scenario.uses_again()
    _explore(check, [scenario])


@pytest.mark.parametrize("case", TWICE)
@pytest.mark.parametrize("kind", BESIDE_LONG)
def test_a_change_that_is_committed_twice_is_seen_whole(kind: str, case: str) -> None:
    read, check, options = BESIDE_LONG[kind]
    first, script, slots, _ = TWICE[case]
    scenario = Full(first, script, slots, read, **options)
    assert scenario.commits() == len(script.split()) + 1
    check_end(scenario, first, script)
    check_versions(scenario)
    _explore(check, [scenario])


@pytest.mark.skipif(seqlock.WEAK, reason="as above")
@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize(
    ("kind", "case"), [*(("look-up", case) for case in TWICE), ("list", "the shorter one")]
)
def test_a_successor_finds_the_reserve_beside_readers(kind: str, case: str, part: int) -> None:
    """Killed after each store of a change that is committed twice; in three parts, as above."""
    read, check, options = BESIDE_LONG[kind]
    first, script, slots, again = TWICE[case]
    moved = []
    for kept in itertools.count(part, 3):
        crash = FullCrash(first, script, slots, kept, read, again=again, **options)
        check_versions(crash)
        _explore(check, [crash])
        moved.append(crash.moved)
        if not crash.is_cut:
            break
    assert len(moved) > 2
    # Or there would be nothing to find: what the dead writer left was a reserve.
    assert any(moved)


def test_no_list_outlives_its_registry() -> None:
    _explore(check_closed, [Destruction("+x", "", closed_then_list, warm=list_all)])
