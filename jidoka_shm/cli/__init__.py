"""The command ``jidoka-shm``. It needs the extra ``cli``; the library does not."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; without the extra, say how to install it."""
    try:
        from .app import app  # noqa: PLC0415 - only the command may load click and rich
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.exit(f"jidoka-shm needs {error.name}: pip install 'jidoka-shm[cli]'")
    except KeyboardInterrupt:
        sys.exit(130)  # while it loads; from then on the command does the same
    app(prog_name="jidoka-shm")
