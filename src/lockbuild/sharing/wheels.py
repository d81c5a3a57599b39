"""The artifacts that shared builds keep, as ``lockbuild-cache`` looks after them."""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

from lockbuild.errors import LockTimeoutError
from lockbuild.locks import DirectoryLock
from lockbuild.paths import builds_folder, key_folders
from lockbuild.sharing.outcomes import artifacts_folder, complete_builds, last_used, remove_unused


class KeptWheel(NamedTuple):
    """An artifact that is kept, as a person sees it. Except after ``--coalesce`` it is the wheel of an sdist."""

    path: str
    size: int
    """In bytes."""
    made: float
    """Seconds since the epoch."""
    last_used: float
    """Seconds since the epoch."""


def list_wheels(cache_dir: str | None = None) -> list[KeptWheel]:
    """Return the artifacts that are kept, the one last used first."""
    found = []
    for folder in key_folders(cache_dir, builds_folder):
        for build, outcome in complete_builds(folder):
            # Without the key's lock, another process may replace it at this moment. Then it is not listed.
            with contextlib.suppress(FileNotFoundError):
                path = os.path.join(artifacts_folder(build), outcome.artifact)
                found.append(KeptWheel(path, os.path.getsize(path), outcome.made, last_used(build)))
    return sorted(found, key=lambda wheel: -wheel.last_used)


def prune_wheels(older_than: float, cache_dir: str | None = None) -> int:
    """
    Remove what was last used more than ``older_than`` seconds ago, or what no later build may take.

    Returns how many there were. A key under which a process builds at this moment is left alone.
    """
    removed = 0
    for folder in key_folders(cache_dir, builds_folder):
        with contextlib.suppress(LockTimeoutError), DirectoryLock(folder, cache_dir=cache_dir, timeout=0, create=True):
            removed += remove_unused(folder, time.time() - older_than)
    return removed
