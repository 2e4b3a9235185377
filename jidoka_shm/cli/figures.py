"""The demo's figures, and how they are shown."""

from __future__ import annotations

import dataclasses
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a run of the demo counted and measured.

    Attributes:
        seconds: how long readers and writers ran at full speed.
        readers: look-ups a second of each reader, and its times in nanoseconds.
        look_ups: look-ups of all readers.
        look_ups_without_writer: those made while no writer lived.
        commits: changes acknowledged, by both writers.
        retries: reads that met a commit of the same session and looked again.
        overlapped: reads during which something was committed.
        torn: reads that did not prove themselves, or were older than one before.
        acknowledged: sessions whose creation was acknowledged before the kill.
        recovered: sessions that the second writer took over.
        lost: sessions that it found missing, or older than acknowledged.
        problems: what its check of the whole table found.
        careless: whether the protocol was broken on purpose.
    """

    seconds: float
    readers: tuple[dict[str, float], ...]
    look_ups: int
    look_ups_without_writer: int
    commits: int
    retries: int
    overlapped: int
    torn: int
    acknowledged: int
    recovered: int
    lost: int
    problems: tuple[str, ...]
    careless: bool

    @property
    def passed(self) -> bool:
        """Whether nothing was torn or lost, and there was something that could have been."""
        return not (self.torn or self.lost or self.problems) and self.overlapped > 0

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        return {"passed": self.passed, **dataclasses.asdict(self)}


def as_table(figures: Figures) -> None:
    """Print the figures."""
    console = Console()
    table = Table(title="jidoka-shm demo", title_justify="left")
    for title in ("reader", "look-ups/s", "repeated p50", "p99", "fresh p50", "p99"):
        table.add_column(title, justify="right")
    for number, reader in enumerate(figures.readers, start=1):
        times = [
            f"{reader[f'{kind}_p{q}_ns']:,.0f} ns"
            for kind in ("repeated", "fresh")
            for q in (50, 99)
        ]
        table.add_row(str(number), f"{reader['look_ups_per_second']:,.0f}", *times)
    table.add_row("all", f"{figures.look_ups / figures.seconds:,.0f}", end_section=True)
    console.print(table)
    for title, value in (
        ("commits per second", figures.commits / figures.seconds),
        ("commits", figures.commits),
        ("look-ups", figures.look_ups),
        ("of these while no writer lived", figures.look_ups_without_writer),
        ("reads that overlapped a commit", figures.overlapped),
        ("retries", figures.retries),
        ("torn reads", figures.torn),
        ("sessions acknowledged", figures.acknowledged),
        ("sessions recovered", figures.recovered),
        ("sessions lost", figures.lost),
    ):
        console.print(f"{title:>32}  {value:>14,.0f}", highlight=False)
    for problem in figures.problems:
        console.print(f"check: {problem}", highlight=False)
    console.print(_verdict(figures), highlight=False)


def _verdict(figures: Figures) -> str:
    if figures.passed:
        return "No record was torn and none that was acknowledged was lost."
    if not figures.overlapped:
        return "FAILED: no read overlapped a commit, so nothing was put to the test."
    return f"FAILED: {figures.torn} torn, {figures.lost} lost, {len(figures.problems)} problems."
