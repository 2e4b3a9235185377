"""Records that prove themselves: which session, which change, and a crc over all the rest."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid5

import msgspec

from jidoka_shm.maps import encode_map

if TYPE_CHECKING:
    from pathlib import Path

    from jidoka_shm.session import Session

Sample = tuple[dict[str, Any], dict[str, Any]]


def load(path: Path) -> list[Sample]:
    """Return the sessions that a file describes, one JSON object a line.

    Raises:
        ValueError: naming the line that holds something else.
    """
    samples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            fields = json.loads(line)
            maps = fields["metadata"], fields["llm_config"]
            for name, value in zip(("metadata", "llm_config"), maps, strict=True):
                encode_map(value, name)
        except (ValueError, KeyError, TypeError) as error:
            msg = f"{path}, line {number}: not an object with metadata and llm_config ({error})"
            raise ValueError(msg) from error
        samples.append(maps)
    if not samples:
        msg = f"{path} holds no session"
        raise ValueError(msg)
    return samples


def session_ids(run: UUID, count: int) -> list[UUID]:
    """Return the ids of one run of the demo, the same in each of its processes."""
    return [uuid5(run, str(at)) for at in range(count)]


def proven(sample: Sample, session_id: UUID, change: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the two maps of a session's change number ``change``."""
    metadata = {**sample[0], "change": change}
    llm_config = {**sample[1], "change": change}
    return {**metadata, "proof": _crc(session_id, metadata, llm_config)}, llm_config


def change_of(session: Session) -> int | None:
    """Return which change a session's maps are of; None where they do not prove it."""
    metadata, llm_config = session.metadata, session.llm_config
    proof = metadata.pop("proof", None)
    if proof != _crc(session.session_id, metadata, llm_config):
        return None
    change = metadata.get("change")
    return change if change == llm_config.get("change") else None


def _crc(session_id: UUID, metadata: dict[str, Any], llm_config: dict[str, Any]) -> int:
    return zlib.crc32(msgspec.msgpack.encode((session_id.bytes, metadata, llm_config)))
