"""The user's folders: the cache, the folders in it, and configurations."""

from __future__ import annotations

import errno
import os
import sys
import time
from typing import TYPE_CHECKING

from lockbuild.errors import CacheFolderError, shown
from lockbuild.folders import make_private_folder, open_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lockbuild.events import Reporter

CACHE_DIR_VARIABLE = "LOCKBUILD_CACHE_DIR"

# The name of a staging folder: this and as many random digits.
STAGING = "lockbuild-"
_STAGING_DIGITS = 16


def cache_folder(requested: str | os.PathLike[str] | None = None) -> str | None:
    """
    Return the absolute path of the cache folder: the requested one, ``LOCKBUILD_CACHE_DIR``, or the platform's folder
    for the user's caches. ``None`` when there is no home folder for the latter.
    """
    chosen = requested or os.environ.get(CACHE_DIR_VARIABLE)
    if chosen:
        # No shell has expanded a "~" from a file such as tox.ini.
        return os.path.abspath(os.path.expanduser(chosen))
    if plain := _xdg_folder("XDG_CACHE_HOME", ".cache"):
        return os.path.join(plain, "lockbuild")
    import platformdirs

    # Without HOME and an entry in the user database, platformdirs raises an error or leaves "~" as it is.
    try:
        folder = platformdirs.user_cache_dir("lockbuild", appauthor=False)
    except RuntimeError:
        return None
    return folder if os.path.isabs(folder) else None


def environment_folder(requested: str | os.PathLike[str] | None, to_write: bool = True) -> str:
    """
    Return the folder of kept build environments, made if it was missing.

    Only this user can write to it, and no other user can replace it: that user's code would run in our builds. Raises
    `CacheFolderError` when there is no such folder, or when it is wanted ``to_write`` and the user may not. Otherwise
    it may be missing on a read-only disk.
    """
    return _private_folder(requested, "environments", to_write)


def builds_folder(requested: str | os.PathLike[str] | None, to_write: bool = True) -> str:
    """Return the folder of shared builds, which is private like `environment_folder`."""
    return _private_folder(requested, "builds", to_write)


def run_logs_folder(requested: str | os.PathLike[str] | None, to_write: bool = True) -> str:
    """Return the folder of the logs of runs of many builds, which is private like `environment_folder`."""
    return _private_folder(requested, "logs", to_write)


def logs_folder(requested: str | os.PathLike[str] | None) -> str:
    """Return a new folder for the logs of one run."""
    from tempfile import mkdtemp

    return mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=run_logs_folder(requested))


def wheel_folder(requested: str | os.PathLike[str] | None, to_write: bool = True) -> str:
    """Return the folder of unpacked wheels, which is private like `environment_folder`."""
    return _private_folder(requested, "wheels", to_write)


def staging_records(requested: str | os.PathLike[str] | None) -> str:
    """Return the folder of the records of staging folders, which is private like `environment_folder`."""
    return _private_folder(requested, "staging")


def _private_folder(requested: str | os.PathLike[str] | None, plain_name: str, to_write: bool = True) -> str:
    cache = cache_folder(requested)
    if cache is None:
        raise CacheFolderError("there is no home folder for a cache")
    plain = os.path.join(cache, plain_name)
    try:
        return _made(plain, to_write)
    except CacheFolderError:
        if not hasattr(os, "geteuid"):
            raise
        # In a cache folder that several users share, the first user has the plain name.
        return _made(f"{plain}-{os.geteuid()}", to_write)


def _made(folder: str, to_write: bool) -> str:
    try:
        make_private_folder(folder)
        if to_write and not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "you may not write to it")
    except OSError as error:
        if to_write or error.errno != errno.EROFS:
            raise CacheFolderError(f"{shown(folder)} cannot be used: {error.strerror}") from error
    return folder


def key_folders(cache_dir: str | None, find_store: Callable[[str | None, bool], str], to_write: bool) -> Iterator[str]:
    """Yield the folder of each key in the store that ``find_store`` returns; nothing without a cache folder."""
    cache = cache_folder(cache_dir)
    if cache is None or not os.path.isdir(cache):
        return
    store = find_store(cache_dir, to_write)
    if not os.path.isdir(store):
        return
    for name in sorted(os.listdir(store)):
        if os.path.isdir(os.path.join(store, name)):
            yield os.path.join(store, name)


def lock_folder(requested: str | os.PathLike[str] | None, reporter: Reporter) -> str:
    """
    Return the folder for lock files, made if it was missing: in the cache folder, or the private fallback.

    Other users may write to the former, but no link of theirs leads there. Raises `CacheFolderError` when neither can
    be used.
    """
    cache = cache_folder(requested)
    if cache is None:
        return fallback_lock_folder("there is no home folder for a cache", reporter)
    folder = os.path.join(cache, "locks")
    try:
        with open_folder(folder, make=True, shared=True) as opened:
            if os.access(opened.at(os.curdir), os.W_OK | os.X_OK, dir_fd=opened.descriptor):
                return folder
        problem = f"you may not write to {shown(folder)}"
    except OSError as error:
        problem = f"{shown(folder)} cannot be used: {error.strerror}"
    except CacheFolderError as error:
        problem = str(error)
    return fallback_lock_folder(problem, reporter)


def temporary_folder() -> str:
    """Return the folder for temporary files of all processes; `tempfile` may have one of this process's own in it."""
    import tempfile

    found = tempfile.tempdir or _writable_folder() or tempfile.gettempdir()
    parent, name = os.path.split(found)
    return parent if name.startswith(STAGING) and len(name) == len(STAGING) + _STAGING_DIGITS else found


def _writable_folder() -> str | None:
    """Find the folder that `tempfile` would choose, which tries it with a file that a killed process leaves there."""
    if os.name == "nt":
        return None
    variables = filter(None, map(os.environ.get, ("TMPDIR", "TEMP", "TMP")))
    for folder in map(os.path.abspath, (*variables, "/tmp", "/var/tmp", "/usr/tmp")):
        if os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    return None


def fallback_lock_folder(reason: str, reporter: Reporter) -> str:
    """
    Return a folder for lock files that belongs to this user alone, in the folder for temporary files.

    It must not belong to another user, and no other user may write to it: by removing a lock file, that user could make
    two builds believe that each holds the lock.
    """
    try:
        temporary = temporary_folder()
    except FileNotFoundError as error:
        raise CacheFolderError(
            f"No folder for lock files: {reason}, and there is no folder for temporary files; "
            "name a writable folder with --cache-dir"
        ) from error
    user = os.geteuid() if hasattr(os, "geteuid") else os.environ.get("USERNAME", "user")
    folder = os.path.join(temporary, f"lockbuild-{user}")
    locks = os.path.join(folder, "locks")
    try:
        # ``shared``: the folder for temporary files is not checked. Locks exclude even if other users can write to it.
        for path in (folder, locks):
            make_private_folder(path, shared=True)
        if not os.access(locks, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "you may not write to it")
    except OSError as error:
        raise CacheFolderError(
            f"No folder for lock files: {reason}, and {shown(folder)} cannot be used: {error.strerror}; "
            "name a writable folder with --cache-dir"
        ) from error
    except CacheFolderError as error:
        raise CacheFolderError(
            f"No folder for lock files: {reason}, and {error}; or name a writable folder with --cache-dir"
        ) from error
    reporter.warn(f"{reason}; lock files are in {shown(folder)} instead")
    return locks


def configuration_folders(program: str) -> tuple[list[str], str | None]:
    """
    Return the folders of a program's configuration: those for all users, and this user's.

    The latter is ``None`` without a home folder.
    """
    plain = _xdg_folder("XDG_CONFIG_HOME", ".config")
    if plain and not os.environ.get("XDG_CONFIG_DIRS"):
        return [f"/etc/xdg/{program}"], os.path.join(plain, program)
    import platformdirs

    common = platformdirs.site_config_dir(program, appauthor=False, multipath=True).split(os.pathsep)
    try:
        return common, platformdirs.user_config_dir(program, appauthor=False, roaming=True)
    except RuntimeError:
        return common, None


def _xdg_folder(variable: str, below_home: str) -> str | None:
    """
    Return one of the user's folders by the XDG base directory specification; ``None`` for all but plain cases.

    platformdirs decides the other cases. Its import takes longer than everything else that a build does before its hook
    host starts. A test compares the two.
    """
    if sys.platform != "linux" or "ANDROID_DATA" in os.environ:
        return None
    if folder := os.environ.get(variable):
        return folder if _is_plain(folder) else None
    home = os.environ.get("HOME", "")
    return os.path.join(home, below_home) if _is_plain(home) else None


def _is_plain(path: str) -> bool:
    return path.startswith("/") and path == os.path.normpath(path).strip()
