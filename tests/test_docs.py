"""What the documents say is so: the example runs, and each guarantee names tests that exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jidoka_shm import SessionManager

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _tests_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


def test_the_first_block_of_the_readme_is_two_commands() -> None:
    first = re.search(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert first is not None
    assert len(first[1].splitlines()) == 2


def test_the_example_is_the_readmes() -> None:
    (block,) = _blocks(README, "python")
    assert block in (ROOT / "docs" / "example.py").read_text(encoding="utf-8")
    assert len(block.splitlines()) <= 16


def test_the_example_runs() -> None:
    code = (ROOT / "docs" / "example.py").read_text(encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code.replace('"example"', '"example-of-a-test"')],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "terminated" in run.stdout.splitlines()[-1]


def test_the_example_of_asyncio_runs(name: str) -> None:
    (code,) = _blocks((ROOT / "docs" / "asyncio.md").read_text(encoding="utf-8"), "python")
    with SessionManager(name, listen=True) as manager:
        run = subprocess.run(
            [sys.executable, "-W", "error", "-c", code.replace('"agents"', repr(name))],
            capture_output=True,
            text=True,
            check=False,
        )
        manager.unlink()
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.endswith("initializing 1\n")


def test_the_example_of_watching_runs() -> None:
    (code,) = _blocks((ROOT / "docs" / "watching.md").read_text(encoding="utf-8"), "python")
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code.replace('"watched"', '"watched-by-a-test"')],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    lines = run.stdout.splitlines()
    assert lines[0] == "created active"
    # On a machine that is busy the end may be over before the next look.
    assert lines[-1].startswith("removed")


def _rows() -> list[str]:
    tables = re.findall(r"^\|.*\|$", GUARANTEES, re.MULTILINE)
    return [row for row in tables if not row.startswith(("| event", "| ---"))]


@pytest.mark.parametrize("row", _rows())
def test_each_guarantee_names_tests_that_exist(row: str) -> None:
    last = row.strip("|").rpartition("|")[2]
    named = re.findall(r"`(?:(test_\w+\.py)(?:::)?)?(test_\w+)?`", last)
    assert named, "no test holds it"
    path = None
    for file, test in named:
        path = ROOT / "tests" / file if file else path
        assert path is not None
        assert path.exists(), path.name
        assert not test or test in _tests_of(path), test


def test_each_link_of_a_document_leads_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), (document.name, target)


def test_the_readme_leads_to_each_document() -> None:
    linked = set(re.findall(r"^- \[docs/(.+?)\]\(docs/\1\):", README, re.MULTILINE))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")}
