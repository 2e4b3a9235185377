"""A process that holds one system and does what it is told: ``python -m benchmarks.worker``.

Each system has a process of its own, so that none pays for what another keeps in memory or
leaves to the garbage collector. The collector itself is on, as users have it. It is told on
standard input, a line of JSON each, and answers a line of JSON each: ``Order`` and ``Answer``.
"""

from __future__ import annotations

import gc
import os
import select
import sys
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

import msgspec

from benchmarks import peers
from benchmarks.peers.private import private_bytes
from benchmarks.records import Keys, make_ids

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from benchmarks.peers.base import Peer

#: Of a distribution: how many of the calls took at most so long.
QUANTILES: Final = (0.5, 0.9, 0.99, 0.999, 0.9999, 1.0)
#: Calls between two looks at the clock, or at whether to stop.
BATCH: Final = 64


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker is to do.

    Attributes:
        do: the name of one of its methods.
        row: which row of the peer.
        keys: which ids, see ``records.Keys``.
        count: how many of them.
        passes: how often.
        seconds: for how long.
    """

    do: str
    row: str = ""
    keys: str = "own"
    count: int = 0
    passes: int = 1
    seconds: float = 0.0


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of it: numbers, or why there are none."""

    values: list[float] = []
    error: str | None = None


class Worker:
    """One peer, and what can be measured of it."""

    def __init__(self, peer: Peer, keys: Keys) -> None:
        self.peer = peer
        self.keys = keys
        # Unbuffered, so that ``until`` sees a line that came right behind its own.
        self.orders = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115 - to the end

    def make(self, order: Order) -> list[float]:
        """Make the store; return the seconds that it took."""
        del order
        return [_seconds(self.peer.make)]

    def attach(self, order: Order) -> list[float]:
        """Attach to it; return the seconds that it took."""
        del order
        return [_seconds(self.peer.attach)]

    def call(self, order: Order) -> list[float]:
        """Return the number that a method of the peer returns."""
        return [float(getattr(self.peer, order.row)())]

    def time(self, order: Order) -> list[float]:
        """Return the nanoseconds of a row, of all its passes together."""
        keys = self.keys.of(order.keys)[: order.count]
        self._around("before", order.row, keys)
        taken = self._timed(getattr(self.peer, order.row), keys, order.passes)
        self._around("after", order.row)
        return [taken]

    def _timed(self, row: Callable[[list[UUID]], Any], keys: list[UUID], passes: int) -> float:
        begun = time.perf_counter_ns()
        # Kept until the clock has stopped: what a list takes to be freed is no part of making it.
        results = [row(keys) for _ in range(passes)]
        taken = time.perf_counter_ns() - begun
        own = [sum(result) for result in results if _is_timed_by_itself(result)]
        return float(sum(own) if own else taken)

    def _around(self, when: str, row: str, *arguments: object) -> None:
        method = getattr(self.peer, f"{when}_{row}", None)
        if method is not None:
            method(*arguments)

    def spread(self, order: Order) -> list[float]:
        """Return how many single calls of a row there were, and the quantiles of their times.

        These are nanoseconds; what the clock itself takes is part of them.
        """
        row, keys = getattr(self.peer, order.row), self.keys.of(order.keys)
        self._around("before", order.row, keys)
        found: list[int] = []
        clock, limit = time.perf_counter_ns, time.perf_counter() + order.seconds
        wanted = order.count or sys.maxsize
        while len(found) < wanted and (order.count or time.perf_counter() < limit):
            at = len(found) % len(keys)
            for key in keys[at : at + min(BATCH, wanted - len(found))]:
                one = [key]
                begun = clock()
                own = row(one)
                taken = clock() - begun
                found.append(own[0] if own else taken)
        found.sort()
        last = len(found) - 1
        return [
            float(len(found)),
            *(float(found[min(int(q * len(found)), last)]) for q in QUANTILES),
        ]

    def rate(self, order: Order) -> list[float]:
        """Return how many calls of a row were made in some seconds, and the seconds."""
        row, keys = getattr(self.peer, order.row), self.keys.of(order.keys)
        self._around("before", order.row, keys)
        made, begun = 0, time.perf_counter()
        while (taken := time.perf_counter() - begun) < order.seconds:
            at = made % len(keys)
            part = keys[at : at + BATCH]
            row(part)
            made += len(part)
        return [float(made), taken]

    def until(self, order: Order) -> list[float]:
        """Do a row until an empty line comes; return how often it was done, and the seconds."""
        row, keys = getattr(self.peer, order.row), self.keys.of(order.keys)
        self._around("before", order.row, keys)
        made, begun = 0, time.perf_counter()
        while not select.select([0], [], [], 0)[0]:
            at = made % len(keys)
            part = keys[at : at + BATCH]
            row(part)
            made += len(part)
        taken = time.perf_counter() - begun
        self.orders.readline()
        return [float(made), taken]

    def attach_and_look(self, order: Order) -> list[float]:
        """Return the seconds from nothing to the first answer of a row."""
        keys = self.keys.of(order.keys)[:1]

        def work() -> None:
            self.peer.attach()
            self._around("before", order.row, keys)
            getattr(self.peer, order.row)(keys)

        return [_seconds(work)]

    def memory(self, order: Order) -> list[float]:
        """Return the bytes of its own that the process needs to attach and look all up.

        One that takes longer than some seconds for that stops where it is.
        """
        keys = self.keys.of("own")
        gc.collect()
        before = private_bytes()
        self.peer.attach()
        self._around("before", order.row, keys)
        row, limit = getattr(self.peer, order.row), time.perf_counter() + order.seconds
        for at in range(0, len(keys), BATCH):
            row(keys[at : at + BATCH])
            if time.perf_counter() > limit:
                break
        gc.collect()
        # Where this process made the store as well, it may have had room left from that.
        return [float(max(private_bytes() - before, 0))]


def _is_timed_by_itself(result: object) -> bool:
    return isinstance(result, list) and bool(result) and type(result[0]) is int


def _seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def serve(worker: Worker, answers: int) -> None:
    """Do what comes in until it ends, and answer each order."""
    decode, encode = msgspec.json.Decoder(Order).decode, msgspec.json.encode
    for line in iter(worker.orders.readline, b""):
        order = decode(line)
        try:
            answer = Answer(values=getattr(worker, order.do)(order))
        except Exception as error:  # noqa: BLE001 - a peer may raise anything; the parent says it
            traceback.print_exc()
            answer = Answer(error=f"{type(error).__name__}: {error}")
        os.write(answers, encode(answer) + b"\n")


def main() -> None:
    """Hold the system that the arguments name: its name, its place, the number of sessions."""
    name, place, sessions = sys.argv[1:]
    # What a peer prints must not come between the answers.
    answers = os.dup(1)
    os.dup2(2, 1)
    cls = peers.load(name)
    ids = make_ids(min(int(sessions), cls.largest or int(sessions)))
    peer = cls(place, ids)
    try:
        serve(Worker(peer, Keys(ids)), answers)
    finally:
        peer.close()


if __name__ == "__main__":
    main()
