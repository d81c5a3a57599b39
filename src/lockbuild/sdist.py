"""A source distribution as the source of a build: copied, checked, and unpacked for as long as a wheel is built.

What is checked, digested and unpacked is one private copy: whatever happens to the user's file meanwhile, the wheel is
that of the digest. The copy is read through to its end, so that a truncated or damaged file is found before a hook
runs, and without unpacking it, so that one which would fill the disk is refused before it can.
"""

from __future__ import annotations

import math
import os
import shutil
import tarfile
import tempfile
import zlib
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, NamedTuple, cast

from lockbuild.digest import sha256
from lockbuild.errors import SdistError, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from gzip import GzipFile

# What a member counts for at least, in bytes: an empty file takes a block and an inode, too.
_LEAST_SIZE = 4096

# More than any header of a member has, in bytes. A header is read into memory whole.
_HEADER_SIZE = 1 << 24

_CHUNK = 1 << 20

# More folders than the path of any member has. `os.makedirs` and `shutil.rmtree` recurse once for each.
_DEEPEST = 256

# What reading a file that is no intact .tar.gz raises. gzip's own exception is an OSError.
UNREADABLE = (OSError, EOFError, zlib.error, tarfile.TarError)

# `tarfile` raises these as well: for malformed numbers, links to missing members, and long chains of headers.
_CONFUSED = (ArithmeticError, LookupError, RecursionError, ValueError)


class Sdist(NamedTuple):
    """A source distribution that was found to be whole."""

    archive: str
    """Its path, as the user named it."""
    copy: str
    """The private copy that everything is read from."""
    folder: str
    """The top-level folder that it consists of."""
    sha256: str

    @property
    def name(self) -> str:
        """The file's name."""
        return os.path.basename(self.archive)


def read_sdist(archive: str, folder: str, limit: float = math.inf) -> Sdist:
    """
    Copy a source distribution (PEP 625) into a folder of ours and check it.

    One that would unpack to more than ``limit`` bytes is refused. Raises `SdistError`, in the
    words of ``build`` where it has some.
    """
    from packaging.utils import InvalidSdistFilename, parse_sdist_filename
    from packaging.version import InvalidVersion

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

    Raises one of `UNREADABLE` when it is not whole.
    """
    import gzip

    members = []
    size = 0
    with gzip.open(path) as stream:
        bounded = _Bounded(stream, limit)
        try:
            with tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r:") as tar:
                for member in tar:
                    # Before its content is read: a member of any size costs us nothing but its header.
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

    With ``extract_dir`` it is unpacked there, over what an earlier build left, and kept. Members that would leave the
    folder are refused (PEP 706's ``data`` filter). Raises `SdistError` when it cannot be unpacked.
    """
    if extract_dir is None:
        root = tempfile.mkdtemp(prefix="build-via-sdist-")
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
    """An archive would unpack to more than is allowed."""


class _Bounded:
    """A decompressed stream as `tarfile` reads it, up to a limit. Never more than a header is read into memory."""

    def __init__(self, stream: GzipFile, limit: float) -> None:
        self._stream = stream
        self._limit = limit
        self.tell = stream.tell

    def check(self, size: int) -> None:
        """Raise an error when so many bytes are too many."""
        if size > self._limit:
            raise _TooLargeError(
                f"unpacks to more than {self._limit / 1024**2:,.0f} MiB; if it may, allow it with --max-sdist-size"
            )

    def read(self, size: int) -> bytes:
        if size > _HEADER_SIZE:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self._stream.read(size)
        self.check(self.tell())
        return data

    def seek(self, position: int) -> int:
        # After a member of negative size, `tarfile` would read the same headers again, without end.
        if position < self.tell():
            raise tarfile.ReadError("a member of negative size")
        self.check(position)
        return self._stream.seek(position)


def _copy(archive: str, copy: str) -> str:
    """Copy a file that may not change meanwhile; return its SHA-256."""
    digest = sha256()
    size = 0
    with open(archive, "rb") as source, open(copy, "xb") as target:
        before = os.fstat(source.fileno())
        # One that is written to as fast as we read would never end.
        while size <= before.st_size and (chunk := source.read(_CHUNK)):
            size += len(chunk)
            digest.update(chunk)
            target.write(chunk)
        after = os.fstat(source.fileno())
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or size != after.st_size:
        raise SdistError(
            f"source distribution {shown(archive)} was changed while it was read; wait until it is complete"
        )
    return digest.hexdigest()


def _top_level_folder(archive: str, members: list[tarfile.TarInfo]) -> str:
    folders = {member.name.split("/", 1)[0] for member in members if member.name} - {""}
    # "." and ".." are no folders of its own: they would be removed before it is unpacked, with all that is in them.
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
        with tarfile.open(sdist.copy, "r:gz") as tar:
            if hasattr(tarfile, "data_filter"):
                tar.extractall(root, filter="data")
            else:
                # Python before 3.11.5.
                from lockbuild.build_library import safe_extractall

                safe_extractall(tar, root)
    except (*UNREADABLE, *_CONFUSED) as error:
        raise SdistError(f"failed to unpack source distribution {shown(sdist.archive)}: {error}") from error
