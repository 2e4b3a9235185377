"""The protocol's bytes: any of them, in any split, and the golden ones of each message."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jidoka_shm import protocol
from jidoka_shm.layout import MAX_RECORD_SIZE
from jidoka_shm.protocol import (
    MAX_FRAME,
    MAX_REPLY,
    Again,
    Create,
    Done,
    Failed,
    Fields,
    FrameBuffer,
    Hello,
    ProtocolError,
    Refused,
    Reply,
    Request,
    Resize,
    Terminate,
    Unknown,
    Update,
    decode_reply,
    decode_request,
    encode,
)

DOCUMENT = Path(__file__).parents[1] / "docs" / "protocol.md"

ID = UUID("00112233-4455-6677-8899-aabbccddeeff")
REQUEST = bytes(range(16))
MAPS = msgspec.Raw(b"\x92\x81\xa1a\x01\x80")

GOLDEN: dict[str, tuple[Request | Reply, str]] = {
    "hello": (
        Hello(1, ID.bytes),
        "1a000000 93 a568656c6c6f 01 c41000112233445566778899aabbccddeeff",
    ),
    "refused": (Refused("no"), "0c000000 92 a772656675736564 a26e6f"),
    "done": (Done(b"\x01\x02"), "0a000000 92 a4646f6e65 c4020102"),
    "failed": (
        Failed("SessionNotFound", [ID.bytes]),
        (
            "2b000000 93 a66661696c6564 af53657373696f6e4e6f74466f756e64"
            "91c41000112233445566778899aabbccddeeff"
        ),
    ),
    "unknown": (Unknown(), "09000000 91 a7756e6b6e6f776e"),
    "create": (
        Create(REQUEST, None, ID.bytes, MAPS, (7, 8, 9), 5),
        (
            "38000000 97 a6637265617465 c410000102030405060708090a0b0c0d0e0f c0"
            "c41000112233445566778899aabbccddeeff 9281a1610180 93070809 05"
        ),
    ),
    "update": (
        Update(REQUEST, Again(3, 4), ID.bytes, 2, Fields(status="active", ttl=None)),
        (
            "44000000 96 a6757064617465 c410000102030405060708090a0b0c0d0e0f 920304"
            "c41000112233445566778899aabbccddeeff 02 82a6737461747573a6616374697665a374746cc0"
        ),
    ),
    "terminate": (
        Terminate(REQUEST, None, ID.bytes, "late"),
        (
            "35000000 95 a97465726d696e617465 c410000102030405060708090a0b0c0d0e0f c0"
            "c41000112233445566778899aabbccddeeff a46c617465"
        ),
    ),
    "resize": (
        Resize(REQUEST, Again(3, 4), 1000, None),
        "21000000 95 a6726573697a65 c410000102030405060708090a0b0c0d0e0f 920304 cd03e8 c0",
    ),
}
REQUESTS = {"create", "update", "terminate", "resize"}


def _golden(kind: str) -> bytes:
    return bytes.fromhex(GOLDEN[kind][1])


# ---------------------------------------------------------------------------- golden bytes


@pytest.mark.parametrize("kind", GOLDEN)
def test_each_message_has_the_bytes_that_it_always_had(kind: str) -> None:
    message, _ = GOLDEN[kind]
    assert encode(message).hex() == _golden(kind).hex()
    decode = decode_request if kind in REQUESTS else decode_reply
    assert decode(_golden(kind)[4:]) == message


def test_the_document_shows_each_message_as_it_is() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    blocks = dict(re.findall(r"^```text\n(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    shown = {kind: bytes.fromhex(block) for kind, block in blocks.items()}
    assert shown == {kind: _golden(kind) for kind in GOLDEN}


def test_the_document_names_the_limits() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for limit in (MAX_FRAME, MAX_REPLY, protocol.PROTOCOL_VERSION):
        assert re.search(rf"\b{limit}\b", text), limit


@pytest.mark.parametrize("kind", GOLDEN)
def test_a_message_of_the_other_side_is_refused(kind: str) -> None:
    decode = decode_reply if kind in REQUESTS else decode_request
    with pytest.raises(ProtocolError, match="not a message of this protocol"):
        decode(_golden(kind)[4:])


def test_what_follows_the_last_field_is_ignored_and_another_key_is_not() -> None:
    update = msgspec.msgpack.decode(_golden("update")[4:])
    assert decode_request(msgspec.msgpack.encode([*update, "more"])) == GOLDEN["update"][0]
    update[-1]["more"] = 1
    with pytest.raises(ProtocolError, match="unknown field `more`"):
        decode_request(msgspec.msgpack.encode(update))


def test_a_reply_may_hold_a_record_of_the_largest_slot() -> None:
    assert len(encode(Done(bytes(MAX_RECORD_SIZE)))) - 4 <= MAX_REPLY


# ---------------------------------------------------------------------------- any bytes

pieces = st.lists(st.binary(max_size=12), max_size=30)
bodies = st.lists(st.binary(max_size=40), max_size=12)


def _fed(buffer: FrameBuffer, pieces: list[bytes]) -> tuple[list[bytes], bool]:
    """Return the frames of some pieces, and whether the buffer refused one."""
    frames: list[bytes] = []
    try:
        for piece in pieces:
            frames.extend(buffer.feed(piece))
    except ProtocolError:
        return frames, True
    return frames, False


def _split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@given(bodies, st.lists(st.integers(0, 1 << 16), max_size=20))
def test_frames_are_the_same_however_they_are_split(bodies: list[bytes], cuts: list[int]) -> None:
    data = b"".join(len(body).to_bytes(4, "little") + body for body in bodies)
    buffer = FrameBuffer()
    assert _fed(buffer, _split(data, cuts)) == (bodies, False)
    assert len(buffer) == 0


@given(pieces)
def test_any_bytes_give_the_same_frames_or_the_same_refusal_however_they_are_split(
    pieces: list[bytes],
) -> None:
    limit = 20
    buffer = FrameBuffer(limit)
    found = _fed(buffer, pieces)
    assert found == _fed(FrameBuffer(limit), [b"".join(pieces)])
    assert found[1] or len(buffer) < 4 + limit
    assert all(len(frame) <= limit for frame in found[0])


def test_a_frame_at_the_limit_passes_and_one_above_is_refused_after_what_came_before() -> None:
    at_limit = (10).to_bytes(4, "little") + bytes(10)
    above = (11).to_bytes(4, "little")
    frames = FrameBuffer(10).feed(at_limit + above)
    assert next(frames) == bytes(10)
    with pytest.raises(ProtocolError, match="a frame of 11 bytes: 10 is the limit"):
        next(frames)


def test_a_length_above_the_limit_is_refused_before_what_it_announces_comes() -> None:
    with pytest.raises(ProtocolError):
        list(FrameBuffer().feed((MAX_FRAME + 1).to_bytes(4, "little")))


class Counted(bytearray):
    """Counts the bytes that are copied out of it."""

    copied = 0

    def __getitem__(self, key: object) -> object:
        found = super().__getitem__(key)
        Counted.copied += len(found) if isinstance(key, slice) else 1
        return found


def test_a_frame_that_comes_byte_by_byte_costs_its_length_and_not_its_square(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 1 << 20
    data = size.to_bytes(4, "little") + bytes(size)
    buffer = FrameBuffer()
    buffer._rest = Counted()
    monkeypatch.setattr(Counted, "copied", 0)
    held, moved = [], 0
    for at in range(len(data)):
        before = buffer._rest
        frames = list(buffer.feed(data[at : at + 1]))
        # Appended to in place: another one would have been copied whole.
        assert buffer._rest is before
        held.append(len(frames))
        moved += sum(map(len, frames))
    assert (sum(held), held[-1], moved) == (1, 1, size)
    # Its length is looked at each time, which is four bytes, and its body is taken once.
    assert Counted.copied <= 4 * len(data) + size
    assert len(buffer) == 0


junk = st.binary(max_size=80)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
kinds = st.sampled_from([*GOLDEN, "other"])


@given(junk)
@example(b"\x91" * 100_000)
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\x91\xa1\xff")
def test_any_bytes_are_a_message_or_a_protocol_error(data: bytes) -> None:
    for decode in (decode_request, decode_reply):
        reason = ""
        try:
            decode(data)
        except ProtocolError as error:
            reason = str(error)
        assert reason.isprintable()
        assert len(reason) < 2000


@given(kinds, st.lists(values | st.just(REQUEST), max_size=7))
def test_any_fields_are_a_message_or_a_protocol_error(kind: str, fields: list[object]) -> None:
    data = msgspec.msgpack.encode([kind, *fields])
    for decode in (decode_request, decode_reply):
        try:
            message = decode(data)
        except ProtocolError:
            continue
        assert decode(encode(message)[4:]) == message


@given(st.sampled_from(sorted(GOLDEN)), st.data())
def test_a_damaged_message_is_a_message_or_a_protocol_error(kind: str, data: st.DataObject) -> None:
    raw = bytearray(_golden(kind)[4:])
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] = data.draw(st.integers(0, 255))
    for decode in (decode_request, decode_reply):
        try:
            decode(bytes(raw))
        except ProtocolError:
            continue


@pytest.mark.parametrize(
    "fields",
    [
        ["terminate", REQUEST[:15], None, ID.bytes, None],
        ["terminate", REQUEST, None, ID.bytes + b"x", None],
        ["terminate", REQUEST, [-1, 0], ID.bytes, None],
        ["terminate", REQUEST, [1], ID.bytes, None],
        ["terminate", REQUEST, None, ID.bytes, b"bytes"],
        ["terminate", REQUEST, None, ID.bytes],
        ["update", REQUEST, None, ID.bytes, None, {"status": 3}],
        ["update", REQUEST, None, ID.bytes, None, {"version": 3}],
        ["update", REQUEST, None, ID.bytes, None, {"ttl": -1}],
        ["update", REQUEST, None, ID.bytes, -1, {}],
        ["create", REQUEST, None, ID.bytes, [{}, {}], [1, 2], None],
        ["create", REQUEST, None, ID.bytes, [{}, {}], [1, 2, -3], None],
        ["create", REQUEST, None, ID.bytes, [{}, {}], None, 1.5],
        ["resize", REQUEST[:15], None, 8, None],
        ["resize", REQUEST, [1], 8, None],
        ["resize", REQUEST, None, -1, None],
        ["resize", REQUEST, None, 8.0, None],
        ["resize", REQUEST, None, True, None],
        ["resize", REQUEST, None, "8", None],
        ["resize", REQUEST, None, None, 512],
        ["resize", REQUEST, None, 8, -1],
        ["resize", REQUEST, None, 8, b"512"],
        ["resize", REQUEST, None, 8],
    ],
)
def test_a_field_of_another_type_is_refused(fields: list[object]) -> None:
    with pytest.raises(ProtocolError):
        decode_request(msgspec.msgpack.encode(fields))


@pytest.mark.parametrize(
    "fields",
    [
        ["evil\nline \x1b[31m" * 10_000],
        ["update", REQUEST, None, ID.bytes, None, {"evil\nline" * 10_000: 1}],
    ],
)
def test_what_a_stranger_sent_reaches_a_reason_in_one_short_line(fields: list[object]) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_request(msgspec.msgpack.encode(fields))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000
