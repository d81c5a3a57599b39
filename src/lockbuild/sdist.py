"""A source distribution as the source of a build: copied, checked, and unpacked while a wheel is built from it.

lockbuild checks, digests and unpacks one private copy, so the wheel belongs to the digest even if the user's file
changes. It reads the copy to its end before a hook runs, which finds truncated and damaged files. Nothing is unpacked
before that, so an sdist that would fill the disk is refused in time.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import math
import os
import shutil
import tarfile
import tempfile
import zlib
from contextlib import contextmanager
from hashlib import sha256
from typing import IO, TYPE_CHECKING, NamedTuple, cast

from packaging.utils import InvalidSdistFilename, parse_sdist_filename
from packaging.version import InvalidVersion

from lockbuild.errors import SdistError, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# A member counts for at least this many bytes: an empty file takes space, too.
_LEAST_SIZE = 4096

# More bytes than the header of any member has. tarfile reads a header into memory whole.
_HEADER_SIZE = 1 << 24

_CHUNK = 1 << 20

# More folders than the path of any member has. `os.makedirs` and `shutil.rmtree` recurse once for each.
_DEEPEST = 256

# What opens a compressed file, by its first bytes. As `build` does, lockbuild reads what has the name of an sdist.
_COMPRESSIONS: Mapping[bytes, Callable[[str], object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}

# What reading raises for a file that is not an intact .tar.gz. The exceptions of gzip and bz2 are OSErrors.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, tarfile.TarError)

# `tarfile` raises these as well: for malformed numbers, links to missing members, and long chains of headers.
_CONFUSED = (ArithmeticError, LookupError, RecursionError, ValueError)


class Sdist(NamedTuple):
    """A source distribution that was checked to be complete."""

    archive: str
    """The path of the file, as the user gave it."""
    copy: str
    """The path of the private copy, from which everything is read."""
    folder: str
    """The name of its top-level folder."""
    sha256: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return os.path.basename(self.archive)


def read_sdist(archive: str, folder: str, limit: float = math.inf) -> Sdist:
    """
    Copy a source distribution (PEP 625) into a private folder and check it.

    Raises `SdistError`, also when it would unpack to more than ``limit`` bytes. The messages are those of ``build``
    where it has some.
    """
    name = os.path.basename(archive)
    try:
        parse_sdist_filename(name)
    except (InvalidSdistFilename, InvalidVersion) as error:
        raise SdistError(f"{name!r} does not look like a source distribution: {error}") from error
    copy = os.path.join(folder, name)
    try:
        digest = _copy(archive, copy)
        members = read_through(copy, limit)
    except _TooLargeError as error:
        raise SdistError(f"source distribution {shown(archive)} {error}") from error
    except UNREADABLE as error:
        raise SdistError(f"failed to read source distribution {shown(archive)}: {error}") from error
    return Sdist(archive, copy, _top_level_folder(archive, members), digest)


def read_through(path: str, limit: float = math.inf) -> list[tarfile.TarInfo]:
    """
    Read a ``.tar.gz`` to its end, which verifies its checksum and length, and return its members.

    An archive of that name that is compressed otherwise, or not at all, is read as well, as ``build`` does. Raises one
    of `UNREADABLE` when it is damaged.
    """
    members = []
    size = 0
    with _decompressed(path) as stream:
        bounded = _Bounded(stream, limit)
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r:") as tar:
                for member in tar:
                    # Checked before its content is read, so that a huge member costs only its header.
                    size += max(member.size, _LEAST_SIZE)
                    bounded.check(size)
                    members.append(member)
        except _CONFUSED as error:
            raise tarfile.ReadError(f"a malformed header: {error}") from error
        while bounded.read(_CHUNK):
            pass
    return members


@contextmanager
def unpacked(sdist: Sdist, extract_dir: str | None) -> Iterator[str]:
    """
    Unpack a source distribution and yield the path of its source tree, which is removed afterwards.

    With ``extract_dir``, the tree replaces one that an earlier build left there, and is kept. Members that would leave
    the folder are refused (the ``data`` filter of PEP 706). Raises `SdistError` when the sdist cannot be unpacked.
    """
    if extract_dir is None:
        root = tempfile.mkdtemp(prefix="build-via-sdist-", dir=os.path.dirname(sdist.copy))
        try:
            _unpack(sdist, root)
            yield os.path.join(root, sdist.folder)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    else:
        tree = os.path.join(extract_dir, sdist.folder)
        shutil.rmtree(tree, ignore_errors=True)
        _unpack(sdist, extract_dir)
        yield tree


class _TooLargeError(tarfile.TarError):
    """An archive would unpack to more than the limit."""


class _Bounded:
    """A decompressed stream for `tarfile`, with limits on its length and on the bytes of one read."""

    def __init__(self, stream: IO[bytes], limit: float) -> None:
        self._stream = stream
        self._limit = limit
        self.tell = stream.tell

    def check(self, size: int) -> None:
        """Raise an error when this many bytes are too many."""
        if size > self._limit:
            raise _TooLargeError(
                f"unpacks to more than {self._limit:,.0f} bytes; raise the limit with --max-sdist-size"
            )

    def read(self, size: int) -> bytes:
        if size > _HEADER_SIZE:
            raise tarfile.ReadError(f"a header of {size} bytes is too large")
        data = self._stream.read(size)
        self.check(self.tell())
        return data

    def seek(self, position: int) -> int:
        # After a member of negative size, `tarfile` would read the same headers again, without end.
        if position < self.tell():
            raise tarfile.ReadError("a member of negative size")
        self.check(position)
        return self._stream.seek(position)


def _decompressed(path: str) -> IO[bytes]:
    with open(path, "rb") as file:
        begins = file.read(max(map(len, _COMPRESSIONS)))
    for magic, opened in _COMPRESSIONS.items():
        if begins.startswith(magic):
            return cast("IO[bytes]", opened(path))
    return open(path, "rb")


def _copy(archive: str, copy: str) -> str:
    """Copy a file; return its SHA-256. Raises `SdistError` when the file changes meanwhile."""
    digest = sha256()
    size = 0
    with open(archive, "rb") as source, open(copy, "xb") as target:
        before = os.fstat(source.fileno())
        # A file that grows as fast as it is read would never end.
        while size <= before.st_size and (chunk := source.read(_CHUNK)):
            size += len(chunk)
            digest.update(chunk)
            target.write(chunk)
        after = os.fstat(source.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or size != after.st_size:
        raise SdistError(f"source distribution {shown(archive)} changed while it was read; wait until it is complete")
    return digest.hexdigest()


def _top_level_folder(archive: str, members: list[tarfile.TarInfo]) -> str:
    folders = {member.name.split("/", 1)[0] for member in members if member.name} - {""}
    # "." and ".." are refused: `unpacked` would remove them with all their contents.
    if len(folders) != 1 or folders & {".", ".."}:
        raise SdistError(
            f"source distribution {shown(archive)} must contain a single top-level directory, got: {sorted(folders)}"
        )
    folder = folders.pop()
    if not any(member.name == f"{folder}/PKG-INFO" and member.isfile() for member in members):
        raise SdistError(
            f"source distribution {shown(archive)} does not contain {shown(folder)}/PKG-INFO; "
            "this does not appear to be a valid source distribution"
        )
    if any(member.name.count("/") > _DEEPEST for member in members):
        raise SdistError(f"source distribution {shown(archive)} has more than {_DEEPEST} folders in each other")
    return folder


def _unpack(sdist: Sdist, root: str) -> None:
    try:
        with tarfile.open(sdist.copy) as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(root, filter="data")
            else:
                tar.extractall(root, members=_checked(tar, os.path.realpath(root)))
    except (*UNREADABLE, *_CONFUSED) as error:
        raise SdistError(f"failed to unpack source distribution {shown(sdist.archive)}: {error}") from error


def _checked(tar: tarfile.TarFile, root: str) -> Iterator[tarfile.TarInfo]:
    """
    Yield the members of an archive; refuse those that would leave the folder ``root``, and devices.

    Python before 3.11.4, which Debian 12 has, knows no filters. A member is checked when `extractall` asks for it:
    by then the links before it have been made, and are followed.
    """
    for member in tar:
        path = os.path.join(root, member.name)
        paths = [path]
        if member.issym():
            paths.append(os.path.join(os.path.dirname(path), member.linkname))
        elif member.islnk():
            paths.append(os.path.join(root, member.linkname))
        elif not (member.isreg() or member.isdir()):
            raise tarfile.TarError(f"{member.name!r} is a special file")
        if any(os.path.commonpath([root, os.path.realpath(each)]) != root for each in paths):
            raise tarfile.TarError(f"{member.name!r} would be outside of the destination")
        yield member
