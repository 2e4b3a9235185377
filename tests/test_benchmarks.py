"""The benchmarks run with every system that is here, say what they found, and leave nothing."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest
from rich.console import Console

# ruff: noqa: E402 - the folder of the benchmarks comes first
ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:
    # Last, so that the package that is tested is the one that is installed.
    sys.path.append(str(ROOT))

from benchmarks import __main__ as command
from benchmarks import companion, compare, environment, figures, peers, records, tables, turns
from benchmarks.bench import Bench, Effort
from benchmarks.crew import Failed, Member
from benchmarks.figures import Figure, Ratio, Report
from benchmarks.peers.own import Embedded
from benchmarks.suites import SUITES, listing, probes, read, scaling
from benchmarks.suites import write as writes
from benchmarks.worker import QUANTILES, Order

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.table import Table

#: As little as there can be.
TINY = Effort(
    sessions=40,
    sizes=(10, 40),
    processes=1,
    rounds=1,
    seconds=0.0002,
    crowds=1,
    window=0.002,
    changes=100,
    owners=2,
    watched=20,
    watchers=1,
)
ALWAYS = ("dict", "sqlite", "manager")
INSTALLED = [name for name in peers.FOREIGN if peers.why_missing(name) is None]


@pytest.fixture
def folder(name: str) -> Iterator[Path]:
    """A folder in shared memory whose name no other test has."""
    path = command.SHARED_MEMORY / name
    path.mkdir()
    yield path
    for left in sorted(path.rglob("*"), reverse=True):
        left.rmdir() if left.is_dir() else left.unlink()
    path.rmdir()


def _figure(row: str, system: str, *values: list[float], suite: str = "read") -> Figure:
    return Figure(suite=suite, row=row, system=system, unit="ns", values=list(values))


def _report(*found: Figure) -> Report:
    return Report(environment={"cpu": "one"}, options={}, figures=list(found))


def _shown(report: Report, suite: str) -> str:
    return _printed(tables.tables(report, suite))


def _printed(found: Iterable[Table]) -> str:
    console = Console(file=io.StringIO(), width=160)
    for table in found:
        console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ---------------------------------------------------------------------------- all of it


def test_what_is_always_there_is_never_left_out() -> None:
    assert set(ALWAYS) <= set(INSTALLED)


def test_each_system_does_each_row_that_it_has(folder: Path) -> None:
    """In one crew, as starting thirteen systems takes longer than all that they do."""
    report = _report()
    bench = Bench(TINY, folder, report, foreign=INSTALLED, advance=lambda: None)
    rows = [*read.ROWS, *listing.ROWS, *writes.ROWS]
    found = turns.take(bench, "all", rows, sessions=TINY.sessions, processes=1)
    assert report.skipped == {}
    cases = {
        (case.row.name, case.system) for row in turns.cases_of(rows, INSTALLED) for case in row
    }
    assert {(figure.row, figure.system) for figure in found} == cases
    assert {"jidoka_shm", "jidoka_shm service", *ALWAYS} <= {system for _, system in cases}
    for figure in found:
        assert [len(values) for values in figure.values] == [TINY.rounds]
        assert min(figure.flat) > 0


@pytest.mark.parametrize(
    "suite",
    ["service", "scaling", "growth", "sizes", "memory", "start", "watching", "probes", "parts"],
)
def test_each_suite_runs_and_says_what_it_found(
    suite: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling, "_cores", lambda: 1)
    made: list[None] = []
    report = _report()
    bench = Bench(TINY, folder, report, foreign=["sqlite"], advance=lambda: made.append(None))
    # Or the bar would stop before its end, or go on behind it.
    steps = SUITES[suite].steps(bench)
    report.figures += SUITES[suite].run(bench)
    report.ratios += SUITES[suite].ratios
    assert len(made) == steps
    assert report.skipped == {}
    assert report.figures
    shown = _shown(report, suite)
    for figure in report.figures:
        assert figure.suite == suite
        assert figure.system in shown
        assert min(figure.flat) >= 0
    assert {ratio.suite for ratio in report.ratios} <= {suite}


def test_every_ratio_names_rows_that_there_are() -> None:
    named = {"read": read.ROWS, "write": writes.ROWS}
    for suite, rows in named.items():
        names = {row.name for row in rows}
        for ratio in SUITES[suite].ratios:
            assert {ratio.row, ratio.beside_row or ratio.row} <= names


# ---------------------------------------------------------------------------- systems


@pytest.mark.parametrize("name", INSTALLED)
def test_a_system_closes_what_it_made(name: str, folder: Path) -> None:
    place = folder / "place"
    place.mkdir()
    with Member(name, place, 20) as member:
        member.ask(Order("make"))
        member.ask(Order("attach"))
    # The fixtures find what is left elsewhere: processes, names in /dev/shm.
    assert member._process.returncode == 0


#: Those that can do whatever jidoka_shm does, and the rows that only it has.
BOTH = ("dict", "lmdb", "sqlite", "redis", "manager", "ets", "genserver")
OWN_ALONE = {"owner only"}

#: Those whose records Python can list.
LISTED = ("dict", "lmdb", "sqlite", "redis", "manager", "ultradict", "shared-memory-dict")


@pytest.mark.parametrize("name", [name for name in LISTED if name in INSTALLED])
def test_a_system_finds_what_it_changed(name: str, folder: Path) -> None:
    """A peer that did less than the others would look the better for it."""
    place = folder / "place"
    place.mkdir()
    ids = records.make_ids(10)
    peer = peers.load(name)(str(place), ids)
    try:
        peer.make()
        peer.attach()
        before = _statuses(peer)
        peer.update(ids)  # type: ignore[attr-defined]
        after = _statuses(peer)
    finally:
        peer.close()
    assert len(before) == len(after) == len(ids)
    assert set(before) == {"initializing"}
    assert set(after) == {"active"}


def _statuses(peer: object) -> list[str]:
    listed = peer.list_all([])  # type: ignore[attr-defined]
    return [each["status"] if isinstance(each, dict) else each.status for each in listed]


@pytest.mark.parametrize("name", [name for name in BOTH if name in INSTALLED])
def test_a_system_that_could_do_a_row_does_it(name: str) -> None:
    rows = [*read.ROWS, *listing.ROWS, *writes.EMBEDDED]
    optional = {"repeated, equal ids", "by string id"}
    for row in rows:
        if row.foreign is None and row.name not in optional and row.name not in OWN_ALONE:
            assert row.method_of(name), row.name


def test_every_system_looks_up_the_same_ids_in_one_order() -> None:
    first, second = (records.Keys(records.make_ids(50)) for _ in range(2))
    for kind in ("own", "equal", "drawn", "unknown", "text"):
        assert first.of(kind) == second.of(kind)
    assert sorted(first.own) == sorted(records.make_ids(50)) != first.own
    assert first.equal == first.own
    assert not any(one is other for one, other in zip(first.equal, first.own, strict=True))
    assert set(first.unknown).isdisjoint(first.own)


def test_a_package_that_is_not_installed_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.FOREIGN, "none", "no_such_module:Peer")
    assert "no_such_module is not installed" in str(peers.why_missing("none"))
    chosen = command.chosen(["none", "dict"])
    report = command.measure(TINY, ["list"], chosen, Console(file=io.StringIO()))
    assert list(report.skipped) == ["none"]
    assert "none" not in {figure.system for figure in report.figures}


def test_a_system_that_fails_is_left_out_and_the_rest_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where its store would be there is a folder, which no worker can open as a file.
    report = _report()
    bench = Bench(TINY, folder, report, foreign=["dict", "sqlite"], advance=lambda: None)
    place = bench.place

    def broken(system: str) -> Path:
        path = place(system)
        if system == "sqlite":
            (path / "sessions.db").mkdir()
        return path

    monkeypatch.setattr(bench, "place", broken)
    found = SUITES["list"].run(bench)
    assert "unable to open" in report.skipped["sqlite"]
    assert {figure.system for figure in found} == {"jidoka_shm", "dict"}


def test_what_a_reader_keeps_is_what_a_repeated_look_up_finds(folder: Path) -> None:
    """Though another row has changed every session meanwhile."""
    place = folder / "place"
    place.mkdir()
    ids = records.make_ids(10)
    peer = Embedded(str(place), ids)
    try:
        peer.make()
        peer.attach()
        peer.before_update(ids)
        peer.update(ids)
        peer.before_repeated(ids)
        kept = [peer.reader.get_session_info(key) for key in ids]
        assert all(
            peer.reader.get_session_info(key) is was for key, was in zip(ids, kept, strict=True)
        )
        assert peer.reader.stats().cached == len(ids)
        assert {session.status for session in kept} == {"idle"}
    finally:
        peer.close()


def test_without_jidoka_shm_nothing_is_measured(folder: Path) -> None:
    bench = Bench(TINY, folder, _report(), foreign=[], advance=lambda: None)
    with pytest.raises(Failed, match="jidoka_shm: as a test says"):
        bench.drop("jidoka_shm", "as a test says")


def test_a_worker_says_why_it_ended(folder: Path) -> None:
    place = folder / "place"
    with Member("no such system", place, 1) as member, pytest.raises(Failed, match="KeyError"):
        member.ask(Order("make"))


def test_a_worker_writes_until_it_is_told_to_stop(folder: Path) -> None:
    place = folder / "place"
    place.mkdir()
    with Member("dict", place, 20) as member:
        member.ask(Order("make"))
        member.ask(Order("attach"))
        # Both lines are there before it has read the first.
        member._send(msgspec.json.encode(Order("until", "update")) + b"\n")
        made, seconds = member.hear()
        assert made >= 0
        assert seconds > 0
        calls, *quantiles = member.ask(Order("spread", "update", count=100))
    assert calls == 100
    assert len(quantiles) == len(QUANTILES)
    assert quantiles == sorted(quantiles)


# ---------------------------------------------------------------------------- figures


def test_a_ratio_is_that_of_neighbours_in_time() -> None:
    """The machine was half as fast in the second round: the ratio is the same."""
    own = _figure("fresh", "jidoka_shm", [100.0, 200.0], [100.0])
    other = _figure("fresh", "lmdb", [300.0, 600.0], [300.0])
    found = figures.ratio(other, own)
    assert (found.low, found.median, found.high) == (3, 3, 3)
    assert figures.middle(other.flat).spread > 0
    # One slow moment of the other alone moves the ratio of the medians, and not this.
    own = _figure("fresh", "jidoka_shm", [1.0, 10.0, 100.0])
    assert figures.ratio(_figure("fresh", "lmdb", [50.0, 20.0, 300.0]), own).median == 3
    assert figures.ratio(own, _figure("fresh", "zero", [0.0])).median == 0


def test_the_middle_of_some_values() -> None:
    assert figures.middle([1.0, 2.0, 3.0, 4.0, 5.0]) == (2, 3, 4)
    assert figures.middle([7.0]) == (7, 7, 7)
    assert figures.middle([1.0, 2.0, 3.0]).spread == pytest.approx(0.25)


def test_a_table_has_the_ratio_of_each_row_to_jidoka_shm_and_the_goals() -> None:
    report = _report(
        _figure("fresh", "jidoka_shm", [100.0, 110.0]), _figure("fresh", "lmdb", [200.0, 220.0])
    )
    report.ratios = [
        Ratio(suite="read", row="fresh", beside_row="fresh", beside="lmdb", at_most=0.8),
        Ratio(suite="read", row="fresh", beside_row="fresh", beside="lmdb", at_most=0.4),
        Ratio(suite="read", row="fresh", at_least=1.0),
        Ratio(suite="read", row="fresh", beside_row="fresh", beside="never measured"),
    ]
    shown = _shown(report, "read")
    assert re.search(r"lmdb\s+│\s+210 ns │\s+2% │\s+2 │", shown)
    assert re.search(r"0\.5 │\s+0% │\s+at most 0\.8 │\s+met", shown)
    assert re.search(r"0\.5 │\s+0% │\s+at most 0\.4 │\s+missed", shown)
    assert re.search(r"at least 1 │\s+met", shown)
    assert "never measured" not in shown


def test_the_rows_in_which_a_peer_is_ahead_are_named() -> None:
    report = _report(
        _figure("fresh", "jidoka_shm", [100.0, 110.0]),
        _figure("fresh", "lmdb", [200.0, 220.0]),
        _figure("fresh", "ets", [50.0, 55.0]),
        _figure("repeated", "jidoka_shm", [10.0, 10.0]),
        _figure("repeated", "dict", [10.0, 10.0]),
        _figure("miss", "jidoka_shm", [10.0, 10.0, 10.0]),
        _figure("miss", "ets", [8.0, 9.0, 12.0]),
    )
    report.figures += [
        Figure(suite="start", row="attach", system=system, unit="ms", values=[[took]])
        for system, took in (("jidoka_shm", 4.0), ("sqlite", 1.0))
    ]
    shown = _printed([tables.behind_table(report)])
    assert re.search(r"read\s+│ fresh\s+│ ets\s+│\s+0\.5 │\s+0%", shown)
    assert "lmdb" not in shown
    assert re.search(r"start\s+│ attach\s+│ sqlite\s+│\s+0\.25 │", shown)
    assert "repeated" not in shown
    # Faster by the median alone.
    assert "miss" not in shown


def test_a_row_that_is_measured_at_several_places_is_a_table_of_its_own() -> None:
    found = [
        Figure(
            suite="growth",
            row="fresh",
            system=system,
            unit="ns",
            values=[[cost]],
            axis="sessions",
            at=at,
        )
        for at in (100, 1000)
        for system, cost in (("jidoka_shm", 50.0), ("lmdb", 150.0))
    ]
    shown = _shown(_report(*found), "growth")
    assert "100 sessions" in shown
    assert "1,000 sessions" in shown
    assert shown.count("150 (3)") == 2
    assert tables.place("quantile", 0.999) == "p99.9"


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    report = _report(_figure("fresh", "jidoka_shm", [1.5]))
    report.skipped = {"redis": "not here"}
    report.save(tmp_path / "report.json")
    assert figures.load(tmp_path / "report.json") == report


@pytest.mark.parametrize("content", ["", "[]", '{"format": 99, "environment": {}, "options": {}}'])
def test_a_file_that_is_no_report_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"report\.json"):
        figures.load(path)


def test_counts_of_readers_go_to_twice_the_cores() -> None:
    assert scaling.counts(1) == [1, 2]
    assert scaling.counts(2) == [1, 2, 3, 4]
    assert scaling.counts(12) == [1, 2, 4, 8, 16, 24]
    assert scaling.counts(16) == [1, 2, 4, 8, 16, 32]


def test_churn_counts_what_look_ups_load() -> None:
    churn = probes.Churn(200, seed=3)
    for _ in range(200):
        churn.change()
    assert len(churn.ids) == len(set(churn.ids)) == 200
    miss, hit = churn.loads()
    assert 0 < miss < 1
    assert 1 <= hit < 2


def test_the_environment_says_what_it_ran_on() -> None:
    found = environment.describe(["jidoka_shm", *INSTALLED])
    assert {"cpu", "cores", "kernel", "python", "jidoka_shm", "numpy", "SQLite"} <= found.keys()
    assert all(found.values())


# ---------------------------------------------------------------------------- compare


def test_what_changed_by_more_than_it_varies_is_marked() -> None:
    old = _report(
        _figure("fresh", "jidoka_shm", [100.0, 101.0, 102.0]),
        _figure("miss", "jidoka_shm", [50.0, 60.0, 70.0]),
        _figure("fresh", "lmdb", [300.0, 300.0]),
    )
    new = _report(
        _figure("fresh", "jidoka_shm", [50.0, 50.5, 51.0]),
        _figure("miss", "jidoka_shm", [55.0, 65.0, 75.0]),
        _figure("fresh", "lmdb", [330.0, 330.0]),
        _figure("a new row", "jidoka_shm", [1.0]),
    )
    fresh, miss, lmdb = compare.changes(old, new)
    assert fresh.ratio == 0.5
    assert fresh.is_beyond_spread
    assert not miss.is_beyond_spread
    assert not lmdb.is_own
    assert compare.drift([fresh, miss, lmdb]) == pytest.approx(1.1)


def test_two_files_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, cost in (("old", 100.0), ("new", 200.0)):
        report = _report(_figure("fresh", "jidoka_shm", [cost, cost]))
        report.options = {"sessions": cost, "suites": name}
        report.save(tmp_path / f"{name}.json")
    assert command.main(["compare", str(tmp_path / "old.json"), str(tmp_path / "new.json")]) == 0
    said = capsys.readouterr().out
    assert "1 of 1 figures changed" in said
    assert "not the same was measured: sessions 100.0 and 200.0" in said
    assert "more" in said
    assert command.main(["compare", str(tmp_path / "old.json"), str(tmp_path / "no.json")]) == 2
    assert "no.json" in capsys.readouterr().err


# ---------------------------------------------------------------------------- the command


def test_the_command_measures_keeps_and_shows(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    arguments = ["probes", "--quick", "--sessions", "50", "--peers", "", "--json", str(path)]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "a miss loads" in run.stdout
    assert json.loads(path.read_bytes())["options"]["suites"] == "probes"


def test_what_a_suite_found_is_kept_before_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"

    def interrupt(_: Bench) -> list[Figure]:
        raise KeyboardInterrupt

    monkeypatch.setitem(SUITES, "parts", SUITES["parts"]._replace(run=interrupt))
    with pytest.raises(KeyboardInterrupt):
        command.measure(TINY, ["probes", "parts"], {}, Console(file=io.StringIO()), keep=path)
    assert {figure.suite for figure in figures.load(path).figures} == {"probes"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "'nothing' is no suite"),
        (["read", "--peers", "dict,nobody"], "'nobody' is no peer"),
        (["--sessions", "0"], "'0' is no number"),
    ],
)
def test_a_mistake_on_the_command_line_is_said(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command.parse(arguments)
    assert said in capsys.readouterr().err


def test_all_suites_are_run_where_none_is_named() -> None:
    assert command.parse([]).suites == list(SUITES)
    assert command.parse(["write", "read", "write"]).suites == ["write", "read"]


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="matplotlib is not there")
def test_charts_are_drawn_of_a_report(tmp_path: Path) -> None:
    found = [_figure(row, "jidoka_shm", [100.0, 110.0]) for row in ("repeated", "fresh")]
    for row in ("repeated", "fresh", "update", "list, a session"):
        found += _along("growth", row, "sessions", 100, 1000)
    for row in ("reads, quiet", "reads, under a writer"):
        found += _along("scaling", row, "readers", 1, 2)
    found += _along("scaling", "latency, under a writer, 1 reading", "quantile", 0.5, 0.99)
    _report(*found).save(tmp_path / "report.json")
    # In a process of its own, as matplotlib leaves its fonts open.
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks", "show", "report.json", "--plots", "charts"],
        cwd=tmp_path,
        env=companion.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    charts = ("look-ups", "growth", "scaling", "latency")
    names = {f"{chart}.{kind}" for chart in charts for kind in ("svg", "png")}
    assert {path.name for path in (tmp_path / "charts").iterdir()} == names
    for chart in charts:
        assert "jidoka_shm" in (tmp_path / "charts" / f"{chart}.svg").read_text(encoding="utf-8")


def _along(suite: str, row: str, axis: str, *places: float) -> list[Figure]:
    return [
        Figure(suite=suite, row=row, system=system, unit="ns", values=[[cost]], axis=axis, at=place)
        for place in places
        for system, cost in (("jidoka_shm", 100.0), ("jidoka_shm, no cache", 150.0), ("lmdb", 90.0))
    ]


def test_charts_need_what_draws_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with contextlib.suppress(SystemExit):
        command.parse(["--plots", "somewhere"])
    assert "need matplotlib" in capsys.readouterr().err


# ---------------------------------------------------------------------------- the run that is kept

RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"

#: Each row of README's table: of which suite, which row, beside which row of which system.
README_ROWS = [
    ("read", "repeated", "repeated", "dict"),
    ("read", "repeated, equal ids", "repeated, equal ids", "dict"),
    ("read", "repeated", "repeated", "ets"),
    ("read", "fresh", "fresh", "lmdb"),
    ("read", "status only", "status only", "lmdb"),
    ("read", "miss", "miss", "lmdb"),
    ("list", "list, after a change", "list, after a change", "ets"),
    ("write", "create", "create", "lmdb"),
    ("write", "update", "update", "lmdb"),
]


@pytest.fixture(scope="module")
def kept() -> Report:
    return figures.load(RESULTS / "full.json")


def _value(report: Report, suite: str, row: str, beside_row: str, beside: str) -> str:
    goal = Ratio(suite=suite, row=row, beside_row=beside_row, beside=beside)
    found = tables.value_of(report, goal)
    assert found is not None
    return f"{found.median:.2g}"


def _words(text: str) -> Counter[str]:
    return Counter(re.sub("[\u2500-\u257f]", " ", text).split())


def test_the_run_that_is_kept_is_of_all_suites_and_peers(kept: Report) -> None:
    assert kept.options["suites"] == " ".join(SUITES)
    assert {figure.system for figure in kept.figures} >= set(peers.FOREIGN) - {"echo"}
    assert kept.skipped == {}


def test_the_tables_that_are_kept_are_those_of_the_run(kept: Report) -> None:
    console = Console(file=io.StringIO(), width=tables.WIDTH)
    command.show(kept, console, None)
    assert isinstance(console.file, io.StringIO)
    text = (RESULTS / "full.txt").read_text(encoding="utf-8")
    # Not how they are drawn, which is the library's and may change.
    assert _words(text.partition("drawn: ")[0]) == _words(console.file.getvalue())


def test_the_ratios_of_the_readme_are_those_of_the_run(kept: Report) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, after = text.partition("| call | beside | ratio")
    lines = [line for line in after.partition("\n\n")[0].splitlines()[2:] if line]
    given = [line.rsplit("|", 2)[1].strip() for line in lines]
    assert given == [_value(kept, *row) for row in README_ROWS]


def test_the_page_has_each_goal_and_what_the_run_found(kept: Report) -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    _, _, after = text.partition("| figure | beside | goal | found |")
    rows = [line.split("|")[1:-1] for line in after.partition("\n\n")[0].splitlines()[2:]]
    given = {(row[0].strip(), row[2].strip(), row[3].strip(), row[5].strip()) for row in rows}
    wanted = set()
    for goal in kept.ratios:
        found = tables.value_of(kept, goal)
        assert found is not None
        is_met = goal.is_met(found.median)
        if is_met is not None:
            limit = f"at most {goal.at_most:g}" if goal.at_most else f"at least {goal.at_least:g}"
            system = "" if goal.system == "jidoka_shm" else f" ({goal.system})"
            says = "met" if is_met else "missed"
            wanted.add((goal.row + system, limit, tables.number(found.median), says))
    assert given == wanted


def test_the_page_names_each_row_in_which_a_peer_is_ahead(kept: Report) -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    _, _, after = text.partition("## Where a peer is ahead")
    named = set(re.findall(r"^\| ([^|]+) \| `([^`|]+)` \| ([^|]+) \|", after, re.MULTILINE))
    table = tables.behind_table(kept)
    _, rows, systems, ratios, _ = (list(column.cells) for column in table.columns)
    assert named == set(zip(rows, systems, ratios, strict=True))


def test_each_chart_is_shown_and_each_that_is_shown_is_there() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"\]\(images/([^)]+)\)", page))
    drawn = {path.name for path in IMAGES.iterdir()}
    names = {name.partition(".")[0] for name in drawn}
    assert drawn == {f"{name}.{kind}" for name in names for kind in ("svg", "png")}
    assert shown == {f"{name}.svg" for name in names}
    assert "](docs/images/look-ups.svg)" in (ROOT / "README.md").read_text(encoding="utf-8")
