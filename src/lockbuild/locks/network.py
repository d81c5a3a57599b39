"""The target of a tree that several hosts see: a file in the tree, whose lock the file server knows.

On a network file system, flock on a directory is local to its host, and the other lock files are in folders of each
host. So such a tree has `LOCK_FILE`, on which a byte-range lock (OFD, fcntl(2)) is taken: it excludes other hosts and
the server itself, and hook processes inherit it with the open file. The file is made on network file systems and on
those that this host exports. Where it exists, it is always locked.

A file server may give the lock to another host while this one is cut off. No lock on such a network can prevent that.
`HeldTreeFile.confirm` notices it. It writes to the lock file, where NFSv4 reports a lost lock. And it looks, through a
new descriptor, whether the record beside the lock file is the same: each exclusive holder writes its own.

The files are in a folder with names that setuptools (``.svn``) and hatchling (``.tox``) leave out of every artifact.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from lockbuild.errors import CacheFolderError, LockLostError, LockUnavailableError, shown
from lockbuild.files import write_json, write_whole
from lockbuild.folders import open_folder
from lockbuild.locks.holders import read_record, record_beside, write_record
from lockbuild.locks.kernel import LockFile, NotALockFileError, new_lock_file, try_to_lock_bytes
from lockbuild.locks.mounts import is_exported, mount_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lockbuild.folders import Folder
    from lockbuild.locks.targets import LockRequest

LOCK_FILE = os.path.join(".lockbuild", ".tox", ".svn", "lock")
"""The path of the file in the tree."""

# A server that has lent a file to an NFSv4 client (a lease) asks for it back when a process there opens it. Until then,
# our opens fail, because they wait for nothing. The client answers within milliseconds.
_ATTEMPTS = 100
_PAUSE_SECONDS = 0.05


class TreeFile(NamedTuple):
    """The lock file in a tree, which is made when it is missing. Its lock is on its bytes."""

    path: str

    def open(self) -> int:
        """Return a descriptor of the file. Raises `NotALockFileError` and `OSError`."""
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(BlockingIOError):
                return self._open()
            time.sleep(_PAUSE_SECONDS)
        return self._open()

    def _open(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self._checked(LockFile(self.path, create=False).open())
        with _folder_of(self.path, make=True) as opened:
            write_whole(opened.at(".gitignore"), b"*\n", dir_fd=opened.descriptor)
            # Not by a second name, as other lock files: another host could see that, and take the file for a link.
            with contextlib.suppress(FileExistsError):
                return new_lock_file(opened.at(os.path.basename(self.path)), opened.descriptor)
        return self._checked(LockFile(self.path, create=False).open())

    def is_current(self, descriptor: int) -> bool:
        """Return whether the path still leads to the file behind ``descriptor``; `git clean` removes it."""
        # A client may remember the name of a file that another host has removed.
        return os.fstat(descriptor).st_nlink == 1 and LockFile(self.path).is_current(descriptor)

    def try_to_lock(self, descriptor: int, *, shared: bool = False) -> bool:
        """Try once to lock the file that `open` has opened."""
        return try_to_lock_bytes(descriptor, shared=shared)

    def _checked(self, descriptor: int) -> int:
        status = os.fstat(descriptor)
        # `confirm` writes a byte to it.
        if status.st_nlink != 1 or status.st_size > 1:
            os.close(descriptor)
            raise NotALockFileError("it is another file, or has a second name; remove it")
        return descriptor


class HeldTreeFile(NamedTuple):
    """A tree file that is locked, and the record beside it: ours, or what the last holder left if we share the lock."""

    file: TreeFile
    descriptor: int
    record: object
    is_shared: bool

    def confirm(self, tree: str) -> None:
        """Raise `LockLostError` if another host has had the lock since it was taken."""
        try:
            os.pwrite(self.descriptor, b"\n", 0)
            os.fsync(self.descriptor)
        except OSError as error:
            raise LockLostError(tree, error.strerror or str(error)) from error
        path = record_beside(self.file.path)
        attempts_left = _ATTEMPTS
        while (found := read_record(path)) is None and self.record is not None and attempts_left:
            attempts_left -= 1
            time.sleep(_PAUSE_SECONDS)
        if found != self.record:
            raise LockLostError(tree, "another process has signed as its holder")

    def end_record(self) -> None:
        """Leave a record that names no holder, before the lock is released. It differs from every other one."""
        path = record_beside(self.file.path)
        # A process on another host may have taken the lock that this one has lost.
        if not self.is_shared and read_record(path) == self.record:
            with contextlib.suppress(OSError, NotALockFileError), _folder_of(path) as opened:
                write_json(opened.at(os.path.basename(path)), {"last": self.record}, 0o644, opened.descriptor)


def signed(file: TreeFile, descriptor: int, *, shared: bool) -> HeldTreeFile:
    """
    Return a tree file that this process has locked. Unless it shares the lock, it records that it is the holder.

    Raises `PermissionError` if it may not: then a lost lock could not be noticed.
    """
    path = record_beside(file.path)
    if not shared and write_record(path) != read_record(path):
        raise PermissionError(errno.EACCES, "you may not write a record of the holder beside it", path)
    return HeldTreeFile(file, descriptor, read_record(path), shared)


@contextlib.contextmanager
def _folder_of(path: str, *, make: bool = False) -> Iterator[Folder]:
    """Yield the folder of a file in the tree; see `open_folder`. No link of another user is followed."""
    try:
        with open_folder(os.path.dirname(path), make=make, shared=True) as opened:
            yield opened
    except CacheFolderError as error:
        raise NotALockFileError(str(error)) from error


def network_file(request: LockRequest, canonical: str) -> TreeFile | None:
    """
    Return the lock file of a tree that other hosts may see; ``None`` for any other tree.

    Raises `LockUnavailableError` for a tree on a mount that does not exclude other hosts.
    """
    file = TreeFile(os.path.join(canonical, LOCK_FILE))
    mount = mount_of(os.stat(canonical).st_dev)
    if mount is not None and mount.is_network:
        if problem := mount.problem:
            raise LockUnavailableError(
                request.subject, file.path, problem, "build it on one host at a time with --lock never"
            )
        return file
    if mount is not None and mount.is_of_host:
        request.reporter.warn(
            f"{shown(request.path)} is on a file system of a virtual machine's host ({mount.kind}): builds outside of "
            "this machine may not be excluded"
        )
    return file if os.path.lexists(file.path) or is_exported(canonical) else None


def refuse(error: Exception, request: LockRequest, path: str) -> NoReturn:
    """Raise the error for a lock file in a tree that cannot be used."""
    remedy = "make the tree writable, build its sdist on this host, or use --lock never on one host at a time"
    if isinstance(error, NotALockFileError):
        problem, _, remedy = str(error).rpartition("; ")
    else:
        problem = (isinstance(error, OSError) and error.strerror) or str(error)
    raise LockUnavailableError(request.subject, path, problem, remedy) from error
