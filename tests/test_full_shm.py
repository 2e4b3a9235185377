"""A /dev/shm that is full, for real: a small tmpfs in a mount namespace of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import jidoka_shm

UNSHARE = shutil.which("unshare")
#: In a user namespace of its own, where any user may mount.
NAMESPACE = (UNSHARE or "unshare", "--user", "--map-root-user", "--mount")
MOUNT = 'mount -t tmpfs -o size="$0" tmpfs /dev/shm && exec "$@"'


def _can_mount() -> bool:
    command = [*NAMESPACE, "sh", "-c", MOUNT, "1m", "true"]
    return UNSHARE is not None and subprocess.run(command, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _can_mount(), reason="no user may mount a tmpfs here")

HEAD = """
    import os, time
    from jidoka_shm import RegistryFull, SessionManager, SessionReader

    def names():
        return sorted(os.listdir("/dev/shm"))

    def fill(manager, metadata):
        ids = []
        try:
            while True:
                ids.append(manager.create_session(metadata))
        except RegistryFull as full:
            return ids, full
"""


def _run(size: str, code: str) -> None:
    """Run a program with a /dev/shm of this size; its assertions are the test's."""
    program = textwrap.dedent(HEAD) + textwrap.dedent(code)
    run = subprocess.run(
        [*NAMESPACE, "sh", "-c", MOUNT, size, sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(Path(jidoka_shm.__file__).parents[1])},
        timeout=60,
    )
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("metadata", [{}, {"a": "x" * 3000}], ids=["short", "long"])
def test_a_registry_that_cannot_grow_says_so_and_goes_on(metadata: dict[str, str]) -> None:
    """A8: the table that is there stays as it is, and every session in it can change and end."""
    _run(
        "400k",
        f"""
        metadata = {metadata!r}
        with SessionManager("r", capacity=64, cleanup_delay=0) as manager, SessionReader("r") as reader:
            ids, full = fill(manager, metadata)
            assert full.unit == "bytes of /dev/shm", full
            assert full.needed > full.available >= 0, full
            there, generation = names(), manager.stats().generation
            assert len(there) == 2, there
            assert generation > 1
            assert sorted(reader) == sorted(ids)
            # Again and again: nothing is left behind, and nothing runs out.
            for _ in range(20):
                assert fill(manager, metadata)[0] == []
            assert (names(), manager.stats().generation) == (there, generation)
            for sid in ids:
                assert manager.update_session(sid, status="active").metadata == metadata
            for sid in ids[::2]:
                manager.terminate_session(sid, error="over")
            while len(reader) > len(ids) - len(ids[::2]):
                time.sleep(0.001)
            again, _ = fill(manager, metadata)
            assert len(again) >= len(ids[::2]) // 2, (len(again), len(ids))
            assert manager.check() == reader.check() == []
            manager.unlink()
        assert names() == []
        """,
    )


def test_the_next_change_grows_once_there_is_room_again() -> None:
    _run(
        "600k",
        """
        with open("/dev/shm/filler", "wb") as filler:
            filler.write(bytes(400 << 10))
        with SessionManager("r", capacity=64) as manager, SessionReader("r") as reader:
            ids, full = fill(manager, {})
            assert full.unit == "bytes of /dev/shm", full
            os.unlink("/dev/shm/filler")
            ids.append(manager.create_session({}))
            assert sorted(reader) == sorted(ids)
            assert manager.stats().capacity > len(ids)
            manager.unlink()
        """,
    )


def test_a_registry_that_finds_no_room_at_all_leaves_nothing() -> None:
    _run(
        "64k",
        """
        try:
            SessionManager("r", capacity=1000)
        except RegistryFull as full:
            assert full.unit == "bytes of /dev/shm", full
        else:
            raise AssertionError
        assert names() == []
        """,
    )
