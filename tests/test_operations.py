"""docs/operations.md: its unit is one that systemd takes, and its table has each line of the log."""

from __future__ import annotations

import ast
import configparser
import re
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from supervised import PACKAGES, ROOT

from jidoka_shm.cli.serve import serve

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
(UNIT,) = re.findall(r"(?ms)^```ini\n(.*?)^```", PAGE)


def _sections() -> configparser.ConfigParser:
    # Strict: nothing stands there twice.
    unit = configparser.ConfigParser(interpolation=None, delimiters=["="])
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(UNIT)
    return unit


def test_the_unit_runs_the_command_with_options_that_it_has() -> None:
    service = _sections()["Service"]
    path, name, *words = shlex.split(service["ExecStart"])
    assert (path.rpartition("/")[2], name) == ("jidoka-shm", "serve")
    given = serve.make_context("serve", [word.replace("%i", "agents") for word in words]).params
    assert given["name"] == "agents"
    # A restart must keep the sessions, and not run into the limit of starts.
    assert not given["fresh"]
    assert given["wait"] >= float(service["RestartSec"])


def test_the_unit_leaves_the_shared_memory_alone() -> None:
    service = _sections()["Service"]
    assert (service["Type"], service["RemoveIPC"]) == ("notify", "no")
    assert "DynamicUser" not in service
    directory = service["RuntimeDirectory"]
    assert directory == "jidoka_shm"
    # A directory of the user's own; /run is not, and would be passed over for one in /tmp.
    assert service["Environment"] == f"XDG_RUNTIME_DIR=%t/{directory}"
    assert (service["RuntimeDirectoryMode"], service["RuntimeDirectoryPreserve"]) == ("0700", "yes")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "jidoka-shm@.service"
    # It looks whether program and user exist.
    unit.write_text(UNIT.replace("/opt/app/bin/jidoka-shm", "/bin/true").replace("=app", "=root"))
    run = subprocess.run(
        ["systemd-analyze", "verify", str(unit)],  # noqa: S607 - wherever it is installed
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")


# ---------------------------------------------------------------------------- the log

LEVELS = {"debug", "info", "warning", "error", "exception", "critical"}


def _lines_of(path: Path) -> Iterator[tuple[str, str, ast.Call]]:
    """Yield level and format of each line that a module logs, and the call."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        texts: dict[str, str] = {}
        nodes = [node for node in ast.walk(function) if isinstance(node, ast.Assign | ast.Call)]
        for node in sorted(nodes, key=lambda node: node.lineno):
            if isinstance(node, ast.Assign):
                texts[ast.unparse(node.targets[0])] = ast.unparse(node.value)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                logger, level = ast.unparse(node.func.value), node.func.attr
                if logger.rpartition(".")[2] in {"log", "seldom"} and level in LEVELS:
                    text = ast.unparse(node.args[0])
                    yield level, str(ast.literal_eval(texts.get(text, text))), node


def _lines() -> list[tuple[str, str, ast.Call]]:
    package = PACKAGES / "jidoka_shm"
    # The module that gives others' warnings on has none of its own.
    paths = [path for path in package.rglob("*.py") if path != package / "logs.py"]
    return [line for path in paths for line in _lines_of(path)]


def _logged() -> set[tuple[str, str]]:
    levels = {"exception": "error"}
    return {(levels.get(level, level), text) for level, text, _ in _lines()}


def _described() -> set[tuple[str, str]]:
    rows = re.findall(r"(?m)^\| (\w+) \| `([^`]+)` \| (.+) \|$", PAGE)
    assert all(advice for *_, advice in rows)
    # Signals of the kernel and names of columns are words in capitals, too.
    return {(level, re.sub(r"\b[A-Z]+\b", "%", line)) for level, line, _ in rows}


def test_the_page_has_each_line_of_the_log() -> None:
    logged = {(level, re.sub(r"%[a-z]", "%", text)) for level, text in _logged()}
    assert len(logged) > 10
    assert _described() == logged


def test_each_line_has_fields_for_programs() -> None:
    without = {
        text
        for _, text, call in _lines()
        # A seldom line has the registry's name of itself.
        if not ast.unparse(call.func).startswith(("self.seldom", "self._server.seldom", "seldom"))
        and "extra" not in {keyword.arg for keyword in call.keywords}
    }
    # They are of the command and not of a registry: what ended it, and what it cannot tell.
    assert without == {"%s", "the service manager at %r cannot be told: %s"}


def test_the_page_has_each_field_of_the_log() -> None:
    (names,) = re.findall(r"(?s)The fields of a line: (.+?)\.\n\n", PAGE)
    given: set[str] = {"registry", "kept_back"}
    for path in (PACKAGES / "jidoka_shm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Assign | ast.AugAssign):
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                if ast.unparse(target) in {"extra", "who"} and isinstance(node.value, ast.Dict):
                    given |= {key.value for key in node.value.keys if key is not None}
    assert set(re.findall(r"`(\w+)`", names)) == given
