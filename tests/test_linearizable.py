"""Clients change and readers read at once: for each id some order explains all answers.

What explains a history is in linear.py; what the processes call is in callers.py. Calls and
returns are timed by CLOCK_MONOTONIC, which is one clock for all processes.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import os
import random
import socket
from typing import TYPE_CHECKING
from uuid import UUID

import msgspec
import pytest
from callers import CHANGES, FIGURES, READS, Caller, keys_of
from host import exit_code, forked
from linear import TERMINATED, Operation, Seen, State, steps, unexplained
from msgspec.structs import replace

from jidoka_shm import SessionClient, SessionManager, SessionReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from linear import Answer

CLIENTS, READERS = 3, 2
SEEDS, CALLS, SESSIONS = 50, 2_000, 4

#: Long enough to be seen, short enough for an id to be used many times.
DELAY = 0.001

_encode = msgspec.msgpack.encode
_decode = msgspec.msgpack.Decoder(list[Operation]).decode


# ---------------------------------------------------------------------------- recording


def _serve(name: str, line: socket.socket) -> None:
    """Serve until the other end is closed."""
    with SessionManager(name, listen=True, cleanup_delay=DELAY) as manager:
        line.send(b"u")
        line.recv(1)
        manager.unlink()


def _work(
    caller: Caller, number: int, line: socket.socket, before: Callable[[int], None], file: Path
) -> None:
    """Make the calls of one seed each time the other end says so, then write all down."""
    for seed in range(SEEDS):
        line.send(b"r")
        assert line.recv(1) == b"g"
        chance = random.Random(f"{seed} {number}")
        caller.make_calls(chance, keys_of(seed, SESSIONS), CALLS, before)
    file.write_bytes(_encode(caller.history))


def _wake_in_turns(bells: list[int]) -> Callable[[int], None]:
    """Wake one reader at a call, each at one of three, so that its read meets the change."""

    def before(at: int) -> None:
        if at % 3 < len(bells):
            os.write(bells[at % 3], b"c")

    return before


def _client(name: str, number: int, line: socket.socket, bells: list[int], file: Path) -> None:
    with SessionClient(name) as client:
        _work(Caller(client, number, CHANGES), number, line, _wake_in_turns(bells), file)


def _reader(name: str, number: int, line: socket.socket, bell: int, file: Path) -> None:
    def before(_: int) -> None:
        assert os.read(bell, 1), "the clients have ended"

    with SessionReader(name) as reader:
        _work(Caller(reader, number, READS), number, line, before, file)


class Crew:
    """A service and who calls it, each a process."""

    def __init__(self, name: str, folder: Path) -> None:
        self.files = [folder / str(number) for number in range(CLIENTS + READERS)]
        self._lines: list[socket.socket] = []
        self._pids: list[int] = []
        self._start(lambda line: _serve(name, line))
        assert self._lines[0].recv(1) == b"u"

        bells = [os.pipe() for _ in range(READERS)]
        rings = [ring for _, ring in bells]
        for number, file in enumerate(self.files[:CLIENTS]):
            self._start(lambda line, n=number, f=file: _client(name, n, line, rings, f))
        for ring in rings:
            os.close(ring)
        for number, file in enumerate(self.files[CLIENTS:], CLIENTS):
            bell = bells[number - CLIENTS][0]
            self._start(lambda line, n=number, f=file, b=bell: _reader(name, n, line, b, f))
        for bell, _ in bells:
            os.close(bell)

    def _start(self, work: Callable[[socket.socket], None]) -> None:
        ours, theirs = socket.socketpair()
        self._lines.append(ours)

        def child() -> None:
            # A copy in another child would keep its owner from seeing our end close.
            for line in self._lines:
                line.close()
            work(theirs)

        self._pids.append(forked(child))
        theirs.close()

    def run(self) -> None:
        """Have each seed called by all at once."""
        for _ in range(SEEDS):
            for line in self._lines[1:]:
                assert line.recv(1) == b"r"
            for line in self._lines[1:]:
                line.send(b"g")

    def end(self) -> list[int]:
        """Wait for the callers' ends, then for the service's; return the exit codes."""
        codes = []
        for first in (1, 0):
            # Whoever still waits for a word has nothing to wait for any more.
            for line in self._lines[first:]:
                line.close()
            codes += [exit_code(pid) for pid in self._pids[first:]]
            del self._lines[first:], self._pids[first:]
        return codes


@pytest.fixture(scope="module")
def histories(tmp_path_factory: pytest.TempPathFactory) -> list[list[Operation]]:
    """Return what was recorded, seed by seed."""
    crew = Crew(f"linear-{os.getpid()}", tmp_path_factory.mktemp("calls"))
    with contextlib.ExitStack() as stack:
        codes: list[int] = []
        stack.callback(lambda: codes.extend(crew.end()))
        crew.run()
    assert codes == [0] * (1 + CLIENTS + READERS)
    keys = {key: seed for seed in range(SEEDS) for key in keys_of(seed, SESSIONS)}
    found: list[list[Operation]] = [[] for _ in range(SEEDS)]
    for file in crew.files:
        for call in _decode(file.read_bytes()):
            found[keys[call.key]].append(call)
    return found


def _shown(history: list[Operation], kind: str) -> dict[UUID, list[Operation]]:
    """Return the calls of a kind that showed the session, id by id in the order of their ends."""
    found: dict[UUID, list[Operation]] = {}
    for call in history:
        if call.kind == kind and isinstance(call.answer, Seen):
            found.setdefault(call.key, []).append(call)
    return {key: sorted(found[key], key=lambda call: call.end) for key in found}


def _overlap(history: list[Operation]) -> tuple[int, int]:
    """Return how many reads in the middle of an update showed it already, and not yet."""
    already = not_yet = 0
    updates, reads = _shown(history, "update"), _shown(history, "read")
    for key in updates.keys() & reads.keys():
        ends = [update.end for update in updates[key]]
        for read in reads[key]:
            # A client has one call under way, so no more than these can be.
            first = bisect.bisect(ends, read.end)
            for update in updates[key][first : first + CLIENTS]:
                if update.begin < read.begin:
                    already += read.answer.tag == update.tag
                    not_yet += read.answer.version < update.answer.version
    return already, not_yet


def test_each_seeds_calls_are_explained_by_some_order(histories: list[list[Operation]]) -> None:
    assert len(histories) == SEEDS
    for seed, history in enumerate(histories):
        assert len(history) >= CALLS * (CLIENTS + READERS)
        assert unexplained(history) is None, f"seed {seed}"
    already, not_yet = map(sum, zip(*map(_overlap, histories), strict=True))
    # Else nothing of what is asked here was put to the test.
    assert min(already, not_yet) > SEEDS, (already, not_yet)
    FIGURES.append(
        f"{sum(map(len, histories)):,} calls of {SEEDS} seeds explained; {already:,} reads in the "
        f"middle of an update showed it already, {not_yet:,} not yet"
    )


# ---------------------------------------------------------------------------- recorded and falsified


def _pair(
    history: list[Operation], kind: str, chance: random.Random
) -> tuple[Operation, Operation]:
    """Return calls that showed one session at two versions, one over when the other began."""
    calls = _shown(history, kind)[history[0].key]
    return chance.choice(
        [
            (one, other)
            for one, other in zip(calls, calls[7:], strict=False)
            if one.end < other.begin and one.answer.version < other.answer.version
        ]
    )


def _without(history: list[Operation], *calls: Operation) -> list[Operation]:
    return [call for call in history if not any(call is each for each in calls)]


def _read_at(moment: int, key: UUID, answer: Seen) -> Operation:
    return Operation(key, "read", -1, moment, moment, answer)


def _swapped_updates(history: list[Operation], chance: random.Random) -> list[Operation]:
    one, other = _pair(history, "update", chance)
    swapped = replace(one, answer=other.answer), replace(other, answer=one.answer)
    return [*_without(history, one, other), *swapped]


def _swapped_reads(history: list[Operation], chance: random.Random) -> list[Operation]:
    one, other = _pair(history, "read", chance)
    swapped = replace(one, answer=other.answer), replace(other, answer=one.answer)
    return [*_without(history, one, other), *swapped]


def _stale_read(history: list[Operation], chance: random.Random) -> list[Operation]:
    one, other = _pair(history, "update", chance)
    return [*history, _read_at(other.end + 1, one.key, one.answer)]


def _lost_update(history: list[Operation], chance: random.Random) -> list[Operation]:
    """Return it with an update that was acknowledged, and that the next read does not show."""
    updates = {(call.key, call.tag): call for call in history if call.kind == "update"}
    reads = [
        (updates[read.key, read.answer.tag], read)
        for calls in _shown(history, "read").values()
        for read in calls
        if (read.key, read.answer.tag) in updates
    ]
    one = chance.choice([one for one, read in reads if one.end + 3 < read.begin])
    answer = one.answer._replace(tag=-1, version=one.answer.version + 1)
    return [*history, Operation(one.key, "update", -1, one.end + 1, one.end + 2, answer)]


def _lost_end(history: list[Operation], chance: random.Random) -> list[Operation]:
    """Return it with an end that was acknowledged, of a session that lives on at its version."""
    updates = _shown(history, "update")[history[0].key]
    one = chance.choice([each for each in updates if each.answer.status != TERMINATED])
    read = _read_at(one.end + 3, one.key, one.answer)
    end = Operation(one.key, "terminate", -1, one.end + 1, one.end + 2, "done")
    return [*history, end, read]


def _same_version_twice(history: list[Operation], chance: random.Random) -> list[Operation]:
    """Return it with two updates that both found the version that they expected."""
    found = [c for calls in _shown(history, "update").values() for c in calls if c.expected]
    one = chance.choice(found)
    answer = one.answer._replace(tag=-1, version=one.answer.version + 1)
    return [*history, replace(one, tag=-1, answer=answer)]


def _applied_twice(history: list[Operation], chance: random.Random) -> list[Operation]:
    """Return it with a read of what an update wrote, after another one wrote over it."""
    one, other = _pair(history, "update", chance)
    again = one.answer._replace(version=other.answer.version + 1)
    return [*history, _read_at(other.end + 1, one.key, again)]


def _applied_twice_at_once(history: list[Operation], chance: random.Random) -> list[Operation]:
    """Return it with a read that shows an update at a version after that of its own answer."""
    one, _ = _pair(history, "update", chance)
    again = one.answer._replace(version=one.answer.version + 1)
    return [*history, _read_at(one.end + 1, one.key, again)]


@pytest.mark.parametrize(
    "falsify",
    [
        _swapped_updates,
        _swapped_reads,
        _stale_read,
        _lost_update,
        _lost_end,
        _same_version_twice,
        _applied_twice,
        _applied_twice_at_once,
    ],
)
def test_a_falsified_history_is_explained_by_none(
    falsify: Callable[[list[Operation], random.Random], list[Operation]],
    histories: list[list[Operation]],
) -> None:
    for seed, history in enumerate(histories):
        key = keys_of(seed, SESSIONS)[0]
        calls = [call for call in history if call.key == key]
        assert unexplained(falsify(calls, random.Random(seed))) is not None, f"seed {seed}"


# ---------------------------------------------------------------------------- the checker

KEY, OTHER = UUID(int=1), UUID(int=2)
_NEW = Seen("initializing", 1, 1, None)
_UPDATED = Seen("active", 2, 2, None)


def _call(  # noqa: PLR0913 - one argument a fact
    kind: str,
    begin: int,
    end: int | None,
    answer: Answer,
    *,
    tag: int = 9,
    status: str | None = None,
    expected: int | None = None,
) -> Operation:
    return Operation(KEY, kind, tag, begin, end, answer, status, expected)


_CREATED = _call("create", 0, 1, "done", tag=1)
_ACTIVATED = _call("update", 2, 5, _UPDATED, tag=2, status="active")


@pytest.mark.parametrize(
    ("calls", "is_linear"),
    [
        ([], True),
        ([_call("read", 0, 1, "absent")], True),
        ([_call("read", 0, 1, _NEW)], False),
        ([_CREATED, _call("read", 2, 3, _NEW)], True),
        ([_CREATED, _call("read", 2, 3, "absent")], False),
        ([_CREATED, _call("read", 1, 3, "absent")], True),
        ([_CREATED, _call("create", 2, 3, "done")], False),
        ([_CREATED, _call("create", 2, 3, "exists")], True),
        # In the middle of an update either; and once the new one was seen, it alone.
        ([_CREATED, _ACTIVATED, _call("read", 3, 4, _NEW)], True),
        ([_CREATED, _ACTIVATED, _call("read", 3, 4, _UPDATED)], True),
        ([_CREATED, _ACTIVATED, _call("read", 6, 7, _NEW)], False),
        ([_CREATED, _ACTIVATED, _call("read", 2, 3, _UPDATED), _call("read", 4, 4, _NEW)], False),
        ([_CREATED, _ACTIVATED, _call("read", 2, 3, _NEW), _call("read", 4, 4, _UPDATED)], True),
        # One without an outcome may have taken effect, late too, or not.
        ([_call("create", 0, None, None, tag=1), _call("read", 8, 9, "absent")], True),
        ([_call("create", 0, None, None, tag=1), _call("read", 8, 9, _NEW)], True),
        ([_call("create", 8, None, None, tag=1), _call("read", 6, 7, _NEW)], False),
        (
            [
                _call("create", 0, None, None, tag=1),
                _call("read", 6, 7, _NEW),
                _call("read", 8, 9, "absent"),
            ],
            False,
        ),
        # Versions: what nobody was told is learnt from the first answer that shows it.
        (
            [_CREATED, _call("read", 2, 3, _NEW), _call("read", 4, 5, _NEW._replace(version=2))],
            False,
        ),
        ([_CREATED, _call("update", 2, 3, _UPDATED, tag=2, status="active", expected=1)], True),
        (
            [
                _CREATED,
                _call("update", 2, 3, _UPDATED, tag=2, status="active", expected=1),
                _call("update", 4, 5, "conflict 2", expected=1),
                _call("update", 6, 7, "illegal active", status="initializing"),
            ],
            True,
        ),
        ([_CREATED, _ACTIVATED, _call("update", 6, 7, "conflict 1", expected=1)], False),
        ([_CREATED, _ACTIVATED, _call("update", 6, 7, "conflict 2", expected=2)], False),
        ([_CREATED, _ACTIVATED, _call("update", 6, 7, "illegal active", status="idle")], False),
        # The end, which a list does not show, and the removal, which only goes one way.
        (
            [
                _CREATED,
                _call("terminate", 2, 3, "done", tag=3),
                _call("list", 4, 5, "absent"),
                _call("read", 4, 5, Seen("terminated", 1, 2, 3)),
                _call("update", 6, 7, "absent"),
                _call("status", 8, 9, "terminated"),
                _call("terminate", 10, 11, "absent"),
                _call("create", 12, 13, "done"),
            ],
            True,
        ),
        (
            [
                _CREATED,
                _call("terminate", 2, 3, "done", tag=3),
                _call("status", 4, 5, "absent"),
                _call("status", 6, 7, "terminated"),
            ],
            False,
        ),
        ([_CREATED, _call("status", 4, 5, "absent")], False),
        ([_CREATED, _call("list", 4, 5, "absent")], False),
        ([_CREATED, _call("status", 4, 5, "terminated")], False),
    ],
)
def test_a_history_is_judged(calls: list[Operation], *, is_linear: bool) -> None:
    assert (unexplained(calls) is None) == is_linear
    # Whatever the order in which the processes' histories are put together.
    assert (unexplained(calls[::-1]) is None) == is_linear


def test_each_id_is_judged_by_itself() -> None:
    fine = [_CREATED, _call("read", 2, 3, _NEW)]
    bad = replace(fine[1], key=OTHER)
    assert unexplained(fine) is None
    assert unexplained([*fine, bad]) is bad


def _small_history(chance: random.Random) -> list[Operation]:
    """Return a few calls with answers that may or may not fit together."""
    calls = []
    for tag in range(chance.randint(2, 5)):
        kind = chance.choice(["create", "update", "terminate", "read", "read"])
        begin = chance.randrange(8)
        end = begin + chance.randrange(6)
        which, version = chance.randrange(3), chance.randint(1, 3)
        shown = Seen("initializing", tag if kind == "update" else which, version, None)
        answer = {
            "create": chance.choice(["done", "done", "exists"]),
            "update": chance.choice([shown, shown, "absent"]),
            "terminate": chance.choice(["done", "absent"]),
            "read": chance.choice([shown, shown, "absent"]),
        }[kind]
        if kind != "read" and chance.random() < 0.2:
            end = answer = None
        calls.append(Operation(KEY, kind, tag, begin, end, answer))
    return calls


def _is_explained_by_trying_all(calls: list[Operation]) -> bool:
    """Return whether any order of all that returned, and of some that did not, explains them."""
    returned = [call for call in calls if call.end is not None]
    left = [call for call in calls if call.end is None]
    chosen = itertools.chain.from_iterable(
        itertools.combinations(left, count) for count in range(len(left) + 1)
    )
    return any(
        _follows_time(order) and _fits(order)
        for some in chosen
        for order in itertools.permutations([*returned, *some])
    )


def _follows_time(order: tuple[Operation, ...]) -> bool:
    return not any(
        later.end is not None and later.end < earlier.begin
        for earlier, later in itertools.combinations(order, 2)
    )


def _fits(order: tuple[Operation, ...]) -> bool:
    states = {State()}
    for call in order:
        states = {after for state in states for after in steps(call, state)}
    return bool(states)


def test_the_search_finds_what_trying_all_orders_finds() -> None:
    verdicts = {True: 0, False: 0}
    for seed in range(3_000):
        calls = _small_history(random.Random(seed))
        expected = _is_explained_by_trying_all(calls)
        assert (unexplained(calls) is None) == expected, f"seed {seed}"
        verdicts[expected] += 1
    assert min(verdicts.values()) > 300, verdicts
