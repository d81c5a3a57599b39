"""The request for a lock, and its targets: files and directories that the kernel locks, in the order of taking them.

1. The lock file named by the digest of the path, in the lock folder. It works on every platform and file system.
2. The directory itself. Its inode is the same for other users, cache folders, mounts and spellings of the path.
3. For a source tree, the lock file that ``uv build`` locks (`lockbuild.locks.source_tree`).
4. For a source tree that several hosts see, a file in the tree (`lockbuild.locks.network`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from lockbuild.errors import LockUnavailableError, SourceTreeMovedError, shown
from lockbuild.events import Reporter
from lockbuild.files import FULL
from lockbuild.locks.cache_digest import cache_digest
from lockbuild.locks.kernel import Directory, LockFile, LocksUnsupportedError
from lockbuild.paths import fallback_lock_folder, lock_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lockbuild.locks.kernel import Lockable

    ChooseTargets = Callable[["LockRequest", str], Sequence["Target"]]
    """Chooses the targets of a lock, given the first two arguments of `directory_targets`."""


class LockRequest(NamedTuple):
    """Which directory to lock, how long to wait for it, and words for messages."""

    path: str
    subject: str
    """What the lock protects, in messages."""
    cache_dir: str | os.PathLike[str] | None = None
    timeout: float | None = None
    """In seconds; ``None`` waits forever."""
    reporter: Reporter = Reporter()
    create: bool = False
    """Whether a missing directory is made, even when its last holder has removed it."""
    activity: str | None = None
    """What the holder of the lock is doing, in messages."""
    shared: bool = False
    """Whether others may share the lock, as builds with private views do. They wait for one that excludes them."""


class Target(NamedTuple):
    """A file or directory that a lock takes."""

    file: Lockable
    instead: Callable[[Exception, str], Target | None]
    """Called when the target cannot be locked, with the error and the lock file that was taken before. Returns the
    target to take instead, or ``None`` when the lock does without. Raises when the lock needs this target."""
    may_be_enclosed: bool = True
    """Whether an enclosing lock on the target can replace ours."""


def directory_targets(request: LockRequest, canonical: str, name: str | None = None) -> list[Target]:
    """
    Choose the targets of the lock on a directory, whose path without symbolic links is ``canonical``.

    ``name`` is that of the lock file; by default it is named by the path. Raises `CacheFolderError`.
    """
    folder = lock_folder(request.cache_dir, request.reporter)
    lock_file = _lock_file(request, folder, name or f"directory-{cache_digest(_named(canonical, folder))}.lock")
    # Windows cannot open directories. It has no bind mounts, and no way to remove an open lock file.
    return [lock_file] if os.name == "nt" else [lock_file, _inode(request, canonical)]


def _named(canonical: str, folder: str) -> str:
    """Return the path that names a lock file in ``folder``: from there, if hosts may have mounted both elsewhere."""
    cache = os.path.dirname(os.path.realpath(folder))
    return os.path.relpath(canonical, cache) if canonical.startswith(cache + os.sep) else canonical


def _lock_file(request: LockRequest, folder: str, name: str) -> Target:
    def instead(error: Exception, lock_file: str) -> Target:
        if isinstance(error, FileNotFoundError):
            # Another process has removed the folder with our lock file, perhaps while we waited.
            return _lock_file(request, lock_folder(request.cache_dir, request.reporter), name)
        # On a full disk no process can make the file either.
        if not isinstance(error, LocksUnsupportedError) and not (isinstance(error, OSError) and error.errno in FULL):
            refuse(error, lock_file)
        private = fallback_lock_folder(f"cannot lock files in {shown(folder)}: {_words(error)}", request.reporter)
        return Target(LockFile(os.path.join(private, name)), refuse, may_be_enclosed=False)

    def refuse(error: Exception, lock_file: str) -> NoReturn:
        raise LockUnavailableError(request.subject, lock_file, _words(error)) from error

    return Target(LockFile(os.path.join(folder, name)), instead, may_be_enclosed=False)


def _inode(request: LockRequest, canonical: str) -> Target:
    def instead(error: Exception, lock_file: str) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise SourceTreeMovedError(request.subject) from None
        if not isinstance(error, LocksUnsupportedError | PermissionError):
            raise LockUnavailableError(request.subject, canonical, _words(error)) from error
        problem = str(error) if isinstance(error, LocksUnsupportedError) else "you may not read it"
        request.reporter.warn(
            f"Cannot lock the folder {shown(request.subject)}: {problem}; only builds that use the lock file "
            f"{shown(lock_file)} wait for each other; builds by other users or with other cache folders do not"
        )

    return Target(Directory(canonical), instead)


def _words(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
