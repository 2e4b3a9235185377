"""Rows that systems do in turn: the way of measuring that most suites share.

Everything is started anew several times; each time a first round finds out how often a row has to
be done and is dropped, and some rounds follow. Within a round each row is done by one system right
after the other, beginning with another one each time, so that a slow moment of the machine meets
all alike and the ratio of two systems is one of neighbours in time.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks import peers
from benchmarks.crew import Failed
from benchmarks.figures import Figure
from benchmarks.worker import QUANTILES, Order

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bench import Bench
    from benchmarks.crew import Member

#: Calls of the first measurement that only finds out how long a row takes.
PROBE: Final = 1
#: From one such measurement to the next.
GROWTH: Final = 8
#: Passes over all ids at most: a row of 50 ns and few sessions would take thousands.
MOST_PASSES: Final = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """What systems do, and are compared by.

    Attributes:
        name: what a report calls it.
        methods: the peer's method; the first that a peer has of several.
        own: the systems of jidoka_shm that do it, each with its method where it is another.
        foreign: the other systems that do it; None for all that have the method.
        keys: which ids, see ``records.Keys``.
        whole: whether it is done once for all sessions, and its figure is that of one of them.
        once: whether it cannot be repeated without preparing it anew.
        count: how often, where that is not found out by its time.
        quantile: of its single calls; None for their mean.
        scale: nanoseconds of its unit.
        unit: of its figure.
    """

    name: str
    methods: tuple[str, ...]
    own: tuple[str, ...] = ("jidoka_shm",)
    foreign: tuple[str, ...] | None = None
    keys: str = "own"
    whole: bool = False
    once: bool = False
    count: int | None = None
    quantile: float | None = None
    scale: float = 1.0
    unit: str = "ns"

    def method_of(self, system: str) -> str | None:
        """Return the method of a system that does the row, or None where none does."""
        chosen = self.own if system in peers.OWN else self.foreign
        if chosen is not None and system not in chosen:
            return None
        cls = peers.load(system)
        return next((method for method in self.methods if hasattr(cls, method)), None)


class Case(NamedTuple):
    """A row of one system."""

    row: Row
    system: str
    method: str

    def order(self, count: int, passes: int) -> Order:
        """Return the order for a measurement."""
        if self.row.quantile is not None:
            return Order("spread", self.method, self.row.keys, count)
        return Order("time", self.method, self.row.keys, count, passes)


class Amount(NamedTuple):
    """How much of a case is one measurement: so many ids, so often."""

    ids: int
    passes: int


def cases_of(rows: Sequence[Row], foreign: Sequence[str]) -> list[list[Case]]:
    """Return the cases of each row, in no order that counts."""
    systems = (*peers.OWN, *foreign)
    return [
        [Case(row, system, method) for system in systems if (method := row.method_of(system))]
        for row in rows
    ]


def steps(rows: Sequence[Row], bench: Bench) -> int:
    """Return how many measurements ``take`` makes in one process of each system."""
    return sum(map(len, cases_of(rows, bench.foreign))) * (1 + bench.effort.rounds)


class Turns:
    """The systems of some rows, one process each, taking turns."""

    def __init__(self, bench: Bench, rows: Sequence[Row], members: dict[str, Member]) -> None:
        self._bench = bench
        self._members = members
        self._cases = cases_of(rows, [name for name in bench.foreign if name in members])
        self._amounts: dict[Case, Amount] = {}
        self.values: dict[Case, list[float]] = {}

    def run(self, first: int) -> None:
        """Do the rounds; the row's first system is another one each time, from ``first`` on."""
        for number in range(1 + self._bench.effort.rounds):
            for cases in self._cases:
                for at in range(len(cases)):
                    case = cases[(at + first + number) % len(cases)]
                    self._measure(case, keep=number > 0)
                    self._bench.advance()

    def _measure(self, case: Case, *, keep: bool) -> None:
        member = self._members.get(case.system)
        if member is None:
            return
        try:
            amount = self._amounts.get(case) or self._find_amount(case, member)
            value = _value(case, member, amount)
        except Failed as error:
            self._bench.drop(case.system, f"{case.row.name}: {error}")
            del self._members[case.system]
            return
        if keep:
            self.values.setdefault(case, []).append(value)

    def _find_amount(self, case: Case, member: Member) -> Amount:
        """Return how often a case fills the time of a measurement.

        Asked for more and more, as the first calls of a process take longer than those that follow.
        """
        sessions, row, limit = self._sessions(case), case.row, self._bench.effort.seconds * 1e9
        if row.whole or row.count is not None:
            amount = Amount(min(row.count or sessions, sessions), 1)
        else:
            most = Amount(sessions, 1 if row.once else MOST_PASSES)
            amount = Amount(min(PROBE, sessions), 1)
            _value(case, member, amount)
            while amount != most:
                # The less of two: one call that had to wait for the processor is no measure.
                cost = min(_value(case, member, amount) for _ in range(2)) * row.scale
                fitting = int(limit / max(cost, 1.0))
                if fitting <= amount.ids * amount.passes * 2:
                    amount = _within(fitting, most)
                    break
                amount = _within(min(fitting, amount.ids * amount.passes * GROWTH), most)
        self._amounts[case] = amount
        return amount

    def _sessions(self, case: Case) -> int:
        sessions = self._members[case.system].sessions
        return min(sessions, peers.load(case.system).largest or sessions)


def _within(calls: int, most: Amount) -> Amount:
    """Return about so many calls as ids, and as passes over all of them."""
    if calls <= most.ids:
        return Amount(max(calls, 1), 1)
    return Amount(most.ids, min(calls // most.ids, most.passes))


def _value(case: Case, member: Member, amount: Amount) -> float:
    values = member.ask(case.order(*amount))
    if case.row.quantile is not None:
        return values[1 + QUANTILES.index(case.row.quantile)] / case.row.scale
    return values[0] / (amount.ids * amount.passes * case.row.scale)


def take(  # noqa: PLR0913 - what, of what, how much of it
    bench: Bench,
    suite: str,
    rows: Sequence[Row],
    *,
    sessions: int,
    processes: int,
    at: float | None = None,
) -> list[Figure]:
    """Measure some rows and return their figures.

    Args:
        bench: the run.
        suite: which suite they belong to.
        rows: what is done.
        sessions: how many each system holds.
        processes: how often all of them are started.
        at: where the figures are on an axis of sessions.
    """
    found: dict[Case, list[list[float]]] = {}
    for process in range(processes):
        systems = {case.system for cases in cases_of(rows, bench.foreign) for case in cases}
        with bench.crew(sorted(systems), sessions) as members:
            turns = Turns(bench, rows, members)
            turns.run(process)
            for case, values in turns.values.items():
                found.setdefault(case, []).append(values)
    return [
        Figure(
            suite=suite,
            row=case.row.name,
            system=case.system,
            unit=case.row.unit,
            values=every,
            axis="" if at is None else "sessions",
            at=at,
        )
        for cases in cases_of(rows, bench.foreign)
        for case in cases
        if (every := found.get(case))
    ]
