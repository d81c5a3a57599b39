"""The lock on a source tree: the lock on its directory, and uv's."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Self

from lockbuild.errors import shown
from lockbuild.events import Reporter
from lockbuild.locks.cache_digest import cache_digest
from lockbuild.locks.directory import DirectoryLock
from lockbuild.locks.kernel import LockFile
from lockbuild.locks.mounts import network_file_system
from lockbuild.locks.nesting import held_by_ancestor
from lockbuild.locks.targets import Target, directory_targets
from lockbuild.paths import temporary_folder

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from lockbuild.locks.nesting import HeldLock
    from lockbuild.locks.targets import CacheDir


class SourceTreeLock:
    """
    The lock on a source tree that builds hold around setuptools' hooks. ``uv build`` waits for it as well.

    A context manager, plain and asynchronous. ``timeout`` is in seconds; ``None`` waits forever. Entering raises
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
    ) -> None:
        self.path = os.fspath(path)
        self._reporter = reporter or Reporter()
        self._lock = DirectoryLock(
            path, cache_dir=cache_dir, timeout=timeout, reporter=reporter, targets=_targets_of_tree
        )

    def __enter__(self) -> Self:
        """Wait for the lock and take it."""
        self._warn_of_other_hosts()
        self._lock.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """Release the lock."""
        self._lock.__exit__()

    async def __aenter__(self) -> Self:
        """Wait for the lock and take it. The event loop runs on meanwhile."""
        import asyncio

        self._warn_of_other_hosts()
        with self._lock.acquiring() as delays:
            for delay in delays:
                await asyncio.sleep(delay)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Release the lock."""
        self._lock.__exit__()

    @property
    def descriptors(self) -> tuple[int, ...]:
        """The open files that carry the lock. A process that inherits them keeps the lock when this one is killed."""
        return self._lock.descriptors

    @property
    def held(self) -> HeldLock | None:
        """While the lock is held: what the builds that a hook starts need to know about it."""
        return self._lock.held

    @property
    def epoch(self) -> int:
        """A number that changes whenever `descriptors` will differ from those that `open` has opened."""
        return self._lock.epoch

    def lent(self) -> AbstractContextManager[dict[str, str]]:
        """
        Let builds that are started in this context go on under the lock, instead of waiting for it forever.

        Yields the environment variable that they have to be started with. At its end, the context waits for those that
        still run. The lock must be held.
        """
        return self._lock.lent()

    def open(self) -> None:
        """Open the targets without locking them; see `DirectoryLock.open`."""
        self._lock.open()

    def close(self) -> None:
        """Close the targets that are open but not locked. Calling it again does nothing."""
        self._lock.close()

    def leave_to_heirs(self) -> None:
        """Keep the lock beyond its release; see `DirectoryLock.leave_to_heirs`."""
        self._lock.leave_to_heirs()

    def _warn_of_other_hosts(self) -> None:
        try:
            tree = os.stat(self.path)
        except OSError:
            # The lock will report that there is no tree.
            return
        kind = network_file_system(tree.st_dev)
        # For a nested build, the outer build has warned.
        if kind and held_by_ancestor(tree) is None:
            self._reporter.warn(
                f"{shown(self.path)} is on a network file system ({kind}): builds on other hosts are not excluded; "
                "build it on one host at a time, or build its sdist, which each build unpacks into a folder of its own"
            )


def _targets_of_tree(subject: str, canonical: str, cache_dir: CacheDir, reporter: Reporter) -> list[Target]:
    path = uv_lock_file(cache_digest(canonical))

    def go_without(error: Exception, _: str) -> None:
        # For example, the file belongs to another user.
        problem = error.strerror if isinstance(error, OSError) else error
        reporter.detail(f"Not sharing uv's lock {shown(path)}: {problem}")

    uv = Target(LockFile(path), go_without)
    return [*directory_targets(subject, canonical, cache_dir, reporter, "setuptools"), uv]


def uv_lock_file(digest: str) -> str:
    """Return the path of uv's lock file for a tree with this digest."""
    # Rust's std::env::temp_dir() reads only TMPDIR; Python's tempfile would read TEMP and TMP as well.
    if sys.platform == "win32":
        folder = temporary_folder()
    else:
        folder = os.environ.get("TMPDIR") or "/tmp"
    return os.path.join(folder, f"uv-setuptools-{digest}.lock")
