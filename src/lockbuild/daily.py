"""Once a day a build starts the removal of what no build has used for long."""

from __future__ import annotations

import contextlib
import os
import sys
import time

from lockbuild.errors import CacheFolderError
from lockbuild.files import new_file
from lockbuild.locks.kernel import LocksUnsupportedError, try_to_lock
from lockbuild.paths import environment_folder

# How often, in seconds.
_PRUNE_SECONDS = 86400.0


def prune_once_a_day(cache_dir: str | None) -> None:
    """
    Start `lockbuild.cache.prune` in a process of its own, unless one was started within the last day.

    It costs a build the start of a process once a day, and the build does not wait for it.
    """
    try:
        # Each user looks after what is his: the stamp is where no other user can put anything.
        store = environment_folder(cache_dir)
    except CacheFolderError:
        return
    stamp = os.path.join(store, "pruned")
    try:
        if _is_recent(os.stat(stamp, follow_symlinks=False)) or not _touch_first(stamp):
            return
    except FileNotFoundError:
        # A new cache. There is nothing to remove yet.
        with contextlib.suppress(OSError):
            os.close(new_file(stamp, 0o600))
        return
    except OSError:
        return
    import subprocess

    with contextlib.suppress(OSError):
        subprocess.Popen(
            # With -P: the working directory is a project, and its modules are not ours.
            [sys.executable, "-P", "-m", "lockbuild.cache", "--cache-dir", os.path.dirname(store), "prune"],
            cwd=store,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _is_recent(stamp: os.stat_result) -> bool:
    """Tell whether a stamp is of the last day. One of a clock that was ahead is not."""
    return 0 <= time.time() - stamp.st_mtime < _PRUNE_SECONDS


def _touch_first(stamp: str) -> bool:
    """Touch the stamp, unless one of the builds that have found it too old with us was first."""
    descriptor = os.open(stamp, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0))
    try:
        if not try_to_lock(descriptor) or _is_recent(os.fstat(descriptor)):
            return False
        os.utime(descriptor if os.utime in os.supports_fd else stamp)
        return True
    except LocksUnsupportedError:
        return False
    finally:
        os.close(descriptor)
