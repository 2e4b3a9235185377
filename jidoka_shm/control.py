"""The control segment: which instance and generation there is, the change word, and who writes.

Reading is the base (``ControlReader``), writing adds to it (``ControlWriter``). Both work over any
buffer of ``CONTROL_SIZE`` bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from . import seqlock
from .errors import CorruptRegistry, FormatMismatch
from .layout import (
    CONTROL_FIELDS,
    CONTROL_MAGIC,
    CONTROL_SIZE,
    FORMAT_VERSION,
    SOCKET_PATH_SIZE,
)

if TYPE_CHECKING:
    from .layout import Memory

_WORD: Final = {name: offset // 8 for name, offset in CONTROL_FIELDS.items()}
_CHANGE: Final = _WORD["change"]
_IDENTITY: Final = _WORD["writer_pid"]
_SOCKET: Final = CONTROL_FIELDS["socket_path"]
_REMOVED: Final = _WORD["removed"]
_DROPPED: Final = _WORD["dropped"]

_LARGEST: Final = (1 << 64) - 1

#: Tries at a writer's identity, three words that only a takeover changes.
_IDENTITY_TRIES: Final = 100

COUNTERS: Final = ("created", "updated", "removed", "takeovers", "dropped")


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, told apart from a later one of the same pid.

    Attributes:
        pid: the process id in its own pid namespace.
        start: its start time in clock ticks after boot (field 22 of /proc/PID/stat).
        namespace: the inode number of its pid namespace.
    """

    pid: int
    start: int
    namespace: int


class ControlReader:
    """What every process may know of a registry as a whole."""

    __slots__ = ("_memory", "_words", "change")

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._words = memoryview(memory)[:CONTROL_SIZE].cast("Q")
        self.change = self._words[_CHANGE : _CHANGE + 1]

    def is_complete(self) -> bool:
        """Return whether its creation got to its end; the magic is stored last."""
        complete = self._words[_WORD["magic"]] != 0
        if seqlock.WEAK:
            seqlock.fence()
        return complete

    def is_ours(self) -> bool:
        """Return whether it is complete and of this package's format."""
        magic, version = self._words[_WORD["magic"]], self._words[_WORD["format"]]
        return (magic, version) == (CONTROL_MAGIC, FORMAT_VERSION)

    def check_format(self, name: str) -> None:
        """Raise unless this package can read it.

        Raises:
            FormatMismatch: naming the format found and the one supported.
        """
        known = self._words[_WORD["magic"]] == CONTROL_MAGIC
        found = self._words[_WORD["format"]] if known else None
        if found != FORMAT_VERSION:
            raise FormatMismatch(name, found, FORMAT_VERSION)

    @property
    def instance(self) -> UUID:
        """The id of this creation of the registry; versions repeat in another one."""
        start = CONTROL_FIELDS["instance"]
        return UUID(bytes=bytes(self._memory[start : start + 16]))

    @property
    def generation(self) -> int:
        """Which table holds the sessions."""
        return self._words[_WORD["generation"]]

    def writer(self) -> Identity | None:
        """Return who writes, or wrote last; None where the last one closed.

        The three words are published under the change word. A writer killed between them leaves
        it odd for ever, so after some tries they are taken as they are: whoever wrote them is
        dead then, and half an identity says so too.
        """
        identity: list[int] = []
        for _ in range(_IDENTITY_TRIES):
            before = seqlock.begin_scan(self.change)
            identity = self._words[_IDENTITY : _IDENTITY + 3].tolist()
            if seqlock.end_scan(self.change, before):
                break
        return Identity(*identity) if identity[0] else None

    def counters(self) -> dict[str, int]:
        """Return how often each thing happened since the registry was created."""
        return {name: self._words[_WORD[name]] for name in COUNTERS}

    @property
    def removals(self) -> int:
        """How many sessions were removed, or dropped as damaged, since the registry was created."""
        return self._words[_REMOVED] + self._words[_DROPPED]

    @property
    def socket_path(self) -> str | None:
        """Where the writer listens for clients; None where it does not.

        It may be torn while a writer stores it. Who connects learns that from what answers, or
        from nothing that does, and reads it again.
        """
        text = bytes(self._memory[_SOCKET : _SOCKET + SOCKET_PATH_SIZE]).partition(b"\0")[0]
        try:
            return text.decode() or None
        except UnicodeDecodeError:
            return None


class ControlWriter(ControlReader):
    """What only the holder of the registry's lock may do to its control."""

    __slots__ = ()

    def initialize(self, instance: UUID, generation: int, writer: Identity) -> None:
        """Fill a control that is all zero, but for the magic."""
        start = CONTROL_FIELDS["instance"]
        self._memory[start : start + 16] = instance.bytes
        self._words[_WORD["format"]] = FORMAT_VERSION
        self._words[_WORD["generation"]] = generation
        self.publish_writer(writer)

    def complete(self) -> None:
        """Store the magic: from now on readers attach."""
        if seqlock.WEAK:
            seqlock.fence()
        self._words[_WORD["magic"]] = CONTROL_MAGIC

    def clear(self) -> None:
        """Make a half-made control all zero again. No reader has it: its magic never stood."""
        if self.is_complete():
            reason = "a complete control was to be cleared"
            raise CorruptRegistry(reason)
        self._memory[:CONTROL_SIZE] = bytes(CONTROL_SIZE)

    def advance(self, generation: int) -> None:
        """Make another table the one that holds the sessions; this one store commits a growth."""
        if seqlock.WEAK:
            seqlock.fence()
        self._words[_WORD["generation"]] = generation
        if seqlock.WEAK:
            seqlock.fence()

    def revoke(self, gone: Any) -> None:  # noqa: ANN401 - stands where many things did
        """Make each later store use ``gone``, which raises: in a forked child, as for a table."""
        self._memory = self._words = self.change = gone

    def publish_writer(self, identity: Identity) -> None:
        """Store who writes: before the magic, or while the change word is held odd."""
        self._words[_IDENTITY] = identity.pid
        self._words[_IDENTITY + 1] = identity.start
        self._words[_IDENTITY + 2] = identity.namespace

    def retire_writer(self) -> None:
        """Say that the writer closed: one store, so nothing is to be read half-done."""
        self._words[_IDENTITY] = 0

    def publish_socket(self, path: str | None) -> None:
        """Store where the service listens; None where there is none.

        The path's first byte is stored last and cleared first, so no reader takes half of one.
        """
        raw = b"" if path is None else path.encode()
        if len(raw) >= SOCKET_PATH_SIZE:
            msg = f"a socket's path is {len(raw)} bytes: {SOCKET_PATH_SIZE - 1} is the limit"
            raise ValueError(msg)
        raw = raw.ljust(SOCKET_PATH_SIZE, b"\0")
        self._memory[_SOCKET] = 0
        if seqlock.WEAK:
            seqlock.fence()
        self._memory[_SOCKET + 1 : _SOCKET + SOCKET_PATH_SIZE] = raw[1:]
        if seqlock.WEAK:
            seqlock.fence()
        self._memory[_SOCKET] = raw[0]

    def count(self, name: str, times: int = 1) -> None:
        """Add to a counter, which starts again from 0 beyond 64 bits, as a damaged one may."""
        at = _WORD[name]
        self._words[at] = self._words[at] + times & _LARGEST
