"""Where the service listens: a socket of this user, in a directory that nobody else can enter.

The directory is the user's runtime directory. A socket's path is bounded (108 bytes on Linux), so
where that directory's own is too long, one in /tmp takes its place, made and checked alike.
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

from .errors import RegistryForbidden

#: Bytes of a path that the kernel takes (unix(7): sun_path), less the zero at its end.
_LONGEST: Final = 107

#: Connections that the kernel keeps until the service accepts them.
_BACKLOG: Final = 128


class Endpoint:
    """A socket that listens for the clients of one registry.

    Attributes:
        listener: the socket.
        path: its name in the file system.
    """

    def __init__(self, name: str) -> None:
        """Listen; the caller holds the registry's lock.

        Args:
            name: the registry's name.

        Raises:
            RegistryForbidden: where the directory belongs to another user.
            OSError: where the kernel refuses.
        """
        path = _path(name)
        _make_private(path.parent)
        self.path = str(path)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            # A predecessor's; it is dead, since the lock is ours.
            path.unlink(missing_ok=True)
            self.listener.bind(self.path)
            path.chmod(0o600)
            self._inode = path.lstat().st_ino
            self.listener.listen(_BACKLOG)
        except BaseException:
            self.listener.close()
            raise

    def withdraw(self) -> None:
        """Remove the socket's name, unless it is another socket's by now. May be repeated."""
        path = Path(self.path)
        with contextlib.suppress(OSError):
            # Whoever removed it by hand may have made room for a successor.
            if path.lstat().st_ino == self._inode:
                path.unlink()


def _path(name: str) -> Path:
    """Return the path of a registry's socket.

    It tells registries of one name in different /dev/shm apart, as containers with a common
    runtime directory have them.
    """
    place = f"{name}.{os.stat('/dev/shm').st_dev:x}.sock"  # noqa: S108, PTH116 - where memory is
    with warnings.catch_warnings():
        # That no session manager set XDG_RUNTIME_DIR is nothing for this program's users.
        warnings.simplefilter("ignore")
        path = user_runtime_path("jidoka_shm") / place
    if len(os.fsencode(path)) > _LONGEST:
        path = Path(f"/tmp/jidoka_shm-{os.geteuid()}") / place  # noqa: S108 - made private below
    return path


def _make_private(directory: Path) -> None:
    """Make a directory that only this user can enter, or see that it is one.

    Raises:
        RegistryForbidden: where it is not this user's, or is no directory.
    """
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    # Not followed: a link may lead into a directory that another user reads.
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise RegistryForbidden(str(directory), found.st_uid)
    if stat.S_IMODE(found.st_mode) != 0o700:  # noqa: PLR2004 - a mode
        directory.chmod(0o700)
