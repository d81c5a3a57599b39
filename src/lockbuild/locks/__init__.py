"""Locks between processes: what is locked, in which order, and what is forbidden.

What is locked. A source tree, around setuptools' hooks (`SourceTreeLock`), because setuptools writes ``build/``,
``*.egg-info`` and temporary files into the tree and cannot stand a second build there. A folder that the user named
for a build environment or for an unpacked sdist (`DirectoryLock`), because a build empties and fills it. And the folder
of a build that processes share, because one of them builds.

The order, for everybody: the folder of a shared build, the folder of an unpacked sdist, the folder of a build
environment, the source tree; and within each of them the lock file, the directory's inode, uv's lock file. Who holds
one may wait for a later one and never for an earlier one. The exception is a backend that an installer runs for a build
environment, and that runs lockbuild. It is told what is locked around it, and does not wait for that.

What holds a lock is an open file, and the hook processes inherit it: a lock is free when the frontend has released
it *and* no hook that ran under it is left. Nothing else counts: not that a file exists, not what stands in it.

Forbidden: to build without the lock because it is not free; to remove a lock file that others may have open; to
write into one; to free a lock while a hook may still run.

Who waits learns from `find_holder` for whom. Between machines that share a file system over a network there is no
lock: see docs/locking.md.
"""

from typing import Protocol

from lockbuild.locks.cache_digest import cache_digest
from lockbuild.locks.directory import DirectoryLock
from lockbuild.locks.holders import Holder
from lockbuild.locks.nesting import HeldLock
from lockbuild.locks.source_tree import SourceTreeLock

__all__ = ["DirectoryLock", "Holder", "InheritableLock", "SourceTreeLock", "cache_digest"]


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
