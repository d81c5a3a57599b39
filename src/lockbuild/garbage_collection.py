"""Garbage collection: lists the cache, and removes entries that no build has used for a long time.

An entry that a build uses stays. An environment is removed under the lock of its key, and only while no process has a
file of its users locked. An unpacked wheel may be removed while it is installed; its installer unpacks it again, and
environments keep their files. Lock files are never removed: a waiting process could have one open. The exception are
those for nested builds, and staging folders, which a build removes itself unless it is killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from lockbuild.errors import CacheFolderError, LockTimeoutError
from lockbuild.files import is_hidden, write_whole
from lockbuild.folders import open_folder
from lockbuild.paths import builds_folder, cache_folder, environment_folder, key_folders, run_logs_folder, wheel_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# How many seconds an entry stays unused before it is removed.
UNUSED_SECONDS = 30 * 86400.0

# How many seconds to wait between collections.
_COLLECTION_SECONDS = 86400.0


class Entry(NamedTuple):
    """An entry of the cache, for a listing."""

    path: str
    name: str
    size: int
    """In bytes; a file with several hard links counts in part."""
    last_used: float
    """Seconds since the epoch."""
    made: float = 0.0
    """Seconds since the epoch; 0 if unknown."""
    packages: tuple[str, ...] = ()
    """The names and versions of the packages in an environment."""


def list_environments(cache_dir: str | None = None) -> list[Entry]:
    """Return the complete environments in the store, the last used first."""
    from lockbuild.environments.store import generations

    found = []
    for folder in key_folders(cache_dir, environment_folder, to_write=False):
        for generation in generations(folder):
            if manifest := generation.read_manifest():
                name = f"{os.path.basename(folder)}/{generation.name}"
                packages = tuple(f"{name} {version}" for name, version in sorted(manifest.packages.items()))
                size = _disk_use(generation.path)
                found.append(Entry(generation.path, name, size, generation.last_used(), manifest.made, packages))
    return _last_used_first(found)


def list_unpacked_wheels(cache_dir: str | None = None) -> list[Entry]:
    """Return the unpacked wheels in the store, the last installed first."""
    from lockbuild.wheels.store import last_used, read

    return _last_used_first(
        Entry(folder, f"{wheel.name} {wheel.version}", _disk_use(wheel.path), last_used(folder))
        for folder in key_folders(cache_dir, wheel_folder, to_write=False)
        if (wheel := read(folder))
    )


def list_built_artifacts(cache_dir: str | None = None) -> list[Entry]:
    """Return the artifacts that shared builds keep, the last used first."""
    from lockbuild.sharing.outcomes import artifacts_folder, complete_builds, last_used

    found = []
    for folder in key_folders(cache_dir, builds_folder, to_write=False):
        for build, outcome in complete_builds(folder):
            # The key is not locked, so another process may remove the artifact now. Then it is not listed.
            with contextlib.suppress(FileNotFoundError):
                path = os.path.join(artifacts_folder(build), outcome.artifact)
                found.append(Entry(path, outcome.artifact, os.path.getsize(path), last_used(build), outcome.made))
    return _last_used_first(found)


def prune_environments(
    older_than: float = UNUSED_SECONDS, cache_dir: str | None = None, *, only_newest: bool = False
) -> int:
    """
    Remove environments that are not in use and were last used more than ``older_than`` seconds ago; return how many.

    With ``only_newest``, all but the newest of each key are removed, too. An environment that another process is making
    stays.
    """
    from lockbuild.environments.store import generations, remove_unused

    oldest = time.time() - older_than
    removed = 0
    for folder in _idle_folders(cache_dir, environment_folder):
        for generation in generations(folder):
            # Removes the files of users that were killed.
            generation.is_used()
        _remove_hidden(folder, older_than)
        complete = [each for each in generations(folder) if each.read_resolution()]
        kept = {each for each in complete[: 1 if only_newest else None] if each.last_used() > oldest}
        removed += len(remove_unused(folder, keep=kept.__contains__))
        if not generations(folder):
            shutil.rmtree(folder, ignore_errors=True)
    return removed


def prune_unpacked_wheels(older_than: float = UNUSED_SECONDS, cache_dir: str | None = None) -> int:
    """
    Remove unpacked wheels that were last installed more than ``older_than`` seconds ago; return how many.

    Those of kept environments stay: such an environment is made again of them.
    """
    from lockbuild.environments.store import generations
    from lockbuild.wheels.store import remove_if_unused

    oldest = time.time() - older_than
    needed = {
        digest
        for folder in key_folders(cache_dir, environment_folder, to_write=False)
        for generation in generations(folder)
        if (resolution := generation.read_resolution())
        for digest in (resolution.wheels or {}).values()
    }
    return sum(
        remove_if_unused(folder, oldest)
        for folder in _idle_folders(cache_dir, wheel_folder)
        if os.path.basename(folder) not in needed
    )


def prune_built_artifacts(older_than: float = UNUSED_SECONDS, cache_dir: str | None = None) -> int:
    """
    Remove artifacts that no later build may take or that were last used more than ``older_than`` seconds ago.

    Returns how many. The artifacts of a key that another process has locked stay.
    """
    from lockbuild.sharing.outcomes import remove_unused

    oldest = time.time() - older_than
    return sum(remove_unused(folder, oldest) for folder in _idle_folders(cache_dir, builds_folder))


def prune_left_behind(older_than: float = UNUSED_SECONDS, cache_dir: str | None = None) -> int:
    """
    Remove what killed builds have left in folders for temporary files and beside lock files; return how many builds.

    The record of a folder that cannot be reached is kept until it is more than ``older_than`` seconds old.
    """
    from lockbuild.locks import nesting
    from lockbuild.staging import remove_left_behind

    cache = cache_folder(cache_dir)
    locks = os.path.join(cache or "", "locks")
    if cache is not None and os.path.isdir(locks):
        nesting.remove_left_behind(locks)
        _remove_hidden(locks, older_than)
    _remove_logs(older_than, cache_dir)
    return remove_left_behind(cache_dir, time.time() - older_than)


def _remove_logs(older_than: float, cache_dir: str | None) -> None:
    """Remove the logs of runs of many builds, but not those of the last day: a run may still write to them."""
    import shutil

    oldest = time.time() - max(older_than, _COLLECTION_SECONDS)
    for folder in key_folders(cache_dir, run_logs_folder, to_write=False):
        with contextlib.suppress(OSError):
            if os.stat(folder, follow_symlinks=False).st_mtime < oldest:
                shutil.rmtree(folder, ignore_errors=True)


def collect_once_a_day(cache_dir: str | None) -> None:
    """
    Start ``lockbuild-cache prune`` in a process of its own, unless one was started within the last day.

    The build does not wait for it.
    """
    try:
        # Each user has a private store with a stamp.
        store = environment_folder(cache_dir)
    except CacheFolderError:
        return
    stamp = os.path.join(store, "pruned")
    try:
        is_new = not os.path.exists(stamp)
        # A stamp from the future is not recent.
        if not is_new and 0 <= time.time() - os.stat(stamp).st_mtime < _COLLECTION_SECONDS:
            return
        # Builds that end together may each start one: they take turns at the keys.
        write_whole(stamp, b"")
    except OSError:
        return
    if is_new:
        # In a new cache there is nothing to remove.
        return
    import subprocess

    from lockbuild.other_python import run_elsewhere

    with contextlib.suppress(OSError):
        subprocess.Popen(
            [
                *run_elsewhere(sys.executable, "lockbuild.commands.cache"),
                *("--cache-dir", os.path.dirname(store), "prune"),
            ],
            cwd=store,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def _idle_folders(cache_dir: str | None, find_store: Callable[[str | None, bool], str]) -> Iterator[str]:
    """Yield the folder of each key that no other process has locked. It is locked until the next one."""
    from lockbuild.locks import DirectoryLock, LockRequest

    for folder in key_folders(cache_dir, find_store, to_write=True):
        request = LockRequest(folder, folder, cache_dir, timeout=0, create=True)
        with contextlib.suppress(LockTimeoutError), DirectoryLock(request):
            yield folder


def _remove_hidden(path: str, older_than: float) -> None:
    """Remove our hidden files that are a day old. A living process has such a file for a moment."""
    oldest = time.time() - min(older_than, _COLLECTION_SECONDS)
    with contextlib.suppress(OSError, CacheFolderError), open_folder(path, shared=True) as folder:
        for name in filter(is_hidden, os.listdir(path)):
            with contextlib.suppress(OSError):
                found = os.stat(folder.at(name), dir_fd=folder.descriptor, follow_symlinks=False)
                if found.st_mtime < oldest and (os.name == "nt" or found.st_uid == os.geteuid()):
                    os.unlink(folder.at(name), dir_fd=folder.descriptor)


def _last_used_first(found: Iterator[Entry] | list[Entry]) -> list[Entry]:
    return sorted(found, key=lambda entry: -entry.last_used)


def _disk_use(path: str) -> int:
    """Return the bytes that a folder takes. A file counts with its size divided by its number of hard links."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(folder, name))
                total += status.st_size // max(1, status.st_nlink)
    return total
