"""Locks between processes: what is locked, how, in which order, and what is forbidden.

What is locked. A source tree, around setuptools' hooks (`SourceTreeLock`): setuptools writes ``build/``,
``*.egg-info`` and temporary files into the tree, and two builds at once overwrite each other's files. A folder that a
build empties and fills (`DirectoryLock`): an ``--env-dir`` or ``--sdist-extract-dir``, a kept environment, a shared
build, an unpacked wheel, the target of `install_wheels`.

How. A lock has several targets (`targets`): the lock file that is named by the digest of the path, the inode of the
directory and, for a source tree, uv's lock file and perhaps a file in the tree. Each is a kernel lock on an open file
(`kernel`), exclusive or shared. Other modules wait for a target that is not free (`waiting`), keep the open files that
hook processes get (`inheriting`), and go on under an enclosing lock, held by an outer build (`nesting`) or by ``flock
DIR COMMAND`` (`enclosing`).

The order, for all processes: folders that the user named, by name; sdist; source tree; build environment; wheel store.
Within one lock: the lock file, the inode, uv's lock file. A process that holds a lock may wait for a later one, never
for an earlier one. It never waits for a target while it holds another target of the same lock. There is one exception:
an installer that fills a build environment may run a backend that runs lockbuild. That build is told which locks
enclose it and does not wait for them.

An open file carries the lock, and the hook processes get it. A lock is free once the frontend has released it *and*
no hook that ran under it is left. Nothing else counts: neither the existence of a file nor its contents. The record
beside a lock file (`holders`) is for people.

Forbidden: building without the lock because it is not free; removing a lock file that another process may have open;
writing into a lock file outside of the tree; freeing a lock while a hook may still run.

On a network file system, a lock on a directory is local to its host. There, the lock on a tree has one more target, a
file in the tree (`network`). docs/locking.md describes how far each target reaches.
"""

from typing import Protocol

from lockbuild.locks.cache_digest import cache_digest
from lockbuild.locks.directory import DirectoryLock
from lockbuild.locks.nesting import HeldLock
from lockbuild.locks.source_tree import SourceTreeLock
from lockbuild.locks.targets import LockRequest

__all__ = ["DirectoryLock", "InheritableLock", "LockRequest", "SourceTreeLock", "cache_digest"]


class InheritableLock(Protocol):
    """A lock whose open files hook processes get. It stays locked until the last of them has ended."""

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files that carry the lock."""

    @property
    def held(self) -> HeldLock | None:
        """The lock as the builds that a hook starts need to know it; ``None`` if they need not."""

    def leave_to_heirs(self) -> None:
        """Keep the lock beyond its release, until hooks that may still run have ended."""
