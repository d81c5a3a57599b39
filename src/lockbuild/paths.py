"""What lies where in the cache folder, and the private folder that stands in for it where it cannot be written."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from typing import TYPE_CHECKING

from lockbuild.errors import CacheFolderError, shown
from lockbuild.user_folders import HOSTS_SUFFIX, cache_folder, is_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lockbuild.events import Reporter

# FS_IOC_GETFLAGS, FS_IOC_SETFLAGS and FS_TOPDIR_FL of linux/fs.h: _IOR('f', 1, long), _IOW('f', 2, long).
_GET_FLAGS, _SET_FLAGS = 0x80086601, 0x40086602
_TOP_FOLDER = 0x00020000

# How often the folder for lock files is made when it vanishes again at once.
_ATTEMPTS = 20


def environment_folder(requested: str | os.PathLike[str] | None) -> str:
    """
    Return the folder of the build environments that are kept, made if it was missing.

    It is this user's alone: whoever could write there would have his code run by our builds. Raises `CacheFolderError`
    where there is no such folder.
    """
    return _private_folder(requested, "environments", spread=True)


def builds_folder(requested: str | os.PathLike[str] | None) -> str:
    """
    Return the folder of the builds that several processes share, made if it was missing. It is this user's alone, too.

    Raises `CacheFolderError` where there is no such folder.
    """
    return _private_folder(requested, "builds")


def wheel_folder(requested: str | os.PathLike[str] | None) -> str:
    """Return the folder of the unpacked wheels, this user's alone, made if missing. Raises `CacheFolderError`."""
    return _private_folder(requested, "wheels", spread=True)


def _private_folder(requested: str | os.PathLike[str] | None, plain_name: str, *, spread: bool = False) -> str:
    cache = cache_folder(requested)
    if cache is None:
        raise CacheFolderError("there is no home folder to have a cache in")
    user = os.getuid() if hasattr(os, "getuid") else ""
    # In a cache folder that several users share, the first one has the plain name.
    for name in (plain_name, f"{plain_name}-{user}"):
        folder = os.path.join(cache, name)
        try:
            os.makedirs(cache, exist_ok=True)
            if _make_private_folder(folder) and spread:
                _spread_over_disk(folder)
            if is_private(os.lstat(folder)) and os.access(folder, os.W_OK | os.X_OK):
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


def hosts_folder(store: str) -> str | None:
    """Return the folder, beside that of the environments, of the notes on hook hosts; ``None`` if it is not private."""
    return _folder_beside(f"{store}{HOSTS_SUFFIX}")


def _folder_beside(folder: str) -> str | None:
    with contextlib.suppress(OSError):
        _make_private_folder(folder)
        if is_private(os.lstat(folder)):
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
        except (FileExistsError, FileNotFoundError) as error:
            # Somebody who cleans up has removed it between two of our steps, or of makedirs'; or it cannot be there.
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
        if ours := is_private(os.lstat(folder)):
            _make_private_folder(locks)
            if not os.access(locks, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "it cannot be written")
    except OSError as error:
        raise CacheFolderError(
            f"No place for lock files: {reason}, and {shown(folder)} cannot be made: {error.strerror}; "
            "name a writable folder with --cache-dir"
        ) from error
    if not ours:
        raise CacheFolderError(
            f"No place for lock files: {reason}, and {shown(folder)} is not a folder that only you can write; "
            "remove it, or name a writable folder with --cache-dir"
        )
    reporter.warn(f"{reason}; lock files are in {shown(folder)} instead")
    return locks


def _make_private_folder(path: str) -> bool:
    """Make a folder that only this user can write, unless something has that name; tell whether it was made."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return False
    return True


def _spread_over_disk(folder: str) -> None:
    """
    Have the folders that are made in this one be placed where the disk has room, and not beside each other.

    It is what ``chattr +T`` does, on file systems of the ext family. Environments and unpacked wheels come and go by
    thousands of files. Where many were removed in the last minutes a new one takes ext4 up to thirty times as long,
    because it passes over their inodes one by one (``recently_deleted`` in fs/ext4/ialloc.c).
    """
    if sys.platform != "linux" or sys.maxsize < 1 << 32:
        return
    import fcntl

    # Where the file system or the machine has no such thing, files are placed as ever.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # Said to be a long; the kernel reads and writes an int.
            flags = bytearray(8)
            fcntl.ioctl(descriptor, _GET_FLAGS, flags)
            wanted = int.from_bytes(flags[:4], sys.byteorder) | _TOP_FOLDER
            fcntl.ioctl(descriptor, _SET_FLAGS, wanted.to_bytes(4, sys.byteorder) + bytes(4))
        finally:
            os.close(descriptor)
