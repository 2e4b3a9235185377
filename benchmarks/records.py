"""What every system holds and is asked for: the same records, the same ids in the same order."""

from __future__ import annotations

import functools
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

METADATA: Final = {"project": "my-project", "user": "ann", "n": 3}
LLM_CONFIG: Final = {"model": "gpt-4", "temperature": 0.7}

#: A heartbeat would be no change, so an update moves to the one that a session is not in.
STATUSES: Final = ("active", "idle")


class Record(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A session as a program would keep it in a store of bytes: its maps stay encoded until used.

    A ``Session`` leaves them encoded as well.
    """

    session_id: UUID
    status: str
    pid: int | None
    created: int
    updated: int
    version: int
    metadata: msgspec.Raw
    llm_config: msgspec.Raw
    expires: int | None = None
    error: str | None = None


class Head(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The part of a record that holds the status: decoding stops behind it."""

    session_id: UUID
    status: str


encode: Final = msgspec.msgpack.Encoder().encode
decode: Final = msgspec.msgpack.Decoder(Record).decode
decode_head: Final = msgspec.msgpack.Decoder(Head).decode


def make_record(session_id: UUID) -> Record:
    """Return the record of a new session."""
    now = time.time_ns()
    maps = (msgspec.Raw(encode(METADATA)), msgspec.Raw(encode(LLM_CONFIG)))
    return Record(session_id, "initializing", None, now, now, 1, *maps)


def moved(record: Record) -> Record:
    """Return a record after an update of its status."""
    return msgspec.structs.replace(
        record,
        status=STATUSES[record.status == STATUSES[0]],
        updated=time.time_ns(),
        version=record.version + 1,
    )


def make_plain(session_id: UUID) -> dict[str, Any]:
    """Return the record of a new session for a store of Python's own objects."""
    now = time.time_ns()
    return {
        "session_id": str(session_id),
        "status": "initializing",
        "pid": None,
        "created": now,
        "updated": now,
        "version": 1,
        "metadata": METADATA,
        "llm_config": LLM_CONFIG,
        "expires": None,
        "error": None,
    }


def moved_plain(record: dict[str, Any]) -> dict[str, Any]:
    """Return a plain record after an update of its status."""
    return record | {
        "status": STATUSES[record["status"] == STATUSES[0]],
        "updated": time.time_ns(),
        "version": record["version"] + 1,
    }


def count_statuses(records: Iterable[Record | Head]) -> Counter[str]:
    """Return how many records have each status."""
    return Counter(record.status for record in records)


def make_ids(sessions: int, seed: int = 1) -> list[UUID]:
    """Return as many version-4 ids, the same ones in every process."""
    chance = random.Random(seed)
    return [UUID(int=chance.getrandbits(128), version=4) for _ in range(sessions)]


class Keys:
    """The ids that the rows of a suite look up, in one shuffled order for all systems.

    Each list is made when it is first used: a list that a row does not use must not lengthen the
    garbage collections of the process that is measured.
    """

    def __init__(self, ids: Sequence[UUID]) -> None:
        self._ids = ids

    def of(self, kind: str) -> list[Any]:
        """Return the ids of a kind, one for each session.

        Args:
            kind: ``own`` for the very objects that a dict has as its keys; ``equal`` for others
                that equal them, as a program has that reads its ids from requests; ``drawn`` for
                own ones at random, some more often than others; ``unknown`` for ids of no
                session; ``text`` for the ids as str.
        """
        found: list[Any] = getattr(self, kind)
        return found

    @functools.cached_property
    def own(self) -> list[UUID]:
        """The objects that are keys elsewhere, shuffled."""
        shuffled = list(self._ids)
        random.Random(2).shuffle(shuffled)
        return shuffled

    @functools.cached_property
    def equal(self) -> list[UUID]:
        """Others, equal to them."""
        return [UUID(int=key.int) for key in self.own]

    @functools.cached_property
    def drawn(self) -> list[UUID]:
        """As many, drawn with replacement."""
        return random.Random(3).choices(self._ids, k=len(self._ids))

    @functools.cached_property
    def unknown(self) -> list[UUID]:
        """Ids of no session."""
        return make_ids(len(self._ids), seed=4)

    @functools.cached_property
    def text(self) -> list[str]:
        """The ids as str."""
        return [str(key) for key in self.own]
