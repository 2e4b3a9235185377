"""What the command prints: JSON, tables and pairs, none of which a terminal can be made to obey.

Text from a registry is a stranger's. Each character that is not printable (the escape character
of terminal sequences, line ends, marks that turn the direction of text) is shown as JSON writes
it, and none of the text is read as rich's markup.
"""

from __future__ import annotations

import codecs
import json
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jidoka_shm.errors import CorruptRegistry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

#: What stands for a value that is not there.
NOTHING = "-"

#: Columns between two of a table on a terminal.
_GAP = 2

#: Columns that the last column of a table on a terminal has at least.
_LAST_WIDTH = 12


def escape(text: str) -> str:
    """Return ``text`` with each character that is not printable as JSON writes it."""
    if text.isprintable() and (text.isascii() or _takes_unicode()):
        return text
    return "".join(map(_escape_letter, text))


def _escape_letter(letter: str) -> str:
    shown = letter.isprintable() and (letter.isascii() or _takes_unicode())
    return letter if shown else json.dumps(letter)[1:-1]


def _takes_unicode() -> bool:
    """Return whether standard output takes all printable characters."""
    name = getattr(sys.stdout, "encoding", None) or "ascii"
    return codecs.lookup(name).name.startswith("utf-")


def _dumps(value: object, **options: Any) -> str:  # noqa: ANN401 - what json.dumps takes
    """Return ``value`` as JSON.

    Raises:
        CorruptRegistry: where a record holds what no writer lets into one.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except (TypeError, ValueError, RecursionError) as error:
        reason = f"a record holds what is no JSON ({error})"
        raise CorruptRegistry(reason) from None


def to_text(value: object) -> str:
    """Return a value in one line: text as it is, nothing as ``-``, maps and lists as JSON."""
    if value is None or isinstance(value, str):
        return NOTHING if value is None else escape(value)
    return escape(_dumps(value, ensure_ascii=False))


def to_pretty_json(value: object) -> str:
    """Return ``value`` as JSON of many lines, for people."""
    lines = _dumps(value, indent=2, ensure_ascii=False).split("\n")
    return "\n".join(map(escape, lines))


def print_json(value: object) -> None:
    """Print ``value`` as JSON in ASCII, for programs."""
    click.echo(_dumps(value, indent=2))


def print_json_line(value: object) -> None:
    """Print ``value`` as JSON in ASCII in one line, at once."""
    click.echo(_dumps(value))


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values, a line each."""
    texts = [(name, to_text(value)) for name, value in pairs]
    width = max(len(name) for name, _ in texts)
    click.echo("\n".join(f"{name:<{width}}  {text}" for name, text in texts))


def print_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: on a terminal aligned, the last column cut to fit; else all of it, with tabs.

    Args:
        titles: the columns' titles.
        rows: the values of each row.
    """
    cells = [[to_text(value) for value in row] for row in rows]
    if _is_terminal():
        widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
        _print_aligned(widths, cells, titles)
    else:
        click.echo("\n".join("\t".join(row) for row in [titles, *cells]))


def print_line(values: Iterable[object], widths: Sequence[int]) -> None:
    """Print one line of a table whose other lines are not known yet, at once.

    Args:
        values: those of each column.
        widths: what each column but the last has at least, on a terminal.
    """
    cells = [to_text(value) for value in values]
    if _is_terminal():
        lengths = map(len, cells)
        _print_aligned(list(map(max, lengths, [*widths, 0])), [cells])
    else:
        click.echo("\t".join(cells))


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _print_aligned(
    columns: list[int], rows: list[list[str]], titles: Sequence[str] | None = None
) -> None:
    *widths, last = columns
    # All columns but the last are whole, if need be in lines that are longer than the terminal's.
    before = sum(widths) + _GAP * len(widths)
    last = min(last, max(_LAST_WIDTH, Console().width - before))
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, show_header=bool(titles))
    for title, width in zip(titles or [""] * len(columns), [*widths, last], strict=True):
        table.add_column(title, width=width, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*map(Text, row))
    # With a height: without one rich takes a dumb terminal for 80 columns, whatever it is told.
    console = Console(
        width=before + last, height=len(rows) + 1, markup=False, emoji=False, highlight=False
    )
    console.print(table, crop=False)
