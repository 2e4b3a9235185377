"""Maps: what JSON holds comes back equal, anything else is an error that leads to it."""

from __future__ import annotations

import ast
import collections
import copy
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import math
import pathlib
import uuid
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import json_maps, json_values, leaves

from jidoka_shm import maps
from jidoka_shm.errors import InvalidMetadata
from jidoka_shm.maps import MAX_DEPTH, encode_map, encode_maps

if TYPE_CHECKING:
    from collections.abc import Callable


def _decoded(value: object) -> object:
    return msgspec.msgpack.decode(encode_map(value, "metadata"))


def _same(one: object, other: object) -> bool:
    """Return whether two values are equal and of the same types all through; -0.0 is not 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return repr(one) == repr(other) if isinstance(one, float) else one == other


def _follow(path: str, value: object) -> object:
    """Return what the text of a path leads to, read as Python."""
    node = ast.parse(path, mode="eval").body
    steps = []
    while isinstance(node, ast.Subscript):
        steps.append(ast.literal_eval(node.slice))
        node = node.value
    assert isinstance(node, ast.Name)
    assert node.id == "metadata"
    for step in reversed(steps):
        value = value[step]
    return value


def _refused(value: object) -> InvalidMetadata:
    with pytest.raises(InvalidMetadata) as caught:
        encode_map(value, "metadata")
    return caught.value


def _depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list) else 0


@st.composite
def _deep_maps(draw: st.DrawFn) -> dict:
    """Draw a map of up to 32 containers one in the other."""
    value = draw(json_values)
    for _ in range(draw(st.integers(0, MAX_DEPTH - 1 - _depth(value)))):
        value = [value] if draw(st.booleans()) else {draw(st.text()): value}
    return {draw(st.text()): value, **draw(st.dictionaries(st.text(), leaves, max_size=2))}


# ---------------------------------------------------------------------------- what comes back


@given(_deep_maps())
def test_a_map_comes_back_equal(value: dict) -> None:
    """D2: what is taken comes back equal."""
    assert _same(_decoded(value), value)


@given(_deep_maps())
def test_encoding_leaves_the_map_as_it_is(value: dict) -> None:
    before = copy.deepcopy(value)
    encode_map(value, "metadata")
    assert _same(value, before)


def test_no_map_is_an_empty_one() -> None:
    assert _decoded(None) == {}


@pytest.mark.parametrize("value", [2**63 - 1, 2**63, 2**64 - 1, -(2**63), 0, -1])
def test_an_int_at_the_limits_of_64_bits_comes_back(value: int) -> None:
    assert _same(_decoded({"a": [value]}), {"a": [value]})


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 5e-324, 1.7976931348623157e308, 0.1, 1e22, 9007199254740993.0, -1.5]
)
def test_a_float_comes_back_exactly(value: float) -> None:
    assert _same(_decoded({"a": value}), {"a": value})


@pytest.mark.parametrize(
    "text", ["", "\0", "\n", "\"'\\", "\u2028", "\ufeff", "\uffff", "\U0001f600", "a" * 10_000]
)
def test_text_comes_back_as_key_and_value(text: str) -> None:
    assert _same(_decoded({text: text}), {text: text})


def test_many_brackets_in_text_are_no_depth() -> None:
    value = {"[{" * 100: ["[" * 100, "{" * 100]}
    assert _decoded(value) == value


def test_many_containers_side_by_side_are_no_depth() -> None:
    value = {"a": [[] for _ in range(100)], "b": [{} for _ in range(100)]}
    assert _decoded(value) == value


def test_no_path_is_written_for_a_map_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many containers that would be most of the work, in a service's one thread."""
    monkeypatch.setattr(maps, "_children", None)
    value = {"a": [{"b": [number]} for number in range(1000)]}
    assert _decoded(value) == value


def test_one_list_at_two_places_comes_back_as_two() -> None:
    shared = [1]
    assert _decoded({"a": shared, "b": [shared]}) == {"a": [1], "b": [[1]]}


@pytest.mark.parametrize(
    "value",
    [
        collections.OrderedDict(b=1, a=2),
        collections.defaultdict(list, a=[1]),
        collections.Counter(a=2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_subclass_of_dict_comes_back_as_an_equal_dict(value: dict) -> None:
    assert _decoded({"a": value}) == {"a": value}
    assert type(_decoded(value)) is dict


class _Colour(enum.StrEnum):
    RED = "red"


class _Level(enum.IntEnum):
    HIGH = 3


@pytest.mark.parametrize("value", [_Colour.RED, _Level.HIGH])
def test_an_enum_that_is_a_str_or_an_int_comes_back_as_its_equal_value(value: object) -> None:
    assert _decoded({"a": value}) == {"a": value}
    assert type(_decoded({"a": value})["a"]) in {str, int}


# ---------------------------------------------------------------------------- what is refused


class _Mute:
    def __repr__(self) -> str:
        msg = "no text"
        raise RuntimeError(msg)


@dataclasses.dataclass
class _Data:
    a: int = 1


class _Struct(msgspec.Struct):
    a: int = 1


class _Plain(enum.Enum):
    A = "a"


_Pair = collections.namedtuple("_Pair", "a b")  # noqa: PYI024 - of any kind


class _Text(str):
    __slots__ = ()


class _Whole(int):
    pass


class _Real(float):
    pass


def _cyclic_list() -> list:
    value: list = []
    value.append(value)
    return value


def _cyclic_dict() -> dict:
    value: dict = {}
    value["a"] = value
    return value


#: What no map may hold.
VALUES: dict[str, Callable[[], object]] = {
    "tuple": lambda: (1, 2),
    "empty tuple": lambda: (),
    "named tuple": lambda: _Pair(1, 2),
    "set": lambda: {1},
    "empty set": set,
    "frozenset": lambda: frozenset({1}),
    "deque": lambda: collections.deque([1]),
    "dict view": {"a": 1}.keys,
    "bytes": lambda: b"a",
    "empty bytes": lambda: b"",
    "bytearray": lambda: bytearray(b"a"),
    "memoryview": lambda: memoryview(b"a"),
    "datetime": lambda: dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    "naive datetime": lambda: dt.datetime(2026, 1, 2),  # noqa: DTZ001 - refused too
    "date": lambda: dt.date(2026, 1, 2),
    "time": lambda: dt.time(3, 4),
    "timedelta": lambda: dt.timedelta(1),
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "-inf": lambda: -math.inf,
    "uuid": lambda: uuid.UUID(int=1),
    "decimal": lambda: decimal.Decimal(1),
    "fraction": lambda: fractions.Fraction(1),
    "complex": lambda: 1j,
    "raw": lambda: msgspec.Raw(b"1"),
    "raw map": lambda: msgspec.Raw(b'{"a":1}'),
    "raw msgpack": lambda: msgspec.Raw(b"\x81\xa1a\x01"),
    "ext": lambda: msgspec.msgpack.Ext(1, b"a"),
    "unset": lambda: msgspec.UNSET,
    "2**64": lambda: 2**64,
    "-2**63-1": lambda: -(2**63) - 1,
    "10**400": lambda: 10**400,
    "10**5000": lambda: 10**5000,
    "surrogate": lambda: "\ud800",
    "surrogate inside": lambda: "a\udfffb",
    "mute": _Mute,
    "object": object,
    "type": lambda: dict,
    "function": lambda: len,
    "ellipsis": lambda: ...,
    "path": lambda: pathlib.Path("a"),
    "array": lambda: np.arange(3),
    "array of objects": lambda: np.array([None, 1]),
    "array of one": lambda: np.array(3),
    "numpy int": lambda: np.int64(3),
    "numpy float": lambda: np.float64(1.5),
    "numpy float32": lambda: np.float32(1.5),
    "numpy bool": lambda: np.bool_(True),  # noqa: FBT003 - numpy's own
    "numpy str": lambda: np.str_("a"),
    "numpy datetime": lambda: np.datetime64("2026-01-02"),
    "dataclass": _Data,
    "struct": _Struct,
    "enum": lambda: _Plain.A,
    "str subclass": lambda: _Text("a"),
    "int subclass": lambda: _Whole(1),
    "float subclass": lambda: _Real(1.5),
    "cyclic list": _cyclic_list,
    "cyclic dict": _cyclic_dict,
}

#: Maps with a key that no map may have.
KEYED: dict[str, Callable[[], dict]] = {
    "int": lambda: {1: "a"},
    "int beside its text": lambda: {"1": "a", 1: "b"},
    "none": lambda: {None: 1},
    "bool": lambda: {True: 1},
    "float": lambda: {1.5: 1},
    "nan": lambda: {math.nan: 1},
    "tuple": lambda: {("a",): 1},
    "bytes": lambda: {b"a": 1},
    "surrogate": lambda: {"\ud800": 1},
    "uuid": lambda: {uuid.UUID(int=1): 1},
    "datetime": lambda: {dt.datetime(2026, 1, 2, tzinfo=dt.UTC): 1},
    "enum": lambda: {_Plain.A: 1},
    "int enum": lambda: {_Level.HIGH: 1},
    "numpy int": lambda: {np.int64(1): 1},
    "mute": lambda: {_Mute(): 1},
    "2**64": lambda: {2**64: 1},
}

#: Keys of all kinds but those with a double quote or a backslash, which have a test of their own.
plain_keys = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\\'))


@st.composite
def _placed(draw: st.DrawFn, value: object) -> dict:
    """Draw a map that holds ``value`` somewhere, and otherwise what JSON holds."""
    for _ in range(draw(st.integers(0, 6) | st.integers(0, MAX_DEPTH - 2))):
        if draw(st.booleans()):
            beside = draw(st.lists(leaves, max_size=2))
            value = [*beside, value, *draw(st.lists(leaves, max_size=2))]
        else:
            value = _among(draw, value)
    return _among(draw, value)


def _among(draw: st.DrawFn, value: object) -> dict:
    key = draw(plain_keys)
    before, after = (draw(st.dictionaries(st.text(), leaves, max_size=2)) for _ in range(2))
    before.pop(key, None)
    after.pop(key, None)
    return {**before, key: value, **after}


@pytest.mark.parametrize("kind", VALUES)
@settings(max_examples=12)
@given(data=st.data())
def test_a_value_that_is_not_jsons_is_refused_with_its_path(kind: str, data: st.DataObject) -> None:
    """D2: what would come back as another type is refused with its path."""
    value = VALUES[kind]()
    place = data.draw(_placed(value))
    assert _follow(_refused(place).path, place) is value


@pytest.mark.parametrize("kind", KEYED)
@settings(max_examples=12)
@given(data=st.data())
def test_a_key_that_is_not_jsons_is_refused_with_the_path_of_its_map(
    kind: str, data: st.DataObject
) -> None:
    keyed = KEYED[kind]()
    place = data.draw(_placed(keyed))
    error = _refused(place)
    assert _follow(error.path, place) is keyed
    assert error.reason.startswith("has the key ")


@pytest.mark.parametrize("kind", VALUES)
def test_the_reason_names_the_type(kind: str) -> None:
    value = VALUES[kind]()
    reason = _refused({"a": value}).reason
    assert reason.endswith((f" ({type(value).__name__})", f"more than {MAX_DEPTH} deep"))


@pytest.mark.parametrize("kind", KEYED)
def test_a_key_at_the_top_is_refused_with_the_name_of_the_map(kind: str) -> None:
    assert _refused(KEYED[kind]()).path == "metadata"


def test_a_path_is_written_as_python_would() -> None:
    assert _refused({"a": [1, 2, 3, {"b c": (1,)}]}).path == 'metadata["a"][3]["b c"]'


@pytest.mark.parametrize(
    "key",
    [
        '"',
        "\\",
        'a"b',
        "a\\nb",
        '\\"',
        "a'\"b",
        'a"]["b',
        "\\x41",
        "\n\"'\\",
        "\ud83d\ude00"[:0],
    ],
    ids=ascii,
)
def test_a_path_leads_through_a_key_whatever_is_in_it(key: str) -> None:
    value = {1}
    place = {"a": {"b": 1, "": 2}, key: {"c": value}}
    assert _follow(_refused(place).path, place) is value


def test_a_path_tells_one_key_from_two() -> None:
    one, two = {'a"]["b': {1}}, {"a": {"b": {1}}}
    assert _refused(one).path != _refused(two).path


#: Two keys that may come to the same text in a path: a newline, and a backslash before an n.
ALIKE = "a\n'", "a\\n'"


@pytest.mark.parametrize("order", [1, -1])
def test_keys_that_look_alike_do_not_hide_each_others_values(order: int) -> None:
    value = {1}
    first, second = ALIKE[::order]
    place = {"top": {first: value, second: 1}}
    assert _follow(_refused(place).path, place) is value


@pytest.mark.parametrize("order", [1, -1])
def test_keys_that_look_alike_do_not_hide_how_deep_a_map_is(order: int) -> None:
    deep: object = []
    for _ in range(MAX_DEPTH):
        deep = [deep]
    first, second = ALIKE[::order]
    assert _refused({first: deep, second: 1}).reason == f"is more than {MAX_DEPTH} deep"


def test_the_first_of_several_faults_is_named() -> None:
    assert _refused({"a": 1, "b": {1}, "c": {2}}).path == 'metadata["b"]'


def test_the_error_carries_the_name_of_the_map() -> None:
    with pytest.raises(InvalidMetadata, match=r'^llm_config\["a"\] is '):
        encode_map({"a": {1}}, "llm_config")


@pytest.mark.parametrize(
    "value",
    [[], [("a", 1)], "a", b"a", 1, 1.5, True, (), set(), _Data(), msgspec.Raw(b"\x80"), _Mute()],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_dict_is_refused_as_a_whole(value: object) -> None:
    error = _refused(value)
    assert error.path == "metadata"
    assert error.reason.endswith(f" ({type(value).__name__}), not a dict")


def test_an_object_without_a_repr_is_described_all_the_same() -> None:
    assert _refused({"a": _Mute()}).reason == "is _Mute without a repr (RuntimeError) (_Mute)"


def test_a_long_value_is_shortened_in_the_reason() -> None:
    assert len(_refused({"a": set(range(10_000))}).reason) < 100


@given(json_maps)
def test_a_refused_map_is_left_as_it_is(value: dict) -> None:
    before = copy.deepcopy(value)
    bad = {1}
    place = {"ok": value, "bad": bad}
    _refused(place)
    assert list(place) == ["ok", "bad"]
    assert place["bad"] is bad
    assert bad == {1}
    assert _same(value, before)


# ---------------------------------------------------------------------------- depth


def _nested(depth: int, kind: str) -> dict:
    """Return a map that is the first of ``depth`` containers, the last one empty."""
    value: object = {} if kind == "dict" else []
    for _ in range(depth - 2):
        value = {"a": value} if kind == "dict" else [value]
    return {"a": value}


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_32_containers_deep_comes_back(kind: str) -> None:
    value = _nested(32, kind)
    assert _depth(value) == 32
    assert _decoded(value) == value


@pytest.mark.parametrize("kind", ["dict", "list"])
@pytest.mark.parametrize("depth", [33, 34, 100, 500, 50_000])
def test_33_containers_deep_is_refused_with_the_path_of_the_33rd(kind: str, depth: int) -> None:
    error = _refused(_nested(depth, kind))
    tail = '["a"]' if kind == "dict" else "[0]"
    assert error.path == 'metadata["a"]' + 31 * tail
    assert error.reason == "is more than 32 deep"


def test_a_scalar_within_the_32nd_container_comes_back() -> None:
    value = _nested(32, "list")
    inner = value["a"]
    while inner:
        inner = inner[0]
    inner.append(5)
    assert _decoded(value) == value


@given(st.integers(0, 40), st.integers(0, 5), st.booleans())
def test_depth_counts_wherever_it_is(depth: int, beside: int, as_list: bool) -> None:
    deep: object = 1
    for _ in range(depth):
        deep = [deep] if as_list else {"a": deep}
    value = {**{str(at): [] for at in range(beside)}, "deep": deep, "last": "x"}
    if depth < MAX_DEPTH:
        assert _decoded(value) == value
    else:
        assert "deep" in _refused(value).path


def test_what_is_stored_is_what_was_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may change a map between its test and its encoding."""
    shared: dict[str, object] = {"t": 0}
    encode = maps._encode

    def change_and_encode(value: object) -> bytes:
        shared["t"] = b"x"
        return encode(value)

    monkeypatch.setattr(maps, "_encode", change_and_encode)
    assert _decoded(shared) == {"t": 0}
    shared["t"] = 0
    assert msgspec.msgpack.decode(maps.encode_maps(shared, {})) == [{"t": 0}, {}]


# ---------------------------------------------------------------------------- two at once


def _each_alone(metadata: object, llm_config: object) -> tuple[bytes, bytes] | InvalidMetadata:
    """Return two maps encoded one after the other, or the first error."""
    try:
        return bytes(encode_map(metadata, "metadata")), bytes(encode_map(llm_config, "llm_config"))
    except InvalidMetadata as error:
        return error


def _agree(metadata: object, llm_config: object) -> InvalidMetadata | None:
    """Return what two maps are refused with, once that is as for each alone; None if they pass."""
    alone = _each_alone(metadata, llm_config)
    if isinstance(alone, InvalidMetadata):
        with pytest.raises(InvalidMetadata) as caught:
            encode_maps(metadata, llm_config)
        assert (caught.value.path, caught.value.reason) == (alone.path, alone.reason)
        return caught.value
    both = msgspec.msgpack.decode(encode_maps(metadata, llm_config), type=list[msgspec.Raw])
    assert tuple(map(bytes, both)) == alone
    return None


@given(_deep_maps() | st.none(), _deep_maps() | st.none())
def test_two_maps_are_encoded_as_each_alone(metadata: object, llm_config: object) -> None:
    assert _agree(metadata, llm_config) is None


@pytest.mark.parametrize("beside", [None, {}, {"a": 1}], ids=str)
@pytest.mark.parametrize("kind", VALUES)
def test_a_value_that_is_not_jsons_is_refused_in_either_map(kind: str, beside: object) -> None:
    value = VALUES[kind]()
    place = {"a": [1, {"b": value}]}
    assert _agree(place, beside).path.startswith('metadata["a"][1]["b"]')
    assert _agree(beside, place).path.startswith('llm_config["a"][1]["b"]')
    assert _agree(value, beside).path.startswith("metadata")
    assert _agree(beside, value).path.startswith("llm_config")


@pytest.mark.parametrize("kind", KEYED)
def test_a_key_that_is_not_jsons_is_refused_in_either_map(kind: str) -> None:
    keyed = KEYED[kind]()
    assert _agree({"a": keyed}, {"a": 1}).path == 'metadata["a"]'
    assert _agree({"a": 1}, {"a": keyed}).path == 'llm_config["a"]'


@pytest.mark.parametrize("metadata", [{"a": {1}}, 5, {1: 2}], ids=str)
@pytest.mark.parametrize("llm_config", [{"b": {1}}, 5, {1: 2}], ids=str)
def test_where_both_maps_are_wrong_the_error_is_the_metadatas(
    metadata: object, llm_config: object
) -> None:
    assert _agree(metadata, llm_config).path.startswith("metadata")


@pytest.mark.parametrize("kind", ["dict", "list"])
@pytest.mark.parametrize("one", [1, 31, 32, 33, 34, 100])
@pytest.mark.parametrize("other", [1, 31, 32, 33, 34, 100])
def test_each_of_two_maps_may_be_32_containers_deep(one: int, other: int, kind: str) -> None:
    metadata = {} if one == 1 else _nested(one, kind)
    llm_config = {} if other == 1 else _nested(other, kind)
    error = _agree(metadata, llm_config)
    if max(one, other) <= MAX_DEPTH:
        assert error is None
    else:
        assert error.path.startswith("metadata[" if one > MAX_DEPTH else "llm_config[")
        assert error.reason == f"is more than {MAX_DEPTH} deep"


@pytest.mark.parametrize(
    "value",
    [collections.OrderedDict(b=1, a=2), collections.defaultdict(list), collections.Counter(a=2)],
    ids=lambda value: type(value).__name__,
)
def test_either_map_may_be_of_a_subclass_of_dict(value: dict) -> None:
    assert _agree(value, {"a": 1}) is None
    assert _agree({"a": 1}, value) is None


def test_one_map_may_be_both() -> None:
    shared = {"a": [1]}
    assert _agree(shared, shared) is None


def test_brackets_in_the_text_of_two_maps_are_no_depth() -> None:
    assert _agree({"[{" * 100: "[" * 100}, {"{" * 50: [["["]]}) is None
