"""Where the service listens: nobody else gets there, and nothing of it stays behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
import pytest
from host import in_child, objects_of

from jidoka_shm import SessionManager
from jidoka_shm import endpoint as endpoint_module
from jidoka_shm.endpoint import Endpoint
from jidoka_shm.errors import DirectoryForbidden

if TYPE_CHECKING:
    from collections.abc import Iterator

SHM = f"{Path('/dev/shm').stat().st_dev:x}"  # noqa: S108 - where memory is
NOBODY = 65_534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's file")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory with a path short enough for sockets."""
    made = Path(tempfile.mkdtemp(prefix="jidoka-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(made))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def fallback(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the socket is if the runtime directory cannot be used."""
    path = Path(f"/tmp/jidoka_shm-{os.geteuid()}/{name}.{SHM}.sock")  # noqa: S108 - as it is
    yield path
    assert not path.exists()


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def _answers(path: str | Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def _opened(name: str) -> Endpoint:
    endpoint = Endpoint(name)
    try:
        endpoint.open()
    except BaseException:
        _close(endpoint)
        raise
    return endpoint


def _close(endpoint: Endpoint) -> None:
    if endpoint.listener is not None:
        endpoint.listener.close()
    endpoint.withdraw()


def test_the_socket_is_the_owners_alone_in_a_directory_that_is_his_alone(
    name: str, runtime: Path
) -> None:
    umask = os.umask(0)
    try:
        endpoint = _opened(name)
    finally:
        os.umask(umask)
    path = Path(endpoint.path)
    assert path == runtime / "jidoka_shm" / f"{name}.{SHM}.sock"
    assert stat.S_ISSOCK(path.lstat().st_mode)
    assert (_mode(path), _mode(path.parent)) == (0o600, 0o700)
    assert _answers(path)
    _close(endpoint)
    _close(endpoint)
    assert list(path.parent.iterdir()) == []


def test_the_socket_is_never_wider_than_its_directory_even_between_two_steps(
    name: str, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    bind = socket.socket.bind

    class Watched(socket.socket):
        def bind(self, address: str) -> None:  # type: ignore[override]
            bind(self, address)
            seen.append(_mode(Path(address).parent))

    monkeypatch.setattr(endpoint_module.socket, "socket", Watched)
    (runtime / "jidoka_shm").mkdir(mode=0o777)
    (runtime / "jidoka_shm").chmod(0o777)
    _close(_opened(name))
    assert seen == [0o700]


@pytest.mark.parametrize("mode", [0o777, 0o755, 0o1777, 0o500, 0o000])
def test_a_directory_of_another_mode_is_made_private(name: str, runtime: Path, mode: int) -> None:
    directory = runtime / "jidoka_shm"
    directory.mkdir()
    directory.chmod(mode)
    endpoint = _opened(name)
    assert _mode(directory) == 0o700
    _close(endpoint)


@pytest.mark.parametrize("kind", ["link", "link to nothing", "file"])
def test_what_is_no_directory_is_refused_and_stays(name: str, runtime: Path, kind: str) -> None:
    directory, other = runtime / "jidoka_shm", runtime / "other"
    if kind == "file":
        directory.touch()
    else:
        directory.symlink_to(other)
    if kind == "link":
        other.mkdir(mode=0o755)
        other.chmod(0o755)
    with pytest.raises(DirectoryForbidden, match=str(directory)):
        _opened(name)
    assert directory.is_symlink() == (kind != "file")
    if kind == "link":
        assert (_mode(other), list(other.iterdir())) == (0o755, [])


@needs_root
def test_a_directory_of_another_user_is_refused_and_stays(name: str, runtime: Path) -> None:
    directory = runtime / "jidoka_shm"
    directory.mkdir(mode=0o755)
    os.chown(directory, NOBODY, NOBODY)
    with pytest.raises(DirectoryForbidden, match=f"uid {NOBODY}") as caught:
        _opened(name)
    assert (caught.value.directory, caught.value.uid) == (str(directory), NOBODY)
    assert (directory.stat().st_uid, _mode(directory)) == (NOBODY, 0o755)
    assert list(directory.iterdir()) == []


@pytest.mark.usefixtures("runtime")
def test_so_many_clients_wait_to_be_accepted_as_it_says(name: str) -> None:
    """Not as many as asyncio takes, which listens once more."""
    manager = SessionManager(name, capacity=16, listen=True)
    held, goes_on = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        goes_on.wait(30)

    with manager, contextlib.ExitStack() as clients:
        manager._reactor._loop.call_soon_threadsafe(hold)
        assert held.wait(30)
        count = 0
        try:
            with contextlib.suppress(BlockingIOError):
                while count < 2 * endpoint_module.BACKLOG:
                    client = clients.enter_context(socket.socket(socket.AF_UNIX))
                    client.setblocking(False)  # noqa: FBT003 - as socket has it
                    client.connect(manager._own.control.socket_path)
                    count += 1
        finally:
            goes_on.set()
        # One more than it was told, as the kernel has it.
        assert count == endpoint_module.BACKLOG + 1
        manager.unlink()


# ---------------------------------------------------------------------------- no usable one


@pytest.mark.parametrize(
    "kind", ["relative", "too long", "not there", "no text", "everybody's", "another user's"]
)
def test_a_runtime_directory_that_cannot_be_used_is_replaced(
    name: str, runtime: Path, fallback: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "another user's" and os.geteuid() != 0:
        pytest.skip("only root can make another user's directory")
    given = runtime / {"too long": "x" * 100, "no text": "\udcff"}.get(kind, "y")
    if kind != "not there":
        given.mkdir(mode=0o700)
    if kind == "everybody's":
        given.chmod(0o777)
    elif kind == "another user's":
        os.chown(given, NOBODY, NOBODY)
    elif kind == "relative":
        monkeypatch.chdir(runtime)
        given = Path("y")
    # As the versions of platformdirs have it that check nothing of it.
    monkeypatch.setattr(endpoint_module, "user_runtime_path", given.joinpath)
    endpoint = _opened(name)
    try:
        assert Path(endpoint.path) == fallback
        assert (_mode(fallback), _mode(fallback.parent)) == (0o600, 0o700)
        assert _answers(fallback)
    finally:
        _close(endpoint)


def test_a_runtime_directory_of_all_in_which_nobody_replaces_anothers_is_used(
    name: str, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the versions of platformdirs have it that check nothing of it.
    monkeypatch.setattr(endpoint_module, "user_runtime_path", runtime.joinpath)
    runtime.chmod(0o1777)
    endpoint = _opened(name)
    assert Path(endpoint.path).parent == runtime / "jidoka_shm"
    _close(endpoint)


@pytest.mark.parametrize("spare", [0, 1])
def test_the_longest_path_that_the_kernel_takes_is_used(
    name: str, runtime: Path, fallback: Path, spare: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tail = len(f"/jidoka_shm/{name}.{SHM}.sock")
    given = runtime / ("x" * (107 + spare - tail - len(f"{runtime}/")))
    given.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(given))
    endpoint = _opened(name)
    try:
        assert _answers(endpoint.path)
        assert (Path(endpoint.path) == fallback) == bool(spare)
        assert len(endpoint.path) == 107 or spare
    finally:
        _close(endpoint)


def test_without_a_runtime_directory_it_listens_all_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    endpoint = _opened(name)
    try:
        path = Path(endpoint.path)
        assert path.is_absolute()
        assert (_mode(path), _mode(path.parent)) == (0o600, 0o700)
        assert _answers(path)
    finally:
        _close(endpoint)


def test_a_runtime_directory_that_platformdirs_refuses_is_replaced(
    name: str, fallback: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: str) -> Path:
        raise PermissionError

    monkeypatch.setattr(endpoint_module, "user_runtime_path", refuse)
    endpoint = _opened(name)
    assert Path(endpoint.path) == fallback
    _close(endpoint)


USER = 12_345


@pytest.fixture
def users_fallback() -> Iterator[Path]:
    """Where the socket of a user is who has no runtime directory."""
    path = Path(f"/tmp/jidoka_shm-{USER}")  # noqa: S108 - as it is
    yield path
    path.rmdir()


@needs_root
def test_another_users_directory_in_the_place_of_the_fallback_is_refused(
    name: str, runtime: Path, users_fallback: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And another runtime directory is the way out, as the error says."""
    own = runtime / "own"
    own.mkdir(mode=0o700)
    os.chown(own, USER, USER)
    runtime.chmod(0o711)
    # Root made it first.
    users_fallback.mkdir()

    def work() -> None:
        os.setresuid(USER, USER, USER)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime / "none"))
        with pytest.raises(DirectoryForbidden) as caught:
            SessionManager(name, listen=True)
        assert str(caught.value).startswith(
            f"a service cannot listen in {users_fallback}, which belongs to the user with uid 0: "
        )
        assert "set XDG_RUNTIME_DIR" in str(caught.value)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(own))
        with SessionManager(name, listen=True) as manager:
            assert str(manager._own.control.socket_path).startswith(f"{own}/jidoka_shm/")
            manager.unlink()

    assert in_child(work) == 0
    assert objects_of(name) == set()


@needs_root
def test_a_runtime_directory_in_which_nothing_can_be_made_is_replaced(
    name: str, runtime: Path, users_fallback: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the directory was made there for this user, as a unit of systemd has it."""
    # As the versions of platformdirs have it that check nothing of it.
    monkeypatch.setattr(endpoint_module, "user_runtime_path", runtime.joinpath)
    runtime.chmod(0o755)

    def listen(directory: Path) -> None:
        os.setresuid(USER, USER, USER)
        endpoint = _opened(name)
        assert Path(endpoint.path).parent == directory
        _close(endpoint)

    assert in_child(lambda: listen(users_fallback)) == 0
    made = runtime / "jidoka_shm"
    made.mkdir()
    os.chown(made, USER, USER)
    assert in_child(lambda: listen(made)) == 0


# ---------------------------------------------------------------------------- predecessors


def test_the_socket_of_a_dead_predecessor_is_replaced(name: str, runtime: Path) -> None:
    def die() -> None:
        _opened(name)
        os._exit(0)

    assert in_child(die) == 0
    (left,) = (runtime / "jidoka_shm").iterdir()
    assert not _answers(left)
    endpoint = _opened(name)
    assert _answers(left)
    _close(endpoint)
    assert not left.exists()


def test_a_successors_socket_is_not_removed(name: str, runtime: Path) -> None:
    old = _opened(name)
    new = _opened(name)
    _close(old)
    assert _answers(new.path)
    _close(new)
    assert not Path(new.path).exists()


def test_a_successors_socket_is_not_removed_although_its_inode_is_the_same(
    name: str, runtime: Path
) -> None:
    old = _opened(name)
    # Its inode is free once nobody listens any more, and most file systems give it out again.
    old.listener.close()
    new = _opened(name)
    inode = Path(new.path).lstat().st_ino
    old._made = (inode, old._made[1])
    _close(old)
    assert _answers(new.path)
    _close(new)


def test_a_socket_that_was_removed_by_hand_is_no_error(name: str, runtime: Path) -> None:
    endpoint = _opened(name)
    shutil.rmtree(runtime / "jidoka_shm")
    _close(endpoint)


@pytest.mark.parametrize("step", ["bind", "listen", "chmod", "lstat"])
@pytest.mark.parametrize("exception", [OSError, KeyboardInterrupt])
def test_one_that_cannot_be_opened_leaves_nothing(
    name: str,
    runtime: Path,
    step: str,
    exception: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (runtime / "jidoka_shm").mkdir(mode=0o700)

    class Failing(socket.socket):
        def bind(self, address: str) -> None:  # type: ignore[override]
            super().bind(address)
            if step == "bind":
                raise exception

        def listen(self, backlog: int) -> None:  # type: ignore[override]
            super().listen(backlog)
            if step == "listen":
                raise exception

    def fail(path: Path, *_: object) -> None:
        raise exception

    endpoint = Endpoint(name)
    with monkeypatch.context() as patch:
        patch.setattr(endpoint_module.socket, "socket", Failing)
        if step == "chmod":
            patch.setattr(Path, step, fail)
        elif step == "lstat":
            patch.setattr(endpoint_module, "_mark", fail)
        with pytest.raises(exception):
            endpoint.open()
    _close(endpoint)
    assert list((runtime / "jidoka_shm").iterdir()) == []


def test_registries_of_one_name_in_different_shared_memory_have_different_sockets(
    name: str, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = _opened(name)
    real = os.stat
    monkeypatch.setattr(
        endpoint_module.os,
        "stat",
        lambda path, **_: real("/proc" if path == "/dev/shm" else path),  # noqa: S108 - where it is
    )
    there = _opened(name)
    assert here.path != there.path
    _close(here)
    _close(there)
    assert platformdirs.user_runtime_path("jidoka_shm") == Path(here.path).parent
