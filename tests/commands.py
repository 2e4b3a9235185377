"""The command in this process, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from jidoka_shm.cli.app import app

if TYPE_CHECKING:
    from typing import Self


class Ended(NamedTuple):
    """How a command ended: its status, and what it printed."""

    code: object
    out: str
    err: str

    @classmethod
    def of(cls, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...]) -> Self:
        """Run a command to its end."""
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app([str(each) for each in arguments], prog_name="jidoka-shm")
        return cls(ended.value.code, *capsys.readouterr())

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever was printed
        """Return what was printed as JSON."""
        return json.loads(self.out)


Command = Callable[..., Ended]


def one_line(ended: Ended, code: int, *words: object) -> None:
    """Assert that the command failed as it should: a line on stderr, nothing else anywhere."""
    assert (ended.code, ended.out) == (code, ""), ended
    assert ended.err.startswith("jidoka-shm: ")
    assert ended.err.count("\n") == 1
    assert ended.err.endswith("\n")
    for word in words:
        assert str(word) in ended.err
