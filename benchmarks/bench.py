"""A run: how much is measured, which systems there are, where their stores are, what was found."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks import peers
from benchmarks.crew import Failed, Member
from benchmarks.worker import Order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from benchmarks.figures import Report


@dataclasses.dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes:
        sessions: how many, where a suite does not say.
        sizes: how many, one after the other, for what grows.
        processes: how often everything is started anew and measured again.
        rounds: how often each row is measured in each of them, after one that is dropped.
        seconds: about how long one measurement takes.
        crowds: the same, where that takes long: many readers, many sessions.
        window: how long these read, in seconds.
        changes: of a full table, for the words that a look-up loads.
        owners: how many die.
        watched: sessions that are watched.
        watchers: of a writer at full speed.
    """

    sessions: int = 10_000
    sizes: tuple[int, ...] = (100, 1_000, 10_000, 100_000, 1_000_000)
    processes: int = 5
    rounds: int = 5
    seconds: float = 0.1
    crowds: int = 3
    window: float = 0.25
    changes: int = 10_000_000
    owners: int = 50
    watched: int = 100_000
    watchers: int = 8


FULL: Final = Effort()
QUICK: Final = Effort(
    sessions=1_000,
    sizes=(100, 1_000, 10_000),
    processes=2,
    rounds=3,
    seconds=0.005,
    crowds=1,
    window=0.03,
    changes=20_000,
    owners=10,
    watched=10_000,
    watchers=2,
)


class Bench:
    """What the suites of one run share."""

    def __init__(
        self,
        effort: Effort,
        folder: Path,
        report: Report,
        *,
        foreign: Sequence[str],
        advance: Callable[[], object],
    ) -> None:
        """Begin a run.

        Args:
            effort: how much is measured.
            folder: where the stores are, in /dev/shm.
            report: what is found goes here.
            foreign: the systems beside those of jidoka_shm, each one installed.
            advance: called after each measurement.
        """
        self.effort = effort
        self.report = report
        self.foreign = foreign
        self.advance = advance
        self._folder = folder

    def place(self, system: str) -> Path:
        """Return a new, empty folder, whose name may be part of a registry's name."""
        prefix = re.sub("[^a-z0-9]+", "_", system)
        return Path(tempfile.mkdtemp(prefix=f"{prefix}-", dir=self._folder))

    def drop(self, system: str, reason: str) -> None:
        """Leave a system out from now on, and say why.

        Raises:
            Failed: where it is one of jidoka_shm's own, which nothing is measured without.
        """
        if system in peers.OWN:
            msg = f"{system}: {reason}"
            raise Failed(msg)
        self.foreign = [name for name in self.foreign if name != system]
        self.report.skipped[system] = reason

    @contextlib.contextmanager
    def crew(self, systems: Iterable[str], sessions: int) -> Iterator[dict[str, Member]]:
        """Start a worker of each system, with its store made and attached to."""
        with contextlib.ExitStack() as stack:
            started = {
                system: stack.enter_context(Member(system, self.place(system), sessions))
                for system in systems
            }
            for order in ("make", "attach"):
                for system in self._all_do(started, Order(order)):
                    started.pop(system)
            yield started

    def _all_do(self, members: dict[str, Member], order: Order) -> list[str]:
        """Have all do something at once; return those that could not."""
        failed: dict[str, str] = {}
        for system, member in members.items():
            try:
                member.tell(order)
            except Failed as error:
                failed[system] = str(error)
        for system in members.keys() - failed.keys():
            try:
                members[system].hear()
            except Failed as error:
                failed[system] = str(error)
        for system, reason in failed.items():
            self.drop(system, reason)
        return list(failed)
