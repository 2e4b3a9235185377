"""Splices: the very bytes that decoding and encoding would give, or nothing."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from jidoka_shm.maps import encode_map
from jidoka_shm.session import Payload, decode_payload
from jidoka_shm.splices import with_end, with_request

MAPS = st.dictionaries(st.text(max_size=5), st.text() | st.integers(-5, 2**63), max_size=3)
NUMBER = st.integers(0, 2**63 - 1)
MAYBE = st.none() | NUMBER
REQUEST = st.binary(min_size=16, max_size=16)
PAYLOADS = st.builds(
    lambda metadata, llm_config, **fields: Payload(
        metadata=encode_map(metadata, "metadata"),
        llm_config=encode_map(llm_config, "llm_config"),
        **fields,
    ),
    MAPS,
    MAPS,
    expires=MAYBE,
    error=st.none() | st.text(max_size=40),
    deadline=MAYBE,
    owner_start=MAYBE,
    request=st.none() | REQUEST,
)


@given(PAYLOADS, st.none() | st.text(max_size=70_000), NUMBER)
def test_an_end_is_spliced_into_maps_alone(
    payload: Payload, error: str | None, deadline: int
) -> None:
    raw = payload.encode()
    spliced = with_end(raw, error=error, deadline=deadline)
    assert (spliced is None) == (raw[:1] != b"\x92")
    if spliced is not None:
        assert spliced == replace(decode_payload(raw), error=error, deadline=deadline).encode()


@given(MAPS, st.none() | st.text(max_size=300), NUMBER)
def test_an_end_of_maps_alone_is_always_spliced(
    metadata: dict, error: str | None, deadline: int
) -> None:
    raw = Payload(metadata=encode_map(metadata, ""), llm_config=encode_map({}, "")).encode()
    spliced = with_end(raw, error=error, deadline=deadline)
    assert spliced == replace(decode_payload(raw), error=error, deadline=deadline).encode()


@given(PAYLOADS, REQUEST)
def test_a_request_takes_the_place_of_another(payload: Payload, request: bytes) -> None:
    raw = payload.encode()
    spliced = with_request(raw, request)
    if payload.request is not None:
        assert spliced == replace(decode_payload(raw), request=request).encode()
    else:
        assert spliced is None
