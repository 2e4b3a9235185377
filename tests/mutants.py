"""Changes to the package that each break one rule of the protocol."""

from __future__ import annotations

import importlib
import inspect
import sys
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


@dataclass(frozen=True)
class Mutant:
    """A change to one function.

    Attributes:
        rule: the rule that it breaks.
        module: the module of the package that it is changed for.
        function: its name, with its class's before it.
        old: text of the function that is there once.
        new: what takes its place.
    """

    rule: str
    module: str
    function: str
    old: str
    new: str

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put the changed function in the place of the real one, as ``module`` knows it."""
        owner: object = importlib.import_module(f"jidoka_shm.{self.module}")
        *classes, name = self.function.split(".")
        for part in classes:
            owner = getattr(owner, part)
        function = getattr(owner, name)
        module = sys.modules[function.__module__]
        lines, start = inspect.getsourcelines(function)
        source = textwrap.dedent("".join(lines))
        assert source.count(self.old) == 1, (self.rule, source)
        changed = source.replace(self.old, self.new)
        # The line numbers and the file of the original, so that a tracer takes it for that.
        code = compile("\n" * (start - 1) + changed, module.__file__, "exec")
        names: dict[str, object] = {}
        exec(code, vars(module), names)  # noqa: S102 - the package's own text, changed above
        monkeypatch.setattr(owner, name, names[name])
