"""``session_ready``: said once, to the supervisor alone, and never into another file."""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from jidoka_shm import session_ready
from jidoka_shm.ready import KNOWN, READY, READY_FD, name_channel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def channel(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A supervisor's end of the channel, of which this process has the other."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setenv(READY_FD, name_channel(theirs))
    # The number is handed over, as to a child.
    theirs.detach()
    with ours:
        yield ours


def test_it_is_said_once_and_answered(channel: socket.socket) -> None:
    channel.send(KNOWN)
    assert session_ready() is True
    assert channel.recv(64) == READY
    # Nothing of it is left here, nor for what this process starts.
    assert channel.recv(64) == b""
    assert READY_FD not in os.environ
    assert session_ready() is False


def test_several_threads_say_it_once(channel: socket.socket) -> None:
    channel.send(KNOWN)
    said: list[bool] = []
    threads = [threading.Thread(target=lambda: said.append(session_ready())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == [False, False, False, True]


def test_a_supervisor_that_is_gone_waits_for_nothing(channel: socket.socket) -> None:
    channel.close()
    assert session_ready() is False


@pytest.mark.parametrize("timeout", [0, 0.01])
def test_a_supervisor_that_does_not_answer_is_waited_for_no_longer_than_timeout(
    channel: socket.socket, timeout: float
) -> None:
    with pytest.raises(TimeoutError, match=f"within {timeout:g} s .* a longer timeout"):
        session_ready(timeout=timeout)
    assert channel.recv(64) == READY
    assert channel.recv(64) == b""


def test_without_a_supervisor_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(READY_FD, raising=False)
    assert session_ready() is False
    with pytest.raises(ValueError, match="timeout"):
        session_ready(timeout=-1)


@pytest.mark.parametrize(
    "said", ["", "nonsense", "5", "5:", ":5", "-1:5", "5:5:5", "99999:5", f"{10**30}:5"]
)
def test_what_is_no_descriptor_is_nobody(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(READY_FD, said)
    assert session_ready() is False
    assert READY_FD not in os.environ


def test_another_file_under_its_number_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        monkeypatch.setenv(READY_FD, f"{file.fileno()}:5")
        assert session_ready() is False
        # Nor is a file with the very inode a channel.
        monkeypatch.setenv(READY_FD, f"{file.fileno()}:{os.fstat(file.fileno()).st_ino}")
        assert session_ready() is False
        assert not file.closed
        os.fstat(file.fileno())
    assert path.read_bytes() == b""
