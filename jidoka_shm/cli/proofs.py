"""Records that prove themselves: which session, which change, and a crc over all the rest."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid5

import msgspec

from jidoka_shm.arguments import MAX_RECORD_SIZE, SLOT_SIZE
from jidoka_shm.growth import slots_for
from jidoka_shm.layout import ROOM_TO_END, SLOT_HEADER_SIZE, Geometry
from jidoka_shm.maps import encode_map

if TYPE_CHECKING:
    from pathlib import Path

    from jidoka_shm.session import Session

Sample = tuple[dict[str, Any], dict[str, Any]]


#: Bytes of a record's two maps, behind the one byte that begins the record.
LIMIT: Final = MAX_RECORD_SIZE - SLOT_HEADER_SIZE - ROOM_TO_END - 1

#: What takes as many bytes as any crc, and as any number of a change that a run comes to.
_MOST: Final = 2**32 - 1


def load(path: Path) -> list[Sample]:
    """Return the sessions that a file describes, one JSON object a line.

    Raises:
        ValueError: naming the line that holds something else.
    """
    samples = []
    # As bytes: str.splitlines() also splits at characters that a JSON string may hold.
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            samples.append(_sample(line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            msg = f"{path}, line {number}: not an object with metadata and llm_config ({error})"
            raise ValueError(msg) from error
    if not samples:
        msg = f"{path} holds no session"
        raise ValueError(msg)
    return samples


def _sample(line: bytes) -> Sample:
    """Return the two maps that a line holds, once they are known to fit with their proof."""
    fields = json.loads(line.decode())
    sample = fields["metadata"], fields["llm_config"]
    if "proof" in sample[0]:
        msg = "metadata must leave 'proof' to the demo"
        raise ValueError(msg)
    size = _size(sample)
    if size > LIMIT:
        msg = f"they take {size} bytes with their proof, and a record holds {LIMIT}"
        raise ValueError(msg)
    return sample


def _size(sample: Sample) -> int:
    """Return the bytes of a sample's two maps with their proof, at most."""
    metadata = {**sample[0], "change": _MOST, "proof": _MOST}
    llm_config = {**sample[1], "change": _MOST}
    pairs = (("metadata", metadata), ("llm_config", llm_config))
    return sum(len(bytes(encode_map(value, name))) for name, value in pairs)


def capacity_for(samples: list[Sample]) -> int:
    """Return the slots that all samples need: with more, none would be written anew so soon."""
    geometry = Geometry.for_capacity(len(samples), SLOT_SIZE)
    runs = [geometry.run_length(1 + _size(sample), 0) for sample in samples]
    return sum(runs) + slots_for(0, max(runs))


def save(path: Path, samples: list[Sample]) -> None:
    """Write what ``load`` returned to a file of one's own.

    The user's may be a pipe, which can be read once only, or change meanwhile.
    """
    lines = [json.dumps({"metadata": a, "llm_config": b}) for a, b in samples]
    path.write_text("\n".join(lines), encoding="utf-8")


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
