"""Links from files of the store into an environment: reflinks, hard links, or copies.

A reflink shares the blocks until either file is written to. It is the best method where the file system has it (Btrfs,
XFS, bcachefs). A hard link is the same file under two names: an edit of one is an edit of both, and the store has to
notice it (see `lockbuild.wheels.store`). A copy always works. A method that a file system has refused once is not tried
again.

A file is whole under its name at every moment. A new hard link is whole at once; everything else is made under a hidden
name and renamed (`lockbuild.files`).
"""

from __future__ import annotations

import errno
import os
import shutil
from typing import TYPE_CHECKING, Literal

from lockbuild.files import hidden_beside

if TYPE_CHECKING:
    from collections.abc import Callable

    from lockbuild.request import LinkMode

_Method = Literal["reflink", "hardlink", "copy"]

_METHODS: dict[LinkMode, tuple[_Method, ...]] = {
    "auto": ("reflink", "hardlink", "copy"),
    "hardlink": ("hardlink", "copy"),
    "copy": ("copy",),
}

# FICLONE of linux/fs.h: _IOW(0x94, 9, int).
_FICLONE = 0x40049409

# The errors of a method that does not work: between these two file systems, on this one, for this user, or for a file
# that has too many links.
_REFUSALS = frozenset(
    getattr(errno, name)
    for name in ("EXDEV", "EOPNOTSUPP", "ENOTSUP", "ENOTTY", "ENOSYS", "EINVAL", "EPERM", "EACCES", "EMLINK")
    if hasattr(errno, name)
)


class Linker:
    """Puts files of the store into one environment, by the best method that a `LinkMode` and the file systems allow."""

    def __init__(self, mode: LinkMode) -> None:
        self._methods = _METHODS[mode]

    def place(self, source: str, target: str) -> None:
        """
        Link or copy ``source`` to ``target``. A copy has the permissions and times of the source.

        An older file named ``target`` is replaced atomically. Raises `FileNotFoundError` when there is no such source.
        """
        while True:
            method = self._methods[0]
            try:
                if method == "hardlink":
                    _hard_link(source, target)
                else:
                    _copy(source, target, _reflink if method == "reflink" else shutil.copyfile)
                return
            except OSError as error:
                if method == "copy" or error.errno not in _REFUSALS:
                    raise
                # Several threads may be here at once. Each drops only the method that it has tried itself.
                self._methods = _METHODS["auto"][_METHODS["auto"].index(method) + 1 :]


def _hard_link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        with hidden_beside(target) as hidden:
            os.link(source, hidden)
            os.replace(hidden, target)


def _copy(source: str, target: str, copy_contents: Callable[[str, str], object]) -> None:
    with hidden_beside(target) as hidden:
        copy_contents(source, hidden)
        shutil.copystat(source, hidden)
        os.replace(hidden, target)


def _reflink(source: str, target: str) -> None:
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), target) from None
    with open(source, "rb") as read, open(target, "xb") as write:
        fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
