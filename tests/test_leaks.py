"""A thousand rounds of attaching and closing, failures too, with room for few descriptors."""

from __future__ import annotations

import pytest
from host import objects_of, run_script

#: Rounds each way. One that kept a descriptor would fail after some sixty, by the limit.
ROUNDS = 1000

BEGIN = """
    import gc, os, resource, sys, threading
    from pathlib import Path
    from jidoka_shm import (
        CorruptRegistry, FormatMismatch, InvalidName, JidokaError, RegistryNotFound, SessionManager,
        SessionReader, WriterAlreadyRunning,
    )

    def held():
        descriptors = len(os.listdir("/proc/self/fd"))
        maps = Path("/proc/self/maps").read_text().splitlines()
        shared = sum("jidoka_shm" in line for line in maps)
        return descriptors, threading.active_count(), shared, len(maps)

    def rounds(do):
        # What is made once, whatever follows, is there after some rounds.
        for _ in range(20):
            do()
        before = held()
        for _ in range(number):
            do()
        after = held()
        # No collection: what waits for one may wait for long.
        assert after[:3] == before[:3], (before, after)
        # The allocators may keep a few mappings more.
        assert after[3] < before[3] + number // 20, (before[3], after[3])
        print(number)

    def failing(error, make):
        def do():
            try:
                make()
            except error:
                pass
            else:
                raise AssertionError(error)
        return do

    name, number = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    control, table = Path(f"/dev/shm/jidoka_shm.{name}"), Path(f"/dev/shm/jidoka_shm.{name}.1")

    def manager(**options):
        return SessionManager(name, capacity=8, **options)

    def reader(**options):
        return SessionReader(name, **options)
"""

#: What is done a thousand times.
WAYS = {
    "reader closed": """
    kept = manager()
    sid = kept.create_session()
    def do():
        with reader() as made:
            made[sid], made.list_sessions(), made.snapshot(), made.stats()
    rounds(do)
    kept.unlink()
    """,
    "reader dropped": """
    kept = manager()
    rounds(lambda: reader().list_sessions())
    kept.unlink()
    """,
    "reader of a new instance each time": """
    made = manager()
    attached = reader()
    def do():
        global made
        made.close()
        made = manager(fresh=True)
        sid = made.create_session()
        assert sid in attached
    rounds(do)
    made.unlink()
    """,
    "manager that makes and unlinks": """
    def do():
        with manager() as made:
            made.create_session(ttl=60)
            made.unlink()
    rounds(do)
    """,
    "manager that takes over": """
    manager().close()
    def do():
        with manager() as made:
            assert made.recovery.clean
    rounds(do)
    manager().unlink()
    """,
    "manager dropped": """
    manager().close()
    rounds(lambda: manager().list_sessions())
    manager().unlink()
    """,
    "RegistryNotFound": """
    rounds(failing(RegistryNotFound, lambda: reader(timeout=0)))
    """,
    "InvalidName": """
    rounds(failing(InvalidName, lambda: SessionReader("a.b")))
    rounds(failing(InvalidName, lambda: SessionManager("a/b")))
    """,
    "bad option": """
    rounds(failing(TypeError, lambda: manager(wait="1")))
    rounds(failing(ValueError, lambda: reader(timeout=-1)))
    """,
    "WriterAlreadyRunning": """
    kept = manager()
    rounds(failing(WriterAlreadyRunning, manager))
    rounds(failing(WriterAlreadyRunning, lambda: manager(fresh=True)))
    kept.unlink()
    """,
    "truncated table": """
    manager().close()
    os.truncate(table, 4096)
    rounds(failing(CorruptRegistry, manager))
    rounds(failing(CorruptRegistry, reader))
    manager(fresh=True).unlink()
    """,
    "missing table": """
    manager().close()
    table.unlink()
    rounds(failing(CorruptRegistry, lambda: reader(timeout=0)))
    manager(fresh=True).unlink()
    """,
    "half-made control": """
    control.write_bytes(bytes(4096))
    rounds(failing(RegistryNotFound, lambda: reader(timeout=0)))
    manager().unlink()
    """,
    "wrong magic": """
    manager().close()
    with control.open("r+b") as file:
        file.write(b"no magic")
    rounds(failing(FormatMismatch, manager))
    rounds(failing(FormatMismatch, reader))
    manager(fresh=True).unlink()
    """,
    "wrong magic of the table": """
    manager().close()
    with table.open("r+b") as file:
        file.write(b"no magic")
    rounds(failing(CorruptRegistry, manager))
    rounds(failing(JidokaError, lambda: reader(timeout=0)))
    manager(fresh=True).unlink()
    """,
    "closed for good": """
    made = manager()
    attached = reader()
    made.unlink()
    rounds(failing(JidokaError, attached.list_sessions))
    rounds(failing(JidokaError, attached.refresh))
    """,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_thousand_rounds_leave_all_as_it_was(name: str, way: str) -> None:
    out = run_script(BEGIN + WAYS[way], name, ROUNDS)
    assert set(out.splitlines()) == {str(ROUNDS)}
    assert objects_of(name) == set()
