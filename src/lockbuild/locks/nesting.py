"""Nested builds: a build that runs inside another build's hook goes on under the lock that its ancestor holds.

A setup.py may run ``lockbuild`` on its own tree. That build would wait for its ancestor, which waits for it. So the
environment of every hook names the enclosing locks, in `VARIABLE`. A variable alone proves nothing: daemons and files
keep it. It counts only in a process whose ancestor is the very process that it names.

Nested builds that one hook starts side by side exclude each other by a lock file of their own. That file also says
whether the ancestor still lends its lock. It is made before the ancestor's hooks run. When they have ended, their host
locks the file, removes it, and only then frees the ancestor's lock. When the host was killed, the ancestor does. So a
nested build that continues in the background, or after its ancestor was killed, excludes all other builds while it
runs. A nested build that starts too late finds no file and waits like any other.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from lockbuild.locks.holders import record_beside, recorded_pid, remove_record
from lockbuild.locks.kernel import LockFile, LocksUnsupportedError, NotALockFileError, try_to_lock, unlock
from lockbuild.processes import ProcessIdentity, ancestors, can_tell_ancestors, is_running

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

VARIABLE = "LOCKBUILD_HELD_LOCKS"

# What a hook host tells its hooks of the private view in which they run: ``views/overlay.py``.
VIEWS_VARIABLE = "LOCKBUILD_VIEWS"

_ENDING = ".nested"

# How often to make the folder for lock files when another process removes it at once, as a cleaner may do that runs
# without a break.
_ATTEMPTS = 1000

# How often to look whether a nested build has ended, in seconds.
_POLL_SECONDS = 0.01


class HeldLock(NamedTuple):
    """A lock on a directory, as its holder describes it to its descendants."""

    device: int
    inode: int
    holder: ProcessIdentity
    lock_file: str
    number: int
    """One of the locks that its holder has now; threads may share the lock on one directory."""
    is_shared: bool
    """Whether others hold it as well."""

    @property
    def nested_lock_file(self) -> str:
        """The lock file by which builds that are nested directly in this one exclude each other."""
        return f"{self.lock_file}.{self.holder.pid}-{self.number}{_ENDING}"


def environment_for_hooks(held: Sequence[HeldLock]) -> dict[str, str]:
    """Return the environment variable that tells a hook's descendants of these locks and those that enclose us."""
    entries = [*_entries(), *held]
    return {VARIABLE: json.dumps([[*e[:2], *e.holder, *e[3:]] for e in entries])}


def lend_to_nested_builds(held: Sequence[HeldLock]) -> list[str]:
    """Make the lock files for builds nested in hooks under these locks; return their paths."""
    for lock in held:
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                os.close(LockFile(lock.nested_lock_file).open(make_folder=True))
                break
            except FileNotFoundError:
                # Another process has removed the folder after we had opened it.
                if not attempts_left:
                    raise
    return [lock.nested_lock_file for lock in held]


@contextlib.contextmanager
def lent(held: HeldLock) -> Iterator[dict[str, str]]:
    """
    Let builds that this process starts in this context go on under its lock, without a hook host.

    Yields the environment variable that tells them of the lock. At its end, waits for those that still run.
    """
    [path] = lend_to_nested_builds([held])
    try:
        yield environment_for_hooks([held])
    finally:
        take_back(path)


def take_back(path: str) -> None:
    """Wait until no nested build runs, and let no other one begin."""
    while not try_to_take_back(path):
        time.sleep(_POLL_SECONDS)


def try_to_take_back(path: str) -> bool:
    """Unless a nested build runs, let no other one begin; return whether none runs."""
    # Without the file, no nested build can have begun.
    with contextlib.suppress(FileNotFoundError):
        descriptor = LockFile(path, create=False).open()
        try:
            if not try_to_lock(descriptor):
                return False
            # A nested build that has opened the file and locks it later finds that it is not current.
            with contextlib.suppress(OSError):
                os.unlink(path)
        finally:
            os.close(descriptor)
        if os.name == "nt":
            # There an open file cannot be removed: neither while we have it open, nor while a nested build has.
            with contextlib.suppress(OSError):
                os.unlink(path)
    return True


def remove_left_behind(folder: str) -> None:
    """
    Remove what killed processes have left in a folder of lock files: records, and lock files for nested builds.

    A process that lends a lock, or has a record beside it, holds it. So both belong to no process where it is free.
    """
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        lock_file, _, holder = path.removesuffix(_ENDING).rpartition(".")
        remove: Callable[[str], object] = try_to_take_back
        if record_beside(lock_file) == path:
            remove = remove_record
        elif not path.endswith(_ENDING) or not holder.replace("-", "").isdigit():
            continue
        with contextlib.suppress(OSError, NotALockFileError, LocksUnsupportedError), _if_free(lock_file) as is_free:
            if is_free:
                remove(path)


@contextlib.contextmanager
def _if_free(lock_file: str) -> Iterator[bool]:
    """Hold a lock file; tell whether that was possible."""
    try:
        descriptor = LockFile(lock_file, create=False).open()
    except FileNotFoundError:
        # One for nested builds is removed when the hooks have ended. No other lock file is ever removed by lockbuild.
        yield lock_file.endswith(_ENDING)
        return
    if not try_to_lock(descriptor):
        os.close(descriptor)
        yield False
        return
    try:
        yield True
    finally:
        unlock(descriptor)


def held_by_ancestor(directory: os.stat_result) -> HeldLock | None:
    """Return the innermost lock on ``directory`` that an ancestor of this process lends to it."""
    identity = real_identity(directory)
    mine = [e for e in _entries() if (e.device, e.inode) == identity]
    if not mine:
        return None
    lineage = list(ancestors())
    for held in reversed(mine):
        if can_tell_ancestors():
            if held.holder.pid in lineage and is_running(held.holder):
                return held
        # Windows shows no ancestors. There the record counts, which its holder removes with the lock.
        elif recorded_pid(record_beside(held.lock_file)) == held.holder.pid:
            return held
    return None


def real_identity(directory: os.stat_result) -> tuple[int, int]:
    """Return the device and inode of a directory; of a tree that this process has a private view of, the real ones."""
    with contextlib.suppress(ValueError, TypeError, RecursionError):
        for *seen, device, inode in json.loads(os.environ.get(VIEWS_VARIABLE, "[]")):
            if seen == [directory.st_dev, directory.st_ino]:
                return device, inode
    return directory.st_dev, directory.st_ino


def is_seen_in_view(directory: os.stat_result) -> bool:
    """Return whether this process has a private view of a tree."""
    return real_identity(directory) != (directory.st_dev, directory.st_ino)


def _entries() -> list[HeldLock]:
    """Read the variable. A value in any other form was not written by lockbuild and counts for nothing."""
    try:
        return [
            HeldLock(
                int(device), int(inode), ProcessIdentity(int(pid), started), str(lock_file), int(number), bool(shared)
            )
            for device, inode, pid, started, lock_file, number, shared in json.loads(os.environ.get(VARIABLE, "[]"))
        ]
    except (ValueError, TypeError, OverflowError, RecursionError):
        return []
