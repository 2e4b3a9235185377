"""docs/supervisor.md: its blocks are its programs', and those do what they say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from agents import ENVIRONMENT
from supervised import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PROGRAMS = ROOT / "docs" / "supervisor"

PAGE = (ROOT / "docs" / "supervisor.md").read_text(encoding="utf-8")


def test_each_block_is_in_its_program() -> None:
    blocks = re.findall(r"^\[(\w+\.py)\].*?^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert [name for name, _ in blocks] == ["main.py", "agent.py"]
    for name, block in blocks:
        assert block in (PROGRAMS / name).read_text(encoding="utf-8")


def test_the_programs_run(name: str, tmp_path: Path) -> None:
    for path in PROGRAMS.glob("*.py"):
        shutil.copy(path, tmp_path)
    main = tmp_path / "main.py"
    main.write_text(main.read_text().replace('"supervised"', repr(name)))
    run = subprocess.run(
        [sys.executable, "-W", "error", "-u", main],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert re.fullmatch(
        r"initializing jidoka\nactive \{UUID\('[-0-9a-f]{36}'\): \d+\}\nterminated None\n",
        run.stdout,
    )
