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

What the gate does not reach: builds on other hosts, and a tree whose directory cannot be opened. On btrfs, where
``/proc/locks`` names a file by another device, it does not see programs that wait in flock(2), only builds.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from typing import TYPE_CHECKING, Self

from lockbuild.events import Holder
from lockbuild.locks.enclosing import enclosing_lock
from lockbuild.locks.holders import by_descriptors, flocks, identity_of
from lockbuild.locks.kernel import Directory, NotALockFileError, is_free, whole_file
from lockbuild.processes import command_line

if sys.platform == "linux":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lockbuild.locks.kernel import Lockable

# How often a build finds the lock free before the announced process counts as stopped. Both look a hundred times a
# second, and one that runs takes the lock when it finds it free.
_TIMES_FREE = 100


def announce(directory: str) -> Callable[[], None]:
    """Announce that this process waits for the exclusive lock on a directory; return what ends the announcement."""
    with contextlib.ExitStack() as stack:
        # Without the announcement the wait is not fair. The acquisition reports what is wrong with the directory.
        with contextlib.suppress(OSError):
            descriptor = Directory(directory).open()
            stack.callback(os.close, descriptor)
            if sys.platform == "linux":
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, whole_file(fcntl.F_RDLCK))
                # Closing is not enough: a process that another thread forks meanwhile would announce it further.
                stack.callback(fcntl.fcntl, descriptor, fcntl.F_OFD_SETLK, whole_file(fcntl.F_UNLCK))
        return stack.pop_all().close


class Gate:
    """The gate of a lock: of its targets, those files that can be opened. A context manager that closes them."""

    def __init__(self, targets: Iterable[Lockable]) -> None:
        self._stack = contextlib.ExitStack()
        self._files: list[int] = []
        self._directories: list[int] = []
        self._is_enclosed: bool | None = None
        self._times_free = 0
        for target in targets:
            # The acquisition reports what cannot be opened.
            with contextlib.suppress(OSError, NotALockFileError):
                descriptor = target.open()
                self._stack.callback(os.close, descriptor)
                self._files.append(descriptor)
                if isinstance(target, Directory):
                    self._directories.append(descriptor)

    def __enter__(self) -> Self:
        """Enter it."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self._stack.close()

    def is_open(self) -> bool:
        """Return whether a build may begin to share the lock."""
        if not any(map(_is_announced, self._directories)) and not self._blocked():
            return True
        if self._is_enclosed is None:
            self._is_enclosed = any(map(enclosing_lock, self._files))
        # Of two builds that look at once, one may find that the lock is not free. So the times are not consecutive.
        self._times_free += all(map(is_free, self._files))
        return self._is_enclosed or self._times_free >= _TIMES_FREE

    @property
    def descriptor(self) -> int:
        """The file whose lock the process that goes first waits for; as a rule, the directory."""
        return (self._directories or self._files)[-1]

    def first(self) -> Holder | None:
        """Return the process that goes first, or ``None`` if it cannot be seen."""
        announcing = (each.pid for file in self._directories for each in by_descriptors(os.fstat(file), "OFDLCK"))
        pid = next(announcing, None) or next(iter(self._blocked()), None)
        return Holder(pid, command_line(pid), None) if pid else None

    def _blocked(self) -> list[int]:
        """Return the processes that the kernel lets wait for the exclusive lock on one of the files."""
        identities = {identity_of(os.fstat(descriptor)) for descriptor in self._files}
        return [each.pid for each in flocks() if each.waits and each.mode == "WRITE" and each.identity in identities]


def _is_announced(directory: int) -> bool:
    if sys.platform != "linux":
        return False
    try:
        answer = fcntl.fcntl(directory, fcntl.F_OFD_GETLK, whole_file(fcntl.F_WRLCK))
    except OSError:
        # A file system or a kernel without such locks, where none can be announced either.
        return False
    return answer[:2] != struct.pack("h", fcntl.F_UNLCK)
