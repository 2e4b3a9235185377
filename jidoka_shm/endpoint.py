"""Where the service listens: a socket of this user, in a directory that nobody else can enter.

The directory is in the user's runtime directory. Where there is none that can be used (its path is
relative or no text, other users may replace what is in it, this one may not make it, or a socket's
path, 108 bytes on Linux, cannot hold it), one in /tmp takes its place, made and checked alike.
There any user may make it first: then no service starts, until XDG_RUNTIME_DIR names another place.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import warnings
from pathlib import Path
from typing import Final

from platformdirs import user_runtime_path

from .errors import DirectoryForbidden
from .segment import require_linux

#: Bytes of a path that the kernel takes (unix(7): sun_path), less the zero at its end.
_LONGEST: Final = 107

#: Connections that the kernel keeps until the service accepts them.
BACKLOG: Final = 128


class Endpoint:
    """A socket that listens for the clients of one registry.

    Attributes:
        listener: the socket; None before ``open``.
        path: its name in the file system; empty before ``open``.
    """

    def __init__(self, name: str) -> None:
        """Take a registry's name. It is ``open`` that makes the socket."""
        self._name = name
        self._made: tuple[int, int] | None = None
        self.listener: socket.socket | None = None
        self.path = ""

    def open(self) -> None:
        """Listen; the caller holds the registry's lock.

        However this ends, ``withdraw`` removes what it left, and a ``listener`` is to be closed.

        Raises:
            DirectoryForbidden: where the directory belongs to another user.
            OSError: where the kernel refuses.
        """
        path = path_of(self._name)
        _make_private(path.parent)
        # A predecessor's; it is dead, since the lock is ours.
        path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        # Known before the name is there: an interrupt behind the bind must not leave one.
        self.path = str(path)
        self.listener.bind(self.path)
        path.chmod(0o600)
        self._made = _mark(path)
        self.listener.listen(BACKLOG)

    def withdraw(self) -> None:
        """Remove the socket's name, unless it is another socket's by now. May be repeated."""
        path = Path(self.path)
        with contextlib.suppress(OSError):
            # Whoever removed it by hand may have made room for a successor.
            if self.path and self._made in {None, _mark(path)}:
                path.unlink()


def _mark(path: Path) -> tuple[int, int]:
    """Return what tells a socket from a later one of the same name, whose inode may be the same."""
    found = path.lstat()
    return found.st_ino, found.st_mtime_ns


def path_of(name: str) -> Path:
    """Return the path of a registry's socket.

    It tells registries of one name in different /dev/shm apart, as containers with a common
    runtime directory have them.

    Raises:
        UnsupportedPlatform: where there is no /dev/shm.
    """
    require_linux()
    place = f"{name}.{os.stat('/dev/shm').st_dev:x}.sock"  # noqa: S108, PTH116 - where memory is
    with warnings.catch_warnings(), contextlib.suppress(OSError):
        # That no session manager set XDG_RUNTIME_DIR is nothing for this program's users.
        warnings.simplefilter("ignore")
        path = user_runtime_path("jidoka_shm") / place
        if _is_usable(path):
            return path
    return Path(f"/tmp/jidoka_shm-{os.geteuid()}") / place  # noqa: S108 - made private below


def _is_usable(path: Path) -> bool:
    """Return whether a socket may have this path, and clients in any directory find it.

    Raises:
        OSError: where the runtime directory is not there.
    """
    try:
        length = len(str(path).encode())
    except UnicodeEncodeError:
        return False
    if length > _LONGEST or not path.is_absolute():
        return False
    # Whoever may rename what is in it could put a directory of his own in the place of ours.
    found = path.parent.parent.stat()
    is_shared = found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX
    if is_shared or found.st_uid not in {0, os.geteuid()}:
        return False
    # Made for this user, as systemd does in /run, or to be made.
    may_write = os.access(path.parent.parent, os.W_OK | os.X_OK, effective_ids=True)
    return may_write or path.parent.exists()


def _make_private(directory: Path) -> None:
    """Make a directory that only this user can enter, or see that it is one.

    Raises:
        DirectoryForbidden: where it is not this user's, or is no directory.
    """
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    # Not followed: a link may lead into a directory that another user reads.
    found = directory.lstat()
    is_directory = stat.S_ISDIR(found.st_mode)
    if not is_directory or found.st_uid != os.geteuid():
        raise DirectoryForbidden(str(directory), found.st_uid if is_directory else None)
    if stat.S_IMODE(found.st_mode) != 0o700:  # noqa: PLR2004 - a mode
        directory.chmod(0o700)
