"""What a session's process does where a callable is to run: it imports it, and calls it.

The callable comes as its name (``module:qualname``) and its arguments as JSON, on the command line
of the process, from the program that starts the session. Nothing is unpickled.
"""

from __future__ import annotations

import json
import pkgutil
import sys
from typing import Any, Final

#: What the interpreter is given before ``main`` and its arguments. The path is the parent's, and
#: must stand before this package can be imported.
BOOTSTRAP: Final = (
    "-P",
    "-c",
    """
import json, sys
sys.path[:] = json.loads(sys.argv.pop(1))
from jidoka_shm.callee import main
main()
""",
)

_importing = False


def main() -> None:
    """Import and call what the command line names."""
    target, arguments = sys.argv[1:]
    # It is no business of the callable's, nor of a parser that it may use.
    del sys.argv[1:]
    work = _find(target)
    given = json.loads(arguments)
    work(*given["args"], **given["kwargs"])


def is_importing() -> bool:
    """Return whether this is a session's process that still imports the module of its callable."""
    return _importing


def _find(target: str) -> Any:  # noqa: ANN401 - whatever it names
    global _importing  # noqa: PLW0603 - one process imports one callable, once
    # A script that starts sessions as it is imported would start another one in each of them.
    _importing = True
    try:
        return pkgutil.resolve_name(target)
    finally:
        _importing = False
