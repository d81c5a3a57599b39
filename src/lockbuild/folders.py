"""Folders that other users may be able to reach, opened so that none of them has put another one in their place.

A path says little: between our look at it and our use of it another user, who may write to one of the folders on the
way, can put a link or a folder of his own there. So a folder is opened once, its descriptor is looked at, and so are
those of the folders that it is in.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from lockbuild.errors import CacheFolderError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

# A folder as a place to look names up in, where the system has that: it takes the right to search, not that to read.
_SEARCH = (
    getattr(os, "O_PATH", getattr(os, "O_SEARCH", os.O_RDONLY))
    | getattr(os, "O_DIRECTORY", 0)
    | getattr(os, "O_CLOEXEC", 0)
)
_SEARCH_NO_LINK = _SEARCH | getattr(os, "O_NOFOLLOW", 0)

# What a symbolic link, or a file, says to who opens it as a folder and follows no link.
_NO_FOLDER = (errno.ENOTDIR, errno.ELOOP, errno.EMLINK)

# As many links as Linux follows in one path.
_MOST_LINKS = 40

# How often a folder is made when another process removes it again at once.
_ATTEMPTS = 20


class Folder(NamedTuple):
    """A folder that is open. Files in it are named by `at` together with ``dir_fd=folder.descriptor``."""

    path: str
    descriptor: int | None
    """``None`` on Windows, where files are found by their path."""

    def at(self, name: str) -> str:
        """Return what to call a file in the folder."""
        return os.path.join(self.path, name) if self.descriptor is None else name

    @contextlib.contextmanager
    def enter(self, name: str) -> Iterator[Folder]:
        """Yield a folder in this one, made if it was missing; a link is not followed. Raises `OSError`."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(self.at(name), dir_fd=self.descriptor)
        path = os.path.join(self.path, name)
        if self.descriptor is None:
            yield Folder(path, None)
            return
        with _closing(os.open(name, _SEARCH_NO_LINK, dir_fd=self.descriptor)) as descriptor:
            yield Folder(path, descriptor)


@contextlib.contextmanager
def named_folder(path: str) -> Iterator[Folder]:
    """Yield the folder that a user has named, wherever links lead to. It stays the same one. Raises `OSError`."""
    if os.name == "nt":
        yield Folder(path, None)
        return
    with _closing(os.open(path, _SEARCH)) as descriptor:
        yield Folder(path, descriptor)


@contextlib.contextmanager
def open_folder(path: str, *, make: bool = False, shared: bool = False) -> Iterator[Folder]:
    """
    Yield a folder, after a check that no other user can change what its path leads to; with ``make`` it is made.

    The path is walked from the root of the file system on. Each folder on the way is opened in the one before, without
    following a link, and its descriptor is looked at: it has to belong to root or to this user, and only they may
    write to it, unless it is sticky. In such a folder no other user can rename or remove what belongs to root or to
    this user. So the name of each next folder leads to the same one for ever, as far as other users are concerned, and
    from now on the path may be used as well as the descriptor.

    With ``shared`` other users may write there, and to folders on the way; only their links are not followed. What is
    found by the path later may be another folder then, so what is made there is made by the descriptor.

    Windows has no such check. Raises `CacheFolderError` with the folder that is not as it has to be, and `OSError`.
    """
    if os.name == "nt":
        if make:
            os.makedirs(path, exist_ok=True)
        yield Folder(path, None)
        return
    for attempts_left in reversed(range(_ATTEMPTS)):
        try:
            opened = _walk(path, make, shared)
            break
        except FileNotFoundError:
            # Another process, which cleans up, has removed what we have made before we could open it.
            if not make or not attempts_left:
                raise
    with _closing(opened) as descriptor:
        yield Folder(path, descriptor)


def make_private_folder(path: str, *, shared: bool = False) -> None:
    """
    Make a folder that only this user can read and write, unless there is one.

    ``shared`` is said of the folder that it is in; see `open_folder`. Raises `CacheFolderError` when something else has
    the name, and `OSError`.
    """
    parent, name = os.path.split(path)
    with open_folder(parent, make=True, shared=shared) as folder:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder.at(name), 0o700, dir_fd=folder.descriptor)
        if folder.descriptor is not None and not _is_private(name, folder.descriptor):
            raise CacheFolderError(f"{shown(path)} is not a folder that only you can write; remove it")


def is_private_folder(path: str) -> bool:
    """Tell whether there is a folder that only this user can read and write, or put another one in the place of."""
    parent, name = os.path.split(path)
    try:
        with open_folder(parent) as folder:
            return folder.descriptor is None or _is_private(name, folder.descriptor)
    except (OSError, CacheFolderError):
        return False


def _is_private(name: str, parent: int) -> bool:
    try:
        with _closing(os.open(name, _SEARCH_NO_LINK, dir_fd=parent)) as descriptor:
            found = os.fstat(descriptor)
    except OSError as error:
        if error.errno in _NO_FOLDER:
            return False
        raise
    return found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _walk(path: str, make: bool, shared: bool) -> int:
    way = "/"
    left = _steps(path if os.path.isabs(path) else os.path.join(os.getcwd(), path))
    links_left = _MOST_LINKS
    descriptor = os.open(way, _SEARCH)
    try:
        is_fixed = _check(descriptor, way, shared)
        while left:
            name = left.pop()
            try:
                entered = _enter(name, descriptor, make)
            except OSError as error:
                links_left -= 1
                if error.errno not in _NO_FOLDER or not links_left:
                    raise
                target = _read_link(name, descriptor, way, is_fixed)
                if target is None:
                    raise
                left += _steps(target)
                if not target.startswith("/"):
                    continue
                entered, name = os.open("/", _SEARCH), "/"
            os.close(descriptor)
            descriptor, way = entered, os.path.join(way, name)
            is_fixed = _check(descriptor, way, shared) and is_fixed
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _steps(path: str) -> list[str]:
    """Return the names in a path, the first one last."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _enter(name: str, folder: int, make: bool) -> int:
    with contextlib.suppress(FileNotFoundError):
        return os.open(name, _SEARCH_NO_LINK, dir_fd=folder)
    if make:
        with contextlib.suppress(FileExistsError):
            # Whatever the umask: where others could write in it, we would refuse it.
            os.mkdir(name, 0o755, dir_fd=folder)
    return os.open(name, _SEARCH_NO_LINK, dir_fd=folder)


def _read_link(name: str, folder: int, way: str, is_fixed: bool) -> str | None:
    """Return where a link leads that no other user has put there; ``None`` for what is no link."""
    found = os.lstat(name, dir_fd=folder)
    if not stat.S_ISLNK(found.st_mode):
        return None
    # Between these two calls the link stays what it is: it belongs to root or to us, and in a folder that was checked
    # only its owner and the folder's can rename or remove it. Elsewhere another user could even have moved a link of
    # root's there.
    if not is_fixed or not _is_trusted(found.st_uid):
        raise CacheFolderError(
            f"{shown(os.path.join(way, name))} is a symbolic link that another user could have put there "
            f"(it belongs to user {found.st_uid})"
        )
    return os.readlink(name, dir_fd=folder)


def _check(descriptor: int, way: str, shared: bool) -> bool:
    """Tell whether only root and this user can change what names lead to in a folder; without ``shared`` it has to."""
    found = os.fstat(descriptor)
    mode = stat.S_IMODE(found.st_mode)
    if not _is_trusted(found.st_uid):
        problem = f"belongs to user {found.st_uid}, who could replace what is in it; choose another cache folder"
    elif mode & stat.S_ISVTX:
        return True
    elif mode & 0o002:
        problem = f"can be written by every user (mode {mode:04o}); run chmod o-w, or chmod +t, on it"
    elif mode & 0o020 and not _is_private_group(found.st_gid):
        problem = f"can be written by group {found.st_gid} (mode {mode:04o}); run chmod g-w, or chmod +t, on it"
    else:
        return True
    if shared:
        return False
    raise CacheFolderError(f"{shown(way)} {problem}")


def _is_trusted(user: int) -> bool:
    # In the namespace of a container without root, the owner of everything that is root's has another number.
    return user in (0, os.geteuid()) or user == os.stat("/").st_uid


def _is_private_group(number: int) -> bool:
    """Tell whether a group is root's, or the one of this user's name, and has no members beside the two."""
    import grp
    import pwd

    try:
        group = grp.getgrgid(number)
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return False
    return (number == 0 or group.gr_name == user) and {"root", user}.issuperset(group.gr_mem)


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)
