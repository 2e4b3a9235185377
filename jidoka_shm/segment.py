"""POSIX shared memory: make, map, lock and remove named objects. The only importer of posix_ipc.

Two traps of posix_ipc are kept out here. Attaching with a ``size`` resizes a live object, and in
1.3.2 ``size`` together with ``read_only`` raises and unlinks it: so objects are attached with
neither, and made with O_CREX alone and then sized by descriptor. tmpfs is sparse: without
posix_fallocate a full /dev/shm is a SIGBUS at some later store instead of an error here.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from .errors import RegistryForbidden, RegistryFull, UnsupportedPlatform
from .layout import PREFIX

if sys.platform == "linux":
    import fcntl

    import posix_ipc

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Where Linux keeps what shm_open names: to list them, and to see what a name is of.
SHM_DIRECTORY: Final = Path("/dev/shm")  # noqa: S108 - the kernel's place, not a file of ours


def require_linux() -> None:
    """Raise ``UnsupportedPlatform`` elsewhere than on Linux."""
    if sys.platform != "linux":
        raise UnsupportedPlatform(sys.platform)


def _open(name: str, flags: int, *, read_only: bool = False) -> int:
    """Return a descriptor of the object ``name``.

    Raises:
        FileNotFoundError: where there is none.
        FileExistsError: where there is one and ``flags`` asks for a new one.
        PermissionError: where this user may not.
        OSError: where the name is not an object's.
    """
    require_linux()
    if not flags:
        _check_kind(name)
    try:
        return int(posix_ipc.SharedMemory(name, flags, 0o600, read_only=read_only).fd)
    except posix_ipc.ExistentialError:
        code = errno.EEXIST if flags else errno.ENOENT
    except posix_ipc.PermissionsError:
        code = errno.EACCES
    raise OSError(code, os.strerror(code), name)


def _check_kind(name: str) -> None:
    """Raise ``OSError`` for what bears the name of an object and is none.

    Anybody may make a FIFO in /dev/shm, and opening one waits for its other end for ever.
    """
    found = _status(name)
    if found is not None and not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a shared-memory object", name)


def create(name: str) -> int:
    """Make the object ``name``, empty, of mode 0600, and return a descriptor of it.

    Raises:
        FileExistsError: where there is one of that name.
    """
    require_linux()
    descriptor = _open(name, posix_ipc.O_CREX)
    try:
        # A umask may have left not even the owner's bits, and then nobody could open it again.
        set_mode(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_writable(name: str) -> int:
    """Return a descriptor of the object ``name`` to read and write."""
    return _open(name, 0)


def open_readable(name: str) -> int:
    """Return a descriptor of the object ``name`` to read."""
    return _open(name, 0, read_only=True)


def set_mode(descriptor: int, mode: int) -> None:
    """Give an object its mode; fchmod, since shm_open's own is cut by the umask."""
    os.fchmod(descriptor, mode)


def reserve(descriptor: int, size: int) -> None:
    """Make an object ``size`` bytes long, all of them there to be stored to.

    Raises:
        RegistryFull: where /dev/shm has no room for it.
    """
    room = os.fstatvfs(descriptor)
    # The kernel would take all that there is before it finds that it is not enough, and everybody
    # else be without for that long. One without a size of its own says 0.
    if room.f_blocks and size > room.f_bavail * room.f_frsize:
        raise _full(descriptor, size)
    os.ftruncate(descriptor, size)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise _full(descriptor, size) from None


def _full(descriptor: int, size: int) -> RegistryFull:
    room = os.fstatvfs(descriptor)
    return RegistryFull(size, room.f_bavail * room.f_frsize, "bytes of /dev/shm")


def size_of(descriptor: int) -> int:
    """Return the size of an object in bytes."""
    return os.fstat(descriptor).st_size


class Handle:
    """A descriptor that is closed with its last user, in whatever thread that is."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        # One whose __init__ was interrupted has none.
        descriptor = getattr(self, "descriptor", None)
        if descriptor is not None:
            os.close(descriptor)

    def is_named(self) -> bool:
        """Return whether the object still has its name."""
        return is_named(self.descriptor)


def is_named(descriptor: int) -> bool:
    """Return whether an object still has its name."""
    return os.fstat(descriptor).st_nlink > 0


def check_owner(descriptor: int, name: str) -> None:
    """Raise ``RegistryForbidden`` unless the object belongs to this user."""
    uid = os.fstat(descriptor).st_uid
    if uid != os.geteuid():
        raise RegistryForbidden(name, uid)


def is_own(name: str) -> bool:
    """Return whether a name is an object's of this user."""
    found = _status(name)
    return found is not None and stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def _status(name: str) -> os.stat_result | None:
    """Return what is under a name, without opening it; None where there is nothing."""
    try:
        return os.lstat(f"{SHM_DIRECTORY}{name}")
    except FileNotFoundError:
        return None


def leads_to(name: str, descriptor: int) -> bool:
    """Return whether a name leads to an object that is open."""
    found = _status(name)
    return found is not None and os.path.samestat(found, os.fstat(descriptor))


def map_writable(descriptor: int, size: int) -> mmap.mmap:
    """Map ``size`` bytes of an object to read and write; other processes see each store."""
    return mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)


def map_readable(descriptor: int, size: int) -> mmap.mmap:
    """Map ``size`` bytes of an object to read."""
    return mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)


def try_lock(descriptor: int) -> bool:
    """Lock an object by this descriptor, without waiting; return whether that worked.

    A flock belongs to the open file: two descriptors opened apart exclude each other in one
    process too, and the kernel lets go of it when the last copy of the descriptor is closed,
    however the process ends. A mapping made from the descriptor counts as a copy.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Let go of a lock at once, whatever copies of the descriptor there are."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)


def mode_of(descriptor: int) -> int:
    """Return an object's mode."""
    return os.fstat(descriptor).st_mode & 0o777


def is_begun(descriptor: int) -> bool:
    """Return whether an object begins with a word other than zero, as a complete one does."""
    return any(os.pread(descriptor, 8, 0))


def unlink(name: str) -> None:
    """Remove a name; nothing happens where there is none.

    Raises:
        PermissionError: where this user may not.
    """
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        pass
    except posix_ipc.PermissionsError:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name) from None


def names() -> Iterator[str]:
    """Yield the name of each object of any registry on this host, as shm_open takes it."""
    require_linux()
    for path in SHM_DIRECTORY.iterdir():
        if path.name.startswith(PREFIX):
            yield f"/{path.name}"
