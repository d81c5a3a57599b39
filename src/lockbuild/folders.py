"""Opens folders that other users may reach, so that no other user has replaced them.

A check of a path proves little: between the check and the use, a user who may write to a folder on the way can put a
link or another folder there. So a folder is opened once, and its descriptor and those of all its parents are checked.
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

# Opens a folder to look up names, where the system can: that takes permission to search, not to read.
_SEARCH = (
    getattr(os, "O_PATH", getattr(os, "O_SEARCH", os.O_RDONLY))
    | getattr(os, "O_DIRECTORY", 0)
    | getattr(os, "O_CLOEXEC", 0)
)
_SEARCH_NO_LINK = _SEARCH | getattr(os, "O_NOFOLLOW", 0)

# Errors for opening a symbolic link, or a file, as a folder without following links.
_NO_FOLDER = (errno.ENOTDIR, errno.ELOOP, errno.EMLINK)

# The number of links that Linux follows in one path.
_MOST_LINKS = 40

# How often to make a folder when another process removes it at once.
_ATTEMPTS = 20


class Folder(NamedTuple):
    """An open folder. `at` names a file in it, together with ``dir_fd=folder.descriptor``."""

    path: str
    descriptor: int | None
    """``None`` on Windows, where paths name files."""

    def at(self, name: str) -> str:
        """Return the path of a file in the folder for a call with ``dir_fd``."""
        return os.path.join(self.path, name) if self.descriptor is None else name

    @contextlib.contextmanager
    def enter(self, name: str) -> Iterator[Folder]:
        """Yield a folder in this one, made if it was missing. Links are not followed. Raises `OSError`."""
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
    """
    Yield a folder that the user named; an empty name is the working directory, as for `os.path.abspath`.

    Links are followed once, when it is opened. Raises `OSError`.
    """
    path = path or os.curdir
    if os.name == "nt":
        yield Folder(path, None)
        return
    with _closing(os.open(path, _SEARCH)) as descriptor:
        yield Folder(path, descriptor)


@contextlib.contextmanager
def open_folder(path: str, *, make: bool = False, shared: bool = False) -> Iterator[Folder]:
    """
    Yield a folder after checking that no other user can change where its path leads. With ``make``, make it first.

    The path is walked from the root of the file system. Each folder is opened relative to its parent, without following
    links, and its descriptor is checked: it must belong to root or this user, and only they may write to it, unless it
    is sticky. In such a folder, no other user can rename or remove what belongs to root or this user. So other users
    cannot change where the path leads, and it may be used as well as the descriptor.

    With ``shared``, other users may write to the folder and its parents; only their links are not followed. The path
    may then lead to another folder later, so files have to be made by way of the descriptor.

    On Windows, nothing is checked. Raises `OSError`, and `CacheFolderError` for a folder that fails the check.
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
            # Another process has removed a folder between our making and opening it.
            if not make or not attempts_left:
                raise
    with _closing(opened) as descriptor:
        yield Folder(path, descriptor)


def make_private_folder(path: str, *, shared: bool = False) -> None:
    """
    Make a folder that only this user can read and write, unless it exists.

    ``shared`` applies to its parent; see `open_folder`. Raises `OSError`, and `CacheFolderError` when the name belongs
    to something else.
    """
    parent, name = os.path.split(path)
    with open_folder(parent, make=True, shared=shared) as folder:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder.at(name), 0o700, dir_fd=folder.descriptor)
        if folder.descriptor is not None and not _is_private(name, folder.descriptor):
            raise CacheFolderError(f"{shown(path)} is not a folder that only you can write to; remove it")


def remove_private_folder(parent: Folder, name: str) -> bool:
    """
    Remove a folder that only this user can read and write, with everything in it; return whether the name is free.

    The caller has opened its parent in such a way that no other user can rename it there.
    """
    import shutil

    try:
        if parent.descriptor is not None and not _is_private(name, parent.descriptor):
            return False
        shutil.rmtree(parent.at(name), ignore_errors=True, dir_fd=parent.descriptor)
        os.stat(parent.at(name), dir_fd=parent.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return True
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
            # Whatever the umask: a folder that others can write to would fail the check.
            os.mkdir(name, 0o755, dir_fd=folder)
    return os.open(name, _SEARCH_NO_LINK, dir_fd=folder)


def _read_link(name: str, folder: int, way: str, is_fixed: bool) -> str | None:
    """Return where a link leads; ``None`` for anything else. Refuses a link that another user could have made."""
    found = os.lstat(name, dir_fd=folder)
    if not stat.S_ISLNK(found.st_mode):
        return None
    # Between these two calls no other user can change the link: it belongs to root or to us, and in a checked folder
    # only its owner and the folder's owner can rename or remove it. Elsewhere, another user could even have moved a
    # link of root's there.
    if not is_fixed or not _is_trusted(found.st_uid):
        raise CacheFolderError(
            f"{shown(os.path.join(way, name))} is a symbolic link that another user could have put there "
            f"(it belongs to user {found.st_uid}); remove it, or choose another cache folder"
        )
    return os.readlink(name, dir_fd=folder)


def _check(descriptor: int, way: str, shared: bool) -> bool:
    """Return whether only root and this user can rename files in a folder. Without ``shared``, raise if others can."""
    found = os.fstat(descriptor)
    mode = stat.S_IMODE(found.st_mode)
    if not _is_trusted(found.st_uid):
        problem = f"belongs to user {found.st_uid}, who could replace files in it; choose another cache folder"
    elif mode & stat.S_ISVTX:
        return True
    elif mode & 0o002:
        problem = f"is writable by every user (mode {mode:04o}); run chmod o-w, or chmod +t, on it"
    elif mode & 0o020 and not _is_private_group(found.st_gid):
        problem = f"is writable by group {found.st_gid} (mode {mode:04o}); run chmod g-w, or chmod +t, on it"
    else:
        return True
    if shared:
        return False
    raise CacheFolderError(f"{shown(way)} {problem}")


def _is_trusted(user: int) -> bool:
    # In the user namespace of a rootless container, files of root have another owner.
    return user in (0, os.geteuid()) or user == os.stat("/").st_uid


def _is_private_group(number: int) -> bool:
    """Return whether a group is root's, or has this user's name, and has no other members than the two."""
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
