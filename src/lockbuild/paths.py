"""The cache folder, and the private folder that stands in for it where it cannot be written."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from lockbuild.errors import CacheFolderError

if TYPE_CHECKING:
    from lockbuild.events import Reporter

CACHE_DIR_VARIABLE = "LOCKBUILD_CACHE_DIR"


def cache_folder(requested: str | os.PathLike[str] | None = None) -> str | None:
    """
    Return where the cache folder should be, as an absolute path: what is requested, else ``LOCKBUILD_CACHE_DIR``,
    else the platform's place for the user's caches. ``None`` where the user has no home to have such a place in.
    """
    chosen = requested or os.environ.get(CACHE_DIR_VARIABLE)
    if chosen:
        return os.path.abspath(chosen)
    import platformdirs

    folder = platformdirs.user_cache_dir("lockbuild", appauthor=False)
    # Without HOME and without an entry in the user database "~" stays as it is.
    return folder if os.path.isabs(folder) else None


def environment_folder(requested: str | os.PathLike[str] | None) -> str:
    """
    Return the folder of the build environments that are kept, made if it was missing.

    It is this user's alone: whoever could write there would have his code run by our builds. Raises `CacheFolderError`
    where there is no such folder.
    """
    cache = cache_folder(requested)
    if cache is None:
        raise CacheFolderError("there is no home folder to have a cache in")
    user = os.getuid() if hasattr(os, "getuid") else ""
    # In a cache folder that several users share, the first one has the plain name.
    for name in ("environments", f"environments-{user}"):
        folder = os.path.join(cache, name)
        try:
            os.makedirs(cache, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, 0o700)
            if _is_private(os.lstat(folder)) and os.access(folder, os.W_OK | os.X_OK):
                return folder
        except OSError as error:
            raise CacheFolderError(f"{folder} cannot be made: {error.strerror}") from error
    raise CacheFolderError(f"{folder} is not a folder that only you can write")


def lock_folder(requested: str | os.PathLike[str] | None, reporter: Reporter) -> str:
    """
    Return the folder for lock files, made if it was missing: in the cache folder, or in the private fallback.

    Raises `CacheFolderError` when neither can be written.
    """
    cache = cache_folder(requested)
    if cache is None:
        return fallback_lock_folder("there is no home folder to have a cache in", reporter)
    folder = os.path.join(cache, "locks")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        return fallback_lock_folder(f"{folder} cannot be made: {error.strerror}", reporter)
    if not os.access(folder, os.W_OK | os.X_OK):
        return fallback_lock_folder(f"{folder} cannot be written", reporter)
    return folder


def fallback_lock_folder(reason: str, reporter: Reporter) -> str:
    """
    Return a folder for lock files in the folder for temporary files, which belongs to this user alone.

    A folder of that name which is another user's, or which others could write, is refused: whoever can remove a
    lock file can have two builds believe that each of them holds the lock.
    """
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise CacheFolderError(
            f"No place for lock files: {reason}, and there is no folder for temporary files either; "
            "name a writable folder with --cache-dir"
        ) from error
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = Path(temporary, f"lockbuild-{user}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise CacheFolderError(
            f"No place for lock files: {reason}, and {folder} cannot be made: {error.strerror}; "
            "name a writable folder with --cache-dir"
        ) from error
    if not _is_private(found):
        raise CacheFolderError(
            f"No place for lock files: {reason}, and {folder} is not a folder that only you can write; "
            "remove it, or name a writable folder with --cache-dir"
        )
    reporter.warn(f"{reason}; lock files are in {folder} instead")
    locks = folder / "locks"
    locks.mkdir(mode=0o700, exist_ok=True)
    return str(locks)


def _is_private(found: os.stat_result) -> bool:
    if not stat.S_ISDIR(found.st_mode):
        return False
    if not hasattr(os, "getuid"):
        return True
    return found.st_uid == os.getuid() and not found.st_mode & 0o077
