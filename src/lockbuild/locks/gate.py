"""The gate before a shared lock: builds with private views let a build that waits for the exclusive lock have its turn.

The kernel grants a shared lock at once while others hold one. Without a gate, a stream of builds with private views
would keep a build in the tree itself waiting forever. So a build that waits for the exclusive lock announces it. A
build that wants to share the lock looks once, before it takes its first target, and waits while another is announced.
It holds no target meanwhile, so the announced build does not wait for it.

The announcement is a kernel lock too, and ends with its process: a byte-range lock (OFD, fcntl(2)) for reading on the
directory. It excludes no flock, needs no file, and reaches every process on this kernel that sees the inode. A process
sees it by asking whether a lock for writing would be granted. Programs that wait in flock(2), such as ``flock`` and
``uv build``, are listed in ``/proc/locks``.

Two builds are not kept waiting. One runs under a lock of an ancestor, as in ``flock DIR lockbuild``: the announced
build waits for that ancestor. The other finds that the lock stays free: the announced process was stopped.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import time
from typing import TYPE_CHECKING, Self

from lockbuild.locks.enclosing import enclosing_lock
from lockbuild.locks.holders import flocks, identity_of
from lockbuild.locks.kernel import Directory, NotALockFileError

if sys.platform == "linux":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lockbuild.locks.kernel import LockFile

# How long the lock may be free, in seconds, before an announced process counts as stopped. One that runs tries to lock
# it a hundred times a second.
_FREE_SECONDS = 1.0


@contextlib.contextmanager
def announced(directory: str) -> Iterator[None]:
    """Announce in this context that this process waits for the exclusive lock on a directory."""
    with contextlib.ExitStack() as stack:
        # Without the announcement the wait is not fair. The acquisition reports what is wrong with the directory.
        with contextlib.suppress(OSError):
            descriptor = Directory(directory).open()
            stack.callback(os.close, descriptor)
            if sys.platform == "linux":
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_RDLCK))
        yield


class Gate:
    """The gate of a lock: of its targets, those files that can be opened. A context manager that closes them."""

    def __init__(self, targets: Iterable[LockFile | Directory]) -> None:
        self._stack = contextlib.ExitStack()
        self._opened: list[int] = []
        self._free_since: float | None = None
        for target in targets:
            # The acquisition reports what cannot be opened.
            with contextlib.suppress(OSError, NotALockFileError):
                descriptor = target.open()
                self._stack.callback(os.close, descriptor)
                self._opened.append(descriptor)

    def __enter__(self) -> Self:
        """Enter it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._stack.close()

    @property
    def descriptor(self) -> int:
        """One of the files, for messages."""
        return self._opened[-1]

    def is_open(self) -> bool:
        """Return whether a build may begin to share the lock."""
        identities = {identity_of(os.fstat(descriptor)) for descriptor in self._opened}
        known = [each for each in flocks() if each.identity in identities]
        if not any(each.waits and each.mode == "WRITE" for each in known) and not any(map(_is_announced, self._opened)):
            return True
        if all(each.waits for each in known):
            self._free_since = self._free_since or time.monotonic()
            return time.monotonic() - self._free_since >= _FREE_SECONDS
        self._free_since = None
        return any(map(enclosing_lock, self._opened))


def _is_announced(descriptor: int) -> bool:
    if sys.platform != "linux":
        return False
    # Only directories carry announcements, but no other program has a reason to lock a part of an empty lock file.
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_WRLCK))
    return answer[:2] != struct.pack("h", fcntl.F_UNLCK)


def _whole_file(kind: int) -> bytes:
    """Pack a ``struct flock`` (fcntl(2)): type, whence, start, length, process ID. All zeros mean the whole file."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
