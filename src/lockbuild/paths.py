"""The user's folders: where the cache and configurations are, and what lies where in the cache."""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING

from lockbuild.errors import CacheFolderError, shown
from lockbuild.folders import make_private_folder, open_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lockbuild.events import Reporter

CACHE_DIR_VARIABLE = "LOCKBUILD_CACHE_DIR"


def cache_folder(requested: str | os.PathLike[str] | None = None) -> str | None:
    """
    Return where the cache folder should be, as an absolute path: what is requested, else ``LOCKBUILD_CACHE_DIR``,
    else the platform's place for the user's caches. ``None`` where the user has no home to have such a place in.
    """
    chosen = requested or os.environ.get(CACHE_DIR_VARIABLE)
    if chosen:
        # A "~" comes here from files that no shell has read, such as tox.ini.
        return os.path.abspath(os.path.expanduser(chosen))
    if plain := _xdg_folder("XDG_CACHE_HOME", ".cache"):
        return os.path.join(plain, "lockbuild")
    import platformdirs

    # Without HOME and without an entry in the user database "~" stays as it is, or platformdirs says so.
    try:
        folder = platformdirs.user_cache_dir("lockbuild", appauthor=False)
    except RuntimeError:
        return None
    return folder if os.path.isabs(folder) else None


def environment_folder(requested: str | os.PathLike[str] | None) -> str:
    """
    Return the folder of the build environments that are kept, made if it was missing.

    It is this user's alone, and no other user can put another one in its place: who could would have his code run by
    our builds. Raises `CacheFolderError` where there is no such folder.
    """
    return _private_folder(requested, "environments")


def builds_folder(requested: str | os.PathLike[str] | None) -> str:
    """Return the folder of the builds that several processes share; as `environment_folder`."""
    return _private_folder(requested, "builds")


def wheel_folder(requested: str | os.PathLike[str] | None) -> str:
    """Return the folder of the unpacked wheels; as `environment_folder`."""
    return _private_folder(requested, "wheels")


def _private_folder(requested: str | os.PathLike[str] | None, plain_name: str) -> str:
    cache = cache_folder(requested)
    if cache is None:
        raise CacheFolderError("there is no home folder to have a cache in")
    plain = os.path.join(cache, plain_name)
    try:
        return _made(plain)
    except CacheFolderError:
        if not hasattr(os, "geteuid"):
            raise
        # In a cache folder that several users share, the first one has the plain name.
        return _made(f"{plain}-{os.geteuid()}")


def _made(folder: str) -> str:
    try:
        make_private_folder(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it cannot be written")
    except OSError as error:
        raise CacheFolderError(f"{shown(folder)} cannot be made: {error.strerror}") from error
    return folder


def key_folders(cache_dir: str | None, find_store: Callable[[str | None], str]) -> Iterator[str]:
    """Yield the folders of the keys in a store, which ``find_store`` finds; none while there is no cache folder."""
    cache = cache_folder(cache_dir)
    if cache is None or not os.path.isdir(cache):
        return
    store = find_store(cache_dir)
    for name in sorted(os.listdir(store)):
        if os.path.isdir(os.path.join(store, name)):
            yield os.path.join(store, name)


def lock_folder(requested: str | os.PathLike[str] | None, reporter: Reporter) -> str:
    """
    Return the folder for lock files, made if it was missing: in the cache folder, or in the private fallback.

    Other users may write in the first one; no link of theirs leads there. Raises `CacheFolderError` when neither can be
    written.
    """
    cache = cache_folder(requested)
    if cache is None:
        return fallback_lock_folder("there is no home folder to have a cache in", reporter)
    folder = os.path.join(cache, "locks")
    try:
        with open_folder(folder, make=True, shared=True) as opened:
            if os.access(opened.at(os.curdir), os.W_OK | os.X_OK, dir_fd=opened.descriptor):
                return folder
        problem = f"{shown(folder)} cannot be written"
    except OSError as error:
        problem = f"{shown(folder)} cannot be made: {error.strerror}"
    except CacheFolderError as error:
        problem = str(error)
    return fallback_lock_folder(problem, reporter)


def fallback_lock_folder(reason: str, reporter: Reporter) -> str:
    """
    Return a folder for lock files in the folder for temporary files, which belongs to this user alone.

    A folder of that name which is another user's, or which others could write, is refused: whoever can remove a
    lock file can have two builds believe that each of them holds the lock.
    """
    import tempfile

    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise CacheFolderError(
            f"No place for lock files: {reason}, and there is no folder for temporary files either; "
            "name a writable folder with --cache-dir"
        ) from error
    user = os.geteuid() if hasattr(os, "geteuid") else os.environ.get("USERNAME", "user")
    folder = os.path.join(temporary, f"lockbuild-{user}")
    locks = os.path.join(folder, "locks")
    try:
        # The folder for temporary files is what it is; in one that others can write to, locks still exclude.
        for path in (folder, locks):
            make_private_folder(path, shared=True)
        if not os.access(locks, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it cannot be written")
    except OSError as error:
        raise CacheFolderError(
            f"No place for lock files: {reason}, and {shown(folder)} cannot be made: {error.strerror}; "
            "name a writable folder with --cache-dir"
        ) from error
    except CacheFolderError as error:
        raise CacheFolderError(
            f"No place for lock files: {reason}, and {error}; or name a writable folder with --cache-dir"
        ) from error
    reporter.warn(f"{reason}; lock files are in {shown(folder)} instead")
    return locks


def configuration_folders(program: str) -> tuple[list[str], str | None]:
    """
    Return where a program looks for its configuration: the folders for everybody, and the user's.

    ``None`` for a user without a home.
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
    Return one of the user's folders as the XDG base directory specification has it, where that is plain.

    Everything else is left to platformdirs, whose import would take longer than all that a build does before its hook
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
