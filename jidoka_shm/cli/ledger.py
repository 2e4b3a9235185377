"""What the writer was about to do and what it had acknowledged, in a file that outlives it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


class Ledger:
    """Two numbers a session: the change intended last, and the one acknowledged last.

    A change is acknowledged once the manager's call has returned.
    """

    def __init__(self, path: Path, count: int) -> None:
        """Map a file that holds them, made where there is none.

        Args:
            path: the file.
            count: how many sessions.
        """
        with path.open("ab") as file:
            os.truncate(file.fileno(), 16 * count)
        both = np.memmap(path, np.uint64, "r+", shape=(2, count))
        self.intended: NDArray[np.uint64] = both[0]
        self.acknowledged: NDArray[np.uint64] = both[1]

    def changes(self) -> int:
        """Return how many changes were acknowledged in all."""
        return int(self.acknowledged.sum())
