"""``python -m benchmarks``: measure, show, keep and draw; and compare two runs."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks import compare, environment, peers
from benchmarks.bench import FULL, QUICK, Bench
from benchmarks.crew import Failed
from benchmarks.figures import Report, load
from benchmarks.suites import SUITES
from benchmarks.tables import behind_table, make_console, tables

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.bench import Effort

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - where shared memory is, as POSIX has it


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if given[:1] == ["compare"]:
        return compare.main(given[1:])
    if given[:1] == ["show"]:
        return show_file(given[1:])
    options = parse(given)
    console = make_console()
    try:
        report = measure(
            effort_of(options), options.suites, chosen(options.peers), console, keep=options.json
        )
    except Failed as error:
        Console(stderr=True).print(f"benchmarks: {error}", markup=False)
        return 1
    except KeyboardInterrupt:
        # The workers have been interrupted as well, and have put away what they held.
        return 130
    show(report, console, options.plots)
    return 0


def show_file(arguments: Sequence[str]) -> int:
    """Show a report that was kept and return the exit status: 2 where it cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks show")
    parser.add_argument("file", type=Path)
    _add_plots(parser)
    options = parser.parse_args(arguments)
    try:
        report = load(options.file)
    except (OSError, ValueError) as error:
        Console(stderr=True).print(f"benchmarks: {error}", markup=False)
        return 2
    show(report, make_console(), options.plots)
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=_DESCRIPTION)
    parser.add_argument(
        "suites", nargs="*", type=_suite, metavar="SUITE", help=f"of {', '.join(SUITES)}; all"
    )
    parser.add_argument(
        "--peers", type=_peers, help=f"of {','.join(peers.FOREIGN)}; all that are installed"
    )
    parser.add_argument("--quick", action="store_true", help="less of everything: two minutes")
    parser.add_argument("--sessions", type=_positive, help="sessions that each system holds")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep the report there, after each suite"
    )
    _add_plots(parser)
    options = parser.parse_args(arguments)
    options.suites = list(dict.fromkeys(options.suites)) or list(SUITES)
    return options


_DESCRIPTION: Final = """
What jidoka_shm costs, beside what a program would use otherwise.
`python -m benchmarks show FILE.json` shows a report that was kept,
`python -m benchmarks compare OLD.json NEW.json` compares two.
"""


def _add_plots(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plots", type=_drawable, metavar="DIR", help="draw charts into it")


def _drawable(text: str) -> Path:
    # Before anything is measured for it.
    if not importlib.util.find_spec("matplotlib"):
        msg = "charts need matplotlib, which the extra `bench` has"
        raise argparse.ArgumentTypeError(msg)
    return Path(text)


def _suite(text: str) -> str:
    if text not in SUITES:
        msg = f"{text!r} is no suite: there are {', '.join(SUITES)}"
        raise argparse.ArgumentTypeError(msg)
    return text


def _peers(text: str) -> list[str]:
    names = text.split(",") if text else []
    for name in names:
        if name not in peers.FOREIGN:
            msg = f"{name!r} is no peer: there are {', '.join(peers.FOREIGN)}"
            raise argparse.ArgumentTypeError(msg)
    return names


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        msg = f"{text!r} is no number of sessions"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def effort_of(options: argparse.Namespace) -> Effort:
    """Return how much is measured."""
    effort = QUICK if options.quick else FULL
    if options.sessions is None:
        return effort
    return dataclasses.replace(effort, sessions=options.sessions)


def chosen(names: list[str] | None) -> dict[str, str | None]:
    """Return the peers that were asked for, or all, each with why it cannot be measured."""
    wanted = peers.FOREIGN if names is None else names
    return {name: peers.why_missing(name) for name in wanted}


def measure(
    effort: Effort,
    suites: Sequence[str],
    foreign: dict[str, str | None],
    console: Console,
    *,
    keep: Path | None = None,
) -> Report:
    """Run suites and return what they found.

    Args:
        effort: how much is measured.
        suites: their names.
        foreign: the peers, each with why it cannot be measured, or None.
        console: where a bar shows how far it is.
        keep: the file that gets what was found, after each suite.
    """
    skipped = {name: reason for name, reason in foreign.items() if reason is not None}
    installed = [name for name, reason in foreign.items() if reason is None]
    report = Report(
        environment=environment.describe(["jidoka_shm", *installed]),
        options={
            "sessions": effort.sessions,
            "processes": effort.processes,
            "rounds": effort.rounds,
            "seconds": effort.seconds,
            "suites": "",
        },
        skipped=skipped,
    )
    folder = Path(tempfile.mkdtemp(prefix="jidoka-", dir=SHARED_MEMORY))
    try:
        with _bar(console) as progress:
            for name in suites:
                task = progress.add_task(name)
                bench = Bench(
                    effort,
                    folder,
                    report,
                    foreign=[peer for peer in installed if peer not in report.skipped],
                    advance=lambda task=task: progress.advance(task),  # type: ignore[misc]
                )
                progress.update(task, total=SUITES[name].steps(bench))
                report.figures += SUITES[name].run(bench)
                report.ratios += SUITES[name].ratios
                report.options["suites"] = f"{report.options['suites']} {name}".lstrip()
                # Now, for what half an hour found must not be lost to an interrupt.
                if keep is not None:
                    report.save(keep)
    finally:
        shutil.rmtree(folder)
    return report


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def show(report: Report, console: Console, plots: Path | None) -> None:
    """Print a report, and draw its charts where there is a folder for them."""
    said = ", ".join(f"{key} {value}" for key, value in report.environment.items())
    console.print(said, markup=False, highlight=False)
    for system, reason in report.skipped.items():
        console.print(f"left out: {system}: {reason}", markup=False, highlight=False)
    for suite in dict.fromkeys(figure.suite for figure in report.figures):
        for table in tables(report, suite):
            console.print()
            console.print(table)
    behind = behind_table(report)
    if behind.row_count:
        console.print()
        console.print(behind)
    if plots is not None:
        # Not before it is asked for: it needs a package that the rest does not.
        from benchmarks.plots import draw  # noqa: PLC0415 - as said

        for path in draw(report, plots):
            console.print(f"drawn: {path}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
