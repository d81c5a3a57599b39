"""The cache folder, and the private folder that stands in for it where it cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

from lockbuild.errors import CacheFolderError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lockbuild.events import Reporter

CACHE_DIR_VARIABLE = "LOCKBUILD_CACHE_DIR"

# How often the folder for lock files is made when it vanishes again at once.
_ATTEMPTS = 20


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


def configuration_folders(program: str) -> tuple[list[str], str]:
    """Return where a program looks for its configuration: the folders for everybody, and the user's."""
    plain = _xdg_folder("XDG_CONFIG_HOME", ".config")
    if plain and not os.environ.get("XDG_CONFIG_DIRS"):
        return [f"/etc/xdg/{program}"], os.path.join(plain, program)
    import platformdirs

    common = platformdirs.site_config_dir(program, appauthor=False, multipath=True).split(os.pathsep)
    return common, platformdirs.user_config_dir(program, appauthor=False, roaming=True)


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


def environment_folder(requested: str | os.PathLike[str] | None) -> str:
    """
    Return the folder of the build environments that are kept, made if it was missing.

    It is this user's alone: whoever could write there would have his code run by our builds. Raises `CacheFolderError`
    where there is no such folder.
    """
    return _private_folder(requested, "environments")


def builds_folder(requested: str | os.PathLike[str] | None) -> str:
    """
    Return the folder of the builds that several processes share, made if it was missing. It is this user's alone, too.

    Raises `CacheFolderError` where there is no such folder.
    """
    return _private_folder(requested, "builds")


def wheel_folder(requested: str | os.PathLike[str] | None) -> str:
    """Return the folder of the unpacked wheels, this user's alone, made if missing. Raises `CacheFolderError`."""
    return _private_folder(requested, "wheels")


def _private_folder(requested: str | os.PathLike[str] | None, plain_name: str) -> str:
    cache = cache_folder(requested)
    if cache is None:
        raise CacheFolderError("there is no home folder to have a cache in")
    user = os.getuid() if hasattr(os, "getuid") else ""
    # In a cache folder that several users share, the first one has the plain name.
    for name in (plain_name, f"{plain_name}-{user}"):
        folder = os.path.join(cache, name)
        try:
            os.makedirs(cache, exist_ok=True)
            _make_private_folder(folder)
            if _is_private(os.lstat(folder)) and os.access(folder, os.W_OK | os.X_OK):
                return folder
        except OSError as error:
            raise CacheFolderError(f"{folder} cannot be made: {error.strerror}") from error
    raise CacheFolderError(f"{folder} is not a folder that only you can write")


def key_folders(cache_dir: str | None, find_store: Callable[[str | None], str]) -> Iterator[str]:
    """Yield the folders of the keys in a store, which ``find_store`` finds; none while there is no cache folder."""
    cache = cache_folder(cache_dir)
    if cache is None or not os.path.isdir(cache):
        return
    store = find_store(cache_dir)
    for name in sorted(os.listdir(store)):
        if os.path.isdir(os.path.join(store, name)):
            yield os.path.join(store, name)


def disk_use(path: str) -> int:
    """Return how many bytes a folder takes, where a file with several hard links counts for its part."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(folder, name))
                total += status.st_size // max(1, status.st_nlink)
    return total


def spellings_folder(store: str) -> str | None:
    """
    Return the folder, beside that of the environments, which remembers how requirements are spelled; made if missing.

    ``None`` where there is no such folder that only this user can write.
    """
    folder = f"{store}-spellings"
    with contextlib.suppress(OSError):
        _make_private_folder(folder)
        if _is_private(os.lstat(folder)):
            return folder
    return None


def lock_folder(requested: str | os.PathLike[str] | None, reporter: Reporter) -> str:
    """
    Return the folder for lock files, made if it was missing: in the cache folder, or in the private fallback.

    Raises `CacheFolderError` when neither can be written.
    """
    cache = cache_folder(requested)
    if cache is None:
        return fallback_lock_folder("there is no home folder to have a cache in", reporter)
    folder = os.path.join(cache, "locks")
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            os.makedirs(folder, exist_ok=True)
            problem = _problem_with(folder)
        except FileNotFoundError as error:
            # Somebody who cleans up has removed it between two of our steps; or it cannot be there at all.
            if attempts_left:
                continue
            problem = f"cannot be made: {error.strerror}"
        except OSError as error:
            problem = f"cannot be made: {error.strerror}"
        break
    return fallback_lock_folder(f"{shown(folder)} {problem}", reporter) if problem else folder


def _problem_with(folder: str) -> str | None:
    """Return why lock files should not be in a folder. Raises `FileNotFoundError` when it is gone."""
    found = os.lstat(folder)
    if stat.S_ISLNK(found.st_mode) and hasattr(os, "getuid") and found.st_uid not in (0, os.getuid()):
        # It could have us make files, which everybody may write, in a folder where only we may.
        return "is another user's symbolic link"
    if not os.access(folder, os.W_OK | os.X_OK):
        os.stat(folder)
        return "cannot be written"
    return None


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
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = os.path.join(temporary, f"lockbuild-{user}")
    locks = os.path.join(folder, "locks")
    try:
        _make_private_folder(folder)
        if is_private := _is_private(os.lstat(folder)):
            _make_private_folder(locks)
            if not os.access(locks, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "it cannot be written")
    except OSError as error:
        raise CacheFolderError(
            f"No place for lock files: {reason}, and {shown(folder)} cannot be made: {error.strerror}; "
            "name a writable folder with --cache-dir"
        ) from error
    if not is_private:
        raise CacheFolderError(
            f"No place for lock files: {reason}, and {shown(folder)} is not a folder that only you can write; "
            "remove it, or name a writable folder with --cache-dir"
        )
    reporter.warn(f"{reason}; lock files are in {shown(folder)} instead")
    return locks


def _make_private_folder(path: str) -> None:
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)


def _is_private(found: os.stat_result) -> bool:
    if not stat.S_ISDIR(found.st_mode):
        return False
    if not hasattr(os, "getuid"):
        return True
    return found.st_uid == os.getuid() and not found.st_mode & 0o077
