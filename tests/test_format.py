"""docs/format.md: that it says what layout.py says, and that a reader written from it reads."""

from __future__ import annotations

import ast
import contextlib
import os
import random
import re
import string
import struct
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import format_reader
import pytest
from format_reader import ClosedError, DamagedError, NotFoundError, OtherFormatError, attach
from host import Script, path_of
from support import make_writer, wait_until

from jidoka_shm import CorruptRegistry, InvalidName, SessionManager, SessionReader, layout
from jidoka_shm.control import ControlWriter
from jidoka_shm.header import TableHeader
from jidoka_shm.layout import Geometry
from jidoka_shm.maps import encode_map
from jidoka_shm.session import Payload, Session, SessionStatus
from jidoka_shm.slots import pack_slot
from jidoka_shm.writer import TableWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from format_reader import Reader, Record

PAGE = (Path(__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")

RESERVED = "reserved"


# ---------------------------------------------------------------------------- the page, parsed


class Field(NamedTuple):
    """A row of a field table."""

    name: str
    offset: int
    width: int
    type: str


def section(heading: str) -> str:
    """Return what stands under a heading of the page, up to the next one."""
    (text,) = re.findall(rf"^##+ {heading}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return text


def rows(heading: str) -> list[dict[str, str]]:
    """Return the rows of the one table under a heading, by column."""
    lines = [line for line in section(heading).splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    columns, rule, *body = [[re.sub(r"^`([^`]*)`$", r"\1", cell) for cell in row] for row in cells]
    assert set("".join(rule)) == {"-"}
    return [dict(zip(columns, row, strict=True)) for row in body]


def fields(heading: str) -> list[Field]:
    """Return a structure's fields, the reserved ones too, once they are known to leave no gap."""
    found = []
    end = 0
    for row in rows(heading):
        assert list(row) == ["offset", "width", "name", "type and unit", "written by, when"]
        kind = re.match(r"[ui]\d+|UUID|\d+ bytes|0|", row["type and unit"])
        assert kind is not None
        field = Field(row["name"], int(row["offset"]), int(row["width"]), kind[0])
        assert field.offset == end, field
        end += field.width
        if field.name != RESERVED:
            assert field.width == width_of(field.type), field
            assert row["written by, when"], field
        found.append(field)
    return found


def width_of(kind: str) -> int:
    """Return the width that a type has, in bytes."""
    if kind[0] in "ui":
        return int(kind[1:]) // 8
    return 16 if kind == "UUID" else int(kind.removesuffix(" bytes"))


def named(found: list[Field]) -> dict[str, tuple[int, int]]:
    """Return offset and width of each field that is in use."""
    return {field.name: field[1:3] for field in found if field.name != RESERVED}


def packed(layout_: struct.Struct) -> list[tuple[int, int, str]]:
    """Return offset, width and type of each item of a packed struct, pads included."""
    kinds = {"Q": "u64", "q": "i64", "I": "u32", "H": "u16", "B": "u8", "16s": "UUID"}
    items = []
    end = 0
    for code in re.findall(r"\d+[a-z]|[A-Zq]", layout_.format):
        width = struct.calcsize(f"<{code}")
        items.append((end, width, kinds.get(code, "0")))
        end += width
    assert end == layout_.size
    return items


def block(label: str) -> bytes:
    """Return the bytes of an example on the page."""
    (text,) = re.findall(rf"^```text\n{label}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return bytes.fromhex(text)


def is_name(text: str) -> bool:
    """Return whether a registry can be called so."""
    try:
        layout.check_name(text)
    except InvalidName:
        return False
    return True


def is_prime(number: int) -> bool:
    """Return whether a number is prime."""
    return number > 1 and not any(number % divisor == 0 for divisor in range(2, number // 2 + 1))


def is_near_a_power(number: int) -> bool:
    """Return whether a number is too near a power of two, as the page says it."""
    power = 1
    while 2 * power <= number:
        power *= 2
    return abs(number - power) * 20 <= power or abs(number - 2 * power) * 20 <= 2 * power


class TestPage:
    """The page against layout.py."""

    def test_control(self) -> None:
        found = fields("The control")
        widths = {"instance": 16, "socket_path": layout.SOCKET_PATH_SIZE}
        expected = {
            name: (offset, widths.get(name, 8)) for name, offset in layout.CONTROL_FIELDS.items()
        }
        assert named(found) == expected
        end = found[-1].offset + found[-1].width
        assert f"Bytes from {end} on" in " ".join(section("The control").split())
        assert end <= layout.CONTROL_SIZE

    def test_table_header(self) -> None:
        found = fields("The table header")
        expected = {
            name: (offset, struct.calcsize(f"<{code}"))
            for name, (offset, code) in layout.TABLE_FIELDS.items()
        }
        assert named(found) == expected
        assert [field[1:] for field in found] == packed(layout.TABLE_HEADER)

    def test_slot_header(self) -> None:
        found = fields("The slot header")
        columns = layout.SLOT_DTYPE.fields or {}
        expected = {name: (offset, dtype.itemsize) for name, (dtype, offset) in columns.items()}
        assert named(found) == expected
        assert [field[1:] for field in found] == packed(layout.SLOT_HEADER)
        for name, _, _, kind in found:
            if name != RESERVED:
                assert columns[name][0].kind == ("V" if kind == "UUID" else kind[0]), name
        assert packed(layout.SLOT_HEAD) == packed(layout.SLOT_HEADER)[:7]
        assert [field.name for field in found[:7]] == [
            *("session_id", "version", "created_at", "updated_at"),
            *("pid", "payload_length", "status"),
        ]
        assert named(found)["header_crc"] == (layout.SLOT_CRC_OFFSET, 4)
        assert layout.SLOT_DTYPE.itemsize == layout.SLOT_HEADER_SIZE == found[-1].offset + 4

    def test_payload(self) -> None:
        found = rows("The payload")
        assert [int(row["element"]) for row in found] == list(range(len(found)))
        assert [row["name"] for row in found] == list(Payload.__struct_fields__)
        assert [row["name"] for row in found] == list(format_reader.PAYLOAD)
        kinds = {
            "Raw": "map",
            "int | None": "integer or nil",
            "str | None": "string or nil",
            "bytes | None": "binary of 16 bytes or nil",
        }
        expected = [kinds[Payload.__annotations__[row["name"]]] for row in found]
        assert [row["type and unit"].split(",")[0] for row in found] == expected
        assert f"array of 2 to {len(found)} elements" in section("The payload")

    def test_status_codes(self) -> None:
        found = {int(row["code"]): row["status"] for row in rows("Status codes")}
        assert found == {code: text for code, text in enumerate(layout.STATUS_CODES) if text}
        assert found == format_reader.STATUSES

    def test_constants(self) -> None:
        found = {row["name"]: int(row["value"], 0) for row in rows("Constants")}
        numbers = {
            name: value
            for name, value in vars(layout).items()
            if name.isupper() and type(value) is int
        }
        assert found == numbers
        texts = {row["name"]: row["meaning"] for row in rows("Constants")}
        for name in ("CONTROL_MAGIC", "TABLE_MAGIC"):
            magic = numbers[name].to_bytes(8, "little").decode()
            assert texts[name] == f"the bytes `{magic}`, read as a word"

    def test_names(self) -> None:
        names = {row["object"]: row["name"] for row in rows("Names")}
        assert names["control"] == layout.control_name("NAME")
        assert names["table"] == layout.table_name("NAME", "GENERATION")  # type: ignore[arg-type]
        assert rows("Names")[0]["size"] == f"{layout.CONTROL_SIZE} bytes"
        assert "1 to 64 characters of `A-Z`, `a-z`, `0-9`, `_` and `-`" in section("Names")
        letters = {chr(code) for code in range(0x250) if is_name(chr(code))}
        assert letters == set(string.ascii_letters + string.digits + "_-")
        assert [is_name("x" * length) for length in (0, 1, 64, 65)] == [False, True, True, False]

    def test_index_words(self) -> None:
        words = [row["word"] for row in rows("Index words")]
        assert list(map(int, words[:3])) == [layout.EMPTY, layout.MOVED, layout.CLOSED]
        assert words[3] == f"3 to 0x{layout.SLOT_MASK:X}"
        assert words[4] == f"0x{layout.index_word(1, 0):X} and up"
        assert f"× 2^{layout.SLOT_BITS} + S:" in rows("Index words")[4]["meaning"]  # noqa: RUF001

    def test_geometry(self) -> None:
        for row in rows("Sizes of some tables"):
            capacity, slot_size, *sizes = map(int, row.values())
            geometry = Geometry.for_capacity(capacity, slot_size)
            columns = [column.replace(" ", "_") for column in list(row)[2:-1]]
            assert sizes == [*(getattr(geometry, column) for column in columns), geometry.size]

    def test_geometry_rules(self) -> None:
        rules = {row["number"]: row["rule"] for row in rows("Geometry")}
        assert rules["capacity"] == f"`slot_count` − {layout.SPARE_SLOTS}"  # noqa: RUF001
        assert rules["entries"] == f"`index_size` + {layout.MAX_DISTANCE}"
        assert rules["index offset"] == str(layout.TABLE_HEADER_SIZE)
        assert rules["reach offset"] == f"{layout.TABLE_HEADER_SIZE} + 8 × entries"  # noqa: RUF001
        assert rules["slots offset"].endswith(f"rounded up to a multiple of {layout.ALIGNMENT}")
        header, room = layout.SLOT_HEADER_SIZE, layout.ROOM_TO_END
        assert layout.MAX_RECORD_SIZE == 2**24
        assert rules["longest payload"] == f"2^24 − {header}"  # noqa: RUF001
        assert rules["slots of a record"] == (
            f"({header} + `payload_length` + {room}) / `slot_size`, rounded up; "
            f"without the {room} where the status is {layout.TERMINATED_CODE}"
        )

    def test_slots_of_a_record(self) -> None:
        geometry = Geometry.for_capacity(4, 128)
        for code, status in format_reader.STATUSES.items():
            room = 0 if status == "terminated" else 32
            runs = [geometry.run_length(length, code) for length in range(1000)]
            assert runs == [(64 + length + room + 127) // 128 for length in range(1000)]

    def test_index_sizes(self) -> None:
        for capacity in range(1, 2000):
            number = -(-capacity * 43 // 10)
            while is_near_a_power(number) or not is_prime(number):
                number += 1
            assert layout.index_size_for(capacity) == number

    def test_crcs(self) -> None:
        assert f"`123456789` is 0x{zlib.crc32(b'123456789'):X}." in PAGE.replace("\n", " ")
        for heading, name, label in (
            ("The table header", "crc", "table header"),
            ("The slot header", "header_crc", "slot"),
        ):
            (text,) = [row["type and unit"] for row in rows(heading) if row["name"] == name]
            ranges = re.findall(r"(\d+) to (\d+)", text)
            raw = block(label)
            covered = b"".join(raw[int(first) : int(last) + 1] for first, last in ranges)
            offset, width = named(fields(heading))[name]
            assert int.from_bytes(raw[offset : offset + width], "little") == zlib.crc32(covered)

    def test_example_of_a_table_header(self) -> None:
        memory = bytearray(64)
        instance = UUID("00112233-4455-6677-8899-aabbccddeeff")
        TableHeader(instance, 1, Geometry.for_capacity(8, 512), 0).store(memory)
        assert block("table header") == memory

    def test_example_of_a_slot(self) -> None:
        second = 10**9
        payload = Payload(
            metadata=encode_map({"user": "Zoë", "n": -1}, "metadata"),
            llm_config=encode_map({"t": 0.5}, "llm_config"),
            expires=1_700_000_060 * second,
            deadline=60_000 * second,
        )
        session = Session(
            UUID("0f0e0d0c-0b0a-4908-8706-050403020100"),
            5,
            SessionStatus.ACTIVE,
            4242,
            1_700_000_000 * second,
            1_700_000_000 * second + second // 4,
            payload.encode(),
        )
        raw = block("slot")
        assert raw == pack_slot(session)
        assert format_reader.decode_slot(raw[:64], raw[64:]) == record_of(session)
        text = " ".join(section("The payload").split())
        assert f"The word is 0x{layout.index_word(5, 3):X}." in text
        home = session.session_id.int % 37
        assert f"With an `index_size` of 37 the home is entry {home}." in text
        writer = make_writer(8)
        writer.insert(session)
        assert (len(writer.reach), writer.index.words[home] > layout.CLOSED) == (37, True)
        assert f"other has this home, `reach[{home}]` is {writer.reach[home]}." in text

    def test_example_of_a_record_of_two_slots(self) -> None:
        second = 10**9
        note = "A record goes on where its first slot ends, with no other header."
        payload = Payload(
            metadata=encode_map({"note": note}, "metadata"), llm_config=encode_map({}, "llm_config")
        )
        session = Session(
            UUID("00010203-0405-4607-8809-0a0b0c0d0e0f"),
            9,
            SessionStatus.IDLE,
            None,
            1_700_000_000 * second,
            1_700_000_001 * second,
            payload.encode(),
        )
        raw = block("two slots")
        assert raw == pack_slot(session)
        assert format_reader.decode_slot(raw[:64], raw[64:]) == record_of(session)
        text = " ".join(section("The payload").split())
        assert f"The word is 0x{layout.index_word(9, 2):X}." in text
        size = len(raw) + layout.ROOM_TO_END
        assert f"are {len(raw)} bytes, and with the 32 for its end {size}, so slot 3" in text
        assert f"The last {len(raw) - 128} bytes stand there:" in text
        writer = make_writer(4, 128)
        writer.insert(session)
        slot = writer.index.words[session.session_id.int % len(writer.reach)] & layout.SLOT_MASK
        assert writer.space.records == {slot: 2}
        offset = writer.slots.offset(slot)
        assert writer.slots.memory[offset : offset + len(raw)] == raw

    def test_its_reader_uses_nothing_of_the_package(self) -> None:
        tree = ast.parse(Path(format_reader.__file__).read_text(encoding="utf-8"))
        imported = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        } | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        # The last three are for the annotations.
        assert imported == {
            *("mmap", "os", "struct", "time", "zlib"),
            *("__future__", "typing", "uuid"),
        }


# ---------------------------------------------------------------------------- registries at rest


def record_of(session: Session) -> Record:
    """Return the session as the other reader gives it, by what the package gives."""
    payload = session.payload()
    return {
        "session_id": session.session_id.bytes,
        "version": session.version,
        "created_at": session._created,
        "updated_at": session._updated,
        "pid": session.pid,
        "status": session.status.value,
        "metadata": session.metadata,
        "llm_config": session.llm_config,
        **{name: getattr(payload, name) for name in Payload.__struct_fields__[2:]},
    }


def by_id(records: list[Record]) -> dict[object, Record]:
    """Return records by id, once each id is known to be there once."""
    found = {record["session_id"]: record for record in records}
    assert len(found) == len(records)
    return found


def assert_same(reader: Reader, name: str) -> None:
    """Compare all that the two readers give of a registry at rest."""
    with SessionReader(name, verify=True) as theirs:
        expected = {session.session_id.bytes: record_of(session) for session in theirs.values()}
        assert by_id(reader.list()) == expected
        if format_reader.ORDERED and theirs.version is not None:
            assert reader.snapshot == 2 * theirs.version
        for key, record in expected.items():
            assert reader.look_up(UUID(bytes=key)) == record


# No fixture gives a reader or a manager: pytest would keep it, and so its mappings, for longer
# than the check that nothing is left behind.


@contextlib.contextmanager
def managing(name: str, **options: Any) -> Iterator[SessionManager]:  # noqa: ANN401 - as they are
    """Make a registry, and destroy it in the end."""
    with SessionManager(name, **options) as manager:
        yield manager
        manager.unlink()


#: An example of each form of msgpack that a map may hold.
VALUES: dict[str, Any] = {
    "constants": [None, True, False],
    "integers": [0, 127, 128, 255, 256, 65535, 65536, 2**32 - 1, 2**32, 2**63 - 1, 2**64 - 1],
    "negative": [-1, -32, -33, -128, -129, -32768, -32769, -(2**31), -(2**31) - 1, -(2**63)],
    "floats": [0.0, -0.0, 0.1, -1e308, 5e-324],
    "strings": ["", "x" * 31, "x" * 32, "é" * 128, "\U0001f600" * 70_000],
    "arrays": [[], [1] * 15, [2] * 16, [3] * 70_000],
    "maps": [{}, {str(n): n for n in range(16)}, {str(n): n for n in range(70_000)}],
}


class TestAtRest:
    """All that a record holds."""

    def test_every_field(self, name: str) -> None:
        with managing(name, capacity=16, cleanup_delay=3600) as manager:
            reader = attach(name, 0)
            assert reader.list() == []
            plain = manager.create_session()
            full = manager.create_session({"a": [1, {"b": None}]}, {"t": 0.7}, os.getpid(), 3600)
            ended = manager.create_session({"n": 1})
            manager.terminate_session(ended, "went wrong – badly")  # noqa: RUF001
            quiet = manager.create_session(pid=os.getpid())
            manager.terminate_session(quiet)
            moves = ("active", "idle", "active", "terminating")
            for status in moves:
                manager.update_session(full, status=status)
                assert_same(reader, name)
            found = by_id(reader.list())
            assert [found[sid.bytes]["status"] for sid in (plain, full, ended, quiet)] == [
                *("initializing", "terminating"),
                *("terminated", "terminated"),
            ]
            assert found[ended.bytes]["error"] == "went wrong – badly"  # noqa: RUF001
            assert found[full.bytes]["pid"] == os.getpid()
            session = manager[full]
            assert session.expires_at is not None
            for record, when in (
                ("created_at", session.created_at),
                ("expires", session.expires_at),
            ):
                assert found[full.bytes][record] == round(when.timestamp() * 10**6) * 1000
            assert reader.look_up(UUID(int=1)) is None

    def test_every_form_of_msgpack(self, name: str) -> None:
        with managing(name, capacity=2, slot_size=1 << 22) as manager:
            sid = manager.create_session(VALUES, {"nested": nested(31)})
            reader = attach(name, 0)
            record = reader.look_up(sid)
            assert record is not None
            assert repr(record["metadata"]) == repr(VALUES)
            assert_same(reader, name)

    def test_a_request_id_and_a_time_before_1970(self) -> None:
        payload = Payload(
            metadata=encode_map({}, ""), llm_config=encode_map({}, ""), request=bytes(range(16))
        )
        session = Session(UUID(int=1), 1, SessionStatus.IDLE, None, -1000, 0, payload.encode())
        raw = pack_slot(session)
        assert format_reader.decode_slot(raw[:64], raw[64:]) == record_of(session)


class TestLongRecords:
    """Records of several slots."""

    @pytest.mark.parametrize("length", [
        pytest.param(600, id="two slots"),
        pytest.param(9_000, id="many"),
        pytest.param(20 << 10, id="20 KiB"),
        pytest.param(1 << 20, id="1 MiB"),
    ])  # fmt: skip
    def test_of_this_length(self, name: str, length: int) -> None:
        options = {"capacity": 16, "cleanup_delay": 3600, "max_record_size": 2**24}
        with managing(name, **options) as manager:
            reader = attach(name, 0)
            short = manager.create_session({"n": 1})
            sids = [manager.create_session({"text": letter * length}) for letter in "ab"]
            assert_same(reader, name)
            for letter, sid in zip("ab", sids, strict=True):
                assert (reader.look_up(sid) or {})["metadata"] == {"text": letter * length}
            manager.update_session(sids[0], metadata={}, llm_config={"text": "c" * length})
            manager.update_session(short, metadata={"text": "d" * length})
            manager.terminate_session(sids[1], "over")
            assert_same(reader, name)
            # Back into one slot, and what it gave back is taken by another.
            manager.update_session(sids[0], llm_config=None)
            manager.create_session({"text": "e" * length})
            assert_same(reader, name)
            assert manager.check() == []

    def test_of_each_length_at_a_border(self, name: str) -> None:
        with managing(name, capacity=64, slot_size=128) as manager:
            reader = attach(name, 0)
            sid = manager.create_session()
            runs = set()
            for length in range(300):
                manager.update_session(sid, metadata={"text": "x" * length})
                assert (reader.look_up(sid) or {})["metadata"] == {"text": "x" * length}
                runs.update(manager._registry.table.space.records.values())
            assert runs == {2, 3, 4}
            assert_same(reader, name)

    def test_in_the_last_slots_of_a_table(self, name: str) -> None:
        options = {"capacity": 20, "slot_size": 128, "grow": False, "cleanup_delay": 3600}
        with managing(name, **options) as manager:
            table = manager._registry.table
            sid = manager.create_session({"text": "x" * 1100})
            assert table.space.records == {16: 10}
            reader = attach(name, 0)
            for start in (26, 16):
                manager.update_session(sid, status="active")
                assert table.space.records == {start: 10}
                assert_same(reader, name)
            # With a reason that makes it end where the table does.
            size = 64 + len(manager[sid]._payload) + len(b"\xc0\xd9n\xcf12345678")
            manager.terminate_session(sid, "y" * (10 * 128 - size))
            assert table.space.records == {26: 10}
            offset = table.slots.offset(26)
            assert offset + 64 + len(manager[sid]._payload) == table.geometry.size
            assert_same(reader, name)

    def test_across_growth(self, name: str) -> None:
        with managing(name, capacity=1, slot_size=128) as manager:
            reader = attach(name, 0)
            before = reader._table.generation
            for n in range(1, 30):
                manager.create_session({"text": "x" * (n * 331 % 2000)})
                assert_same(reader, name)
            assert reader._table.generation > before + 3
            for capacity, slot_size in ((1000, 1024), (100, 16 << 10), (1000, 192)):
                manager.resize(capacity, slot_size)
                assert_same(reader, name)
                assert reader._table.slot_size == slot_size
                for sid in list(manager)[:5]:
                    manager.update_session(sid, llm_config={"text": "y" * slot_size})
                assert_same(reader, name)
                assert manager.check() == []


def nested(depth: int) -> object:
    """Return containers that stand ``depth`` deep in each other."""
    return [nested(depth - 1)] if depth else None


# ---------------------------------------------------------------------------- changes


def remove(manager: SessionManager, sid: UUID) -> None:
    """End a session and wait until it is gone."""
    manager.terminate_session(sid)
    wait_until(lambda: sid not in manager)


def crowd(capacity: int) -> list[UUID]:
    """Return ids that all have the last home of a table, where its index runs over."""
    size = Geometry.for_capacity(capacity, 128).index_size
    return [UUID(int=size - 1 + n * size) for n in range(2 * capacity)]


class TestChanges:
    """What a reader that stays meets."""

    def test_ids_that_share_a_home(self, name: str) -> None:
        chance = random.Random(4)
        ids = crowd(4)
        with managing(name, capacity=4, slot_size=128, cleanup_delay=0) as manager:
            reader = attach(name, 0)
            for _ in range(60):
                sid = chance.choice(ids)
                if sid in manager:
                    remove(manager, sid)
                elif len(manager) < 4:
                    manager.create_session({"n": sid.int % 997}, session_id=sid)
                assert_same(reader, name)
                for each in ids:
                    assert (reader.look_up(each) is not None) == (each in manager)

    def test_expiry(self, name: str) -> None:
        with managing(name, cleanup_delay=3600) as manager:
            reader = attach(name, 0)
            sid = manager.create_session(ttl=0.02)
            wait_until(lambda: (reader.look_up(sid) or {}).get("status") == "terminated")
            assert (reader.look_up(sid) or {})["error"] == "expired"
            assert_same(reader, name)

    def test_a_terminated_session_disappears(self, name: str) -> None:
        with managing(name, cleanup_delay=0.02) as manager:
            reader = attach(name, 0)
            sid = manager.create_session()
            manager.terminate_session(sid)
            wait_until(lambda: reader.look_up(sid) is None)
            assert reader.list() == []

    def test_closed(self, name: str) -> None:
        with SessionManager(name) as manager:
            sid = manager.create_session()
            readers = [attach(name, 30) for _ in range(3)]
            manager.unlink()
        with pytest.raises(ClosedError):
            readers[0].look_up(sid)
        with pytest.raises(ClosedError):
            readers[1].list()
        with pytest.raises(ClosedError):
            readers[2].look_up(of_another_home(sid, readers[2]._table.index_size))
        assert readers[0].change() % 2 == 1
        with pytest.raises(NotFoundError):
            attach(name, 0)

    def test_a_new_instance(self, name: str) -> None:
        with SessionManager(name) as manager:
            old = manager.create_session()
        readers = [attach(name, 30) for _ in range(3)]
        new = of_another_home(old, readers[0]._table.index_size)
        with managing(name, fresh=True) as manager:
            manager.create_session(session_id=new)
            assert readers[0].look_up(old) is None
            # The home of this one has no session in the table that was given up.
            assert readers[1].look_up(new) == record_of(manager[new])
            for reader in readers:
                assert_same(reader, name)
                assert reader.look_up(new) == record_of(manager[new])

    def test_another_writer(self, name: str) -> None:
        with SessionManager(name) as manager:
            sid = manager.create_session()
        reader = attach(name, 0)
        with managing(name) as manager:
            manager.update_session(sid, status="active")
            assert_same(reader, name)

    def test_a_slot_used_again_during_the_copy(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with managing(name, capacity=16) as manager:
            sid = manager.create_session({"n": 0})
            reader = attach(name, 0)

            def all_slots_anew() -> None:
                for n in range(1, 40):
                    manager.update_session(sid, metadata={"n": n})

            at_first_call(monkeypatch, "_copy", before=all_slots_anew)
            assert (reader.look_up(sid) or {})["metadata"] == {"n": 39}
            at_first_call(monkeypatch, "_copy", after=lambda: remove_now(manager, sid))
            assert reader.look_up(sid) is None

    @pytest.mark.parametrize("letter", ["\0", "\x7f"])
    def test_a_slot_in_the_midst_of_another_record_during_the_copy(
        self, name: str, letter: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with managing(name, capacity=20, slot_size=128, grow=False) as manager:
            before = manager.create_session({"text": "a" * 300})
            sid = manager.create_session({"text": "b" * 300})
            space = manager._registry.table.space
            assert space.records == {16: 4, 20: 4}
            reader = attach(name, 0)

            def fill_the_midst() -> None:
                remove_now(manager, before)
                manager.update_session(sid, metadata={"n": 1})
                manager.create_session({"text": letter * 900})

            # What looks like a header then says a length, too: none, or one beyond all.
            at_first_call(monkeypatch, "_copy", before=fill_the_midst)
            assert (reader.look_up(sid) or {})["metadata"] == {"n": 1}
            ((start, length),) = space.records.items()
            assert start < 20 < start + length
            assert_same(reader, name)

    def test_created_again_during_a_list(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with managing(name, capacity=16) as manager:
            first, second, *_ = crowd(16)
            manager.create_session({"n": 1}, session_id=first)
            reader = attach(name, 0)

            def move() -> None:
                remove_now(manager, first)
                manager.create_session(session_id=second)
                manager.create_session({"n": 2}, session_id=first)

            home = first.int % Geometry.for_capacity(16, 512).index_size
            at_first_call(monkeypatch, "read", after=move, when=home)
            assert by_id(reader.list())[first.bytes]["metadata"] == {"n": 2}
            assert reader.snapshot is None
            assert_same(reader, name)


def of_another_home(sid: UUID, index_size: int) -> UUID:
    """Return an id whose home is the next one, or the one before."""
    at_last = sid.int % index_size == index_size - 1
    return UUID(int=sid.int + (-1 if at_last else 1))


def remove_now(manager: SessionManager, sid: UUID) -> None:
    """Remove a session without a delay."""
    entry, *_ = manager._registry.table.look_up(sid) or ()
    manager._registry.table.remove(entry)


def at_first_call(
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    *,
    before: Callable[[], None] = int,  # type: ignore[assignment]  # does nothing
    after: Callable[[], None] = int,  # type: ignore[assignment]
    when: int | None = None,
) -> None:
    """Do something around the first call of a table's method, with the argument ``when``."""
    original = getattr(format_reader._Table, method)
    pending = [True]

    def stand_in(self: object, argument: int) -> object:
        if when in {None, argument} and pending:
            pending.clear()
            before()
            result = original(self, argument)
            after()
            return result
        return original(self, argument)

    monkeypatch.setattr(format_reader._Table, method, stand_in)


# ---------------------------------------------------------------------------- states and damage


class Still:
    """A registry without a writer, with one session, whose bytes a test may change.

    With another text the session has a record of several slots.
    """

    def __init__(
        self, name: str, text: str = "Zoë", *, capacity: int = 4, slot_size: int = 256
    ) -> None:
        self.name = name
        with SessionManager(name, capacity=capacity, slot_size=slot_size) as manager:
            self.sid = manager.create_session({"user": text, "n": [1, 2, 3]}, {"t": 0.5})
        self.control = path_of(name)
        self.table = path_of(name, 1)
        self.geometry = Geometry.for_capacity(capacity, slot_size)
        self.home = self.sid.int % self.geometry.index_size
        self.word_offset = 64 + 8 * self.home
        self.reach_offset = self.geometry.reach_offset + self.home
        self.other = of_another_home(self.sid, self.geometry.index_size)
        self.other_home = self.other.int % self.geometry.index_size
        word = int.from_bytes(self.read(self.table, self.word_offset, 8), "little")
        slot = word & layout.SLOT_MASK
        self.slot_offset = self.geometry.slots_offset + slot * self.geometry.slot_size
        length = self.read(self.table, self.slot_offset + 44, 4)
        self.end = self.slot_offset + 64 + int.from_bytes(length, "little")

    @staticmethod
    def read(path: Path, offset: int, width: int) -> bytes:
        """Return bytes of an object."""
        with path.open("rb") as file:
            return os.pread(file.fileno(), width, offset)

    @staticmethod
    def write(path: Path, offset: int, raw: bytes) -> None:
        """Change bytes of an object."""
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), raw, offset)

    def word(self, path: Path, offset: int, value: int) -> None:
        """Store a word."""
        self.write(path, offset, value.to_bytes(8, "little"))

    @contextlib.contextmanager
    def flipped(self, path: Path, offset: int) -> Iterator[None]:
        """Change one bit for a while."""
        before = self.read(path, offset, 1)
        self.write(path, offset, bytes([before[0] ^ 1 << offset % 8]))
        yield
        self.write(path, offset, before)

    def give_up(self, word: int) -> None:
        """Do by hand what the page says of a table that is given up."""
        self.give_up_reaches()
        for entry in range(self.geometry.entries):
            self.word(self.table, 64 + 8 * entry, word)

    def give_up_reaches(self) -> None:
        """Do the first half of it: a writer may be killed then."""
        reaches = bytes([layout.GIVEN_UP_REACH]) * self.geometry.index_size
        self.write(self.table, self.geometry.reach_offset, reaches)

    def put(self, payload: bytes) -> None:
        """Put another payload in place, with all that goes with it."""
        self.write(self.table, self.slot_offset + 44, len(payload).to_bytes(4, "little"))
        self.write(self.table, self.slot_offset + 64, payload)
        self.seal()

    def unlink(self) -> None:
        """Remove its objects."""
        for path in self.control.parent.glob(f"{self.control.name}*"):
            path.unlink()

    def set_length(self, length: int) -> None:
        """Change the payload's length, in a header whose crc is right."""
        self.write(self.table, self.slot_offset + 44, length.to_bytes(4, "little"))
        header = self.read(self.table, self.slot_offset, 60)
        self.write(self.table, self.slot_offset + 60, zlib.crc32(header).to_bytes(4, "little"))

    def seal(self) -> None:
        """Make the slot's crcs fit what it holds."""
        length = int.from_bytes(self.read(self.table, self.slot_offset + 44, 4), "little")
        payload = self.read(self.table, self.slot_offset + 64, length)
        self.write(self.table, self.slot_offset + 52, zlib.crc32(payload).to_bytes(4, "little"))
        header = self.read(self.table, self.slot_offset, 60)
        self.write(self.table, self.slot_offset + 60, zlib.crc32(header).to_bytes(4, "little"))


@pytest.fixture
def still(name: str) -> Iterator[Still]:
    """A registry without a writer."""
    made = Still(name)
    yield made
    made.unlink()


@pytest.fixture
def long(name: str) -> Iterator[Still]:
    """The same, with a record of two slots."""
    made = Still(name, "Zoë" * 70)
    assert made.end - made.slot_offset > 256 + 32
    yield made
    made.unlink()


class TestAttaching:
    """What is to be waited for, and what is not."""

    @pytest.fixture(params=["cut", "no magic", "no table", "empty table", "table", "foreign"])
    def half_made(self, still: Still, request: pytest.FixtureRequest) -> Callable[[], None]:
        """Return what completes a registry that is half-made in one of the ways there are."""
        control, table = still.control.read_bytes(), still.table.read_bytes()
        if request.param == "cut":
            still.control.write_bytes(control[:4095])
        elif request.param == "no magic":
            still.word(still.control, 0, 0)
        elif request.param == "no table":
            still.table.unlink()
        elif request.param == "empty table":
            still.table.write_bytes(b"")
        elif request.param == "table":
            still.word(still.table, 0, 0)
        else:
            header = TableHeader.read(bytearray(table))
            assert header is not None
            raw = bytearray(64)
            header._replace(instance=UUID(int=7)).store(raw)
            still.write(still.table, 0, raw)

        def complete() -> None:
            still.control.write_bytes(control)
            still.table.write_bytes(table)

        return complete

    def test_half_made(self, still: Still, half_made: Callable[[], None]) -> None:
        with pytest.raises(NotFoundError):
            attach(still.name, 0)
        half_made()
        assert attach(still.name, 0).look_up(still.sid) is not None

    def test_completed_meanwhile(
        self, still: Still, half_made: Callable[[], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pauses = []

        class Clock:
            monotonic = staticmethod(time.monotonic)

            @staticmethod
            def sleep(seconds: float) -> None:
                pauses.append(seconds)
                half_made()

        monkeypatch.setattr(format_reader, "time", Clock)
        assert attach(still.name, 30).look_up(still.sid) is not None
        assert len(pauses) == 1

    @pytest.mark.parametrize(("offset", "value"), [(0, 1), (8, 0), (8, 1), (8, 2), (8, 4)])
    def test_another_format(self, still: Still, offset: int, value: int) -> None:
        still.word(still.control, offset, value)
        with pytest.raises(OtherFormatError):
            attach(still.name, 30)

    def test_damage_to_the_header(self, still: Still) -> None:
        for offset in range(64):
            with still.flipped(still.table, offset), pytest.raises(DamagedError):
                attach(still.name, 30)

    @pytest.mark.parametrize("version", [0, 1, 2, 4])
    def test_another_format_of_the_table(
        self, still: Still, version: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        header = TableHeader.read(bytearray(still.table.read_bytes()))
        assert header is not None
        monkeypatch.setattr("jidoka_shm.header.FORMAT_VERSION", version)
        raw = bytearray(64)
        header.store(raw)
        still.write(still.table, 0, raw)
        with pytest.raises(DamagedError):
            attach(still.name, 30)

    @pytest.mark.parametrize(("index_size", "slot_count", "slot_size"), [
        (0, 20, 256),
        (19, 16, 256),
        (19, 20, 64),
        (19, 20, 250),
        (19, 20, 512),
        (60, 20, 256),
        (19, 2**32 - 1, 2**24),
    ])  # fmt: skip
    def test_sizes_that_cannot_be(
        self, still: Still, index_size: int, slot_count: int, slot_size: int
    ) -> None:
        geometry = Geometry(index_size=index_size, slot_count=slot_count, slot_size=slot_size)
        header = TableHeader.read(bytearray(still.table.read_bytes()))
        assert header is not None
        raw = bytearray(64)
        header._replace(geometry=geometry).store(raw)
        still.write(still.table, 0, raw)
        with pytest.raises(DamagedError):
            attach(still.name, 30)


class TestStates:
    """What a writer may leave behind."""

    @pytest.mark.parametrize("call", ["look_up", "list"])
    def test_growth(self, still: Still, call: str) -> None:
        reader = attach(still.name, 30)
        grow(still)
        with SessionReader(still.name) as theirs:
            expected = record_of(theirs[still.sid])
        found = [reader.look_up(still.sid)] if call == "look_up" else reader.list()
        assert found == [expected]
        assert reader._table.generation == 2
        assert reader._table.entries > still.geometry.entries
        with SessionManager(still.name) as manager:
            manager.update_session(still.sid, metadata={"n": 2})
            assert_same(reader, still.name)

    @pytest.mark.parametrize("slot_size", [128, 512])
    def test_growth_with_a_long_record(self, long: Still, slot_size: int) -> None:
        reader = attach(long.name, 30)
        record = reader.look_up(long.sid)
        grow(long, slot_size)
        assert [record] == reader.list()
        assert reader._table.slot_size == slot_size
        with SessionManager(long.name) as manager:
            manager.update_session(long.sid, status="active")
            assert_same(reader, long.name)
            assert manager.check() == []

    @pytest.mark.parametrize("sizes", [(100, 128), (1, 1024)])
    def test_growth_by_a_manager(self, still: Still, sizes: tuple[int, int]) -> None:
        reader = attach(still.name, 30)
        with SessionManager(still.name) as manager:
            assert_same(reader, still.name)
            generation = reader._table.generation
            manager.resize(*sizes)
            assert_same(reader, still.name)
            manager.update_session(still.sid, metadata={"n": 2})
            manager.create_session()
            assert_same(reader, still.name)
            assert reader._table.generation > generation

    def test_created_after_a_growth(self, still: Still) -> None:
        reader = attach(still.name, 30)
        assert still.read(still.table, still.geometry.reach_offset + still.other_home, 1) == b"\0"
        assert reader.look_up(still.other) is None
        grow(still)
        with SessionManager(still.name) as manager:
            manager.create_session(session_id=still.other)
            assert reader.look_up(still.other) == record_of(manager[still.other])

    def test_a_writer_killed_in_mid_commit(self, still: Still) -> None:
        still.word(still.control, 64, 3)
        reader = attach(still.name, 0)
        assert reader.list() == [reader.look_up(still.sid)]
        assert reader.snapshot is None

    def test_a_writer_killed_in_a_destruction(self, still: Still) -> None:
        readers = [attach(still.name, 30) for _ in range(3)]
        still.word(still.control, 64, 3)
        still.give_up(layout.CLOSED)
        with pytest.raises(ClosedError):
            readers[0].look_up(still.sid)
        with pytest.raises(ClosedError):
            readers[1].list()
        with pytest.raises(ClosedError):
            readers[2].look_up(still.other)

    def test_a_writer_killed_in_a_destruction_before_the_words(self, still: Still) -> None:
        reader = attach(still.name, 30)
        still.word(still.control, 64, 3)
        still.give_up_reaches()
        assert [reader.look_up(still.sid)] == reader.list() != [None]
        assert reader.look_up(still.other) is None
        with managing(still.name) as manager:
            assert still.sid in manager
            manager.create_session(session_id=still.other)
            assert reader.look_up(still.other) == record_of(manager[still.other])

    def test_the_name_is_gone(self, still: Still) -> None:
        reader = attach(still.name, 30)
        still.control.unlink()
        assert reader.look_up(still.sid) is not None
        with pytest.raises(ClosedError):
            reader.list()

    @pytest.mark.parametrize("kind", ["still", "long"])
    def test_bytes_behind_the_payload_do_not_count(
        self, kind: str, request: pytest.FixtureRequest
    ) -> None:
        left: Still = request.getfixturevalue(kind)
        reader = attach(left.name, 0)
        record = reader.look_up(left.sid)
        for offset in range(left.end, left.end + layout.ROOM_TO_END):
            with left.flipped(left.table, offset):
                assert reader.look_up(left.sid) == record

    def test_a_writer_killed_between_the_two_commits_of_an_update(self, name: str) -> None:
        with Script(TWICE, name) as writer:
            sid = UUID(writer.line())
            reader = attach(name, 30)
            before = reader.look_up(sid) or {}
            writer.go()
            writer.end()
        after = reader.look_up(sid) or {}
        assert (before["metadata"]["n"], after["metadata"]["n"]) == (1, 2)
        with managing(name, grow=False) as manager:
            assert_same(reader, name)
            assert manager[sid].version == after["version"] + 2
            assert manager[sid].metadata == after["metadata"]
            assert manager.check() == []


#: A writer that ends in an update that no slots are free for but the reserve.
TWICE = """
    import os, sys
    from jidoka_shm import SessionManager

    with SessionManager(sys.argv[1], capacity=26, slot_size=128, grow=False) as manager:
        table = manager._registry.table
        # Single slots that lie apart, so that they are no reserve.
        for sid in [manager.create_session() for _ in range(26)][::2]:
            table.remove(table.look_up(sid)[0])
        manager.create_session({"text": "x" * 500})
        sid = manager.create_session({"n": 1, "text": "y" * 130})
        assert table.space.records == {29: 5, 34: 2}
        assert table.space.runs() == {6: 1}
        print(sid, flush=True)
        sys.stdin.readline()
        commit = table._commit

        def commit_once(*arguments):
            table._commit = lambda *arguments: os._exit(0)
            commit(*arguments)

        table._commit = commit_once
        manager.update_session(sid, metadata={"n": 2, "text": "z" * 130})
"""


def grow(still: Still, slot_size: int = 512) -> None:
    """Do by hand what the page says of growth."""
    header = TableHeader.read(bytearray(still.table.read_bytes()))
    assert header is not None
    geometry = Geometry.for_capacity(100, slot_size)
    control = ControlWriter(bytearray(still.control.read_bytes()))
    writer = TableWriter(bytearray(geometry.size), control, geometry)
    with SessionReader(still.name) as theirs:
        for session in theirs.values():
            writer.insert(session)
    header._replace(generation=2, geometry=geometry).store(writer.slots.memory)
    path_of(still.name, 2).write_bytes(writer.slots.memory)
    still.word(still.control, 32, 2)
    still.give_up(layout.MOVED)
    still.table.unlink()


def payload_of(length: int) -> bytes:
    """Return a payload of so many bytes, 98 and more."""
    text = length - len(b"\x92\x81\xa1a\xdb1234\x80")
    return b"\x92\x81\xa1a\xdb" + text.to_bytes(4, "big") + b"x" * text + b"\x80"


class TestDamage:
    """That what cannot be is found, and never followed."""

    def expect(self, reader: Reader, sid: UUID) -> None:
        """See that a look-up and a list both find the damage."""
        with pytest.raises(DamagedError):
            reader.look_up(sid)
        with pytest.raises(DamagedError):
            reader.list()

    @pytest.mark.parametrize("kind", ["still", "long"])
    def test_each_byte_of_a_record(self, kind: str, request: pytest.FixtureRequest) -> None:
        left: Still = request.getfixturevalue(kind)
        reader = attach(left.name, 30)
        for offset in range(left.slot_offset, left.end):
            with left.flipped(left.table, offset):
                self.expect(reader, left.sid)

    @pytest.mark.parametrize("word", [3, 0xFFFFFF, 1 << 24 | 20, 1 << 24 | 0xFFFFFF, 2 << 24])
    def test_an_index_word(self, still: Still, word: int) -> None:
        reader = attach(still.name, 30)
        still.word(still.table, still.word_offset, word)
        self.expect(reader, still.sid)

    def test_a_reach(self, still: Still) -> None:
        reader = attach(still.name, 30)
        record = reader.look_up(still.sid)
        assert record is not None
        assert still.read(still.table, still.reach_offset, 1) == b"\1"
        with SessionReader(still.name) as theirs:
            for reach in range(256):
                still.write(still.table, still.reach_offset, bytes([reach]))
                # Too low, it hides the session from look-ups; too high, it is no damage.
                assert reader.look_up(still.sid) == (record if reach else None)
                assert reader.list() == [record]
                assert theirs.check() == ([] if reach else [f"reach of {still.home} is 0, not 1"])
            still.word(still.table, still.word_offset, layout.EMPTY)
            for reach in range(256):
                still.write(still.table, still.reach_offset, bytes([reach]))
                assert reader.look_up(still.sid) is None
                assert theirs.check() == []

    def test_a_reach_of_the_last_home(self, name: str) -> None:
        first, second, third, *_ = crowd(4)
        with managing(name, capacity=4, slot_size=128) as manager:
            for sid in (first, second):
                manager.create_session(session_id=sid)
            reader = attach(name, 30)
            table = reader._table
            place = table.reach_offset + table.index_size - 1
            for reach in range(256):
                Still.write(path_of(name, 1), place, bytes([reach]))
                found = [reader.look_up(sid) is not None for sid in (first, second, third)]
                # Whatever it is, it leads to no entry outside of the index.
                assert found == [reach > 0, reach > 1, False]

    @pytest.mark.parametrize("length", [192, 193, 1000, 20 * 256 - 64])
    def test_a_length_up_to_the_last_slot(self, still: Still, length: int) -> None:
        reader = attach(still.name, 30)
        assert still.slot_offset == still.geometry.slots_offset
        still.put(payload_of(length))
        record = reader.look_up(still.sid)
        assert record is not None
        assert [record] == reader.list()
        assert len(record["metadata"]["a"]) > length - 16

    @pytest.mark.parametrize("more", [1, 64, 256, 2**20])
    def test_a_length_beyond_the_last_slot(self, still: Still, more: int) -> None:
        reader = attach(still.name, 30)
        length = still.geometry.size - still.slot_offset - 64
        still.put(payload_of(length))
        assert reader.look_up(still.sid) is not None
        # All that there is of it has the right crc, and would be a good payload.
        still.set_length(length + more)
        self.expect(reader, still.sid)
        with SessionReader(still.name) as theirs, pytest.raises(CorruptRegistry):
            theirs.get(still.sid)

    @pytest.mark.parametrize(("more", "is_damage"), [(0, False), (1, True)])
    def test_the_greatest_length_and_one_more(
        self, name: str, more: int, *, is_damage: bool
    ) -> None:
        left = Still(name, capacity=3, slot_size=2**20)
        reader = attach(name, 30)
        length = 2**24 - 64 + more
        assert left.slot_offset + 64 + length < left.geometry.size
        left.put(payload_of(length))
        with SessionReader(name) as theirs:
            if is_damage:
                self.expect(reader, left.sid)
                with pytest.raises(CorruptRegistry):
                    theirs.get(left.sid)
            else:
                assert reader.look_up(left.sid) == record_of(theirs[left.sid])
        left.unlink()

    def test_a_length_that_leads_into_a_neighbours_slots(self, name: str) -> None:
        left = Still(name, "x" * 500, capacity=40)
        with SessionManager(name, capacity=40) as manager:
            other = manager.create_session({"user": "y" * 500})
            assert manager._registry.table.space.records == {16: 3, 19: 3}
        assert left.slot_offset == left.geometry.slots_offset + 16 * 256
        reader = attach(name, 30)
        record = reader.look_up(other)
        for length in range(3 * 256 - 63, 6 * 256, 17):
            left.set_length(length)
            self.expect(reader, left.sid)
            # By the crc alone, without a look at what the bytes are.
            with pytest.raises(DamagedError):
                reader._table.read(left.home)
            assert reader.look_up(other) == record
        with SessionManager(name) as manager:
            assert list(manager) == [other]
            assert manager.check() == []
            assert_same(reader, name)
        left.unlink()

    def test_a_length_beyond_all(self, still: Still) -> None:
        reader = attach(still.name, 30)
        still.write(still.table, still.slot_offset + 44, b"\xff" * 4)
        still.seal()
        self.expect(reader, still.sid)

    @pytest.mark.parametrize("code", [0, 6, 255])
    def test_a_status_code(self, still: Still, code: int) -> None:
        reader = attach(still.name, 30)
        still.write(still.table, still.slot_offset + 48, bytes([code]))
        still.seal()
        self.expect(reader, still.sid)

    @pytest.mark.parametrize("payload", [
        b"",  # nothing
        b"\xc0",  # no array
        b"\x91\x80",  # an array of one map
        b"\x92\x80\xc0",  # of a map and nil
        b"\x92\x80",  # of less than it says
        b"\x92\x80\x80\xc0",  # more than the array
        b"\x92\x80\x81\x01\x01",  # a key that is no string
        b"\x92\x80\x81\x80\x01",  # a key that is a map
        b"\x92\x80\x81\xa1\xff\x01",  # a key that is no UTF-8
        b"\x92\x80\x81\xa1a\xc1",  # a code that is none
        b"\x92\x80\x81\xa1a\xd4\x00\x00",  # an extension type
        b"\x92\x80\x81\xa1a\xdd\xff\xff\xff\xff",  # an array without end
        b"\x92\x80\x81\xa1a" + b"\x91" * 100 + b"\xc0",  # too deep
    ])  # fmt: skip
    def test_a_payload(self, still: Still, payload: bytes) -> None:
        reader = attach(still.name, 30)
        still.put(payload)
        self.expect(reader, still.sid)

    def test_an_element_that_is_new(self, still: Still) -> None:
        reader = attach(still.name, 30)
        payload = b"\x99\x80\x80" + b"\xc0" * 6 + b"\x07"
        still.put(payload)
        assert (reader.look_up(still.sid) or {})["request"] is None
        assert_same(reader, still.name)


# ---------------------------------------------------------------------------- at full speed

WRITER = """
    import os, sys, threading
    from uuid import UUID
    from zlib import crc32
    from jidoka_shm import SessionManager, SessionNotFound

    name, capacity, slot_size, longest, first, step = sys.argv[1], *map(int, sys.argv[2:])
    passing, *steady = [UUID(int=first + n * step) for n in range(4)]
    stop = threading.Event()

    def wait_for_a_line():
        sys.stdin.readline()
        stop.set()

    def end(sid):
        try:
            manager.terminate_session(sid)
        except SessionNotFound:
            pass  # it was ended before, and removed just now

    def maps(n):
        text = chr(97 + n % 26) * (n * n % longest)
        proof = crc32(f"{n} {text}".encode())
        return {"metadata": {"n": n, "text": text, "proof": proof}, "llm_config": {"n": n}}

    with SessionManager(name, capacity=capacity, slot_size=slot_size, cleanup_delay=0) as manager:
        # It takes the place nearest to the home, and leaves it, and takes it again.
        manager.create_session(session_id=passing)
        for n, sid in enumerate(steady):
            manager.create_session(pid=os.getpid(), ttl=3600, session_id=sid, **maps(n))
        print("at work", flush=True)
        thread = threading.Thread(target=wait_for_a_line)
        thread.start()
        while not stop.is_set():
            for sid in steady:
                n += 1
                manager.update_session(sid, status="active", **maps(n))
            if longest > slot_size and n % 500 < len(steady):
                # Records of many slots become records of few, and the reverse.
                manager.resize(capacity, slot_size * (1 + 7 * (n // 500 % 2)))
            if n % 11 == 0:
                if passing in manager:
                    end(passing)
                else:
                    manager.create_session(session_id=passing)
        thread.join()
        end(passing)
        while passing in manager:
            pass
        print("still", flush=True)
        sys.stdin.readline()
        manager.unlink()
"""


class Watch:
    """What was read of the sessions that a writer keeps changing."""

    def __init__(self, reader: Reader, steady: list[UUID]) -> None:
        self._reader = reader
        self._newest = {sid.bytes: 0 for sid in steady}
        self.overlapped = 0
        self.longest = 0

    def look_up(self, sid: UUID) -> None:
        """Look up a session that lives throughout."""
        before = self._reader.change()
        record = self._reader.look_up(sid)
        after = self._reader.change()
        self.overlapped += before != after or before % 2
        assert record is not None
        assert record["session_id"] == sid.bytes
        self._check(record)

    def list(self) -> None:
        """List all."""
        found = by_id(self._reader.list())
        for key in self._newest:
            self._check(found[key])
        if self._reader.snapshot is not None:
            # The writer changes one after the other, so at one moment these follow each other.
            numbers: list[Any] = sorted(self._number(found[key]) for key in self._newest)
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))

    @staticmethod
    def _number(record: Record) -> Any:  # noqa: ANN401 - an int
        assert isinstance(record["llm_config"], dict)
        return record["llm_config"]["n"]

    def _check(self, record: Record) -> None:
        """See that a record is whole, and no older than one seen before."""
        n, version, metadata = self._number(record), record["version"], record["metadata"]
        assert isinstance(version, int)
        assert isinstance(metadata, dict)
        assert metadata["n"] == n
        assert metadata["proof"] == zlib.crc32(f"{n} {metadata['text']}".encode())
        self.longest = max(self.longest, len(metadata["text"]))
        key = record["session_id"]
        assert isinstance(key, bytes)
        assert version >= self._newest[key]
        self._newest[key] = version


@pytest.mark.parametrize(("sizes", "first", "step"), [
    pytest.param((4, 512, 200), 18, 19, id="one home"),
    pytest.param((64, 512, 200), 5, 1 << 80, id="homes of their own"),
    pytest.param((256, 128, 5000), 5, 1 << 80, id="long records"),
])  # fmt: skip
def test_at_full_speed(name: str, sizes: tuple[int, int, int], first: int, step: int) -> None:
    capacity, slot_size, longest = sizes
    ids = [UUID(int=first + n * step) for n in range(4)]
    homes = {sid.int % Geometry.for_capacity(capacity, slot_size).index_size for sid in ids}
    assert len(homes) == (1 if capacity == 4 else 4)
    passing, *steady = ids
    with Script(WRITER, name, *sizes, first, step) as writer:
        assert writer.line() == "at work"
        reader = attach(name, 30)
        watch = Watch(reader, steady)
        generation = reader._table.generation
        looked_up = listed = 0
        seen: set[bool] = set()
        deadline = time.monotonic() + 60
        if longest > slot_size:
            generation += 3
        while (
            (looked_up < 2000 or listed < 50 or watch.overlapped < 100 or len(seen) < 2)
            or reader._table.generation < generation
            or watch.longest < longest * 3 // 4
        ):
            assert time.monotonic() < deadline
            for sid in steady * 10:
                watch.look_up(sid)
                looked_up += 1
            seen.add(reader.look_up(passing) is not None)
            watch.list()
            listed += 1
        writer.go()
        assert writer.line() == "still"
        assert_same(reader, name)
        watch.list()
        assert reader.snapshot is not None or not format_reader.ORDERED
        assert reader.look_up(passing) is None
        assert {record["session_id"] for record in reader.list()} == {sid.bytes for sid in steady}
        writer.go()
        writer.end()
        with pytest.raises(ClosedError):
            reader.list()
