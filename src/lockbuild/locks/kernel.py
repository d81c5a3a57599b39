"""The two things that the kernel locks, a lock file and a directory, and one attempt to lock either.

A lock is a flock on an open file (on Windows, a locked byte). Any number of processes may share it, or one may hold it
exclusively; ``filelock.lock_descriptor`` takes the exclusive ones. The kernel frees it when the last process that has
the open file has closed it or ended. Nothing else marks a lock, so nothing is stale after a crash. Three things can go
wrong between opening a file and holding its lock:

- The file was removed, and another process has made and locked a new one of that name. `is_current` compares the open
  file with the one that has the name now. The caller drops a lock that is not current and starts over.
- Another user put a symbolic link, a FIFO or a hard link in the place of the file or of a folder above it. Links are
  not followed, only regular files are accepted, and a lock file is never truncated. Only the file in a tree that
  several hosts see is written to (`lockbuild.locks.network`), and only if it has no second name.
- A second user opens the file before its mode is set, and is refused. In the folder of lock files, the file gets its
  mode first, then its name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lockbuild.errors import CacheFolderError
from lockbuild.files import above_standard_streams, errors_naming, hidden_beside, link, new_file
from lockbuild.folders import Folder, open_folder

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator

# Errors that mean that a file system has no flock: those of flock(2), NFS without a lock daemon (ENOLCK), an exclusive
# lock on a read-only NFSv4 descriptor (EBADF), and Linux's internal ENOTSUPP, which NFS lets through (524).
_NO_LOCKS_HERE = frozenset(
    {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL, 524}
)

# Every user who can reach a lock file may lock it. It is empty, so there is nothing to read or to spoil.
_MODE = 0o666

# Opens an existing file. No O_CREAT: with fs.protected_regular, Linux refuses it for another user's file in /tmp.
# O_NONBLOCK: a FIFO or a leased file must not make the open wait.
_EXISTING = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


class LocksUnsupportedError(Exception):
    """The file system has no locks for this file. ``str()`` gives words for a message."""


class NotALockFileError(Exception):
    """The name of the lock file belongs to something else. ``str()`` says what, and what to do about it."""


class Lockable(Protocol):
    """What a lock takes: a file or directory that is opened, and then locked as often as it takes."""

    @property
    def path(self) -> str:
        """Where it is."""

    def open(self) -> int:
        """Return a descriptor of it. Raises `NotALockFileError` and `OSError`."""

    def try_to_lock(self, descriptor: int, *, shared: bool = False) -> bool:
        """Try once to lock what `open` has opened. Raises `LocksUnsupportedError` if its file system has no locks."""

    def is_current(self, descriptor: int) -> bool:
        """Return whether the path still leads to what is behind ``descriptor``."""


class LockFile(NamedTuple):
    """A file that exists to be locked. With ``create``, it is made when it is missing. It is never removed."""

    path: str
    create: bool = True

    def open(self, *, make_folder: bool = False) -> int:
        """
        Return a descriptor of the lock file; with ``make_folder``, its folder is made when it is missing.

        Raises `NotALockFileError`, also for another user's link in the path, and `OSError`.
        """
        parent, name = os.path.split(self.path)
        try:
            with errors_naming(self.path), open_folder(parent, make=make_folder, shared=True) as folder:
                return self._open_in(folder, name)
        except CacheFolderError as error:
            raise NotALockFileError(str(error)) from error

    def _open_in(self, folder: Folder, name: str) -> int:
        if not self.create:
            return _open_regular_file(name, folder)
        while True:
            with contextlib.suppress(FileNotFoundError):
                return _open_regular_file(name, folder)
            with contextlib.suppress(FileExistsError):
                return _create(name, folder)

    def try_to_lock(self, descriptor: int, *, shared: bool = False) -> bool:
        """Try once to lock the file; see `try_to_lock`."""
        return try_to_lock(descriptor, shared=shared)

    def is_current(self, descriptor: int) -> bool:
        """Return whether the path still leads to the file behind ``descriptor``."""
        return _is_named(self.path, descriptor)


class Directory(NamedTuple):
    """A directory to lock. Its inode is the same for every user, mount, container and spelling of the path."""

    path: str

    def open(self) -> int:
        """Return a descriptor of the directory. Raises `OSError`."""
        flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
        return above_standard_streams(os.open(self.path, flags))

    def try_to_lock(self, descriptor: int, *, shared: bool = False) -> bool:
        """Try once to lock the directory; see `try_to_lock`."""
        return try_to_lock(descriptor, shared=shared)

    def is_current(self, descriptor: int) -> bool:
        """Return whether the path still leads to the directory behind ``descriptor``."""
        return _is_named(self.path, descriptor)


def try_to_lock_bytes(descriptor: int, *, shared: bool = False) -> bool:
    """
    Try once to lock the bytes of an open file, which file servers know; processes that inherit it hold the lock too.

    Raises `LocksUnsupportedError`, also where the system has no such locks (OFD, fcntl(2)).
    """
    if sys.platform != "linux":
        raise LocksUnsupportedError("this system has no locks of open files that reach other hosts")
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, whole_file(fcntl.F_RDLCK if shared else fcntl.F_WRLCK))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno in _NO_LOCKS_HERE:
            raise LocksUnsupportedError(f"its file system has no locks ({error.strerror})") from error
        raise
    return True


def whole_file(kind: int) -> bytes:
    """Pack a ``struct flock`` (fcntl(2)): type, whence, start, length, process ID. All zeros mean the whole file."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)


def try_to_lock(descriptor: int, *, shared: bool = False) -> bool:
    """
    Try once to lock an open file. Raises `LocksUnsupportedError` if its file system has no locks.

    On Windows, a shared lock is an exclusive one.
    """
    # Imported late: a hook host that was started before imports the backend meanwhile.
    from filelock import lock_descriptor

    try:
        if shared and sys.platform != "win32":
            return _try_to_share(descriptor)
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno in _NO_LOCKS_HERE:
            raise LocksUnsupportedError(f"its file system has no locks ({error.strerror})") from error
        raise


def _try_to_share(descriptor: int) -> bool:
    # filelock takes exclusive locks only.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_free(descriptor: int) -> bool:
    """Return whether no process holds the lock on an open file, or its file system has no locks."""
    try:
        free = try_to_lock(descriptor)
    except LocksUnsupportedError:
        return True
    if free:
        from filelock import unlock_descriptor

        unlock_descriptor(descriptor)
    return free


def unlock(descriptor: int) -> None:
    """Free the lock, even if another process has a copy of the descriptor, and close the descriptor."""
    from filelock import unlock_descriptor

    try:
        with contextlib.suppress(OSError):
            unlock_descriptor(descriptor)
        if sys.platform == "linux":
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, whole_file(fcntl.F_UNLCK))
    finally:
        close(descriptor)


def close(descriptor: int) -> None:
    """Close a descriptor of a locked file. Other processes that have it keep the lock."""
    # It is closed in any case. A file server that has taken the lock away may report that here (GlusterFS: EBADFD).
    with contextlib.suppress(OSError):
        os.close(descriptor)


@contextlib.contextmanager
def left_behind(path: str) -> Iterator[int | None]:
    """
    Yield a file, opened and locked, that its process kept locked as long as it ran; ``None`` while that one still does.

    Without locks no process can tell, and ``None`` counts. Raises `OSError`, `FileNotFoundError` for one that is gone.
    """
    descriptor = os.open(path, _EXISTING)
    try:
        has_ended = False
        with contextlib.suppress(LocksUnsupportedError):
            has_ended = try_to_lock(descriptor)
        yield descriptor if has_ended else None
    finally:
        os.close(descriptor)


def _open_regular_file(name: str, folder: Folder) -> int:
    try:
        descriptor = os.open(folder.at(name), _EXISTING, dir_fd=folder.descriptor)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise NotALockFileError("it is a symbolic link that another user could have made; remove it") from error
        if error.errno in (errno.EISDIR, errno.ENXIO):
            raise NotALockFileError("it is not a regular file; remove it") from error
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return above_standard_streams(descriptor)
    os.close(descriptor)
    raise NotALockFileError("it is not a regular file; remove it")


def _create(name: str, folder: Folder) -> int:
    """
    Create a lock file. Raises `FileExistsError` when another process was first.

    The file is made under another name, and gets its own name once its mode is set: before that, a second user would
    be refused.
    """
    path, dir_fd = folder.at(name), folder.descriptor
    if os.name == "nt":
        # Modes mean nothing there, and neither of two names of an open file could be removed.
        return new_lock_file(path, dir_fd)
    with hidden_beside(path, dir_fd) as hidden:
        descriptor = new_lock_file(hidden, dir_fd)
        try:
            link(hidden, path, dir_fd, dir_fd)
        except FileExistsError:
            os.close(descriptor)
            raise
        except OSError:
            # A file system without hard links. Of two processes, the one that is late finds the other's file.
            os.close(descriptor)
            return new_lock_file(path, dir_fd)
    return descriptor


def new_lock_file(path: str, dir_fd: int | None) -> int:
    """Make a lock file and return its descriptor. Raises `FileExistsError`."""
    descriptor = above_standard_streams(new_file(path, _MODE, dir_fd))
    if hasattr(os, "fchmod"):
        with contextlib.suppress(PermissionError):
            os.fchmod(descriptor, _MODE)
    return descriptor


def _is_named(path: str, descriptor: int) -> bool:
    opened = os.fstat(descriptor)
    try:
        named = os.stat(path)
    except OSError:
        return False
    return os.path.samestat(opened, named)
