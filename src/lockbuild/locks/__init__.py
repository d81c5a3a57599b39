"""Locks between processes: what is locked, the kinds, the order, and what is forbidden.

What is locked. A source tree, around setuptools' hooks (`SourceTreeLock`), because setuptools writes ``build/``,
``*.egg-info`` and temporary files into the tree and cannot stand a second build there. A folder that a build empties
and fills (`DirectoryLock`): one that the user named for a build environment or an unpacked sdist, a kept environment,
the folder of a build that processes share.

The kinds. A lock has targets, each an exclusive lock of the kernel on an open file, taken and freed by ``filelock``:
the lock file that the path's digest names, the directory's inode, and uv's lock file (`lockbuild.locks.targets`).
Beside that stand waiting for one that is not free (`waiting`), the open files that hook processes inherit
(`inheriting`), and going on under the lock of a process around this one, which is another build (`nesting`) or
``flock DIR COMMAND`` (`enclosing`).

The order, for all processes: folders that the user named, by name; sdist; source tree; build environment; wheel store.
Within each of them the lock file, the inode, uv's lock file. A process that holds one may wait for a later one and
never for an earlier one, and it waits for no target while it holds another of the same lock. The exception is
a backend that an installer runs for a build environment, and that runs lockbuild: it is told what is locked around it,
and does not wait for that.

What holds a lock is an open file, and the hook processes inherit it: a lock is free when the frontend has released
it *and* no hook that ran under it is left. Nothing else counts: not that a file exists, not what stands in it. What a
record beside a lock file says (`holders`) is for people.

Forbidden: to build without the lock because it is not free; to remove a lock file that others may have open; to
write into one; to free a lock while a hook may still run.

Builds on other hosts are not excluded: on a network file system the lock on a directory ends at this host. The lock on
a tree says so (`mounts`), and docs/locking.md tells how far each target reaches.
"""

from typing import Protocol

from lockbuild.locks.cache_digest import cache_digest
from lockbuild.locks.directory import DirectoryLock
from lockbuild.locks.nesting import HeldLock
from lockbuild.locks.source_tree import SourceTreeLock

__all__ = ["DirectoryLock", "InheritableLock", "SourceTreeLock", "cache_digest"]


class InheritableLock(Protocol):
    """A lock that hook processes inherit, so that it stays taken until the last of them has ended."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files that carry the lock."""

    @property
    def epoch(self) -> int:
        """Changes when the open files are others than those that were open when a process was started with them."""

    @property
    def held(self) -> HeldLock | None:
        """What a hook's descendants need to know of it, if anything."""

    def leave_to_heirs(self) -> None:
        """Have it outlive its release, for hooks that may still run."""
