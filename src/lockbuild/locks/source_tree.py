"""The lock on a source tree: that on its directory, and uv's."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from lockbuild.errors import shown
from lockbuild.locks.around import is_held_by_ancestor
from lockbuild.locks.cache_digest import cache_digest
from lockbuild.locks.directory import DirectoryLock
from lockbuild.locks.kernel import Directory, LockFile, LocksUnsupportedError, NotALockFileError
from lockbuild.locks.mounts import network_file_system

if TYPE_CHECKING:
    from collections.abc import Iterator


class SourceTreeLock(DirectoryLock):
    """The lock on a source tree that is held around setuptools' hooks; ``uv build`` respects it too."""

    _kind = "setuptools"

    def _targets(self, canonical: str) -> list[LockFile | Directory]:
        return [*super()._targets(canonical), LockFile(uv_lock_file(cache_digest(canonical)))]

    def _take_neighbours(self, canonical: str) -> Iterator[float]:
        """Take uv's lock on the tree. One that cannot be had (another user's, say) is told of and left out."""
        lock_file = uv_lock_file(cache_digest(canonical))
        try:
            yield from self._take(LockFile(lock_file), lock_file, covered=is_held_by_ancestor)
        except (NotALockFileError, LocksUnsupportedError) as error:
            self._reporter.detail(f"Not sharing uv's lock {shown(lock_file)}: {error}")
        except OSError as error:
            self._reporter.detail(f"Not sharing uv's lock {shown(lock_file)}: {error.strerror}")
        if kind := network_file_system(os.stat(canonical).st_dev):
            self._reporter.warn(
                f"{shown(self.path)} is on a network file system ({kind}): builds on other hosts are not excluded; "
                "build it on one host at a time, or build its sdist, which each build unpacks into a folder of its own"
            )


def uv_lock_file(digest: str) -> str:
    """Return the path of uv's lock file for a tree."""
    # Rust's std::env::temp_dir() looks at TMPDIR alone; Python's tempfile would also look at TEMP and TMP.
    if sys.platform == "win32":
        import tempfile

        folder = tempfile.gettempdir()
    else:
        folder = os.environ.get("TMPDIR") or "/tmp"
    return os.path.join(folder, f"uv-setuptools-{digest}.lock")
