"""Charts of a report, as SVG and PNG, to be read in black and white: markers, lines and hatches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas

from benchmarks.figures import OWN, Figure, middle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from benchmarks.figures import Report

#: Each system's line, by its place in the chart: no two that are near are alike without colour.
STYLES: Final = (
    {"color": "black", "marker": "o", "linestyle": "-", "linewidth": 2.0},
    {"color": "black", "marker": "o", "linestyle": "--", "markerfacecolor": "white"},
    {"color": "tab:blue", "marker": "s", "linestyle": "-"},
    {"color": "tab:orange", "marker": "^", "linestyle": "--"},
    {"color": "tab:green", "marker": "D", "linestyle": "-."},
    {"color": "tab:red", "marker": "v", "linestyle": ":"},
    {"color": "tab:purple", "marker": "x", "linestyle": "-"},
)
#: The text of an SVG stays text, and two drawings of one report are the same bytes.
SETTINGS: Final = {"svg.fonttype": "none", "svg.hashsalt": "jidoka_shm", "font.size": 10}
GROWTH: Final = ("repeated", "fresh", "update", "list, a session")
WRITTEN: Final = "latency, under a writer, 1 reading"
#: Look-ups in a chart by system: the row, and how its bars look.
LOOK_UPS: Final = {
    "repeated": {"facecolor": "black"},
    "fresh": {"facecolor": "white", "hatch": "////"},
}


def draw(report: Report, folder: Path) -> Iterator[Path]:
    """Draw what a report has figures for, and yield the path of each file."""
    folder.mkdir(parents=True, exist_ok=True)
    charts: dict[str, Callable[[Report], Canvas | None]] = {
        "look-ups": look_ups,
        "growth": growth,
        "scaling": scaling,
        "latency": latency,
    }
    with mpl.rc_context(SETTINGS):
        for name, make in charts.items():
            canvas = make(report)
            if canvas is None:
                continue
            for kind in ("svg", "png"):
                path = folder / f"{name}.{kind}"
                metadata = {"Date": None} if kind == "svg" else {"Software": None}
                canvas.savefig(path, dpi=120, metadata=metadata)
                yield path


def look_ups(report: Report) -> Canvas | None:
    """Draw what a look-up costs by each system, least first."""
    found: dict[str, dict[str, Figure]] = {}
    for figure in report.figures:
        if figure.suite == "read" and figure.row in LOOK_UPS:
            found.setdefault(figure.system, {})[figure.row] = figure
    if not found:
        return None
    systems = sorted(found, key=lambda system: _least(found[system]), reverse=True)
    canvas, axes = _canvas(1, 1, height=1.2 + 0.45 * len(systems))
    height = 0.8 / len(LOOK_UPS)
    for number, (row, look) in enumerate(LOOK_UPS.items()):
        places = [at for at, system in enumerate(systems) if row in found[system]]
        middles = [middle(found[systems[at]][row].flat) for at in places]
        axes[0].barh(
            [at + (0.5 - number) * height for at in places],
            [each.median for each in middles],
            height,
            xerr=[
                [each.median - each.low for each in middles],
                [each.high - each.median for each in middles],
            ],
            label=row,
            edgecolor="black",
            error_kw={"ecolor": "gray", "capsize": 2},
            **look,
        )
    axes[0].set_yticks(range(len(systems)), systems)
    axes[0].set_xscale("log")
    axes[0].set_xlabel("nanoseconds a look-up (log scale; lines: quartiles)")
    axes[0].set_title("A look-up, by system")
    axes[0].legend(loc="upper right")
    axes[0].grid(axis="x", alpha=0.4)
    axes[0].set_axisbelow(True)
    return canvas


def _least(rows: dict[str, Figure]) -> float:
    return min(middle(figure.flat).median for figure in rows.values())


def growth(report: Report) -> Canvas | None:
    """Draw what calls cost as sessions grow more."""
    panels = [_of(report, "growth", row) for row in GROWTH]
    if not all(panels):
        return None
    canvas, axes = _canvas(2, 2, height=7)
    for row, panel, ax in zip(GROWTH, panels, axes, strict=True):
        _lines(ax, panel)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_title(row)
        ax.set_xlabel("sessions")
        ax.set_ylabel("nanoseconds")
    _legend(canvas, axes[0])
    return canvas


def scaling(report: Report) -> Canvas | None:
    """Draw reads a second by the number of reader processes, quiet and under a writer."""
    rows = ("reads, quiet", "reads, under a writer")
    panels = [_of(report, "scaling", row) for row in rows]
    if not all(panels):
        return None
    canvas, axes = _canvas(1, 2, height=4.5)
    for row, panel, ax in zip(rows, panels, axes, strict=True):
        _lines(ax, panel)
        ax.set_yscale("log")
        ax.set_title(row)
        ax.set_xlabel("reader processes")
        ax.set_ylabel("reads a second, all together")
        ax.set_xticks(sorted({figure.at or 0 for figure in panel}))
    low = min(ax.get_ylim()[0] for ax in axes)
    high = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(low, high)
    _legend(canvas, axes[0])
    return canvas


def latency(report: Report) -> Canvas | None:
    """Draw how many of the reads beside a writer at full speed took how long."""
    panel = [figure for figure in _of(report, "scaling", WRITTEN) if (figure.at or 0) < 1]
    if not panel:
        return None
    canvas, axes = _canvas(1, 1, height=4.5)
    _lines(axes[0], panel, place=lambda at: 1 - at)
    places = sorted({figure.at or 0 for figure in panel})
    axes[0].set_xscale("log")
    axes[0].invert_xaxis()
    axes[0].set_yscale("log")
    axes[0].set_xticks([1 - at for at in places], [f"p{100 * at:g}" for at in places])
    axes[0].minorticks_off()
    axes[0].set_xlabel("percentile of the reads")
    axes[0].set_ylabel("nanoseconds, at most (log scale)")
    axes[0].set_title("A read beside a writer at full speed")
    _legend(canvas, axes[0])
    return canvas


def _legend(canvas: Canvas, ax: Any) -> None:  # noqa: ANN401 - see _lines
    """Say below the panels what each line is, so that none is covered."""
    canvas.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4)


def _canvas(rows: int, columns: int, *, height: float) -> tuple[Canvas, list[Any]]:
    canvas = Canvas(figsize=(5.0 * columns if columns > 1 else 8.0, height), layout="constrained")
    axes = canvas.subplots(rows, columns, squeeze=False)
    return canvas, list(axes.flat)


def _of(report: Report, suite: str, row: str) -> list[Figure]:
    return [figure for figure in report.figures if (figure.suite, figure.row) == (suite, row)]


def _lines(
    ax: Any,  # noqa: ANN401 - an Axes, which is typed only where matplotlib is installed
    figures: list[Figure],
    place: Callable[[float], float] = float,
) -> None:
    """Draw a line for each system, jidoka_shm's first and in black."""
    systems = sorted(
        dict.fromkeys(figure.system for figure in figures),
        key=lambda system: not system.startswith(OWN),
    )
    foreign = iter(STYLES[2:])
    own = iter(STYLES[:2])
    for system in systems:
        style = next(own) if system.startswith(OWN) else next(foreign)
        line = sorted(
            (figure.at or 0.0, middle(figure.flat).median)
            for figure in figures
            if figure.system == system
        )
        ax.plot([place(at) for at, _ in line], [value for _, value in line], label=system, **style)
    ax.grid(alpha=0.4)
