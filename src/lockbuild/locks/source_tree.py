"""The lock on a source tree: the lock on its directory, and uv's."""

from __future__ import annotations

import os
import sys

from lockbuild.errors import shown
from lockbuild.events import Reporter
from lockbuild.locks.cache_digest import cache_digest
from lockbuild.locks.directory import DirectoryLock
from lockbuild.locks.kernel import LockFile
from lockbuild.locks.network import network_file, refuse
from lockbuild.locks.targets import LockRequest, Target, directory_targets
from lockbuild.paths import temporary_folder


class SourceTreeLock(DirectoryLock):
    """
    The lock on a source tree that builds hold around setuptools' hooks. ``uv build`` waits for it as well.

    A context manager, plain and asynchronous. ``timeout`` is in seconds; ``None`` waits forever. With ``shared``, any
    number of processes may hold it that only read the tree (on Windows, one). Entering raises
    `LockTimeoutError`, `LockUnavailableError` or `CacheFolderError`. It raises `OSError` when there is no directory,
    and `SourceTreeMovedError` when the path leads to another one after a wait.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        cache_dir: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        reporter: Reporter | None = None,
        shared: bool = False,
    ) -> None:
        path = os.fspath(path)
        request = LockRequest(path, path, cache_dir, timeout, reporter or Reporter(), shared=shared)
        super().__init__(request, _targets_of_tree)


def _targets_of_tree(request: LockRequest, canonical: str) -> list[Target]:
    digest = cache_digest(canonical)
    path = uv_lock_file(digest)

    def go_without(error: Exception, _: str) -> None:
        # For example, the file belongs to another user.
        problem = error.strerror if isinstance(error, OSError) else error
        request.reporter.detail(f"Not sharing uv's lock {shown(path)}: {problem}")

    targets = [*directory_targets(request, canonical, f"setuptools-{digest}.lock"), Target(LockFile(path), go_without)]
    file = network_file(request, canonical)
    if file is not None:
        targets.append(Target(file, lambda error, _: refuse(error, request, file.path), may_be_enclosed=False))
    return targets


def uv_lock_file(digest: str) -> str:
    """Return the path of uv's lock file for a tree with this digest."""
    # Rust's std::env::temp_dir() reads only TMPDIR; Python's tempfile would read TEMP and TMP as well.
    if sys.platform == "win32":
        folder = temporary_folder()
    else:
        folder = os.environ.get("TMPDIR") or "/tmp"
    return os.path.join(folder, f"uv-setuptools-{digest}.lock")
