"""The fixture that fails a test which leaves something behind, failed on purpose."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jidoka_shm

_CULPRITS = """
import gc
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest

from jidoka_shm import segment

kept = []
stop = threading.Event()


class Holder:
    def __init__(self):
        self.me = self
        self.descriptor = os.open("/dev/null", os.O_RDONLY)

    def __del__(self):
        os.close(self.descriptor)


def test_object(name):
    os.close(segment.create(f"/jidoka_shm.{name}.1"))


def test_that_the_object_was_removed():
    assert not [name for name in segment.names() if f"t{os.getpid()}-" in name]


def test_process():
    kept.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"]))


def test_that_the_process_was_ended():
    kept[0].wait()


def test_zombie():
    pid = os.fork()
    if not pid:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def test_process_of_a_thread():
    thread = threading.Thread(target=test_process)
    thread.start()
    thread.join()


def test_thread():
    kept.append(threading.Thread(target=stop.wait, name="the one left"))
    kept[-1].start()


def test_that_nothing_older_is_blamed():
    stop.set()
    kept[-1].join()


def test_descriptor():
    kept.append(os.pipe())


def test_descriptor_beside_one_closed_before():
    os.close(kept[-1][0])
    kept.append(os.open("/dev/null", os.O_RDONLY))
    kept.append(os.open("/dev/zero", os.O_RDONLY))


def test_that_garbage_is_no_leak():
    gc.disable()
    Holder()


def test_that_servers_of_multiprocessing_may_stay():
    gc.enable()
    process = multiprocessing.get_context("forkserver").Process(target=int)
    process.start()
    process.join()
    process.close()


@pytest.mark.xfail
def test_that_the_frames_of_a_failed_test_are_not_blamed():
    file = open("/dev/null")
    raise OSError


def test_that_what_is_cleaned_up_may_be_there(name):
    os.close(segment.create(f"/jidoka_shm.{name}"))
    segment.unlink(f"/jidoka_shm.{name}")
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    subprocess.run([sys.executable, "-c", ""], check=True)
"""

#: What is said of each test that leaves something behind.
_BLAMED = {
    "test_object": r"objects: jidoka_shm\.t\d+-[0-9a-f]{8}-0\.1",
    "test_process": r"processes: \d+ \(.*time\.sleep.*\)",
    "test_zombie": r"processes: \d+ \(ended, not waited for\)",
    "test_process_of_a_thread": r"processes: \d+ \(.*time\.sleep.*\)",
    "test_thread": r"threads: the one left",
    "test_descriptor": r"descriptors: \d+ -> pipe:\[\d+\], \d+ -> pipe:\[\d+\]",
    "test_descriptor_beside_one_closed_before": r"descriptors: .*\d+ -> /dev/zero",
}


def test_a_test_that_leaves_something_behind_fails_and_no_other(tmp_path: Path) -> None:
    conftest = Path(__file__).with_name("conftest.py").read_text()
    (tmp_path / "conftest.py").write_text(conftest)
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "test_culprits.py").write_text(_CULPRITS)
    root = str(Path(jidoka_shm.__file__).parents[1])
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root, "COLUMNS": "1000"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(
        r"^ERROR \S+::(\w+) - Failed: left behind (.*)$", result.stdout, re.MULTILINE
    )
    blamed = dict(found)
    assert blamed.keys() == _BLAMED.keys(), result.stdout + result.stderr
    for culprit, text in _BLAMED.items():
        assert re.fullmatch(text, blamed[culprit]), (culprit, blamed[culprit])
    passed = _CULPRITS.count("def test") - 1
    assert f"{passed} passed, 1 xfailed, {len(_BLAMED)} errors" in result.stdout
