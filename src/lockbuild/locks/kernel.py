"""The two things that the kernel locks for us, a lock file and a directory, and one attempt to lock one of them.

A lock is what ``filelock.lock_descriptor`` takes, an exclusive flock on an open file (on Windows a locked byte): the
kernel frees it when the last process that has the open file has closed it or ended. Nothing else marks a lock, so
nothing is stale after a crash. Three things can go wrong between opening a file and holding its lock, and each has its
guard here:

- The file was removed, and another process has made and locked a new one of that name. `is_current` compares what is
  open with what has the name now; the caller drops a lock that is not current and starts over.
- Another user put a symbolic link, a FIFO or a hard link there, or in place of a folder on the way. Links are not
  followed, only regular files are accepted, and nothing is ever written into a lock file or truncated.
- Another user opens the file between its creation and the change of its mode. It gets its name after its mode.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import NamedTuple

from lockbuild.errors import CacheFolderError
from lockbuild.files import above_standard_streams, hidden_beside, link, new_file
from lockbuild.folders import Folder, open_folder

# Errors by which file systems say that they have no flock: those of flock(2), NFS without a lock daemon (ENOLCK), an
# exclusive lock on a read-only NFSv4 descriptor (EBADF), Linux's internal ENOTSUPP that NFS lets through (524).
_NO_LOCKS_HERE = frozenset(
    {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EBADF, errno.EINVAL, 524}
)

# Every user may lock a lock file that every user can reach; there is nothing in it to read or to spoil.
_MODE = 0o666


class LocksUnsupportedError(Exception):
    """The file system has no locks for this file. ``str()`` of it says so."""


class NotALockFileError(Exception):
    """Something that is not a regular file has the lock file's name. ``str()`` of it says what to do."""


class LockFile(NamedTuple):
    """A file that exists to be locked. It is made when it is missing, with ``create``, and never removed."""

    path: str
    create: bool = True

    def open(self) -> int:
        """
        Return a descriptor of the lock file, made if it was missing.

        Raises `NotALockFileError`, also where another user's link is on the way, or `OSError` when it cannot be opened
        or made.
        """
        parent, name = os.path.split(self.path)
        try:
            with open_folder(parent, shared=True) as folder:
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

    def is_current(self, descriptor: int) -> bool:
        """Tell whether the file behind ``descriptor`` still is the one that has the name."""
        return _is_named(self.path, descriptor)


class Directory(NamedTuple):
    """A directory that is locked itself: its inode is the same for every user, mount, container and spelling."""

    path: str

    def open(self) -> int:
        """Return a descriptor of the directory. Raises `OSError`, also where directories cannot be opened."""
        flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
        return above_standard_streams(os.open(self.path, flags))

    def is_current(self, descriptor: int) -> bool:
        """Tell whether the directory behind ``descriptor`` still is the one that has the name."""
        return _is_named(self.path, descriptor)


def try_to_lock(descriptor: int) -> bool:
    """Try once to lock what is open. Raises `LocksUnsupportedError` where that file system has no locks."""
    # Imported with the first lock: a hook host that was started before imports the backend meanwhile.
    from filelock import lock_descriptor

    try:
        return lock_descriptor(descriptor, blocking=False)
    except OSError as error:
        if error.errno in _NO_LOCKS_HERE:
            raise LocksUnsupportedError(f"its file system has no locks ({error.strerror})") from error
        raise


def unlock(descriptor: int) -> None:
    """Free the lock, also where a process that outlives us has a copy of the descriptor; then close it."""
    from filelock import unlock_descriptor

    try:
        with contextlib.suppress(OSError):
            unlock_descriptor(descriptor)
    finally:
        os.close(descriptor)


def _open_regular_file(name: str, folder: Folder) -> int:
    # Without O_CREAT: where fs.protected_regular is set, Linux refuses O_CREAT on another user's file in /tmp.
    # With O_NONBLOCK: a FIFO or a leased file must not make the open wait.
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        descriptor = os.open(folder.at(name), flags, dir_fd=folder.descriptor)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise NotALockFileError("it is a symbolic link, which could be someone's trap; remove it") from error
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

    The file is made under another name and linked to its own only when its mode is set: a second user who opened it
    in between would be refused.
    """
    path, dir_fd = folder.at(name), folder.descriptor
    if os.name == "nt":
        # Modes mean nothing there, and of two names that an open file has none could be removed.
        return _new_lock_file(path, dir_fd)
    with hidden_beside(path, dir_fd) as hidden:
        descriptor = _new_lock_file(hidden, dir_fd)
        try:
            link(hidden, path, dir_fd, dir_fd)
        except FileExistsError:
            os.close(descriptor)
            raise
        except OSError:
            # A file system without hard links. Which of two processes loses this race finds the other's file.
            os.close(descriptor)
            return _new_lock_file(path, dir_fd)
    return descriptor


def _new_lock_file(path: str, dir_fd: int | None) -> int:
    descriptor = above_standard_streams(new_file(path, _MODE, dir_fd))
    if hasattr(os, "fchmod"):
        with contextlib.suppress(PermissionError):
            os.fchmod(descriptor, _MODE)
    return descriptor


def _is_named(path: str, descriptor: int) -> bool:
    opened = os.fstat(descriptor)
    try:
        named = os.stat(path, follow_symlinks=True)
    except OSError:
        return False
    return (opened.st_dev, opened.st_ino) == (named.st_dev, named.st_ino)
