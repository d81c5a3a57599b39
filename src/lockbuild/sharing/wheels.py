"""The wheels that are kept for ``--reuse``, as ``lockbuild-cache`` looks after them."""

from __future__ import annotations

import contextlib
import os
import time
from typing import NamedTuple

from lockbuild.errors import LockTimeoutError
from lockbuild.locks import DirectoryLock
from lockbuild.paths import builds_folder, key_folders
from lockbuild.sharing.tickets import ARTIFACTS, kept_outcome, last_used, read_outcome, remove_if_empty, remove_kept


class KeptWheel(NamedTuple):
    """A wheel that was built from an sdist and is kept for ``--reuse``, as a person sees it."""

    path: str
    size: int
    """In bytes."""
    made: float
    """Seconds since the epoch."""
    last_used: float
    """Seconds since the epoch."""


def list_wheels(cache_dir: str | None = None) -> list[KeptWheel]:
    """Return the wheels that are kept, the one last used first."""
    found = []
    for folder in key_folders(cache_dir, builds_folder):
        # Only under the key's lock it stays where it is. One that is replaced at this moment is not listed.
        with contextlib.suppress(FileNotFoundError):
            if (kept := kept_outcome(folder)) and (outcome := read_outcome(kept)) and outcome.artifact:
                path = os.path.join(kept, ARTIFACTS, outcome.artifact)
                found.append(KeptWheel(path, os.path.getsize(path), outcome.made, last_used(kept)))
    return sorted(found, key=lambda wheel: -wheel.last_used)


def prune_wheels(older_than: float, cache_dir: str | None = None) -> int:
    """
    Remove the kept wheels that were last used more than ``older_than`` seconds ago, or that no build may take any more.

    Returns how many there were. What a build is about to deliver is left alone.
    """
    removed = 0
    for folder in key_folders(cache_dir, builds_folder):
        with contextlib.suppress(LockTimeoutError), DirectoryLock(folder, cache_dir=cache_dir, timeout=0, create=True):
            removed += remove_kept(folder, time.time() - older_than)
            remove_if_empty(folder)
    return removed
