"""What a system under measurement is: the interface that each peer implements.

A peer lives in a process of its own (see worker.py). Its *rows* are methods that take a list of
ids and do their work once for each, in a loop of their own, so that no system pays for a call
that the program it stands for would not make. A peer leaves out the rows it cannot do.

=================== ============================================================================
``look_up``         find a record and decode it to what the caller needs
``repeated``        the same where a reader keeps what it found; else ``look_up``
``status``          find no more than the status
``miss``            look for an id that is not there
``by_text``         look up by an id that is a str
``list_all``        return all records, decoded (the ids are not used)
``count``           count them by status
``create``          store a new record under an id made for it
``update``          change the status of a record: read, change, store
``terminate``       end a session
``..._pipelined``   the same for all ids at once: one round trip, or one transaction
=================== ============================================================================

A row may time itself, where its work is done elsewhere or only part of it counts: it returns the
nanoseconds of each of its parts as a list. ``before_ROW(ids)`` and ``after_ROW()`` run outside of
the clock where a peer has them.
"""

from __future__ import annotations

import abc
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID


class Peer(abc.ABC):
    """One system.

    Attributes:
        name: what it is called in reports and by ``--peers``.
        packages: the distributions whose versions a report states.
        largest: the most sessions that it can hold in a time worth waiting for; None for any.
        shared: whether other processes can attach to what ``make`` made.
        place: a folder of its own in /dev/shm.
    """

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    largest: ClassVar[int | None] = None
    shared: ClassVar[bool] = True

    def __init__(self, place: str, ids: Sequence[UUID]) -> None:
        self.place = Path(place)
        self.ids = ids

    @classmethod
    def missing(cls) -> str | None:
        """Return why it cannot run on this machine, or None where it can."""
        return None

    @abc.abstractmethod
    def make(self) -> None:
        """Make the store, with a record of each id."""

    @abc.abstractmethod
    def attach(self) -> None:
        """Open for reading what ``make`` made, in this process or in another."""

    @abc.abstractmethod
    def close(self) -> None:
        """Leave nothing behind; in the process that made it, the store goes too."""

    def shared_bytes(self) -> int:
        """Return the bytes of the store that processes share; all files of ``place`` by default."""
        files = (path for path in self.place.rglob("*") if path.is_file())
        return sum(path.stat().st_blocks * 512 for path in files)
