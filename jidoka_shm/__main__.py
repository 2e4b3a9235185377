"""The command ``jidoka-shm``, as ``python -m jidoka_shm``."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
