"""Each rule of the protocol is load-bearing: without it, a check turns red.

The same scenarios that hold over every interleaving are run over a function with the rule taken
out; some interleaving must then give a wrong answer. A machine of weak memory order has a second
line of defence behind some rules (a copy that its crcs or its version contradict is made again),
which would hide that, so the rules are judged without it, and it is judged without them.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from interleavings import (
    Crash,
    Destruction,
    Full,
    FullCrash,
    Growth,
    Long,
    Scenario,
    check_closed,
    check_end,
    check_glance,
    check_headers,
    check_list,
    check_look_up,
    check_seen_then_listed,
    check_two_look_ups,
    check_versions,
    closed_then_list,
    glance,
    headers,
    list_all,
    list_see_list,
    look_up,
    look_up_twice,
    see_then_list,
)
from mutants import Mutant

import jidoka_shm.table
from jidoka_shm import seqlock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOOK_UP = (look_up, check_look_up, {})
VERIFIED = (look_up, check_look_up, {"verify": True})
CACHED = (look_up, check_look_up, {"cache_size": 8, "warm": look_up})
TWICE = (look_up_twice, check_two_look_ups, {"cache_size": 8})
LIST = (list_all, check_list, {})
HEADERS = (headers, check_headers, {})
AGAIN = (list_see_list, check_seen_then_listed, {})
CRASH = (look_up, check_look_up, {"kill": True})
SEEN = (see_then_list, check_seen_then_listed, {"warm": list_all})
SEEN_AFTER_CRASH = (see_then_list, check_seen_then_listed, {"warm": list_all, "kill": True})

#: Each mutant, what is read while what is written into what, and how that is judged.
CASES = [
    (
        Mutant(
            "the word is loaded again before a value is concluded",
            "seqlock",
            "quick_look_up",
            "payload = memory[start:stop]\n"
            "                    # The load that makes it a conclusion, as in ``read``.\n"
            "                    if words[entry] != word:",
            "payload = memory[start:stop]\n                    if False:",
        ),
        ("+x", "x x", *LOOK_UP),
    ),
    (
        Mutant(
            "the word is loaded again before a neighbour is concluded",
            "seqlock",
            "quick_look_up",
            "# As above: which id the slot holds is a conclusion, too.\n"
            "                if words[entry] != word:",
            "if False:",
        ),
        ("+x +z", "x z", *LOOK_UP),
    ),
    (
        Mutant(
            "the word is loaded again before a status is concluded",
            "seqlock",
            "quick_glance",
            "if words[entry] != word:",
            "if False:",
        ),
        ("+x", "x x", glance, check_glance, {}),
    ),
    (
        Mutant(
            "the word is loaded again before a value is concluded, in a scan",
            "seqlock",
            "SequenceWords.read",
            "again = words[entry]",
            "again = word",
        ),
        ("+x", "x x x", *LIST),
    ),
    (
        Mutant(
            "the word is loaded again before a neighbour is concluded, verified",
            "seqlock",
            "SequenceWords.read",
            "again = words[entry]",
            "again = word",
        ),
        ("+x +z", "x z", look_up, check_look_up, {"verify": True}),
    ),
    (
        Mutant(
            "the word is loaded again before damage is concluded",
            "seqlock",
            "SequenceWords.read",
            "again = words[entry]",
            "again = word",
        ),
        ("+x", "x x", *VERIFIED),
    ),
    (
        Mutant(
            "a retry loads the word again too",
            "seqlock",
            "SequenceWords._retry",
            "again = words[entry]",
            "again = word",
        ),
        ("+x", "x x x", *VERIFIED),
    ),
    (
        Mutant(
            "a record is whole before its word",
            "records",
            "RecordWriter._commit",
            "self.slots.memory[start : start + len(packed)] = packed\n"
            "    seqlock.commit(self.change, self.index.words, entry, "
            "index_word(version, slot), version)",
            "seqlock.commit(self.change, self.index.words, entry, "
            "index_word(version, slot), version)\n"
            "    self.slots.memory[start : start + len(packed)] = packed",
        ),
        ("+x", "x", *LOOK_UP),
    ),
    (
        Mutant(
            "a slot is free only after the word that named it is gone",
            "records",
            "RecordWriter.replace",
            "self._commit(entry, session.version, space.singles.popleft(), packed)",
            "space.singles.appendleft(old)\n"
            "    self._commit(entry, session.version, space.singles.popleft(), packed)",
        ),
        ("+x", "x", *LOOK_UP),
    ),
    (
        Mutant(
            "odd before the word",
            "seqlock",
            "commit",
            "change[0] = 2 * version - 1",
            "pass",
        ),
        ("", "+x", *SEEN),
    ),
    (
        Mutant(
            "the word before even",
            "seqlock",
            "commit",
            "words[entry] = word",
            "change[0] = 2 * version\n    words[entry] = word",
        ),
        ("", "+x", *AGAIN),
    ),
    (
        Mutant(
            "versions start at 1",
            "records",
            "index_word",
            "version & VERSION_MASK",
            "version - 1 & VERSION_MASK",
        ),
        ("", "+x", *LOOK_UP),
    ),
    (
        Mutant(
            "a reach is raised before the word that needs it",
            "records",
            "RecordWriter.insert",
            "    if self.reach[home] <= entry - home:\n"
            "        self.reach[home] = entry - home + 1\n"
            "    self._commit(entry, session.version, slot, packed)",
            "    self._commit(entry, session.version, slot, packed)\n"
            "    if self.reach[home] <= entry - home:\n"
            "        self.reach[home] = entry - home + 1",
        ),
        ("+y", "+x", *TWICE),
    ),
    (
        Mutant(
            "a reach is lowered after the word is gone",
            "records",
            "RecordWriter.remove",
            "seqlock.commit(self.change, words, entry, EMPTY, self.next_version())",
            "self.reach[home] = 0\n"
            "    seqlock.commit(self.change, words, entry, EMPTY, self.next_version())",
        ),
        ("+y +x", "-x", *TWICE),
    ),
    (
        Mutant(
            "a reach is loaded within each look-up",
            "seqlock",
            "quick_look_up",
            "end = reach[entry]",
            "end = look_up.__dict__.setdefault(entry, reach[entry])",
        ),
        ("+y", "+x", look_up_twice, check_two_look_ups, {"warm": look_up}),
    ),
    (
        Mutant(
            "a reach is loaded within each look-up, verified",
            "table",
            "SessionTable.find",
            "self.reach[entry]",
            "self.__dict__.setdefault('reach_was', self.reach[entry])",
        ),
        ("+y", "+x", look_up_twice, check_two_look_ups, {"warm": look_up, "verify": True}),
    ),
    (
        Mutant(
            "a cached session whose entry is empty is looked for again from home",
            "reads",
            "SessionReads.get",
            "if view.words[entry] == word:\n            return session",
            "if view.words[entry] == word:\n            return session\n"
            "        if view.words[entry] == 0:\n"
            "            return default",
        ),
        ("+y +x", "-x -y +x", *CACHED),
    ),
    (
        Mutant(
            "a cached session is good only while its word is",
            "reads",
            "SessionReads.get",
            "view.words[entry] == word",
            "True",
        ),
        ("+x", "x", *CACHED),
    ),
    (
        Mutant(
            "a list keeps one record an id, the newest",
            "scan",
            "_forget_doubles",
            "if len({one.session_id.int for one in sessions.values()}) == len(sessions):",
            "if True:",
        ),
        ("+y +x", "-y -x +x", *LIST),
    ),
    (
        Mutant(
            "a list whose change word moved is compared with a second copy of the index",
            "attachment",
            "scan_sessions",
            "doubtful += _changed(table, entries, words).tolist()",
            "_changed(table, entries, words)",
        ),
        ("+x", "x x", *LIST),
    ),
    (
        Mutant(
            "columns whose change word moved are compared with a second copy of the index",
            "scan",
            "_changed",
            "later[new]",
            "later[:0]",
        ),
        ("+x", "x x", *HEADERS),
    ),
    (
        Mutant(
            "a session that was listed before and is gone is in no list",
            "attachment",
            "scan_sessions",
            "*_missing(known.entries, entries), ",
            "",
        ),
        ("+x +y", "-x", list_all, check_list, {"warm": list_all}),
    ),
    (
        Mutant(
            "a list is atomic only between two loads of one even change word",
            "seqlock",
            "end_scan",
            "before == after and before % 2 == 0",
            "before == after",
        ),
        ("", "+x", *AGAIN),
    ),
    (
        Mutant(
            "recovery takes its version from the change word, an odd one's as used",
            "writer",
            "TableWriter.resume",
            "min(last, VERSION_MASK) + 1",
            "self.change[0] // 2",
        ),
        ("+y +x", "-x", *SEEN_AFTER_CRASH),
    ),
    (
        Mutant(
            "recovery never zeroes a reach first",
            "writer",
            "TableWriter._repair_reach",
            "for home in np.flatnonzero(",
            "for home in range(len(needed)):\n"
            "        self.reach[home] = 0\n"
            "    for home in np.flatnonzero(",
        ),
        ("+y +x", "x", *CRASH),
    ),
    (
        Mutant(
            "recovery leaves no slot free that a word names",
            "writer",
            "survey",
            "np.frombuffer(taken, np.uint8)",
            "np.zeros(len(taken))",
        ),
        ("+y +x", "x", *CRASH),
    ),
    (
        Mutant(
            "a growth stores the generation before it gives the old table up",
            "writer",
            "TableWriter.follow",
            "self.control.advance(generation)",
            "seqlock.give_up(old.index.words, old.reach, MOVED)\n"
            "    self.control.advance(generation)",
        ),
        ("+x", ">", *LOOK_UP),
    ),
    (
        Mutant(
            "a growth gives the old table up before the next commit",
            "writer",
            "TableWriter.follow",
            "seqlock.give_up(old.index.words, old.reach, MOVED)",
            "pass",
        ),
        ("+x", "> x", *CACHED),
    ),
    (
        Mutant(
            "each entry of a table is given up",
            "seqlock",
            "give_up",
            "range(len(words))",
            "range(3, len(words))",
        ),
        ("+x", "> -x", *CACHED),
    ),
    (
        Mutant(
            "each reach of a table is given up",
            "seqlock",
            "give_up",
            "reach[:] = bytes([GIVEN_UP_REACH]) * len(reach)",
            "pass",
        ),
        ("", "> +x", *LOOK_UP),
    ),
    (
        Mutant(
            "a growth takes each session along at its entry and word",
            "writer",
            "TableWriter.fill",
            "self._words[plan.entries] = plan.words",
            "self._words[plan.entries] = plan.words[::-1]",
        ),
        ("+y +x", ">", *LOOK_UP),
    ),
    (
        Mutant(
            "closing makes the change word odd before it closes the index",
            "ownership",
            "Ownership.destroy",
            "seqlock.end(self.control.change)",
            "pass",
        ),
        ("+x", "", closed_then_list, check_closed, {"warm": list_all}),
    ),
    (
        Mutant(
            "a run is free only after the word that named it is gone",
            "records",
            "RecordWriter._replace_run",
            "start = space.take_instead(length, old)\n"
            "    if start is not None:\n"
            "        self._commit(entry, session.version, start, packed)\n"
            "        space.give_back(old)",
            "space.give_back(old)\n"
            "    start = space.take(length)\n"
            "    if start is not None:\n"
            "        self._commit(entry, session.version, start, packed)",
        ),
        ("+x3", "x3", look_up, check_look_up, {"free": (1, 4)}),
    ),
    (
        Mutant(
            "a run that a record of one slot replaces is free only after its word is gone",
            "records",
            "RecordWriter.replace",
            "self._commit(entry, session.version, space.singles.popleft(), packed)",
            "space.singles.appendleft(old + 1)\n"
            "    self._commit(entry, session.version, space.singles.popleft(), packed)",
        ),
        ("+y +x3", "x", look_up, check_look_up, {"free": (1,)}),
    ),
    (
        Mutant(
            "a record of several slots is copied to its end",
            "seqlock",
            "quick_look_up",
            "stop = start + length",
            "stop = min(start + length, start - SLOT_HEADER_SIZE + slot_size)",
        ),
        ("+x3", "x3", look_up, check_look_up, {"free": (1, 3)}),
    ),
    (
        Mutant(
            "a record of several slots is copied to its end, in a scan",
            "slots",
            "Slots.copy_many",
            "payload = memory[start : start + length]",
            "payload = memory[start : start + min(length, self.slot_size - SLOT_HEADER_SIZE)]",
        ),
        ("+x3", "x3", list_all, check_list, {"free": (1, 3)}),
    ),
    (
        Mutant(
            "the whole of a record is copied before its word is loaded again",
            "seqlock",
            "quick_look_up",
            "payload = memory[start:stop]\n"
            "                    # The load that makes it a conclusion, as in ``read``.\n"
            "                    if words[entry] != word:",
            "half, again = memory[start : start + 64], words[entry]\n"
            "                    # The stepper stops at the lines that load in the original.\n"
            "                    if (payload := half + memory[start + 64 : stop]) and again != word:",
        ),
        ("+x3", "x3 x3", look_up, check_look_up, {"free": (1, 3)}),
    ),
    (
        Mutant(
            "what finds no room but the reserve is written there first",
            "records",
            "RecordWriter._replace_run",
            "self._commit(entry, session.version, reserve, packed)\n"
            "    self._commit(entry, again.version, old, repacked)",
            "self._commit(entry, session.version, old, packed)\n"
            "    self._commit(entry, again.version, reserve, repacked)",
        ),
        ("+y3 +x2", "x2", look_up, check_look_up, {"slots": 9}),
    ),
    (
        Mutant(
            "what was written to the reserve leaves it again",
            "records",
            "RecordWriter._replace_run",
            "self._commit(entry, again.version, old, repacked)\n    space.cut(old, length)",
            "space.give_back(old)",
        ),
        ("+y3 +x2", "x2", look_up, check_look_up, {"slots": 9}),
    ),
    (
        Mutant(
            "a second commit has a version of its own",
            "records",
            "RecordWriter._replace_run",
            "again = replace(session, version=session.version + 1)",
            "again = session",
        ),
        ("+y3 +x2", "x2 y3", headers, check_headers, {"slots": 9}),
    ),
    (
        Mutant(
            "recovery leaves no slot of a run free",
            "writer",
            "survey",
            'taken[slot : slot + run] = b"\\1" * run',
            "taken[slot] = 1",
        ),
        ("+y3 +x2", "x2", look_up, check_look_up, {"slots": 9, "again": "y3"}),
    ),
    (
        Mutant(
            "recovery makes the reserve that a killed writer used",
            "writer",
            "TableWriter._restore_reserve",
            "None if space.has_reserve() else space.take_apart(old)",
            "None",
        ),
        ("+y3 +x2", "x2", look_up, check_look_up, {"slots": 9, "again": "y3"}),
    ),
    (
        Mutant(
            "recovery writes to no slot that a word names",
            "writer",
            "TableWriter._restore_reserve",
            "self._commit(entry, again.version, start, pack_slot(again))",
            "self._commit(entry, again.version, old, pack_slot(again))\n"
            "        self._commit(entry, again.version + 1, start, "
            "pack_slot(replace(again, version=again.version + 1)))",
        ),
        ("+y3 +x2", "x2", look_up, check_look_up, {"slots": 9, "again": "y3"}),
    ),
]


#: Cases that were judged with all rules in force.
_SOUND: list[tuple] = []


def _order_memory(monkeypatch: pytest.MonkeyPatch, *, weak: bool) -> None:
    """Take this machine for one of weak memory order, or for one that is not."""
    monkeypatch.setattr(seqlock, "WEAK", weak)
    monkeypatch.setattr(jidoka_shm.table, "_DOUBT_TRIES", 100 if weak else 0)


def _judge(
    first: str, script: str, read: Callable, check: Callable, options: dict[str, object]
) -> None:
    """Run a case over every interleaving, as the tests of the real functions do."""
    for scenario in _scenarios(first, script, read, check, dict(options)):
        if not isinstance(scenario, (Destruction, Crash, FullCrash)):
            check_end(scenario, first, script)
        check_versions(scenario)
        for outcome in scenario.outcomes():
            check(scenario, outcome)


def _scenarios(
    first: str, script: str, read: Callable, check: Callable, options: dict[str, object]
) -> Iterator[Scenario]:
    if "free" in options:
        yield Long(first, script, options["free"], read)
    elif "again" in options:
        for kept in itertools.count():
            crash = FullCrash(first, script, options["slots"], kept, read, again=options["again"])
            yield crash
            if not crash.is_cut:
                break
    elif "slots" in options:
        yield Full(first, script, options["slots"], read)
    elif options.pop("kill", False):
        for kept in range(len(Scenario(first, script, read, **options).states)):
            yield Crash(first, script, kept, read, **options)
    else:
        kind = Destruction if check is check_closed else Growth if ">" in script else Scenario
        yield kind(first, script, read, **options)


@pytest.mark.parametrize(("mutant", "case"), CASES, ids=[mutant.rule for mutant, _ in CASES])
def test_without_the_rule_an_interleaving_goes_wrong(
    mutant: Mutant, case: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    _order_memory(monkeypatch, weak=False)
    if case not in _SOUND:
        _judge(*case)
        _SOUND.append(case)
    mutant.apply(monkeypatch)
    with pytest.raises(AssertionError):
        _judge(*case)


@pytest.mark.parametrize(
    ("mutant", "case"),
    [(mutant, case) for mutant, case in CASES if "loaded again before" in mutant.rule],
    ids=lambda value: value.rule if isinstance(value, Mutant) else "",
)
def test_verification_alone_tells_a_copy_of_another_record(
    mutant: Mutant, case: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where loads may come early, the second load proves nothing, and crcs and version must."""
    _order_memory(monkeypatch, weak=True)
    mutant.apply(monkeypatch)
    _judge(*case)
