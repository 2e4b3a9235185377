"""Watching a registry from an asyncio loop."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import TYPE_CHECKING

import pytest
from interleavings import Reader
from support import make_writer
from tables import add

from jidoka_shm import (
    AsyncSessionClient,
    Change,
    ChangeKind,
    CorruptRegistry,
    SessionManager,
    SessionReader,
)
from jidoka_shm.asyncwatching import AsyncChanges
from jidoka_shm.watching import Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jidoka_shm.access import Access

#: For what must not end by itself within a test.
LONG = 60.0


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A manager; what is terminated stays for an hour."""
    with SessionManager(name, capacity=1024, cleanup_delay=3600) as made:
        yield made
        made.unlink()


@pytest.fixture
def reader(manager: SessionManager) -> Iterator[SessionReader]:
    """A reader of what the manager writes."""
    with SessionReader(manager.name) as made:
        yield made


def _changes(
    handle: Access, timeout: float | None = None, *, latency: float = 0.001
) -> AsyncChanges:
    return AsyncChanges(Watch(handle, since=0, latency=latency), timeout)


def _kinds(changes: list[Change]) -> list[ChangeKind]:
    return [change.kind for change in changes]


def test_it_tells_what_a_blocking_one_tells(reader: SessionReader, manager: SessionManager) -> None:
    async def watch() -> None:
        first = manager.create_session()
        changes = _changes(reader, timeout=0.0)
        assert [change async for change in changes] == [Change(ChangeKind.CREATED, reader[first])]
        manager.update_session(first, status="active")
        manager.create_session()
        manager.terminate_session(first)
        assert _kinds([change async for change in changes]) == ["created", "terminated"]
        assert [change async for change in changes] == []
        with pytest.raises(StopAsyncIteration):
            await anext(changes)
        assert repr(changes) == f"AsyncChanges({manager.name!r}, 2 sessions known)"

    asyncio.run(watch())


def test_it_waits_without_a_thread_and_without_blocking_the_loop(
    reader: SessionReader, manager: SessionManager
) -> None:
    async def watch() -> None:
        threads = threading.active_count()
        waiting = asyncio.create_task(anext(_changes(reader, LONG)))  # type: ignore[arg-type]
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not waiting.done()
        assert threading.active_count() == threads
        sid = manager.create_session()
        assert (await waiting).session.session_id == sid

    asyncio.run(watch())


def test_a_client_of_a_loop_watches_by_it(manager: SessionManager) -> None:
    async def watch() -> None:
        async with AsyncSessionClient(manager.name) as client:
            changes = client.changes(since=None)
            waiting = asyncio.create_task(anext(changes))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            sid = manager.create_session()
            assert await waiting == Change(ChangeKind.CREATED, client[sid])
            assert _kinds([one async for one in client.changes(timeout=0)]) == ["created"]
        assert [one async for one in changes] == []

    asyncio.run(watch())


def test_the_timeout_is_kept(reader: SessionReader) -> None:
    async def watch() -> None:
        assert [one async for one in _changes(reader, timeout=0.02, latency=3600)] == []

    asyncio.run(watch())


@pytest.mark.parametrize("timeout", [-1, "1", True])
def test_a_timeout_that_cannot_be_is_refused(reader: SessionReader, timeout: object) -> None:
    with pytest.raises((ValueError, TypeError), match="timeout"):
        _changes(reader, timeout)  # type: ignore[arg-type]


def test_a_cancelled_task_loses_no_change(reader: SessionReader, manager: SessionManager) -> None:
    """Cancelled again and again, at whatever it waits for, and each change comes once."""

    async def watch() -> None:
        changes, told, made = _changes(reader), [], []
        for turn in range(60):
            waiting = asyncio.create_task(anext(changes))  # type: ignore[arg-type]
            for _ in range(turn % 4):
                await asyncio.sleep(0)
            made.append(manager.create_session())
            for _ in range(turn % 7):
                await asyncio.sleep(0.0005)
            waiting.cancel()
            try:
                told.append(await waiting)
            except asyncio.CancelledError:
                continue
        while len(told) < len(made):
            told.append(await asyncio.wait_for(anext(changes), LONG))
        assert [change.session.session_id for change in told] == made

    asyncio.run(watch())


def test_a_cancelled_wait_leaves_no_timer(reader: SessionReader) -> None:
    async def watch() -> None:
        waiting = asyncio.create_task(anext(_changes(reader, latency=3600)))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        loop = asyncio.get_running_loop()
        scheduled = loop._scheduled  # type: ignore[attr-defined]
        assert [timer for timer in scheduled if not timer.cancelled()] == []

    asyncio.run(watch())


def test_closing_the_handle_ends_who_waits(reader: SessionReader) -> None:
    async def watch() -> None:
        asyncio.get_running_loop().call_later(0.02, reader.close)
        assert [change async for change in _changes(reader)] == []

    asyncio.run(watch())


def test_others_get_their_turn_while_very_many_changes_are_told(
    reader: SessionReader, manager: SessionManager
) -> None:
    async def watch() -> None:
        for _ in range(1000):
            manager.create_session()
        turns = itertools.count()

        async def count() -> None:
            while True:
                next(turns)
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        told = [change async for change in _changes(reader, timeout=0)]
        assert len(told) == 1000
        assert next(turns) >= 7
        counting.cancel()

    asyncio.run(watch())


@pytest.mark.parametrize("latency", [0, 0.01])
def test_an_error_of_a_look_comes_to_who_waits_and_the_next_look_is_made_again(
    monkeypatch: pytest.MonkeyPatch, latency: float
) -> None:
    failed: list[Exception] = []

    async def watch() -> None:
        writer = make_writer()
        changes = _changes(Reader(writer, cache_size=0, verify=True), latency=latency)
        poll = changes._watch.poll

        def count(deadline: float) -> float | None:
            try:
                return poll(deadline)
            except CorruptRegistry as error:
                failed.append(error)
                raise

        monkeypatch.setattr(changes._watch, "poll", count)
        waiting = asyncio.create_task(anext(changes))  # type: ignore[arg-type]
        await asyncio.sleep(0.005)
        (made,) = add(writer, 1)
        at = writer.slots.offset(writer.index.words[1] & 0xFFFFFF) + 20
        writer.slots.memory[at] ^= 1
        with pytest.raises(CorruptRegistry):
            await waiting
        writer.slots.memory[at] ^= 1
        assert await anext(changes) == Change(ChangeKind.CREATED, made)

    asyncio.run(watch())
    # The first that fails comes to who waits, not one that by chance is late.
    assert len(failed) <= 1
