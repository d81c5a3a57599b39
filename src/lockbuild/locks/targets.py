"""What a lock consists of: its targets, things that the kernel locks for us, which are taken in their order.

1. The lock file that the path's digest names, in the lock folder: it works on every platform and file system.
2. The directory itself: its inode is the same for other users, cache folders, mounts and spellings of the path.
3. For a source tree, the lock file by which ``uv build`` excludes itself (`lockbuild.locks.source_tree`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from lockbuild.errors import LockUnavailableError, SourceTreeMovedError, shown
from lockbuild.locks.cache_digest import cache_digest
from lockbuild.locks.kernel import Directory, LockFile, LocksUnsupportedError
from lockbuild.paths import fallback_lock_folder, lock_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lockbuild.events import Reporter

    CacheDir = str | os.PathLike[str] | None

    ChooseTargets = Callable[[str, str, CacheDir, Reporter], Sequence["Target"]]
    """How the targets of a lock are chosen; as `directory_targets`, whose last argument only its users give."""


class Target(NamedTuple):
    """One of the things that a lock takes."""

    file: LockFile | Directory
    instead: Callable[[Exception, str], Target | None]
    """Called with the error when it cannot be had, and with the lock file that has been taken before. Returns what is
    taken in its place, or ``None`` when the lock goes without it and that was said; raises when it does not."""
    may_be_enclosed: bool = True
    """Whether a lock that a process around this one holds on it is as good as ours."""


def directory_targets(
    subject: str, canonical: str, cache_dir: CacheDir, reporter: Reporter, kind: str = "directory"
) -> list[Target]:
    """
    Choose the targets of the lock on a directory, the lock file first, whose name begins with ``kind``.

    ``subject`` is what messages call it, ``canonical`` its path without links. Raises `CacheFolderError`.
    """
    lock_file = _lock_file(subject, f"{kind}-{cache_digest(canonical)}.lock", cache_dir, reporter)
    # Windows opens no directories, and has neither bind mounts nor a way to remove an open lock file.
    return [lock_file] if os.name == "nt" else [lock_file, _inode(subject, canonical, reporter)]


def _lock_file(subject: str, name: str, cache_dir: CacheDir, reporter: Reporter) -> Target:
    folder = lock_folder(cache_dir, reporter)

    def instead(error: Exception, lock_file: str) -> Target:
        if isinstance(error, FileNotFoundError):
            # A cleaner has removed the folder since, with our lock file in it, perhaps while we waited.
            return _lock_file(subject, name, cache_dir, reporter)
        if not isinstance(error, LocksUnsupportedError):
            refuse(error, lock_file)
        private = fallback_lock_folder(f"files in {shown(folder)} cannot be locked: {error}", reporter)
        return Target(LockFile(os.path.join(private, name)), refuse, may_be_enclosed=False)

    def refuse(error: Exception, lock_file: str) -> NoReturn:
        raise LockUnavailableError(subject, lock_file, _words(error)) from error

    return Target(LockFile(os.path.join(folder, name)), instead, may_be_enclosed=False)


def _inode(subject: str, canonical: str, reporter: Reporter) -> Target:
    def instead(error: Exception, lock_file: str) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise SourceTreeMovedError(subject) from None
        if not isinstance(error, LocksUnsupportedError | PermissionError):
            raise LockUnavailableError(subject, canonical, _words(error)) from error
        problem = str(error) if isinstance(error, LocksUnsupportedError) else "you may not read it"
        reporter.warn(
            f"{shown(subject)} cannot be locked itself, {problem}: only builds that use the lock file "
            f"{shown(lock_file)} wait for each other, not those of other users or cache folders"
        )

    return Target(Directory(canonical), instead)


def _words(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
