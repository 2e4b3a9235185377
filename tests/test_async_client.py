"""``AsyncSessionClient``: calls, entering and leaving, its loop, forks, and what is left of it."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from host import Script, exit_code, forked, run_script
from loops import cancelled, each_loop, in_each_loop, outcomes, run, turns, until
from services import SILENCE, Scripted, first_only, sockets

from jidoka_shm import (
    AsyncPipeline,
    AsyncSessionClient,
    ForeignLoop,
    ForkedHandle,
    IllegalTransition,
    InvalidMetadata,
    InvalidName,
    InvalidSessionId,
    OwnerNotAlive,
    RecordTooLarge,
    RegistryClosed,
    RegistryFull,
    RegistryNotFound,
    SessionExists,
    SessionManager,
    SessionNotFound,
    SessionReader,
    VersionConflict,
    WriterUnavailable,
    attachment,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from jidoka_shm.protocol import Reply, Request

NewLoop = Callable[[], asyncio.AbstractEventLoop]

#: A writer in a process of its own. It prints a line for each one that it reads.
SERVER = """
    import sys
    from jidoka_shm import SessionManager
    with SessionManager(sys.argv[1], capacity=64, cleanup_delay=3600, listen=True) as manager:
        print("ready", flush=True)
        sys.stdin.read()
        manager.unlink()
"""


@pytest.fixture
def manager(name: str) -> Iterator[SessionManager]:
    """A manager that does not listen; what is terminated stays for an hour."""
    with SessionManager(name, capacity=64, cleanup_delay=3600) as made:
        yield made
        made.unlink()


@pytest.fixture
def listening(name: str) -> Iterator[SessionManager]:
    """A manager that listens."""
    with SessionManager(name, capacity=64, cleanup_delay=3600, listen=True) as made:
        yield made
        made.unlink()


@pytest.fixture
def service(manager: SessionManager, tmp_path: Path) -> Iterator[Scripted]:
    """A service of the manager that does what a test says."""
    with Scripted(manager, tmp_path / "socket") as made:
        yield made


def patient(name: str) -> AsyncSessionClient:
    """Return a client that waits for longer than any test does."""
    return AsyncSessionClient(name, timeout=60)


def test_each_of_these_runs_on_uvloop_too() -> None:
    uvloop = pytest.importorskip("uvloop")
    assert [kind.values for kind in each_loop.args[1]][1:] == [(uvloop.new_event_loop,)]


# ---------------------------------------------------------------------------- calls


@in_each_loop
async def test_a_client_changes_and_reads_what_it_changed(listening: SessionManager) -> None:
    async with AsyncSessionClient(listening.name) as client:
        sid = await client.create_session({"a": 1}, {"model": "small"}, os.getpid(), 3600)
        created = client[sid]
        assert (created.metadata, created.llm_config) == ({"a": 1}, {"model": "small"})
        assert (created.pid, created.status) == (os.getpid(), "initializing")
        session = await client.update_session(sid, "active", metadata={"b": 2}, pid=None, ttl=None)
        assert session == client[sid] == listening[sid]
        assert (session.status, session.pid, session.metadata) == ("active", None, {"b": 2})
        assert (session.llm_config, session.expires_at) == ({"model": "small"}, None)
        assert await client.terminate_session(f"session_{sid}", "over") is None
        assert (client[sid].status, client[sid].error) == ("terminated", "over")
        await client.terminate_session(sid)
        assert await client.create_session(session_id=str(UUID(int=7))) == UUID(int=7)


@in_each_loop
async def test_reads_are_a_readers_and_ask_nobody(service: Scripted) -> None:
    manager = service._manager
    sid = manager.create_session({"a": 1}, pid=os.getpid())
    async with AsyncSessionClient(manager.name, cache_size=0) as client:
        with SessionReader(manager.name) as reader:
            assert client[sid] == client.get(sid) == client.get_session_info(sid) == reader[sid]
            assert client.get_session_status(sid) == "initializing"
            assert client.get_session_pid(sid) == os.getpid()
            assert client.list_sessions() == reader.list_sessions()
            assert client.count_by_status() == reader.count_by_status()
            assert (client.snapshot() == reader.snapshot()).all()
            assert list(client) == list(client.keys()) == [sid]
            assert list(client.items()) == [(sid, reader[sid])]
            assert (sid in client, uuid4() in client, len(client)) == (True, False, 1)
            assert client.version == reader.version == 1
            assert client.writer_alive
            assert client.check() == []
            assert client.stats().sessions == 1
            assert client.usage() == reader.usage()
            client.refresh()
        assert repr(client) == f"AsyncSessionClient({manager.name!r}, 1 sessions, version 1)"
        with pytest.raises(SessionNotFound):
            client[uuid4()]
    assert service.accepted == 0


_REFUSED: dict[str, tuple[type[Exception], Callable[[Any], Any]]] = {
    "taken": (SessionExists, lambda h: h.create_session(session_id=UUID(int=1))),
    "gone": (SessionNotFound, lambda h: h.update_session(UUID(int=404), status="idle")),
    "no end of what is gone": (SessionNotFound, lambda h: h.terminate_session(UUID(int=404))),
    "no such move": (IllegalTransition, lambda h: h.update_session(UUID(int=1), status="idle")),
    "version": (VersionConflict, lambda h: h.update_session(UUID(int=1), expected_version=99)),
    "too large": (RecordTooLarge, lambda h: h.create_session({"a": "x" * (1 << 20)})),
    "no owner": (OwnerNotAlive, lambda h: h.create_session(pid=1 << 22)),
    "no id": (InvalidSessionId, lambda h: h.update_session("nonsense")),
    "no map": (InvalidMetadata, lambda h: h.create_session({"a": {1, 2}})),
    "no status": (ValueError, lambda h: h.update_session(UUID(int=1), status="gone")),
    "no size": (ValueError, lambda h: h.resize(0)),
    "no size of a slot": (ValueError, lambda h: h.resize(8, 100)),
    "no number of sessions": (TypeError, lambda h: h.resize(8.0)),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_a_client_raises_what_a_manager_raises(listening: SessionManager, case: str) -> None:
    kind, change = _REFUSED[case]
    listening.create_session(session_id=UUID(int=1))

    async def main() -> None:
        async with AsyncSessionClient(listening.name) as client:
            with pytest.raises(kind):
                await change(client)
            assert client.version == 1

    run(main())


@in_each_loop
async def test_a_bad_argument_is_refused_before_anything_is_sent(service: Scripted) -> None:
    async with patient(service._manager.name) as client:
        for case in ("no id", "no map", "no status", "no size", "no number of sessions"):
            kind, change = _REFUSED[case]
            with pytest.raises(kind):
                await change(client)
    assert service.accepted == 0


@in_each_loop
async def test_no_time_at_all_is_too_little(service: Scripted) -> None:
    async with AsyncSessionClient(service._manager.name, timeout=0) as client:
        with pytest.raises(WriterUnavailable, match="within 0 s") as caught:
            await client.create_session()
        assert not caught.value.outcome_unknown
    assert service.requests == []


@in_each_loop
async def test_a_client_resizes_and_reads_on(listening: SessionManager) -> None:
    async with AsyncSessionClient(listening.name) as client:
        sid = await client.create_session({"a": 1})
        assert await client.resize(8) is None
        await client.resize(8, 512)
        await client.resize(4, slot_size=256)
        stats = client.stats()
        assert (stats.capacity, stats.slot_size, stats.generation) == (4, 256, 3)
        assert client[sid] == listening[sid]
        await client.create_session()
        with pytest.raises(RegistryFull) as caught:
            await client.resize(1)
        assert caught.value.args == (2, 1, "slots")


@in_each_loop
async def test_tasks_change_beside_a_resize(listening: SessionManager) -> None:
    async with AsyncSessionClient(listening.name) as client:
        sids = await outcomes([client.create_session({"n": n}) for n in range(20)])
        changes = [client.update_session(sid, status="active") for sid in sids]
        changes.insert(10, client.resize(20, 256))
        assert [getattr(each, "status", each) for each in await outcomes(changes)] == [
            *["active"] * 10,
            None,
            *["active"] * 10,
        ]
        assert client.stats().capacity == 20
        assert {session.status for session in client.values()} == {"active"}


# ---------------------------------------------------------------------------- pipelines


@in_each_loop
async def test_a_pipeline_sends_all_and_keeps_the_results(listening: SessionManager) -> None:
    async with AsyncSessionClient(listening.name) as client:
        async with client.pipeline() as changes:
            sid = changes.create_session({"a": 1})
            changes.update_session(sid, "active")
            changes.terminate_session(sid, "over")
            assert (len(changes), len(client)) == (3, 0)
            assert repr(changes) == "<AsyncPipeline of 3 changes>"
        created, session, ended = changes.results
        assert (created, session.status, ended) == (sid, "active", None)
        assert client[sid].error == "over"
        assert isinstance(changes, AsyncPipeline)
        other = changes.create_session()
        assert await changes.execute() == changes.results == [other]
        assert await changes.execute() == await changes.settle() == []


@in_each_loop
async def test_the_first_error_is_raised_once_all_were_applied(listening: SessionManager) -> None:
    async with AsyncSessionClient(listening.name) as client:
        changes = client.pipeline()
        sid = changes.create_session()
        changes.update_session(sid, status="idle")
        changes.update_session(UUID(int=404))
        changes.update_session(sid, status="active")
        with pytest.raises(IllegalTransition) as caught:
            async with changes:
                pass
        assert caught.value.__notes__ == [
            "of the pipeline's 4 changes 2 failed: 1, 2 of its results"
        ]
        assert client[sid].status == "active"
        changes.terminate_session(UUID(int=404))
        (error,) = await changes.settle()
        assert isinstance(error, SessionNotFound)


@in_each_loop
async def test_a_pipelines_body_that_raises_sends_nothing(service: Scripted) -> None:
    async with patient(service._manager.name) as client:
        changes = client.pipeline()

        async def work() -> None:
            async with changes:
                changes.create_session()
                await asyncio.sleep(3600)

        task = asyncio.create_task(work())
        await turns()
        await cancelled(task)
        changes.create_session()
        with pytest.raises(LookupError):
            async with changes:
                raise LookupError
        assert len(changes) == 0
    assert service.accepted == 0


# ---------------------------------------------------------------------------- entering


def test_a_constructor_does_nothing_but_check(name: str) -> None:
    before = sockets()
    client = AsyncSessionClient(name)
    assert "RegistryClosed" in repr(client)
    assert sockets() == before
    for options, error in (
        ({"timeout": -1}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"cache_size": -1}, ValueError),
    ):
        with pytest.raises(error):
            AsyncSessionClient(name, **options)
    with pytest.raises(InvalidName):
        AsyncSessionClient("a.b")


@in_each_loop
async def test_a_call_outside_of_its_with_says_so(listening: SessionManager) -> None:
    client = AsyncSessionClient(listening.name)

    async def try_each() -> None:
        for change in (
            client.create_session(),
            client.update_session(uuid4()),
            client.terminate_session(uuid4()),
        ):
            with pytest.raises(RegistryClosed, match="use it inside its `async with`"):
                await change
        changes = client.pipeline()
        changes.create_session()
        for read in (lambda: len(client), lambda: client.get(uuid4()), client.list_sessions):
            with pytest.raises(RegistryClosed, match="use it inside its `async with`"):
                read()
        with pytest.raises(RegistryClosed):
            await changes.execute()

    await try_each()
    async with client:
        await client.create_session()
    await try_each()
    client.close()
    assert len(listening) == 1


@in_each_loop
async def test_it_is_entered_once_at_a_time(listening: SessionManager) -> None:
    client = AsyncSessionClient(listening.name)
    for _ in range(2):
        async with client:
            with pytest.raises(RuntimeError, match="entered already"):
                await client.__aenter__()
            await client.create_session()
    assert len(listening) == 2


def test_a_client_may_be_entered_again_in_the_next_loop(listening: SessionManager) -> None:
    client = AsyncSessionClient(listening.name)

    async def main() -> None:
        async with client:
            await client.create_session()

    for _ in range(3):
        run(main())
    assert len(listening) == 3


@in_each_loop
async def test_a_registry_to_come_is_waited_for_while_the_loop_runs(name: str) -> None:
    client = patient(name)
    entering = asyncio.create_task(client.__aenter__())
    await turns()
    assert not entering.done()
    with SessionManager(name, listen=True) as manager:
        await entering
        assert await client.create_session() in manager
        client.close()
        manager.unlink()


@in_each_loop
async def test_a_registry_that_does_not_come_is_not_found(name: str) -> None:
    client = AsyncSessionClient(name, timeout=0.05)
    for _ in range(2):
        with pytest.raises(RegistryNotFound, match=r"after 0\.05 s"):
            await client.__aenter__()
    waiting = asyncio.create_task(patient(name).__aenter__())
    await turns()
    await cancelled(waiting)


@in_each_loop
async def test_a_close_while_it_is_entered_stands(name: str) -> None:
    client = patient(name)
    entering = asyncio.create_task(client.__aenter__())
    await turns()
    client.close()
    with SessionManager(name, listen=True) as manager:
        await entering
        with pytest.raises(RegistryClosed):
            await client.create_session()
        with pytest.raises(RegistryClosed):
            len(client)
        manager.unlink()


@in_each_loop
async def test_a_read_waits_a_moment_at_most_for_a_registry_that_is_made_anew(
    manager: SessionManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop stands still meanwhile, so the next one does not wait at all."""
    async with patient(manager.name) as client:
        manager.unlink()
        tries = []
        monkeypatch.setattr(attachment, "_open", lambda *given: tries.append(given))
        for _ in range(50):
            with pytest.raises(RegistryNotFound):
                client.list_sessions()
        with pytest.raises(RegistryNotFound):
            client.get(uuid4())
        assert len(tries) < 50 + 60


# ---------------------------------------------------------------------------- its loop


@each_loop
def test_another_loop_is_refused(listening: SessionManager, new_loop: NewLoop) -> None:
    client = AsyncSessionClient(listening.name)
    with asyncio.Runner(loop_factory=new_loop) as first:
        first.run(client.__aenter__())
        with asyncio.Runner(loop_factory=new_loop) as second:
            for change in (client.create_session(), client.terminate_session(uuid4())):
                with pytest.raises(ForeignLoop, match="belongs to another event loop"):
                    second.run(change)
            assert len(client) == 0
        sid = first.run(client.create_session())
        assert client[sid] == listening[sid]
        client.close()


@in_each_loop
async def test_another_thread_may_read_and_not_close(listening: SessionManager) -> None:
    async with AsyncSessionClient(listening.name) as client:
        sid = await client.create_session()
        found: list[object] = []

        def work() -> None:
            found.append(client[sid].session_id)
            try:
                client.close()
            except ForeignLoop as error:
                found.append(type(error))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert found == [sid, ForeignLoop]
        await client.update_session(sid, status="active")


def test_no_thread_and_no_executor_is_used(name: str) -> None:
    code = """
        import asyncio, sys, threading
        from jidoka_shm import AsyncSessionClient

        async def main():
            async with AsyncSessionClient(sys.argv[1], timeout=60) as client:
                sid = await client.create_session()
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(50):
                        tasks.create_task(client.update_session(sid))
                async with client.pipeline() as changes:
                    changes.update_session(sid)
                print(threading.active_count(), asyncio.get_running_loop()._default_executor)
                print(len(asyncio.all_tasks()), client[sid].version)

        asyncio.run(main())
        print("concurrent.futures.thread" in sys.modules)
    """
    with Script(SERVER, name) as script:
        assert script.line() == "ready"
        assert run_script(code, name).splitlines() == ["1 None", "1 52", "False"]
        script.close_input()
        script.end()


def test_loading_it_loads_no_manager_and_no_command() -> None:
    code = """
        import sys
        from jidoka_shm import AsyncSessionClient
        print(sorted({"click", "rich", "jidoka_shm.manager", "jidoka_shm.server"} & set(sys.modules)))
    """
    assert run_script(code) == "[]\n"


# ---------------------------------------------------------------------------- copies, forks


@in_each_loop
async def test_a_client_pickles_as_its_name_and_options(listening: SessionManager) -> None:
    async with AsyncSessionClient(listening.name, timeout=7.5, cache_size=3) as client:
        copy = pickle.loads(pickle.dumps(client))  # noqa: S301 - made right here
        assert type(copy) is AsyncSessionClient
        assert (copy._timeout, copy._options) == (7.5, client._options)
        async with copy:
            assert await copy.create_session() in client


def test_a_forked_child_reads_on_and_changes_nothing(listening: SessionManager) -> None:
    client = AsyncSessionClient(listening.name)
    with asyncio.Runner() as runner:
        runner.run(client.__aenter__())
        sid = runner.run(client.create_session())

        async def try_to_change() -> None:
            assert client[sid].session_id == sid
            with pytest.raises(ForkedHandle, match="belongs to the parent process"):
                await client.update_session(sid)
            # What it holds of the parent's connection is let go of.
            async with client:
                await client.update_session(sid, status="active")

        assert exit_code(forked(lambda: run(try_to_change()))) == 0
        session = runner.run(client.update_session(sid, status="idle"))
        assert session.version == 3
        client.close()


def test_a_child_forked_in_the_middle_of_a_change_leaves_it_to_the_parent(
    service: Scripted,
) -> None:
    """It holds nothing of the parent's connection, nor touches the epoll of both."""
    name = service._manager.name
    asked, go = threading.Event(), threading.Event()

    def act(request: Request) -> Reply:
        asked.set()
        go.wait(60)
        return service.apply(request)

    service.act = first_only(service, act)

    def end_as_a_child(client: AsyncSessionClient) -> None:
        client.close()
        gc.collect()

    async def main() -> None:
        async with patient(name) as client:
            change = asyncio.create_task(client.create_session())
            await until(asked.is_set)
            assert exit_code(forked(lambda: end_as_a_child(client))) == 0
            go.set()
            sid = await change
            assert (await client.update_session(sid, status="active")).version == 2

    run(main())
    assert service.accepted == 1


def test_a_child_that_lives_on_keeps_no_connection_of_its_parents_open(
    service: Scripted,
) -> None:
    ended, end = os.pipe()

    def live_on() -> None:
        os.close(end)
        os.read(ended, 1)

    async def main() -> int:
        async with patient(service._manager.name) as client:
            await client.create_session()
            return forked(live_on)

    child = run(main())
    # The service sees the end of the parent's while the child lives.
    service.stop_listening()
    service.join_clients()
    os.close(end)
    os.close(ended)
    assert exit_code(child) == 0


# ---------------------------------------------------------------------------- the end


@in_each_loop
async def test_leaving_lets_go_of_everything(listening: SessionManager) -> None:
    await asyncio.sleep(0)
    before = sockets()
    async with AsyncSessionClient(listening.name) as client:
        await client.create_session()
        assert len(sockets()) == len(before) + 2
    await until(lambda: sockets() == before)


@in_each_loop
async def test_an_exception_in_the_body_comes_out_of_it(listening: SessionManager) -> None:
    client = AsyncSessionClient(listening.name)

    async def work() -> None:
        async with client:
            await client.create_session()
            raise LookupError

    with pytest.raises(LookupError):
        await work()
    with pytest.raises(RegistryClosed):
        await client.create_session()


@in_each_loop
async def test_a_close_ends_the_calls_that_wait(service: Scripted) -> None:
    """Made, unknown, or not made; at once."""
    asked = threading.Event()

    def make_the_first(request: Request) -> Reply:
        if len(service.requests) == 1:
            service.apply(request)
        if len(service.requests) == 2:
            asked.set()
        return SILENCE

    service.act = make_the_first
    async with patient(service._manager.name) as client:
        own = UUID(int=1), UUID(int=2)
        calls = [client.create_session(session_id=sid) for sid in own]
        tasks = [asyncio.create_task(call) for call in calls]
        await until(asked.is_set)
        late = asyncio.create_task(client.create_session())
        client._channel._flying[-1].due += 1 << 20  # as if that many replies were to come
        client._channel._due = 1 << 20
        await turns()
    made, unknown, refused = await outcomes([*tasks, late])
    assert made == own[0]
    assert isinstance(unknown, WriterUnavailable)
    assert unknown.outcome_unknown
    assert isinstance(refused, RegistryClosed)


@each_loop
def test_a_loop_that_is_closed_with_calls_that_wait_leaves_nothing(
    service: Scripted, new_loop: NewLoop
) -> None:
    before = sockets()
    service.act = lambda _: SILENCE
    client = patient(service._manager.name)
    loop = new_loop()

    async def main() -> asyncio.Task[UUID]:
        await client.__aenter__()
        task = asyncio.create_task(client.create_session())
        await until(lambda: service.requests)
        return task

    task = loop.run_until_complete(main())
    loop.close()
    client.close()
    # Such a task is asyncio's to complain about.
    task._log_destroy_pending = False
    task.get_coro().close()
    del task
    gc.collect()
    # What is left is the service's own listening.
    service.join_clients()
    assert sockets() == before


def test_asyncio_run_ends_with_calls_that_wait(service: Scripted) -> None:
    service.act = lambda _: SILENCE
    kept: list[asyncio.Task[Any]] = []

    async def main() -> None:
        client = patient(service._manager.name)

        async def work() -> None:
            async with client:
                await client.create_session()

        kept.append(asyncio.create_task(work()))
        await until(lambda: service.requests)

    run(main())
    assert kept[0].cancelled()


@in_each_loop
async def test_a_client_that_is_dropped_says_so_and_holds_nothing(
    listening: SessionManager,
) -> None:
    await asyncio.sleep(0)
    before = sockets()

    async def drop() -> None:
        client = await AsyncSessionClient(listening.name).__aenter__()
        await client.create_session()
        # The timer knows what it would give up.
        client._channel._expiry.cancel()
        del client
        gc.collect()

    with pytest.warns(ResourceWarning, match="unclosed AsyncSessionClient"):
        await drop()
    await until(lambda: sockets() == before)


def test_a_client_that_is_dropped_with_its_loop_ends_in_silence(name: str) -> None:
    code = """
        import asyncio, sys
        from jidoka_shm import AsyncSessionClient

        async def main():
            client = await AsyncSessionClient(sys.argv[1]).__aenter__()
            print(len([await client.create_session() for _ in range(3)]))
            asyncio.get_running_loop().kept = client if sys.argv[2] == "kept" else None

        asyncio.run(main())
    """
    with Script(SERVER, name) as script:
        assert script.line() == "ready"
        for kept in ("kept", "dropped"):
            with Script(code.replace("import asyncio, sys", _QUIET), name, kept) as other:
                assert other.end() == "3\n"
        script.close_input()
        script.end()


#: As it is by default: warnings of this kind are not shown.
_QUIET = "import asyncio, sys, warnings; warnings.simplefilter('ignore', ResourceWarning)"
