"""Files that get their names once they are complete, and descriptors that no child process inherits by accident.

A file is made under a hidden name beside its own and then renamed. No other user can guess the hidden name. A process
that is killed in between leaves it; `remove_left_over` removes it.

``lockbuild --version`` imports this module, which therefore imports json and hashlib only where it uses them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from typing import BinaryIO, TextIO

# The errors of a disk, an inode table or a quota that is full.
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

# For a new file. O_EXCL refuses a link by itself (POSIX); O_NOFOLLOW does no harm.
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NO_LINK

# For a file to read, in whose place there may be a FIFO: that must not make us wait.
_OLD = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _NO_LINK

# What a file system says that cannot sync.
_NO_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})

# A hidden name is a dot, this many bytes of the name, a dot, this many random digits, and the end. It is shorter than
# the limit of any file system in use; the lowest is 143 bytes (eCryptfs).
_BEGINNING = 60
_RANDOM = 16
_END = ".tmp"
_HIDDEN = _RANDOM + len(_END)


@contextlib.contextmanager
def errors_naming(path: str) -> Iterator[None]:
    """
    Have system errors name this path.

    What is written to has no name any more, and the hidden name of a file, or its name in a folder that is open, says
    nothing to a user.
    """
    try:
        yield
    except OSError as error:
        if not error.errno:
            raise
        raise OSError(error.errno, error.strerror, path) from error


@contextlib.contextmanager
def hidden_beside(path: str, dir_fd: int | None = None) -> Iterator[str]:
    """
    Yield an unused name beside ``path``, for a file that is then renamed to ``path``. Afterwards, remove that name.

    With ``dir_fd``, both are names in that folder.
    """
    folder, name = os.path.split(path)
    hidden = os.path.join(folder, f"{_beginning(name)}{os.urandom(_RANDOM // 2).hex()}{_END}")
    try:
        yield hidden
    finally:
        # Needed after a rename, too: it leaves both names if they belong to one file already (rename(2)).
        with contextlib.suppress(OSError):
            os.unlink(hidden, dir_fd=dir_fd)


@contextlib.contextmanager
def replacing(path: str, mode: int = 0o666, dir_fd: int | None = None) -> Iterator[BinaryIO]:
    """
    Yield a file to write to, which replaces ``path`` at the end.

    An exception leaves ``path`` as it was. ``mode`` is subject to the umask, as in `os.open`. Raises `OSError`.
    """
    with errors_naming(path), hidden_beside(path, dir_fd) as hidden:
        with open(new_file(hidden, mode, dir_fd), "wb") as file:
            yield file
        os.replace(hidden, path, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def write_whole(path: str, content: bytes, mode: int = 0o666, dir_fd: int | None = None) -> None:
    """Write a file that is complete whenever another process opens it, by `replacing` it."""
    with replacing(path, mode, dir_fd) as file:
        file.write(content)


def read_json(path: str, most_bytes: int = -1) -> Any:
    """
    Return the content of a JSON file; ``None`` if it is missing, damaged, longer than allowed, a link, or no file.

    Its content may have any form.
    """
    import json

    try:
        with open(os.open(path, _OLD), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            return json.loads(file.read(most_bytes))
    except (OSError, ValueError, RecursionError):
        return None


def write_json(path: str, content: object, mode: int = 0o666, dir_fd: int | None = None) -> None:
    """Write a JSON file whole; as `write_whole`."""
    import json

    write_whole(path, json.dumps(content).encode(), mode, dir_fd)


def new_file(path: str, mode: int, dir_fd: int | None = None) -> int:
    """Return a descriptor of a new file. Raises `FileExistsError`, even for a dangling link."""
    return os.open(path, _NEW, mode, dir_fd=dir_fd)


def link(source: str, path: str, source_dir_fd: int | None, dir_fd: int | None) -> None:
    """
    Give a file a second name, a hard link.

    A link that another user has put in place of ``source`` is not followed. Raises `OSError`.
    """
    if os.name == "nt":
        os.link(source, path)
    else:
        os.link(source, path, src_dir_fd=source_dir_fd, dst_dir_fd=dir_fd, follow_symlinks=False)


def sync(descriptor: int) -> None:
    """Have a file written to the disk where its file system can do that. After a power failure, it is not empty."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def digest_of_file(path: str) -> str:
    """Return the SHA-256 of a file's contents, in hexadecimal. Raises `OSError`."""
    from hashlib import file_digest

    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def remove_left_over(folder: str, names: Collection[str]) -> None:
    """Remove files that killed processes have left beside these names. No process may be writing to the folder."""
    beginnings = set(map(_beginning, names))
    for name in set(os.listdir(folder)).difference(names):
        if is_hidden(name) and name[:-_HIDDEN] in beginnings:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(folder, name))


def is_hidden(name: str) -> bool:
    """Return whether a name is one that `hidden_beside` makes."""
    digits = name[-_HIDDEN : -len(_END)]
    return name.startswith(".") and name.endswith(_END) and not digits.strip("0123456789abcdef")


def remove_anything(path: str) -> None:
    """Remove a file or a folder, if it exists and can be removed."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    except OSError:
        # A folder: the error differs by platform.
        import shutil

        shutil.rmtree(path, ignore_errors=True)


def _beginning(name: str) -> str:
    return f".{os.fsencode(name)[:_BEGINNING].decode(errors='ignore')}."


def open_standard_streams() -> None:
    """Open closed standard streams on the null device, so that no other file gets their descriptors."""
    # The system assigns the lowest free descriptor, so each stream gets its own in this order.
    if not _is_open(0):
        sys.stdin = _open_null_device("r")
    if not _is_open(1):
        sys.stdout = _open_null_device("w")
    if not _is_open(2):
        sys.stderr = _open_null_device("w")


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _open_null_device(mode: str) -> TextIO:
    descriptor = os.open(os.devnull, os.O_RDWR)
    os.set_inheritable(descriptor, True)
    return cast("TextIO", open(descriptor, mode, encoding="utf-8", closefd=False))


def take_standard_output() -> int:
    """Return a descriptor of standard output. Other output to it, including that of hooks, goes to standard error."""
    taken = os.dup(1)
    os.dup2(2, 1)
    return taken


def is_standard_stream(descriptor: int) -> bool:
    """Tell whether children inherit a descriptor below 3; a file that got the number of a closed one they do not."""
    try:
        return os.get_inheritable(descriptor)
    except OSError:
        return False


def above_standard_streams(descriptor: int) -> int:
    """Return a descriptor above 2, so that no child inherits it as a standard stream; close the old one if needed."""
    if descriptor > 2 or os.name == "nt":
        return descriptor
    import fcntl

    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)
